//! The certificates crate.
