//! Client traffic: routing, policies, proxying to workers, draining.

pub mod worker;

pub mod breaker;

pub mod hint;

pub mod view;

pub mod policy;

pub mod choice;

pub mod placement;

pub mod sharing;

pub mod sim;

pub mod plane;

pub mod error;

pub mod scan;

pub mod prefix;

pub mod headers;

pub mod routes;

pub mod keys;

pub mod cors;

pub mod budget;

pub mod backoff;

pub mod body;

pub mod activity;

pub mod admission;

pub mod bounds;
pub mod limiter;
pub mod limits;
pub mod slots;
mod tenure;

pub mod rate;

mod core;

mod listener;

mod connection;

pub mod head_guard;

mod client_io;

mod byte_stream;

mod upstream;

mod handshake;

pub mod tls;

pub(crate) mod service;

mod public;

mod refusal;

mod timed;

mod probes;

mod proxy;

mod pool;

mod relay;

mod session;

mod stored;

mod finish;

mod usage;

pub mod selector;
pub mod steering;

pub mod registry;

pub mod health;

pub mod admin;
