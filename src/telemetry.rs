//! Tracing, metrics, OpenTelemetry export; every metric name is declared here.

pub mod metrics;
