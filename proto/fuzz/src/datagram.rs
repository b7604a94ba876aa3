//! Datagrams of membership, fed to a running machine that knows live, suspected and dead members.
//!
//! The first byte of the input says which path the packet takes, whether it comes from a member or a stranger, and how
//! much time passes before it; the rest is the packet.

use std::{
    cell::RefCell,
    net::SocketAddr,
    time::{Duration, Instant},
};

use smg::mesh::{
    node::NodeStatus,
    swim::{
        Swim, SwimConfig, Via,
        config::MEMBERS_MAX,
        message::{Body, DATAGRAM_BYTES_MAX, Packet, Update},
    },
    wire::membership,
};

/// A machine serves this many inputs before a fresh one takes its place, so that a finding needs few of them.
const INPUTS_PER_MACHINE: u32 = 64;

struct Running {
    swim: Swim,
    now: Instant,
    inputs: u32,
}

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

pub(super) fn run(input: &[u8]) {
    let [how, packet @ ..] = input else { return };
    RUNNING.with_borrow_mut(|slot| {
        let running = slot.get_or_insert_with(Running::fresh);
        running.take(*how, packet);
        if running.inputs == INPUTS_PER_MACHINE {
            *slot = None;
        }
    });
}

impl Running {
    fn fresh() -> Self {
        let now = Instant::now();
        let mut swim = node("a", 1, now);
        let members = [("b", NodeStatus::Alive, 2), ("c", NodeStatus::Suspected, 3), ("d", NodeStatus::Down, 4)];
        let updates = members.map(|(name, status, last)| update(name, status, last));
        let node = "b".parse().expect("a name");
        let body = Body::Gossip { seq: 0 };
        let packet = Packet { node, epoch_ms: 500, incarnation: 0, body, updates: updates.into() };
        let taken = swim.handle_datagram(now, addr(2), Via::Datagram, &membership::encode("smg", &packet));
        taken.expect("a packet of this cluster");
        drain(&mut swim);
        Self { swim, now, inputs: 0 }
    }

    /// As the driver does it: the packet, then the timers that are due, and everything that waits after each.
    fn take(&mut self, how: u8, packet: &[u8]) {
        self.now += Duration::from_millis(u64::from(how >> 2) * 20);
        let via = if how & 1 == 0 { Via::Datagram } else { Via::Stream };
        let from = if how & 2 == 0 { addr(2) } else { addr(99) };
        let known = self.swim.members().count();
        let taken = self.swim.handle_datagram(self.now, from, via, packet);
        assert!(taken.is_ok() || self.swim.members().count() == known, "what is refused changes nothing");
        drain(&mut self.swim);
        if self.swim.poll_timeout().is_some_and(|due| due <= self.now) {
            self.swim.handle_timeout(self.now);
            drain(&mut self.swim);
            assert!(self.swim.poll_timeout().is_none_or(|due| due > self.now), "timers that fired are not due again");
        }
        assert!(self.swim.members().count() <= MEMBERS_MAX, "the list is bounded");
        self.inputs += 1;
    }
}

/// What three machines send each other while they meet, while one of them is silent, and while another leaves.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let start = Instant::now();
    let mut nodes: Vec<Swim> = [("a", 1), ("b", 2), ("c", 3)].map(|(name, last)| node(name, last, start)).into();
    nodes[0].handle_seeds(start, &[addr(2)]);
    nodes[2].handle_seeds(start, &[addr(2)]);
    let mut seeds = Vec::new();
    for step in 0..800_u32 {
        let now = start + Duration::from_millis(10) * step;
        if step == 700 {
            nodes[1].leave(now);
        }
        for at in 0..nodes.len() {
            if nodes[at].poll_timeout().is_some_and(|due| due <= now) {
                nodes[at].handle_timeout(now);
            }
            while let Some(transmit) = nodes[at].poll_transmit() {
                let is_silent = |at: usize| at == 2 && step > 200;
                let to = (0..nodes.len()).find(|to| transmit.to == addr_of(*to) && !is_silent(*to) && !is_silent(at));
                if let Some(to) = to {
                    let _ = nodes[to].handle_datagram(now, addr_of(at), transmit.via, &transmit.payload);
                }
                // 40 ms pass before each.
                let how = 2 << 2 | u8::from(transmit.via == Via::Stream);
                seeds.push([&[how], &transmit.payload[..]].concat());
            }
            while nodes[at].poll_event().is_some() {}
        }
    }
    seeds
}

fn addr_of(at: usize) -> SocketAddr {
    addr(u8::try_from(at).expect("three nodes") + 1)
}

fn addr(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 39527))
}

fn node(name: &str, last: u8, now: Instant) -> Swim {
    let config = SwimConfig::new(name.parse().expect("a name"), addr(last), 1000);
    Swim::new(config, now, u64::from(last))
}

fn update(name: &str, status: NodeStatus, last: u8) -> Update {
    Update {
        name: name.parse().expect("a name"),
        status,
        epoch_ms: 500,
        incarnation: 0,
        addr: addr(last),
        host: String::new(),
        zone: String::new(),
        age: Duration::ZERO,
        accusers: Vec::new(),
    }
}

fn drain(swim: &mut Swim) {
    while let Some(transmit) = swim.poll_transmit() {
        let fits = transmit.via == Via::Stream || transmit.payload.len() <= DATAGRAM_BYTES_MAX;
        assert!(fits, "datagrams fit their path");
        membership::decode("smg", &transmit.payload).expect("what is sent can be read");
    }
    while swim.poll_event().is_some() {}
}
