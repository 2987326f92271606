//! Layer compression: gzip (RFC 1952), zstd (RFC 8878) or none, told apart by the first bytes.
//!
//! Surprising rules: a gzip file is any number of *members* one after the other (pigz, estargz and `cat a.gz b.gz`
//! make several), possibly padded with zeros to a block; a zstd file is any number of frames, some of which are to
//! be skipped. A decoder that stops after the first has lost the rest of the layer without an error. The media type
//! is not asked: tools write gzip under the name of tar and the other way round, and the diffID decides in the end.

use anyhow::Result;
use flate2::bufread::GzDecoder;
use std::io::{self, BufRead, BufReader, Read};

const BUFFER: usize = 64 << 10;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: u32 = 0xFD2F_B528;
/// The sixteen magic numbers of skippable frames differ in the lowest four bits.
const ZSTD_SKIPPABLE: u32 = 0x184D_2A50;

/// Inflates `R`, whatever it is compressed with.
pub enum Decoder<R: Read> {
    Plain(BufReader<R>),
    Gzip(Members<BufReader<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<R>>>),
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `source`.
    pub fn new(source: R) -> Result<Decoder<R>> {
        let mut source = BufReader::with_capacity(BUFFER, source);
        let head = source.fill_buf()?;
        if head.starts_with(GZIP) {
            return Ok(Decoder::Gzip(Members { state: State::Between(source) }));
        }
        let magic = head.first_chunk::<4>().map(|m| u32::from_le_bytes(*m));
        match magic {
            Some(m) if m == ZSTD || m & !0xf == ZSTD_SKIPPABLE => {
                Ok(Decoder::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(source)?)))
            }
            _ => Ok(Decoder::Plain(source)),
        }
    }

    /// The compressed source.
    pub fn source(&self) -> &R {
        match self {
            Decoder::Plain(r) => r.get_ref(),
            Decoder::Gzip(m) => m.source().get_ref(),
            Decoder::Zstd(z) => z.get_ref().get_ref(),
        }
    }

    /// Gives the compressed source back, wherever it stands.
    pub fn into_source(self) -> R {
        match self {
            Decoder::Plain(r) => r.into_inner(),
            Decoder::Gzip(m) => m.into_source().into_inner(),
            Decoder::Zstd(z) => z.finish().into_inner(),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(r) => r.read(buf),
            Decoder::Gzip(m) => m.read(buf),
            Decoder::Zstd(z) => z.read(buf),
        }
    }
}

/// The members of a gzip file as one stream.
pub struct Members<R: BufRead> {
    state: State<R>,
}

enum State<R: BufRead> {
    Between(R),
    Member(Box<GzDecoder<R>>),
    /// Only while one state is replaced by another.
    Moving,
}

impl<R: BufRead> Members<R> {
    fn source(&self) -> &R {
        match &self.state {
            State::Between(r) => r,
            State::Member(d) => d.get_ref(),
            State::Moving => unreachable!("a state is put back before read() returns"),
        }
    }

    fn into_source(self) -> R {
        match self.state {
            State::Between(r) => r,
            State::Member(d) => d.into_inner(),
            State::Moving => unreachable!("a state is put back before read() returns"),
        }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if let State::Member(decoder) = &mut self.state {
                let got = decoder.read(buf)?;
                if got > 0 {
                    return Ok(got);
                }
            }
            // Only a member that has ended, checksum and all, gets here.
            let mut source = match std::mem::replace(&mut self.state, State::Moving) {
                State::Between(r) => r,
                State::Member(d) => d.into_inner(),
                State::Moving => unreachable!("a state is put back before read() returns"),
            };
            let more = next_member(&mut source);
            match more {
                Ok(true) => self.state = State::Member(Box::new(GzDecoder::new(source))),
                other => {
                    self.state = State::Between(source);
                    return other.map(|_| 0);
                }
            }
        }
    }
}

/// Whether another member follows; skips zero padding, refuses anything else.
fn next_member(source: &mut impl BufRead) -> io::Result<bool> {
    let mut padded = false;
    loop {
        let buf = source.fill_buf()?;
        match buf.first() {
            None => return Ok(false),
            Some(0) => {
                let zeros = buf.iter().take_while(|b| **b == 0).count();
                source.consume(zeros);
                padded = true;
            }
            Some(0x1f) if !padded => return Ok(true),
            Some(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "garbage after the end of the gzip data",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        e.write_all(data).unwrap();
        e.finish().unwrap()
    }

    fn inflate(data: &[u8]) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        Decoder::new(data)?.read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn several_gzip_members_and_zero_padding() {
        let mut data = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
        assert_eq!(inflate(&data).unwrap(), b"one two");
        data.extend([0; 1000]);
        assert_eq!(inflate(&data).unwrap(), b"one two");
        data.extend(b"garbage");
        assert!(inflate(&data).is_err());
    }

    #[test]
    fn several_zstd_frames_and_a_skippable_one() {
        let frame = |d: &[u8]| zstd::stream::encode_all(d, 3).unwrap();
        let skip = [&(ZSTD_SKIPPABLE + 7).to_le_bytes()[..], &4u32.to_le_bytes(), b"skip"].concat();
        assert_eq!(
            inflate(&[skip.clone(), frame(b"one "), skip.clone(), frame(b"two")].concat()).unwrap(),
            b"one two"
        );
    }

    #[test]
    fn plain_and_empty_data_pass_through() {
        assert_eq!(inflate(b"plain").unwrap(), b"plain");
        assert_eq!(inflate(b"").unwrap(), b"");
    }

    #[test]
    fn truncated_data_is_an_error() {
        let whole = gzip(&[7; 100_000]);
        assert!(inflate(&whole[..whole.len() - 5]).is_err());
        let whole = zstd::stream::encode_all(&[7; 100_000][..], 3).unwrap();
        assert!(inflate(&whole[..whole.len() - 3]).is_err());
    }
}
