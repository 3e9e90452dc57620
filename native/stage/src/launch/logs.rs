//! What the command prints, kept in files: memory stays bounded whatever the reader does, and nothing is lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{self, Result};

/// One of the two streams: written by the watching thread, read by whoever follows it.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    written_bytes: AtomicU64,
    read_bytes: Mutex<u64>,
}

impl Log {
    /// Make the file anew; a symlink in its place is refused.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path).map_err(|error| error::io("write", path, &error))?;
        Ok(Self { file, written_bytes: AtomicU64::new(0), read_bytes: Mutex::new(0) })
    }

    pub(crate) fn append(&self, data: &[u8]) -> io::Result<()> {
        (&self.file).write_all(data)?;
        self.written_bytes.fetch_add(data.len() as u64, Ordering::Release);
        Ok(())
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Acquire)
    }

    /// The next at most `bytes_max` bytes that were not read yet, with their offset.
    pub(crate) fn read_new(&self, bytes_max: usize) -> io::Result<(u64, Vec<u8>)> {
        let mut offset = self.read_bytes.lock().unwrap_or_else(|lock| lock.into_inner());
        let new = self.size_bytes().saturating_sub(*offset);
        let mut data = vec![0; usize::try_from(new).unwrap_or(bytes_max).min(bytes_max)];
        self.file.read_exact_at(&mut data, *offset)?;
        let start = *offset;
        *offset += data.len() as u64;
        Ok((start, data))
    }

    pub(crate) fn has_new(&self) -> bool {
        let offset = self.read_bytes.lock().unwrap_or_else(|lock| lock.into_inner());
        self.size_bytes() > *offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_follows_writing_in_bounded_pieces() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let log = Log::create(&dir.path().join("stdout"))?;
        assert_eq!(log.read_new(10)?, (0, Vec::new()));
        log.append(b"hello world")?;
        assert_eq!(log.read_new(5)?, (0, b"hello".to_vec()));
        assert!(log.has_new());
        assert_eq!(log.read_new(50)?, (5, b" world".to_vec()));
        assert!(!log.has_new());
        Ok(())
    }
}
