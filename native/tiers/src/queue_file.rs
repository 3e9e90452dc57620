//! The records of a queue's file: what waits to be written to a tier, and what no longer does. Every record is under a CRC;
//! bytes after the first that is not whole were never acknowledged, or are damage, and are told apart from records.
//!
//! `BNQUEUE1`, then records: length, CRC-32 of the payload, payload; the payload is a kind, a number and the body.
//! Numbers are little-endian.

use buildnet_formats::{Digest, Function};

use crate::port::EntryKey;

pub(crate) const HEADER: &[u8; 8] = b"BNQUEUE1";
const PREFIX_BYTES: usize = 8;
const PAYLOAD_BYTES_MAX: usize = 16 << 10;
const BLOB: u8 = 1;
const ACTION: u8 = 2;
const PATH: u8 = 3;
const DONE: u8 = 4;

/// What waits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    Blob(Digest),
    /// Its value is read when it goes.
    Entry(EntryKey),
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Waits(u64, Item),
    Done(u64),
}

impl Record {
    pub(crate) fn append_to(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.extend_from_slice(&[0; PREFIX_BYTES]);
        match self {
            Self::Waits(number, Item::Blob(digest)) => {
                head(bytes, BLOB, *number);
                put_digest(bytes, digest);
            }
            Self::Waits(number, Item::Entry(EntryKey::Action { namespace, action, size_known })) => {
                head(bytes, ACTION, *number);
                bytes.push(u8::from(*size_known));
                put_digest(bytes, action);
                bytes.extend_from_slice(namespace.as_bytes());
            }
            Self::Waits(number, Item::Entry(EntryKey::Path { namespace, path })) => {
                head(bytes, PATH, *number);
                bytes.extend_from_slice(&u32::try_from(namespace.len()).unwrap_or(u32::MAX).to_le_bytes());
                bytes.extend_from_slice(namespace.as_bytes());
                bytes.extend_from_slice(path.as_bytes());
            }
            Self::Done(number) => head(bytes, DONE, *number),
        }
        let payload = start + PREFIX_BYTES;
        let length = u32::try_from(bytes.len() - payload).unwrap_or(u32::MAX);
        let sum = crc32fast::hash(&bytes[payload..]);
        bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        bytes[start + 4..payload].copy_from_slice(&sum.to_le_bytes());
    }

    /// The first record of `bytes` and how long it is; none when it is not whole.
    fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut rest = bytes;
        let length = u32::from_le_bytes(take(&mut rest)?) as usize;
        let sum = u32::from_le_bytes(take(&mut rest)?);
        if length > PAYLOAD_BYTES_MAX {
            return None;
        }
        let payload = rest.get(..length)?;
        if crc32fast::hash(payload) != sum {
            return None;
        }
        Some((Self::parse(payload)?, PREFIX_BYTES + length))
    }

    fn parse(mut payload: &[u8]) -> Option<Self> {
        let [kind] = take(&mut payload)?;
        let number = u64::from_le_bytes(take(&mut payload)?);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        Some(match kind {
            BLOB => Self::Waits(number, Item::Blob(take_digest(&mut payload)?)),
            ACTION => {
                let [size_known] = take(&mut payload)?;
                let action = take_digest(&mut payload)?;
                let namespace = text(payload)?;
                Self::Waits(number, Item::Entry(EntryKey::Action { namespace, action, size_known: size_known == 1 }))
            }
            PATH => {
                let length = u32::from_le_bytes(take(&mut payload)?) as usize;
                let (namespace, path) = payload.split_at_checked(length)?;
                let (namespace, path) = (text(namespace)?, text(path)?);
                Self::Waits(number, Item::Entry(EntryKey::Path { namespace, path }))
            }
            DONE => Self::Done(number),
            _ => return None,
        })
    }
}

/// The records of a whole file, and how many of its bytes they are; none when it is no such file.
pub(crate) fn read_all(bytes: &[u8]) -> Option<(Vec<Record>, usize)> {
    if !bytes.starts_with(HEADER) {
        return None;
    }
    let mut at = HEADER.len();
    let mut records = Vec::new();
    while let Some((record, length)) = Record::read(&bytes[at..]) {
        records.push(record);
        at += length;
    }
    Some((records, at))
}

fn head(bytes: &mut Vec<u8>, kind: u8, number: u64) {
    bytes.push(kind);
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn put_digest(bytes: &mut Vec<u8>, digest: &Digest) {
    bytes.push(digest.function() as u8);
    bytes.extend_from_slice(&digest.size_bytes().to_le_bytes());
    bytes.extend_from_slice(digest.hash());
}

fn take_digest(rest: &mut &[u8]) -> Option<Digest> {
    let [function] = take(rest)?;
    let function = Function::of_byte(function)?;
    let size = u64::from_le_bytes(take(rest)?);
    let (hash, tail) = rest.split_at_checked(function.hash_bytes())?;
    *rest = tail;
    Some(Digest::new(function, hash, size))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let digest = (any::<Vec<u8>>(), prop::sample::select(Function::ALL.to_vec()))
            .prop_map(|(data, function)| Digest::by(function, &data));
        let record = prop_oneof![
            (any::<u64>(), digest.clone()).prop_map(|(n, digest)| Record::Waits(n, Item::Blob(digest))),
            (any::<u64>(), digest, "[a-z/]{0,9}", any::<bool>()).prop_map(|(n, action, namespace, size_known)| {
                Record::Waits(n, Item::Entry(EntryKey::Action { namespace, action, size_known }))
            }),
            (any::<u64>(), "[a-z/]{0,9}", "\\PC{0,20}")
                .prop_map(|(n, namespace, path)| { Record::Waits(n, Item::Entry(EntryKey::Path { namespace, path })) }),
            any::<u64>().prop_map(Record::Done),
        ];
        proptest::collection::vec(record, 0..8)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_up_to_the_first_torn_or_altered_record(
            records in records(), cut: prop::sample::Index, bit in 0u8..8
        ) {
            let mut bytes = HEADER.to_vec();
            let mut ends = Vec::new();
            for record in &records {
                record.append_to(&mut bytes);
                ends.push(bytes.len());
            }
            prop_assert_eq!(read_all(&bytes).unwrap(), (records.clone(), bytes.len()));
            let at = cut.index(bytes.len());
            if at >= HEADER.len() {
                let whole = ends.iter().filter(|end| **end <= at).count();
                prop_assert_eq!(&read_all(&bytes[..at]).unwrap().0, &records[..whole]);
                let mut altered = bytes.clone();
                altered[at] ^= 1 << bit;
                prop_assert_eq!(&read_all(&altered).unwrap().0, &records[..whole]);
            }
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = read_all(&[HEADER.as_slice(), &bytes].concat());
            let _ = read_all(&bytes);
        }
    }
}
