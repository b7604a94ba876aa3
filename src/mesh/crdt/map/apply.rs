//! Joining a peer's body into a namespace: first every check, then the join, which cannot fail.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    super::{
        context::VersionVector,
        delta::{Body, BodyError, Chunk, KeyState},
        dot::{ACTORS_MAX, Actor, ActorId, COUNTER_MAX, Dot, Key},
    },
    LiveRef, Map, Progress, SNAPSHOTS_MAX,
};

/// Refuses what [`join`] could not take whole; gives the numbers here of the body's actors that are known.
pub(super) fn check(map: &Map, peer: &VersionVector, body: &Body) -> Result<Vec<Option<ActorId>>, BodyError> {
    let known: Vec<Option<ActorId>> = body.actors.iter().map(|actor| map.actors.id(actor)).collect();
    if map.actors.len() + known.iter().filter(|id| id.is_none()).count() > ACTORS_MAX {
        return Err(BodyError::TooManyActors);
    }
    let context = limits(map, peer, body, &known)?;
    let own_limit = map.seen.get(map.own);
    let may_be = |actor: ActorId, counter: u64, limit: u64| {
        let id = *known.get(actor.index()).ok_or(BodyError::UnknownActor)?;
        let named = &body.actors[actor.index()];
        if named.is_floor() && named.node == map.own_actor().node && counter > map.own_epoch_ms() {
            return Err(BodyError::FloorAhead);
        }
        if id == Some(map.own) && counter > own_limit {
            return Err(BodyError::ForgedDot);
        }
        if counter == 0 || counter > limit.min(COUNTER_MAX) {
            return Err(BodyError::DotBeyondContext);
        }
        Ok(())
    };
    for (actor, counter) in &body.context {
        may_be(*actor, *counter, COUNTER_MAX)?;
    }
    let limit = |actor: ActorId| context.get(actor.index()).copied().unwrap_or(0);
    for state in &body.keys {
        for (actor, counter) in &state.guard {
            may_be(*actor, *counter, COUNTER_MAX)?;
        }
        for dot in state.live.iter().map(|live| live.dot).chain(state.records.iter().copied()) {
            let guard = state.guard.iter().chain(body.chunk.iter().flat_map(|chunk| &chunk.guard));
            let guard = guard.filter(|(actor, _)| *actor == dot.actor).map(|(_, counter)| *counter);
            if body.actors.get(dot.actor.index()).is_some_and(Actor::is_floor) {
                return Err(BodyError::DotBeyondContext);
            }
            may_be(dot.actor, dot.counter, guard.fold(limit(dot.actor), u64::max))?;
        }
    }
    for cover in &body.covers {
        may_be(cover.actor, cover.to, limit(cover.actor))?;
        let seen = match known[cover.actor.index()] {
            Some(id) => map.actors.counter(&map.seen, id),
            None => map.seen_of(&body.actors[cover.actor.index()]),
        };
        if seen < cover.from {
            return Err(BodyError::Gap);
        }
    }
    if let Some(chunk) = &body.chunk {
        check_chunk(map, body, chunk, &known)?;
        chunk.guard.iter().try_for_each(|(actor, counter)| may_be(*actor, *counter, COUNTER_MAX))?;
        chunk.base.iter().try_for_each(|(actor, counter)| may_be(*actor, *counter, limit(*actor)))?;
    }
    if !map.guards.has_room(if body.chunk.is_some() { 0 } else { body.keys.len() }) {
        return Err(BodyError::TooManyGuards);
    }
    Ok(known)
}

/// Up to where the dots of each of the body's actors may go, by what the sender says it has seen.
fn limits(map: &Map, peer: &VersionVector, body: &Body, known: &[Option<ActorId>]) -> Result<Vec<u64>, BodyError> {
    let mut context: Vec<u64> = known.iter().map(|id| id.map_or(0, |id| peer.get(id))).collect();
    for (actor, counter) in &body.context {
        let slot = context.get_mut(actor.index()).ok_or(BodyError::UnknownActor)?;
        *slot = (*slot).max(*counter);
    }
    if body.chunk.is_some() {
        // The base of a resumed snapshot may name actors that the sender has folded and dropped.
        for (index, actor) in body.actors.iter().enumerate() {
            let floor = Actor::floor_of(&actor.node);
            let told = body.actors.iter().position(|other| *other == floor).map_or(0, |position| context[position]);
            let floor_ms = map.actors.id(&floor).map_or(0, |id| peer.get(id)).max(told);
            if !actor.is_floor() && actor.boot_epoch_ms < floor_ms {
                context[index] = COUNTER_MAX;
            }
        }
    }
    // All of an actor that is folded here was seen, so nothing that is said of it matters.
    for (index, actor) in body.actors.iter().enumerate() {
        if known[index].map_or_else(|| map.is_folded(actor), |id| map.seen.get(id) == COUNTER_MAX) {
            context[index] = COUNTER_MAX;
        }
    }
    Ok(context)
}

fn check_chunk(map: &Map, body: &Body, chunk: &Chunk, known: &[Option<ActorId>]) -> Result<(), BodyError> {
    let inside = |key: &Key| *key >= chunk.from && chunk.to.as_ref().is_none_or(|to| key < to);
    let is_empty = chunk.to.as_ref().is_some_and(|to| *to <= chunk.from);
    if is_empty || !body.keys.iter().all(|state| inside(&state.key)) {
        return Err(BodyError::KeyOutsideChunk);
    }
    if chunk.from.is_empty() {
        return Ok(());
    }
    let mut base = VersionVector::default();
    for (actor, counter) in &chunk.base {
        match known.get(actor.index()).ok_or(BodyError::UnknownActor)? {
            Some(id) => base.raise(*id, *counter),
            // Folded, and dropped since: all of it was seen.
            None if map.is_folded(&body.actors[actor.index()]) => {}
            None => return Err(BodyError::Gap),
        }
    }
    // What the snapshot covers at its end may have come another way meanwhile; then nothing rests on earlier chunks.
    if map.seen.covers(&base) || map.progress.iter().any(|progress| progress.reaches(&chunk.from, &base)) {
        return Ok(());
    }
    Err(BodyError::Gap)
}

/// Joins a body with what [`check`] gave for it; gives the keys whose live dots changed.
pub(super) fn join(map: &mut Map, peer: &mut VersionVector, body: Body, known: &[Option<ActorId>]) -> Vec<Key> {
    let has_floors = body.actors.iter().any(Actor::is_floor);
    let ids = body.actors.iter().zip(known).map(|(actor, known)| known.unwrap_or_else(|| map.intern(actor)));
    let ids: Vec<ActorId> = ids.collect();
    let local = |actor: ActorId| ids[actor.index()];
    for (actor, counter) in body.context {
        peer.raise(local(actor), counter);
    }
    let mut seen_after = map.seen.clone();
    for cover in &body.covers {
        seen_after.raise(local(cover.actor), cover.to);
    }
    let mut changed = Vec::new();
    if let Some(chunk) = body.chunk {
        let mut context = peer.clone();
        for (actor, counter) in &chunk.guard {
            context.raise(local(*actor), *counter);
        }
        let mut base = VersionVector::default();
        for (actor, counter) in &chunk.base {
            base.raise(local(*actor), *counter);
        }
        let listed: BTreeSet<Key> = body.keys.iter().map(|state| state.key.clone()).collect();
        for state in body.keys {
            join_key(map, &context, &local, state, None, &mut changed);
        }
        drop_unlisted(map, &context, &chunk, &listed, &mut changed);
        advance(map, &chunk, base, &mut seen_after);
        context.retain(|actor| map.actors.knows(actor));
        if let Some(beyond) = context.beyond(&seen_after) {
            map.guards.guard_range(&chunk.from, chunk.to.as_ref(), &Arc::new(beyond));
        }
    } else {
        // What was dropped here since the peer told of it is folded.
        let mut beyond = peer.beyond(&seen_after);
        if let Some(beyond) = &mut beyond {
            beyond.retain(|actor| map.actors.knows(actor));
        }
        let beyond = beyond.map(Arc::new);
        for state in body.keys {
            join_key(map, peer, &local, state, beyond.as_ref(), &mut changed);
        }
    }
    map.seen = seen_after;
    if has_floors {
        map.settle();
    }
    map.progress.retain(|progress| !map.seen.covers(&progress.base));
    let unguarded = map.guards.prune_all(&map.seen);
    map.note_changes(&unguarded);
    changed
}

fn join_key(
    map: &mut Map,
    peer: &VersionVector,
    local: &impl Fn(ActorId) -> ActorId,
    state: KeyState,
    beyond: Option<&Arc<VersionVector>>,
    changed: &mut Vec<Key>,
) {
    let mut guard = VersionVector::default();
    for (actor, counter) in state.guard {
        guard.raise(local(actor), counter);
    }
    let theirs = state.live.iter().map(|live| {
        let Dot { actor, counter } = live.dot;
        LiveRef { dot: Dot { actor: local(actor), counter }, stamp: live.stamp, payload: &live.payload }
    });
    let key = &state.key;
    let theirs = theirs.collect();
    join_live(map, key, theirs, |map, dot| map.actors.covers(peer, dot) || map.actors.covers(&guard, dot), changed);
    for dot in state.records {
        map.records.insert(Dot { actor: local(dot.actor), ..dot }, key);
    }
    if let Some(beyond) = beyond {
        map.guard_key(key, beyond);
    }
    if let Some(rest) = guard.beyond(&map.seen) {
        map.guard_key(key, &Arc::new(rest));
    }
}

/// The join of Almeida et al. 2018 §7.2 for one key: a dot lives on if both sides hold it, or if one side holds it and
/// the other has not seen it.
fn join_live(
    map: &mut Map,
    key: &Key,
    mut theirs: Vec<LiveRef<'_>>,
    they_saw: impl Fn(&Map, Dot) -> bool,
    changed: &mut Vec<Key>,
) {
    // Of several with one name, which no honest peer sends, the first counts.
    theirs.sort_by_key(|their| their.dot);
    theirs.dedup_by_key(|their| their.dot);
    let spot = map.entries.find(key);
    let mut ours: Vec<Dot> = map.entries.at(spot).map(|our| our.dot).collect();
    ours.sort_unstable();
    let is_theirs = |dot: &Dot| theirs.binary_search_by_key(dot, |their| their.dot).is_ok();
    let gone: Vec<Dot> = ours.iter().copied().filter(|our| they_saw(map, *our) && !is_theirs(our)).collect();
    let was_seen = |dot: Dot| map.seen.contains(dot) || map.guards.contains(&map.actors, key, dot);
    theirs.retain(|their| ours.binary_search(&their.dot).is_err() && !was_seen(their.dot));
    if !gone.is_empty() || !theirs.is_empty() {
        map.change(key, spot, &gone, &theirs);
        changed.push(key.clone());
    }
}

fn drop_unlisted(
    map: &mut Map,
    context: &VersionVector,
    chunk: &Chunk,
    listed: &BTreeSet<Key>,
    changed: &mut Vec<Key>,
) {
    let in_range = map.range_from(&chunk.from).map(|(key, _)| key);
    let in_range = in_range.take_while(|key| chunk.to.as_ref().is_none_or(|to| *key < &**to));
    let unlisted: Vec<Key> = in_range.filter(|key| !listed.contains(*key)).map(Key::from).collect();
    for key in unlisted {
        join_live(map, &key, Vec::new(), |map, dot| map.actors.covers(context, dot), changed);
    }
}

/// Moves the snapshot's progress; after the last chunk what it covers was seen, without a record of what died in it.
///
/// Two donors may send at once, and the chunks of one then come between those of the other: each base has a progress of
/// its own, and of one base it does not matter who sends which part.
fn advance(map: &mut Map, chunk: &Chunk, base: VersionVector, seen_after: &mut VersionVector) {
    let before = map.progress.iter().position(|progress| progress.reaches(&chunk.from, &base));
    let before = before.map(|position| map.progress.remove(position));
    match &chunk.to {
        Some(to) => {
            if map.progress.len() == SNAPSHOTS_MAX {
                map.progress.remove(0);
            }
            let until = before.map_or_else(|| to.clone(), |before| before.until.max(to.clone()));
            map.progress.push(Progress { until, base });
        }
        None => {
            let is_news = |(actor, counter): &(ActorId, u64)| {
                *counter > map.seen.get(*actor) && !map.actors.actor(*actor).is_floor() && *counter < COUNTER_MAX
            };
            for (actor, counter) in base.iter().filter(is_news) {
                map.records.raise_floor(actor, counter);
            }
            seen_after.join(&base);
        }
    }
}

#[cfg(test)]
mod tests;
