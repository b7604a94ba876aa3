//! What the mesh shows at a scrape: members, and the election.

use opentelemetry::{KeyValue, metrics::Meter};

use super::{Source, definitions as def, definitions::Definition, gauge};
use crate::mesh::node::{NodeName, NodeStatus};

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
    let gauges: [(&Definition, Read); 4] = [
        (&def::LIMIT_RATE_HELD, |rights| rights.held.0),
        (&def::LIMIT_BURST_HELD, |rights| rights.held.1),
        (&def::LIMIT_RATE_LENT, |rights| rights.lent.0),
        (&def::LIMIT_BURST_LENT, |rights| rights.lent.1),
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
