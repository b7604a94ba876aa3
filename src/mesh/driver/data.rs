//! `--mesh-data-dir`: what this node keeps over a restart.
//!
//! | file | holds | when it is damaged |
//! |---|---|---|
//! | `lock` | nothing; locked while a process uses the directory | – |
//! | `identity` | cluster, node, the last boot epoch; on the disk before the mesh starts | set aside: the epoch is found from the clock and the saved state |
//! | `state.redb` | the replicated state ([`saved`](crate::mesh::saved)) | set aside: the state comes from peers |
//! | `vote` | term, vote and voters of the leader election ([`Votes`]) | set aside: the node starts as one without the flag does |
//!
//! The driver hands batches to a thread that flushes them to the disk, one at a time, at most one per `PACE`; what
//! changes meanwhile waits in the saver, which is bounded. A write through the API is answered once it is on the disk,
//! or after `ANSWER_WAIT_MAX`, or when the disk fails: then the cluster's memory is what holds it, as without the flag.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, mpsc as std_mpsc},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{error, info};

use crate::{
    mesh::{
        node::NodeName,
        saved::{Batch, Saver},
        stores::Stores,
    },
    telemetry::metrics::Metrics,
};

mod aside;
mod file;
pub mod record;
mod votes;

use self::{
    file::{FileError, StateFile},
    record::Found,
};
pub use votes::Votes;

/// Between the beginnings of two batches: many changes share a flush.
pub(super) const PACE: Duration = Duration::from_millis(10);

/// Longest that an answer to a write waits for the disk.
pub(super) const ANSWER_WAIT_MAX: Duration = Duration::from_secs(1);

/// A failed batch is tried again after this, doubling to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Why the directory cannot be used. Nothing of it has changed, but for what the message says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The directory cannot be made, read or written.
    #[error("cannot use --mesh-data-dir {}: {what}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was attempted.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another process uses it.
    #[error("--mesh-data-dir {} is in use by another process: give each node its own", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// It belongs to another node or cluster.
    #[error(
        "--mesh-data-dir {} is that of node {node} of cluster {cluster}: give this node its own, or change \
         --mesh-server-name or --mesh-cluster back",
        dir.display()
    )]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        node: String,
        /// The cluster of that node.
        cluster: String,
    },
    /// The state file cannot be used.
    #[error("cannot use {} of --mesh-data-dir: {reason}", file.display())]
    State {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Whose directory it is.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Identity {
    cluster: String,
    node: String,
    boot_epoch_ms: u64,
}

/// An open directory, and what it held.
pub(super) struct Opened {
    pub(super) stores: Stores,
    pub(super) boot_epoch_ms: u64,
    file: StateFile,
    saver: Saver,
    lock: File,
}

/// Opens the directory of this node and restores its stores; blocks on the disk.
///
/// # Errors
/// See [`DataError`].
pub(super) fn open(dir: &Path, cluster: &str, node: &NodeName, unix_ms: u64) -> Result<Opened, DataError> {
    let io = |what: &str| {
        let (dir, what) = (dir.to_owned(), what.to_owned());
        move |source| DataError::Io { dir, what, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("make the directory"))?;
    let lock = lock(dir)?;
    let (unix_s, identity_path) = (unix_ms / 1000, dir.join("identity"));
    let last_epoch_ms = match record::read::<Identity>(&identity_path, unix_s).map_err(io("read the identity"))? {
        Found::Record(known) if known.node != node.as_str() || known.cluster != cluster => {
            return Err(DataError::OtherNode { dir: dir.to_owned(), node: known.node, cluster: known.cluster });
        }
        Found::Record(known) => known.boot_epoch_ms,
        Found::Nothing => 0,
        Found::Lost { aside } => {
            error!(aside = %aside.display(), "identity in --mesh-data-dir is damaged and was set aside");
            0
        }
    };
    let path = dir.join("state.redb");
    let mut file = StateFile::new(path.clone());
    let state = |error: FileError| DataError::State { file: path.clone(), reason: error.to_string() };
    let (saved, _) = file.open(last_epoch_ms > 0, unix_s).map_err(state)?;
    let boot_epoch_ms = unix_ms.max(last_epoch_ms + 1).max(saved.epoch_floor(node) + 1);
    let identity = Identity { cluster: cluster.to_owned(), node: node.to_string(), boot_epoch_ms };
    record::write(&identity_path, &identity).map_err(io("write the identity"))?;
    let mut stores = Stores::new(node.clone(), boot_epoch_ms);
    if let Err(error) = saved.restore(&mut stores, unix_ms) {
        stores = Stores::new(node.clone(), boot_epoch_ms);
        file.set_aside(&error.to_string(), unix_s).map_err(io("set the damaged state aside"))?;
        file.open(false, unix_s).map_err(state)?;
    }
    let saver = Saver::new(&mut stores);
    let counts = stores.entry_counts();
    info!(
        dir = %dir.display(), keys = counts.keys, workers = counts.workers, policies = counts.policies, boot_epoch_ms,
        "saved mesh state read"
    );
    Ok(Opened { stores, boot_epoch_ms, file, saver, lock })
}

fn lock(dir: &Path) -> Result<File, DataError> {
    let io = |what: &str| {
        let (dir, what) = (dir.to_owned(), what.to_owned());
        move |source| DataError::Io { dir, what, source }
    };
    let path = dir.join("lock");
    let mut options = OpenOptions::new();
    let lock = options.write(true).create(true).truncate(false).mode(0o600).open(path).map_err(io("write to it"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(DataError::InUse { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io("lock it")(source)),
    }
}

/// What became of a batch.
pub(super) type Saving = Result<(), FileError>;

/// The directory while the node runs.
pub(super) struct Data {
    saver: Saver,
    batches: std_mpsc::SyncSender<Batch>,
    outcomes: mpsc::Receiver<Saving>,
    due: Instant,
    failures: u32,
    metrics: Arc<Metrics>,
}

impl Opened {
    /// Starts the thread that writes, and gives the stores and what feeds it.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(self, now: Instant, metrics: Arc<Metrics>) -> io::Result<(Stores, Data)> {
        let Self { stores, file, saver, lock, .. } = self;
        let (batches, inbox) = std_mpsc::sync_channel(1);
        let (outbox, outcomes) = mpsc::channel(1);
        thread::Builder::new().name("mesh-data".to_owned()).spawn(move || {
            write(file, &inbox, &outbox);
            // The directory is another process's from now on.
            drop(lock);
        })?;
        Ok((stores, Data { saver, batches, outcomes, due: now, failures: 0, metrics }))
    }
}

/// The thread: one batch after another, until the driver is gone.
fn write(mut file: StateFile, inbox: &std_mpsc::Receiver<Batch>, outbox: &mpsc::Sender<Saving>) {
    while let Ok(batch) = inbox.recv() {
        if outbox.blocking_send(file.save(&batch, super::unix_ms() / 1000)).is_err() {
            return;
        }
    }
}

impl Data {
    /// Waits for the outcome of the batch that is out. Dropping the future loses nothing.
    pub(super) async fn next_outcome(&mut self) -> Saving {
        match self.outcomes.recv().await {
            Some(outcome) => outcome,
            // The thread is gone, which nothing but a bug can do: nothing more will be saved.
            None => std::future::pending().await,
        }
    }

    pub(super) fn handle_outcome(&mut self, now: Instant, outcome: Saving) {
        match outcome {
            Ok(()) => {
                if self.failures > 0 {
                    info!("mesh state is saved again");
                }
                self.failures = 0;
                self.saver.handle_saved();
                self.metrics.mesh_data_save(true);
            }
            Err(error) => {
                let wait = RETRY_FIRST.saturating_mul(1 << self.failures.min(10)).min(RETRY_MAX);
                error!(
                    error = %error, retry_s = wait.as_secs(),
                    "mesh state cannot be saved in --mesh-data-dir; look at the disk. The mesh goes on without"
                );
                self.failures = self.failures.saturating_add(1);
                self.due = now + wait;
                self.saver.handle_failed();
                self.metrics.mesh_data_save(false);
            }
        }
    }

    /// Hands over the next batch when one is due.
    pub(super) fn settle(&mut self, now: Instant, stores: &mut Stores) {
        if self.due > now {
            return;
        }
        if let Some(batch) = self.saver.poll_batch(stores) {
            self.due = now + PACE;
            // There is room: one batch is out at a time.
            if self.batches.try_send(batch).is_err() {
                self.failures = 1;
                error!("the thread that saves mesh state is gone; nothing more is saved");
            }
        }
    }

    pub(super) fn poll_timeout(&self, stores: &Stores) -> Option<Instant> {
        self.saver.wants_to_save(stores).then_some(self.due)
    }

    /// Names what the stores hold now.
    pub(super) fn ticket(&self, stores: &Stores) -> u64 {
        self.saver.ticket(stores)
    }

    /// Whether what a ticket names is on the disk, or the disk fails and there is nothing to wait for.
    pub(super) fn is_settled(&self, ticket: u64) -> bool {
        self.failures > 0 || self.saver.is_saved(ticket)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    fn open_as(dir: &Path, cluster: &str, node: &str, unix_ms: u64) -> Result<Opened, DataError> {
        open(dir, cluster, &node.parse().unwrap(), unix_ms)
    }

    #[test]
    fn boot_epochs_rise_whatever_the_clock_does() {
        let dir = tempfile::tempdir().unwrap();
        let epochs =
            [1000, 5000, 4000, 4000, 9000].map(|unix_ms| open_as(dir.path(), "c", "n", unix_ms).unwrap().boot_epoch_ms);
        assert_eq!(epochs, [1000, 5000, 5001, 5002, 9000]);
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let used = dir.path().join("used");
        let opened = open_as(&used, "c", "n", 1000).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        for (case, path, cluster, node, expected) in [
            ("in use", "used", "c", "n", "in use by another process"),
            ("below a file", "file/dir", "c", "n", "cannot use --mesh-data-dir"),
            ("a file", "file", "c", "n", "cannot use --mesh-data-dir"),
        ] {
            let error = open_as(&dir.path().join(path), cluster, node, 1000).err().unwrap().to_string();
            assert!(error.contains(expected) && error.contains("--mesh-data-dir"), "{case}: {error}");
        }
        drop(opened);
        for (case, cluster, node) in [("another node", "c", "m"), ("another cluster", "d", "n")] {
            let error = open_as(&used, cluster, node, 1000).err().unwrap().to_string();
            assert!(error.contains("node n of cluster c"), "{case}: {error}");
        }
        assert!(open_as(&used, "c", "n", 1000).is_ok());
    }

    #[test]
    fn without_its_identity_the_node_still_starts_above_what_it_saved() {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open_as(dir.path(), "c", "n", 5000).unwrap();
        let policy = crate::mesh::stores::PolicySpec { policy: "random".into(), config_json: "{}".into() };
        opened.stores.put_policy(5000, "m", &policy).unwrap();
        let batch = opened.saver.poll_batch(&mut opened.stores).unwrap();
        opened.file.save(&batch, 5).unwrap();
        drop(opened);
        fs::write(dir.path().join("identity"), "torn").unwrap();
        let opened = open_as(dir.path(), "c", "n", 4000).unwrap();
        assert_eq!(opened.boot_epoch_ms, 5001);
        assert_eq!(opened.stores.policies().len(), 1);
        assert!(dir.path().join("identity.corrupt-4").exists());
    }
}
