//! Hosts as network namespaces on one bridge, and what can go wrong between them.

use std::{
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

static SETS: AtomicU32 = AtomicU32::new(0);

/// Hosts `node1`, `node2`, … at 10.77.0.1, .2, … on one bridge, each with names for all; gone when dropped.
#[derive(Debug)]
pub struct Hosts {
    id: String,
    count: usize,
}

impl Hosts {
    /// None where namespaces cannot be made; standard error says why. They need root.
    pub fn new(count: usize) -> Option<Self> {
        let id = format!("smg{}x{}", std::process::id() % 100_000, SETS.fetch_add(1, Ordering::Relaxed));
        let hosts = Self { id, count };
        let made = Command::new("sh").args(["-ec", &hosts.script()]).output().ok()?;
        if !made.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&made.stderr));
        }
        made.status.success().then_some(hosts)
    }

    /// Name of the namespace of host `n`; of the switch for 0.
    pub fn name(&self, n: usize) -> String {
        format!("{}n{n}", self.id)
    }

    /// A namespace that is the switch, and one per host, each with `/etc/hosts` of its own.
    fn script(&self) -> String {
        let switch = self.name(0);
        let mut lines = vec![
            format!("ip netns add {switch}"),
            format!("ip -n {switch} link add br0 type bridge"),
            format!("ip -n {switch} link set br0 up"),
        ];
        for n in 1..=self.count {
            let name = self.name(n);
            lines.extend([
                format!("ip netns add {name}"),
                format!("ip -n {name} link set lo up"),
                format!("ip -n {switch} link add v{n} type veth peer name eth0 netns {name}"),
                format!("ip -n {switch} link set v{n} master br0 up"),
                format!("ip -n {name} addr add 10.77.0.{n}/24 dev eth0"),
                format!("ip -n {name} link set eth0 up"),
                format!("mkdir -p /etc/netns/{name}"),
                format!("echo 127.0.0.1 localhost > /etc/netns/{name}/hosts"),
            ]);
            lines.extend((1..=self.count).map(|m| format!("echo 10.77.0.{m} node{m} >> /etc/netns/{name}/hosts")));
        }
        lines.join("\n")
    }

    /// A command that runs `program` on host `n`, or where the switch is, for 0; its process is the program's.
    pub fn command(&self, n: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(n), program]);
        command
    }

    /// What node `n` answers to a GET at its own port 8000; null while it does not.
    pub fn answer(&self, n: usize, path: &str) -> Value {
        let answer = self.command(n, "curl").args(["-s", "-m2", &url(path)]).output().unwrap();
        serde_json::from_slice(&answer.stdout).unwrap_or_default()
    }

    /// Sends a JSON body to node `n`, from its own host.
    #[allow(dead_code, reason = "the suite that speaks HTTP has its own client")]
    pub fn post(&self, n: usize, path: &str, body: &str) {
        let args = ["-sS", "-f", "-m2", "-H", "content-type: application/json", "-d", body, &url(path)];
        let answer = self.command(n, "curl").args(args).output().unwrap();
        assert!(answer.status.success(), "POST {path}: {}", String::from_utf8_lossy(&answer.stderr));
    }

    /// `name=STATUS` of every node of `/ha/status` there.
    pub fn statuses(&self, n: usize) -> Vec<String> {
        let nodes = self.answer(n, "/ha/status")["nodes"].as_array().cloned().unwrap_or_default();
        let text = |node: &Value, key: &str| node[key].as_str().unwrap_or_default().to_owned();
        nodes.iter().map(|node| format!("{}={}", text(node, "name"), text(node, "status"))).collect()
    }
}

fn url(path: &str) -> String {
    format!("http://127.0.0.1:8000{path}")
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let reap = |children: Vec<Child>| children.into_iter().for_each(|mut child| drop(child.wait()));
        let names: Vec<String> = (0..=self.count).map(|n| self.name(n)).collect();
        let delete = |name: &String| Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).spawn().ok();
        reap(names.iter().filter_map(delete).collect());
        for name in names {
            // A host that was never made has none.
            let _ = std::fs::remove_dir_all(format!("/etc/netns/{name}"));
        }
    }
}
