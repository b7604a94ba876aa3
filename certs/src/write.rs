//! Writing certificates and keys: whole files with safe modes, and no key lost by accident.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

/// Mode of directories that are created.
const DIR_MODE: u32 = 0o700;

/// A file to write.
#[derive(Clone, Copy, Debug)]
pub struct NewFile<'a> {
    /// Its name in the directory.
    pub name: &'a str,
    /// What it shall hold.
    pub text: &'a str,
    /// Whether only the owner may read it: mode 0600, else 0644.
    pub is_secret: bool,
}

/// Why files were not written. Where several were asked for, those before the one named may be in place; each is
/// whole or as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// Something else stands at that name, and replacing it was not asked for.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The operating system refuses.
    #[error("cannot write {}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: io::Error,
    },
}

/// Writes files into a directory, which is created with mode 0700 together with its missing parents; one that exists
/// keeps its mode.
///
/// Each file is written beside its place under another name, synced, and renamed, so that no reader sees a part of it
/// and a crash leaves the old or the new one. The renames follow one another at once, in the order given, after all
/// files are written; a reader between two of them sees files of two issues and must check that they belong together.
///
/// Without `overwrite` a file that stands there is left alone if it holds the same bytes, and is an error otherwise;
/// that is found before anything is written, and holds also against somebody who writes at the same time.
///
/// # Errors
/// When a file exists and may not be overwritten, or cannot be written.
pub fn write_files(dir: &Path, files: &[NewFile<'_>], overwrite: bool) -> Result<(), WriteError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| WriteError::Io { path, source }
    };
    let mut staged = Vec::new();
    for file in files {
        let path = dir.join(file.name);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => staged.push((path, file)),
            Err(error) => return Err(failed(&path)(error)),
            Ok(_) if overwrite => staged.push((path, file)),
            Ok(_) if fs::read(&path).is_ok_and(|held| held == file.text.as_bytes()) => {}
            Ok(_) => return Err(WriteError::Exists(path)),
        }
    }
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir).map_err(failed(dir))?;
    let staged: Vec<_> = staged
        .into_iter()
        .map(|(path, file)| match stage(dir, file) {
            Ok(temporary) => Ok((path, temporary)),
            Err(error) => Err(failed(&path)(error)),
        })
        .collect::<Result<_, _>>()?;
    for (path, temporary) in staged {
        let placed = if overwrite { temporary.persist(&path) } else { temporary.persist_noclobber(&path) };
        placed.map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => WriteError::Exists(path.clone()),
            _ => failed(&path)(error.error),
        })?;
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))
}

/// A synced file of another name in the directory; it goes away unless it is renamed.
fn stage(dir: &Path, file: &NewFile<'_>) -> io::Result<NamedTempFile> {
    // Created with mode 0600: a key is never readable by others, not even for a moment.
    let mut temporary = tempfile::Builder::new().prefix(".smg-certs-").tempfile_in(dir)?;
    temporary.write_all(file.text.as_bytes())?;
    let mode = if file.is_secret { 0o600 } else { 0o644 };
    temporary.as_file().set_permissions(Permissions::from_mode(mode))?;
    temporary.as_file().sync_all()?;
    Ok(temporary)
}
