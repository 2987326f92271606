//! Parses the command line, dispatches, prints errors with their way out, and turns them into exit codes.
#![no_main]

#[macro_use]
extern crate pgbox;

use pgbox::{cli, cmd, engine::StepFailed, enter::NotStarted, hint::Advised, show, sys::process};

begin_with!(run);

fn run() -> i32 {
    process::prepare();
    let cli = cli::parse();
    let options = cli.place.options();
    match cmd::dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            show::error::print(&error, &options);
            let not_started = error.downcast_ref::<NotStarted>().map(|e| e.code);
            let step_failed = error.downcast_ref::<StepFailed>().map(|e| e.code);
            let advised = error.downcast_ref::<Advised>().map(|e| e.code);
            not_started.or(step_failed).or(advised).unwrap_or(1)
        }
    }
}
