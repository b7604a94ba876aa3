//! Small records that are on the disk before a call returns: one file each, replaced whole.
//!
//! A file is the xxh3-64 of what follows in 16 hexadecimal digits, a line break, and one JSON value. It is written beside
//! its place, flushed, renamed over it, and the directory is flushed: after a crash there is the old record or the new one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::xxh3_64;

use super::aside;

/// Longest record in bytes; a longer file is no record.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// Files that this process alone may read: what is saved holds the keys of workers.
const PRIVATE: u32 = 0o600;

/// What is in the place of a record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found<T> {
    /// Nothing was ever written.
    Nothing,
    /// The last record.
    Record(T),
    /// What was there cannot be read as one. It was set aside; what it said is lost.
    Lost {
        /// Where it is now.
        aside: PathBuf,
    },
}

/// Replaces a record. When this returns, it is on the disk.
///
/// # Errors
/// When it may not be: then the old record stands, or the new one.
pub fn write<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    let json = serde_json::to_string(record).map_err(io::Error::other)?;
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE).open(&beside)?;
    write!(file, "{:016x}\n{json}\n", xxh3_64(json.as_bytes()))?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads a record, and sets aside what is none.
///
/// # Errors
/// When the file is there and cannot be read or renamed.
pub fn read<T: DeserializeOwned>(path: &Path, unix_s: u64) -> io::Result<Found<T>> {
    let size = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        metadata => metadata?.len(),
    };
    let text = if size > RECORD_BYTES_MAX { Vec::new() } else { fs::read(path)? };
    match std::str::from_utf8(&text).ok().and_then(parse) {
        Some(record) => Ok(Found::Record(record)),
        None => Ok(Found::Lost { aside: aside::set_aside(path, unix_s)? }),
    }
}

fn parse<T: DeserializeOwned>(text: &str) -> Option<T> {
    let (sum, json) = text.split_once('\n')?;
    let json = json.strip_suffix('\n')?;
    let is_whole = u64::from_str_radix(sum, 16).is_ok_and(|sum| sum == xxh3_64(json.as_bytes()));
    is_whole.then(|| serde_json::from_str(json).ok()).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_record_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert_eq!(read::<u64>(&path, 1).unwrap(), Found::Nothing);
        for value in [1_u64, 2] {
            write(&path, &value).unwrap();
            assert_eq!(read(&path, 1).unwrap(), Found::Record(value));
        }
        // What a crash left beside it is of no account.
        fs::write(path.with_extension("new"), "half").unwrap();
        assert_eq!(read(&path, 1).unwrap(), Found::Record(2_u64));
        write(&path, &3_u64).unwrap();
        assert_eq!(read(&path, 1).unwrap(), Found::Record(3_u64));
    }

    #[test]
    fn a_damaged_record_is_lost_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write(&path, &"value").unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        for (case, damaged) in [
            ("torn", whole[..whole.len() - 3].to_owned()),
            ("empty", String::new()),
            ("another value", whole.replace("value", "evil!")),
            ("no sum", "\"value\"\n".to_owned()),
            ("huge", "x".repeat(100_000)),
        ] {
            fs::write(&path, damaged).unwrap();
            let found = read::<String>(&path, 7).unwrap();
            let Found::Lost { aside } = found else { panic!("{case}: {found:?}") };
            assert!(aside.to_str().unwrap().ends_with("record.corrupt-7"), "{case}: {aside:?}");
            assert!(aside.exists() && !path.exists(), "{case}");
            assert_eq!(read::<String>(&path, 7).unwrap(), Found::Nothing, "{case}");
        }
    }
}
