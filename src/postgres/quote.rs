//! Quoting: SQL identifiers and literals (PostgreSQL manual 4.1), values of postgresql.conf (20.1.2), and
//! splitting of a line of options the way a POSIX shell does it (2.2).
//!
//! The rule that surprises people: a backslash in a plain `'literal'` is only literal while
//! `standard_conforming_strings` is on; the `E''` form means the same under every setting.

use anyhow::{Result, bail};

/// `name` as an SQL identifier, always quoted, so that spaces, capitals and keywords survive.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as an SQL string literal that means the same under every setting.
pub fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    match doubled.contains('\\') {
        true => format!("E'{}'", doubled.replace('\\', "\\\\")),
        false => format!("'{doubled}'"),
    }
}

/// `value` as a value in postgresql.conf. That file has no line continuation: a newline is an error.
pub fn setting(value: &str) -> Result<String> {
    if value.contains(['\n', '\r', '\0']) {
        bail!("a setting cannot hold a line break: {value:?}");
    }
    Ok(format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''")))
}

/// A path or word for `sh`: in single quotes, unless it means the same without.
pub fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,=".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// The same for bash, and never more than a line: what looks like the end of a here-document ends none.
pub fn bash(word: &str) -> String {
    if !word.contains(char::is_control) {
        return shell(word);
    }
    let escaped = word.chars().map(|c| match c {
        '\'' | '\\' => format!("\\{c}"),
        c if c.is_ascii_control() => format!("\\x{:02x}", c as u32),
        c => c.to_string(),
    });
    format!("$'{}'", escaped.collect::<String>())
}

/// Splits a line into words as a POSIX shell does: blanks separate; single quotes, double quotes and
/// backslashes quote. Nothing is expanded. An open quote is an error.
pub fn split_words(line: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => quoted(&mut rest, '\'', word.get_or_insert_default(), line)?,
            '"' => quoted(&mut rest, '"', word.get_or_insert_default(), line)?,
            '\\' => match rest.next() {
                Some('\n') => {}
                Some(escaped) => word.get_or_insert_default().push(escaped),
                None => bail!("a backslash ends {line:?}"),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Appends to `word` what stands up to the closing `quote`.
fn quoted(rest: &mut std::str::Chars<'_>, quote: char, word: &mut String, line: &str) -> Result<()> {
    while let Some(c) = rest.next() {
        match c {
            c if c == quote => return Ok(()),
            '\\' if quote == '"' => match rest.next() {
                Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                Some(c) => word.extend(['\\', c]),
                None => break,
            },
            c => word.push(c),
        }
    }
    bail!("a quote is not closed in {line:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_literals() {
        assert_eq!(identifier(r#"my "db" x"#), r#""my ""db"" x""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\b'c"), r"E'a\\b''c'");
        assert_eq!(setting(r"/a b/%p\'").unwrap(), r"'/a b/%p\\'''");
        assert!(setting("a\nb").is_err());
    }

    #[test]
    fn words_as_a_shell_splits_them() {
        let words = split_words(r#" --locale=C  --set "a b=c'd" -k'x y'z \" "\$\a" '' "#).unwrap();
        assert_eq!(words, ["--locale=C", "--set", "a b=c'd", "-kx yz", "\"", r"$\a", ""]);
        assert!(split_words("").unwrap().is_empty());
        for open in ["'a", "\"a", "a\\", "\"a\\"] {
            assert!(split_words(open).is_err(), "{open}");
        }
    }

    #[test]
    fn no_value_is_more_than_one_word_for_a_shell() {
        assert_eq!(shell("10.0.0.2"), "10.0.0.2");
        assert_eq!(shell("my db"), "'my db'");
        assert_eq!(shell("it's $(x)"), r"'it'\''s $(x)'");
        assert_eq!(shell(""), "''");
        assert_eq!(bash("it's"), shell("it's"));
        assert_eq!(bash("a\nINNER\n'\\t"), r"$'a\x0aINNER\x0a\'\\t'");
    }

    proptest! {
        #[test]
        fn a_quoted_word_comes_back_whole(word in "[^\0]*") {
            prop_assert_eq!(split_words(&shell(&word)).unwrap(), vec![word]);
        }
    }
}
