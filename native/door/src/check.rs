//! Bytes that come under the name of a blob that is here already are compared with it and not kept.

use buildnet_formats::{Digest, Hasher, NativeError};

/// A comparison.
pub(crate) struct Check {
    expected: Digest,
    hasher: Hasher,
}

impl Check {
    pub(crate) fn new(expected: Digest) -> Self {
        Self { expected, hasher: Hasher::new(expected.function()) }
    }

    /// # Errors
    /// `digest_mismatch` as soon as there are more bytes than the blob has.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), NativeError> {
        self.hasher.update(data);
        if self.hasher.size_bytes() > self.expected.size_bytes() {
            // Whatever follows changes nothing, and may have no end.
            return Err(NativeError::mismatch(self.expected, self.hasher.clone().finish(), "caller"));
        }
        Ok(())
    }

    /// # Errors
    /// `digest_mismatch` when the bytes are others.
    pub(crate) fn finish(self) -> Result<(), NativeError> {
        let actual = self.hasher.finish();
        if actual == self.expected { Ok(()) } else { Err(NativeError::mismatch(self.expected, actual, "caller")) }
    }
}
