//! Bodies of snapshots as LZ4 blocks, and back within a bound that is checked before anything is reserved.

use bytes::Bytes;

use super::replication::{DecodeError, FRAME_BYTES_MAX};

/// An LZ4 block grows by no more than this when it is expanded: 255 times (LZ4 block format, "Implementation notes").
const GROWTH_MAX: usize = 255;

/// The body as one block and its size before, unless that saves less than a sixteenth.
pub(super) fn compress(body: &[u8]) -> Option<(Bytes, u32)> {
    let raw_bytes = u32::try_from(body.len()).ok()?;
    let block = lz4_flex::block::compress(body);
    (block.len() < body.len() - body.len() / 16).then(|| (block.into(), raw_bytes))
}

/// The body that a block of `raw_bytes` holds.
///
/// # Errors
/// When it says that it is larger than it may be, or is no such block. At most `raw_bytes` were reserved.
pub(super) fn expand(block: &[u8], raw_bytes: u32) -> Result<Bytes, DecodeError> {
    let raw_bytes = raw_bytes as usize;
    if raw_bytes > FRAME_BYTES_MAX || raw_bytes > block.len().saturating_mul(GROWTH_MAX) {
        return Err(DecodeError::OutOfBounds("size of a compressed chunk"));
    }
    let mut body = vec![0; raw_bytes];
    match lz4_flex::block::decompress_into(block, &mut body) {
        Ok(size) if size == raw_bytes => Ok(body.into()),
        Ok(_) | Err(_) => Err(DecodeError::Compression),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_shrinks_comes_back_and_what_does_not_stays() {
        let body = b"{\"policy\": \"random\"}".repeat(500);
        let (block, raw_bytes) = compress(&body).unwrap();
        assert!(block.len() * 10 < body.len());
        assert_eq!(expand(&block, raw_bytes).unwrap(), body);
        let noise: Vec<u8> =
            (0..10_000_u64).flat_map(|n| xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes()).to_le_bytes()).collect();
        assert_eq!(compress(&noise), None);
        assert_eq!(compress(b""), None);
    }

    #[test]
    fn a_bomb_is_refused_by_its_size() {
        let bomb = lz4_flex::block::compress(&vec![0; 3 * FRAME_BYTES_MAX]);
        let size = |bytes: usize| u32::try_from(bytes).unwrap();
        for (case, block, raw_bytes) in [
            ("larger than a frame", &bomb[..], size(3 * FRAME_BYTES_MAX)),
            ("a lie about a large one", &bomb[..], size(FRAME_BYTES_MAX)),
            ("the largest number", &bomb[..], u32::MAX),
            ("more than any block grows", &[0x10, 0, 0][..], size(FRAME_BYTES_MAX)),
            ("less than it holds", &bomb[..], 100),
            ("nothing", &[][..], 1),
        ] {
            assert!(expand(block, raw_bytes).is_err(), "{case}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_blocks_never_panic(block in proptest::collection::vec(any::<u8>(), 0..300), raw_bytes in 0..80_000_u32) {
            let _ = expand(&block, raw_bytes).is_ok();
        }

        #[test]
        fn every_body_comes_back(body in proptest::collection::vec(0..4_u8, 0..5000)) {
            if let Some((block, raw_bytes)) = compress(&body) {
                prop_assert_eq!(&expand(&block, raw_bytes).unwrap()[..], &body[..]);
            }
        }
    }
}
