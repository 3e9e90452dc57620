//! Buffers that are used again: a fresh one for each read would be faulted in page by page, which costs more than the read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// One record of the largest size, with what stands before it.
pub(crate) const BUFFER_BYTES: usize = (512 << 10) + (4 << 10);
/// Below it a piece of memory of its own costs less than the lock.
const SMALL_BYTES: usize = 32 << 10;
/// What is kept for later.
const SPARE_MAX: usize = 8;

static SPARE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// Goes back when the last who reads it is done.
struct Lent(Box<[u8]>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
    }
}

/// At most `size` bytes, as `fill` writes them; it returns how many those are.
///
/// # Errors
/// That of `fill`.
pub(crate) fn filled(size: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<Bytes> {
    if !(SMALL_BYTES..=BUFFER_BYTES).contains(&size) {
        let mut data = vec![0; size];
        let count = fill(&mut data)?;
        data.truncate(count);
        return Ok(data.into());
    }
    let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut lent = Lent(spare.unwrap_or_else(|| vec![0; BUFFER_BYTES].into()));
    let count = fill(&mut lent.0[..size])?;
    Ok(Bytes::from_owner(lent).slice(..count))
}

/// Fill `data` from `offset` on as far as the file goes.
pub(crate) fn read_at(file: &File, data: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut count = 0;
    while count < data.len() {
        match file.read_at(&mut data[count..], offset + count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}
