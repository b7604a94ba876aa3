//! `smg`, a highly available gateway for LLM inference.
//!
//! A tour in reading order: [`cli`] turns flags, variables and a file into a [`config`]; [`run`] starts and ends one
//! gateway of it, whose [`footprint`] shrinks once it runs. [`mesh`] knows who is in the cluster and what the cluster knows; [`gateway`] serves clients from that
//! knowledge, of workers that [`kubernetes`] may find; [`ha`] and [`telemetry`] show it. [`certs`] makes and shows the certificates of nodes, [`cluster`] shows a cluster in a
//! terminal; [`sim_worker`] and
//! [`demo`] are for trying it all on one machine.
//! `ARCHITECTURE.md` has the map and the invariants.

pub mod cli;

pub mod config;

pub mod run;

pub mod footprint;

pub mod mesh;

pub mod gateway;

pub mod kubernetes;

pub mod ha;

pub mod telemetry;

mod rotation;

pub mod certs;

pub mod cluster;

pub mod sim_worker;

pub mod demo;
