//! Conflict-free replicated data types: one causal dot store ([`map`]) and four readings of it.
//!
//! # The model
//!
//! An actor is a node in one boot epoch. Every local operation, writes and removes alike, takes the actor's next dot
//! (`(actor, counter)`, contiguous from 1 in each namespace). Per key the store holds the *live* dots with timestamp
//! and payload. An operation kills dots it has seen and may add its own:
//!
//! | type | operation kills | value |
//! |---|---|---|
//! | [`lww_register`] write | every seen dot of the key | payload of the newest timestamp, ties by actor |
//! | [`or_set`] add | every seen dot of the key | present while a dot lives: an unseen add survives a remove |
//! | remove, any type | every seen dot of the key | – |
//! | [`g_counter`], [`pn_counter`] | the actor's own dot | sum over dots, each cumulative |
//!
//! Replicas of one key are joined as in Almeida et al. 2018 ("Delta state replicated data types") §7 and Bieniusa et
//! al. 2012 ("An optimized conflict-free replicated set"): a dot that the other side's *causal context* covers and its
//! live set lacks is dead. No tombstones; concurrent dots stay side by side until an operation has seen them, so the
//! join is a semilattice (Shapiro et al. 2011).
//!
//! # The causal context is per key, stored as if it were one
//!
//! Deltas travel from several peers at once, so a node may learn of a remove before the add that it killed. If it then
//! only noted the remove's dot, the add would come later and live again. Hence the context is per key: `seen` (a version
//! vector that holds for *every* key) joined with the key's *guard*, which is what the sender of the key's state had
//! seen beyond it. A guard goes as soon as `seen` reaches it, so at rest there are none and metadata is O(actors).
//!
//! Invariant: `seen` grows only by *closed* steps: when an actor's counters up to `n` enter it, the state of every key
//! that those dots touched is here, killers included. Otherwise a dot could count as dead here while the write that
//! killed it is lost with its only holder. See [`map::Map::apply`].

pub mod dot;

pub mod context;

pub mod delta;

pub mod map;

mod records;

pub mod g_counter;

pub mod pn_counter;

pub mod lww_register;

pub mod or_set;

#[cfg(test)]
mod laws;
