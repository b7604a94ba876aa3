//! Nodes that save what they hold, and crash at any point of that.

use super::{Cluster, Node};
use crate::mesh::{
    saved::{Batch, Saver},
    sim::disk::Disk,
    stores::Stores,
};

/// A disk, and how far its node has come with saving.
#[derive(Debug)]
pub(super) struct Saving {
    disk: Disk,
    saver: Saver,
    pub(super) batch_bytes: usize,
    /// The batch that is being written.
    out: Option<Batch>,
}

impl Saving {
    fn new(disk: Disk, batch_bytes: usize, stores: &mut Stores) -> Self {
        let saver = Saver::new(stores).with_batch_bytes(batch_bytes);
        Self { disk, saver, batch_bytes, out: None }
    }
}

impl Cluster {
    /// Gives a node an empty disk, to which [`save`](Self::save) writes batches of about `batch_bytes`.
    pub fn give_disk(&mut self, node: usize, batch_bytes: usize) {
        let Node { stores, saving, .. } = &mut self.nodes[node];
        *saving = Some(Saving::new(Disk::default(), batch_bytes, stores));
    }

    /// Takes up to `steps` steps of saving, each of which begins or ends the writing of one batch; whether all that the
    /// node holds is on its disk then. `false` without a disk.
    pub fn save(&mut self, node: usize, steps: usize) -> bool {
        let Node { stores, saving: Some(saving), .. } = &mut self.nodes[node] else { return false };
        for _ in 0..steps {
            match saving.out.take() {
                Some(batch) => {
                    saving.disk.save(batch);
                    saving.saver.handle_saved();
                }
                None => saving.out = saving.saver.poll_batch(stores),
            }
        }
        saving.out.is_none() && !saving.saver.wants_to_save(stores)
    }

    /// A node crashes, and starts again with what its disk holds: all that was written, and of the batch that was on its
    /// way all or nothing. Without a disk it starts with empty state.
    ///
    /// # Panics
    /// When the disk holds what cannot be read or joined: for tests.
    pub fn crash(&mut self, node: usize, last_batch_lands: bool) {
        let Some(Saving { mut disk, batch_bytes, out, .. }) = self.nodes[node].saving.take() else {
            return self.restart(node);
        };
        if let Some(batch) = out.filter(|_| last_batch_lands) {
            disk.save(batch);
        }
        let (mut process, wall_ms) = (self.boot(node, true), self.wall_ms_of(node));
        let saved = disk.saved().unwrap_or_else(|error| panic!("n{node} cannot read its disk: {error}"));
        let joined = saved.restore(&mut process.stores, wall_ms);
        joined.unwrap_or_else(|error| panic!("n{node} cannot join its disk: {error}"));
        process.epoch_ms = process.stores.epoch_ms();
        process.saving = Some(Saving::new(disk, batch_bytes, &mut process.stores));
        self.replace(node, process);
    }
}
