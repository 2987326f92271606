//! What pid 1 is born into and does for its payload, by the commands of a shell that is pid 1 in its place.

use std::path::{Path, PathBuf};

use super::super::{Lesson, path};
use crate::postgres::{
    contract::{DEFAULT_USER, is_secret},
    hba::{self, REPLICATOR},
    initdb::Initdb,
    launch::{InitConfig, Password, Payload, PostgresPayload, Source, Standby},
    quote::{self, shell},
    settings, standby,
};

/// What the lesson of a step inside needs to know of the others.
pub struct Around<'a> {
    /// What pid 1 is told.
    pub init: &'a InitConfig,
    /// The directories of the node's cgroup.
    pub cgroup: &'a [PathBuf],
    /// Where a server's log goes.
    pub log: PathBuf,
}

/// From here to the line `INNER` all is said to the new pid 1.
pub fn begin(around: &Around, netns: &Path) -> String {
    let out = match around.init.payload {
        Payload::Postgres(_) => format!(" >>{} 2>&1", path(&around.log)),
        Payload::Command { .. } => String::new(),
    };
    let groups: Vec<_> = around.cgroup.iter().map(|group| path(group)).collect();
    format!(
        "(for group in {}; do echo $BASHPID >$group/cgroup.procs; done\n\
         \x20exec nsenter --net={} unshare --fork --kill-child --pid --mount --uts --ipc --cgroup bash -eu) <<'INNER'{out} &",
        groups.join(" "),
        path(netns),
    )
}

/// Sets `limited`, with which every command line of the image begins: in which environment, as whom, with which power.
/// No command of util-linux has system calls filtered.
pub fn limited(init: &InitConfig, keep: &[String]) -> String {
    let user = &init.user;
    let server = matches!(init.payload, Payload::Postgres(_));
    let env = init.env.iter().filter(|(name, _)| !(server && is_secret(name)));
    let mut env: Vec<_> = env.map(|(name, value)| shell(&format!("{name}={value}"))).collect();
    if !init.env.iter().any(|(name, _)| name == "HOME") {
        env.push(shell(&format!("HOME={}", user.home.display())));
    }
    let groups = match &user.groups[..] {
        [] => "--clear-groups".to_owned(),
        groups => format!("--groups={}", groups.iter().map(u32::to_string).collect::<Vec<_>>().join(",")),
    };
    let keep: String = keep.iter().map(|name| format!(",+{}", name.trim_start_matches("cap_"))).collect();
    format!(
        "limited=(env -i {} setpriv --reuid={} --regid={} {groups} --no-new-privs --bounding-set=-all{keep})",
        env.join(" "),
        user.uid,
        user.gid,
    )
}

/// The payload in the shell's place.
pub fn start(init: &InitConfig, command: &[String]) -> String {
    format!("cd {}\n{}\nINNER", path(&init.cwd), call("exec ", command))
}

/// How an empty data directory is filled.
pub fn fill(init: &InitConfig) -> Lesson {
    let Payload::Postgres(postgres) = &init.payload else {
        return Lesson {
            title: "fill no data directory".to_owned(),
            why: "It runs no server.",
            see: "PostgreSQL manual, 18.2 Creating a Database Cluster",
            shell: String::new(),
            look: "ls -l /".to_owned(),
        };
    };
    let data = postgres.pgdata.display();
    let shell = fill_shell(init, postgres);
    match &postgres.orders.standby {
        None => Lesson {
            title: format!("make a database cluster in {data}, if there is none"),
            why: "initdb writes the catalogs of an empty cluster, most of the time that a first start takes. It syncs \
                  nothing here: one sync at the end replaces a thousand. Then come who may connect, the settings in a \
                  file of their own, and the first database. The scripts of /docker-entrypoint-initdb.d would run now.",
            see: "PostgreSQL manual, 18.2 Creating a Database Cluster",
            shell,
            look: format!("ls -l {data}"),
        },
        Some(standby) => Lesson {
            title: format!("copy the data of {} to {data}, if there are none", standby.host),
            why: "A standby begins as a copy of its server's files, with the WAL that is written meanwhile, and goes on \
                  from there. standby.signal makes it one; where its server is stands in its settings.",
            see: "PostgreSQL manual, 27.2 Log-Shipping Standby Servers, and the reference page of pg_basebackup",
            shell,
            look: format!("ls -l {data}"),
        },
    }
}

fn fill_shell(init: &InitConfig, postgres: &PostgresPayload) -> String {
    let (data, user) = (path(&postgres.pgdata), format!("-o {} -g {}", init.user.uid, init.user.gid));
    let mut all = postgres.orders.settings.clone();
    let first = match &postgres.orders.standby {
        None => initdb(postgres, &data, &user),
        Some(standby) => {
            all.extend(standby::settings(standby));
            base_backup(postgres, standby, &data, &user)
        }
    };
    let first: String = first.lines().map(indented).collect();
    // Only what can't be a setting is refused, and that was.
    let settings = settings::render(&all).unwrap_or_default();
    format!(
        "install -d {user} /var/run/postgresql\n\
         if [ ! -e {data}/PG_VERSION ]; then\n\
         {first}  \
           sync -f {data}\n\
         fi\n\
         cat >{data}/{} <<'EOF'\n{settings}EOF",
        settings::FILE,
    )
}

/// The password is in memory only: in a file of /dev/shm.
fn initdb(postgres: &PostgresPayload, data: &str, user: &str) -> String {
    const PWFILE: &str = "/dev/shm/password";
    let has_password = postgres.password != Password::Unset;
    let value = |source: &Source| match source {
        Source::Value(value) => Some(value.clone()),
        Source::File(_) => None,
    };
    let superuser = value(&postgres.superuser).unwrap_or_else(|| DEFAULT_USER.to_owned());
    let extra = postgres.initdb_args.as_ref().and_then(value).unwrap_or_default();
    let initdb = Initdb {
        bindir: &postgres.bindir,
        pgdata: &postgres.pgdata,
        major: postgres.major,
        superuser: &superuser,
        pwfile: has_password.then_some(PWFILE),
        waldir: postgres.initdb_waldir.as_deref(),
        locale: None,
        extra: &extra,
    };
    let mut lines = vec![format!("install -d {user} -m 700 {data}")];
    if has_password {
        lines.push(format!("install {user} -m 400 /dev/stdin {PWFILE} <<<\"$POSTGRES_PASSWORD\""));
    }
    // Options that are no words fail the start, by name.
    lines.push(call("", &initdb.argv().unwrap_or_default()));
    if has_password {
        lines.push(format!("rm {PWFILE}"));
    }
    let database = postgres.database.as_ref().and_then(value).unwrap_or(superuser);
    if database != DEFAULT_USER {
        let create = shell(&format!("CREATE DATABASE {};", quote::identifier(&database)));
        let binary = postgres.bindir.join("postgres").display().to_string();
        let single = [binary, "--single".into(), "-D".into(), postgres.pgdata.display().to_string()];
        lines.push(format!("echo {create} | {} postgres", call("", &single)));
    }
    let hba = hba::lines(postgres.auth_method.as_deref(), postgres.replication_subnet.as_deref());
    let hba = hba.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.extend(hba.map(|line| format!("echo {} >>{data}/pg_hba.conf", shell(line))));
    lines.push(format!("echo \"{}\" >>{data}/postgresql.conf", settings::INCLUDE));
    lines.join("\n")
}

fn base_backup(postgres: &PostgresPayload, standby: &Standby, data: &str, user: &str) -> String {
    let waldir = postgres.initdb_waldir.as_deref();
    let backup = standby::base_backup(&postgres.bindir, &postgres.pgdata, standby, waldir);
    [
        format!("install -d {user} -m 700 {data}"),
        format!(
            "install -D {user} -m 600 /dev/stdin {} <<<\"*:*:*:{REPLICATOR}:$REPLICATOR_PASSWORD\"",
            standby::PASSFILE
        ),
        call("", &backup),
        format!("touch {data}/{}", standby::SIGNAL),
    ]
    .join("\n")
}

/// A command line of the image.
fn call(before: &str, argv: &[String]) -> String {
    let words: Vec<_> = argv.iter().map(|word| shell(word)).collect();
    format!("{before}\"${{limited[@]}}\" {}", words.join(" "))
}

fn indented(line: &str) -> String {
    format!("  {line}\n")
}
