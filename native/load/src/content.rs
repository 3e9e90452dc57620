//! Blobs that differ only in their last bytes, so that a new one costs one hash block and never the whole of its size.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// Bytes at the end of a blob that tell it from its kin.
pub const TAIL_BYTES: usize = 16;
/// Letters of a digest's hash.
pub const HASH_CHARS: usize = 64;

/// What tells a blob from its kin.
pub type Tail = [u8; TAIL_BYTES];
/// SHA-256 in lower-case hexadecimal.
pub type Hash = [u8; HASH_CHARS];

/// The tail of number `number` in the family `family`.
pub fn tail(family: u64, number: u64) -> Tail {
    let mut tail = [0; TAIL_BYTES];
    tail[..8].copy_from_slice(&family.to_le_bytes());
    tail[8..].copy_from_slice(&number.to_le_bytes());
    tail
}

/// Families of blobs that are the same in every run: those that are uploaded beforehand, and those that never are.
pub const KEPT: u64 = 1;
/// See [`KEPT`].
pub const ABSENT: u64 = 2;

/// All blobs of one size: incompressible bytes, and a tail.
pub struct Template {
    bytes: Bytes,
    hashed: Sha256,
}

impl Template {
    /// Blobs of `size` bytes; at least [`TAIL_BYTES`].
    pub fn new(size: usize) -> Self {
        let size = size.max(TAIL_BYTES);
        let mut bytes = Vec::with_capacity(size + 8);
        let mut state: u64 = size as u64;
        while bytes.len() < size {
            bytes.extend_from_slice(&splitmix(&mut state).to_le_bytes());
        }
        bytes.truncate(size);
        bytes[size - TAIL_BYTES..].fill(0);
        let hashed = Sha256::new_with_prefix(&bytes[..size - TAIL_BYTES]);
        Self { bytes: Bytes::from(bytes), hashed }
    }

    /// Bytes of each blob.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes, with zeroes where the tail goes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The hash of the blob with this tail.
    pub fn hash(&self, tail: &Tail) -> Hash {
        let raw = self.hashed.clone().chain_update(tail).finalize();
        let mut hash = [0; HASH_CHARS];
        // The sizes agree, which is the only way that this can fail.
        let _ = hex::encode_to_slice(raw, &mut hash);
        hash
    }

    /// The blob with this tail, whole.
    pub fn blob(&self, tail: &Tail) -> Bytes {
        let mut blob = self.bytes.to_vec();
        let at = blob.len() - TAIL_BYTES;
        blob[at..].copy_from_slice(tail);
        Bytes::from(blob)
    }

    /// Whether `piece` is what the blob with this tail has at `offset`.
    pub fn matches(&self, tail: &Tail, offset: usize, piece: &[u8]) -> bool {
        let Some(end) = offset.checked_add(piece.len()).filter(|end| *end <= self.size()) else { return false };
        let tail_at = self.size() - TAIL_BYTES;
        let split = tail_at.clamp(offset, end);
        let (body, rest) = piece.split_at(split - offset);
        body == &self.bytes[offset..split] && (rest.is_empty() || rest == &tail[split - tail_at..end - tail_at])
    }
}

/// A well-mixed number from a counter (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_hash_from_the_prefix_is_the_hash_of_the_whole(size in 16usize..5000, number: u64) {
            let template = Template::new(size);
            let tail = tail(KEPT, number);
            let whole = hex::encode(Sha256::digest(template.blob(&tail)));
            prop_assert_eq!(template.hash(&tail).to_vec(), whole.into_bytes());
        }

        #[test]
        fn a_piece_matches_where_it_lies_and_one_wrong_byte_does_not(size in 16usize..300, a: usize, b: usize, c: usize) {
            let template = Template::new(size);
            let tail = tail(ABSENT, 77);
            let blob = template.blob(&tail);
            let (a, b) = (a % (size + 1), b % (size + 1));
            let (from, to) = (a.min(b), a.max(b));
            prop_assert!(template.matches(&tail, from, &blob[from..to]));
            if from < to {
                let mut wrong = blob[from..to].to_vec();
                let at = c % wrong.len();
                wrong[at] ^= 1;
                prop_assert!(!template.matches(&tail, from, &wrong));
            }
            prop_assert!(!template.matches(&tail, size, b"more"));
        }
    }
}
