//! Orders as bytes, from the worker to its launcher: both are the same build, so there are no versions to agree on.
//!
//! Numbers are 8 bytes of this machine; a text is its length and its bytes. What does not parse to its very end is refused.

use std::cell::Cell;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::mounts::{Bind, Entry, Mounts};
use super::orders::{self, ChildFds, Orders, StringArray};

/// Ends of pipes before the root and the groups.
const PIPES: usize = 5;

impl Orders {
    /// Everything but the descriptors.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut form = Form(Vec::with_capacity(8 << 10));
        form.texts(self.argv.strings());
        form.texts(self.env.strings());
        form.texts(&self.candidates);
        form.text(&self.cwd);
        form.number(u64::from(self.namespaces.cast_unsigned()));
        form.number(self.limits.len() as u64);
        for &(resource, soft, hard) in &self.limits {
            [u64::from(resource), soft, hard].into_iter().for_each(|number| form.number(number));
        }
        form.number(u64::from(self.root_fd().is_some()));
        form.number(u64::from(self.mounts.is_some()));
        if let Some(mounts) = &self.mounts {
            form.mounts(mounts);
        }
        form.0
    }

    /// The descriptors that go with the bytes.
    pub(crate) fn fds_in_order(&self) -> Vec<RawFd> {
        let fds = &self.fds;
        let pipes = [&fds.stdin, &fds.stdout, &fds.stderr, &fds.status, &fds.control];
        let mut all = pipes.map(AsRawFd::as_raw_fd).to_vec();
        all.extend(self.root_fd());
        all.extend(fds.groups.iter().map(AsRawFd::as_raw_fd));
        all
    }

    /// The orders again; None when bytes and descriptors are not what `encode` and `fds_in_order` gave.
    pub(crate) fn decode(body: &[u8], fds: Vec<OwnedFd>) -> Option<Self> {
        let mut read = Reading(body);
        let (argv, env, candidates, cwd) = (read.texts()?, read.texts()?, read.texts()?, read.text()?);
        let namespaces = u32::try_from(read.number()?).ok()?.cast_signed();
        let mut limits = Vec::new();
        for _ in 0..read.number()? {
            limits.push((u32::try_from(read.number()?).ok()?, read.number()?, read.number()?));
        }
        let mut fds = fds.into_iter();
        let mut pipes = fds.by_ref().take(PIPES);
        let (stdin, stdout, stderr) = (pipes.next()?, pipes.next()?, pipes.next()?);
        let (status, control) = (pipes.next()?, pipes.next()?);
        let root_mount = if read.number()? == 0 { None } else { Some(fds.next()?) };
        let mounts = if read.number()? == 0 { None } else { Some(read.mounts()?) };
        if let Some((root_mount, mounts)) = root_mount.as_ref().zip(mounts.as_ref()) {
            mounts.root.fd.set(root_mount.as_raw_fd());
        }
        let fds = ChildFds { stdin, stdout, stderr, status, control, groups: fds.collect() };
        let identity = orders::identity(namespaces).ok()?;
        if !read.0.is_empty() {
            return None;
        }
        let (argv, env) = (StringArray::new(argv), StringArray::new(env));
        Some(Self { argv, env, candidates, cwd, namespaces, identity, mounts, limits, fds, _root_mount: root_mount })
    }
}

struct Form(Vec<u8>);

impl Form {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_ne_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &CString) {
        self.bytes(text.to_bytes());
    }

    fn texts(&mut self, texts: &[CString]) {
        self.number(texts.len() as u64);
        texts.iter().for_each(|text| self.text(text));
    }

    fn bind(&mut self, bind: &Bind) {
        self.text(&bind.source);
        self.text(&bind.target);
        self.number(u64::from(bind.directory));
    }

    fn mounts(&mut self, mounts: &Mounts) {
        self.text(&mounts.base);
        self.text(&mounts.shm);
        self.texts(&mounts.masked);
        self.number(mounts.devices.len() as u64);
        mounts.devices.iter().for_each(|bind| self.bind(bind));
        self.bind(&mounts.tmp);
        self.number(u64::from(mounts.var_tmp.is_some()));
        mounts.var_tmp.iter().for_each(|bind| self.bind(bind));
        self.bind(&mounts.root);
        self.number(mounts.entries.len() as u64);
        for entry in &mounts.entries {
            match entry {
                Entry::Directory(path) => {
                    self.number(0);
                    self.text(path);
                }
                Entry::Symlink { path, target } => {
                    self.number(1);
                    self.text(path);
                    self.text(target);
                }
                Entry::File { path, text } => {
                    self.number(2);
                    self.text(path);
                    self.bytes(text);
                }
                Entry::Bind(bind) => {
                    self.number(3);
                    self.bind(bind);
                }
            }
        }
    }
}

struct Reading<'a>(&'a [u8]);

impl Reading<'_> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*number))
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let size = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(bytes.to_vec())
    }

    fn text(&mut self) -> Option<CString> {
        CString::new(self.bytes()?).ok()
    }

    fn texts(&mut self) -> Option<Vec<CString>> {
        let count = self.number()?;
        (0..count).map(|_| self.text()).collect()
    }

    fn bind(&mut self) -> Option<Bind> {
        let (source, target) = (self.text()?, self.text()?);
        Some(Bind { source, target, directory: self.number()? != 0, fd: Cell::new(-1) })
    }

    fn mounts(&mut self) -> Option<Mounts> {
        let (base, shm, masked) = (self.text()?, self.text()?, self.texts()?);
        let devices = (0..self.number()?).map(|_| self.bind()).collect::<Option<_>>()?;
        let tmp = self.bind()?;
        let var_tmp = if self.number()? == 0 { None } else { Some(self.bind()?) };
        let root = self.bind()?;
        let count = self.number()?;
        let entries = (0..count).map(|_| self.entry()).collect::<Option<_>>()?;
        Some(Mounts { base, devices, entries, masked, root, tmp, var_tmp, shm })
    }

    fn entry(&mut self) -> Option<Entry> {
        match self.number()? {
            0 => Some(Entry::Directory(self.text()?)),
            1 => Some(Entry::Symlink { path: self.text()?, target: self.text()? }),
            2 => Some(Entry::File { path: self.text()?, text: self.bytes()? }),
            3 => Some(Entry::Bind(self.bind()?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::orders::OrdersOf;
    use crate::launch::sys;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    type Test = Result<(), Box<dyn std::error::Error>>;

    fn text(text: &str) -> CString {
        CString::new(text).unwrap_or_default()
    }

    fn bind(name: &str, fd: RawFd) -> Bind {
        Bind { source: text(name), target: text("/there"), directory: true, fd: Cell::new(fd) }
    }

    fn orders(root_fd: RawFd) -> Result<Orders, Box<dyn std::error::Error>> {
        let end = || -> std::io::Result<OwnedFd> { sys::event_fd() };
        let entries = vec![
            Entry::Directory(text("/d")),
            Entry::Symlink { path: text("/s"), target: text("/d") },
            Entry::File { path: text("/f"), text: b"one\0two".to_vec() },
            Entry::Bind(bind("/usr", -1)),
        ];
        let mounts = Mounts {
            base: text("/base"),
            entries,
            devices: vec![bind("/dev/one", -1)],
            masked: vec![text("/m")],
            root: bind("/root", root_fd),
            tmp: bind("/tmp", -1),
            var_tmp: Some(bind("/tmp", -1)),
            shm: text("mode=1777"),
        };
        Ok(Orders::new(OrdersOf {
            argv: &[b"tool".to_vec(), b"\xff".to_vec()],
            env: &[(b"A".to_vec(), b"b".to_vec())],
            cwd: Path::new("/work"),
            namespaces: libc::CLONE_NEWNS | libc::CLONE_NEWNET,
            mounts: Some(mounts),
            limits: vec![(libc::RLIMIT_CORE, 0, u64::MAX)],
            fds: ChildFds {
                stdin: end()?,
                stdout: end()?,
                stderr: end()?,
                status: end()?,
                control: end()?,
                groups: vec![end()?],
            },
        })?)
    }

    fn copies(fds: &[RawFd]) -> Vec<OwnedFd> {
        fds.iter().filter_map(|fd| sys::take_standard(*fd).ok()).collect()
    }

    #[test]
    fn orders_come_as_they_were_given() -> Test {
        for root in [None, Some(sys::event_fd()?)] {
            let given = orders(root.as_ref().map_or(-1, AsRawFd::as_raw_fd))?;
            let body = given.encode();
            let fds = copies(&given.fds_in_order());
            assert_eq!(fds.len(), 6 + usize::from(root.is_some()));
            let got = Orders::decode(&body, fds).ok_or("not decoded")?;
            assert_eq!(got.encode(), body);
            assert_eq!(got.cwd.as_bytes(), Path::new("/work").as_os_str().as_bytes());
            assert_eq!((got.fds.groups.len(), got.root_fd().is_some()), (1, root.is_some()));
        }
        Ok(())
    }

    #[test]
    fn orders_that_are_cut_or_too_long_are_refused() -> Test {
        let given = orders(-1)?;
        let mut body = given.encode();
        for size in 0..body.len() {
            assert!(Orders::decode(&body[..size], copies(&given.fds_in_order())).is_none(), "{size} bytes");
        }
        assert!(Orders::decode(&body, copies(&given.fds_in_order()[..4])).is_none());
        body.push(0);
        assert!(Orders::decode(&body, copies(&given.fds_in_order())).is_none());
        Ok(())
    }
}
