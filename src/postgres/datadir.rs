//! The names that pgbox uses inside a data directory while it is not whole yet.

use std::ffi::OsStr;

/// What is being made.
pub const MAKING: &str = ".pgbox-init";
/// What is complete and about to move up.
pub const DONE: &str = ".pgbox-done";
/// A file that initdb is to read in place of the image's.
pub const SAMPLE: &str = ".pgbox-sample";

const FAILED: &str = ".pgbox-failed";

/// Where the `number`th first start that failed is kept, counted from 1.
pub fn failure_name(number: u32) -> String {
    if number == 1 { FAILED.to_owned() } else { format!("{FAILED}-{number}") }
}

/// The number in such a name.
pub fn failure_number(name: &OsStr) -> Option<u32> {
    match name.to_str()?.strip_prefix(FAILED)? {
        "" => Some(1),
        rest => rest.strip_prefix('-')?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted() {
        for number in [1, 2, 17] {
            assert_eq!(failure_number(failure_name(number).as_ref()), Some(number));
        }
        assert_eq!(
            (failure_number(".pgbox-init".as_ref()), failure_number(".pgbox-failed-x".as_ref())),
            (None, None)
        );
    }
}
