//! Places that each address may take of what is bounded, so that nobody takes the places of all who has few addresses. For
//! IPv6 a /64 counts as one address, since a host has them by the billion (RFC 6177 §2).

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Places in use, by address.
#[derive(Clone)]
pub(crate) struct Shares {
    max: usize,
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One place, given back when it is dropped.
pub(crate) struct Share {
    of: Shares,
    addr: IpAddr,
}

impl Shares {
    /// As many as `max` places for each address.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, held: Arc::default() }
    }

    /// A place, unless the address has all of its own.
    pub(crate) fn take(&self, addr: IpAddr) -> Option<Share> {
        let addr = match addr {
            IpAddr::V4(_) => addr,
            IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) & !u128::from(u64::MAX)).into()),
        };
        let mut shares = self.held();
        let held = shares.entry(addr).or_default();
        if *held >= self.max {
            return None;
        }
        *held += 1;
        Some(Share { of: self.clone(), addr })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Entry::Occupied(mut held) = self.of.held().entry(self.addr) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}
