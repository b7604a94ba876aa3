//! The bounds of a pipe's queues, and the order of its events.
#![allow(clippy::unwrap_used)]

use std::pin::pin;

use super::*;

fn pipes(inbound_pipes_max: usize) -> Pipes {
    let hello = Hello { cluster: "smg".into(), node: "n1".into(), boot_epoch_ms: 1 };
    let config = StreamConfig { inbound_pipes_max, ..StreamConfig::new("127.0.0.1:0".parse().unwrap(), hello) };
    Pipes::new(&config)
}

fn hello() -> Hello {
    Hello { cluster: "smg".into(), node: "n2".into(), boot_epoch_ms: 1 }
}

fn peer() -> SocketAddr {
    "127.0.0.2:1".parse().unwrap()
}

fn open(pipes: &Pipes) -> PipeId {
    let (id, _) = pipes.begin_dialed(peer());
    assert!(pipes.open(id, hello(), None, None));
    assert!(matches!(event(pipes), Some(StreamEvent::Opened { dialed: true, .. })));
    assert!(matches!(outbound(pipes, id), Poll::Ready(Some(_))), "the greeting");
    id
}

fn context<T>(poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
    poll(&mut Context::from_waker(Waker::noop()))
}

fn event(pipes: &Pipes) -> Option<StreamEvent> {
    match context(|cx| pipes.poll_event(cx)) {
        Poll::Ready(event) => event,
        Poll::Pending => None,
    }
}

fn outbound(pipes: &Pipes, id: PipeId) -> Poll<Option<proto::Frame>> {
    context(|cx| pipes.poll_outbound(id, cx))
}

fn payload(bytes: usize) -> Bytes {
    Bytes::from(vec![0; bytes])
}

#[test]
fn the_outbound_queue_is_bounded_and_tells_when_it_has_room() {
    for (case, bytes) in [("small", 1), ("chunks", 256 * 1024), ("awkward", 700_000)] {
        let pipes = pipes(1);
        let id = open(&pipes);
        let mut queued = 0;
        while pipes.try_send(id, Lane::Sync, payload(bytes)) == Ok(()) {
            queued += 1;
            assert!(queued * bytes <= OUTBOUND_BYTES_MAX, "{case}");
        }
        assert!(queued > 0 && queued <= OUTBOUND_BYTES_MAX / FRAME_OVERHEAD_BYTES, "{case}");
        assert_eq!(pipes.try_send(id, Lane::Sync, payload(bytes)), Err(PipeSendError::Full), "{case}");
        assert!(event(&pipes).is_none(), "{case}");
        while !matches!(event(&pipes), Some(StreamEvent::Writable { .. })) {
            assert!(matches!(outbound(&pipes, id), Poll::Ready(Some(_))), "{case}: drained without a word");
        }
        assert!(pipes.has_room(id), "{case}");
        assert_eq!(pipes.try_send(id, Lane::Sync, payload(1)), Ok(()), "{case}");
    }
}

#[test]
fn one_frame_larger_than_the_queue_is_taken_when_it_is_empty() {
    let pipes = pipes(1);
    let id = open(&pipes);
    assert_eq!(pipes.try_send(id, Lane::Sync, payload(FRAME_BYTES_MAX)), Ok(()));
    assert_eq!(pipes.try_send(id, Lane::Sync, payload(0)), Err(PipeSendError::Full));
    let (len, max) = (FRAME_BYTES_MAX + 1, FRAME_BYTES_MAX);
    assert_eq!(pipes.try_send(id, Lane::Sync, payload(len)), Err(PipeSendError::TooLarge { len, max }));
}

#[test]
fn has_room_that_is_false_is_followed_by_writable() {
    let pipes = pipes(1);
    let id = open(&pipes);
    pipes.try_send(id, Lane::Sync, payload(600_000)).unwrap();
    assert!(!pipes.has_room(id));
    assert!(outbound(&pipes, id).is_ready());
    assert!(matches!(event(&pipes), Some(StreamEvent::Writable { .. })));
}

#[test]
fn reading_stops_at_the_bound_and_resumes() {
    let pipes = pipes(1);
    let id = open(&pipes);
    let mut pushed = 0;
    while context(|cx| pipes.poll_room(id, cx)).is_ready() {
        pipes.push_inbound(id, Lane::Sync, payload(100_000));
        pushed += 1;
    }
    assert_eq!(pushed, INBOUND_BYTES_MAX / 100_000 + 1);
    assert!(matches!(event(&pipes), Some(StreamEvent::Frame { .. })));
    assert!(context(|cx| pipes.poll_room(id, cx)).is_ready());
}

#[test]
fn pipes_take_turns() {
    let pipes = pipes(1);
    let (a, b) = (open(&pipes), open(&pipes));
    for _ in 0..3 {
        pipes.push_inbound(a, Lane::Sync, payload(1));
    }
    pipes.push_inbound(b, Lane::Sync, payload(1));
    let order: Vec<PipeId> = std::iter::from_fn(|| event(&pipes))
        .map(|event| match event {
            StreamEvent::Frame { pipe, .. } => pipe,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(order, [a, b, a, a]);
}

#[test]
fn accepted_pipes_are_bounded_until_their_end_is_told() {
    let pipes = pipes(2);
    let (first, _) = pipes.begin_accepted(peer()).unwrap();
    assert!(pipes.begin_accepted(peer()).is_some());
    assert!(pipes.begin_accepted(peer()).is_none());
    pipes.finish(first, Some(PipeError::BadHello));
    assert!(pipes.begin_accepted(peer()).is_none(), "its end is not told yet");
    assert!(matches!(event(&pipes), Some(StreamEvent::Closed { error: Some(PipeError::BadHello), .. })));
    assert!(pipes.begin_accepted(peer()).is_some());
}

#[test]
fn a_closing_pipe_flushes_discards_and_ends_once() {
    let pipes = pipes(1);
    let id = open(&pipes);
    pipes.try_send(id, Lane::Datagram, payload(3)).unwrap();
    pipes.push_inbound(id, Lane::Sync, payload(3));
    pipes.close(id);
    pipes.push_inbound(id, Lane::Sync, payload(3));
    assert_eq!(pipes.try_send(id, Lane::Sync, payload(1)), Err(PipeSendError::Closed));
    assert!(event(&pipes).is_none(), "what arrived is discarded");
    assert!(matches!(outbound(&pipes, id), Poll::Ready(Some(frame)) if frame.payload.len() == 3));
    assert!(matches!(outbound(&pipes, id), Poll::Ready(Some(frame)) if frame.lane() == proto::Lane::Close));
    assert!(matches!(outbound(&pipes, id), Poll::Ready(None)));
    pipes.finish(id, None);
    pipes.finish(id, Some(PipeError::BadFrame));
    assert!(matches!(event(&pipes), Some(StreamEvent::Closed { error: None, .. })));
    assert!(event(&pipes).is_none());
    pipes.close(id);
    assert_eq!(pipes.try_send(id, Lane::Sync, payload(1)), Err(PipeSendError::Closed));
}

#[test]
fn closing_cancels_a_dial() {
    let pipes = pipes(1);
    let (id, closing) = pipes.begin_dialed(peer());
    assert!(pin!(closing.cancelled()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    pipes.close(id);
    assert!(closing.is_cancelled());
    assert!(!pipes.open(id, hello(), None, None), "too late to open");
}
