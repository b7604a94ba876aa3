//! Snapshots that name epochs which were folded on their way.
#![allow(clippy::unwrap_used)]

use super::*;

fn actor(name: &str, boot_epoch_ms: u64) -> Actor {
    Actor { node: name.parse().unwrap(), boot_epoch_ms }
}

/// A chunk without keys, of a snapshot that covers ten operations of the writer's first epoch.
fn chunk(from: &str, to: Option<&str>) -> Body {
    let base = vec![(ActorId(0), 10)];
    let chunk = Chunk { from: from.as_bytes().into(), to: to.map(|to| to.as_bytes().into()), guard: Vec::new(), base };
    let actors = vec![actor("writer", 5)];
    Body { actors, context: vec![(ActorId(0), 10)], chunk: Some(chunk), ..Body::default() }
}

#[test]
fn a_snapshot_goes_on_when_an_epoch_in_its_base_is_folded_meanwhile() {
    let mut peer = VersionVector::default();
    let mut map = Map::new(&actor("reader", 1));
    map.apply(&mut peer, chunk("", Some("k"))).unwrap();
    assert!(map.progress().is_some());
    map.fold(&"writer".parse().unwrap(), 6);
    map.prune();
    assert!(map.progress().is_none() && map.guards().is_empty(), "all that it would bring was seen");
    assert!(map.actors().id(&actor("writer", 5)).is_none(), "nothing of it is left");
    map.apply(&mut peer, chunk("k", Some("p"))).unwrap();
    map.prune();
    map.apply(&mut peer, chunk("p", None)).unwrap();
    map.prune();
    assert!(map.actors().id(&actor("writer", 5)).is_none());
}

#[test]
fn a_snapshot_that_goes_on_with_what_never_came_is_refused() {
    let mut map = Map::new(&actor("reader", 1));
    let refused = map.apply(&mut VersionVector::default(), chunk("k", None));
    assert!(matches!(refused, Err(BodyError::Gap)), "{refused:?}");
}
