//! A cluster of real processes, one per host, and what their logs say of each other.
//!
//! Times are those of the log lines, all of one clock: polling would blur them.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    harness::{Process, SMG},
    hosts::Hosts,
    relay::{Relay, Rules},
};

/// Between two looks at the logs.
const LOOK: Duration = Duration::from_millis(50);

/// One line about a peer.
#[derive(Clone, Debug)]
pub struct Turn {
    pub at: SystemTime,
    pub observer: usize,
    pub peer: usize,
    pub status: String,
    pub reason: String,
}

/// What a cluster differs in from one on a plain bridge.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// A switch in user space, and its zones as `--mesh-zone`.
    pub rules: Option<Rules>,
    /// Further arguments of each process.
    pub args: Vec<String>,
    /// `--mesh-tls`, with a certificate for each node from `smg certs`.
    pub is_tls: bool,
}

/// Hosts 1 to `size`, a process on each unless it was killed.
#[derive(Debug)]
pub struct Cluster {
    pub hosts: Hosts,
    pub size: usize,
    pub relay: Option<Relay>,
    setup: Setup,
    certs: Option<tempfile::TempDir>,
    processes: BTreeMap<usize, Process>,
    /// Turns told by processes that have ended.
    past: Vec<Turn>,
}

impl Cluster {
    /// A cluster in which everybody sees everybody; none, and a word about it, where namespaces cannot be made.
    pub async fn start(size: usize, scenario: &str, setup: Setup) -> Option<Self> {
        let Some(hosts) = Hosts::new(size) else {
            eprintln!("SKIPPED {scenario}: network namespaces need root, ip and nft");
            return None;
        };
        let mut relay = None;
        if let Some(rules) = &setup.rules {
            relay = Relay::start(&hosts, size, rules).await;
            if relay.is_none() {
                eprintln!("SKIPPED {scenario}: the switch in user space needs python3");
                return None;
            }
        }
        let certs = setup.is_tls.then(|| issue_certs(size));
        let mut cluster = Self { hosts, size, relay, setup, certs, processes: BTreeMap::new(), past: Vec::new() };
        for n in 1..=size {
            cluster.spawn(n);
            cluster.nft(n, "add table inet smg");
            cluster.nft(n, "add chain inet smg in { type filter hook input priority 0; }");
            cluster.nft(n, "add chain inet smg out { type filter hook output priority 0; }");
        }
        cluster.wait_for(Duration::from_secs(20), "everybody sees everybody", Cluster::is_whole).await;
        Some(cluster)
    }

    /// Starts the process of host `n`.
    pub fn spawn(&mut self, n: usize) {
        let mut command = self.hosts.command(n, &program());
        command.args(["--enable-mesh", "--mesh-server-name", &format!("node{n}"), "--log-json", "--port", "8000"]);
        command.args(["--mesh-peer-urls", "node1:39527,node2:39527,node3:39527"]);
        command.args(["--shutdown-grace-period-secs", "1", "--drain-settle-secs", "0"]);
        if let Some(rules) = &self.setup.rules {
            command.args(["--mesh-zone", &format!("zone{}", n % rules.zones)]);
        }
        if let Some(certs) = &self.certs {
            command.arg("--mesh-tls").arg("--mesh-tls-dir").arg(certs.path().join(format!("node{n}")));
        }
        command.args(&self.setup.args);
        let process = Process::start_command(&format!("node{n}"), &mut command, &[("RUST_LOG", "info".to_owned())]);
        self.processes.insert(n, process);
    }

    /// `kill -9`.
    pub fn kill(&mut self, n: usize) {
        self.processes.get_mut(&n).unwrap().kill();
        self.retire(n);
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self, n: usize) {
        self.signal(n, Signal::SIGTERM);
        let status = self.processes.get_mut(&n).unwrap().exit(Duration::from_secs(10)).await;
        assert!(status.success(), "node{n} ended with {status}");
        self.retire(n);
    }

    pub fn signal(&self, n: usize, signal: Signal) {
        self.processes[&n].signal(signal);
    }

    pub fn pid(&self, n: usize) -> u32 {
        self.processes[&n].child.id()
    }

    fn retire(&mut self, n: usize) {
        let process = self.processes.remove(&n).unwrap();
        self.past.extend(turns(n, &process.log()));
    }

    /// Whether the mesh runs by mutual TLS.
    pub fn is_tls(&self) -> bool {
        self.certs.is_some()
    }

    /// Runs one `nft` command on host `n`.
    pub fn nft(&self, n: usize, command: &str) -> String {
        let output = self.hosts.command(n, "nft").arg(command).output().unwrap();
        assert!(output.status.success(), "nft {command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What comes to host `n` and matches `rule` is dropped.
    pub fn drop_in(&self, n: usize, rule: &str) {
        self.nft(n, &format!("add rule inet smg in iif eth0 {rule} drop"));
    }

    /// All packets pass again on host `n`.
    pub fn heal(&self, n: usize) {
        self.nft(n, "flush chain inet smg in");
        self.nft(n, "flush chain inet smg out");
    }

    /// Unplugs host `n`, or plugs it in again.
    pub fn link(&self, n: usize, state: &str) {
        self.ip(n, &["link", "set", "eth0", state]);
    }

    /// Runs one `ip` command on host `n`.
    pub fn ip(&self, n: usize, args: &[&str]) {
        let status = self.hosts.command(n, "ip").args(args).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "ip {args:?}");
    }

    /// Every line about a peer since `since`, in order of time.
    pub fn turns_since(&self, since: SystemTime) -> Vec<Turn> {
        let now = self.processes.iter().flat_map(|(n, process)| turns(*n, &process.log()));
        let mut found: Vec<Turn> = self.past.iter().cloned().chain(now).filter(|turn| turn.at >= since).collect();
        found.sort_by_key(|turn| turn.at);
        found
    }

    /// Statuses of the peers in the view of each running process.
    pub fn views(&self) -> BTreeMap<usize, BTreeMap<usize, String>> {
        let view = |(n, process): (&usize, &Process)| {
            (*n, turns(*n, &process.log()).into_iter().map(|turn| (turn.peer, turn.status)).collect())
        };
        self.processes.iter().map(view).collect()
    }

    /// Every running process sees all other running ones as ALIVE.
    pub fn is_whole(&self) -> bool {
        let running: BTreeSet<usize> = self.processes.keys().copied().collect();
        self.views().into_iter().all(|(n, view)| {
            running.iter().all(|peer| *peer == n || view.get(peer).is_some_and(|status| status == "ALIVE"))
        })
    }

    /// Waits until `holds`; how long that took.
    ///
    /// # Panics
    /// When it does not hold in time.
    pub async fn wait_for(&self, within: Duration, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let start = tokio::time::Instant::now();
        let mut tick = tokio::time::interval(LOOK);
        while !holds(self) {
            assert!(start.elapsed() < within, "not within {within:?}: {what}; {:?}", self.views());
            tick.tick().await;
        }
        start.elapsed()
    }

    /// Lets the cluster run for some time.
    pub async fn run_for(&self, time: Duration) {
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + time, time);
        tick.tick().await;
    }

    /// CPU time of process `n` so far, in clock ticks of 10 ms, and its resident set in bytes.
    pub fn usage(&self, n: usize) -> (u64, u64) {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid(n))).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        (ticks, fields[21].parse::<u64>().unwrap() * 4096)
    }
}

/// CPU time limited to a share of one core, of some processes and a busy loop that competes with each.
#[derive(Debug)]
pub struct Quota {
    groups: Vec<std::path::PathBuf>,
    hogs: Vec<std::process::Child>,
    pub means: &'static str,
}

impl Quota {
    /// None where there is no CPU controller.
    pub fn new(pids: &[u32], percent: u32) -> Option<Self> {
        let (root, means) =
            [("/sys/fs/cgroup/cpu", "cgroup v1"), ("/sys/fs/cgroup", "cgroup v2")].into_iter().find(|(root, _)| {
                ["cpu.cfs_quota_us", "cgroup.controllers"]
                    .iter()
                    .any(|file| std::path::Path::new(root).join(file).exists())
            })?;
        let mut quota = Self { groups: Vec::new(), hogs: Vec::new(), means };
        for pid in pids {
            let group = std::path::Path::new(root).join(format!("smg-test-{pid}"));
            std::fs::create_dir_all(&group).ok()?;
            quota.groups.push(group.clone());
            let limit = percent * 1000;
            if means == "cgroup v1" {
                std::fs::write(group.join("cpu.cfs_quota_us"), limit.to_string()).ok()?;
            } else {
                std::fs::write(group.join("cpu.max"), format!("{limit} 100000")).ok()?;
            }
            let hog = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
            let hog_pid = hog.id();
            quota.hogs.push(hog);
            for pid in [*pid, hog_pid] {
                std::fs::write(group.join("cgroup.procs"), pid.to_string()).ok()?;
            }
        }
        Some(quota)
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        for hog in &mut self.hogs {
            let _ = hog.kill();
            let _ = hog.wait();
        }
        for group in &self.groups {
            // The gateway goes back to the root group, or the group could not be removed.
            let pids = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines() {
                let _ = std::fs::write(group.join("../cgroup.procs"), pid);
            }
            let _ = std::fs::remove_dir(group);
        }
    }
}

/// The program under test.
pub fn program() -> String {
    std::env::var("SMG_BIN").unwrap_or_else(|_| SMG.to_owned())
}

/// An authority, and a folder `node1`, `node2`, … of `tls.crt`, `tls.key` and `ca.crt` for each node.
fn issue_certs(size: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let certs = |args: &[&str]| {
        let output = Command::new(program()).arg("certs").args(args).current_dir(&dir).output().unwrap();
        assert!(output.status.success(), "smg certs {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    certs(&["ca", "--out", "ca"]);
    for node in (1..=size).map(|n| format!("node{n}")) {
        certs(&["issue", "--ca", "ca", "--node", &node, "--out", &node]);
    }
    dir
}

fn turns(observer: usize, log: &str) -> Vec<Turn> {
    let turn = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let peer = line["peer"].as_str()?.strip_prefix("node")?.parse().ok()?;
        let at = humantime::parse_rfc3339(line["timestamp"].as_str()?).ok()?;
        let reason = line["reason"].as_str().unwrap_or_default().to_owned();
        Some(Turn { at, observer, peer, status: line["status"].as_str()?.to_owned(), reason })
    };
    log.lines().filter_map(turn).collect()
}
