//! A disk that keeps each batch whole, as the file of `--mesh-data-dir` does.

use std::collections::BTreeMap;

use crate::mesh::{
    crdt::dot::Key,
    saved::{Batch, Saved, SavedNamespace},
    stores::Namespace,
    wire::{replication::DecodeError, saved},
};

/// What was saved. As large as that.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub(in crate::mesh) keys: [BTreeMap<Key, Vec<u8>>; Namespace::COUNT],
    pub(in crate::mesh) contexts: [Vec<u8>; Namespace::COUNT],
}

impl Disk {
    /// Writes one batch.
    pub fn save(&mut self, batch: Batch) {
        for part in batch.parts {
            let keys = &mut self.keys[part.namespace.index()];
            if let Some((from, to)) = part.replaces {
                keys.retain(|key, _| *key < from || to.as_ref().is_some_and(|to| key >= to));
            }
            part.removes.iter().for_each(|key| drop(keys.remove(key)));
            keys.extend(part.puts);
            if let Some(context) = part.context {
                self.contexts[part.namespace.index()] = context;
            }
        }
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When something was written that is not of the form that [`Saver`](crate::mesh::saved::Saver) writes.
    pub fn saved(&self) -> Result<Saved, DecodeError> {
        let read = |namespace: Namespace| {
            let context = saved::decode_context(&self.contexts[namespace.index()])?;
            let keys = self.keys[namespace.index()].values().map(|bytes| saved::decode_key(bytes));
            Ok(SavedNamespace { namespace, context, keys: keys.collect::<Result<_, DecodeError>>()? })
        };
        Ok(Saved { namespaces: Namespace::ALL.into_iter().map(read).collect::<Result<_, DecodeError>>()? })
    }
}
