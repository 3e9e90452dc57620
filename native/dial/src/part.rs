//! A file that has its name only when it is whole. Until then it has none at all, where the file system can do that: nothing is
//! left of it however the process ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, linkat};

/// Names that this process gave.
static NAMES: AtomicU64 = AtomicU64::new(0);

/// A file on its way to its name.
pub(crate) struct Part {
    /// What is to be written to.
    pub(crate) file: File,
    /// A name of its own, as long as it has one.
    name: Option<PathBuf>,
}

impl Part {
    /// One that can go to `dest`.
    ///
    /// # Errors
    /// There is no such directory, or it may not be written to.
    pub(crate) fn beside(dest: &Path, mode: u32) -> io::Result<Self> {
        let directory = dest.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match OpenOptions::new().write(true).mode(mode).custom_flags(libc::O_TMPFILE).open(directory) {
            Ok(file) if Path::new("/proc/self/fd").exists() => Ok(Self { file, name: None }),
            Ok(_) => Self::named(dest, mode),
            // What NFS, and kernels that know nothing of it, say.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {
                Self::named(dest, mode)
            }
            Err(error) => Err(error),
        }
    }

    fn named(dest: &Path, mode: u32) -> io::Result<Self> {
        let name = name_beside(dest);
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&name)?;
        Ok(Self { file, name: Some(name) })
    }

    /// Let it be `dest`, in the place of what stands there.
    ///
    /// # Errors
    /// It cannot be; nothing is left of it.
    pub(crate) fn put(mut self, dest: &Path) -> io::Result<()> {
        if self.name.is_none() {
            match self.link(dest) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                done => return done,
            }
            // Only what has a name can take the place of another.
            let name = name_beside(dest);
            self.link(&name)?;
            self.name = Some(name);
        }
        if let Some(name) = &self.name {
            fs::rename(name, dest)?;
        }
        self.name = None;
        Ok(())
    }

    fn link(&self, name: &Path) -> io::Result<()> {
        let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(linkat(CWD, nameless, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // The first error matters, and there is no better one to tell.
            let _ = fs::remove_file(name);
        }
    }
}

/// Not by the file's own name: that may be as long as a name may be.
fn name_beside(dest: &Path) -> PathBuf {
    let number = NAMES.fetch_add(1, Ordering::Relaxed);
    dest.with_file_name(format!(".buildnet-{}-{number}.part", std::process::id()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;

    type Make = fn(&Path, u32) -> io::Result<Part>;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
        entries.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn it_takes_the_place_of_what_stands_there_and_leaves_nothing_beside() {
        for make in [Part::beside as Make, Part::named] {
            let scratch = tempfile::tempdir().unwrap();
            let dest = scratch.path().join("file");
            for (standing, said) in [("", "one"), ("a file", "two"), ("a link", "three")] {
                if standing == "a link" {
                    fs::remove_file(&dest).unwrap();
                    symlink("elsewhere", &dest).unwrap();
                }
                let mut part = make(&dest, 0o644).unwrap();
                part.file.write_all(said.as_bytes()).unwrap();
                part.put(&dest).unwrap();
                assert_eq!(fs::read_to_string(&dest).unwrap(), said);
                assert_eq!(names(scratch.path()), ["file"]);
            }
        }
    }

    #[test]
    fn one_that_is_given_up_leaves_nothing() {
        for make in [Part::beside as Make, Part::named] {
            let scratch = tempfile::tempdir().unwrap();
            drop(make(&scratch.path().join("file"), 0o644).unwrap());
            // A directory is not replaced.
            let dest = scratch.path().join("directory");
            fs::create_dir(&dest).unwrap();
            assert!(make(&dest, 0o644).unwrap().put(&dest).is_err());
            assert_eq!(names(scratch.path()), ["directory"]);
        }
    }

    #[test]
    fn it_has_no_name_before_it_is_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let mut part = Part::beside(&scratch.path().join("file"), 0o644).unwrap();
        part.file.write_all(b"half").unwrap();
        if part.name.is_none() {
            assert!(names(scratch.path()).is_empty());
        }
    }
}
