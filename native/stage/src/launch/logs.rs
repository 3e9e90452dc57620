//! What the command prints, kept in files: memory stays bounded whatever the reader does, and nothing is lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

/// One of the two streams: written by the watching thread, read by whoever follows it.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: OnceLock<File>,
    written_bytes: AtomicU64,
    read_bytes: Mutex<u64>,
}

impl Log {
    /// Of a file that is made when there is something to keep: most commands print nothing.
    pub(crate) fn at(path: &Path) -> Self {
        let (file, read_bytes) = (OnceLock::new(), Mutex::new(0));
        Self { path: path.to_owned(), file, written_bytes: AtomicU64::new(0), read_bytes }
    }

    /// Make the file anew; a symlink in its place is refused.
    pub(crate) fn create(&self) -> io::Result<&File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&self.path)?;
        Ok(self.file.get_or_init(|| file))
    }

    /// The file, once something was printed.
    pub(crate) fn file(&self) -> Option<&File> {
        self.file.get()
    }

    /// For the one thread that keeps what is printed.
    pub(crate) fn append(&self, data: &[u8]) -> io::Result<()> {
        let mut file = match self.file.get() {
            Some(file) => file,
            None => self.create()?,
        };
        file.write_all(data)?;
        self.written_bytes.fetch_add(data.len() as u64, Ordering::Release);
        Ok(())
    }

    /// Move what `pipe` holds, at most `bytes_max`, without a copy through this process. None where nothing was moved: there
    /// is no file yet, the pipe is empty or at its end, or it cannot be done with these two.
    pub(crate) fn splice(&self, pipe: &OwnedFd, bytes_max: usize) -> Option<usize> {
        let file = self.file.get()?;
        let (pipe, none) = (pipe.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: both descriptors are open, and no offset is given.
        let count = unsafe { libc::splice(pipe, none, file.as_raw_fd(), none, bytes_max, libc::SPLICE_F_NONBLOCK) };
        let count = usize::try_from(count).ok().filter(|count| *count > 0)?;
        self.written_bytes.fetch_add(count as u64, Ordering::Release);
        Some(count)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Acquire)
    }

    /// The next at most `bytes_max` bytes that were not read yet, with their offset.
    pub(crate) fn read_new(&self, bytes_max: usize) -> io::Result<(u64, Vec<u8>)> {
        let mut offset = self.read_bytes.lock().unwrap_or_else(|lock| lock.into_inner());
        let new = self.size_bytes().saturating_sub(*offset);
        let mut data = vec![0; usize::try_from(new).unwrap_or(bytes_max).min(bytes_max)];
        if let Some(file) = self.file.get() {
            file.read_exact_at(&mut data, *offset)?;
        }
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
        let log = Log::at(&dir.path().join("stdout"));
        assert_eq!(log.read_new(10)?, (0, Vec::new()));
        log.append(b"hello world")?;
        assert_eq!(log.read_new(5)?, (0, b"hello".to_vec()));
        assert!(log.has_new());
        assert_eq!(log.read_new(50)?, (5, b" world".to_vec()));
        assert!(!log.has_new());
        Ok(())
    }

    #[test]
    fn a_pipe_is_emptied_behind_what_was_kept() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let log = Log::at(&dir.path().join("stdout"));
        let (reads, mut writes) = io::pipe()?;
        let reads = OwnedFd::from(reads);
        writes.write_all(b"one two three")?;
        assert!(log.splice(&reads, 3).is_none(), "no file is made for it");
        log.append(b"first ")?;
        assert_eq!(log.splice(&reads, 4), Some(4));
        assert_eq!(log.splice(&reads, 100), Some(9));
        assert_eq!(log.splice(&reads, 100), None, "it is empty");
        log.append(b" last")?;
        drop(writes);
        assert_eq!(log.splice(&reads, 100), None, "it is at its end");
        assert_eq!(log.read_new(100)?, (0, b"first one two three last".to_vec()));
        Ok(())
    }
}
