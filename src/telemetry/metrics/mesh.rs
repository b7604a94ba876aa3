//! What the mesh shows at a scrape: members, and the election.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use opentelemetry::{KeyValue, metrics::Meter};

use super::{Metrics, Source, definitions as def, definitions::Definition, gauge};
use crate::mesh::{
    node::{NodeName, NodeStatus},
    stores::Namespace,
};

/// The mesh at the time of a scrape.
#[derive(Clone, Debug, Default)]
pub struct MeshSample {
    /// Other known nodes, and whether each is ALIVE.
    pub peers: Vec<(NodeName, bool)>,
    /// Known nodes by status, this one included; every status is there.
    pub members: Vec<(NodeStatus, usize)>,
    /// The election; none without the mesh.
    pub election: Option<ElectionSample>,
    /// Limits that the cluster shares; none without the mesh.
    pub rights: Option<RightsSample>,
}

/// Limits that the cluster shares, at the time of a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct RightsSample {
    /// Tokens per second, and at once, that this node holds.
    pub held: (f64, f64),
    /// What nodes may hold of what this node lends as the leader.
    pub lent: (f64, f64),
    /// Requests in flight that this node holds slots for, and that nodes may of what this node lends.
    pub slots: (f64, f64),
    /// What it holds is its local share: no leader lent it.
    pub is_local: bool,
    /// Grants that came into force here, and leases that ran out here.
    pub granted: u64,
    /// Leases that ran out here before they were renewed.
    pub lapsed: u64,
    /// Grants that this node gave as the leader.
    pub lendings: u64,
    /// Holders whose rights this node took back when their lease had run out.
    pub reissued: u64,
}

fn observe_rights(meter: &Meter, source: &Source<MeshSample>) {
    type Read = fn(RightsSample) -> f64;
    let gauges: [(&Definition, Read); 7] = [
        (&def::LIMIT_RATE_HELD, |rights| rights.held.0),
        (&def::LIMIT_BURST_HELD, |rights| rights.held.1),
        (&def::LIMIT_RATE_LENT, |rights| rights.lent.0),
        (&def::LIMIT_BURST_LENT, |rights| rights.lent.1),
        (&def::LIMIT_SLOTS_HELD, |rights| rights.slots.0),
        (&def::LIMIT_SLOTS_LENT, |rights| rights.slots.1),
        (&def::LIMIT_LOCAL, |rights| f64::from(u8::from(rights.is_local))),
    ];
    for (definition, read) in gauges {
        let source = source.clone();
        let gauge = meter.f64_observable_gauge(definition.name).with_description(definition.help);
        let gauge = gauge.with_callback(move |gauge| {
            if let Some(rights) = source.load().as_ref().and_then(|source| source().rights) {
                gauge.observe(read(rights), &[]);
            }
        });
        let _registered = gauge.build();
    }
    let source = source.clone();
    let leases = meter.u64_observable_counter(def::LIMIT_LEASES.name).with_description(def::LIMIT_LEASES.help);
    let leases = leases.with_callback(move |counter| {
        if let Some(rights) = source.load().as_ref().and_then(|source| source().rights) {
            for (event, count) in [
                ("granted", rights.granted),
                ("lapsed", rights.lapsed),
                ("lent", rights.lendings),
                ("reissued", rights.reissued),
            ] {
                counter.observe(count, &[KeyValue::new("event", event)]);
            }
        }
    });
    let _registered = leases.build();
}

/// The election at the time of a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct ElectionSample {
    /// This node leads.
    pub leads: bool,
    /// The newest term known here.
    pub term: u64,
    /// Voters known here.
    pub voters: usize,
    /// A quorum of them is there.
    pub has_quorum: bool,
}

/// Lags are looked at this often; between two looks a scrape counts on.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What replication has told of itself: at most as much as there are peers.
#[derive(Debug, Default)]
pub(super) struct Replication {
    /// Entries and bytes.
    stores: [(AtomicU64, AtomicU64); Namespace::COUNT],
    peers: Mutex<Peers>,
}

#[derive(Debug, Default)]
struct Peers {
    looked_at: Option<Instant>,
    waiting: Vec<(NodeName, Option<Instant>)>,
    /// Seconds ahead of this node, by the last word.
    skews: BTreeMap<NodeName, f64>,
    /// Probes in a row that no datagram answered.
    detours: BTreeMap<NodeName, u32>,
}

impl Replication {
    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Metrics {
    /// `smg_mesh_clock_skew_seconds{peer}`. A peer that is forgotten loses its series.
    pub fn mesh_clock_skew(&self, peer: &NodeName, ahead_ms: i64) {
        self.mesh_replication.peers().skews.insert(peer.clone(), ahead_ms as f64 / 1000.0);
    }

    /// `smg_mesh_probe_detours{peer}`: a probe of the peer was answered, by datagram or by another way. As above.
    pub fn mesh_probed(&self, peer: &NodeName, by_datagram: bool) {
        let mut peers = self.mesh_replication.peers();
        match peers.detours.get_mut(peer) {
            Some(count) if by_datagram => *count = 0,
            Some(count) => *count = count.saturating_add(1),
            None => drop(peers.detours.insert(peer.clone(), u32::from(!by_datagram))),
        }
    }

    /// What `smg_mesh_probe_detours` shows.
    #[must_use]
    pub fn probe_detours(&self) -> BTreeMap<NodeName, u32> {
        self.mesh_replication.peers().detours.clone()
    }

    /// `smg_mesh_replication_lag_seconds{peer}`: who has frames that wait for an ack, and since when. Asked once a second.
    pub fn mesh_replication<'a, I>(&self, now: Instant, waiting: impl FnOnce() -> I)
    where
        I: Iterator<Item = (&'a NodeName, Option<Instant>)>,
    {
        let mut peers = self.mesh_replication.peers();
        if peers.looked_at.is_some_and(|at| now < at + LOOK_INTERVAL) {
            return;
        }
        peers.looked_at = Some(now);
        peers.waiting = waiting().map(|(peer, since)| (peer.clone(), since)).collect();
    }

    /// For how long frames to each peer have been waiting for an ack; zero where none do. As of a second ago at most.
    #[must_use]
    pub fn replication_lags(&self) -> BTreeMap<NodeName, Duration> {
        let lag = |since: &Option<Instant>| since.map_or(Duration::ZERO, |since| since.elapsed());
        let peers = self.mesh_replication.peers();
        peers.waiting.iter().map(|(peer, since)| (peer.clone(), lag(since))).collect()
    }

    /// `smg_mesh_store_entries{store}` and `smg_mesh_store_bytes{store}`.
    pub fn mesh_store(&self, store: Namespace, entries: usize, bytes: usize) {
        let (to_entries, to_bytes) = &self.mesh_replication.stores[store.index()];
        to_entries.store(entries as u64, Ordering::Relaxed);
        to_bytes.store(bytes as u64, Ordering::Relaxed);
    }
}

/// Without the mesh there are no such series.
pub(super) fn observe_replication(meter: &Meter, source: &Source<MeshSample>) -> Arc<Replication> {
    type Read = fn(&(AtomicU64, AtomicU64)) -> &AtomicU64;
    let told = Arc::<Replication>::default();
    let reads: [(&Definition, Read); 2] =
        [(&def::MESH_STORE_ENTRIES, |it| &it.0), (&def::MESH_STORE_BYTES, |it| &it.1)];
    for (definition, read) in reads {
        let (told, source) = (told.clone(), source.clone());
        gauge(meter, definition, move |gauge| {
            let is_mesh = source.load().as_ref().is_some_and(|source| source().election.is_some());
            for store in Namespace::ALL.into_iter().filter(|_| is_mesh) {
                let value = read(&told.stores[store.index()]).load(Ordering::Relaxed);
                gauge.observe(i64::try_from(value).unwrap_or(i64::MAX), &[KeyValue::new("store", store.as_str())]);
            }
        });
    }
    let (skews, known) = (told.clone(), source.clone());
    let builder = meter.f64_observable_gauge(def::MESH_CLOCK_SKEW.name).with_description(def::MESH_CLOCK_SKEW.help);
    let _registered = builder
        .with_callback(move |gauge| {
            let known = known.load().as_ref().map(|source| source().peers).unwrap_or_default();
            let mut peers = skews.peers();
            peers.skews.retain(|peer, _| known.iter().any(|(name, _)| name == peer));
            for (peer, seconds) in &peers.skews {
                gauge.observe(*seconds, &[KeyValue::new("peer", peer.as_str().to_owned())]);
            }
        })
        .build();
    observe_detours(meter, &told, source.clone());
    let lags = told.clone();
    let builder = meter.f64_observable_gauge(def::MESH_LAG.name).with_description(def::MESH_LAG.help);
    let _registered = builder
        .with_callback(move |gauge| {
            for (peer, since) in &lags.peers().waiting {
                let lag = since.map_or(0.0, |since| since.elapsed().as_secs_f64());
                gauge.observe(lag, &[KeyValue::new("peer", peer.as_str().to_owned())]);
            }
        })
        .build();
    told
}

fn observe_detours(meter: &Meter, told: &Arc<Replication>, known: Source<MeshSample>) {
    let told = told.clone();
    gauge(meter, &def::MESH_DETOURS, move |gauge| {
        let known = known.load().as_ref().map(|source| source().peers).unwrap_or_default();
        let mut peers = told.peers();
        peers.detours.retain(|peer, _| known.iter().any(|(name, _)| name == peer));
        for (peer, count) in &peers.detours {
            gauge.observe((*count).into(), &[KeyValue::new("peer", peer.as_str().to_owned())]);
        }
    });
}

fn observe_election(meter: &Meter, source: &Source<MeshSample>) {
    type Read = fn(ElectionSample) -> i64;
    let instruments: [(&Definition, Read); 4] = [
        (&def::MESH_LEADER, |election| election.leads.into()),
        (&def::MESH_TERM, |election| i64::try_from(election.term).unwrap_or(i64::MAX)),
        (&def::MESH_VOTERS, |election| i64::try_from(election.voters).unwrap_or(i64::MAX)),
        (&def::MESH_QUORUM, |election| election.has_quorum.into()),
    ];
    for (definition, read) in instruments {
        let source = source.clone();
        gauge(meter, definition, move |gauge| {
            if let Some(election) = source.load().as_ref().and_then(|source| source().election) {
                gauge.observe(read(election), &[]);
            }
        });
    }
}

pub(super) fn observe_mesh(meter: &Meter, source: &Source<MeshSample>) {
    observe_election(meter, source);
    observe_rights(meter, source);
    let (all, each, members) = (source.clone(), source.clone(), source.clone());
    gauge(meter, &def::MESH_MEMBERS, move |gauge| {
        for (status, count) in members.load().iter().flat_map(|source| source().members) {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            gauge.observe(count, &[KeyValue::new("status", status.as_str())]);
        }
    });
    gauge(meter, &def::MESH_PEERS, move |gauge| {
        if let Some(source) = &*all.load() {
            let alive = source().peers.iter().filter(|(_, is_alive)| *is_alive).count();
            gauge.observe(i64::try_from(alive).unwrap_or(i64::MAX), &[]);
        }
    });
    gauge(meter, &def::MESH_PEER_STATUS, move |gauge| {
        for (peer, is_alive) in each.load().iter().flat_map(|source| source().peers) {
            gauge.observe(is_alive.into(), &[KeyValue::new("peer", peer.as_str().to_owned())]);
        }
    });
}
