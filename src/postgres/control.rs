//! `global/pg_control`: what a cluster knows about itself before any of its tables can be read, as printed by
//! pg_controldata(1) (backend code: `pg_control.h`, ControlFileData).
//!
//! The rule that surprises people: right after a promotion its checkpoint is still one of the old timeline, and
//! the state of a killed server stays "in production". It says how the server ended, never whether it runs.

use anyhow::{Context, Result, ensure};

use super::{lsn::Lsn, native::Fields};

/// The versions of the format that are known: of PostgreSQL 13 to 16, of 17, of 18. All have every field that is
/// read here at the same place; 18 has one more before the checksum.
const CHECKSUM_AT: [(u32, usize); 3] = [(1300, 288), (1700, 288), (1800, 292)];

/// What the server was doing when it last wrote the file (DBState).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    StartingUp,
    /// Stopped cleanly: everything is in the data files, and in the WAL up to the checkpoint.
    ShutDown,
    /// A standby, stopped cleanly.
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    /// A standby, running or killed.
    InArchiveRecovery,
    /// A primary, running or killed.
    InProduction,
}

/// The part of the control file that matters to one who reads its WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The same for a primary and everything that was copied from it.
    pub system: u64,
    /// Format of the file: 1300, 1700, 1800.
    pub version: u32,
    pub state: ClusterState,
    /// Seconds since 1970 at the last change of the file.
    pub written: i64,
    /// Where the record of the latest checkpoint begins.
    pub checkpoint: Lsn,
    /// Where recovery from that checkpoint would begin.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: u32,
    /// The size of a WAL segment in bytes, see `initdb --wal-segsize`.
    pub segment: u32,
    /// What the primary had of [`ORDERED`](super::parameter::ORDERED) there, in that order: a standby does not recover with less.
    pub least: [u32; 5],
}

impl Control {
    /// Reads the content of the file.
    ///
    /// # Errors
    /// When it is of an unknown version, damaged, or of a server that was built with pages of WAL of another size.
    pub fn parse(file: &[u8]) -> Result<Control> {
        let at = |at: usize| Fields(file).from(at);
        let short = "pg_control is too short";
        let version = at(8).and_then(|mut f| f.u32()).context(short)?;
        let known = CHECKSUM_AT.iter().find(|(known, _)| *known == version);
        let (_, end) = known.with_context(|| format!("pg_control has the unknown version {version}"))?;
        let sum = at(*end).and_then(|mut f| f.u32()).context(short)?;
        ensure!(crc32c::crc32c(&file[..*end]) == sum, "pg_control is damaged: its checksum is wrong");
        let u32_at = |place| at(place).and_then(|mut f| f.u32()).context(short);
        let u64_at = |place| at(place).and_then(|mut f| f.u64()).context(short);
        let page = u32_at(224)?;
        ensure!(page as usize == super::wal::PAGE, "the WAL has pages of {page} bytes: not supported");
        let segment = u32_at(228)?;
        ensure!(
            segment.is_power_of_two() && (1 << 20..=1 << 30).contains(&segment),
            "pg_control says that a WAL segment has {segment} bytes"
        );
        let mut least = [0; 5];
        for (value, place) in least.iter_mut().zip((180..).step_by(4)) {
            *value = u32_at(place)?;
        }
        Ok(Control {
            system: u64_at(0)?,
            version,
            state: state(u32_at(16)?)?,
            written: u64_at(24)? as i64,
            checkpoint: Lsn(u64_at(32)?),
            redo: Lsn(u64_at(40)?),
            timeline: u32_at(48)?,
            segment,
            least,
        })
    }
}

fn state(number: u32) -> Result<ClusterState> {
    Ok(match number {
        0 => ClusterState::StartingUp,
        1 => ClusterState::ShutDown,
        2 => ClusterState::ShutDownInRecovery,
        3 => ClusterState::ShuttingDown,
        4 => ClusterState::InCrashRecovery,
        5 => ClusterState::InArchiveRecovery,
        6 => ClusterState::InProduction,
        _ => anyhow::bail!("pg_control has the unknown state {number}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u32, end: usize) -> Vec<u8> {
        let mut file = vec![0; 8192];
        for (at, value) in
            [(8, version), (16, 6), (48, 3), (180, 130), (196, 64), (224, 8192), (228, 16 << 20)]
        {
            file[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        for (at, value) in [(0, 77_u64), (32, 0x200_0060), (40, 0x200_0028)] {
            file[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        }
        let sum = crc32c::crc32c(&file[..end]);
        file[end..end + 4].copy_from_slice(&sum.to_ne_bytes());
        file
    }

    #[test]
    fn reads_the_known_formats_and_nothing_else() {
        for (version, end) in CHECKSUM_AT {
            let file = file(version, end);
            let control = Control::parse(&file).unwrap();
            assert_eq!((control.system, control.version, control.timeline), (77, version, 3));
            assert_eq!((control.checkpoint, control.redo), (Lsn(0x200_0060), Lsn(0x200_0028)));
            assert_eq!((control.state, control.segment), (ClusterState::InProduction, 16 << 20));
            assert_eq!(control.least, [130, 0, 0, 0, 64]);
            for at in 0..end + 4 {
                let mut damaged = file.clone();
                damaged[at] ^= 1;
                assert!(Control::parse(&damaged).is_err(), "byte {at}");
            }
            assert!(Control::parse(&file[..end + 3]).is_err());
        }
        assert!(Control::parse(&file(1201, 288)).is_err());
    }
}
