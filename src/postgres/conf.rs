//! `postgresql.conf` as text (PostgreSQL manual 20.1.2), for a server that can't be asked any more.
//!
//! The rule that surprises people: the equals sign is optional, also behind `include`, and of several lines with the same
//! parameter the last one counts, whichever file it is in.

/// A line that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A parameter, in lower case, and its value without quotes.
    Setting(String, String),
    /// A file to read at this place, unless `optional` and not there.
    Include { file: String, optional: bool },
    /// A directory, all of whose `*.conf` are to be read at this place.
    IncludeDir(String),
}

/// What a configuration file says, line by line.
pub fn lines(text: &str) -> impl Iterator<Item = Line> + '_ {
    text.lines().filter_map(line)
}

fn line(text: &str) -> Option<Line> {
    let text = text.trim_start();
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "_.$".contains(c))).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let rest = rest.trim_start();
    let value = value(rest.strip_prefix('=').unwrap_or(rest).trim_start());
    Some(match name.to_ascii_lowercase().as_str() {
        "" => return None,
        "include" => Line::Include { file: value, optional: false },
        "include_if_exists" => Line::Include { file: value, optional: true },
        "include_dir" => Line::IncludeDir(value),
        name => Line::Setting(name.to_owned(), value),
    })
}

/// A value up to its end, in quotes or not.
fn value(text: &str) -> String {
    let Some(quoted) = text.strip_prefix('\'') else {
        return text.split(|c: char| c == '#' || c.is_whitespace()).next().unwrap_or_default().to_owned();
    };
    let mut value = String::new();
    let mut chars = quoted.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' if chars.peek() == Some(&'\'') => value.extend(chars.next()),
            '\'' => break,
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_server_does() {
        let text = "# synchronous_commit = off\n\n Synchronous_Commit local # why not\nport=5433\na.b = 'it''s \\'x\\' # y' # z\n\
                    include_if_exists = 'pgbox.conf'\ninclude 'more.conf'\ninclude_dir conf.d\n";
        let set = |name: &str, value: &str| Line::Setting(name.to_owned(), value.to_owned());
        let want = [
            set("synchronous_commit", "local"),
            set("port", "5433"),
            set("a.b", "it's 'x' # y"),
            Line::Include { file: "pgbox.conf".to_owned(), optional: true },
            Line::Include { file: "more.conf".to_owned(), optional: false },
            Line::IncludeDir("conf.d".to_owned()),
        ];
        assert_eq!(lines(text).collect::<Vec<_>>(), want);
    }
}
