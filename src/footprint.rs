//! What a gateway keeps in memory of its own program.
//!
//! Of some 25 MB of code and constants, starting touches two thirds: flags, certificates, the first handshakes, and with
//! each page the kernel maps the fifteen around it. A gateway that runs needs a third. So once it runs, all those pages
//! are unmapped, and those that are used come back, by a page fault of some microseconds for each 64 KiB. The kernel
//! keeps the file itself as cache while it has room, and lets go of pages that nobody maps before others.

use std::{
    ffi::c_void,
    fs, io,
    ptr::{self, NonNull},
    time::Duration,
};

use nix::sys::mman::{MmapAdvise, madvise};
use tracing::debug;

/// When a gateway has started: after 10 s, by which its peers have been met and workers probed, and again after 30 s more,
/// since many that start at once on few cores take longer.
pub const STARTED_AFTER: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(30)];

/// Unmaps what starting needed, when each of [`STARTED_AFTER`] has passed. Should that fail the process is larger and works.
pub async fn shrink_once_started() {
    for wait in STARTED_AFTER {
        tokio::time::sleep(wait).await;
        // Off the runtime: the kernel counts the pages of the process first, for a millisecond or a few.
        match tokio::task::spawn_blocking(unmap_unused).await {
            Ok(Ok(bytes)) => debug!(bytes, "code and constants unmapped until they are used again"),
            Ok(Err(error)) => debug!(%error, "code and constants stay mapped"),
            Err(error) => debug!(%error, "code and constants stay mapped"),
        }
    }
}

/// Unmaps the resident pages of files that are mapped to be read or run and were never written, and tells their size in
/// bytes. They come back as they are used.
///
/// # Errors
/// When the kernel does not list the mappings (`/proc` is not mounted), or refuses the advice; what was unmapped until then
/// stays so.
pub fn unmap_unused() -> io::Result<usize> {
    let text = fs::read_to_string("/proc/self/smaps")?;
    let mut unmapped = 0;
    for mapping in mappings(&text).filter(Mapping::is_unchanged) {
        let Some(start) = NonNull::new(ptr::with_exposed_provenance_mut::<c_void>(mapping.start)) else { continue };
        // SAFETY: a private mapping of a file that is not writable and of which no page was ever written (relocations
        // included, they would be anonymous pages) holds what the file holds, and the next access maps that again
        // (madvise(2), MADV_DONTNEED). So no byte that anybody reads changes. The file of a running program cannot be
        // written in place (ETXTBSY); what becomes of a library that is overwritten is the same with and without this.
        #[allow(unsafe_code, reason = "there is no safe way to advise about the program's own mappings")]
        unsafe {
            madvise(start, mapping.end - mapping.start, MmapAdvise::MADV_DONTNEED)?;
        }
        unmapped += mapping.resident_kib * 1024;
    }
    Ok(unmapped)
}

/// One entry of `/proc/self/smaps` (proc(5)).
#[derive(Debug, Default, Eq, PartialEq)]
struct Mapping {
    start: usize,
    end: usize,
    permissions: String,
    is_file: bool,
    resident_kib: usize,
    /// Pages that are not those of the file any more; none where the kernel did not tell.
    anonymous_kib: Option<usize>,
}

impl Mapping {
    /// Whether it shows a file, cannot be written and never was.
    fn is_unchanged(&self) -> bool {
        self.is_file && matches!(&*self.permissions, "r-xp" | "r--p") && self.anonymous_kib == Some(0)
    }

    /// Reads the line that begins an entry, as `5581-5592 r-xp 00001000 fe:00 123 /usr/bin/smg`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        let permissions = words.next()?.to_owned();
        // Offset, device and inode come before the name; `[vdso]` and the like are no files.
        let is_file = words.nth(3).is_some_and(|name| name.starts_with('/'));
        (start < end).then_some(Self { start, end, permissions, is_file, ..Self::default() })
    }

    /// Reads a line of an entry, as `Anonymous:   0 kB`.
    fn note(&mut self, line: &str) {
        let kib = |text: &str| text.trim().strip_suffix(" kB").and_then(|number| number.parse().ok());
        match line.split_once(':') {
            Some(("Rss", value)) => self.resident_kib = kib(value).unwrap_or(0),
            Some(("Anonymous", value)) => self.anonymous_kib = kib(value),
            _ => {}
        }
    }
}

fn mappings(smaps: &str) -> impl Iterator<Item = Mapping> {
    let mut lines = smaps.lines().peekable();
    std::iter::from_fn(move || {
        let mut mapping = loop {
            if let Some(mapping) = Mapping::parse(lines.next()?) {
                break mapping;
            }
        };
        while let Some(line) = lines.next_if(|line| Mapping::parse(line).is_none()) {
            mapping.note(line);
        }
        Some(mapping)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SMAPS: &str = "\
5500-5600 r--p 00000000 fe:00 77 /usr/bin/smg
Size:                  1 kB
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
5600-5700 r-xp 00001000 fe:00 77 /usr/bin/smg (deleted)
Rss:                  12 kB
Anonymous:             0 kB
5700-5800 r--p 00002000 fe:00 77 /usr/bin/smg
Rss:                   4 kB
Anonymous:             4 kB
5800-5900 rw-p 00003000 fe:00 77 /usr/bin/smg
Rss:                   4 kB
Anonymous:             0 kB
5900-5a00 rw-p 00000000 00:00 0
Anonymous:             4 kB
5a00-5b00 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
5b00-5c00 r--s 00000000 fe:00 78 /shared
Anonymous:             0 kB
5c00-5d00 r--p 00000000 fe:00 79 /told/nothing
Rss:                   4 kB
";

    #[test]
    fn what_was_written_or_is_no_file_stays() {
        let all: Vec<Mapping> = mappings(SMAPS).collect();
        assert_eq!(all.len(), 8);
        let unchanged: Vec<_> = all.iter().filter(|mapping| mapping.is_unchanged()).collect();
        let found: Vec<_> =
            unchanged.iter().map(|mapping| (mapping.start, mapping.end, mapping.resident_kib)).collect();
        assert_eq!(found, [(0x5500, 0x5600, 8), (0x5600, 0x5700, 12)]);
        for (case, text) in [("nothing", ""), ("no mapping", "Rss: 4 kB\n"), ("turned", "56-55 r-xp 0 0 0 /a\n")] {
            assert_eq!(mappings(text).count(), 0, "{case}");
        }
    }

    #[test]
    fn code_is_unmapped_and_works_on() {
        let resident = || {
            let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
            mappings(&smaps).filter(Mapping::is_unchanged).map(|mapping| mapping.resident_kib).sum::<usize>()
        };
        let before = resident();
        let unmapped = unmap_unused().unwrap();
        let after = resident();
        assert!(unmapped >= before * 1024 / 2, "{unmapped} bytes unmapped of {before} KiB");
        assert!(after < before, "{after} KiB of {before} after it");
        assert!(format!("{:?}", mappings(SMAPS).next()).contains("21760"), "code that was unmapped runs");
    }
}
