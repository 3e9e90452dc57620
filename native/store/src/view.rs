//! Looking at the store from outside: what is there, and what is known of one blob. It changes nothing, not even when
//! something was last used.

use buildnet_formats::{Digest, Function};

use crate::index::{Place, Use};
use crate::record::{HEADER_BYTES, Header, Key, Kind, ZSTD};
use crate::{EntryName, Store, now_s};

/// One record of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// `blob`, `action` or `path`.
    pub kind: &'static str,
    /// The digest, or namespace and name.
    pub name: String,
    /// Of a blob its size, of an entry that of its value.
    pub size_bytes: u64,
    /// On the disk.
    pub stored_bytes: u64,
}

/// What is known of one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// On the disk, its record included.
    pub stored_bytes: u64,
    /// `packed`, `zstd` or `file`.
    pub stored_as: &'static str,
    /// Number of the segment that its record is in; the oldest goes first.
    pub segment: u32,
    /// How many segments go before this one.
    pub segments_before: usize,
    /// `recent`, `referenced`, `restored` or `idle`.
    pub usage: &'static str,
    /// When it was last used or written, in seconds since 1970.
    pub used_at_s: u64,
    /// Until when that keeps it, in seconds since 1970.
    pub kept_until_s: u64,
    /// Names under which it is held.
    pub held_by: Vec<String>,
}

/// A record as a listing shows it; none of what is no record of ours.
pub(crate) fn listed(header: &Header, name: &[u8], key: &Key, place: Place) -> Option<Listed> {
    let large = if place.is_large() { key.size_bytes() } else { 0 };
    let stored_bytes = u64::from(place.length()) + large;
    match header.kind {
        Kind::Blob => Function::of_byte(header.function).map(|function| Listed {
            kind: "blob",
            name: Digest::new(function, name, header.size_bytes).to_string(),
            size_bytes: header.size_bytes,
            stored_bytes,
        }),
        _ => EntryName::describe(name).map(|(kind, namespace, name)| Listed {
            kind,
            name: if namespace.is_empty() { name } else { format!("{namespace}:{name}") },
            size_bytes: u64::from(header.payload_length),
            stored_bytes,
        }),
    }
}

impl Store {
    /// Every record, in no order that means anything, until `each` says no.
    pub fn list(&self, mut each: impl FnMut(Listed) -> bool) {
        let blocks = (0..).map_while(|number| self.index.read().block(number));
        for (key, place) in blocks.flatten() {
            let Some((header, bytes)) = self.log.segment(place.segment).and_then(|s| s.read(&key, place)) else {
                continue;
            };
            let found = listed(&header, &bytes[HEADER_BYTES..header.payload_at()], &key, place);
            if found.is_some_and(|found| !each(found)) {
                return;
            }
        }
    }

    /// What is known of a blob; none when it is absent.
    pub fn facts(&self, digest: &Digest) -> Option<Facts> {
        let key = Key::of_blob(digest);
        let (place, usage, used_at_s) = {
            let index = self.index.read();
            let usage = index.usage(&key, now_s(), self.options.keep_s, self.opened_s)?;
            (index.get(&key)?, usage, index.used_at_s(&key)?)
        };
        let (header, _) = self.log.segment(place.segment)?.read(&key, place)?;
        let large = if place.is_large() { key.size_bytes() } else { 0 };
        Some(Facts {
            stored_bytes: u64::from(place.length()) + large,
            stored_as: match (place.is_large(), header.flags & ZSTD != 0) {
                (true, _) => "file",
                (_, true) => "zstd",
                _ => "packed",
            },
            segment: place.segment,
            segments_before: self.log.all().iter().filter(|s| s.number < place.segment).count(),
            usage: match usage {
                Use::Recent => "recent",
                Use::Referenced => "referenced",
                Use::Restored => "restored",
                Use::Idle => "idle",
            },
            used_at_s,
            kept_until_s: used_at_s + self.options.keep_s,
            held_by: self.holders(digest),
        })
    }
}
