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
//! # Folding: vectors do not grow with restarts
//!
//! Each boot epoch is an actor, so a node that restarts often would fill every vector. A superseded epoch performs no
//! more operations, and once everybody has seen the same of it, "seen up to n" may become "seen, all there will be":
//!
//! - A node's *floor* is an epoch below which all its dots count as seen. It is the counter of a pseudo-actor
//!   ([`Actor::floor_of`](dot::Actor::floor_of)), so joins, digests and covers carry floors as they carry counters.
//! - A node raises the floor of `n` to an epoch `f` that it knows of `n`, when `f` is an hour old, `n` is not known to run
//!   in an earlier epoch, and every *voter* agrees: each member seen in the last 24 h, each node that is known from its
//!   writes alone (for 24 h), save itself. A voter agrees when an ack of the last minute shows exactly the counters seen
//!   here of all epochs of `n` below `f`, or such a floor; and when neither side guards a key, or the roots are equal.
//! - Live dots of folded epochs stay what they are, so removes of them work as ever. An actor is dropped from the tables
//!   when it is folded and none of its dots lives; what is left of any number of restarts is one floor for each name.
//!
//! *Safety.* (1) When `f` was an hour old the epochs below wrote nothing any more, and what they had sent has arrived or
//! is lost. (2) So a dot of theirs that a voter holds in `seen` is within the counters that all voters share; one that it
//! holds by a guard alone is in the live set that all share. Hence no voter has a dot that raising the floor kills
//! elsewhere. (3) A floor spreads to others as a cover at the end of a whole delta or snapshot, after the live dots below
//! it, by the same closed steps as any counter. (4) A late frame, or a node that was away longer, may bring dots below a
//! floor: they count as seen and do not live here, so they are dead. Nothing comes back, because floors never fall. A node
//! away for more than 24 h thereby drops what it alone held of folded epochs, and keeps and re-asserts what it wrote
//! itself in its running epoch, whose dots nobody has folded. (5) No node takes a floor above its own running epoch. One
//! whose clock was set back by more than an hour over a restart runs in an epoch that others have folded: as soon as it
//! hears of the floor it goes on in a new epoch just above it, and writes anew what it wrote so far
//! ([`Map::raise_epoch`](map::Map::raise_epoch)). Until then it is heard by nobody, and nothing that it wrote is lost.
//!
//! Not folded are the last epoch of a node that never returns or never writes again (one counter for each name, and the
//! guards of those keys that a crash in the midst of saving tore from their context), and anything while a voter is
//! away or, above 32 nodes, not a direct peer: then vectors grow with restarts up to [`dot::ACTORS_MAX`] actors.
//!
//! Invariant: `seen` grows only by *closed* steps: when an actor's counters up to `n` enter it, the state of every key
//! that those dots touched is here, killers included. Otherwise a dot could count as dead here while the write that
//! killed it is lost with its only holder. See [`map::Map::apply`].

pub mod dot;

pub mod context;

pub mod delta;

pub mod map;

mod order;

mod records;

pub mod g_counter;

pub mod pn_counter;

pub mod lww_register;

pub mod or_set;

#[cfg(test)]
mod laws;
