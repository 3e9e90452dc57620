//! What an attempt needs comes into the worker's own store; everything that is missing is said at once.

use std::collections::BTreeSet;

use buildnet_formats::{Digest, FieldValue, NativeError};

use crate::order::Room;
use crate::patience::Patience;

/// Bring these blobs, and the tree with all below it unless it is empty or kept. Blocks.
pub(crate) fn bring(
    room: &Room,
    patience: &Patience,
    blobs: &[Digest],
    tree: Option<&Digest>,
) -> Result<(), NativeError> {
    let mut missing = BTreeSet::new();
    if !blobs.is_empty() {
        let fetched = patience.tried(|| room.link.fetch_blobs(&room.store, blobs).map_err(NativeError::from));
        note(fetched, &mut missing)?;
    }
    let tree = tree.filter(|root| !root.is_empty());
    // A tree that is kept needs nothing of the store.
    if let Some(root) = tree.filter(|root| room.trees.as_ref().is_none_or(|trees| trees.find(root).is_none())) {
        let fetched = patience.tried(|| room.link.fetch_tree(&room.store, root).map_err(NativeError::from));
        note(fetched, &mut missing)?;
    }
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!("{} inputs are missing; upload them and ask again", missing.len());
    let digests = missing.into_iter().collect();
    Err(NativeError::new("blobs_missing", message).with("digests", FieldValue::Texts(digests)))
}

fn note<T>(fetched: Result<T, NativeError>, missing: &mut BTreeSet<String>) -> Result<(), NativeError> {
    match fetched {
        Err(error) if error.code == "blobs_missing" => {
            for (_, field) in error.fields {
                if let FieldValue::Texts(digests) = field {
                    missing.extend(digests);
                }
            }
            Ok(())
        }
        other => other.map(drop),
    }
}
