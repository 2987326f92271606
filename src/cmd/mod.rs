//! Subcommands, one file each. They parse nothing and decide no order: they gather, call the floors below,
//! and print. Results go to standard output, talk to standard error.

// Before the others, which say what they say by its macros.
#[macro_use]
mod say;

mod access;
mod collation;
mod crash;
mod create;
mod down;
mod drive;
mod endpoint;
mod environment;
mod exec;
mod failover;
mod foreground;
mod freeze;
mod guard;
mod image;
mod inspect;
mod lag;
mod limit;
mod logs;
mod net;
mod promote;
mod ps;
mod psql;
mod rejoin;
mod replica;
mod rm;
mod run;
mod set;
mod slots;
mod start;
mod stats;
mod status;
mod stop;
mod switchover;
mod sync;
mod talk;
mod trial;
mod up;
mod uri;
mod verify;
mod volume;
mod wait;
mod which;

use anyhow::Result;

use crate::{
    cli::{Cli, Command},
    engine::{
        StepFailed,
        membership::{self, Change},
        passfile, password, restart,
        settings::lower::{self, Lowered},
    },
    facts::{self, node},
    hint::{self, advise},
    spec::{self, Name},
    state::{Hold, Lock, Root},
};

/// What every command works on.
pub struct Context {
    pub root: Root,
    pub lab: Name,
    /// ` --root DIR --lab NAME`, as far as a command that is shown to the user needs it.
    pub options: String,
}

impl Context {
    /// Takes the lab's lock, and says what the last one who had it has left undone.
    fn lock(&self) -> Result<Lock> {
        let lock = self.root.lock(&self.lab)?;
        self.tell_let_go(&lock);
        Ok(lock)
    }

    /// The same without waiting: `None` while another command holds it.
    fn try_lock(&self) -> Result<Option<Lock>> {
        let lock = self.root.try_lock(&self.lab)?;
        lock.iter().for_each(|lock| self.tell_let_go(lock));
        Ok(lock)
    }

    fn tell_let_go(&self, lock: &Lock) {
        if let Some(let_go) = &lock.let_go {
            warn(self, &let_go.text());
        }
    }

    /// Says of a node that is held still whether that will end by itself. For commands that take no lock.
    fn tell_held(&self) {
        let held = self.root.held(&self.lab).ok().flatten();
        if let Some(Hold { node, holder, .. }) = held.filter(|hold| !hold.is_at_work()) {
            warn(
                self,
                &format!(
                    "`{node}` is held still by a command that is gone (process {}); the next one that changes the lab \
                     lets it go on, or `pgbox thaw {node}`",
                    holder.pid
                ),
            );
        }
    }
}

/// Runs a command line; gives the exit code.
pub fn dispatch(cli: Cli) -> Result<i32> {
    let code = run_command(cli)?;
    Ok(if say::is_output_lost() { code.max(1) } else { code })
}

fn run_command(cli: Cli) -> Result<i32> {
    let Cli { place, command } = cli;
    let options = place.options();
    let context = Context { root: Root::new(&std::path::absolute(&place.root)?), lab: place.lab, options };
    if is_about_a_lab(&command) {
        facts::lab::check(&context.root, &context.lab)?;
    }
    match command {
        Command::Run(args) => run::run(&context, *args.0),
        Command::Replica(args) => replica::run(&context, &args),
        Command::Up(args) => up::run(&context, &args),
        Command::Down(args) => down::run(&context, &args),
        Command::Promote(args) => promote::run(&context, &args),
        Command::Failover(args) => failover::failover(&context, &args),
        Command::Switchover(args) => switchover::run(&context, &args),
        Command::Guard(args) => guard::run(&context, &args),
        Command::Rejoin(args) => rejoin::run(&context, &args),
        Command::Reinit(args) => rejoin::reinit(&context, &args),
        Command::Ps(args) => ps::run(&context, &args),
        Command::Logs(args) => logs::run(&context, &args),
        Command::Exec(args) => exec::run(&context, *args.0),
        Command::Psql(args) => psql::run(&context, *args.0),
        Command::Uri(args) => uri::run(&context, &args),
        Command::Env(args) => environment::env(&context, &args),
        Command::With(args) => environment::with(&context, &args),
        Command::Endpoint(args) => endpoint::run(&context, &args),
        Command::Inspect(args) => inspect::run(&context, &args),
        Command::Stats(args) => stats::run(&context, &args),
        Command::Status(args) => status::run(&context, &args),
        Command::Lag(args) => lag::run(&context, &args),
        Command::Slots(args) => slots::run(&context, &args),
        Command::Set(args) => set::run(&context, &args),
        Command::Sync(args) => sync::run(&context, &args),
        Command::Wait(args) => wait::run(&context, &args),
        Command::Stop(args) => stop::run(&context, &args),
        Command::Start(args) => start::run(&context, &args),
        Command::Restart(args) => stop::restart(&context, &args),
        Command::Limit(args) => limit::run(&context, &args),
        Command::Crash(args) => crash::run(&context, &args),
        Command::Freeze(args) => freeze::freeze(&context, &args),
        Command::Thaw(args) => freeze::thaw(&context, &args),
        Command::Net(args) => net::run(&context, &args),
        Command::Rm(args) => rm::run(&context, &args),
        Command::Image(command) => image::run(&context, *command.0),
        Command::Volume(command) => volume::run(&context, *command.0),
        Command::Drive(command) => drive::run(&context, &command),
        Command::Verify(args) => verify::run(&context, &args),
        Command::Completions { shell } => {
            crate::cli::completions(shell);
            Ok(0)
        }
    }
}

/// Whether a command needs a lab that is there. `exec` and `with` do, too, and have exit codes of their own for it; `rm` finds
/// what is left of a node also where its lab is forgotten.
fn is_about_a_lab(command: &Command) -> bool {
    match command {
        Command::Ps(args) => !args.all_labs,
        Command::Run(_) | Command::Up(_) | Command::Down(_) | Command::Rm(_) => false,
        Command::Exec(_) | Command::With(_) => false,
        Command::Image(_) | Command::Volume(_) | Command::Completions { .. } => false,
        _ => true,
    }
}

/// Refuses early what would fail half-way with a bare EPERM.
fn need_root(what: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(advise(
        format!("{what} needs root: it makes namespaces, mounts and network devices"),
        "try again with sudo",
    ))
}

/// Says that an empty table is not empty by mistake.
fn tell_of_none(context: &Context, all_labs: bool) {
    let none =
        if all_labs { "no lab has nodes".to_owned() } else { format!("lab `{}` has no nodes", context.lab) };
    note(
        context,
        &format!("{none}; `pgbox up` makes a primary and a standby, `pgbox run primary` one server"),
    );
}

/// Does the same for several nodes; one failure does not keep the others from it.
fn each(context: &Context, nodes: &[Name], mut f: impl FnMut(&Name) -> Result<()>) -> Result<i32> {
    let mut code = 0;
    for node in nodes {
        match f(node) {
            Ok(()) => {}
            Err(error) if nodes.len() == 1 || was_interrupted(&error) => return Err(error),
            Err(error) => {
                code = 1;
                crate::show::error::print(&error, &context.options);
            }
        }
    }
    Ok(code)
}

/// Whether the user has ended the command: then the other nodes are not meant any more either.
fn was_interrupted(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StepFailed>().is_some_and(|failed| failed.code > 128)
}

/// Goes by passwords whose change was cut off, and has come through all the same.
fn settle_passwords(context: &Context) {
    let settle = || {
        for (nodes, new) in password::given(&context.root, &context.lab)? {
            let _lock = context.lock()?;
            password::has_changed(&context.root, &nodes, &new)?;
            passfile::settle(&context.root, &context.lab)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    if let Err(error) = settle() {
        warn(context, &format!("which password counts is not known yet: {error:#}"));
    }
}

/// Puts passwords, slots, synchronous standbys and raised parameters in order after a node has come up. Of that it is no failure: what could not be
/// done is done with the next node that comes or goes.
fn settle(context: &Context, node: &Name) {
    settle_passwords(context);
    match membership::settle_unlocked(&context.root, &context.lab) {
        Ok(changes) => changes.iter().for_each(|change| tell_change(context, change)),
        Err(error) => warn(context, &format!("slots and synchronous standbys are not in order: {error:#}")),
    }
    lower(context, node);
}

/// After the start of a standby that had to start with more of a parameter than it was told to. That it can't have less yet is no
/// failure.
fn lower(context: &Context, name: &Name) {
    let (root, lab) = (&context.root, &context.lab);
    let lower = || {
        let node = node::find(root, lab, name)?;
        match lower::after_start(root, &node)? {
            Lowered::Nothing => {}
            Lowered::Later(text) => note(context, &text),
            Lowered::Now(parameters) => {
                let streams = restart::wait_until_it_streams(root, &node, start::STREAM);
                streams.unwrap_or_else(|why| note(context, &why));
                for parameter in parameters {
                    outln!("{name}: {}={}, since its primary has less", parameter.name, parameter.setting);
                }
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    lower().unwrap_or_else(|error| warn(context, &format!("{error:#}")));
}

fn tell_change(context: &Context, change: &Change) {
    let Change { primary, waits_for } = change;
    let text = match waits_for.as_str() {
        "" => format!("commits on `{primary}` wait for nobody now"),
        rule => format!("commits on `{primary}` wait for {} now", spec::sync::shown(rule)),
    };
    note(context, &text);
}

/// Says something on standard error that is no failure.
fn note(context: &Context, text: &str) {
    errln!("note: {}", hint::with_options(text, &context.options));
}

/// Says on standard error what may go wrong later.
fn warn(context: &Context, text: &str) {
    errln!("warning: {}", hint::with_options(text, &context.options));
}
