//! Clients whose request comes while the gateway has no processor, on connections that are past their time when it goes on.

use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    harness::{Gateway, Network, eventually, s},
    serving_tls::Pki,
};

trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Duplex for S {}

/// As many as wait, so that one that is served by luck does not hide the others.
const CLIENTS: usize = 8;

/// A connection may be without a first request for 10 s.
#[tokio::test]
async fn a_request_that_came_during_a_stall_is_served() {
    let (network, pki) = (Network::new(), Pki::new());
    pki.issue("gw", network.ip(2), 5);
    let (cert, key) = (pki.path("gw.crt"), pki.path("gw.key"));
    let plain = Gateway::start(network, 1, &[], &[]);
    let secure = Gateway::start(network, 2, &[], &["--tls-cert-path", &cert, "--tls-key-path", &key]);
    for port in [(plain.ip, 8000), (secure.ip, 8000)] {
        eventually(s(10), "it listens", async || TcpStream::connect(port).await.is_ok()).await;
    }
    let mut clients: Vec<Box<dyn Duplex>> = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Box::new(TcpStream::connect((plain.ip, 8000)).await.unwrap()));
        clients.push(Box::new(pki.connect(&secure, b"http/1.1").await.0));
    }
    let is_silent = async |clients: &mut [Box<dyn Duplex>], span| {
        assert!(timeout(span, clients[0].read_u8()).await.is_err(), "it is open, and nothing is said");
    };
    is_silent(&mut clients, s(9)).await;
    for gateway in [&plain, &secure] {
        gateway.process.signal(Signal::SIGSTOP);
    }
    for client in &mut clients {
        client.write_all(b"GET /liveness HTTP/1.1\r\nHost: g\r\n\r\n").await.unwrap();
        client.flush().await.unwrap();
    }
    is_silent(&mut clients, s(2)).await;
    for gateway in [&plain, &secure] {
        gateway.process.signal(Signal::SIGCONT);
    }
    for client in &mut clients {
        let mut status = [0; 12];
        timeout(s(10), client.read_exact(&mut status)).await.unwrap().unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
    }
}
