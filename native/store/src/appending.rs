//! Records on their way into a segment, in their order: heads and small payloads are put together here, larger payloads are
//! written from where they stand. It knows no index and keeps nothing.

use std::fs::File;
use std::io::{self, IoSlice};

use crate::log::Record;
use crate::record::{Salt, aligned};

/// Larger payloads are not copied: a slice of its own costs less.
const COPIED_BYTES_MAX: usize = 2 << 10;
/// Slices of one system call (UIO_MAXIOV, readv(2)).
const SLICES_MAX: usize = 1024;

/// Bytes to append.
pub(crate) struct Appending<'a> {
    heads: Vec<u8>,
    /// Payloads that stand elsewhere, and how many bytes of `heads` come before each.
    payloads: Vec<(usize, &'a [u8])>,
    length: usize,
}

impl<'a> Appending<'a> {
    /// Nothing yet; `buffer` is used for what is put together.
    pub(crate) fn new(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Self { heads: buffer, payloads: Vec::new(), length: 0 }
    }

    /// Bytes so far; a multiple of what records are aligned to.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn push(&mut self, record: &Record<'a>, salt: Salt) {
        let before = self.heads.len();
        self.heads.extend_from_slice(&record.header(salt));
        self.heads.extend_from_slice(record.name);
        if record.payload.len() <= COPIED_BYTES_MAX {
            self.heads.extend_from_slice(record.payload);
        } else {
            self.payloads.push((self.heads.len(), record.payload));
            self.length += record.payload.len();
        }
        let end = self.length + self.heads.len() - before;
        let padding = aligned(end as u64) as usize - end;
        self.heads.resize(self.heads.len() + padding, 0);
        self.length = end + padding;
    }

    /// Write all of it at an offset.
    pub(crate) fn write_at(&self, file: &File, mut offset: u64) -> io::Result<()> {
        let mut slices = Vec::with_capacity(2 * self.payloads.len() + 1);
        let mut from = 0;
        for (at, payload) in &self.payloads {
            slices.extend([IoSlice::new(&self.heads[from..*at]), IoSlice::new(payload)]);
            from = *at;
        }
        slices.push(IoSlice::new(&self.heads[from..]));
        let mut rest = &mut slices[..];
        // What is left may be the empty end.
        while rest.iter().any(|slice| !slice.is_empty()) {
            match rustix::io::pwritev(file, &rest[..rest.len().min(SLICES_MAX)], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The buffer, for the next.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.heads
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{HEADER_BYTES, Key, Kind};
    use buildnet_formats::Digest;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    const SALT: Salt = Salt([1, 2, 3, 4, 5, 6, 7, 8]);

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn records_lie_one_after_another(
            payloads in proptest::collection::vec(
                prop_oneof![0usize..20, COPIED_BYTES_MAX - 1..COPIED_BYTES_MAX + 10, Just(5_000usize)], 1..700),
            start in 0u64..9,
        ) {
            let payloads: Vec<Vec<u8>> =
                payloads.into_iter().take(if start == 0 { 700 } else { 9 }).map(|size| vec![size as u8; size]).collect();
            let digests: Vec<Digest> = payloads.iter().map(|payload| Digest::of(payload)).collect();
            let records = digests.iter().zip(&payloads).map(|(digest, payload)| Record {
                key: Key::of_blob(digest), kind: Kind::Blob, function: 1, flags: 0, name: digest.hash(), payload,
            });
            let (mut appending, mut expected) = (Appending::new(vec![9; 3]), Vec::new());
            for record in records {
                appending.push(&record, SALT);
                expected.extend_from_slice(&record.header(SALT));
                expected.extend_from_slice(record.name);
                expected.extend_from_slice(record.payload);
                expected.resize(aligned(expected.len() as u64) as usize, 0);
                prop_assert_eq!(appending.len(), expected.len());
            }
            let file = tempfile::tempfile().unwrap();
            appending.write_at(&file, start).unwrap();
            let mut written = vec![0; expected.len()];
            file.read_exact_at(&mut written, start).unwrap();
            prop_assert!(written == expected);
            prop_assert_eq!(file.metadata().unwrap().len(), start + expected.len() as u64);
            prop_assert!(expected.len() >= HEADER_BYTES);
        }
    }
}
