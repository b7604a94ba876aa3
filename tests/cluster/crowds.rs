//! More clients than there is room for, and clients that do not read.

use std::{process::Command, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::harness::{Gateway, Network, Process, SMG, eventually, s, worker};

const LIVENESS: &[u8] = b"GET /liveness HTTP/1.1\r\nHost: g\r\n\r\n";

async fn connect(gateway: &Gateway) -> TcpStream {
    TcpStream::connect((gateway.ip, 8000)).await.unwrap()
}

/// Whether the gateway answers on this connection; else it has hung up.
async fn is_served(stream: &mut TcpStream) -> bool {
    let mut answer = Vec::new();
    let _ = stream.write_all(LIVENESS).await;
    while !answer.ends_with(br#""alive"}"#) {
        match timeout(s(10), stream.read_buf(&mut answer)).await.expect("an answer or an end") {
            Ok(1..) => {}
            _ => return false,
        }
    }
    answer.starts_with(b"HTTP/1.1 200")
}

/// Processor time that the process has used, in hundredths of a second.
fn ticks(process: &Process) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.child.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn refusals(gateway: &Gateway) -> usize {
    gateway.process.log().matches("client connections are refused").count()
}

#[tokio::test]
async fn few_descriptors_bound_the_connections() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let ip = network.ip(1).to_string();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 160; exec \"$0\" \"$@\"", SMG, "--host", &ip, "--port", "8000"]);
    command.args(["--prometheus-host", &ip, "--worker-urls", &url]);
    let process = Process::start_command("node1", &mut command, &[]);
    let gateway = Gateway::attach(process, "node1".to_owned(), network.ip(1));
    eventually(s(10), "ready", async || gateway.is_ready().await).await;

    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..100 {
        let mut stream = connect(&gateway).await;
        if is_served(&mut stream).await { held.push(stream) } else { refused += 1 }
    }
    // The client that asked for readiness may hold one of the 16.
    assert!((15..=16).contains(&held.len()), "{} held, {refused} refused", held.len());
    assert!(is_served(&mut held[0]).await, "those who are in are served");
    let cores = std::thread::available_parallelism().unwrap().get();
    assert!((1..=cores).contains(&refusals(&gateway)), "once a core:\n{}", gateway.process.log());
    held.truncate(5);
    eventually(s(5), "there is room again", async || is_served(&mut connect(&gateway).await).await).await;

    // Now as many as are open: nothing can be accepted any more, and the listeners stay readable.
    let pid = gateway.process.child.id();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let lowered = Command::new("prlimit").args([format!("--pid={pid}"), format!("--nofile={open}:160")]).status();
    assert!(lowered.unwrap().success());
    let before = ticks(&gateway.process);
    let mut waiting = Vec::new();
    for _ in 0..50 {
        waiting.push(connect(&gateway).await);
    }
    for stream in &mut waiting {
        // Some find room, where a descriptor was freed meanwhile, some are hung up on, some wait to be accepted.
        let _ = timeout(Duration::from_millis(200), is_served(stream)).await;
    }
    assert!(is_served(&mut held[0]).await, "those who are in are served");
    let used = ticks(&gateway.process) - before;
    assert!(used < 100, "no busy loop: {used} hundredths of a second");
    assert!(refusals(&gateway) <= cores, "not again within a minute");
}

/// A worker whose streams never end. Counts those that are full up to the client.
async fn endless(listener: TcpListener, full: tokio::sync::mpsc::Sender<()>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let full = full.clone();
        tokio::spawn(async move {
            let mut head = [0; 8192];
            let read = stream.read(&mut head).await.unwrap_or(0);
            if !head[..read].starts_with(b"POST") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
                return;
            }
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let event = format!("10000\r\ndata: {}\n\n\r\n", "x".repeat(0x10000 - 8));
            // 50 MiB.
            for _ in 0..800 {
                if timeout(Duration::from_millis(500), stream.write_all(event.as_bytes())).await.is_err() {
                    let _ = full.send(()).await;
                    let _ = stream.read(&mut [0; 1]).await;
                    return;
                }
            }
        });
    }
}

#[tokio::test]
async fn two_hundred_clients_that_do_not_read_cost_no_memory() {
    const CLIENTS: usize = 200;
    let network = Network::new();
    let listener = TcpListener::bind((network.ip(100), 9000)).await.unwrap();
    let (full, mut is_full) = tokio::sync::mpsc::channel(CLIENTS);
    tokio::spawn(endless(listener, full));
    let url = format!("http://{}:9000", network.ip(100));
    let gateway = Gateway::start(network, 1, &[], &["--worker-urls", &url, "--disable-health-check"]);
    eventually(s(10), "ready", async || gateway.is_ready().await).await;
    let body = r#"{"model":"m","stream":true,"messages":[]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = connect(&gateway).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        clients.push(stream);
    }
    for _ in 0..CLIENTS {
        timeout(s(60), is_full.recv()).await.expect("every stream stops for its client").unwrap();
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process.child.id())).unwrap();
    // Without the pages of the program's file, which are many in a debug build.
    let rss = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let rss_kib: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(rss_kib <= 150 << 10, "{rss_kib} KiB");
    assert!(is_served(&mut connect(&gateway).await).await);
    drop(clients);
}

#[tokio::test]
async fn five_hundred_heads_that_never_end_hinder_nobody() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let gateway = Gateway::start(network, 1, &[], &["--worker-urls", &url]);
    eventually(s(10), "ready", async || gateway.is_ready().await).await;
    let mut clients = Vec::new();
    for _ in 0..500 {
        let mut stream = connect(&gateway).await;
        stream.write_all(b"GET /liveness HTTP/1.1\r\nHost: ").await.unwrap();
        clients.push(stream);
    }
    for _ in 0..20 {
        assert!(is_served(&mut connect(&gateway).await).await);
        assert!(matches!(gateway.chat("m1").await, Ok((200, Value::Object(_)))));
    }
    // Each is told after 10 s.
    for stream in &mut clients {
        let mut answer = [0; 12];
        timeout(s(40), stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 408");
    }
}
