//! A command line that knows one command only: the one that is meant. clap gives each of the others a copy of the options
//! that all have, and the function that makes them has a frame of 84 KB: sixty page faults for what nobody asks for.

use std::ffi::OsString;

use clap::{Args, Command, FromArgMatches};

use super::{Cli, Exec, Place, Ps, Rm, Run, Start, Stop, Uri};

type Define = fn(Command) -> Command;

/// What scripts call again and again.
const COMMANDS: [(&str, Define); 7] = [
    ("run", Run::augment_args),
    ("exec", Exec::augment_args),
    ("start", Start::augment_args),
    ("stop", Stop::augment_args),
    ("rm", Rm::augment_args),
    ("ps", Ps::augment_args),
    ("uri", Uri::augment_args),
];

/// Parses a right use of one of these commands. Whatever else it is, a mistake, a question for help, another command, the
/// whole definition has to say.
pub fn parse(args: &[OsString]) -> Option<Cli> {
    let mut words = args.iter().skip(1).take_while(|word| *word != "--");
    // It may be the value of an option, `--lab run`. Then the command that follows is unknown here, and nothing is parsed.
    let (name, define) = words.find_map(|word| COMMANDS.iter().find(|(name, _)| word == name))?;
    let command = Place::augment_args(Command::new("pgbox")).subcommand(define(Command::new(*name)));
    let matches = command.try_get_matches_from(args).ok()?;
    Cli::from_arg_matches(&matches).ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(Into::into).collect()
    }

    #[test]
    fn it_understands_what_the_whole_definition_does() {
        for line in [
            "pgbox run n",
            "pgbox --lab l run n postgres:16 -p 5433:5432 --memory 1g --cpus 1.5 -- -c work_mem=1MB",
            "pgbox run --root /r run -- run",
            "pgbox exec -it n -- psql -c 1",
            "pgbox ps -q",
            "pgbox rm -f -v a b",
            "pgbox uri --rw",
        ] {
            let alone = parse(&words(line)).unwrap_or_else(|| panic!("{line}"));
            let whole = Cli::try_parse_from(words(line)).unwrap();
            assert_eq!(format!("{alone:?}"), format!("{whole:?}"), "{line}");
        }
    }

    #[test]
    fn all_else_is_left_to_the_whole_definition() {
        for line in
            ["pgbox", "pgbox run", "pgbox run -h", "pgbox run n --no", "pgbox --lab run ps", "pgbox logs run"]
        {
            assert!(parse(&words(line)).is_none(), "{line}");
        }
    }
}
