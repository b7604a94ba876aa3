//! Prompts as names of their prefixes: what cache-aware routing compares, stores and shares.
//!
//! A worker that has computed a prompt keeps the result for a while, and computes nothing twice when the next prompt
//! begins alike. So a request belongs where the longest prefix of its prompt was seen last. The steps, each its own
//! file:
//!
//! 1. [`canonical`] reads the prompt's text out of the body, without building anything;
//! 2. [`chain`] cuts it into blocks of [`chain::BLOCK_BYTES`] and names each *prefix* with a keyed hash chained to the
//!    name before, as engines name their own cache blocks;
//! 3. [`index`] remembers which worker has seen which name, within a budget of bytes, on all cores without a lock.
//!
//! Text goes into a name and never out again: the key is 192 random bytes of the cluster, and what is kept and sent are
//! names alone.
//!
//! Invariant: names are equal on every gateway that holds the same key, whatever white space, member order or escapes a
//! client's JSON library puts around the text.

pub mod canonical;

pub mod chain;

pub mod index;

pub use self::{
    canonical::prompt,
    chain::{HashKey, Prompt},
    index::Index,
};
