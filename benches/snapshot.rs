//! A joiner that is sent everything, over mutual TLS between two processes on this machine: time, bytes per second, memory
//! of both sides, and what the probes between them feel. Run with `cargo bench --bench snapshot`.
//!
//! The processes run the mesh driver alone, with its real sockets. The wall-clock figures hold for the machine that
//! printed them.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Write},
    net::Ipv4Addr,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use smg::{
    cli,
    mesh::{driver, stores::PolicySpec},
    telemetry::metrics::Metrics,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One run: how many entries of how many bytes, and what is to be reached.
struct Load {
    name: &'static str,
    entries: usize,
    value_bytes: usize,
    goal: &'static str,
}

const LOADS: [Load; 2] = [
    Load {
        name: "join with 100 k entries (20 MB)",
        entries: 100_000,
        value_bytes: 160,
        goal: "≤ 2 s, ≤ 16 MiB extra each",
    },
    Load { name: "stream of 400 MB", entries: 100_000, value_bytes: 4000, goal: "≥ 100 MB/s, probe p99 ≤ 20 ms" },
];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().position(|arg| arg == "--node") {
        Some(at) => node(&args[at + 1..]),
        None => LOADS.iter().for_each(measure),
    }
}

/// A process of the cluster, told what to do by lines.
struct Node {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Node {
    fn start(dir: &Path, name: &str, load: &Load) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--node", name, dir.to_str().unwrap()])
            .args([load.entries.to_string(), load.value_bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{question}").unwrap();
        self.lines.next().unwrap().unwrap()
    }

    fn number(&mut self, question: &str) -> f64 {
        self.ask(question).parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn measure(load: &Load) {
    let dir = tempfile::tempdir().unwrap();
    let now = time::OffsetDateTime::now_utc();
    let authority = smg_certs::Authority::create("smg", 5, now).unwrap();
    for name in ["node1", "node2"] {
        let request = smg_certs::NodeRequest { cluster: "smg".into(), node: name.into(), ..Default::default() };
        let issued = authority.issue(&request, now).unwrap();
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
        let files = smg_certs::IdentityFiles::in_dir(&dir.path().join(name));
        std::fs::write(&files.certificate, issued.chain_pem).unwrap();
        std::fs::write(&files.key, issued.key_pem).unwrap();
        std::fs::write(&files.authorities, authority.bundle_pem()).unwrap();
    }
    let mut donor = Node::start(dir.path(), "node1", load);
    donor.ask("fill");
    let donor_before = donor.number("settled");
    donor.ask("mark");
    let mut joiner = Node::start(dir.path(), "node2", load);
    let join = joiner.ask("join");
    let mut figures = join.split(' ').map(|figure| figure.parse::<f64>().unwrap());
    let mut figure = || figures.next().unwrap();
    let (seconds, stream_seconds, streamed) = (figure(), figure(), figure());
    let probes = [donor.ask("probes"), joiner.ask("probes")];
    let (donor_peak, joiner_peak) = (donor.number("peak"), joiner.number("peak"));
    let joiner_after = joiner.number("settled");
    let streamed_bytes = streamed * (load.value_bytes + 40) as f64;
    println!(
        "{}: {seconds:.2} s from the start of the process, {:.0} MB/s of content while it comes; extra memory: donor {:.1} MiB, \
         joiner {:.1} MiB (goal {})",
        load.name,
        streamed_bytes / stream_seconds / 1e6,
        donor_peak - donor_before,
        joiner_peak - joiner_after,
        load.goal,
    );
    for (side, probes) in ["donor", "joiner"].into_iter().zip(probes) {
        println!("  probes of the {side} meanwhile: {probes}");
    }
}

/// What a process of the cluster does.
fn node(args: &[String]) {
    let [name, dir, entries, value_bytes] = args else { return };
    // As the program itself does: huge pages would count as memory of which nothing is used.
    nix::sys::prctl::set_thp_disable(true).unwrap();
    let (entries, value_bytes): (usize, usize) = (entries.parse().unwrap(), value_bytes.parse().unwrap());
    let n: u8 = if name == "node1" { 1 } else { 2 };
    let ip = |n: u8| Ipv4Addr::new(127, 93, 7, n).to_string();
    let identity = Path::new(dir).join(name);
    let (ip_own, peer) = (ip(n), format!("{}:39527", ip(3 - n)));
    let flags = [
        "smg",
        "--enable-mesh",
        "--mesh-server-name",
        name,
        "--mesh-host",
        &ip_own,
        "--mesh-peer-urls",
        &peer,
        "--mesh-tls-dir",
        identity.to_str().unwrap(),
        "--mesh-probe-interval-ms",
        "50",
        "--mesh-gossip-interval-ms",
        "50",
    ];
    let parsed = cli::parse(flags.iter().map(Into::into), &cli::Environment::default()).unwrap();
    let cli::Invocation::Launch(config) = parsed else { return };
    let config = Arc::new(*config);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let start = Instant::now();
        let metrics = Metrics::new();
        let mesh = driver::start(config, metrics.clone(), None, tokio::sync::watch::channel(Vec::new()).1, None)
            .await
            .unwrap();
        let stdin = std::io::stdin();
        let mut line = String::new();
        let mut mark = Probes::default();
        while stdin.lock().read_line(&mut line).unwrap() > 0 {
            match line.trim() {
                "fill" => {
                    let mut writes = tokio::task::JoinSet::new();
                    for entry in 0..entries {
                        let handle = mesh.handle.clone();
                        let policy = PolicySpec { policy: "random".into(), config_json: value(entry, value_bytes) };
                        writes.spawn(async move { handle.put_policy(format!("model-{entry:08}"), policy).await });
                        if writes.len() >= 5000 {
                            while writes.join_next().await.is_some() {}
                        }
                    }
                    while writes.join_next().await.is_some() {}
                    println!("filled");
                }
                "join" => {
                    // How fast it comes is told by what comes after the first view that shows any.
                    let mut view = mesh.handle.watch();
                    let first = view.wait_for(|view| !view.policies.is_empty()).await.unwrap().policies.len();
                    let begun = start.elapsed();
                    view.wait_for(|view| view.synced && view.policies.len() == entries).await.unwrap();
                    let (all, stream) = (start.elapsed().as_secs_f64(), (start.elapsed() - begun).as_secs_f64());
                    println!("{all} {stream} {}", entries - first);
                }
                // Until the allocator has given back what it holds for later.
                "settled" => {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    println!("{}", memory_mib("VmRSS:"));
                    std::fs::write("/proc/self/clear_refs", "5").unwrap();
                }
                "peak" => println!("{}", memory_mib("VmHWM:")),
                "mark" => {
                    mark = Probes::of(&metrics.encode());
                    println!("marked");
                }
                "probes" => println!("{}", Probes::of(&metrics.encode()).since(&mark)),
                _ => return,
            }
            line.clear();
        }
    });
}

/// JSON with numbers that do not repeat.
fn value(entry: usize, bytes: usize) -> String {
    let mut text = String::from("{\"weights\":[");
    let mut n = entry as u64 + 1;
    while text.len() < bytes {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(&format!("{},", n >> 33));
    }
    text.pop();
    text.push_str("]}");
    text
}

fn memory_mib(what: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Probe round trips and suspicions, as a scrape shows them.
#[derive(Default)]
struct Probes {
    /// Upper bounds in seconds, and how many round trips took no longer.
    buckets: Vec<(f64, f64)>,
    suspicions: f64,
}

impl Probes {
    fn of(scrape: &str) -> Self {
        let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        let bound = |line: &str| line.split("le=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
        let buckets = scrape.lines().filter(|line| line.starts_with("smg_mesh_probe_rtt_seconds_bucket"));
        let suspicions = scrape.lines().filter(|line| line.starts_with("smg_mesh_suspicions_total{"));
        Self {
            buckets: buckets.map(|line| (bound(line), value(line))).collect(),
            suspicions: suspicions.map(value).sum(),
        }
    }

    /// What came since an earlier scrape: how many, and bounds of their quantiles.
    fn since(&self, mark: &Self) -> String {
        let before = |index: usize| mark.buckets.get(index).map_or(0.0, |(_, count)| *count);
        let counts = self.buckets.iter().enumerate().map(|(index, (bound, count))| (*bound, count - before(index)));
        let counts: Vec<(f64, f64)> = counts.collect();
        let total = counts.last().map_or(0.0, |(_, count)| *count);
        let quantile = |share: f64| {
            let (bound, _) = counts.iter().find(|(_, count)| *count >= share * total).unwrap();
            bound * 1000.0
        };
        let (p50, p99, max) = (quantile(0.5), quantile(0.99), quantile(1.0));
        let suspicions = self.suspicions - mark.suspicions;
        format!("{total} answered, p50 ≤ {p50} ms, p99 ≤ {p99} ms, max ≤ {max} ms; {suspicions} suspicions")
    }
}
