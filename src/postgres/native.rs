//! The fields of C structures as a server of this machine wrote them to disk: in its own byte order, which is
//! why no PostgreSQL cluster moves between architectures (PostgreSQL manual, 19.6).
//!
//! The rule that surprises people: the padding that C puts between fields is part of the format.

/// What is left to read of a structure. Everything returns `None` past its end.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(first)
    }

    /// Everything from the byte `at` of what is left.
    pub fn from(self, at: usize) -> Option<Fields<'a>> {
        self.0.get(at..).map(Fields)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_ne_bytes)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_ne_bytes)
    }
}
