//! For which requests a limit is: those of one API key, for one model, or both.
//!
//! A key is never named in clear text: its id is the first 64 bits of its SHA-256 (FIPS 180-4), which
//! `printf %s "$KEY" | sha256sum | cut -c1-16` prints.

use std::fmt;

use aws_lc_rs::digest;
use xxhash_rust::xxh3::xxh3_64;

use crate::mesh::{quota::share::LimitId, stores::RATE_LIMIT};

/// Before the key in names of bounds; no id of a key looks so.
const BOUND: &str = "concurrent:";

/// Stands for an API key.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct KeyId(u64);

impl KeyId {
    /// Of a key, as a client presents it.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        let hash = digest::digest(&digest::SHA256, key);
        let first = hash.as_ref().first_chunk().copied().unwrap_or_default();
        Self(u64::from_be_bytes(first))
    }

    /// Reads 16 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| is_id).map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Selects requests; without a key and a model all of them.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Selector {
    /// Those that present this key.
    pub key: Option<KeyId>,
    /// Those whose body names this model, or none: they go to any worker, so leaving it out evades nothing; not empty.
    pub model: Option<Box<str>>,
}

impl Selector {
    /// Whether it selects all requests.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it selects a request with this key and model.
    #[must_use]
    pub fn selects(&self, key: Option<KeyId>, model: Option<&str>) -> bool {
        self.key.is_none_or(|wanted| key == Some(wanted))
            && self.model.as_deref().is_none_or(|wanted| model.is_none_or(|model| model == wanted))
    }

    /// The name of its limit among the replicated ones.
    #[must_use]
    pub fn name(&self) -> String {
        if self.is_all() {
            return RATE_LIMIT.to_owned();
        }
        let key = self.key.map(|key| key.to_string()).unwrap_or_default();
        format!("{RATE_LIMIT}\0{key}\0{}", self.model.as_deref().unwrap_or_default())
    }

    /// The name of its bound on requests in flight, an entry of its own, so that gateways which are told of one part each at
    /// once lose neither. To a version without such bounds it is the limit of a key that there is not.
    #[must_use]
    pub fn bound_name(&self) -> String {
        let key = self.key.map(|key| key.to_string()).unwrap_or_default();
        format!("{RATE_LIMIT}\0{BOUND}{key}\0{}", self.model.as_deref().unwrap_or_default())
    }

    /// The selector with that [`bound_name`](Self::bound_name).
    #[must_use]
    pub fn of_bound_name(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(RATE_LIMIT)?.strip_prefix('\0')?.strip_prefix(BOUND)?;
        if rest == "\0" { Some(Self::default()) } else { Self::of_name(&format!("{RATE_LIMIT}\0{rest}")) }
    }

    /// The selector with that [`name`](Self::name).
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(RATE_LIMIT)?;
        if rest.is_empty() {
            return Some(Self::default());
        }
        let (key, model) = rest.strip_prefix('\0')?.split_once('\0')?;
        let key = if key.is_empty() { None } else { Some(KeyId::parse(key)?) };
        let selector = Self { key, model: (!model.is_empty()).then(|| model.into()) };
        (!selector.is_all()).then_some(selector)
    }

    /// What the mesh calls its limit.
    #[must_use]
    pub fn limit_id(&self) -> LimitId {
        if self.is_all() { super::rate::ID } else { xxh3_64(self.name().as_bytes()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::mesh::stores::is_limit;

    fn selector(key: &str, model: &str) -> Selector {
        Selector { key: KeyId::parse(key), model: (!model.is_empty()).then(|| model.into()) }
    }

    #[test]
    fn a_key_is_named_by_what_sha256sum_prints() {
        // FIPS 180-4, the example of one block.
        assert_eq!(KeyId::of(b"abc").to_string(), "ba7816bf8f01cfea");
        for (text, is_id) in [
            ("ba7816bf8f01cfea", true),
            ("BA7816BF8F01CFEA", true),
            ("ba7816bf8f01cfe", false),
            ("+a7816bf8f01cfea", false),
        ] {
            assert_eq!(KeyId::parse(text).is_some(), is_id, "{text}");
        }
        assert_eq!(KeyId::parse("ba7816bf8f01cfea"), Some(KeyId::of(b"abc")));
    }

    #[test]
    fn it_selects_what_has_all_that_it_names() {
        let id = KeyId::of(b"abc").to_string();
        for (case, selector, expected) in [
            ("all", selector("", ""), [true, true, true, true, true]),
            ("a key", selector(&id, ""), [true, false, true, false, true]),
            ("a model, or none named", selector("", "m"), [true, true, false, true, true]),
            ("both", selector(&id, "m"), [true, false, false, false, true]),
        ] {
            let asked = [(b"abc", Some("m")), (b"abd", Some("m")), (b"abc", Some("n")), (b"abd", None), (b"abc", None)];
            assert_eq!(asked.map(|(key, model)| selector.selects(Some(KeyId::of(key)), model)), expected, "{case}");
            assert_eq!(Selector::of_bound_name(&selector.bound_name()).as_ref(), Some(&selector), "{case}");
            assert!(is_limit(&selector.bound_name()) && Selector::of_name(&selector.bound_name()).is_none(), "{case}");
            assert!(Selector::of_bound_name(&selector.name()).is_none(), "{case}");
            assert_eq!(Selector::of_name(&selector.name()), Some(selector), "{case}");
        }
        assert!(!selector(&id, "").selects(None, Some("m")));
        for name in ["", "m", "\0rate-limit\0", "\0rate-limit\0\0", "\0rate-limit\0xyz\0m"] {
            assert_eq!(Selector::of_name(name), None, "{name:?}");
        }
    }
}
