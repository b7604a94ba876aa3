//! The file that holds the replicated state: an embedded ACID store (redb), one table of keys per namespace and one of
//! contexts.
//!
//! Every value carries the xxh3-64 of its key and bytes, and the store checks its own pages when it is opened, so that a
//! torn, truncated or altered file is told from a good one. Each batch is one transaction, flushed before it counts.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError, backends::FileBackend};
use tracing::{error, warn};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::aside;
use crate::mesh::{
    saved::{Batch, Part, Saved, SavedNamespace},
    stores::Namespace,
    wire::saved,
};

/// Memory that the store uses for pages: 4 MiB. It is written far more than it is read.
const CACHE_BYTES: usize = 4 << 20;

/// The layout of this file's tables. Another one is refused.
const FORMAT: u64 = 1;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const CONTEXTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("contexts");

type Keys = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(in crate::mesh::driver) enum FileError {
    /// The disk refuses; trying again may help.
    #[error("{0}")]
    Disk(#[from] redb::Error),
    /// The file cannot be opened or created.
    #[error("{0}")]
    Open(#[from] io::Error),
    /// What is in the file is not what was written.
    #[error("the file is damaged: {0}")]
    Corrupt(String),
    /// A later version wrote it.
    #[error("written by a later version of smg (format {0})")]
    Format(u64),
}

impl FileError {
    fn of(error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::Corrupted(what) => Self::Corrupt(what),
            redb::Error::Io(error) if is_damage(error.kind()) => Self::Corrupt(error.to_string()),
            redb::Error::UpgradeRequired(_) => Self::Corrupt("of a format that smg never wrote".to_owned()),
            error @ (redb::Error::TableTypeMismatch { .. } | redb::Error::TypeDefinitionChanged { .. }) => {
                Self::Corrupt(error.to_string())
            }
            error => Self::Disk(error),
        }
    }
}

/// Whether an error of the disk says that the file is not as long, or not of the kind, that it should be.
fn is_damage(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// The open file.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    /// None after a failure: it is opened again with the next batch.
    database: Option<Database>,
}

impl StateFile {
    /// A file that is not open yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, database: None }
    }

    /// Opens the file and reads all of it; one that is damaged is set aside and begun anew. The second is whether it was.
    /// A file that `was_used` before and is empty now is damaged.
    ///
    /// # Errors
    /// When the disk refuses, or a later version wrote the file.
    pub(super) fn open(&mut self, was_used: bool, unix_s: u64) -> Result<(Saved, bool), FileError> {
        let mut is_emptied = false;
        if was_used {
            match fs::metadata(&self.path) {
                Ok(metadata) if metadata.len() == 0 => {
                    self.set_aside("it is empty", unix_s)?;
                    is_emptied = true;
                }
                Ok(_) => {}
                Err(error) => {
                    warn!(file = %self.path.display(), %error, "saved mesh state is missing; it comes from peers");
                }
            }
        }
        match self.try_open() {
            Err(FileError::Corrupt(what)) => {
                self.set_aside(&what, unix_s)?;
                self.try_open().map(|saved| (saved, true))
            }
            other => other.map(|saved| (saved, is_emptied)),
        }
    }

    /// Renames the file out of the way.
    pub(super) fn set_aside(&mut self, what: &str, unix_s: u64) -> io::Result<()> {
        self.database = None;
        let aside = aside::set_aside(&self.path, unix_s)?;
        error!(
            file = %self.path.display(), aside = %aside.display(), reason = %what,
            "saved mesh state is damaged and was set aside; the state comes from peers"
        );
        Ok(())
    }

    /// Saves a batch. When this returns, it is on the disk.
    ///
    /// # Errors
    /// When it may not be.
    pub(super) fn save(&mut self, batch: &Batch, unix_s: u64) -> Result<(), FileError> {
        if self.database.is_none() {
            self.open(false, unix_s)?;
        }
        let Some(database) = &self.database else { return Ok(()) };
        let saved = guarded(|| write(database, batch));
        if saved.is_err() {
            // After a failure the store answers nothing any more before it was opened anew.
            self.database = None;
        }
        saved
    }

    fn try_open(&mut self) -> Result<Saved, FileError> {
        self.database = None;
        let path = self.path.clone();
        let (database, saved) = guarded(|| {
            let database = open(&path)?;
            let saved = read(&database)?;
            Ok((database, saved))
        })?;
        self.database = Some(database);
        Ok(saved)
    }
}

/// The store promises errors for damaged files, and yet a panic is no worse than one.
fn guarded<T>(work: impl FnOnce() -> Result<T, FileError>) -> Result<T, FileError> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(FileError::Corrupt(text.unwrap_or_else(|| "the store panicked".to_owned())))
    })
}

fn open(path: &Path) -> Result<Database, FileError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    let database =
        builder.create_with_backend(FileBackend::new(file).map_err(FileError::of)?).map_err(FileError::of)?;
    let work = database.begin_write().map_err(FileError::of)?;
    let format = {
        let mut meta = work.open_table(META).map_err(FileError::of)?;
        let format = meta.get("format").map_err(FileError::of)?.map(|format| format.value());
        if format.is_none() {
            meta.insert("format", FORMAT).map_err(FileError::of)?;
        }
        format.unwrap_or(FORMAT)
    };
    match format {
        FORMAT => work.commit().map_err(FileError::of)?,
        later => return Err(FileError::Format(later)),
    }
    Ok(database)
}

fn write(database: &Database, batch: &Batch) -> Result<(), FileError> {
    let work = database.begin_write().map_err(FileError::of)?;
    for part in &batch.parts {
        let mut keys = work.open_table(table(part.namespace)).map_err(FileError::of)?;
        replace(&mut keys, part)?;
        for key in &part.removes {
            keys.remove(&**key).map_err(FileError::of)?;
        }
        for (key, bytes) in &part.puts {
            keys.insert(&**key, sealed(key, bytes).as_slice()).map_err(FileError::of)?;
        }
        if let Some(context) = &part.context {
            let mut contexts = work.open_table(CONTEXTS).map_err(FileError::of)?;
            let name = name(part.namespace);
            contexts.insert(name, sealed(name.as_bytes(), context).as_slice()).map_err(FileError::of)?;
        }
    }
    work.commit().map_err(FileError::of)
}

fn replace(keys: &mut redb::Table<'_, &'static [u8], &'static [u8]>, part: &Part) -> Result<(), FileError> {
    let Some((from, to)) = &part.replaces else { return Ok(()) };
    let from: &[u8] = from;
    match to {
        Some(to) => keys.retain_in::<&[u8], _>(from..&**to, |_, _| false),
        None => keys.retain_in::<&[u8], _>(from.., |_, _| false),
    }
    .map_err(FileError::of)
}

fn read(database: &Database) -> Result<Saved, FileError> {
    let work = database.begin_read().map_err(FileError::of)?;
    let mut namespaces = Vec::new();
    for namespace in Namespace::ALL {
        let mut keys = Vec::new();
        match work.open_table(table(namespace)) {
            Err(TableError::TableDoesNotExist(_)) => {}
            table => {
                for entry in table.map_err(FileError::of)?.iter().map_err(FileError::of)? {
                    let (key, value) = entry.map_err(FileError::of)?;
                    let saved = saved::decode_key(opened(key.value(), value.value())?).map_err(damaged)?;
                    if *saved.state.key != *key.value() {
                        return Err(FileError::Corrupt("a key in the place of another".to_owned()));
                    }
                    keys.push(saved);
                }
            }
        }
        let context = match work.open_table(CONTEXTS) {
            Err(TableError::TableDoesNotExist(_)) => Vec::new(),
            table => match table.map_err(FileError::of)?.get(name(namespace)).map_err(FileError::of)? {
                Some(value) => {
                    saved::decode_context(opened(name(namespace).as_bytes(), value.value())?).map_err(damaged)?
                }
                None => Vec::new(),
            },
        };
        namespaces.push(SavedNamespace { namespace, context, keys });
    }
    Ok(Saved { namespaces })
}

fn damaged(error: impl std::fmt::Display) -> FileError {
    FileError::Corrupt(error.to_string())
}

/// Bytes with the checksum of them and of where they belong before them.
fn sealed(place: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(8 + bytes.len());
    sealed.extend(checksum(place, bytes).to_le_bytes());
    sealed.extend(bytes);
    sealed
}

fn opened<'a>(place: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], FileError> {
    match sealed.split_first_chunk() {
        Some((sum, bytes)) if u64::from_le_bytes(*sum) == checksum(place, bytes) => Ok(bytes),
        _ => Err(FileError::Corrupt("wrong checksum of a value".to_owned())),
    }
}

fn checksum(place: &[u8], bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, xxh3_64_with_seed(place, FORMAT))
}

fn name(namespace: Namespace) -> &'static str {
    match namespace {
        Namespace::Policies => "policies",
        Namespace::Workers => "workers",
        Namespace::Sessions => "sessions",
        Namespace::Routing => "routing",
    }
}

fn table(namespace: Namespace) -> Keys {
    TableDefinition::new(name(namespace))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::mesh::{
        saved::Saver,
        stores::{PolicySpec, Stores},
    };

    /// Stores with some policies, and a file that holds them.
    fn filled(path: &Path) -> Stores {
        let mut stores = Stores::new("n1".parse().unwrap(), 1);
        let mut saver = Saver::new(&mut stores);
        for n in 0..500 {
            let policy = PolicySpec { policy: "random".into(), config_json: format!("{{\"n\":{n}}}") };
            stores.put_policy(1, &format!("model-{n}"), &policy).unwrap();
        }
        let mut file = StateFile::new(path.to_owned());
        while let Some(batch) = saver.poll_batch(&mut stores) {
            file.save(&batch, 1).unwrap();
            saver.handle_saved();
        }
        stores
    }

    fn restored(saved: Saved) -> Stores {
        let mut stores = Stores::new("n1".parse().unwrap(), 2);
        saved.restore(&mut stores, 2).unwrap();
        stores
    }

    #[test]
    fn what_is_saved_is_there_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let stores = filled(&path);
        let (saved, was_damaged) = StateFile::new(path.clone()).open(true, 1).unwrap();
        assert!(!was_damaged);
        assert_eq!(restored(saved).policies(), stores.policies());
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "it holds keys of workers");
    }

    #[test]
    fn whatever_is_damaged_is_noticed_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let stores = filled(&path);
        let whole = fs::read(&path).unwrap();
        let mut cases: Vec<(String, Vec<u8>)> = vec![
            ("garbage".into(), vec![0x5a; 10_000]),
            ("torn head".into(), whole[..100].to_vec()),
            ("half".into(), whole[..whole.len() / 2].to_vec()),
            ("empty".into(), Vec::new()),
        ];
        for n in 0..60 {
            let at = whole.len() * n / 60;
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            cases.push((format!("bit at {at}"), flipped));
        }
        let mut noticed = 0;
        for (case, bytes) in cases {
            fs::write(&path, &bytes).unwrap();
            let mut file = StateFile::new(path.clone());
            let (saved, was_damaged) = file.open(true, 5).unwrap();
            let policies = restored(saved).policies();
            if was_damaged {
                noticed += 1;
                assert!(policies.is_empty(), "{case}");
                assert_eq!(fs::read(dir.path().join("state.redb.corrupt-5")).unwrap().len(), bytes.len(), "{case}");
            } else {
                assert!(policies == stores.policies(), "{case}: damage in a page that nothing uses is harmless");
            }
            drop(file);
        }
        assert!(noticed >= 5, "{noticed}");
    }

    #[test]
    fn a_later_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        filled(&path);
        let database = open(&path).unwrap();
        let work = database.begin_write().unwrap();
        work.open_table(META).unwrap().insert("format", 2).unwrap();
        work.commit().unwrap();
        drop(database);
        assert!(matches!(StateFile::new(path.clone()).open(true, 1), Err(FileError::Format(2))));
        assert!(path.exists());
    }
}
