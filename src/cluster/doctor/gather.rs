//! What the doctor looks at: answers of gateways, ports of the mesh, files of certificates.
//!
//! The datagram plane is asked with a QUIC packet of a version that nobody speaks, which a QUIC endpoint answers with
//! the versions that it does, before any state or cryptography (RFC 9000 §6 and §17.2.1). Plain UDP answers no stranger
//! by design: there only a refusal by the host (ICMP port unreachable) can be seen, and one packet is counted as refused.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use smg_certs::{Certificate, Identity, IdentityFiles};
use time::OffsetDateTime;
use tokio::net::{TcpStream, UdpSocket, lookup_host};

use crate::cluster::{
    BaseUrl, DoctorArgs,
    client::Client,
    picture::{self, Status},
};

/// Gateways, or ports, that are asked at a time.
const AT_ONCE: usize = 16;

/// For a TCP connection, and for a name to resolve.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// For an answer to one datagram; it is sent [`DATAGRAMS`] times.
const ANSWER_MAX: Duration = Duration::from_millis(400);

/// Datagrams that are tried: some are lost.
const DATAGRAMS: usize = 3;

/// Between two looks at roots that differ: a write crosses the cluster well within.
const SECOND_LOOK: Duration = Duration::from_secs(3);

/// Everything that was found out.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) gateways: Vec<Asked>,
    pub(super) ports: Vec<Port>,
    pub(super) identities: Vec<Files>,
    /// This machine's time.
    pub(super) now: Option<OffsetDateTime>,
}

/// One gateway that was asked.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) url: String,
    /// The node that should be there, when the URL was made from its mesh address.
    pub(super) expected: Option<String>,
    pub(super) answer: Result<Answer, String>,
}

/// What it said.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) status: Status,
    /// This machine's clock before and after, in Unix milliseconds.
    pub(super) asked_ms: i64,
    pub(super) answered_ms: i64,
    /// What it said [`SECOND_LOOK`] later, where that was asked.
    pub(super) again: Option<Status>,
}

/// The mesh port of one node, as seen from here.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) node: String,
    pub(super) address: String,
    pub(super) tcp: Result<(), String>,
    pub(super) udp: Udp,
}

/// What a harmless datagram brought.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Udp {
    /// A QUIC endpoint answered.
    Quic,
    /// The host says that nobody listens.
    Refused,
    /// Nothing came back.
    Silent,
    /// It could not be sent.
    Unsent(String),
}

/// The certificate files of one node.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) name: String,
    pub(super) identity: Result<Checked, String>,
}

/// A certificate that was read, and what is wrong with it.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) certificate: Certificate,
    pub(super) fault: Option<String>,
}

pub(super) async fn facts(client: &Client, args: &DoctorArgs) -> Facts {
    let now = OffsetDateTime::now_utc();
    let given: Vec<_> = args.ask.url.iter().map(|url| (url.clone(), None)).collect();
    let mut gateways = ask_all(client, given).await;
    let derived = others(&gateways, args.ask.url.first());
    gateways.extend(ask_all(client, derived).await);
    look_again(client, &mut gateways).await;
    let nodes = known_nodes(&gateways);
    let ports = stream::iter(nodes).map(|(node, address)| port(node, address)).buffered(AT_ONCE).collect().await;
    Facts { gateways, ports, identities: identities(args, now), now: Some(now) }
}

async fn ask_all(client: &Client, urls: Vec<(BaseUrl, Option<String>)>) -> Vec<Asked> {
    let asks = stream::iter(urls).map(|(url, expected)| async move {
        let answer = ask(client, &url).await;
        Asked { url: url.to_string(), expected, answer: answer.map_err(|error| format!("{error:#}")) }
    });
    asks.buffered(AT_ONCE).collect().await
}

async fn ask(client: &Client, url: &BaseUrl) -> anyhow::Result<Answer> {
    let timed = client.get(url, "/ha/status").await?;
    let status = picture::read_status(&timed)?;
    Ok(Answer { status, asked_ms: timed.asked_ms, answered_ms: timed.answered_ms, again: None })
}

/// URLs of the nodes that are known and were not asked yet: their mesh host, scheme and port of the first URL.
fn others(asked: &[Asked], first: Option<&BaseUrl>) -> Vec<(BaseUrl, Option<String>)> {
    let answered: BTreeSet<&str> = answers(asked).map(|answer| answer.status.node_name.as_str()).collect();
    let mut found = BTreeSet::new();
    for node in answers(asked).flat_map(|answer| &answer.status.nodes) {
        if !answered.contains(node.name.as_str()) && node.status != "DOWN" {
            found.insert((node.name.clone(), node.address.clone()));
        }
    }
    let url = |address: &str| {
        let (host, _) = address.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        first.map(|first| BaseUrl { host, ..first.clone() })
    };
    found.into_iter().filter_map(|(name, address)| Some((url(&address)?, Some(name)))).collect()
}

pub(super) fn answers(asked: &[Asked]) -> impl Iterator<Item = &Answer> {
    asked.iter().filter_map(|asked| asked.answer.as_ref().ok())
}

/// Every node that any gateway names, with its mesh address.
fn known_nodes(asked: &[Asked]) -> BTreeSet<(String, String)> {
    let nodes = answers(asked).flat_map(|answer| &answer.status.nodes);
    nodes.map(|node| (node.name.clone(), node.address.clone())).collect()
}

/// Asks again where roots differ, since each write makes them differ for a moment.
async fn look_again(client: &Client, gateways: &mut [Asked]) {
    let roots: Vec<_> = answers(gateways).map(|answer| answer.status.roots()).collect();
    if roots.windows(2).all(|pair| pair[0] == pair[1]) {
        return;
    }
    tokio::time::sleep(SECOND_LOOK).await;
    for asked in gateways {
        let (Ok(answer), Ok(url)) = (&mut asked.answer, asked.url.parse::<BaseUrl>()) else { continue };
        answer.again = ask(client, &url).await.ok().map(|again| again.status);
    }
}

async fn port(node: String, address: String) -> Port {
    let addr = match resolve(&address).await {
        Ok(addr) => addr,
        Err(error) => {
            let udp = Udp::Unsent(error.clone());
            return Port { node, address, tcp: Err(error), udp };
        }
    };
    let connect = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(addr)).await;
    let tcp = connect.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(drop);
    let udp = datagram(addr).await.unwrap_or_else(|error| Udp::Unsent(error.to_string()));
    Port { node, address, tcp: tcp.map_err(|error| error.to_string()), udp }
}

async fn resolve(address: &str) -> Result<SocketAddr, String> {
    match tokio::time::timeout(CONNECT_MAX, lookup_host(address)).await {
        Ok(Ok(mut found)) => found.next().ok_or_else(|| "the name has no address".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the name does not resolve in time".to_owned()),
    }
}

/// Sends what only QUIC answers, and tells what came back.
async fn datagram(addr: SocketAddr) -> io::Result<Udp> {
    let any: SocketAddr = if addr.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(addr).await?;
    let own_id: [u8; 8] = rand::random();
    let packet = unknown_version(own_id);
    let mut answer = [0; 1500];
    for _ in 0..DATAGRAMS {
        let sent = socket.send(&packet).await;
        let received = match sent {
            Ok(_) => tokio::time::timeout(ANSWER_MAX, socket.recv(&mut answer)).await,
            Err(error) => Ok(Err(error)),
        };
        match received {
            Ok(Ok(len)) if is_version_negotiation(&answer[..len], own_id) => return Ok(Udp::Quic),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(Udp::Refused),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(_)) | Err(_) => {}
        }
    }
    Ok(Udp::Silent)
}

/// A long header (RFC 9000 §17.2) of a version reserved for this purpose (§15), as long as an Initial must be (§14.1).
fn unknown_version(own_id: [u8; 8]) -> Vec<u8> {
    let mut packet = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8];
    packet.extend(rand::random::<[u8; 8]>());
    packet.push(8);
    packet.extend(own_id);
    packet.resize(1200, 0);
    packet
}

/// Version Negotiation (RFC 9000 §17.2.1) for the packet with this source connection id.
fn is_version_negotiation(packet: &[u8], own_id: [u8; 8]) -> bool {
    packet.len() > 14 && packet[0] & 0x80 != 0 && packet[1..5] == [0; 4] && packet[5] == 8 && packet[6..14] == own_id
}

fn identities(args: &DoctorArgs, now: OffsetDateTime) -> Vec<Files> {
    let in_dir = |dir: &PathBuf| (dir.clone(), IdentityFiles::in_dir(dir));
    let mut found: Vec<_> = args.mesh_tls_dir.iter().map(in_dir).collect();
    if let (Some(certificate), Some(key), Some(authorities)) =
        (&args.mesh_tls_cert, &args.mesh_tls_key, &args.mesh_tls_ca)
    {
        let files =
            IdentityFiles { certificate: certificate.clone(), key: key.clone(), authorities: authorities.clone() };
        found.push((certificate.clone(), files));
    }
    found.into_iter().map(|(name, files)| identity(&name, &files, now)).collect()
}

pub(super) fn identity(name: &Path, files: &IdentityFiles, now: OffsetDateTime) -> Files {
    let text = |error: anyhow::Error| format!("{error:#}");
    let identity = Identity::load(files).map(|identity| Checked {
        fault: identity.check(now).err().map(|error| text(error.into())),
        certificate: identity.certificate().clone(),
    });
    Files { name: name.display().to_string(), identity: identity.map_err(|error| text(error.into())) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn others_are_asked_at_their_mesh_host_and_the_port_of_the_first() {
        let status = crate::cluster::status::tests::status(|body| {
            body["nodes"][1]["address"] = "[fd00::2]:39527".into();
            body["nodes"][2]["status"] = "DOWN".into();
        });
        let answer = Answer { status, ..Answer::default() };
        let asked = [Asked { url: "https://n1:8443".to_owned(), expected: None, answer: Ok(answer) }];
        let found = others(&asked, Some(&"https://n1:8443".parse().unwrap()));
        let found: Vec<_> = found.into_iter().map(|(url, name)| (url.to_string(), name)).collect();
        assert_eq!(found, [("https://[fd00::2]:8443".to_owned(), Some("n2".to_owned()))]);
        assert_eq!(known_nodes(&asked).len(), 3, "ports of nodes that are DOWN are tried too");
    }

    #[test]
    fn only_an_answer_to_our_packet_counts() {
        let own = *b"12345678";
        let packet = unknown_version(own);
        assert_eq!((packet.len(), &packet[14..23]), (1200, &b"\x0812345678"[..]));
        let answer = |version: u8, id: &[u8; 8]| [&[0x80, 0, 0, 0, version, 8][..], id, &[8][..], &[0; 12]].concat();
        for (case, packet, expected) in [
            ("the versions", answer(0, &own), true),
            ("of another packet", answer(0, b"87654321"), false),
            ("another kind", answer(1, &own), false),
            ("short", vec![0x80, 0, 0, 0, 0, 8], false),
        ] {
            assert_eq!(is_version_negotiation(&packet, own), expected, "{case}");
        }
    }

    #[tokio::test]
    async fn datagrams_tell_closed_ports_from_silent_ones() {
        let silent = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
        assert_eq!(datagram(silent.local_addr().unwrap()).await.unwrap(), Udp::Silent);
        let closed = silent.local_addr().unwrap();
        drop(silent);
        assert_eq!(datagram(closed).await.unwrap(), Udp::Refused);
    }
}
