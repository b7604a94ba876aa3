//! The one task that owns clock, timers, randomness and transport, and drives the pure machines.

pub mod handle;
