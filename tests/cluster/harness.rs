//! Processes, addresses and waiting.

use std::{
    fs::File,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::machine;

/// The program under test.
pub const SMG: &str = env!("CARGO_BIN_EXE_smg");

static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// Loopback addresses that no other test uses: 127.a.b.1, .2, ….
#[derive(Clone, Copy, Debug)]
pub struct Network(u8, u8);

impl Network {
    pub fn new() -> Self {
        machine::watch();
        let n = std::process::id().wrapping_mul(31).wrapping_add(NETWORKS.fetch_add(1, Ordering::Relaxed));
        Self(16 + u8::try_from(n / 250 % 200).unwrap(), 1 + u8::try_from(n % 250).unwrap())
    }

    /// Address of node `n`, from 1.
    pub fn ip(self, n: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.0, self.1, n)
    }
}

/// A running `smg` process; killed when dropped, its log printed when the test fails.
#[derive(Debug)]
pub struct Process {
    pub child: Child,
    name: String,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Process {
    pub fn start<'a>(name: &str, args: impl IntoIterator<Item = &'a str>, env: &[(&str, String)]) -> Self {
        Self::start_command(name, Command::new(SMG).args(args), env)
    }

    /// Starts any command, in a namespace for instance.
    pub fn start_command(name: &str, command: &mut Command, env: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let out = File::create(&log).unwrap();
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("SMG_") || key.starts_with("POD_")) {
            command.env_remove(key);
        }
        let child = command
            .env("RUST_LOG", "info,smg::mesh=debug")
            .envs(env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Self { child, name: name.to_owned(), log, _dir: dir }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// `kill -9`, and waits until the kernel has taken the process away.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the process to end.
    pub async fn exit(&mut self, within: Duration) -> ExitStatus {
        let child = &mut self.child;
        let mut status = None;
        eventually(within, "the process ends", async || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(120).collect();
            eprintln!("--- log of {} ---", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A gateway and how to talk to it.
#[derive(Debug)]
pub struct Gateway {
    pub process: Process,
    pub name: String,
    pub ip: Ipv4Addr,
    pub http: reqwest::Client,
}

impl Gateway {
    /// Node `n` of `network` with the manual's ports on its own address: HTTP 8000, mesh 39527, metrics 29000.
    pub fn start(network: Network, n: u8, peers: &[u8], more: &[&str]) -> Self {
        Self::start_as(&format!("node{n}"), network, n, peers, more)
    }

    /// The same under another name.
    pub fn start_as(name: &str, network: Network, n: u8, peers: &[u8], more: &[&str]) -> Self {
        Self::start_by(SMG, name, network, n, peers, more)
    }

    /// The same by another build of the program.
    pub fn start_by(program: &str, name: &str, network: Network, n: u8, peers: &[u8], more: &[&str]) -> Self {
        let ip = network.ip(n).to_string();
        let peers = peers.iter().map(|&peer| format!("{}:39527", network.ip(peer))).collect::<Vec<_>>().join(",");
        let mut args = vec!["--enable-mesh", "--mesh-server-name", name, "--mesh-host", &ip, "--mesh-port", "39527"];
        args.extend(["--host", &ip, "--port", "8000", "--prometheus-host", &ip, "--prometheus-port", "29000"]);
        if !peers.is_empty() {
            args.extend(["--mesh-peer-urls", &peers]);
        }
        args.extend(more);
        let process = Process::start_command(name, Command::new(program).args(args), &[]);
        Self::attach(process, name.to_owned(), network.ip(n))
    }

    pub fn attach(process: Process, name: String, ip: Ipv4Addr) -> Self {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).no_proxy().build().unwrap();
        Self { process, name, ip, http }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}:8000{path}", self.ip)
    }

    pub fn metrics_url(&self) -> String {
        format!("http://{}:29000/metrics", self.ip)
    }

    /// Status and body of a GET; nothing while the node does not answer.
    pub async fn get(&self, path: &str) -> Option<(u16, Value)> {
        let answer = self.http.get(self.url(path)).send().await.ok()?;
        Some((answer.status().as_u16(), answer.json().await.ok()?))
    }

    /// The scrape; empty while the node does not answer.
    pub async fn metrics(&self) -> String {
        match self.http.get(self.metrics_url()).send().await {
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// `name=STATUS` of every node in `/ha/status`, sorted; empty while the node does not answer.
    pub async fn statuses(&self) -> Vec<String> {
        let Some((200, status)) = self.get("/ha/status").await else { return Vec::new() };
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let text = |node: &Value, key: &str| node[key].as_str().unwrap_or_default().to_owned();
        let mut found: Vec<String> =
            nodes.iter().map(|node| format!("{}={}", text(node, "name"), text(node, "status"))).collect();
        found.sort();
        found
    }

    /// One chat request; status and body.
    pub async fn chat(&self, model: &str) -> Result<(u16, Value), reqwest::Error> {
        let body = serde_json::json!({"model": model, "messages": [{"role": "user", "content": "hello"}]});
        let answer = self.http.post(self.url("/v1/chat/completions")).json(&body).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let answer = self.http.post(self.url(path)).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
    }

    pub async fn is_ready(&self) -> bool {
        matches!(self.get("/readiness").await, Some((200, _)))
    }
}

/// A simulated worker on port 9000 of address `n`.
pub fn worker(network: Network, n: u8, model: &str, more: &[&str]) -> (Process, String) {
    let ip = network.ip(n).to_string();
    let mut args = vec!["sim-worker", "--host", &ip, "--port", "9000", "--model", model];
    args.extend(more);
    let process = Process::start(&format!("worker{n}"), args.iter().copied(), &[]);
    (process, format!("http://{ip}:9000"))
}

/// The statuses of nodes 1 to `n`, all ALIVE, as [`Gateway::statuses`] gives them.
pub fn all_alive(n: u8) -> Vec<String> {
    (1..=n).map(|n| format!("node{n}=ALIVE")).collect()
}

/// Waits until every gateway lists exactly nodes 1 to `n` as ALIVE.
pub async fn joined(gateways: &[&Gateway], n: u8, within: Duration) {
    for gateway in gateways {
        let what = format!("{} lists {n} ALIVE nodes", gateway.name);
        eventually(within, &what, async || gateway.statuses().await == all_alive(n)).await;
    }
}

/// Polls a condition until it holds.
///
/// # Panics
/// When the deadline passes first.
pub async fn eventually(within: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    while !holds().await {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        tick.tick().await;
    }
    start.elapsed()
}

/// Asks as often as it can for a while, and fails when the answer is ever yes.
pub async fn never_for(span: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < span {
        assert!(!holds().await, "after {:?}: {what}", start.elapsed());
    }
}

/// Seconds as a `Duration`, for short calls.
pub const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
