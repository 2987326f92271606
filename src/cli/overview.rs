//! The first help, `pgbox -h`: every command by what it is for, on one screen. `pgbox --help` has a line on each.

use clap::Command;

const GROUPS: [(&str, &[&str]); 8] = [
    (
        "nodes",
        &[
            "run", "ps", "logs", "psql", "exec", "inspect", "stats", "wait", "stop", "start", "restart",
            "limit", "rm",
        ],
    ),
    ("addresses", &["uri", "endpoint", "env", "with"]),
    ("labs", &["up", "down", "status", "lag", "set"]),
    (
        "replication",
        &["replica", "sync", "slots", "promote", "switchover", "failover", "rejoin", "reinit", "guard"],
    ),
    ("faults", &["crash", "freeze", "thaw", "net"]),
    ("evidence", &["drive", "verify"]),
    ("storage", &["image", "volume"]),
    ("your shell", &["completions"]),
];

/// The command line with the overview as its first help. Subcommands keep their own.
pub fn first_help(command: Command) -> Command {
    let groups: String =
        GROUPS.iter().map(|(what, names)| format!("  {what:<12} {}\n", names.join(", "))).collect();
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n\
         Commands (`pgbox --help` has a line on each, `pgbox COMMAND -h` what it takes):\n{groups}\n\
         Options:\n{{options}}{{after-help}}"
    ))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_command_is_in_one_group() {
        let command = super::super::Cli::command();
        let mut all: Vec<&str> = command.get_subcommands().map(|c| c.get_name()).collect();
        let mut grouped: Vec<&str> =
            super::GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        all.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(all, grouped);
    }
}
