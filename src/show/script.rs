//! A plan as a script: the shell lines of its lessons in their order, and the way back.

use anyhow::{Result, bail};

use crate::{
    engine,
    postgres::{
        launch::{Password, Payload, Source},
        quote::{bash, split_words},
    },
    state::Plan,
    step::HostStep,
};

const HEAD: &str = "\
#!/bin/bash
# The steps of `pgbox run` by hand, for images that one trusts: what comes after pivot_root is done by their util-linux and coreutils.
# Left out is what only pgbox' own pid 1 does: init scripts, restarts, the log's size, other locales, the seccomp filter.
# pgbox knows nothing of this node; one at a time in a lab. The way back is the script of --undo, or `pgbox rm --force -v`.
set -eu
umask 022
";

/// What does by hand what `run` does.
///
/// # Errors
/// When a part of it is only known inside the container.
pub fn script(plan: &Plan) -> Result<String> {
    check(plan)?;
    let serves = matches!(plan.init.payload, Payload::Postgres(_));
    let tools = if serves { "ip nft nsenter unshare psql" } else { "ip nft nsenter unshare" };
    let mut text = HEAD.to_owned();
    text += &format!(
        "for tool in {tools}; do\n  \
           command -v $tool >/dev/null || {{ echo \"$tool is needed\" >&2; exit 1; }}\n\
         done\n"
    );
    text += secret(plan);
    for (i, lesson) in engine::lessons(plan).enumerate() {
        let title = lesson.title.replace(char::is_control, " ");
        text += &format!("\n# {}. {title}\n{}\n", i + 1, lesson.shell);
    }
    Ok(text)
}

/// The superuser's password is told when the script is run.
fn secret(plan: &Plan) -> &'static str {
    match &plan.init.payload {
        Payload::Postgres(postgres) if postgres.password != Password::Unset => {
            ": \"${POSTGRES_PASSWORD:?set it to the password that the superuser is to have}\"\n\
             export POSTGRES_PASSWORD PGPASSWORD=$POSTGRES_PASSWORD\n"
        }
        _ => "",
    }
}

fn check(plan: &Plan) -> Result<()> {
    let Payload::Postgres(postgres) = &plan.init.payload else { return Ok(()) };
    let in_file = |source: &Option<Source>| matches!(source, Some(Source::File(_)));
    let superuser = matches!(postgres.superuser, Source::File(_));
    let password = matches!(postgres.password, Password::File(_));
    if superuser || password || in_file(&postgres.database) || in_file(&postgres.initdb_args) {
        bail!("a script can't say what is in the files of POSTGRES_*_FILE: give the values themselves");
    }
    if let Some(Source::Value(args)) = &postgres.initdb_args {
        split_words(args)?;
    }
    Ok(())
}

/// What takes it back by hand: the steps on the host, last first. Absent things are complained about, and no harm.
pub fn way_back(plan: &Plan) -> String {
    let mut text =
        "#!/bin/bash\n# Takes back what the script of --emit-shell has made, last first.\n".to_owned();
    for step in &plan.host {
        if let HostStep::CreateBundle { dir, .. } = step {
            let state = bash(&dir.join("state.json").display().to_string());
            text += &format!("[ ! -e {state} ] || {{ echo 'pgbox has made it: pgbox rm' >&2; exit 1; }}\n");
        }
    }
    let around = engine::around(plan);
    let inner = plan.inner.iter().map(|step| step.way_back(&around));
    let host = plan.host.iter().rev().map(HostStep::way_back);
    for shell in inner.chain(host).filter(|shell| !shell.is_empty()) {
        text += &format!("\n{shell}\n");
    }
    text
}
