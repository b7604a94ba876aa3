//! Datagrams of membership, fed to a running machine that knows live, suspected and dead members.
//!
//! The first byte of the input says which path the packet takes, whether it comes from a member or a stranger, and how
//! much time passes before and after it; the rest is the packet.
#![no_main]

use std::{
    cell::RefCell,
    net::SocketAddr,
    time::{Duration, Instant},
};

use libfuzzer_sys::fuzz_target;
use smg::mesh::{
    node::NodeStatus,
    swim::{
        Swim, SwimConfig, Via,
        message::{Body, Packet, Update},
    },
    wire::membership,
};

/// A machine serves this many inputs before a fresh one takes its place, so that a finding needs few of them.
const INPUTS_PER_MACHINE: u32 = 64;

thread_local! {
    static MACHINE: RefCell<Option<(Swim, Instant, u32)>> = const { RefCell::new(None) };
}

fn addr(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 39527))
}

fn machine(now: Instant) -> Swim {
    let me = "a".parse().expect("a name");
    let mut swim = Swim::new(SwimConfig::new(me, addr(1), 1000), now, 1);
    let members = [("b", NodeStatus::Alive, 2), ("c", NodeStatus::Suspected, 3), ("d", NodeStatus::Down, 4)];
    let updates = members.map(|(name, status, last)| Update {
        name: name.parse().expect("a name"),
        status,
        epoch_ms: 500,
        incarnation: 0,
        addr: addr(last),
        host: String::new(),
        zone: String::new(),
        age: Duration::ZERO,
        accusers: Vec::new(),
    });
    let node = "b".parse().expect("a name");
    let hello = Packet { node, epoch_ms: 500, incarnation: 0, body: Body::Gossip { seq: 0 }, updates: updates.into() };
    let taken = swim.handle_datagram(now, addr(2), Via::Datagram, &membership::encode("smg", &hello));
    taken.expect("a packet of this cluster");
    swim
}

fn drain(swim: &mut Swim) {
    while let Some(transmit) = swim.poll_transmit() {
        assert!(transmit.via == Via::Stream || transmit.payload.len() <= 1200, "datagrams fit their path");
    }
    while swim.poll_event().is_some() {}
}

fuzz_target!(|input: &[u8]| {
    let [how, packet @ ..] = input else { return };
    MACHINE.with_borrow_mut(|slot| {
        let (swim, now, inputs) = slot.get_or_insert_with(|| {
            let now = Instant::now();
            (machine(now), now, 0)
        });
        *now += Duration::from_millis(u64::from(how >> 2) * 20);
        let via = if how & 1 == 0 { Via::Datagram } else { Via::Stream };
        let from = if how & 2 == 0 { addr(2) } else { addr(99) };
        let _ = swim.handle_datagram(*now, from, via, packet);
        drain(swim);
        if swim.poll_timeout().is_some_and(|due| due <= *now) {
            swim.handle_timeout(*now);
            drain(swim);
        }
        assert!(swim.members().count() <= smg::mesh::swim::config::MEMBERS_MAX, "the list is bounded");
        *inputs += 1;
        if *inputs == INPUTS_PER_MACHINE {
            *slot = None;
        }
    });
});
