//! Everything that the supervisor and the command need, worked out by the worker: they decide nothing.

use std::ffi::{CString, c_char};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use crate::error::{self, Result};

use super::mounts::Mounts;
use super::sys::{self, Errno};

/// Where a bare program name is looked for when the Command's environment has no PATH.
const PATH_DEFAULT: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// C strings and the NULL-terminated array of pointers to them that execve(2) wants.
pub(crate) struct StringArray {
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|text| text.as_ptr()).collect();
        pointers.push(ptr::null());
        Self { strings, pointers }
    }

    pub(crate) fn strings(&self) -> &[CString] {
        &self.strings
    }

    pub(crate) fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// The child's ends of the pipes; dropped by the parent once the child exists.
pub(crate) struct ChildFds {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) status: OwnedFd,
    pub(crate) control: OwnedFd,
    /// The members' file of each group to join, open for writing; or the directory of the one to be born in (version 2).
    pub(crate) groups: Vec<OwnedFd>,
}

/// A user namespace's maps: the caller's own ids, one each.
pub(crate) struct Identity {
    uid_map: CString,
    gid_map: CString,
}

impl Identity {
    /// Runs in the child. user_namespaces(7): an unprivileged writer of gid_map must first deny setgroups.
    pub(crate) fn write(&self) -> std::result::Result<(), Errno> {
        sys::write_file(c"/proc/self/setgroups", b"deny")?;
        sys::write_file(c"/proc/self/uid_map", self.uid_map.to_bytes())?;
        sys::write_file(c"/proc/self/gid_map", self.gid_map.to_bytes())
    }
}

/// One resource limit: which, soft, hard.
pub(crate) type Limit = (libc::__rlimit_resource_t, u64, u64);

/// The child's orders.
pub(crate) struct Orders {
    pub(crate) argv: StringArray,
    pub(crate) env: StringArray,
    pub(crate) candidates: Vec<CString>,
    pub(crate) cwd: CString,
    /// CLONE_NEW* flags; zero means process isolation.
    pub(crate) namespaces: libc::c_int,
    pub(crate) identity: Option<Identity>,
    pub(crate) mounts: Option<Mounts>,
    pub(crate) limits: Vec<Limit>,
    pub(crate) fds: ChildFds,
    /// Keeps the root's own mount, if it has one, where these orders were received.
    pub(crate) _root_mount: Option<OwnedFd>,
}

// SAFETY: the raw pointers point into strings that the same value owns and never changes.
unsafe impl Send for Orders {}

/// What `Orders::new` is made from.
pub(crate) struct OrdersOf<'a> {
    pub(crate) argv: &'a [Vec<u8>],
    pub(crate) env: &'a [(Vec<u8>, Vec<u8>)],
    pub(crate) cwd: &'a Path,
    pub(crate) namespaces: libc::c_int,
    pub(crate) mounts: Option<Mounts>,
    pub(crate) limits: Vec<Limit>,
    pub(crate) fds: ChildFds,
}

impl Orders {
    pub(crate) fn new(of: OrdersOf<'_>) -> Result<Self> {
        let program = of.argv.first().filter(|program| !program.is_empty());
        let program = program.ok_or_else(|| error::invalid("argv", "names no program"))?;
        let env = of.env.iter().map(|(name, value)| assignment(name, value));
        let argv = of.argv.iter().map(|word| c_string("argv", word));
        let argv = argv.collect::<Result<_>>()?;
        Ok(Self {
            candidates: candidates(program, of.env)?,
            argv: StringArray::new(argv),
            env: StringArray::new(env.collect::<Result<_>>()?),
            cwd: c_path("cwd", of.cwd)?,
            namespaces: of.namespaces,
            identity: identity(of.namespaces)?,
            mounts: of.mounts,
            limits: of.limits,
            fds: of.fds,
            _root_mount: None,
        })
    }

    /// The descriptor of the root's own mount, if it has one.
    pub(crate) fn root_fd(&self) -> Option<RawFd> {
        self.mounts.iter().map(|mounts| mounts.root.fd.get()).find(|fd| *fd >= 0)
    }
}

fn c_string(field: &str, text: &[u8]) -> Result<CString> {
    CString::new(text).map_err(|_| error::invalid(field, "contains a NUL byte"))
}

fn c_path(field: &str, path: &Path) -> Result<CString> {
    c_string(field, path.as_os_str().as_bytes())
}

fn assignment(name: &[u8], value: &[u8]) -> Result<CString> {
    if name.is_empty() || name.contains(&b'=') {
        return Err(error::invalid("env", "a name is empty or contains '='"));
    }
    c_string("env", &[name, b"=", value].concat())
}

/// The paths to try, in order: REAPI Command.arguments looks a name without '/' up along PATH of its environment.
fn candidates(program: &[u8], env: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<CString>> {
    if program.contains(&b'/') {
        return Ok(vec![c_string("argv", program)?]);
    }
    let path = env.iter().find(|(name, _)| name == b"PATH");
    let path = path.map_or(PATH_DEFAULT, |(_, value)| value.as_slice());
    let directories = path.split(|byte| *byte == b':');
    directories
        .map(|directory| match directory {
            // An empty element is the working directory (POSIX, environment variables).
            [] => c_string("argv", &[b"./", program].concat()),
            directory => c_string("env", &[directory, b"/", program].concat()),
        })
        .collect()
}

/// The maps that a user namespace among these flags needs.
pub(crate) fn identity(namespaces: libc::c_int) -> Result<Option<Identity>> {
    if namespaces & libc::CLONE_NEWUSER == 0 {
        return Ok(None);
    }
    // SAFETY: these calls cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    Ok(Some(Identity {
        uid_map: c_string("uid_map", format!("{uid} {uid} 1\n").as_bytes())?,
        gid_map: c_string("gid_map", format!("{gid} {gid} 1\n").as_bytes())?,
    }))
}
