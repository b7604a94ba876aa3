//! What overrides what: SWIM §4.2 with the suspicions of Lifeguard §IV.B.

use std::time::Duration;

use super::{Event, Node, Record};
use crate::mesh::{
    node::NodeStatus::{Alive, Down, Suspected},
    sim::memberlist::{
        message::{News, Peer},
        suspicion::Suspicion,
    },
};

impl Node {
    pub(super) fn on_news(&mut self, now: Duration, news: News) {
        match news.status {
            Alive => self.on_alive(now, news.of, news.incarnation),
            Down => self.on_dead(now, news),
            _ => self.on_suspect(now, news),
        }
    }

    /// Whole lists are taken as news; but whom another holds for dead is only suspected here.
    pub(super) fn on_list(&mut self, now: Duration, list: &[News]) {
        for news in list {
            match news.status {
                Alive => self.on_alive(now, news.of, news.incarnation),
                _ => self.on_suspect(now, News { from: self.me, ..*news }),
            }
        }
    }

    /// Word that a node lives counts when it is newer than all that is known.
    pub(super) fn on_alive(&mut self, now: Duration, of: Peer, incarnation: u32) {
        if self.records.len() <= of {
            self.records.resize(of + 1, None);
        }
        match self.records[of] {
            Some(record) if incarnation <= record.incarnation => return,
            Some(_) => {}
            None => self.enlist(of),
        }
        self.suspicions.remove(&of);
        self.set(now, of, Record { incarnation, status: Alive, changed: now });
        self.queue.push(News { of, incarnation, status: Alive, from: of });
    }

    fn on_suspect(&mut self, now: Duration, news: News) {
        let Some(record) = self.record(news.of).filter(|record| record.incarnation <= news.incarnation) else { return };
        let status = record.status;
        if let Some(suspicion) = self.suspicions.get_mut(&news.of) {
            if suspicion.confirm(news.from) {
                self.queue.push(news);
            }
        } else if status == Alive && news.of == self.me {
            self.refute(now, news.incarnation);
        } else if status == Alive {
            self.suspicions.insert(news.of, Suspicion::new(now, self.list.len(), news.from));
            self.set(now, news.of, Record { incarnation: news.incarnation, status: Suspected, changed: now });
            self.queue.push(news);
        }
    }

    fn on_dead(&mut self, now: Duration, news: News) {
        let Some(record) = self.record(news.of).filter(|record| record.incarnation <= news.incarnation) else { return };
        if record.status == Down {
            return;
        }
        if news.of == self.me {
            return self.refute(now, news.incarnation);
        }
        self.suspicions.remove(&news.of);
        self.set(now, news.of, Record { incarnation: news.incarnation, status: Down, changed: now });
        self.queue.push(news);
        self.events.push_back(Event::Down(news.of));
    }

    /// SWIM §4.2: a higher incarnation; Lifeguard §IV.A: and less trust in oneself.
    fn refute(&mut self, now: Duration, accused: u32) {
        self.incarnation = self.incarnation.max(accused) + 1;
        self.note_health(1);
        self.on_alive(now, self.me, self.incarnation);
    }

    /// Suspicions that nobody refuted in time are verdicts.
    pub(super) fn run_suspicions(&mut self, now: Duration) {
        let due = |node: &Self| node.suspicions.iter().find(|(_, s)| s.deadline() <= now).map(|(of, _)| *of);
        while let Some(of) = due(self) {
            let incarnation = self.record(of).map_or(0, |record| record.incarnation);
            self.suspicions.remove(&of);
            self.on_dead(now, News { of, incarnation, status: Down, from: self.me });
        }
    }

    fn set(&mut self, now: Duration, of: Peer, record: Record) {
        let changed = self.record(of).filter(|old| old.status == record.status).map_or(now, |old| old.changed);
        self.records[of] = Some(Record { changed, ..record });
    }
}
