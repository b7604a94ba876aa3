//! Setting aside what cannot be read: it is renamed, never deleted, so that somebody can look at it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Files set aside that are kept of one name: 4. The oldest go first, so that a bad disk does not fill itself.
const KEPT_MAX: usize = 4;

/// Renames `path` to `<path>.corrupt-<unix_s>`, and says so.
///
/// # Errors
/// When it cannot be renamed.
pub(super) fn set_aside(path: &Path, unix_s: u64) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let prefix = format!("{name}.corrupt-");
    let aside = path.with_file_name(format!("{prefix}{unix_s}"));
    fs::rename(path, &aside)?;
    let mut old: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(path.parent().unwrap_or(Path::new(".")))? {
        let entry = entry?;
        let stamp = entry.file_name().to_string_lossy().strip_prefix(&prefix).and_then(|stamp| stamp.parse().ok());
        old.extend(stamp.map(|stamp| (stamp, entry.path())));
    }
    old.sort();
    let surplus = old.len().saturating_sub(KEPT_MAX);
    old.iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn few_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::write(dir.path().join("state.corrupt-by-hand"), "").unwrap();
        for second in 8..20 {
            fs::write(&path, "").unwrap();
            set_aside(&path, second).unwrap();
        }
        let mut left: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        let kept = ["16", "17", "18", "19", "by-hand"].map(|stamp| format!("state.corrupt-{stamp}"));
        assert_eq!(left, kept);
    }
}
