//! A plan as a script: the shell lines of its lessons in their order, and the way back. It needs iproute2, nftables, psql and
//! util-linux, the latter in the image as well: what comes after pivot_root is there.

use crate::{
    engine,
    postgres::launch::{Password, Payload},
    state::Plan,
    step::{HostStep, InnerStep},
};

/// What does by hand what `run` does.
pub fn script(plan: &Plan) -> String {
    let head =
        "Makes a node by hand, in the steps of `pgbox run`, which knows nothing of it. The way back: --undo.";
    let mut text = format!("#!/bin/bash\n# {head}\nset -eu\n{}\n", secrets(plan));
    for (i, lesson) in engine::lessons(plan).enumerate() {
        text += &format!("# {}. {}\n{}\n\n", i + 1, lesson.title, lesson.shell);
    }
    // A command is run to its end, and its exit code is the script's.
    if matches!(plan.init.payload, Payload::Command { .. }) {
        text += "wait $!\n";
    }
    text
}

/// No script has a password in it.
fn secrets(plan: &Plan) -> String {
    match &plan.init.payload {
        Payload::Postgres(postgres) if postgres.password != Password::Unset => {
            ": \"${POSTGRES_PASSWORD:?set it to the password that the superuser is to have}\"\n\
             export POSTGRES_PASSWORD PGPASSWORD=$POSTGRES_PASSWORD\n"
        }
        _ => "",
    }
    .to_owned()
}

/// What takes it back by hand: the steps on the host, last first. Absent things are complained about, and no harm.
pub fn way_back(plan: &Plan) -> String {
    let mut text =
        "#!/bin/bash\n# Takes back by hand what the script of --emit-shell has made, last first.\n\n"
            .to_owned();
    let inner = plan.inner.iter().map(InnerStep::way_back);
    let host = plan.host.iter().rev().map(HostStep::way_back);
    for shell in inner.chain(host).filter(|shell| !shell.is_empty()) {
        text += &(shell + "\n\n");
    }
    text
}
