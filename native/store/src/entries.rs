//! Entries: values under a name that their writer chose, kept exactly as they came. Results of actions are one sort, what
//! HTTP clients keep under paths another. A value too large for a segment is kept as a blob that the entry names.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use buildnet_formats::{Digest, Function, NativeError};
use bytes::Bytes;

use crate::log::Record;
use crate::record::{Key, Kind, NAME_BYTES_MAX, u64_at};
use crate::{Store, now_s};

const ACTION: u8 = b'a';
const PATH: u8 = b'p';
/// Origin, whether the value is a blob's digest, padding, the ledger's index, the action's size.
const PREFIX_BYTES: usize = 24;
const PUBLISHED: u8 = 1;
const AS_BLOB: u8 = 1;
const SIZE_UNKNOWN: u64 = u64::MAX;
/// Values up to this are kept in the segment itself.
const VALUE_BYTES_PACKED: usize = 1 << 20;

/// Who wrote an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client, by UpdateActionResult or HTTP.
    Client,
    /// The controller, after the ledger entry of this index was committed.
    Published(u64),
}

/// What an entry is found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryName(Vec<u8>);

impl EntryName {
    /// The result of an action in a namespace. The size is not part of the name, because HTTP clients do not say it; it
    /// is compared where both know it.
    ///
    /// # Errors
    /// `invalid_request` when the namespace is too long.
    pub fn action(namespace: &str, action: &Digest) -> Result<Self, NativeError> {
        let mut name = Self::begin(ACTION, namespace, action.hash().len() + 1)?;
        name.push(action.function() as u8);
        name.extend_from_slice(action.hash());
        Ok(Self(name))
    }

    /// A value under a path in a namespace.
    ///
    /// # Errors
    /// `invalid_request` when the two are too long together.
    pub fn path(namespace: &str, path: &str) -> Result<Self, NativeError> {
        let mut name = Self::begin(PATH, namespace, path.len())?;
        name.extend_from_slice(path.as_bytes());
        Ok(Self(name))
    }

    fn begin(sort: u8, namespace: &str, more: usize) -> Result<Vec<u8>, NativeError> {
        if namespace.len() + more + 3 > NAME_BYTES_MAX {
            return Err(NativeError::invalid("instance_name", "the name is over 4096 bytes"));
        }
        let length = u16::try_from(namespace.len()).unwrap_or(u16::MAX);
        let mut name = Vec::with_capacity(3 + namespace.len() + more);
        name.push(sort);
        name.extend_from_slice(&length.to_le_bytes());
        name.extend_from_slice(namespace.as_bytes());
        Ok(name)
    }

    /// The bytes of a record's name as one of these, in words: sort, namespace, and path or digest.
    pub(crate) fn describe(name: &[u8]) -> Option<(&'static str, String, String)> {
        let length = usize::from(u16::from_le_bytes([*name.get(1)?, *name.get(2)?]));
        let (namespace, rest) = name.get(3..)?.split_at_checked(length)?;
        let namespace = String::from_utf8_lossy(namespace).into_owned();
        match name[0] {
            ACTION => {
                let function = Function::of_byte(*rest.first()?)?;
                let hash = rest[1..].iter().map(|b| format!("{b:02x}")).collect::<String>();
                Some(("action", namespace, format!("{}/{hash}", function.name())))
            }
            PATH => Some(("path", namespace, String::from_utf8_lossy(rest).into_owned())),
            _ => None,
        }
    }
}

/// A value and what is known of it.
pub(crate) struct Entry {
    pub(crate) value: Bytes,
    pub(crate) origin: Origin,
    as_blob: bool,
    action_size: Option<u64>,
}

impl Entry {
    /// Whether the value is the digest of a blob that holds it.
    pub(crate) fn as_blob(&self) -> bool {
        self.as_blob
    }

    pub(crate) fn decode(payload: Bytes) -> Option<Self> {
        let prefix = payload.get(..PREFIX_BYTES)?;
        let origin = if prefix[0] == PUBLISHED { Origin::Published(u64_at(prefix, 8)) } else { Origin::Client };
        let action_size = Some(u64_at(prefix, 16)).filter(|size| *size != SIZE_UNKNOWN);
        let as_blob = prefix[1] == AS_BLOB;
        Some(Self { value: payload.slice(PREFIX_BYTES..), origin, as_blob, action_size })
    }
}

impl Store {
    /// The stored result of an action, whatever it refers to; of another size it is none.
    pub(crate) fn entry_of_action(&self, namespace: &str, action: &Digest) -> Result<Option<Entry>, NativeError> {
        let found = self.entry(&EntryName::action(namespace, action)?)?;
        Ok(found.filter(|entry| entry.action_size.is_none_or(|size| size == action.size_bytes())))
    }

    pub(crate) fn entry(&self, name: &EntryName) -> Result<Option<Entry>, NativeError> {
        let key = Key::of_entry(&name.0);
        for _ in 0..8 {
            let Some(place) = self.index.read().touch(&key, now_s()) else { return Ok(None) };
            let Some(segment) = self.log.segment(place.segment) else { continue };
            let read = segment.read(&key, place);
            let entry = read.and_then(|(header, bytes)| Entry::decode(Bytes::from(bytes).slice(header.payload_at()..)));
            if let Some(entry) = entry {
                return self.whole(entry);
            }
            if self.index.read().get(&key) == Some(place) {
                self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                self.forget(&key, 0, &name.0);
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// The value of an entry that names a blob is the blob; without it there is no entry.
    fn whole(&self, mut entry: Entry) -> Result<Option<Entry>, NativeError> {
        if entry.as_blob {
            let digest: Digest = String::from_utf8_lossy(&entry.value).parse()?;
            match self.get_bytes(&digest, u64::MAX) {
                Ok(value) => entry.value = value,
                Err(error) if matches!(error.code, "not_found" | "digest_mismatch") => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(entry))
    }

    /// The digest of the blob that a value under a path is kept as, so that it can be streamed.
    ///
    /// # Errors
    /// `state_corrupt` when the entry is malformed.
    pub fn entry_blob(&self, name: &EntryName) -> Result<Option<Digest>, NativeError> {
        let key = Key::of_entry(&name.0);
        let Some(place) = self.index.read().touch(&key, now_s()) else { return Ok(None) };
        let Some((header, bytes)) = self.log.segment(place.segment).and_then(|s| s.read(&key, place)) else {
            return Ok(None);
        };
        let entry = Entry::decode(Bytes::from(bytes).slice(header.payload_at()..)).filter(|entry| entry.as_blob);
        entry.map(|entry| String::from_utf8_lossy(&entry.value).parse()).transpose()
    }

    /// The index of the ledger's entry for a result that the controller published.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn published_index(&self, namespace: &str, action: &Digest) -> Result<Option<u64>, NativeError> {
        Ok(self.entry_of_action(namespace, action)?.and_then(|entry| match entry.origin {
            Origin::Published(index) => Some(index),
            Origin::Client => None,
        }))
    }

    pub(crate) fn put_entry_of_action(
        self: &Arc<Self>,
        namespace: &str,
        action: &Digest,
        size_known: bool,
        value: &[u8],
        origin: Origin,
    ) -> Result<(), NativeError> {
        let size = if size_known { action.size_bytes() } else { SIZE_UNKNOWN };
        self.put_entry(&EntryName::action(namespace, action)?, value, size, origin)
    }

    /// Keep a value under a path.
    ///
    /// # Errors
    /// `storage_full`, `state_corrupt`.
    pub fn put_path(self: &Arc<Self>, name: &EntryName, value: &[u8]) -> Result<(), NativeError> {
        self.put_entry(name, value, SIZE_UNKNOWN, Origin::Client)
    }

    /// Keep a blob that is here as the value under a path.
    ///
    /// # Errors
    /// As [`Store::put_path`].
    pub fn put_path_blob(self: &Arc<Self>, name: &EntryName, digest: &Digest) -> Result<(), NativeError> {
        self.append_entry(name, digest.to_string().as_bytes(), AS_BLOB, SIZE_UNKNOWN, Origin::Client)
    }

    /// The value under a path.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn get_path(&self, name: &EntryName) -> Result<Option<Bytes>, NativeError> {
        Ok(self.entry(name)?.map(|entry| entry.value))
    }

    /// Whether there is a value under a path.
    pub fn has_path(&self, name: &EntryName) -> bool {
        self.index.read().touch(&Key::of_entry(&name.0), now_s()).is_some()
    }

    /// Forget the value under a path; returns whether there was one.
    pub fn remove_path(&self, name: &EntryName) -> bool {
        let key = Key::of_entry(&name.0);
        let known = self.index.read().get(&key).is_some();
        if known {
            self.forget(&key, 0, &name.0);
        }
        known
    }

    fn put_entry(
        self: &Arc<Self>,
        name: &EntryName,
        value: &[u8],
        action_size: u64,
        origin: Origin,
    ) -> Result<(), NativeError> {
        if value.len() > VALUE_BYTES_PACKED {
            let digest = self.put_bytes(value)?;
            return self.append_entry(name, digest.to_string().as_bytes(), AS_BLOB, action_size, origin);
        }
        self.append_entry(name, value, 0, action_size, origin)
    }

    fn append_entry(
        &self,
        name: &EntryName,
        value: &[u8],
        how: u8,
        action_size: u64,
        origin: Origin,
    ) -> Result<(), NativeError> {
        let (published, index) = match origin {
            Origin::Client => (0, 0),
            Origin::Published(index) => (PUBLISHED, index),
        };
        let mut payload = Vec::with_capacity(PREFIX_BYTES + value.len());
        payload.extend_from_slice(&[published, how, 0, 0, 0, 0, 0, 0]);
        payload.extend_from_slice(&index.to_le_bytes());
        payload.extend_from_slice(&action_size.to_le_bytes());
        payload.extend_from_slice(value);
        self.reserve(payload.len() as u64)?;
        let key = Key::of_entry(&name.0);
        let record = Record { key, kind: Kind::Entry, function: 0, flags: 0, name: &name.0, payload: &payload };
        self.append(&[record])?;
        self.counters.entries_written.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
