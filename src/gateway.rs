//! Client traffic: routing, policies, proxying to workers, draining.

pub mod worker;

pub mod view;

pub mod policy;
