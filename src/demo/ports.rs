//! Choosing ports up front, so that every process can be told about the others.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
};

use anyhow::{Context as _, bail};

/// Gateways of the demo.
pub(super) const GATEWAYS: usize = 3;
/// Workers of the demo.
pub(super) const WORKERS: usize = 4;

/// Where free ports are looked for: below the kernel's default range for outgoing connections (32768 on Linux). A
/// killed gateway must find its port free when it returns, and a connection that took it for its own end would be in
/// the way.
const FREE: std::ops::Range<u16> = 20_000..32_000;

/// Ports tried, from a random one on, before giving up.
const ATTEMPTS: usize = 1000;

/// Ports on 127.0.0.1, all different.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Ports {
    /// Clients of each gateway.
    pub(super) http: [u16; GATEWAYS],
    /// Mesh of each gateway, TCP and UDP.
    pub(super) mesh: [u16; GATEWAYS],
    /// Metrics of each gateway.
    pub(super) metrics: [u16; GATEWAYS],
    /// Each worker.
    pub(super) workers: [u16; WORKERS],
}

/// Holds chosen ports until all are chosen, so that none is chosen twice.
struct Held {
    next: u16,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl Ports {
    /// Ports that were free a moment ago: from `base` on when given, else wherever there are some.
    ///
    /// # Errors
    /// When one of the fixed ports is taken, or none is free; the message names it.
    pub(super) fn choose(base: Option<u16>) -> anyhow::Result<Self> {
        let mut held = Held::new();
        let at = |offset: usize| base.map(|base| base.saturating_add(u16::try_from(offset).unwrap_or(u16::MAX)));
        let mut ports = Self { http: [0; _], mesh: [0; _], metrics: [0; _], workers: [0; _] };
        for i in 0..GATEWAYS {
            ports.http[i] = held.take(at(i), false)?;
            ports.mesh[i] = held.take(at(10 + i), true)?;
            ports.metrics[i] = held.take(at(20 + i), false)?;
        }
        for (i, port) in ports.workers.iter_mut().enumerate() {
            *port = held.take(at(30 + i), false)?;
        }
        Ok(ports)
    }
}

impl Held {
    fn new() -> Self {
        Self { next: rand::random_range(FREE), tcp: Vec::new(), udp: Vec::new() }
    }

    fn take(&mut self, fixed: Option<u16>, with_udp: bool) -> anyhow::Result<u16> {
        if let Some(port) = fixed {
            self.hold(port, with_udp).with_context(|| format!("port {port} of 127.0.0.1 (--base-port)"))?;
            return Ok(port);
        }
        for _ in 0..ATTEMPTS {
            let port = self.next;
            self.next = if port + 1 < FREE.end { port + 1 } else { FREE.start };
            if self.hold(port, with_udp).is_ok() {
                return Ok(port);
            }
        }
        bail!("no free port of 127.0.0.1 among {ATTEMPTS} tried, choose some by --base-port")
    }

    fn hold(&mut self, port: u16, with_udp: bool) -> io::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        if with_udp {
            self.udp.push(UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?);
        }
        self.tcp.push(listener);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn free_ports_differ_and_can_be_bound() {
        let ports = Ports::choose(None).unwrap();
        let all = [&ports.http[..], &ports.mesh, &ports.metrics, &ports.workers].concat();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 3 * GATEWAYS + WORKERS);
        assert!(all.iter().all(|port| FREE.contains(port)));
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Held::new().take(Some(port), false).unwrap_err();
        assert!(format!("{error:#}").contains(&port.to_string()), "{error:#}");
    }
}
