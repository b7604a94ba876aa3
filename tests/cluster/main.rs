//! Clusters seen from outside: real processes, real sockets, the HTTP surface alone.
//!
//! Every test takes loopback addresses of its own (127.a.b.n), so that the manual's fixed ports can be used as they are
//! and tests run side by side. Nothing sleeps for a guess: conditions are awaited with a deadline, and the logs of all
//! nodes are printed when a test fails.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::print_stderr)]

mod crowds;
mod harness;
mod hostile;
#[path = "../namespaces/hosts.rs"]
mod hosts;
mod machine;

mod admin;
mod affinity;
mod bad_input;
mod breaker;
mod certs;
mod data;
mod failover;
mod idle_clients;
#[path = "../../src/kubernetes/fake.rs"]
mod kube_server;
mod kubernetes;
mod leader;
mod limits;
mod manual;
mod metrics;
mod operator;
mod prompts;
mod pushed_metrics;
mod routes;
mod serving_tls;
mod sessions;
mod shared_limits;
mod shared_slots;
mod shutdown;
mod steering;
mod surface;
mod tls;
mod traces;
mod verbatim;
mod worker_tls;
mod workers;
