//! Which address the other nodes are told to use: SPEC §1 row 4, never an unspecified one.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use crate::config::Mesh;

/// Why no address can be advertised. Nothing was bound; starting again after the change helps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdvertiseError {
    /// The host name of `--mesh-advertise-host` does not resolve.
    #[error("--mesh-advertise-host {host} does not resolve; give an address or a name that the DNS knows")]
    Unresolved {
        /// The name as given.
        host: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// The given host is the unspecified address.
    #[error("--mesh-advertise-host {0} is no address that a peer could reach; give the address of one interface")]
    Unspecified(IpAddr),
}

/// The advertised address: for people, and for the network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Advertised {
    /// `host:port` as shown by the HA API.
    pub(super) host: String,
    /// What peers send to.
    pub(super) addr: SocketAddr,
}

/// Chooses the advertised address of a node bound at `bound`.
///
/// In order: `--mesh-advertise-host`, `POD_IP`, the bound address when it is a particular one, the local address of the
/// route to the first peer that resolves, the first non-loopback interface, loopback.
///
/// # Errors
/// When `--mesh-advertise-host` cannot be used; see [`AdvertiseError`].
pub(super) async fn choose(
    config: &Mesh,
    bound: SocketAddr,
    pod_ip: Option<IpAddr>,
) -> Result<Advertised, AdvertiseError> {
    let port = config.advertise_port.unwrap_or(bound.port());
    if let Some(host) = &config.advertise_host {
        let addr = resolve(host, port).await?;
        let literal = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let shown = if literal { addr.to_string() } else { format!("{host}:{port}") };
        return Ok(Advertised { host: shown, addr });
    }
    let ip = match pod_ip.filter(|ip| !ip.is_unspecified()) {
        Some(ip) => ip,
        None if !bound.ip().is_unspecified() => bound.ip(),
        None => match route_to_first_peer(&config.peers, bound).await {
            Some(ip) => ip,
            None => first_interface(bound),
        },
    };
    let addr = SocketAddr::new(ip, port);
    Ok(Advertised { host: addr.to_string(), addr })
}

async fn resolve(host: &str, port: u16) -> Result<SocketAddr, AdvertiseError> {
    let unresolved = |source| AdvertiseError::Unresolved { host: host.to_owned(), source };
    let bare = host.trim_matches(['[', ']']);
    let mut found = tokio::net::lookup_host((bare, port)).await.map_err(unresolved)?;
    let addr = found.next().ok_or_else(|| unresolved(io::Error::from(io::ErrorKind::NotFound)))?;
    if addr.ip().is_unspecified() {
        return Err(AdvertiseError::Unspecified(addr.ip()));
    }
    Ok(addr)
}

/// The source address that the kernel would use towards the first resolvable peer. Nothing is sent: connecting a
/// datagram socket only looks the route up.
async fn route_to_first_peer(peers: &[String], bound: SocketAddr) -> Option<IpAddr> {
    for peer in peers {
        let Ok(found) = tokio::net::lookup_host(peer).await else { continue };
        for addr in found.filter(|addr| bound.is_ipv6() || addr.is_ipv4()) {
            if let Some(ip) = local_address_towards(addr) {
                return Some(ip);
            }
        }
    }
    None
}

fn local_address_towards(addr: SocketAddr) -> Option<IpAddr> {
    let any = if addr.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(addr).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

fn first_interface(bound: SocketAddr) -> IpAddr {
    let usable = |ip: &IpAddr| !ip.is_loopback() && !link_local(ip) && (bound.is_ipv6() || ip.is_ipv4());
    let found = if_addrs::get_if_addrs().unwrap_or_default();
    let mut addresses: Vec<IpAddr> = found.iter().map(if_addrs::Interface::ip).filter(usable).collect();
    // IPv4 first: a dual-stack socket reaches both, and most clusters speak IPv4.
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::{Environment, Invocation, parse};

    fn mesh(advertise_host: Option<&str>, advertise_port: Option<u16>, peers: &[&str]) -> Mesh {
        let Ok(Invocation::Launch(config)) = parse(["smg".into()], &Environment::new()) else { unreachable!() };
        let mut mesh = config.mesh;
        mesh.advertise_host = advertise_host.map(str::to_owned);
        mesh.advertise_port = advertise_port;
        mesh.peers = peers.iter().map(|&peer| peer.to_owned()).collect();
        mesh
    }

    #[tokio::test]
    async fn follows_the_documented_order() {
        let pod = Some("10.1.2.3".parse().unwrap());
        for (case, config, bound, pod_ip, host, addr) in [
            ("flag", mesh(Some("10.9.9.9"), None, &[]), "0.0.0.0:5", pod, "10.9.9.9:5", "10.9.9.9:5"),
            ("flag by name", mesh(Some("localhost"), Some(7), &[]), "127.0.0.1:5", pod, "localhost:7", "127.0.0.1:7"),
            ("IPv6 flag", mesh(Some("[::1]"), None, &[]), "[::]:5", None, "[::1]:5", "[::1]:5"),
            ("pod", mesh(None, None, &["127.0.0.1:1"]), "0.0.0.0:5", pod, "10.1.2.3:5", "10.1.2.3:5"),
            ("bound", mesh(None, Some(9), &[]), "127.0.0.2:5", None, "127.0.0.2:9", "127.0.0.2:9"),
            (
                "route",
                mesh(None, None, &["nowhere.invalid:1", "127.0.0.1:1"]),
                "0.0.0.0:5",
                None,
                "127.0.0.1:5",
                "127.0.0.1:5",
            ),
        ] {
            let chosen = choose(&config, bound.parse().unwrap(), pod_ip).await.unwrap();
            // `localhost` may resolve to either family; the shown name is what matters there.
            assert_eq!(chosen.host, host, "{case}");
            assert!(chosen.addr.to_string() == addr || case == "flag by name", "{case}: {}", chosen.addr);
        }
    }

    #[tokio::test]
    async fn never_advertises_the_unspecified_address() {
        let bound = "0.0.0.0:5".parse().unwrap();
        assert!(!choose(&mesh(None, None, &[]), bound, None).await.unwrap().addr.ip().is_unspecified());
        assert!(matches!(
            choose(&mesh(Some("0.0.0.0"), None, &[]), bound, None).await,
            Err(AdvertiseError::Unspecified(_))
        ));
        let error = choose(&mesh(Some("no-such-host.invalid"), None, &[]), bound, None).await.unwrap_err();
        assert!(error.to_string().contains("--mesh-advertise-host"), "{error}");
    }
}
