//! Everything the child needs, made before clone: after it nothing may be allocated (signal-safety(7)).

use std::cell::Cell;
use std::ffi::{CString, OsStr, c_char};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

use crate::error::{self, Result};

use super::mounts::{Hidden, Mounts, Writable};
use super::sys::{self, Errno};

/// Where a bare program name is looked for when the Command's environment has no PATH.
const PATH_DEFAULT: &[u8] = b"/usr/local/bin:/usr/bin:/bin";
const COMMAND_STACK_BYTES: usize = 128 << 10;

/// C strings and the NULL-terminated array of pointers to them that execve(2) wants.
pub(crate) struct StringArray {
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    fn new(strings: Vec<CString>) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|text| text.as_ptr()).collect();
        pointers.push(ptr::null());
        Self { _strings: strings, pointers }
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
    /// `cgroup.procs` of each group to join, open for writing.
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
    pub(crate) keep: Vec<RawFd>,
    stack: Vec<u8>,
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
        let fds = of.fds;
        let mut keep: Vec<RawFd> = fds.groups.iter().map(AsRawFd::as_raw_fd).collect();
        let ends = [&fds.stdin, &fds.stdout, &fds.stderr, &fds.status, &fds.control];
        keep.extend(ends.map(AsRawFd::as_raw_fd));
        keep.extend(
            of.mounts.iter().flat_map(|mounts| &mounts.writable).map(|place| place.fd.get()).filter(|fd| *fd >= 0),
        );
        keep.sort_unstable();
        Ok(Self {
            candidates: candidates(program, of.env)?,
            argv: StringArray::new(argv),
            env: StringArray::new(env.collect::<Result<_>>()?),
            cwd: c_path("cwd", of.cwd)?,
            namespaces: of.namespaces,
            identity: identity(of.namespaces)?,
            mounts: of.mounts,
            limits: of.limits,
            fds,
            keep,
            stack: vec![0; COMMAND_STACK_BYTES],
        })
    }

    /// The highest aligned address of the command's first stack (stacks grow down).
    pub(crate) fn stack_top(&self) -> *mut libc::c_void {
        let end = self.stack.as_ptr() as usize + self.stack.len();
        (end & !0xF) as *mut libc::c_void
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

/// Resolve every path as the host sees it, and list what the namespace will need. `root_mount` is for the first writable.
pub(crate) fn plan_mounts(
    writable: &[PathBuf],
    root_mount: Option<RawFd>,
    hidden: &[PathBuf],
    tmp: &Path,
) -> Result<Mounts> {
    let tmp = real("tmp", tmp)?;
    let mut tmp_targets: Vec<PathBuf> = Vec::new();
    for target in ["/tmp", "/var/tmp"] {
        // A host without /var/tmp needs none; one where it is a symlink to /tmp needs it once.
        if let Ok(target) = std::fs::canonicalize(target)
            && !tmp_targets.contains(&target)
        {
            tmp_targets.push(target);
        }
    }
    let places = writable.iter().map(|path| {
        let path = real("writable", path)?;
        place(&path, &path)
    });
    let places: Vec<Writable> = places.collect::<Result<_>>()?;
    if let (Some(root), Some(fd)) = (places.first(), root_mount) {
        root.fd.set(fd);
    }
    let mut hidden_paths = Vec::new();
    for path in hidden.iter().filter(|path| path.is_dir()) {
        hidden_paths.push(Hidden { path: c_path("hidden", &real("hidden", path)?)?, fd: Cell::new(-1) });
    }
    Ok(Mounts {
        hidden: hidden_paths,
        tmp: tmp_targets.iter().map(|target| place(&tmp, target)).collect::<Result<_>>()?,
        writable: places,
    })
}

fn real(field: &str, path: &Path) -> Result<PathBuf> {
    if !path.is_absolute() {
        return Err(error::invalid(field, format!("{} is not absolute", path.display())));
    }
    std::fs::canonicalize(path).map_err(|error| error::io("use", path, &error))
}

fn place(source: &Path, target: &Path) -> Result<Writable> {
    let mut ancestors: Vec<&Path> = target.ancestors().skip(1).collect();
    ancestors.reverse();
    let below_root = ancestors.into_iter().filter(|path| path.as_os_str() != OsStr::new("/"));
    Ok(Writable {
        source: c_path("writable", source)?,
        ancestors: below_root.map(|path| c_path("writable", path)).collect::<Result<_>>()?,
        target: c_path("writable", target)?,
        fd: Cell::new(-1),
    })
}
