//! The way of surprises from the request path, on every core, to the task that tells them.

use tokio::sync::mpsc;

use crate::mesh::routing::Placement;

/// Placements from the cores that wait to be taken; further ones are lost.
pub const PLACED_MAX: usize = 4096;

/// Where the request path reports surprises. Cheap to clone; never waits. By default nobody hears.
#[derive(Clone, Debug, Default)]
pub struct Placer(Option<mpsc::Sender<Placement>>);

impl Placer {
    /// A way to tell, and its end.
    pub(super) fn new() -> (Self, mpsc::Receiver<Placement>) {
        let (placer, placed) = mpsc::channel(PLACED_MAX);
        (Self(Some(placer)), placed)
    }

    /// Whether a surprise is worth putting into words.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.0.is_some()
    }

    /// Reports a surprise; `false` when it is lost because [`PLACED_MAX`] wait.
    pub fn place(&self, placement: Placement) -> bool {
        self.0.as_ref().is_none_or(|placer| placer.try_send(placement).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_lost_and_by_default_nobody_hears() {
        let placement = || Placement { model: "m".into(), worker: 1, generation: 0, age_ms: 0, names: vec![2] };
        let (placer, mut placed) = Placer::new();
        let kept = (0..PLACED_MAX + 3).filter(|_| placer.place(placement())).count();
        assert_eq!((placer.is_heard(), kept), (true, PLACED_MAX));
        assert!(placed.try_recv().is_ok() && placer.place(placement()));
        let placer = Placer::default();
        assert!(!placer.is_heard() && placer.place(placement()));
    }
}
