//! The processes of the demo: their flags, their start, their end.

use std::{
    ffi::OsString,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getppid},
};
use serde::Deserialize;
use tokio::process::{Child, Command};

use super::{MODEL, client, ports::Ports};

/// How long a child may take to end after SIGTERM; then it is killed. Exceeds the gateways' drain time of
/// [`GRACE_SECS`].
pub(super) const STOP_WAIT: Duration = Duration::from_secs(8);

/// `--shutdown-grace-period-secs` of the gateways.
const GRACE_SECS: u64 = 5;

/// Lines of each log that are shown after a failure.
const TAIL_LINES: usize = 15;

/// One child.
#[derive(Debug)]
pub(super) struct Process {
    /// `node1` to `node3`, `worker1` to `worker4`.
    pub(super) name: String,
    /// Where clients reach it.
    pub(super) addr: SocketAddr,
    /// Ports of mesh and metrics; workers have none.
    pub(super) mesh_and_metrics: Option<(u16, u16)>,
    args: Vec<String>,
    child: Option<Child>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Cluster {
    gateways: Vec<Process>,
    workers: Vec<Process>,
    executable: PathBuf,
    logs: PathBuf,
}

/// What the demo reads of `/ha/status`.
#[derive(Debug, Deserialize)]
struct Status {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    name: String,
    status: String,
}

impl Cluster {
    /// Chooses ports and starts everything.
    ///
    /// # Errors
    /// When a port is taken, the log folder cannot be made or a process cannot be started. What did start is killed.
    pub(super) fn start(base_port: Option<u16>) -> anyhow::Result<Self> {
        let ports = Ports::choose(base_port)?;
        let executable = std::env::current_exe().context("find the path of this program")?;
        let logs = std::env::temp_dir().join(format!("smg-demo-{}", std::process::id()));
        fs::create_dir_all(&logs).with_context(|| format!("make the log folder {}", logs.display()))?;
        let mut cluster = Self { gateways: gateways(&ports), workers: workers(&ports), executable, logs };
        for process in cluster.workers.iter_mut().chain(&mut cluster.gateways) {
            process.start(&cluster.executable, &cluster.logs)?;
        }
        Ok(cluster)
    }

    pub(super) fn gateways(&self) -> &[Process] {
        &self.gateways
    }

    pub(super) fn workers(&self) -> &[Process] {
        &self.workers
    }

    pub(super) fn logs(&self) -> &Path {
        &self.logs
    }

    /// Waits until every gateway is ready and lists all gateways as ALIVE.
    ///
    /// # Errors
    /// When that takes longer than `wait`, or a process ends meanwhile.
    pub(super) async fn wait_until_ready(&mut self, wait: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + wait;
        loop {
            self.check_alive()?;
            let Some(missing) = self.first_unready().await else { return Ok(()) };
            if Instant::now() >= deadline {
                bail!("not ready within {} s: {missing}", wait.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What keeps the cluster from being whole; none when it is.
    pub(super) async fn first_unready(&self) -> Option<String> {
        for gateway in &self.gateways {
            match client::get(gateway.addr, "/readiness").await {
                Ok(answer) if answer.status.is_success() => {}
                Ok(answer) => return Some(format!("{} answers {} on /readiness", gateway.name, answer.status)),
                Err(error) => return Some(format!("{}: {error:#}", gateway.name)),
            }
            for other in &self.gateways {
                let status = self.status_seen_by(gateway, &other.name).await;
                if status.as_deref() != Some("ALIVE") {
                    return Some(format!("{} sees {} as {status:?}", gateway.name, other.name));
                }
            }
        }
        None
    }

    /// How `/ha/status` of `gateway` lists the node `name`; none when it does not, or does not answer.
    pub(super) async fn status_seen_by(&self, gateway: &Process, name: &str) -> Option<String> {
        let answer = client::get(gateway.addr, "/ha/status").await.ok()?;
        let status: Status = serde_json::from_slice(&answer.body).ok()?;
        status.nodes.into_iter().find(|node| node.name == name).map(|node| node.status)
    }

    /// Kills a gateway as `kill -9` does.
    ///
    /// # Errors
    /// What the system says.
    pub(super) async fn kill(&mut self, gateway: usize) -> anyhow::Result<()> {
        if let Some(mut child) = self.gateways[gateway].child.take() {
            child.kill().await.with_context(|| format!("kill {}", self.gateways[gateway].name))?;
        }
        Ok(())
    }

    /// Starts a killed gateway again with the flags it had.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub(super) fn restart(&mut self, gateway: usize) -> anyhow::Result<()> {
        self.gateways[gateway].start(&self.executable, &self.logs)
    }

    /// Finds a process that ended by itself.
    ///
    /// # Errors
    /// When there is one; the message names it.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        for process in self.workers.iter_mut().chain(&mut self.gateways) {
            if let Some(child) = &mut process.child
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended by itself: {status}", process.name);
            }
        }
        Ok(())
    }

    /// SIGTERM to the gateways, then to the workers, so that requests in flight can end; SIGKILL to what is left.
    pub(super) async fn stop(&mut self) {
        for processes in [&mut self.gateways, &mut self.workers] {
            for process in processes.iter() {
                process.terminate();
            }
            let deadline = tokio::time::Instant::now() + STOP_WAIT;
            for process in processes.iter_mut() {
                let Some(mut child) = process.child.take() else { continue };
                if tokio::time::timeout_at(deadline, child.wait()).await.is_err() {
                    tracing::warn!(node = %process.name, "process did not end on SIGTERM and is killed");
                    // An error means that it ended in between.
                    let _ = child.kill().await;
                }
            }
        }
    }

    /// The last lines of every log.
    pub(super) fn log_tails(&self) -> String {
        self.workers
            .iter()
            .chain(&self.gateways)
            .map(|process| {
                let log = fs::read_to_string(process.log(&self.logs)).unwrap_or_default();
                format!("--- {} ---\n{}", process.name, tail(&log, TAIL_LINES))
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Removes the logs; what cannot be removed stays behind in the temporary folder.
    pub(super) fn remove_logs(&self) {
        let _ = fs::remove_dir_all(&self.logs);
    }
}

impl Process {
    fn log(&self, logs: &Path) -> PathBuf {
        logs.join(format!("{}.log", self.name))
    }

    fn start(&mut self, executable: &Path, logs: &Path) -> anyhow::Result<()> {
        let path = self.log(logs);
        let log = File::options().append(true).create(true).open(&path);
        let log = log.with_context(|| format!("open the log {}", path.display()))?;
        let mut command = Command::new(executable);
        // The caller's settings are meant for a gateway of its own, not for each of these.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SMG_")) {
            command.env_remove(name);
        }
        command
            .args(["demo", "--child-of", &std::process::id().to_string(), "--"])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        self.child = Some(command.spawn().with_context(|| format!("start {}", self.name))?);
        Ok(())
    }

    fn terminate(&self) {
        let pid = self.child.as_ref().and_then(Child::id).and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.map(Pid::from_raw) {
            // An error means that it ended already; it is waited for either way.
            let _ = kill(pid, Signal::SIGTERM);
        }
    }
}

/// Turns this process into a child of the demo `parent` that runs `smg ARGS`; returns only when that fails.
pub(super) fn become_child(parent: i32, args: &[OsString]) -> anyhow::Error {
    use std::os::unix::process::CommandExt as _;
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
        return anyhow::Error::new(error).context("ask for a signal at the end of the demo");
    }
    // The demo may have died before the line above took effect.
    if getppid().as_raw() != parent {
        return anyhow::anyhow!("the demo with process id {parent} is gone (--child-of)");
    }
    let executable = match std::env::current_exe() {
        Ok(executable) => executable,
        Err(error) => return anyhow::Error::new(error).context("find the path of this program"),
    };
    let error = std::process::Command::new(executable).args(args).exec();
    anyhow::Error::new(error).context("run this program again")
}

fn gateways(ports: &Ports) -> Vec<Process> {
    let list = |ports: &[u16], scheme: &str| {
        ports.iter().map(|port| format!("{scheme}127.0.0.1:{port}")).collect::<Vec<_>>().join(",")
    };
    let (peers, workers) = (list(&ports.mesh, ""), list(&ports.workers, "http://"));
    (0..ports.http.len())
        .map(|i| {
            let (http, mesh, metrics) = (ports.http[i], ports.mesh[i], ports.metrics[i]);
            let name = format!("node{}", i + 1);
            let flags = format!(
                "launch --enable-mesh --mesh-server-name {name} --mesh-host 127.0.0.1 --mesh-port {mesh} \
                 --mesh-peer-urls {peers} --host 127.0.0.1 --port {http} --worker-urls {workers} \
                 --prometheus-host 127.0.0.1 --prometheus-port {metrics} \
                 --health-check-interval-secs 1 --shutdown-grace-period-secs {GRACE_SECS}"
            );
            Process::new(name, http, Some((mesh, metrics)), &flags)
        })
        .collect()
}

fn workers(ports: &Ports) -> Vec<Process> {
    ports
        .workers
        .iter()
        .zip(1..)
        .map(|(port, n)| {
            let name = format!("worker{n}");
            let flags = format!(
                "sim-worker --host 127.0.0.1 --port {port} --name {name} --model {MODEL} \
                 --ttft-ms 20 --inter-token-delay-ms 5"
            );
            Process::new(name, *port, None, &flags)
        })
        .collect()
}

impl Process {
    fn new(name: String, port: u16, mesh_and_metrics: Option<(u16, u16)>, flags: &str) -> Self {
        let args = flags.split_whitespace().map(str::to_owned).collect();
        Self { name, addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), mesh_and_metrics, args, child: None }
    }
}

/// The last `lines` lines of `text`.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gateway_knows_all_peers_and_workers() {
        let ports = Ports { http: [1, 2, 3], mesh: [11, 12, 13], metrics: [21, 22, 23], workers: [31, 32, 33, 34] };
        let gateways = gateways(&ports);
        for (gateway, (name, mesh)) in gateways.iter().zip([("node1", "11"), ("node2", "12"), ("node3", "13")]) {
            let value = |flag: &str| gateway.args.iter().skip_while(|arg| *arg != flag).nth(1).map(String::as_str);
            assert_eq!(value("--mesh-server-name"), Some(name));
            assert_eq!(value("--mesh-port"), Some(mesh));
            assert_eq!(value("--mesh-peer-urls"), Some("127.0.0.1:11,127.0.0.1:12,127.0.0.1:13"));
            assert_eq!(value("--worker-urls").map(|urls| urls.split(',').count()), Some(4));
        }
    }

    #[test]
    fn tails_are_the_last_lines() {
        for (case, text, expected) in [("short", "a\nb", "a\nb"), ("long", "a\nb\nc\n", "b\nc"), ("empty", "", "")] {
            assert_eq!(tail(text, 2), expected, "{case}");
        }
    }
}
