//! What a voter of the leader election must not forget.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::record::{self, Found};
use crate::mesh::{
    election::{Ballot, voters::Voters},
    node::NodeName,
};

/// A voter's durable state (Ongaro 2014, "Consensus: bridging theory and practice", figure 3.1), and its set of voters.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
struct Vote {
    /// The latest term that this node took part in.
    term: u64,
    /// The name of the node that it voted for in that term; none: it has not voted in it.
    vote: Option<String>,
    /// Who votes; none: not known yet.
    voters: Option<Set>,
}

/// A set of voters, as [`Voters::new`] takes it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Set {
    term: u64,
    version: u64,
    names: Vec<String>,
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

    /// Saves a ballot; blocks. When this returns, it is on the disk: only then may the promise be made.
    ///
    /// # Errors
    /// When it may not be on the disk: the promise must not be made, or must be held although a later [`load`](Self::load)
    /// may not know of it.
    pub fn save(&self, ballot: &Ballot) -> io::Result<()> {
        let set = |voters: &Voters| Set {
            term: voters.id().term,
            version: voters.id().version,
            names: voters.names().iter().map(ToString::to_string).collect(),
        };
        let vote = ballot.voted_for.as_ref().map(ToString::to_string);
        record::write(&self.path, &Vote { term: ballot.term, vote, voters: ballot.voters.as_ref().map(set) })
    }

    /// The last ballot; blocks. [`Found::Lost`] means that this node has made promises that it does not know: it starts as
    /// one without a directory does.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(&self, unix_s: u64) -> io::Result<Found<Ballot>> {
        Ok(match record::read::<Vote>(&self.path, unix_s)? {
            Found::Nothing => Found::Nothing,
            Found::Lost { aside } => Found::Lost { aside },
            // A record whose sum is right was written by `save`, from names that parse.
            Found::Record(vote) => Found::Record(ballot(&vote).ok_or(io::ErrorKind::InvalidData)?),
        })
    }
}

fn ballot(vote: &Vote) -> Option<Ballot> {
    let names = |set: &Set| set.names.iter().map(|name| name.parse()).collect::<Result<Vec<NodeName>, _>>().ok();
    let voters = match &vote.voters {
        Some(set) => Some(Voters::new(set.term, set.version, names(set)?).ok()?),
        None => None,
    };
    let voted_for = match &vote.vote {
        Some(name) => Some(name.parse().ok()?),
        None => None,
    };
    Some(Ballot { term: vote.term, voted_for, voters })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_ballot_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let votes = Votes::in_dir(dir.path());
        assert_eq!(votes.load(1).unwrap(), Found::Nothing);
        let voters = Voters::new(2, 5, ["n1", "n2"].map(|name| name.parse().unwrap())).unwrap();
        for ballot in [
            Ballot { term: 3, voted_for: Some("n1".parse().unwrap()), voters: Some(voters) },
            Ballot { term: 4, voted_for: None, voters: None },
        ] {
            votes.save(&ballot).unwrap();
            assert_eq!(Votes::in_dir(dir.path()).load(1).unwrap(), Found::Record(ballot));
        }
        std::fs::write(dir.path().join("vote"), "junk").unwrap();
        assert!(matches!(votes.load(1).unwrap(), Found::Lost { .. }));
        assert!(votes.save(&Ballot::default()).is_ok());
    }

    #[test]
    fn a_ballot_that_cannot_be_saved_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let votes = Votes::in_dir(&dir.path().join("gone"));
        assert!(votes.save(&Ballot::default()).is_err());
    }
}
