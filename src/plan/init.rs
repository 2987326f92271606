//! What pid 1 of a node is given: its payload, and as whom, in which environment and by which settings it runs.

use anyhow::{Context, Result, bail};

use super::{Facts, follow};
use crate::{
    postgres::{
        contract::{self, Contract},
        launch::{self, InitConfig, Orders, Payload, PostgresPayload, Standby, User},
        settings, tune,
    },
    spec::{NodeSpec, Restart},
    sys::execute::DEFAULT_PATH,
};

/// The log is moved aside at this many bytes; two of them are kept.
const LOG_CAP: u64 = 16 << 20;

/// What pid 1 is given.
pub fn init_config(spec: &NodeSpec, facts: &Facts) -> Result<InitConfig> {
    let env = merged_env(&facts.image.env, &spec.env);
    let contract = Contract::parse(&env)?;
    let (payload, user) = match spec.command() {
        Some(argv) => command_payload(argv, facts),
        None => postgres_payload(spec, facts, &contract)?,
    };
    let is_command = matches!(payload, Payload::Command { .. });
    Ok(InitConfig {
        payload,
        user,
        // The contract is the server's: a command that talks to one may need a password.
        env: if is_command { env } else { contract.rest },
        cwd: facts.image.workdir.clone().filter(|_| is_command).unwrap_or_else(|| "/".into()),
        restart: restart(spec.restart),
        stop_timeout: spec.stop_timeout,
        log_cap: LOG_CAP,
    })
}

/// A restart policy in the words of pid 1.
pub fn restart(policy: Restart) -> launch::Restart {
    match policy {
        Restart::No => launch::Restart::No,
        Restart::OnCrash { max } => launch::Restart::OnCrash { max },
    }
}

fn command_payload(mut argv: Vec<String>, facts: &Facts) -> (Payload, User) {
    let root = User { uid: 0, gid: 0, groups: vec![], name: "root".into(), home: "/root".into() };
    let mut user = facts.image.user.clone().unwrap_or(root);
    // `postgres` need not be in the image's PATH, and most of what it does it refuses to do as root.
    if let Some(postgres) = facts.image.postgres.as_ref().filter(|_| argv[0] == "postgres") {
        argv[0] = postgres.bindir.join("postgres").display().to_string();
        user = postgres.user.clone();
    }
    (Payload::Command { argv }, user)
}

fn postgres_payload(spec: &NodeSpec, facts: &Facts, contract: &Contract) -> Result<(Payload, User)> {
    let Some(postgres) = &facts.image.postgres else {
        bail!(
            "image {} has no Postgres in it: no `postgres` and `initdb` in its PATH, below /usr/lib/postgresql, /usr/pgsql-* or /usr/local",
            spec.image
        );
    };
    let payload = PostgresPayload {
        bindir: postgres.bindir.clone(),
        pgdata: contract.pgdata.clone().unwrap_or_else(|| "/var/lib/postgresql/data".into()),
        major: postgres.major,
        superuser: contract.superuser.clone(),
        database: contract.database.clone(),
        initdb_args: contract.initdb_args.clone(),
        initdb_waldir: contract.initdb_waldir.clone(),
        password: contract.password(),
        auth_method: contract.auth_method.clone(),
        scripts_dir: contract::SCRIPTS_DIR.into(),
        server_args: spec.server_args().to_vec(),
        orders: Orders {
            settings: node_settings(spec, facts, postgres.major)?,
            standby: spec.follow.as_ref().map(|follow| Standby {
                primary: facts.upstream.as_ref().map(|upstream| upstream.primary.address),
                ..follow::following(&spec.node, follow)
            }),
        },
        replication_subnet: Some(facts.gateway.trunc().to_string()),
    };
    Ok((Payload::Postgres(Box::new(payload)), postgres.user.clone()))
}

/// The generated settings: what every node starts with, then what follows from its limits, then what the
/// user said; of two values for one name the later counts.
fn node_settings(spec: &NodeSpec, facts: &Facts, major: u32) -> Result<Vec<(String, String)>> {
    let mut list = settings::defaults(major);
    if spec.tune {
        list.extend(tuned(spec, facts));
    }
    let generated = list.into_iter().map(|s| (s.name.to_owned(), s.value));
    let mut all: Vec<(String, String)> = generated.collect();
    all.extend(spec.settings.iter().cloned());
    settings::render(&all).context("the settings of -c")?;
    Ok(all)
}

/// What `--tune auto` derives from the node's limits, or from the whole machine.
pub fn tuned(spec: &NodeSpec, facts: &Facts) -> Vec<settings::Setting> {
    let memory = spec.limits.memory.map_or(tune::Memory::Machine(facts.whole_memory), tune::Memory::Limit);
    tune::tune(memory, spec.limits.milli_cpus.map(|m| m as f64 / 1000.0))
}

/// The image's environment with the user's on top.
pub fn merged_env(image: &[(String, String)], user: &[(String, String)]) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> =
        image.iter().filter(|(key, _)| !user.iter().any(|(k, _)| k == key)).cloned().collect();
    env.extend(user.iter().cloned());
    if !env.iter().any(|(key, _)| key == "PATH") {
        env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
    env
}
