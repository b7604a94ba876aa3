//! News that waits to ride on packets: SWIM §4.1.

use std::{cmp::Reverse, collections::BTreeMap};

use super::message::{self, Message, News, PART_BYTES, Peer};

/// Smaller than any news: with less room nothing more is looked for.
const LEAST_BYTES: usize = 30;

/// Times sent, bytes, and age: the least told come first, among them the largest, then the newest.
type Order = (u32, Reverse<usize>, Reverse<u64>);

/// News by order of sending; at most one piece about each node, the newest.
#[derive(Debug, Default)]
pub(super) struct Queue {
    news: BTreeMap<Order, News>,
    orders: BTreeMap<Peer, Order>,
    pushed: u64,
}

impl Queue {
    /// Adds news, instead of older news about the same node.
    pub(super) fn push(&mut self, news: News) {
        if let Some(order) = self.orders.remove(&news.of) {
            self.news.remove(&order);
        }
        self.pushed += 1;
        let order = (0, Reverse(message::bytes(&Message::News(news))), Reverse(self.pushed));
        self.insert(order, news);
    }

    /// As much as fits into `room` bytes; what has been sent `limit` times is dropped.
    pub(super) fn take(&mut self, mut room: usize, limit: u32) -> Vec<News> {
        let mut taken = Vec::new();
        for (order, news) in &self.news {
            if room < LEAST_BYTES {
                break;
            }
            let needed = PART_BYTES + order.1.0;
            if needed <= room {
                room -= needed;
                taken.push((*order, *news));
            }
        }
        for (order, news) in &taken {
            self.news.remove(order);
            self.orders.remove(&news.of);
            if order.0 + 1 < limit {
                self.insert((order.0 + 1, order.1, order.2), *news);
            }
        }
        taken.into_iter().map(|(_, news)| news).collect()
    }

    fn insert(&mut self, order: Order, news: News) {
        self.orders.insert(news.of, order);
        self.news.insert(order, news);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::node::NodeStatus::{Alive, Suspected};

    fn news(of: Peer) -> News {
        News { of, incarnation: 1, status: Suspected, from: 0 }
    }

    fn subjects(queue: &mut Queue, room: usize) -> Vec<Peer> {
        queue.take(room, 3).iter().map(|news| news.of).collect()
    }

    #[test]
    fn swim_4_1_the_least_told_comes_first_and_goes_after_its_last_sending() {
        let one = PART_BYTES + message::bytes(&Message::News(news(1)));
        let mut queue = Queue::default();
        queue.push(news(1));
        queue.push(news(2));
        for (round, expected) in [vec![2], vec![1], vec![2], vec![1], vec![2], vec![1], vec![]].iter().enumerate() {
            assert_eq!(subjects(&mut queue, one), *expected, "round {round}");
        }
    }

    #[test]
    fn newer_news_of_a_node_takes_the_place_of_older() {
        let mut queue = Queue::default();
        queue.push(news(1));
        let refuted = News { incarnation: 2, status: Alive, ..news(1) };
        queue.push(refuted);
        assert_eq!(queue.take(1000, 1), [refuted]);
        assert_eq!(queue.take(1000, 1), []);
    }
}
