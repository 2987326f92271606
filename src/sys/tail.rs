//! The end of a text that may be long and that grows, such as a log. What is no UTF-8 is replaced.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

/// So many bytes, or all that there are.
pub fn bytes(path: &Path, count: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(count)))?;
    let mut read = Vec::new();
    file.read_to_end(&mut read)?;
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// So many lines, or all that there are; none of what can't be read.
pub fn lines(path: &Path, count: usize) -> Vec<String> {
    let mut back = 16 << 10;
    loop {
        let text = bytes(path, back).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        // More than is needed is read, but not all of a long text for its last few lines.
        if all.len() > count || (text.len() as u64) < back {
            return all[all.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect();
        }
        back *= 4;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    #[test]
    fn lines_are_whole_however_long_they_are() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let line = |number: usize| format!("{number} {}", "x".repeat(10_000));
        (0..9).for_each(|number| writeln!(file, "{}", line(number)).unwrap());
        assert_eq!(super::lines(file.path(), 4), [5, 6, 7, 8].map(line));
        assert_eq!(super::lines(file.path(), 20), [0, 1, 2, 3, 4, 5, 6, 7, 8].map(line));
        write!(file, "last").unwrap();
        assert_eq!(super::lines(file.path(), 1), ["last"]);
        assert_eq!(super::bytes(file.path(), 3).unwrap(), "ast");
        assert!(super::lines("/nowhere".as_ref(), 1).is_empty());
    }
}
