//! Directories held open: every step is relative to a descriptor and follows no symlink, so no name leads out.
//!
//! A `Cursor` keeps one descriptor however deep it stands and goes up through `..`, checking that it comes back to
//! where it was: trees of any depth cost neither stack nor descriptors.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use libc::{c_int, mode_t};

const DIRECTORY: c_int = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    /// A fifo, socket or device.
    Special,
}

/// The facts of one entry, not of what a symlink points to.
#[derive(Clone, Copy)]
pub(crate) struct Facts(libc::stat);

impl Facts {
    pub(crate) fn kind(&self) -> Kind {
        match self.0.st_mode & libc::S_IFMT {
            libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFLNK => Kind::Symlink,
            _ => Kind::Special,
        }
    }

    pub(crate) fn mode(&self) -> u32 {
        self.0.st_mode & 0o7777
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.0.st_size.unsigned_abs()
    }

    /// Space taken on disk (stat(2): blocks of 512 bytes).
    pub(crate) fn used_bytes(&self) -> u64 {
        self.0.st_blocks.unsigned_abs().saturating_mul(512)
    }

    /// Nanoseconds since 1970 of the last change of content or facts; unlike the other times, nobody can set it.
    pub(crate) fn changed_unix_ns(&self) -> u64 {
        let (seconds, nanos) = (self.0.st_ctime.unsigned_abs(), self.0.st_ctime_nsec.unsigned_abs());
        seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
    }

    /// Seconds and nanoseconds since 1970.
    pub(crate) fn mtime(&self) -> (i64, i64) {
        (self.0.st_mtime, self.0.st_mtime_nsec)
    }

    fn place(&self) -> (u64, u64) {
        (self.0.st_dev, self.0.st_ino)
    }
}

fn name_of(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn open_at(dir: RawFd, name: &CStr, flags: c_int, mode: mode_t) -> io::Result<OwnedFd> {
    // SAFETY: `name` is NUL-terminated; the result is ours.
    unsafe {
        let fd = check(libc::openat(dir, name.as_ptr(), flags | libc::O_CLOEXEC, mode))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn facts_at(dir: RawFd, name: &CStr, flags: c_int) -> io::Result<Facts> {
    // SAFETY: stat is plain data, filled by the call.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        check(libc::fstatat(dir, name.as_ptr(), &raw mut stat, flags))?;
        Ok(Facts(stat))
    }
}

fn facts_of(fd: &OwnedFd) -> io::Result<Facts> {
    facts_at(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
}

/// A place in a tree.
#[derive(Debug)]
pub(crate) struct Cursor {
    fd: OwnedFd,
    device: u64,
    /// (device, inode) of each directory above, outermost first.
    above: Vec<(u64, u64)>,
    path: PathBuf,
}

impl Cursor {
    /// Stand in `root`, which is trusted up to its last component; that must not be a symlink.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let fd = open_at(libc::AT_FDCWD, &name_of(root.as_os_str())?, DIRECTORY, 0)?;
        let (device, _) = facts_of(&fd)?.place();
        Ok(Self { fd, device, above: Vec::new(), path: PathBuf::new() })
    }

    /// Stand in a directory that is open.
    pub(crate) fn at(directory: RawFd) -> io::Result<Self> {
        let fd = open_at(directory, c".", DIRECTORY, 0)?;
        let (device, _) = facts_of(&fd)?.place();
        Ok(Self { fd, device, above: Vec::new(), path: PathBuf::new() })
    }

    /// Stand in a directory of this tree as in a root of its own. Only the last of `names` may not be a symlink: the
    /// caller has made all of them.
    pub(crate) fn stand_below(&self, names: &[&OsStr]) -> io::Result<Self> {
        let mut fd = open_at(self.fd.as_raw_fd(), c".", DIRECTORY, 0)?;
        let mut rest = names;
        while !rest.is_empty() {
            let mut length = 0;
            let fits = |name: &&&OsStr| {
                length += name.len() + 1;
                length < libc::PATH_MAX as usize
            };
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            let path: PathBuf = now.iter().collect();
            fd = open_at(fd.as_raw_fd(), &name_of(path.as_os_str())?, DIRECTORY, 0)?;
            rest = later;
        }
        Ok(Self { fd, device: self.device, above: Vec::new(), path: PathBuf::new() })
    }

    /// Relative to the root; empty there.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Levels below the root.
    pub(crate) fn depth(&self) -> usize {
        self.above.len()
    }

    pub(crate) fn path_of(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn facts(&self, name: &OsStr) -> io::Result<Facts> {
        facts_at(self.fd.as_raw_fd(), &name_of(name)?, libc::AT_SYMLINK_NOFOLLOW)
    }

    pub(crate) fn own_facts(&self) -> io::Result<Facts> {
        facts_of(&self.fd)
    }

    /// What a path below this directory leads to, symlinks followed as long as they stay below it; None when it leads
    /// nowhere. EXDEV when it leaves.
    pub(crate) fn resolve(&self, path: &Path) -> io::Result<Option<Kind>> {
        // SAFETY: open_how is plain data.
        let mut how: libc::open_how = unsafe { std::mem::zeroed() };
        how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
        how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
        let path = name_of(path.as_os_str())?;
        // SAFETY: the path is NUL-terminated, the size is that of `how`, the result is ours.
        let fd = unsafe {
            let fd = libc::syscall(
                libc::SYS_openat2,
                self.fd.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            );
            if fd < 0 {
                let failed = io::Error::last_os_error();
                return match failed.raw_os_error() {
                    Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENOSYS) => Ok(None),
                    _ => Err(failed),
                };
            }
            OwnedFd::from_raw_fd(fd as RawFd)
        };
        Ok(Some(facts_of(&fd)?.kind()))
    }

    /// Step into a directory; a symlink is refused (ENOTDIR).
    pub(crate) fn enter(&mut self, name: &OsStr) -> io::Result<()> {
        let fd = open_at(self.fd.as_raw_fd(), &name_of(name)?, DIRECTORY, 0)?;
        self.stand_in(fd, name)
    }

    /// Step into a directory even if its mode forbids its owner to; it becomes 0700. EXDEV on another filesystem.
    pub(crate) fn enter_by_force(&mut self, name: &OsStr) -> io::Result<()> {
        let handle = open_at(self.fd.as_raw_fd(), &name_of(name)?, DIRECTORY | libc::O_PATH, 0)?;
        let facts = facts_of(&handle)?;
        if facts.place().0 != self.device {
            return Err(io::Error::from_raw_os_error(libc::EXDEV));
        }
        if facts.mode() & 0o700 != 0o700 {
            set_handle_mode(&handle, 0o700)?;
        }
        let fd = open_at(handle.as_raw_fd(), c".", DIRECTORY, 0)?;
        self.stand_in(fd, name)
    }

    fn stand_in(&mut self, fd: OwnedFd, name: &OsStr) -> io::Result<()> {
        self.above.push(facts_of(&self.fd)?.place());
        self.fd = fd;
        self.path.push(name);
        Ok(())
    }

    /// Make a directory and step into it.
    pub(crate) fn make(&mut self, name: &OsStr, mode: mode_t) -> io::Result<()> {
        // SAFETY: `name` is NUL-terminated.
        check(unsafe { libc::mkdirat(self.fd.as_raw_fd(), name_of(name)?.as_ptr(), mode) })?;
        self.enter(name)
    }

    /// Step up. ESTALE when somebody moved the directory meanwhile; at the root it stays.
    pub(crate) fn leave(&mut self) -> io::Result<()> {
        let Some(above) = self.above.pop() else {
            return Ok(());
        };
        let fd = open_at(self.fd.as_raw_fd(), c"..", DIRECTORY, 0)?;
        if facts_of(&fd)?.place() != above {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        self.fd = fd;
        self.path.pop();
        Ok(())
    }

    /// A new file: EEXIST if there is anything.
    pub(crate) fn create_file(&self, name: &OsStr, mode: mode_t) -> io::Result<File> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let fd = open_at(self.fd.as_raw_fd(), &name_of(name)?, flags, mode)?;
        set_mode(&fd, mode)?;
        Ok(File::from(fd))
    }

    /// Never blocks, never follows a symlink; the caller checks what it opened.
    pub(crate) fn open_file(&self, name: &OsStr) -> io::Result<(File, Facts)> {
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let fd = open_at(self.fd.as_raw_fd(), &name_of(name)?, flags, 0)?;
        let facts = facts_of(&fd)?;
        Ok((File::from(fd), facts))
    }

    pub(crate) fn create_symlink(&self, target: &str, name: &OsStr) -> io::Result<()> {
        let target = name_of(OsStr::new(target))?;
        let name = name_of(name)?;
        // SAFETY: both are NUL-terminated.
        check(unsafe { libc::symlinkat(target.as_ptr(), self.fd.as_raw_fd(), name.as_ptr()) })?;
        Ok(())
    }

    pub(crate) fn read_symlink(&self, name: &OsStr) -> io::Result<OsString> {
        let name = name_of(name)?;
        // Linux: a target is shorter than PATH_MAX.
        let mut target = vec![0u8; libc::PATH_MAX as usize];
        // SAFETY: the buffer is valid for its length.
        let length =
            unsafe { libc::readlinkat(self.fd.as_raw_fd(), name.as_ptr(), target.as_mut_ptr().cast(), target.len()) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        target.truncate(length.unsigned_abs());
        Ok(OsString::from_vec(target))
    }

    /// Set the times of an entry, a symlink itself included; None is the directory the cursor stands in.
    pub(crate) fn set_mtime(&self, name: Option<&OsStr>, seconds: i64, nanos: i64) -> io::Result<()> {
        let name = name_of(name.unwrap_or(OsStr::new(".")))?;
        let time = libc::timespec { tv_sec: seconds, tv_nsec: nanos };
        let times = [time, time];
        // SAFETY: two times, as utimensat(2) wants.
        check(unsafe {
            libc::utimensat(self.fd.as_raw_fd(), name.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
        })?;
        Ok(())
    }

    pub(crate) fn set_own_mode(&self, mode: mode_t) -> io::Result<()> {
        set_mode(&self.fd, mode)
    }

    /// Unlink a file or a symlink.
    pub(crate) fn unlink(&self, name: &OsStr) -> io::Result<()> {
        self.remove(name, 0)
    }

    pub(crate) fn remove_directory(&self, name: &OsStr) -> io::Result<()> {
        self.remove(name, libc::AT_REMOVEDIR)
    }

    fn remove(&self, name: &OsStr, flags: c_int) -> io::Result<()> {
        let name = name_of(name)?;
        // SAFETY: `name` is NUL-terminated.
        check(unsafe { libc::unlinkat(self.fd.as_raw_fd(), name.as_ptr(), flags) })?;
        Ok(())
    }

    /// Names and whether each is surely a directory, surely not one, or unknown; sorted by bytes.
    pub(crate) fn list(&self) -> io::Result<Vec<(OsString, Option<bool>)>> {
        let fd = open_at(self.fd.as_raw_fd(), c".", DIRECTORY, 0)?;
        // SAFETY: fdopendir takes the descriptor over; the stream is closed below on every way out.
        let stream = unsafe { libc::fdopendir(fd.as_raw_fd()) };
        if stream.is_null() {
            return Err(io::Error::last_os_error());
        }
        std::mem::forget(fd);
        let names = read_names(stream);
        // SAFETY: the stream is open and not used again.
        unsafe { libc::closedir(stream) };
        let mut names = names?;
        names.sort_unstable();
        Ok(names)
    }
}

fn read_names(stream: *mut libc::DIR) -> io::Result<Vec<(OsString, Option<bool>)>> {
    let mut names = Vec::new();
    loop {
        // SAFETY: the stream is open; readdir tells its end and its errors apart by errno alone.
        let entry = unsafe {
            *libc::__errno_location() = 0;
            libc::readdir64(stream)
        };
        if entry.is_null() {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(0) { Ok(names) } else { Err(error) };
        }
        // SAFETY: the entry is valid until the next readdir; its name is NUL-terminated.
        let (name, kind) = unsafe {
            let name = CStr::from_ptr((&raw const (*entry).d_name).cast());
            (name.to_bytes().to_vec(), (*entry).d_type)
        };
        if name != b"." && name != b".." {
            let directory = match kind {
                libc::DT_UNKNOWN => None,
                kind => Some(kind == libc::DT_DIR),
            };
            names.push((OsString::from_vec(name), directory));
        }
    }
}

fn set_mode(fd: &OwnedFd, mode: mode_t) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::fchmod(fd.as_raw_fd(), mode) })?;
    Ok(())
}

/// fchmod(2) refuses O_PATH handles; their entry in /proc does not.
fn set_handle_mode(fd: &OwnedFd, mode: mode_t) -> io::Result<()> {
    let path = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    // SAFETY: `path` is NUL-terminated.
    check(unsafe { libc::chmod(path.as_ptr(), mode) })?;
    Ok(())
}
