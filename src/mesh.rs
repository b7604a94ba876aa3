//! The HA mesh: who is in the cluster ([`swim`]), what it knows ([`stores`] made of [`crdt`]), and how that knowledge
//! travels ([`replication`]), who leads ([`election`]), and who may admit how much ([`quota`]).
//!
//! Everything here is pure: a machine takes the instant as an argument, draws randomness from a seeded generator, and
//! does no I/O. The exceptions say so by their names: [`driver`] owns clock, timers, randomness and transport; [`sim`]
//! runs a whole cluster in one thread in virtual time.

pub mod node;

pub mod hlc;

pub mod crdt;

pub mod stores;

pub mod swim;

pub mod replication;

pub mod routing;

pub mod saved;

pub mod election;

pub mod quota;

pub mod wire;

pub mod driver;

pub mod sim;
