//! What a voter of the leader election must not forget.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::record::{self, Found};

/// A voter's durable state (Ongaro 2014, "Consensus: bridging theory and practice", figure 3.1).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Vote {
    /// The latest term that this node has seen.
    pub term: u64,
    /// The name of the node that it voted for in that term; none: it has not voted in it.
    pub vote: Option<String>,
}

/// The record of votes in `--mesh-data-dir`.
#[derive(Clone, Debug)]
pub struct Votes {
    path: PathBuf,
}

impl Votes {
    /// The record in an open data directory.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join("vote") }
    }

    /// Saves a vote; blocks. When this returns, it is on the disk: only then may the promise be made.
    ///
    /// # Errors
    /// When it may not be on the disk: the promise must not be made, or must be held although a later
    /// [`load_vote`](Self::load_vote) may not know of it.
    pub fn save_vote(&self, vote: &Vote) -> io::Result<()> {
        record::write(&self.path, vote)
    }

    /// The last vote; blocks. [`Found::Lost`] means that this node has made promises that it does not know: it abstains
    /// until they have lapsed, as one without a directory does.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load_vote(&self, unix_s: u64) -> io::Result<Found<Vote>> {
        record::read(&self.path, unix_s)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_vote_is_remembered_or_known_to_be_lost() {
        let dir = tempfile::tempdir().unwrap();
        let votes = Votes::in_dir(dir.path());
        assert_eq!(votes.load_vote(1).unwrap(), Found::Nothing);
        for vote in [Vote { term: 3, vote: Some("n1".into()) }, Vote { term: 4, vote: None }] {
            votes.save_vote(&vote).unwrap();
            assert_eq!(Votes::in_dir(dir.path()).load_vote(1).unwrap(), Found::Record(vote));
        }
        std::fs::write(dir.path().join("vote"), "{\"term\":1,\"vote\":null}").unwrap();
        assert!(matches!(votes.load_vote(1).unwrap(), Found::Lost { .. }));
        assert!(votes.save_vote(&Vote { term: 5, vote: None }).is_ok());
    }

    #[test]
    fn a_vote_that_cannot_be_saved_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let votes = Votes::in_dir(&dir.path().join("gone"));
        assert!(votes.save_vote(&Vote::default()).is_err());
    }
}
