//! Names of prefixes: a keyed hash of each block, chained to the name of the prefix before it.
//!
//! hᵢ = H(hᵢ₋₁ ‖ H(blockᵢ)), H being XXH3 under a secret of [`KEY_BYTES`] random bytes. Equal names mean equal prefixes
//! but for one pair in 2⁶⁴; a collision costs one request its best worker. Without the secret a name says nothing of
//! the text, nor whether two prompts share a block further in: the inner hash is never shown.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64_with_secret;

/// Bytes of prompt in a block. Engines cache in blocks of 16 tokens or more, about 64 bytes: what a whole block here
/// agrees on, they can reuse.
pub const BLOCK_BYTES: usize = 256;

/// Blocks of a prompt that are named: its first 1 MiB. What follows changes no choice.
pub const BLOCKS_MAX: usize = 4096;

/// Length of a key.
pub const KEY_BYTES: usize = 192;

/// Names below are no names: [`Index`](super::Index) marks its slots with them.
const NAME_MIN: u64 = 2;

/// What a session's name is tagged with, so that it is never a block's.
const SESSION_TAG: u64 = u64::from_le_bytes(*b"session\0");

/// The secret behind the names, the same on all gateways of a cluster.
#[derive(Clone, Eq, PartialEq)]
pub struct HashKey(Box<[u8; KEY_BYTES]>);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(…)")
    }
}

impl HashKey {
    /// A key of uniformly random bytes.
    #[must_use]
    pub fn new(random: [u8; KEY_BYTES]) -> Self {
        Self(Box::new(random))
    }

    /// The key in bytes; none when they are not [`KEY_BYTES`].
    #[must_use]
    pub fn of_slice(bytes: &[u8]) -> Option<Self> {
        Some(Self(Box::new(bytes.try_into().ok()?)))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &*self.0
    }

    fn hash(&self, bytes: &[u8]) -> u64 {
        xxh3_64_with_secret(bytes, &*self.0)
    }

    fn link(&self, before: u64, inner: u64) -> u64 {
        let mut pair = [0; 16];
        pair[..8].copy_from_slice(&before.to_le_bytes());
        pair[8..].copy_from_slice(&inner.to_le_bytes());
        self.hash(&pair).max(NAME_MIN)
    }
}

/// A prompt as the names of its prefixes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Prompt {
    /// Name of each prefix of whole blocks, the shortest first; at most [`BLOCKS_MAX`].
    pub blocks: Vec<u64>,
    /// Name of the conversation: all up to the end of its first user message. It stays the same from turn to turn, so
    /// that gateways agree on it without a word.
    pub session: Option<u64>,
    /// Whole blocks up to there.
    pub session_blocks: usize,
    /// An answer follows the first user message: an earlier request began like this one.
    pub is_follow_up: bool,
    /// Whole blocks up to the last answer, of a follow-up: what the request before this one had.
    pub earlier_blocks: usize,
    /// Name of the last, incomplete block's end; the only name of a prompt shorter than a block.
    pub tail: Option<u64>,
}

/// Blocks of a prompt without a session that its home is hashed from.
pub const HOME_BLOCKS: usize = 4;

impl Prompt {
    /// What the home worker is hashed from, the same on all gateways: the session, else the first [`HOME_BLOCKS`]
    /// blocks. None when there is no text.
    #[must_use]
    pub fn home(&self) -> Option<u64> {
        let first = self.blocks.len().min(HOME_BLOCKS);
        self.session.or_else(|| first.checked_sub(1).map(|last| self.blocks[last])).or(self.tail)
    }

    /// Whether a longer prompt that begins with this one has the same [`home`](Self::home).
    #[must_use]
    pub fn is_home_settled(&self) -> bool {
        self.session.is_some() || self.blocks.len() >= HOME_BLOCKS
    }
}

/// Takes text in pieces and names the prefixes. Holds at most one block of it.
#[derive(Debug)]
pub struct Chain<'k> {
    key: &'k HashKey,
    block: [u8; BLOCK_BYTES],
    filled: usize,
    last: u64,
    prompt: Prompt,
}

impl<'k> Chain<'k> {
    /// Of no text yet.
    #[must_use]
    pub fn new(key: &'k HashKey) -> Self {
        Self { key, block: [0; BLOCK_BYTES], filled: 0, last: 0, prompt: Prompt::default() }
    }

    /// Takes further text.
    pub fn push(&mut self, mut bytes: &[u8]) {
        if self.filled > 0 {
            let taken = bytes.len().min(BLOCK_BYTES - self.filled);
            self.block[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled < BLOCK_BYTES {
                return;
            }
            let inner = self.key.hash(&self.block);
            self.close(inner);
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
        for block in blocks {
            if self.is_full() {
                return;
            }
            let inner = self.key.hash(block);
            self.close(inner);
        }
        if !self.is_full() {
            self.block[..rest.len()].copy_from_slice(rest);
            self.filled = rest.len();
        }
    }

    fn close(&mut self, inner: u64) {
        self.filled = 0;
        if !self.is_full() {
            self.last = self.key.link(self.last, inner);
            self.prompt.blocks.push(self.last);
        }
    }

    /// Whether further text changes nothing.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.prompt.blocks.len() >= BLOCKS_MAX
    }

    fn name_here(&self) -> u64 {
        self.key.link(self.last, self.key.hash(&self.block[..self.filled]))
    }

    /// The first user message ends here.
    pub fn mark_session(&mut self) {
        if self.prompt.session.is_none() {
            self.prompt.session = Some(self.key.link(self.name_here(), SESSION_TAG));
            self.prompt.session_blocks = self.prompt.blocks.len();
        }
    }

    /// An answer begins here.
    pub fn mark_answer(&mut self) {
        if self.prompt.session.is_some() {
            self.prompt.is_follow_up = true;
            self.prompt.earlier_blocks = self.prompt.blocks.len();
        }
    }

    /// The names.
    #[must_use]
    pub fn finish(mut self) -> Prompt {
        if self.filled > 0 {
            self.prompt.tail = Some(self.name_here());
        }
        self.prompt
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    pub(crate) fn key(seed: u8) -> HashKey {
        let mut bytes = [0; KEY_BYTES];
        let mut state = u64::from(seed) + 1;
        for byte in &mut bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
        HashKey::new(bytes)
    }

    pub(crate) fn of_text(key: &HashKey, text: &[u8]) -> Prompt {
        let mut chain = Chain::new(key);
        chain.push(text);
        chain.finish()
    }

    #[test]
    fn names_say_how_far_two_texts_agree() {
        let key = key(1);
        let text = vec![b'a'; 5 * BLOCK_BYTES];
        for (case, changed_at, shared) in [
            ("equal", None, 5),
            ("first byte", Some(0), 0),
            ("last byte of the first block", Some(BLOCK_BYTES - 1), 0),
            ("second block", Some(BLOCK_BYTES), 1),
            ("last byte", Some(5 * BLOCK_BYTES - 1), 4),
        ] {
            let mut other = text.clone();
            if let Some(at) = changed_at {
                other[at] = b'b';
            }
            let (one, two) = (of_text(&key, &text), of_text(&key, &other));
            assert_eq!(one.blocks.len(), 5, "{case}");
            let agree = one.blocks.iter().zip(&two.blocks).take_while(|(a, b)| a == b).count();
            assert_eq!(agree, shared, "{case}");
            assert!(one.blocks[agree..].iter().zip(&two.blocks[agree..]).all(|(a, b)| a != b), "{case}");
        }
    }

    #[test]
    fn another_key_gives_other_names() {
        let text = vec![b'a'; 3 * BLOCK_BYTES];
        let (one, two) = (of_text(&key(1), &text), of_text(&key(2), &text));
        assert!(one.blocks.iter().zip(&two.blocks).all(|(a, b)| a != b));
        let equal_blocks: std::collections::BTreeSet<_> = one.blocks.iter().collect();
        assert_eq!(equal_blocks.len(), 3, "equal blocks have different names at different places");
        assert_eq!(format!("{:?}", key(1)), "HashKey(…)");
    }

    #[test]
    fn a_prompt_is_named_up_to_its_bound() {
        let key = key(1);
        let whole = of_text(&key, &vec![b'a'; BLOCKS_MAX * BLOCK_BYTES]);
        let longer = of_text(&key, &vec![b'a'; (BLOCKS_MAX + 7) * BLOCK_BYTES + 3]);
        assert_eq!(whole.blocks.len(), BLOCKS_MAX);
        assert_eq!(whole, longer);
    }

    #[test]
    fn the_home_is_hashed_from_what_later_turns_share() {
        let key = key(1);
        let text = vec![b'a'; 10 * BLOCK_BYTES];
        assert_eq!(of_text(&key, b"").home(), None);
        for (case, short, long, is_same) in [
            ("a tail is all there is", 10, 20, false),
            ("one block", BLOCK_BYTES, 2 * BLOCK_BYTES, false),
            ("first blocks", HOME_BLOCKS * BLOCK_BYTES, 10 * BLOCK_BYTES, true),
        ] {
            let (one, two) = (of_text(&key, &text[..short]), of_text(&key, &text[..long]));
            assert!(one.home().is_some(), "{case}");
            assert_eq!(one.home() == two.home(), is_same, "{case}");
            assert_eq!(one.is_home_settled(), is_same, "{case}");
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in proptest::collection::vec(any::<u8>(), 0..2000),
            cuts in proptest::collection::vec(0usize..2000, 0..6),
            session_at in 0usize..2000,
        ) {
            let key = key(3);
            let session_at = session_at.min(text.len());
            let mut whole = Chain::new(&key);
            whole.push(&text[..session_at]);
            whole.mark_session();
            whole.push(&text[session_at..]);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.push(session_at);
            cuts.sort_unstable();
            let (mut pieces, mut from) = (Chain::new(&key), 0);
            for cut in cuts {
                pieces.push(&text[from..cut]);
                if cut == session_at {
                    pieces.mark_session();
                }
                from = cut;
            }
            pieces.push(&text[from..]);
            prop_assert_eq!(whole.finish(), pieces.finish());
        }
    }
}
