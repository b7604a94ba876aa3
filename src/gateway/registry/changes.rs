//! What differs between two lists of workers.

use std::{cmp::Ordering, sync::Arc};

use crate::mesh::stores::{WorkerId, WorkerView};

/// How the second list came from the first.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes<'a> {
    /// In the first alone.
    pub(super) gone: Vec<&'a WorkerId>,
    /// In the second alone, or not as in the first.
    pub(super) new: Vec<&'a Arc<WorkerView>>,
}

impl<'a> Changes<'a> {
    /// Compares lists sorted by id, in one walk: with thousands of workers a view comes a hundred times a second while
    /// anything changes, and nearly all of it is the same allocation as before, which takes no look inside.
    pub(super) fn between(old: &'a [Arc<WorkerView>], new: &'a [Arc<WorkerView>]) -> Self {
        let mut changes = Self::default();
        let (mut was, mut is) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (was.peek(), is.peek()) {
                (Some(was), Some(is)) if Arc::ptr_eq(was, is) => Ordering::Equal,
                (Some(was), Some(is)) => was.id.cmp(&is.id),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return changes,
            };
            let before = if order.is_le() { was.next() } else { None };
            let after = if order.is_ge() { is.next() } else { None };
            match (before, after) {
                (Some(before), None) => changes.gone.push(&before.id),
                (Some(before), Some(after)) if Arc::ptr_eq(before, after) || before == after => {}
                (_, after) => changes.new.extend(after),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::mesh::stores::{WorkerOrigin, WorkerSpec};

    fn worker(id: u8, zone: &str) -> Arc<WorkerView> {
        let url = format!("http://w{id}");
        let spec = WorkerSpec {
            url: url.clone(),
            models: Vec::new(),
            api_key: None,
            zone: zone.to_owned(),
            origin: WorkerOrigin::Api,
            draining: false,
        };
        Arc::new(WorkerView { id: WorkerId::of_url(&url), spec, observed: BTreeMap::new() })
    }

    fn list(workers: &[(u8, &str)]) -> Vec<Arc<WorkerView>> {
        let mut list: Vec<_> = workers.iter().map(|(id, zone)| worker(*id, zone)).collect();
        list.sort_by(|a, b| a.id.cmp(&b.id));
        list
    }

    #[test]
    fn one_walk_tells_what_went_came_and_changed() {
        for (case, old, new, gone, came) in [
            ("nothing at all", &[][..], &[][..], &[][..], &[][..]),
            ("equal, though not the same", &[(1, ""), (2, "")], &[(1, ""), (2, "")], &[], &[]),
            ("all come", &[], &[(1, ""), (2, "")], &[], &[1, 2]),
            ("all go", &[(1, ""), (2, "")], &[], &[1, 2], &[]),
            ("one changes", &[(1, ""), (2, ""), (3, "")], &[(1, ""), (2, "z"), (3, "")], &[], &[2]),
            ("one of each", &[(1, ""), (2, ""), (3, "")], &[(2, "z"), (3, ""), (4, "")], &[1], &[2, 4]),
        ] {
            let (old, new) = (list(old), list(new));
            let changes = Changes::between(&old, &new);
            let ids = |numbers: &[u8]| {
                let mut ids: Vec<_> = numbers.iter().map(|number| worker(*number, "").id.clone()).collect();
                ids.sort();
                ids
            };
            assert_eq!(changes.gone.into_iter().cloned().collect::<Vec<_>>(), ids(gone), "{case}: gone");
            assert_eq!(changes.new.iter().map(|view| view.id.clone()).collect::<Vec<_>>(), ids(came), "{case}: new");
        }
    }
}
