//! Choosing ports up front, so that every process can be told about the others.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
};

use anyhow::Context as _;

/// Gateways of the demo.
pub(super) const GATEWAYS: usize = 3;
/// Workers of the demo.
pub(super) const WORKERS: usize = 4;

/// Attempts at a port that is free for both TCP and UDP.
const ATTEMPTS: usize = 100;

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
#[derive(Default)]
struct Held(Vec<TcpListener>, Vec<UdpSocket>);

impl Ports {
    /// Ports that were free a moment ago: from `base` on when given, else of the kernel's choice.
    ///
    /// # Errors
    /// When one of the fixed ports is taken; the message names it.
    pub(super) fn choose(base: Option<u16>) -> anyhow::Result<Self> {
        let mut held = Held::default();
        let at = |offset: usize| base.map_or(0, |base| base + u16::try_from(offset).unwrap_or(0));
        let mut ports = Self { http: [0; _], mesh: [0; _], metrics: [0; _], workers: [0; _] };
        for i in 0..GATEWAYS {
            ports.http[i] = held.tcp(at(i))?;
            ports.mesh[i] = held.tcp_and_udp(at(10 + i))?;
            ports.metrics[i] = held.tcp(at(20 + i))?;
        }
        for (i, port) in ports.workers.iter_mut().enumerate() {
            *port = held.tcp(at(30 + i))?;
        }
        Ok(ports)
    }
}

impl Held {
    fn tcp(&mut self, port: u16) -> anyhow::Result<u16> {
        let listener = listen(port).with_context(|| format!("TCP port {port} of 127.0.0.1 (--base-port)"))?;
        let port = listener.local_addr()?.port();
        self.0.push(listener);
        Ok(port)
    }

    fn tcp_and_udp(&mut self, port: u16) -> anyhow::Result<u16> {
        let mut attempts = ATTEMPTS;
        loop {
            let chosen = self.tcp(port)?;
            match UdpSocket::bind((Ipv4Addr::LOCALHOST, chosen)) {
                Ok(socket) => {
                    self.1.push(socket);
                    return Ok(chosen);
                }
                Err(_) if port == 0 && attempts > 0 => attempts -= 1,
                Err(error) => {
                    return Err(error).with_context(|| format!("UDP port {chosen} of 127.0.0.1 (--base-port)"));
                }
            }
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
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
        assert!(all.iter().all(|port| *port != 0));
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Held::default().tcp(port).unwrap_err();
        assert!(format!("{error:#}").contains(&port.to_string()), "{error:#}");
    }
}
