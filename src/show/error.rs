//! Errors as people read them: what failed, why, the way out, and the state of the host.

use std::io::Write;

use anyhow::Error;

use crate::{
    engine::StepFailed,
    hint::{self, Advised},
};

/// Prints an error to standard error; `options` are those that a command in it must repeat.
pub fn print(error: &Error, options: &str) {
    let text = hint::with_options(&render(error, nix::unistd::geteuid().is_root()), options);
    // Where standard error is gone, nobody can be told.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The lines of an error.
pub fn render(error: &Error, is_root: bool) -> String {
    if let Some(failed) = error.downcast_ref::<StepFailed>() {
        return step_failed(failed);
    }
    let mut text = format!("error: {error}\n");
    let causes: Vec<String> = error.chain().skip(1).map(|cause| cause.to_string()).collect();
    if !causes.is_empty() {
        text += &labelled("cause", &causes.join(": "));
    }
    let advised = error.chain().find_map(|cause| cause.downcast_ref::<Advised>());
    if let Some(hint) =
        advised.and_then(|advised| advised.hint.as_deref()).or_else(|| hint::for_error(error, is_root))
    {
        text += &labelled("hint", hint);
    }
    text
}

fn step_failed(failed: &StepFailed) -> String {
    let mut text = format!("error: {failed}\n");
    text += &labelled("cause", &failed.cause);
    if let Some(hint) = &failed.hint {
        text += &labelled("hint", hint);
    }
    text += &labelled("host", &failed.host);
    if !failed.log.is_empty() {
        text += "  the end of its log:\n";
        text.extend(failed.log.iter().map(|line| format!("    {line}\n")));
    }
    text
}

fn labelled(label: &str, text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    format!("  {:<7}{}\n", format!("{label}:"), lines.join("\n         "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::advise;

    #[test]
    fn an_error_ends_with_the_way_out() {
        let error = advise("port 1 is taken", "use 2").context("publish");
        assert_eq!(render(&error, true), "error: publish\n  cause: port 1 is taken\n  hint:  use 2\n");
    }

    #[test]
    fn a_failed_step_tells_the_state_of_the_host() {
        let error = Error::new(StepFailed {
            step: "step 7/16 failed: create cgroup x".into(),
            cause: "mkdir: EROFS".into(),
            hint: None,
            host: "steps 6-1 undone".into(),
            log: vec!["last words".into()],
            code: 1,
        });
        let want = "error: step 7/16 failed: create cgroup x\n  cause: mkdir: EROFS\n  host:  steps 6-1 undone\n  \
                    the end of its log:\n    last words\n";
        assert_eq!(render(&error, true), want);
    }
}
