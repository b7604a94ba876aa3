//! What a script can do to the nodes of a simulated cluster.

use std::{net::SocketAddr, time::Duration};

use super::{Arrival, Cluster, Step};
use crate::mesh::replication::topology::Topology;

impl Cluster {
    /// The names of the node's seeds resolve to `seeds` from now on.
    pub fn reseed(&mut self, index: usize, seeds: &[SocketAddr]) {
        let local = self.local_now(index);
        self.nodes[index].seeds = seeds.to_vec();
        if let Some(swim) = &mut self.nodes[index].swim {
            swim.handle_seeds(local, seeds);
        }
        self.drain(index);
    }

    /// The node starts afresh at `addr`.
    pub fn move_to(&mut self, index: usize, addr: SocketAddr) {
        self.restart(index, Some(addr), Duration::ZERO);
    }

    /// The host dies: silence.
    pub fn crash(&mut self, index: usize) {
        let now = self.now;
        self.network.faults.crashes += 1;
        let node = &mut self.nodes[index];
        node.swim = None;
        node.inbox.clear();
        node.stalled_until = None;
        node.died_at = Some(now);
        node.refuses = false;
    }

    /// The process is killed and its kernel says so: at once to those who dialed a pipe to it, since their connections
    /// are reset, and from then on to whoever sends a datagram.
    pub fn kill(&mut self, index: usize) {
        let dialers = self.dialers_of(index);
        self.crash(index);
        self.nodes[index].refuses = true;
        let addr = self.nodes[index].addr;
        for dialer in dialers {
            let at = self.now + self.network.latency(&mut self.rng);
            self.network.faults.refusals += 1;
            self.push(at, Step::Deliver(self.nodes[dialer].addr, Arrival::Hint(addr)));
        }
    }

    /// Who holds a pipe of its own to node `index`, as the driver dials them: in a ring by name.
    fn dialers_of(&self, index: usize) -> Vec<usize> {
        let mut ring: Vec<_> = self.running().collect();
        ring.sort_by(|a, b| self.nodes[*a].name.cmp(&self.nodes[*b].name));
        let topology = Topology::of(ring.len());
        let dials = |own: &usize| topology.targets(*own, ring.len()).any(|target| ring[target] == index);
        (0..ring.len()).filter(dials).map(|own| ring[own]).collect()
    }

    /// The process starts again under its name: at `addr` or where it was, with a clock `clock_back` behind.
    pub fn restart(&mut self, index: usize, addr: Option<SocketAddr>, clock_back: Duration) {
        self.network.faults.restarts += 1;
        if let Some(addr) = addr {
            self.network.faults.moves += 1;
            self.by_addr.remove(&self.nodes[index].addr);
            self.nodes[index].addr = addr;
        }
        let back_ms = u64::try_from(clock_back.as_millis()).unwrap_or(u64::MAX);
        self.start_node(index, self.wall_ms(index).saturating_sub(back_ms));
    }

    /// The process does not run for `time`; what arrives waits.
    pub fn stall(&mut self, index: usize, time: Duration) {
        self.network.faults.stalls += 1;
        let until = self.now + time;
        let node = &mut self.nodes[index];
        // A second stall that begins in the first, or soon after it, prolongs it.
        let soon = Duration::from_secs(2);
        let from = node.stalled.filter(|(_, until)| *until + soon >= self.now).map_or(self.now, |(from, _)| from);
        let until = node.stalled_until.map_or(until, |earlier| earlier.max(until));
        node.stalled = Some((from, until));
        node.stalled_until = Some(until);
        self.push(until, Step::Wake(index));
    }

    /// The process starts again where it was, with the epoch that it had before and no memory of its incarnations, as
    /// when its clock is coarse or stands still.
    pub fn restart_amnesiac(&mut self, index: usize) {
        self.network.faults.restarts += 1;
        self.network.faults.amnesias += 1;
        self.start_node(index, self.nodes[index].issued.0);
    }

    /// The node's monotonic clock runs at `speed` of the right one from now on.
    pub fn set_speed(&mut self, index: usize, speed: f64) {
        self.network.faults.drifts += 1;
        self.nodes[index].clock = (self.now, self.local_now(index));
        self.nodes[index].speed = speed;
        self.drain(index);
    }

    /// The node's monotonic clock jumps ahead by `step`, as when a virtual machine was suspended.
    pub fn step_clock(&mut self, index: usize, step: Duration) {
        self.network.faults.clock_steps += 1;
        self.nodes[index].clock = (self.now, self.local_now(index) + step);
        self.push(self.now, Step::Wake(index));
    }

    /// The node's wall clock jumps by `step_ms` milliseconds; its next process reads it.
    pub fn step_wall(&mut self, index: usize, step_ms: i64) {
        self.network.faults.clock_steps += 1;
        self.nodes[index].wall_off_ms += step_ms;
    }

    /// The node leaves gracefully; it runs on until it is crashed.
    pub fn leave(&mut self, index: usize) {
        self.network.faults.leaves += 1;
        let local = self.local_now(index);
        if let Some(swim) = &mut self.nodes[index].swim {
            swim.leave(local);
        }
        self.drain(index);
    }

    /// Cuts every path between the two groups.
    pub fn partition(&mut self, left: &[usize], right: &[usize]) {
        for &a in left {
            for &b in right {
                let (a, b) = (self.nodes[a].addr, self.nodes[b].addr);
                self.network.cut(a, b);
                self.network.cut(b, a);
            }
        }
    }
}
