//! Blobs in memory that are what their digest says: whoever hashes them need not be who writes them, and many are written at
//! once. None is made of bytes that were not compared.

use std::sync::Arc;

use buildnet_formats::{Digest, NativeError};
use bytes::Bytes;

use super::check;
use crate::Store;

/// A blob whose bytes were compared with its digest.
#[derive(Clone, Debug)]
pub struct Checked {
    digest: Digest,
    data: Bytes,
}

impl Checked {
    /// Compare `data` with the digest that it should have.
    ///
    /// # Errors
    /// `digest_mismatch` when it has another.
    pub fn new(expected: Digest, data: Bytes) -> Result<Self, NativeError> {
        check(&expected, &data)?;
        Ok(Self { digest: expected, data })
    }

    /// Bytes of the blob.
    pub fn size_bytes(&self) -> u64 {
        self.digest.size_bytes()
    }
}

impl Store {
    /// Store those that are not here, the small ones with one write. After an error none of them is promised.
    ///
    /// # Errors
    /// As [`Store::writer`].
    pub fn put_checked(self: &Arc<Self>, blobs: &[Checked]) -> Result<(), NativeError> {
        let mut packed = Vec::with_capacity(blobs.len());
        for blob in blobs {
            if blob.size_bytes() > self.options.packed_bytes_max {
                self.put_verified(&blob.digest, &blob.data)?;
            } else if !self.is_promised(&blob.digest) {
                packed.push((blob.digest, blob.data.as_ref(), 0));
            }
        }
        self.append_blobs(&packed)
    }
}
