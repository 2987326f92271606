//! Parses the command line, dispatches, prints errors with their way out, and turns them into exit codes.

use std::process::ExitCode;

use pgbox::{cli, cmd, engine::StepFailed, enter::NotStarted, hint::Advised, show, sys::process};

fn main() -> ExitCode {
    process::end_on_closed_pipe();
    let cli = cli::parse();
    let options = cli.options();
    match cmd::dispatch(cli) {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            show::error::print(&error, &options);
            let not_started = error.downcast_ref::<NotStarted>().map(|e| e.code);
            let step_failed = error.downcast_ref::<StepFailed>().map(|e| e.code);
            let advised = error.downcast_ref::<Advised>().map(|e| e.code);
            ExitCode::from(not_started.or(step_failed).or(advised).unwrap_or(1) as u8)
        }
    }
}
