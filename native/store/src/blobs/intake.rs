//! Bytes whose digest is known only once all have come. They take memory up to a limit, then a file of their own, and are
//! a blob once they are named; dropped before that, they leave nothing.

use std::sync::Arc;

use buildnet_formats::{Digest, Function, Hasher, NativeError};

use super::{BlobWriter, Body, LargeFile};
use crate::Store;

/// Room on the disk is asked for in steps of this size, since the end is not known.
const RESERVED_STEP_BYTES: u64 = 1 << 20;

/// A value on its way in.
pub struct Intake {
    store: Arc<Store>,
    function: Function,
    size_bytes: u64,
    size_bytes_max: u64,
    memory_bytes_max: usize,
    /// Set once the bytes go to a file; what stays in memory is hashed only if it becomes a blob.
    hasher: Option<Hasher>,
    reserved_bytes: u64,
    body: Body,
}

impl Store {
    /// Take in bytes of unknown number: at most `size_bytes_max` of them, and in memory at most `memory_bytes_max`.
    pub fn intake(self: &Arc<Self>, function: Function, size_bytes_max: u64, memory_bytes_max: usize) -> Intake {
        Intake {
            store: Arc::clone(self),
            function,
            size_bytes: 0,
            size_bytes_max: size_bytes_max.min(self.options.blob_size_bytes_max),
            memory_bytes_max,
            hasher: None,
            reserved_bytes: 0,
            body: Body::Packed(Vec::new()),
        }
    }
}

impl Intake {
    /// Bytes taken in so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The bytes, while they are few enough to be in memory.
    pub fn in_memory(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Packed(bytes) => Some(bytes),
            Body::Large(_) => None,
        }
    }

    /// Take in more bytes.
    ///
    /// # Errors
    /// `too_large` past the limit, `storage_full`.
    pub fn write(&mut self, data: &[u8]) -> Result<(), NativeError> {
        let size = self.size_bytes + data.len() as u64;
        if size > self.size_bytes_max {
            return Err(NativeError::too_large(
                format!("more than {} bytes came, which is the limit here", self.size_bytes_max),
                self.size_bytes_max,
            ));
        }
        if size > self.memory_bytes_max as u64 {
            self.spill()?;
        }
        if let Some(hasher) = &mut self.hasher {
            if size > self.reserved_bytes {
                let step = (size - self.reserved_bytes).max(RESERVED_STEP_BYTES);
                self.store.reserve(step)?;
                self.reserved_bytes += step;
            }
            hasher.update(data);
        }
        self.size_bytes = size;
        self.body.write(data)
    }

    /// Give the memory back: what came so far, and what follows, goes to a file.
    ///
    /// # Errors
    /// `storage_full`, `state_corrupt`.
    pub fn spill(&mut self) -> Result<(), NativeError> {
        let Body::Packed(bytes) = &self.body else { return Ok(()) };
        self.store.reserve(bytes.len() as u64)?;
        self.reserved_bytes = bytes.len() as u64;
        let mut file = LargeFile::create(&self.store)?;
        file.write(bytes)?;
        let mut hasher = Hasher::new(self.function);
        hasher.update(bytes);
        self.hasher = Some(hasher);
        self.body = Body::Large(file);
        Ok(())
    }

    /// Keep the bytes as a blob, whatever they are; returns its digest.
    ///
    /// # Errors
    /// `storage_full`, `state_corrupt`.
    pub fn commit(self) -> Result<Digest, NativeError> {
        self.commit_as(None, None)
    }

    /// Keep the bytes as the blob with the hash `expected`, whatever its size. `packed`: as in [`BlobWriter::commit_as`].
    ///
    /// # Errors
    /// `digest_mismatch` when they have another hash; nothing is kept then. Else as [`Intake::commit`].
    pub fn commit_as(mut self, expected: Option<&[u8]>, packed: Option<&[u8]>) -> Result<Digest, NativeError> {
        let hasher = self.hasher.take();
        let actual = match (hasher, &self.body) {
            (None, Body::Packed(bytes)) => Digest::by(self.function, bytes),
            (hasher, _) => hasher.unwrap_or_else(|| Hasher::new(self.function)).finish(),
        };
        if let Some(hash) = expected
            && hash != actual.hash()
        {
            let expected = Digest::new(self.function, hash, actual.size_bytes());
            return Err(NativeError::mismatch(expected, actual, "caller"));
        }
        if self.store.is_promised(&actual) {
            return Ok(actual);
        }
        match (&self.body, packed) {
            (Body::Packed(bytes), Some(frames)) if frames.len() + bytes.len() / 8 < bytes.len() => {
                self.store.put_packed_zstd(&actual, frames)?;
            }
            (Body::Packed(bytes), _) => self.store.put_verified(&actual, bytes)?,
            (Body::Large(_), _) => {
                let (store, function) = (self.store, self.function);
                BlobWriter { store, expected: actual, hasher: Hasher::new(function), body: self.body }.keep()?;
            }
        }
        Ok(actual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use proptest::prelude::*;

    fn store(directory: &tempfile::TempDir) -> Arc<Store> {
        Arc::new(Store::open(directory.path(), Options::default()).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_comes_in_pieces_is_the_blob(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8), memory in 0usize..600
        ) {
            let directory = tempfile::tempdir().unwrap();
            let store = store(&directory);
            let mut intake = store.intake(Function::Sha256, 1 << 20, memory);
            for piece in &pieces {
                intake.write(piece).unwrap();
            }
            let whole = pieces.concat();
            prop_assert_eq!(intake.in_memory().is_some(), whole.len() <= memory || whole.is_empty());
            let digest = intake.commit().unwrap();
            prop_assert_eq!(digest, Digest::of(&whole));
            prop_assert_eq!(store.get_bytes(&digest, u64::MAX).unwrap(), whole);
        }
    }

    #[test]
    fn past_its_limit_or_of_another_hash_it_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        let mut intake = store.intake(Function::Sha256, 1000, 10);
        intake.write(&[1; 900]).unwrap();
        assert_eq!(intake.write(&[1; 101]).unwrap_err().code, "too_large");
        drop(intake);
        for memory in [10, 1000] {
            let mut intake = store.intake(Function::Blake3, 1000, memory);
            intake.write(&[2; 500]).unwrap();
            let other = Digest::by(Function::Blake3, b"other");
            assert_eq!(intake.commit_as(Some(other.hash()), None).unwrap_err().code, "digest_mismatch");
        }
        assert_eq!(std::fs::read_dir(directory.path().join("tmp")).unwrap().count(), 0);
        assert!(!store.contains(&Digest::by(Function::Blake3, &[2; 500])));
    }
}
