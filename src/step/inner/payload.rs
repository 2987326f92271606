//! What pid 1 is born into and does for its payload, by the commands of a shell that is pid 1 in its place.

use std::path::{Path, PathBuf};

use super::super::{Lesson, path};
use crate::postgres::{
    contract::{DEFAULT_USER, is_secret},
    environment,
    hba::{self, REPLICATOR},
    initdb::{Initdb, create_database},
    launch::{InitConfig, Password, Payload, PostgresPayload, Source, Standby},
    quote::bash,
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

/// From here to the line `INNER` all is said to the new pid 1. A command has the standard streams of the script.
pub fn begin(around: &Around, netns: &Path) -> String {
    let streams = match around.init.payload {
        Payload::Postgres(_) => format!(" </dev/null >>{} 2>&1 &", path(&around.log)),
        Payload::Command { .. } => String::new(),
    };
    let groups: Vec<_> = around.cgroup.iter().map(|group| path(group)).collect();
    format!(
        "(for group in {}; do echo $BASHPID >$group/cgroup.procs; done\n\
         \x20exec nsenter --net={} unshare --fork --kill-child --pid --mount --uts --ipc --cgroup bash -eu /dev/fd/3) 3<<'INNER'{streams}",
        groups.join(" "),
        path(netns),
    )
}

/// Ends pid 1: a server by a fast shutdown, a command, which pgbox' own pid 1 would pass a signal on to, at once.
pub fn end(around: &Around, netns: &Path) -> String {
    let name = netns.file_name().unwrap_or_default().to_string_lossy();
    let stop = match around.init.payload {
        Payload::Postgres(_) => format!(
            "[ -z \"$init\" ] || kill -INT $init\n\
             for _ in {{1..{}}}; do [ -e \"/proc/$init/ns\" ] || break; sleep 0.1; done\n",
            around.init.stop_timeout * 10
        ),
        Payload::Command { .. } => String::new(),
    };
    format!(
        "init=$(for pid in $(ip netns pids {name}); do grep -lE '^NSpid:.*[[:space:]]1$' /proc/$pid/status; done | cut -d/ -f3)\n\
         {stop}ip netns pids {name} | xargs -r kill -KILL\n\
         while [ \"$(ip netns pids {name})\" ]; do sleep 0.1; done"
    )
}

/// Sets `limited`, with which every command line of the image begins: in which environment, as whom, with which power.
/// What may be a password is taken from the script's own environment. No command of util-linux has system calls filtered.
pub fn limited(init: &InitConfig, keep: &[String]) -> String {
    let user = &init.user;
    let env = match &init.payload {
        Payload::Postgres(postgres) => environment::of_server(init, postgres),
        Payload::Command { .. } => environment::with_home(init),
    };
    let env = env.iter().map(|(name, value)| match is_secret(name) {
        true => format!("{name}=\"${name}\""),
        false => bash(&format!("{name}={value}")),
    });
    let groups = match &user.groups[..] {
        [] => "--clear-groups".to_owned(),
        groups => format!("--groups={}", groups.iter().map(u32::to_string).collect::<Vec<_>>().join(",")),
    };
    let keep: String = keep.iter().map(|name| format!(",+{}", name.trim_start_matches("cap_"))).collect();
    format!(
        "limited=(env -i {} setpriv --reuid={} --regid={} {groups} --no-new-privs --bounding-set=-all{keep})",
        env.collect::<Vec<_>>().join(" "),
        user.uid,
        user.gid,
    )
}

/// The payload in the shell's place.
pub fn start(init: &InitConfig, command: &[String]) -> String {
    format!("cd {}\n{}\nINNER", path(&init.cwd), call("exec ", command) + " 3<&-")
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
            title: match standby.renew {
                None => format!("copy the data of {} to {data}, if there are none", standby.host),
                Some(_) => format!("make the data in {data} those of a standby of {}", standby.host),
            },
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
        None => initdb(init, postgres, &data, &user),
        Some(standby) => {
            all.extend(standby::settings(standby));
            base_backup(postgres, standby, &data, &user)
        }
    };
    let first: String = first.lines().map(indented).collect();
    let waldir = postgres.initdb_waldir.as_deref();
    let waldir =
        waldir.map_or(String::new(), |dir| indented(&format!("install -d {user} -m 700 {}", path(dir))));
    // Only what can't be a setting is refused, and that was.
    let settings = settings::render(&all).unwrap_or_default();
    format!(
        "install -d {user} /var/run/postgresql\n\
         if [ ! -e {data}/PG_VERSION ]; then\n\
         {waldir}{first}  \
           sync -f {data}\n\
         fi\n\
         cat >{data}/{} <<'EOF'\n{settings}EOF\n\
         grep -qxF \"{include}\" {data}/postgresql.conf || echo \"{include}\" >>{data}/postgresql.conf",
        settings::FILE,
        include = settings::INCLUDE,
    )
}

/// The password is in memory only: in a file of /dev/shm.
fn initdb(init: &InitConfig, postgres: &PostgresPayload, data: &str, user: &str) -> String {
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
    let locale = environment::missing_locale(&environment::of_server(init, postgres));
    let locale = locale.map(|(name, value)| ["env".to_owned(), format!("{name}={value}")]);
    // Options that are no words are refused before.
    let argv = locale.into_iter().flatten().chain(initdb.argv().unwrap_or_default());
    lines.push(call("", &argv.collect::<Vec<_>>()));
    if has_password {
        lines.push(format!("rm {PWFILE}"));
    }
    let database = postgres.database.as_ref().and_then(value).unwrap_or(superuser);
    if let Some(create) = create_database(&database) {
        let binary = postgres.bindir.join("postgres").display().to_string();
        let single = [binary, "--single".into(), "-D".into(), postgres.pgdata.display().to_string()];
        lines.push(format!("echo {} | {} postgres", bash(&create), call("", &single)));
    }
    let hba = hba::lines(postgres.auth_method.as_deref(), postgres.replication_subnet.as_deref());
    let hba = hba.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.extend(hba.map(|line| format!("echo {} >>{data}/pg_hba.conf", bash(line))));
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
    let words: Vec<_> = argv.iter().map(|word| bash(word)).collect();
    format!("{before}\"${{limited[@]}}\" {}", words.join(" "))
}

fn indented(line: &str) -> String {
    format!("  {line}\n")
}
