//! Ballots on their way to the disk: the newest one waits, a task writes it, and says which it was.

use std::time::Duration;

use tokio::{
    sync::watch,
    task::{AbortHandle, spawn_blocking},
};
use tracing::{error, info};

use crate::mesh::{driver::data::Votes, election::Ballot};

/// A ballot that could not be saved is tried again after this; until then nothing leaves that depends on it.
const RETRY: Duration = Duration::from_secs(1);

/// The way to the disk; the task ends with it.
#[derive(Debug)]
pub(super) struct Disk {
    newest: watch::Sender<(u64, Ballot)>,
    saved: watch::Receiver<u64>,
    task: AbortHandle,
}

impl Disk {
    pub(super) fn new(votes: Votes) -> Self {
        let (newest, ballots) = watch::channel((0, Ballot::default()));
        let (done, saved) = watch::channel(0);
        Self { newest, saved, task: tokio::spawn(write(votes, ballots, done)).abort_handle() }
    }

    /// Has a ballot saved; one that still waits is replaced by it, since each says all that the ones before it did.
    pub(super) fn save(&self, count: u64, ballot: Ballot) {
        self.newest.send_replace((count, ballot));
    }

    /// Waits until one more was saved; how many are by then. Dropping the future loses nothing.
    pub(super) async fn saved(&mut self) -> u64 {
        match self.saved.changed().await {
            Ok(()) => *self.saved.borrow_and_update(),
            // The task ends with this value, or with the process.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn write(votes: Votes, mut ballots: watch::Receiver<(u64, Ballot)>, done: watch::Sender<u64>) {
    let mut failed = false;
    while ballots.changed().await.is_ok() {
        loop {
            let (count, ballot) = ballots.borrow_and_update().clone();
            let votes = votes.clone();
            match spawn_blocking(move || votes.save(&ballot)).await {
                Ok(Ok(())) => {
                    if std::mem::take(&mut failed) {
                        info!("ballots of the election can be saved again");
                    }
                    done.send_replace(count);
                    break;
                }
                Ok(Err(error)) if !failed => {
                    error!(%error, "ballot of the election not saved: this node votes for nobody until it can be");
                    failed = true;
                }
                // Said already, or the runtime is about to end.
                Ok(Err(_)) | Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::mesh::driver::data::record::Found;

    #[tokio::test]
    async fn the_newest_ballot_is_on_the_disk_when_it_is_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let votes = Votes::in_dir(dir.path());
        let mut disk = Disk::new(votes.clone());
        for term in 1..=20 {
            disk.save(term, Ballot { term, ..Ballot::default() });
        }
        while disk.saved().await < 20 {}
        assert_eq!(votes.load(1).unwrap(), Found::Record(Ballot { term: 20, ..Ballot::default() }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_fails_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let mut disk = Disk::new(Votes::in_dir(&gone));
        disk.save(1, Ballot { term: 1, ..Ballot::default() });
        let early = tokio::time::timeout(RETRY / 2, disk.saved()).await;
        assert!(early.is_err(), "nothing was saved");
        std::fs::create_dir(&gone).unwrap();
        assert_eq!(disk.saved().await, 1);
    }
}
