//! Whole clusters in one thread: seeded, in virtual time.

pub mod disk;

pub mod election;

pub mod quota;

pub mod memberlist;

pub mod membership;

pub mod replication;

mod stage;
