//! Mesh types to and from `smg-proto` messages: the only decoder of mesh bytes.

pub mod coordination;

pub mod membership;

pub mod replication;

pub mod routing;
pub mod saved;

pub mod state;
