//! `smg`, a highly available gateway for LLM inference.

pub mod cli;

pub mod config;

pub mod telemetry;

pub mod mesh;

pub mod gateway;

pub mod ha;

pub mod sim_worker;

pub mod demo;
