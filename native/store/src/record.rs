//! The bytes on disk, and nothing but: the header of a record in a segment and the key it is found by. Every byte of a
//! record is under a checksum, so that no flipped bit passes for content (docs/design/store.md).

use buildnet_formats::{Digest, Function};

/// Bytes of a record's header.
pub(crate) const HEADER_BYTES: usize = 32;
/// Records begin at multiples of this.
pub(crate) const ALIGN: u64 = 8;
/// Bytes of a name: an instance name, a path or a hash.
pub(crate) const NAME_BYTES_MAX: usize = 4096;

/// What a store mixes into the headers of its records. It is random and no client learns it, so that bytes which a client
/// sent never pass for a record when what stood before them is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Salt(pub(crate) [u8; 8]);

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A blob; its name is its hash.
    Blob = 1,
    /// A result by its action, or any value by its path; its name is the namespace and the rest.
    Entry = 2,
    /// What was found by the key that is this record's name is gone since.
    Removed = 3,
}

/// The payload is a list of what a file of its own holds.
pub(crate) const LARGE: u8 = 1;
/// The payload is zstd frames.
pub(crate) const ZSTD: u8 = 2;

/// How a record is found: what it is, 32 bytes of hash, and for a blob its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) hash: [u8; 32],
    /// Size in the upper 56 bits, then four bits of function and four of kind.
    pub(crate) what: u64,
}

impl Key {
    pub(crate) fn of_blob(digest: &Digest) -> Self {
        let mut hash = [0; 32];
        let given = digest.hash();
        let length = given.len().min(32);
        // 256 bits of a longer hash are as hard to collide as a SHA-256.
        hash[..length].copy_from_slice(&given[..length]);
        let function = u64::from(digest.function() as u8);
        Self { hash, what: digest.size_bytes() << 8 | function << 4 | Kind::Blob as u64 }
    }

    pub(crate) fn of_entry(name: &[u8]) -> Self {
        Self { hash: *blake3::hash(name).as_bytes(), what: Kind::Entry as u64 }
    }

    /// The key of a record with this header and name; none of a name that no record has.
    pub(crate) fn of_record(header: &Header, name: &[u8]) -> Option<Self> {
        match header.kind {
            Kind::Entry => return Some(Self::of_entry(name)),
            Kind::Removed => {
                let kind = if header.function == 0 { Kind::Entry } else { Kind::Blob };
                let what = header.size_bytes << 8 | u64::from(header.function & 15) << 4 | kind as u64;
                return Some(Self { hash: name.try_into().ok()?, what });
            }
            Kind::Blob => {}
        }
        let function = Function::of_byte(header.function).filter(|f| f.hash_bytes() == name.len())?;
        Some(Self::of_blob(&Digest::new(function, name, header.size_bytes)))
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.what >> 8
    }

    /// The digest function of a blob's key; 0 of an entry's.
    pub(crate) fn function(&self) -> u8 {
        (self.what >> 4 & 15) as u8
    }

    /// Whether the two are blobs of one function and hash, whatever their sizes.
    pub(crate) fn same_hash(&self, other: &Self) -> bool {
        self.hash == other.hash && self.what & 0xff == other.what & 0xff
    }
}

/// The header of a record. What follows it: the name, the payload, zeros up to [`ALIGN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) function: u8,
    pub(crate) flags: u8,
    pub(crate) name_length: u16,
    pub(crate) payload_length: u32,
    /// Of a blob: its size.
    pub(crate) size_bytes: u64,
    pub(crate) payload_crc: u32,
}

impl Header {
    /// The header's bytes before `name`. The last four are a checksum of the others and the name.
    pub(crate) fn encode(&self, salt: Salt, name: &[u8]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&salt.0[..4]);
        bytes[4] = self.kind as u8;
        bytes[5] = self.function;
        bytes[6] = self.flags;
        bytes[8..10].copy_from_slice(&self.name_length.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_length.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size_bytes.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = header_crc(salt, &bytes[..28], name);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header at the beginning of `bytes`, if its checksum with the name behind it holds.
    pub(crate) fn decode(salt: Salt, bytes: &[u8]) -> Option<Self> {
        let fixed = bytes.get(..HEADER_BYTES)?;
        if fixed[..4] != salt.0[..4] {
            return None;
        }
        let kind = match fixed[4] {
            1 => Kind::Blob,
            2 => Kind::Entry,
            3 => Kind::Removed,
            _ => return None,
        };
        let header = Self {
            kind,
            function: fixed[5],
            flags: fixed[6],
            name_length: u16::from_le_bytes([fixed[8], fixed[9]]),
            payload_length: u32_at(fixed, 12),
            size_bytes: u64::from(u32_at(fixed, 16)) | u64::from(u32_at(fixed, 20)) << 32,
            payload_crc: u32_at(fixed, 24),
        };
        let name = bytes.get(HEADER_BYTES..HEADER_BYTES + usize::from(header.name_length))?;
        (header_crc(salt, &fixed[..28], name) == u32_at(fixed, 28)).then_some(header)
    }

    /// Where the payload begins, counted from the header.
    pub(crate) fn payload_at(&self) -> usize {
        HEADER_BYTES + usize::from(self.name_length)
    }

    /// Bytes of header, name and payload.
    pub(crate) fn record_bytes(&self) -> u64 {
        self.payload_at() as u64 + u64::from(self.payload_length)
    }
}

/// The next place where a record may begin.
pub(crate) fn aligned(offset: u64) -> u64 {
    offset.next_multiple_of(ALIGN)
}

/// The checksum of payloads and of blocks of large files.
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

fn header_crc(salt: Salt, fixed: &[u8], name: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.0[4..]);
    hasher.update(fixed);
    hasher.update(name);
    hasher.finalize()
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SALT: Salt = Salt([1, 2, 3, 4, 5, 6, 7, 8]);

    proptest! {
        #[test]
        fn headers_round_trip_and_no_flipped_byte_passes(
            name in proptest::collection::vec(any::<u8>(), 0..80), length: u32, size: u64, at: usize, flip in 1u8..
        ) {
            let header = Header {
                kind: Kind::Entry, function: 0, flags: ZSTD, name_length: name.len() as u16,
                payload_length: length, size_bytes: size, payload_crc: 7,
            };
            let mut bytes = header.encode(SALT, &name).to_vec();
            bytes.extend_from_slice(&name);
            prop_assert_eq!(Header::decode(SALT, &bytes), Some(header));
            prop_assert!(Header::decode(Salt([9; 8]), &bytes).is_none());
            prop_assert!(Header::decode(Salt([1, 2, 3, 4, 0, 0, 0, 0]), &bytes).is_none());
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert!(Header::decode(SALT, &bytes).is_none());
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Header::decode(SALT, &bytes);
            let _ = Header::decode(SALT, &[&SALT.0[..4], &[1, 0, 0], &bytes].concat());
        }
    }

    #[test]
    fn keys_tell_function_size_and_kind_apart() {
        let digest = Digest::of(b"x");
        let other_size = Digest::new(Function::Sha256, digest.hash(), 2);
        let other_function = Digest::new(Function::Blake3, digest.hash(), 1);
        let key = Key::of_blob(&digest);
        assert_ne!(key, Key::of_blob(&other_size));
        assert!(key.same_hash(&Key::of_blob(&other_size)));
        assert!(!key.same_hash(&Key::of_blob(&other_function)));
        assert_eq!(key.size_bytes(), 1);
    }
}
