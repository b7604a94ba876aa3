//! Instruments bound to their labels, found again without a lock.
//!
//! The SDK looks attributes up in a locked map at each measurement, and a model name must be allocated for it. Here the
//! labels are resolved once into a bound instrument; afterwards a measurement is one lookup in an immutable map that
//! all cores read. A new set of labels copies the map, which happens once per set.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;

/// Bound instruments `B` by their labels `K`.
///
/// Never shrinks: labels are closed sets, or bounded by `keys_max`. What comes after that many keys is refused.
pub(super) struct Family<K, B> {
    bound: ArcSwap<HashMap<K, B, BuildHasherDefault<LabelHasher>>>,
    growing: Mutex<()>,
    bind: Box<dyn Fn(&K) -> B + Send + Sync>,
    keys_max: usize,
}

impl<K: Clone + Eq + Hash, B: Clone> Family<K, B> {
    pub(super) fn new(keys_max: usize, bind: impl Fn(&K) -> B + Send + Sync + 'static) -> Self {
        Self { bound: ArcSwap::default(), growing: Mutex::default(), bind: Box::new(bind), keys_max }
    }

    /// Runs `record` with the instrument of these labels; does nothing when there are `keys_max` others.
    pub(super) fn with<Q>(&self, key: &Q, record: impl FnOnce(&B))
    where
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
        K: std::borrow::Borrow<Q>,
    {
        let _full = !self.try_with(key, record);
    }

    /// Like [`Family::with`], and says whether there was an instrument.
    pub(super) fn try_with<Q>(&self, key: &Q, record: impl FnOnce(&B)) -> bool
    where
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
        K: std::borrow::Borrow<Q>,
    {
        if let Some(bound) = self.bound.load().get(key) {
            record(bound);
            return true;
        }
        self.grow(key.to_owned()).map(|bound| record(&bound)).is_some()
    }

    #[cold]
    fn grow(&self, key: K) -> Option<B> {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.bound.load();
        if let Some(bound) = current.get(&key) {
            return Some(bound.clone());
        }
        if current.len() >= self.keys_max {
            return None;
        }
        let mut larger = HashMap::clone(&current);
        let bound = (self.bind)(&key);
        larger.insert(key, bound.clone());
        self.bound.store(Arc::new(larger));
        Some(bound)
    }
}

impl<K, B> fmt::Debug for Family<K, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family").field("keys", &self.bound.load().len()).finish_non_exhaustive()
    }
}

/// The multiplicative hash of rustc (FxHash). Labels come from this program and from operators, in bounded number, so that nobody can flood
/// the map and a keyed hash would buy nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LabelHasher(u64);

impl Hasher for LabelHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.write_u64(u64::from_le_bytes(word.try_into().expect("eight bytes")));
        }
        let mut last = [0; 8];
        let rest = words.remainder();
        last[..rest.len()].copy_from_slice(rest);
        self.write_u64(u64::from_le_bytes(last));
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x51_7c_c1_b7_27_22_0a_95);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}
