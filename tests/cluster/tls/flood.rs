//! Strangers without a certificate who shake hands as fast as they can: what they cost, and that the detector stays what
//! it is. `SMG_HANDSHAKES` is how many a second (default 200, half of them on each plane), `SMG_HANDSHAKE_SECS` how long.
//! A rate that is asked for must be reached, and nobody may be suspected falsely; by default, beside other tests, the flood
//! is what the machine leaves of it, and nobody may be called DOWN falsely.
//!
//! The strangers run at a low priority on a thread of their own: on a machine with few cores they would otherwise take
//! from the nodes not what handshakes cost those, but what it costs to make them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::JoinHandle,
};

use quinn::{Endpoint, crypto::rustls::QuicClientConfig};
use rustls::ClientConfig;
use smg_certs::{Authority, IdentityFiles, Material, NodeRequest};
use time::OffsetDateTime;

use super::{strangers::shake_stream, *};

/// Whether the flood is asked for, on a machine that is quiet but for it.
fn is_asked_for() -> bool {
    std::env::var_os("SMG_HANDSHAKES").is_some()
}

/// Longest time from a `kill -9` to DOWN everywhere during the flood: 4 s as on a quiet machine when the flood is asked for,
/// more when other tests share the processors.
fn down_within() -> std::time::Duration {
    if is_asked_for() { s(4) } else { s(8) }
}

/// Handshakes a second that must have been begun until the kill.
fn least(rate: u64, secs: u64) -> f64 {
    // By default at least as many as are meant for one second, so that there was a flood at all.
    if is_asked_for() { 0.95 * rate as f64 } else { rate as f64 / secs as f64 }
}

/// Addresses of the strangers on the datagram plane.
const ENDPOINTS: usize = 8;

/// What the strangers are less important by than the nodes: a tenth of the share.
const NICE: i32 = 10;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// An identity that the cluster does not trust, although it trusts the cluster.
fn foreign(trusted: &str) -> Arc<Material> {
    let (dir, now) = (tempfile::tempdir().unwrap(), OffsetDateTime::now_utc());
    let other = Authority::create("smg", 5, now).unwrap();
    let request = NodeRequest { cluster: "smg".into(), node: "node2".into(), days: Some(5), ..NodeRequest::default() };
    let issued = other.issue(&request, now).unwrap();
    let files = IdentityFiles::in_dir(dir.path());
    std::fs::write(&files.certificate, issued.chain_pem).unwrap();
    std::fs::write(&files.key, issued.key_pem).unwrap();
    std::fs::write(&files.authorities, format!("{trusted}{}", other.bundle_pem())).unwrap();
    Material::open(files, now).unwrap()
}

/// Strangers that come to one node by turns on both planes, until told to end or dropped.
struct Flood {
    begun: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    fn start(from: Ipv4Addr, target: SocketAddr, material: Arc<Material>, rate: u64) -> Self {
        let (begun, is_over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counted, ends) = (begun.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            // The priority of this thread alone (sched(7)).
            rustix::process::nice(NICE).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(flood(from, target, &material, rate, &counted, &ends));
        });
        Self { begun, is_over, thread: Some(thread) }
    }

    /// How many handshakes were begun so far.
    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Ends it, and fails when it has failed.
    fn finish(mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().expect("taken here alone").join().unwrap();
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

async fn flood(
    from: Ipv4Addr,
    target: SocketAddr,
    material: &Arc<Material>,
    rate: u64,
    begun: &AtomicU64,
    is_over: &AtomicBool,
) {
    let anonymous = |alpn: &[u8]| {
        let mut config = material.client_config(&[alpn]);
        config.client_auth_cert_resolver = Arc::new(Anonymous);
        config
    };
    let streams: Arc<ClientConfig> = Arc::new(anonymous(b"h2"));
    let datagrams = QuicClientConfig::try_from(anonymous(b"smg-mesh/1")).unwrap();
    let datagrams = quinn::ClientConfig::new(Arc::new(datagrams));
    let endpoints: Vec<Endpoint> = (0..ENDPOINTS).map(|_| Endpoint::client((from, 0).into()).unwrap()).collect();
    let mut tick = tokio::time::interval(s(1) / u32::try_from(rate).unwrap());
    while !is_over.load(Ordering::Relaxed) {
        tick.tick().await;
        let number = begun.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(2) {
            tokio::spawn(shake_stream(streams.clone(), target));
            continue;
        }
        let endpoint = &endpoints[usize::try_from(number).unwrap() / 2 % ENDPOINTS];
        let connecting = endpoint.connect_with(datagrams.clone(), target, "nobody").unwrap();
        tokio::spawn(async move {
            if let Ok(connection) = connecting.await {
                let _ = tokio::time::timeout(s(1), connection.closed()).await;
            }
        });
    }
}

/// Seconds of a core that a process has used so far (proc_pid_stat(5), fields 14 and 15, in hundredths).
fn cpu_secs(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_leaves_the_detector_what_it_is() {
    let (rate, secs) = (setting("SMG_HANDSHAKES", 200), setting("SMG_HANDSHAKE_SECS", 5));
    let dir = tempfile::tempdir().unwrap();
    certs(dir.path(), "ca --out ca");
    for n in 1..=3 {
        certs(dir.path(), &format!("issue --ca ca --node node{n} --out node{n}"));
    }
    let trusted = std::fs::read_to_string(dir.path().join("ca/ca.crt")).unwrap();
    let network = Network::new();
    let mut nodes: Vec<Gateway> =
        [1, 2, 3].iter().map(|&n| start(network, dir.path(), n, &[1, 2, 3], &format!("node{n}"))).collect();
    joined(&nodes.iter().collect::<Vec<_>>(), 3, s(15)).await;

    let pids = [nodes[0].process.child.id(), nodes[1].process.child.id(), std::process::id()];
    let used = pids.map(cpu_secs);
    let flood = Flood::start(network.ip(9), (network.ip(1), 39527).into(), foreign(&trusted), rate);
    let (since, mut tick) = (Instant::now(), tokio::time::interval(std::time::Duration::from_millis(100)));
    while since.elapsed() < s(secs) {
        for node in &nodes {
            lists_all(node, 3, is_asked_for() || is_strict(), &format!("after {:?}", since.elapsed())).await;
        }
        tick.tick().await;
    }
    let [flooded, other, strangers] = [0, 1, 2].map(|i| (cpu_secs(pids[i]) - used[i]) / since.elapsed().as_secs_f64());
    let per_second = flood.begun() as f64 / since.elapsed().as_secs_f64();
    eventually(s(30), "strangers are refused on both planes", async || {
        let metrics = nodes[0].metrics().await;
        count(&metrics, "grpc", "no_certificate") > 0 && count(&metrics, "datagram", "no_certificate") > 0
    })
    .await;
    nodes[2].process.kill();
    let killed = Instant::now();
    for node in &nodes[..2] {
        eventually(down_within().saturating_sub(killed.elapsed()), "the others see that node3 is gone", async || {
            node.statuses().await == ["node1=ALIVE", "node2=ALIVE", "node3=DOWN"]
        })
        .await;
    }
    let took = killed.elapsed();
    flood.finish();
    let metrics = nodes[0].metrics().await;
    let refused = |plane| count(&metrics, plane, "no_certificate");
    let crowded = count(&metrics, "grpc", "too_many_connections");
    let suspicions = total(&metrics, "smg_mesh_suspicions_total");
    eprintln!(
        "{per_second:.0} of {rate} handshakes/s for {secs} s: {} refused on grpc ({crowded} without a place), {} on datagrams; \
         cores used: node1 {flooded:.2}, node2 {other:.2}, strangers {strangers:.2}; DOWN everywhere after {took:?}; \
         {suspicions} suspicions",
        refused("grpc"),
        refused("datagram"),
    );
    assert!(per_second >= least(rate, secs), "{per_second:.0} of {rate} handshakes/s: the strangers lack processors");
    for node in &nodes[..2] {
        called_down(node, &["node3"], "during the flood");
        let falsely = total(&node.metrics().await, "smg_mesh_false_suspicions_total");
        assert!(falsely == 0.0 || !(is_asked_for() || is_strict()), "{}: {falsely} false suspicions", node.name);
    }
}
