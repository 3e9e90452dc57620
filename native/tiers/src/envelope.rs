//! How an entry is written where nothing names it by content: under a sum of its name and value, so that rot, a cut and a
//! value that was moved to another name are seen. It is no signature: who may write to a tier is believed.
//!
//! `BNE1`, flags (1: the value is a blob's digest), padding to 8, the action's size (all ones: unknown), SHA-256 of the
//! hashed name, the 16 bytes before and the value; the value.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::port::{EntryKey, TierError, Value};

const MAGIC: &[u8; 4] = b"BNE1";
const HEAD_BYTES: usize = 16;
const PREFIX_BYTES: usize = HEAD_BYTES + 32;
const AS_BLOB: u8 = 1;
const SIZE_UNKNOWN: u64 = u64::MAX;

/// Wrap a value for `key`.
pub(crate) fn seal(key: &EntryKey, value: &Value) -> Bytes {
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(MAGIC);
    head[4] = if value.as_blob { AS_BLOB } else { 0 };
    head[8..].copy_from_slice(&value.action_size.unwrap_or(SIZE_UNKNOWN).to_le_bytes());
    let sum = sum_of(key, &head, &value.bytes);
    [&head[..], &sum, &value.bytes].concat().into()
}

/// Unwrap what was found under `key`.
pub(crate) fn open(key: &EntryKey, mut sealed: Bytes) -> Result<Value, TierError> {
    let damaged = || TierError::Damaged(format!("the entry {} is not as it was written", key.hashed()));
    if sealed.len() < PREFIX_BYTES || &sealed[..4] != MAGIC {
        return Err(damaged());
    }
    let prefix = sealed.split_to(PREFIX_BYTES);
    let (head, sum) = prefix.split_at(HEAD_BYTES);
    if sum != sum_of(key, head, &sealed) {
        return Err(damaged());
    }
    let mut size = [0; 8];
    size.copy_from_slice(&head[8..]);
    let action_size = Some(u64::from_le_bytes(size)).filter(|size| *size != SIZE_UNKNOWN);
    Ok(Value { action_size, as_blob: head[4] == AS_BLOB, bytes: sealed })
}

fn sum_of(key: &EntryKey, head: &[u8], value: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(key.name_hash());
    hasher.update(head);
    hasher.update(value);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(path: &str) -> EntryKey {
        EntryKey::Path { namespace: "n".to_owned(), path: path.to_owned() }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_and_nothing_else_does(
            bytes: Vec<u8>, as_blob: bool, size in proptest::option::of(0u64..u64::MAX), at: prop::sample::Index, bit in 0u8..8
        ) {
            let value = Value { action_size: size, as_blob, bytes: bytes.into() };
            let sealed = seal(&path("a"), &value);
            prop_assert_eq!(open(&path("a"), sealed.clone()).unwrap(), value);
            prop_assert!(open(&path("b"), sealed.clone()).is_err());
            let mut rotten = sealed.to_vec();
            let at = at.index(rotten.len());
            rotten[at] ^= 1 << bit;
            prop_assert!(open(&path("a"), rotten.into()).is_err());
            prop_assert!(open(&path("a"), sealed.slice(..at)).is_err());
        }
    }
}
