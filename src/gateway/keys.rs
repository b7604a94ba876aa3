//! API keys that clients present, and their comparison.

use std::hint::black_box;

use http::{HeaderMap, header};

/// Whether a request carries one of `keys` as its bearer token. The time it takes depends on the lengths and the number
/// of the keys alone.
#[must_use]
pub fn has_one_of(headers: &HeaderMap, keys: &[String]) -> bool {
    bearer(headers).is_some_and(|given| keys.iter().fold(false, |found, key| found | is_equal(given, key.as_bytes())))
}

/// What a request carries as `Authorization: Bearer` (RFC 6750 §2.1; the scheme's case does not matter).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// What a request carries as that, where it may name a limit: a longer one has none, so that nobody has a gateway hash
/// more than [`LIMITED_BYTES_MAX`] for each request.
pub(crate) fn limited(headers: &HeaderMap) -> Option<&[u8]> {
    bearer(headers).filter(|key| key.len() <= LIMITED_BYTES_MAX)
}

/// Longest key that a limit may be for: 1 KiB.
pub(crate) const LIMITED_BYTES_MAX: usize = 1024;

fn is_equal(given: &[u8], expected: &[u8]) -> bool {
    let mut difference = given.len() ^ expected.len();
    for (index, byte) in expected.iter().enumerate() {
        let other = given.get(index).copied().unwrap_or_default();
        // Without `black_box` the compiler may leave the loop at the first difference.
        difference = black_box(difference | usize::from(byte ^ other));
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys() {
        let keys = ["one".to_owned(), "two".to_owned()];
        for (name, value, expected) in [
            ("authorization", "Bearer two", true),
            ("authorization", "bearer one", true),
            ("authorization", "Bearer  one ", true),
            ("authorization", "Bearer tw", false),
            ("authorization", "Bearer twoo", false),
            ("authorization", "Bearer ", false),
            ("authorization", "Basic two", false),
            ("authorization", "two", false),
            ("x-api-key", "two", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(has_one_of(&headers, &keys), expected, "{name}: {value}");
            assert!(!has_one_of(&headers, &[]), "{name}: {value}");
        }
    }

    #[test]
    fn a_key_beyond_a_kibibyte_has_no_limit() {
        for (len, is_limited) in [(1, true), (LIMITED_BYTES_MAX, true), (LIMITED_BYTES_MAX + 1, false)] {
            let key = "k".repeat(len);
            let mut headers = HeaderMap::new();
            headers.insert("authorization", format!("Bearer {key}").parse().unwrap());
            assert_eq!(limited(&headers), is_limited.then_some(key.as_bytes()), "{len}");
        }
    }

    proptest! {
        #[test]
        fn equal_means_equal(a in ".{0,12}", b in ".{0,12}") {
            prop_assert_eq!(is_equal(a.as_bytes(), b.as_bytes()), a == b);
            prop_assert!(is_equal(a.as_bytes(), a.as_bytes()));
        }
    }
}
