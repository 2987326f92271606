//! A plan as text: `--dry-run` gives the steps with what one would type, `--explain` the reasons as well.

use crate::{engine, state::Plan, step::Lesson};

/// How much to tell about each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Titles and shell lines.
    Commands,
    /// Also why, where to read on, and how to look at the result.
    Reasons,
}

pub fn render(plan: &Plan, depth: Depth) -> String {
    let places = [
        (plan.host.len(), "on the host"),
        (plan.inner.len(), "inside the new namespaces"),
        (plan.after.len(), "once the server is up"),
    ];
    let mut lessons = engine::lessons(plan).enumerate();
    let mut text = String::new();
    for (count, place) in places {
        if count > 0 {
            text += &format!("# {place}\n\n");
        }
        for (i, lesson) in lessons.by_ref().take(count) {
            text += &step(i + 1, &lesson, depth);
        }
    }
    text
}

/// One step.
pub fn step(number: usize, lesson: &Lesson, depth: Depth) -> String {
    let mut text = format!("{number:2}. {}\n", lesson.title);
    if depth == Depth::Reasons {
        text += &indent(&wrap(lesson.why, 96), "    ");
    }
    text += &commands(&lesson.shell);
    if depth == Depth::Reasons {
        text += &format!("    see:  {}\n    look: {}\n", lesson.see, lesson.look.replace('\n', "; "));
    }
    text + "\n"
}

/// Shell lines with a prompt each; the text of a here-document has none.
pub fn commands(shell: &str) -> String {
    let mut end: Option<&str> = None;
    let mut text = String::new();
    for line in shell.lines() {
        let prompt =
            if end.is_none() && !line.starts_with(' ') && !["done", "do", "fi", "INNER"].contains(&line) {
                "$ "
            } else {
                "  "
            };
        text += &format!("    {prompt}{line}\n");
        end = match end {
            Some(mark) if line == mark => None,
            // Not where more follows on the line: what the new pid 1 is told is a list of steps as well.
            None => line.rsplit_once("<<'").and_then(|(_, mark)| mark.strip_suffix('\'')),
            open => open,
        };
    }
    text
}

fn indent(text: &str, first: &str) -> String {
    text.lines().map(|line| format!("{first}{line}\n")).collect()
}

fn wrap(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        match line.is_empty() {
            true => line.push_str(word),
            false if line.len() + 1 + word.len() <= width => line.extend([" ", word]),
            false => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_here_document_has_no_prompt() {
        assert_eq!(commands("a <<'EOF'\nx\nEOF\nb"), "    $ a <<'EOF'\n      x\n      EOF\n    $ b\n");
    }

    #[test]
    fn words_wrap_and_none_is_lost() {
        let text = "one two three four";
        assert_eq!(wrap(text, 9), "one two\nthree\nfour");
        assert_eq!(wrap(text, 100), text);
    }
}
