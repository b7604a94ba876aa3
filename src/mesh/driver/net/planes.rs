//! The two planes of a node on one port number.

use std::{io, net::SocketAddr, sync::Arc};

use smg_certs::Material;
use smg_transport::{
    Transport,
    grpc::{Hello, StreamConfig, StreamEvents, Streams},
    quic::{QuicConfig, QuicTransport},
    udp::UdpTransport,
};

use tokio::runtime::Handle;

use super::NetError;

/// Where the two planes run. They are apart, so that neither a large state nor a stranger's handshake holds up a probe.
#[derive(Clone, Debug)]
pub(in crate::mesh::driver) struct Runtimes {
    /// The mesh task and its datagrams.
    pub(in crate::mesh::driver) datagrams: Handle,
    /// Pipes, and the handshakes of both planes.
    pub(in crate::mesh::driver) streams: Handle,
}

/// Ports tried when `--mesh-port 0` asks for one that is free on both planes.
const FREE_PORT_TRIES: usize = 16;

/// Binds datagrams and streams on one port number; port 0 looks for one that is free on both.
///
/// With an identity both planes are protected by it; without one neither is.
pub(super) fn bind(
    addr: SocketAddr,
    hello: &Hello,
    tls: Option<&Arc<Material>>,
    runtimes: &Runtimes,
) -> Result<(Arc<dyn Transport>, Streams, StreamEvents), NetError> {
    let mut tries = 0;
    loop {
        let transport = bind_datagrams(addr, tls.cloned(), runtimes);
        let transport = transport.map_err(|source| NetError::Bind { addr, plane: "udp", source })?;
        let mut config = StreamConfig::new(transport.local_addr(), hello.clone());
        config.tls = tls.cloned();
        let _streams = runtimes.streams.enter();
        match Streams::bind(config) {
            Ok((streams, events)) => return Ok((transport, streams, events)),
            Err(_) if addr.port() == 0 && tries < FREE_PORT_TRIES => tries += 1,
            Err(source) => return Err(NetError::Bind { addr, plane: "tcp", source }),
        }
    }
}

fn bind_datagrams(addr: SocketAddr, tls: Option<Arc<Material>>, runtimes: &Runtimes) -> io::Result<Arc<dyn Transport>> {
    let _datagrams = runtimes.datagrams.enter();
    Ok(match tls {
        Some(material) => {
            let handshakes = Some(runtimes.streams.clone());
            Arc::new(QuicTransport::bind(addr, QuicConfig { handshakes, ..QuicConfig::new(material) })?)
        }
        None => Arc::new(UdpTransport::bind(addr)?),
    })
}
