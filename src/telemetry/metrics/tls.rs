//! Certificates in use and handshakes that failed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use opentelemetry::{KeyValue, metrics::Meter};

use super::{Metrics, definitions as def, gauge};

/// Unix time of expiry by role; the roles are few.
pub(super) type Expiry = Arc<Mutex<BTreeMap<&'static str, i64>>>;

impl Metrics {
    /// `smg_tls_cert_expiry_timestamp_seconds{role}`.
    pub fn tls_expiry(&self, role: &'static str, unix_seconds: i64) {
        self.tls_expiry.lock().unwrap_or_else(PoisonError::into_inner).insert(role, unix_seconds);
        self.tls_reload_failures.with(&role, |counter| counter.add(0));
    }

    /// `smg_tls_reload_failures_total{role}` from 0 on, where no own certificate is shown.
    pub fn tls_without_certificate(&self, role: &'static str) {
        self.tls_expiry.lock().unwrap_or_else(PoisonError::into_inner).remove(role);
        self.tls_reload_failures.with(&role, |counter| counter.add(0));
    }

    /// `smg_http_tls_handshake_failures_total{reason}`.
    pub fn tls_handshake_failed(&self, reason: &'static str) {
        self.tls_handshake_failures.with(&reason, |counter| counter.add(1));
    }

    /// `smg_tls_reload_failures_total{role}`.
    pub fn tls_reload_failed(&self, role: &'static str) {
        self.tls_reload_failures.with(&role, |counter| counter.add(1));
    }
}

/// Observes what [`Metrics::tls_expiry`] is told.
pub(super) fn expiry(meter: &Meter) -> Expiry {
    let roles = Expiry::default();
    let observed = roles.clone();
    gauge(meter, &def::TLS_EXPIRY, move |gauge| {
        for (role, at) in &*observed.lock().unwrap_or_else(PoisonError::into_inner) {
            gauge.observe(*at, &[KeyValue::new("role", *role)]);
        }
    });
    roles
}
