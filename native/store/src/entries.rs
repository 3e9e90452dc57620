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
pub const VALUE_BYTES_PACKED: usize = 1 << 20;

/// Index of no ledger entry.
const UNLEDGERED: u64 = u64::MAX;

/// Who wrote an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client, by UpdateActionResult or HTTP; the index of the ledger's entry that says so, if one does.
    Client(Option<u64>),
    /// The controller, after the ledger entry of this index was committed.
    Published(u64),
}

/// A value that is ready to be written under its name.
#[derive(Clone, Debug)]
pub struct Draft {
    name: EntryName,
    value: Bytes,
    action_size: u64,
    how: u8,
}

impl Draft {
    /// The result of an action.
    ///
    /// # Errors
    /// `invalid_request` when the namespace is too long.
    pub fn action(namespace: &str, action: &Digest, value: Bytes) -> Result<Self, NativeError> {
        Ok(Self { name: EntryName::action(namespace, action)?, value, action_size: action.size_bytes(), how: 0 })
    }

    /// A value under a path, or under an action whose writer knew no size.
    pub fn path(name: EntryName, value: Bytes) -> Self {
        Self { name, value, action_size: SIZE_UNKNOWN, how: 0 }
    }

    /// A blob that is here as the value under a path.
    pub fn path_blob(name: EntryName, digest: &Digest) -> Self {
        Self { name, value: digest.to_string().into_bytes().into(), action_size: SIZE_UNKNOWN, how: AS_BLOB }
    }

    fn payload(&self, origin: Origin) -> Vec<u8> {
        let (published, index) = match origin {
            Origin::Client(index) => (0, index.unwrap_or(UNLEDGERED)),
            Origin::Published(index) => (PUBLISHED, index),
        };
        let mut payload = Vec::with_capacity(PREFIX_BYTES + self.value.len());
        payload.extend_from_slice(&[published, self.how, 0, 0, 0, 0, 0, 0]);
        payload.extend_from_slice(&index.to_le_bytes());
        payload.extend_from_slice(&self.action_size.to_le_bytes());
        payload.extend_from_slice(&self.value);
        payload
    }
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

    /// What the index finds it by.
    pub(crate) fn key(&self) -> Key {
        Key::of_entry(&self.0)
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

    /// The namespace, and the path or `FUNCTION/HASH` within it.
    pub fn words(&self) -> (String, String) {
        let words = Self::describe(&self.0).map(|(_, namespace, name)| (namespace, name));
        words.unwrap_or_default()
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

/// Where the value of an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In the entry itself, checked.
    Here(Bytes),
    /// A blob, which is here.
    Blob(Digest),
}

/// A value and what is known of it.
pub(crate) struct Entry {
    pub(crate) value: Bytes,
    pub(crate) origin: Origin,
    as_blob: bool,
    action_size: Option<u64>,
}

impl Entry {
    /// Whether its writer said the action's size: then it was checked to be a result.
    pub(crate) fn has_size(&self) -> bool {
        self.action_size.is_some()
    }

    /// Whether the value is the digest of a blob that holds it.
    pub(crate) fn as_blob(&self) -> bool {
        self.as_blob
    }

    pub(crate) fn decode(payload: Bytes) -> Option<Self> {
        let prefix = payload.get(..PREFIX_BYTES)?;
        let index = u64_at(prefix, 8);
        let origin = match prefix[0] {
            PUBLISHED => Origin::Published(index),
            _ => Origin::Client(Some(index).filter(|index| *index != UNLEDGERED)),
        };
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
        self.entry_as_kept(name)?.map_or(Ok(None), |entry| self.whole(entry))
    }

    /// The entry as it is in its segment.
    fn entry_as_kept(&self, name: &EntryName) -> Result<Option<Entry>, NativeError> {
        let key = Key::of_entry(&name.0);
        for _ in 0..8 {
            let Some(place) = self.index.read().touch(&key, now_s()) else { return Ok(None) };
            let Some(segment) = self.log.segment(place.segment) else { continue };
            let read = segment.read(&key, place);
            let entry = read.and_then(|(header, bytes)| Entry::decode(Bytes::from(bytes).slice(header.payload_at()..)));
            if entry.is_some() {
                return Ok(entry);
            }
            if self.forget_at(&key, place) {
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

    /// Where the value of an entry is, so that a large one can be streamed; none when its blob is gone.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn kept(&self, name: &EntryName) -> Result<Option<Kept>, NativeError> {
        let Some(entry) = self.entry_as_kept(name)? else { return Ok(None) };
        if !entry.as_blob {
            return Ok(Some(Kept::Here(entry.value)));
        }
        let digest: Digest = String::from_utf8_lossy(&entry.value).parse()?;
        Ok(self.contains(&digest).then_some(Kept::Blob(digest)))
    }

    /// The index of the ledger's entry for a result that the controller published.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn published_index(&self, namespace: &str, action: &Digest) -> Result<Option<u64>, NativeError> {
        Ok(self.entry_of_action(namespace, action)?.and_then(|entry| match entry.origin {
            Origin::Published(index) => Some(index),
            Origin::Client(_) => None,
        }))
    }

    /// Write values together, each with its origin.
    ///
    /// # Errors
    /// `storage_full`, `state_corrupt`; then none of them is written.
    pub fn put_drafts(self: &Arc<Self>, drafts: Vec<(Draft, Origin)>) -> Result<(), NativeError> {
        let mut payloads = Vec::with_capacity(drafts.len());
        let mut names = Vec::with_capacity(drafts.len());
        for (mut draft, origin) in drafts {
            if draft.value.len() > VALUE_BYTES_PACKED {
                draft.value = self.put_bytes(&draft.value)?.to_string().into_bytes().into();
                draft.how = AS_BLOB;
            }
            payloads.push(draft.payload(origin));
            names.push(draft.name.0);
        }
        self.reserve(payloads.iter().map(|payload| payload.len() as u64).sum())?;
        let records: Vec<Record<'_>> = names
            .iter()
            .zip(&payloads)
            .map(|(name, payload)| Record {
                key: Key::of_entry(name),
                kind: Kind::Entry,
                function: 0,
                flags: 0,
                name,
                payload,
            })
            .collect();
        self.append(&records)?;
        self.counters.entries_written.fetch_add(records.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Keep a value under a path, in no ledger.
    ///
    /// # Errors
    /// `storage_full`, `state_corrupt`.
    pub fn put_path(self: &Arc<Self>, name: &EntryName, value: &[u8]) -> Result<(), NativeError> {
        let draft = Draft::path(name.clone(), Bytes::copy_from_slice(value));
        self.put_drafts(vec![(draft, Origin::Client(None))])
    }

    /// Keep a blob that is here as the value under a path, in no ledger.
    ///
    /// # Errors
    /// As [`Store::put_path`].
    pub fn put_path_blob(self: &Arc<Self>, name: &EntryName, digest: &Digest) -> Result<(), NativeError> {
        self.put_drafts(vec![(Draft::path_blob(name.clone(), digest), Origin::Client(None))])
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
            self.forget(&key);
        }
        known
    }
}
