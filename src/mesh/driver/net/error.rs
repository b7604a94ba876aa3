//! Why the sockets of the mesh cannot be had.

use std::{io, net::SocketAddr};

use crate::mesh::driver::advertise::AdvertiseError;

/// Why the mesh cannot start. Nothing stays bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The mesh port is taken, or the address is not of this host.
    #[error("cannot bind the mesh to {addr} ({plane}); change --mesh-host or --mesh-port")]
    Bind {
        /// The address as configured.
        addr: SocketAddr,
        /// `udp` or `tcp`.
        plane: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No address can be advertised.
    #[error(transparent)]
    Advertise(#[from] AdvertiseError),
}
