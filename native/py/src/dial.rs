//! Link, InputTree, Dialler and Call as Python sees them. Every method of a link blocks with the interpreter lock released;
//! none of a call blocks.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use buildnet_dial::{
    Call, Carrier, DialError, Dialler, DiallerOptions, InputTree, Link, LinkOptions, Moved, Source, TlsOptions,
};
use buildnet_formats::{Digest, NativeError};
use buildnet_logs::message_from;
use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::raise;
use crate::logs::{body_of, bytes_of};
use crate::store::{digests, texts};

/// A dial and its handshake, and another try of both.
const SESSION_TIMEOUT: Duration = Duration::from_secs(15);
const READ_BYTES_MAX: u64 = 64 << 20;

fn native(error: DialError) -> NativeError {
    error.into()
}

/// A file by its path, or bytes in memory.
#[derive(FromPyObject)]
enum PySource {
    Bytes(Vec<u8>),
    Path(PathBuf),
}

/// A Merkle tree of local files and bytes in memory.
#[pyclass(name = "InputTree", module = "buildnet._native", frozen)]
pub struct PyInputTree(InputTree);

#[pymethods]
impl PyInputTree {
    #[new]
    fn new(py: Python<'_>, entries: Vec<(String, PySource)>) -> PyResult<Self> {
        let entries = entries
            .into_iter()
            .map(|(dest, source)| {
                let source = match source {
                    PySource::Bytes(data) => Source::Bytes(data.into()),
                    PySource::Path(path) => Source::Path(path),
                };
                (dest, source)
            })
            .collect();
        py.detach(|| InputTree::build(entries)).map(Self).map_err(|e| raise(native(e)))
    }

    #[getter]
    fn root(&self) -> String {
        self.0.root().to_string()
    }

    #[getter]
    fn file_count(&self) -> usize {
        self.0.file_count()
    }

    #[getter]
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}

/// An outbound connection that moves blobs.
#[pyclass(name = "Link", module = "buildnet._native", frozen)]
pub struct PyLink(Mutex<Option<Arc<Link>>>);

impl PyLink {
    /// The open link.
    pub fn open(&self) -> Result<Arc<Link>, NativeError> {
        let link = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        link.ok_or_else(|| NativeError::internal("the link is closed"))
    }

    fn with<T: Send>(&self, py: Python<'_>, call: impl FnOnce(&Link) -> Result<T, DialError> + Send) -> PyResult<T> {
        let link = self.open().map_err(raise)?;
        py.detach(|| call(&link)).map_err(|e| raise(native(e)))
    }
}

fn facts(py: Python<'_>, moved: Moved) -> PyResult<Bound<'_, PyDict>> {
    let facts = PyDict::new(py);
    facts.set_item("asked", moved.asked)?;
    facts.set_item("blobs", moved.blobs)?;
    facts.set_item("bytes", moved.bytes)?;
    Ok(facts)
}

#[pymethods]
impl PyLink {
    #[new]
    #[pyo3(signature = (
        url, *, instance = "", connect_timeout_s = 5.0, ca_pem = None, certificate_pem = None, key_pem = None, token = ""
    ))]
    fn new(
        url: &str,
        instance: &str,
        connect_timeout_s: f64,
        ca_pem: Option<Vec<u8>>,
        certificate_pem: Option<Vec<u8>>,
        key_pem: Option<Vec<u8>>,
        token: &str,
    ) -> PyResult<Self> {
        let options = LinkOptions {
            instance: instance.to_owned(),
            connect_timeout: Duration::try_from_secs_f64(connect_timeout_s)
                .map_err(|e| raise(NativeError::invalid("connect_timeout_s", e.to_string())))?,
            tls: TlsOptions { ca: ca_pem, identity: certificate_pem.zip(key_pem) },
            token: token.to_owned(),
            ..LinkOptions::default()
        };
        let link = Link::new(url, options).map_err(|e| raise(native(e)))?;
        Ok(Self(Mutex::new(Some(Arc::new(link)))))
    }

    #[staticmethod]
    #[pyo3(signature = (dialler, *, instance = ""))]
    fn by_session(dialler: &Bound<'_, PyDialler>, instance: &str) -> PyResult<Self> {
        let options =
            LinkOptions { instance: instance.to_owned(), connect_timeout: SESSION_TIMEOUT, ..LinkOptions::default() };
        let link = Link::by_session(Arc::clone(&dialler.get().0), options).map_err(|e| raise(native(e)))?;
        Ok(Self(Mutex::new(Some(Arc::new(link)))))
    }

    fn call(&self, path: &str) -> PyResult<PyCall> {
        PyCall::of(self.open().map_err(raise)?.call(path))
    }

    fn set_token(&self, py: Python<'_>, token: &str) -> PyResult<()> {
        self.with(py, |link| link.set_token(token))
    }

    #[allow(clippy::needless_pass_by_value)]
    fn find_missing(&self, py: Python<'_>, digests: Vec<String>) -> PyResult<Vec<String>> {
        let digests = self::digests(&digests).map_err(raise)?;
        self.with(py, |link| link.find_missing(&digests)).map(|m| texts(&m))
    }

    fn put_bytes(&self, py: Python<'_>, data: Vec<u8>) -> PyResult<String> {
        self.with(py, |link| link.put_bytes(data.into())).map(|d| d.to_string())
    }

    #[allow(clippy::needless_pass_by_value)]
    fn put_file(&self, py: Python<'_>, path: PathBuf) -> PyResult<String> {
        self.with(py, |link| link.put_file(&path)).map(|d| d.to_string())
    }

    #[pyo3(signature = (digest, size_bytes_max = READ_BYTES_MAX))]
    fn get_bytes<'py>(&self, py: Python<'py>, digest: &str, size_bytes_max: u64) -> PyResult<Bound<'py, PyBytes>> {
        let digest: Digest = digest.parse().map_err(raise)?;
        let data = self.with(py, |link| link.get_bytes(&digest, size_bytes_max))?;
        Ok(PyBytes::new(py, &data))
    }

    #[pyo3(signature = (digest, dest, executable = false, follow = false))]
    #[allow(clippy::needless_pass_by_value)]
    fn get_file(&self, py: Python<'_>, digest: &str, dest: PathBuf, executable: bool, follow: bool) -> PyResult<()> {
        let digest: Digest = digest.parse().map_err(raise)?;
        self.with(py, |link| link.get_file(&digest, &dest, executable, follow))
    }

    fn push_tree<'py>(&self, py: Python<'py>, tree: &Bound<'py, PyInputTree>) -> PyResult<Bound<'py, PyDict>> {
        let tree = tree.get();
        let moved = self.with(py, |link| link.push_tree(&tree.0))?;
        facts(py, moved)
    }

    #[allow(clippy::needless_pass_by_value)]
    fn pull_directory<'py>(&self, py: Python<'py>, root: &str, dest: PathBuf) -> PyResult<Bound<'py, PyDict>> {
        let root: Digest = root.parse().map_err(raise)?;
        let moved = self.with(py, |link| link.pull_directory(&root, &dest))?;
        facts(py, moved)
    }

    #[allow(clippy::needless_pass_by_value)]
    fn pull_tree<'py>(&self, py: Python<'py>, tree: &str, dest: PathBuf) -> PyResult<Bound<'py, PyDict>> {
        let tree: Digest = tree.parse().map_err(raise)?;
        let moved = self.with(py, |link| link.pull_tree(&tree, &dest))?;
        facts(py, moved)
    }

    fn close(&self, py: Python<'_>) {
        let link = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(link));
    }
}

/// Whom to dial by sessions.
#[pyclass(name = "Dialler", module = "buildnet._native", frozen)]
pub struct PyDialler(Arc<Dialler>);

#[pymethods]
impl PyDialler {
    #[new]
    #[pyo3(signature = (
        address, *, organisation, node_key, node_seed, session_secret, session_key = None, term = 0, token = Vec::new(),
        rekey_frames = None, carrier = None, ca_pem = None, certificate_pem = None, key_pem = None
    ))]
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)]
    fn new(
        address: String,
        organisation: String,
        node_key: &str,
        node_seed: Vec<u8>,
        session_secret: Vec<u8>,
        session_key: Option<&str>,
        term: u64,
        token: Vec<u8>,
        rekey_frames: Option<u64>,
        carrier: Option<&str>,
        ca_pem: Option<Vec<u8>>,
        certificate_pem: Option<Vec<u8>>,
        key_pem: Option<Vec<u8>>,
    ) -> PyResult<Self> {
        let tls = TlsOptions { ca: ca_pem, identity: certificate_pem.zip(key_pem) };
        let carrier = carrier.map(|scheme| Carrier::new(scheme, &address, &tls)).transpose();
        let malformed = |what: &str| raise(NativeError::invalid("key", format!("{what} is 64 hexadecimal digits")));
        let options = DiallerOptions {
            address,
            organisation,
            node_key: node_key.parse().map_err(|_| malformed("a controller's key"))?,
            session_key: match session_key {
                None => None,
                Some(key) => Some(key.parse().map_err(|_| malformed("a session key"))?),
            },
            term,
            carrier: carrier.map_err(|e| raise(native(e)))?,
            token,
            rekey_frames,
        };
        let dialler = Dialler::new(&node_seed, &session_secret, options).map_err(|e| raise(native(e)))?;
        Ok(Self(Arc::new(dialler)))
    }

    #[getter]
    fn met(&self) -> Option<(String, u64)> {
        self.0.met().map(|(key, term)| (key.to_string(), term))
    }

    #[getter]
    fn failure(&self) -> Option<(&'static str, String)> {
        self.0.failure()
    }
}

/// Below it a turn takes microseconds, for which giving the interpreter lock away costs more than it gives.
const DETACHED_BYTES: usize = 64 << 10;

/// What a turn brought: messages, bytes that the transport has not taken, and how the call ended.
type PyTurn<'py> = (Vec<Bound<'py, PyAny>>, usize, Option<(i32, String)>);

/// One bidirectional call, turned by Python's loop.
#[pyclass(name = "Call", module = "buildnet._native", frozen)]
pub struct PyCall {
    call: Call,
    queued_bytes: AtomicUsize,
}

impl PyCall {
    fn of(call: Result<Call, DialError>) -> PyResult<Self> {
        let call = call.map_err(|e| raise(native(e)))?;
        Ok(Self { call, queued_bytes: AtomicUsize::new(0) })
    }
}

#[pymethods]
impl PyCall {
    #[new]
    #[pyo3(signature = (url, path, *, ca_pem = None, certificate_pem = None, key_pem = None, token = ""))]
    fn new(
        url: &str,
        path: &str,
        ca_pem: Option<Vec<u8>>,
        certificate_pem: Option<Vec<u8>>,
        key_pem: Option<Vec<u8>>,
        token: &str,
    ) -> PyResult<Self> {
        let tls = TlsOptions { ca: ca_pem, identity: certificate_pem.zip(key_pem) };
        Self::of(Call::new(url, path, &tls, token))
    }

    #[getter]
    fn fd(&self) -> i32 {
        self.call.fd()
    }

    fn send(&self, message: &Bound<'_, PyBytes>) {
        let message = Bytes::copy_from_slice(message.as_bytes());
        self.queued_bytes.fetch_add(message.len(), Ordering::Relaxed);
        self.call.send(message.into());
    }

    /// Queue `head` and behind it what `file` has from `offset` on; returns how many bytes of the file those are. Where they
    /// are fewer than `size_bytes`, nothing is queued.
    fn send_from(
        &self,
        py: Python<'_>,
        head: &Bound<'_, PyBytes>,
        file: RawFd,
        offset: u64,
        size_bytes: usize,
    ) -> PyResult<usize> {
        // SAFETY: the caller keeps it open for as long as this lasts, and closes it.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(file) });
        let head = head.as_bytes();
        let read = || message_from(head, &file, offset, size_bytes);
        let message = if size_bytes < DETACHED_BYTES { read() } else { py.detach(read) }?;
        let count = message.len() - head.len();
        if count == size_bytes {
            self.queued_bytes.fetch_add(message.len(), Ordering::Relaxed);
            self.call.send(message.into());
        }
        Ok(count)
    }

    fn finish(&self) {
        self.call.finish();
    }

    /// Go on with what is on its way, and leave what came with the transport.
    fn look(&self) {
        self.call.look();
    }

    /// What the server says of its failure beside the text (`grpc-status-details-bin`); empty before the end.
    #[getter]
    fn details<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.call.details())
    }

    #[pyo3(signature = (*, bodies = false))]
    fn turn<'py>(&self, py: Python<'py>, bodies: bool) -> PyResult<PyTurn<'py>> {
        let turn = if self.queued_bytes.load(Ordering::Relaxed) < DETACHED_BYTES {
            self.call.turn()
        } else {
            py.detach(|| self.call.turn())
        };
        self.queued_bytes.store(turn.waiting_bytes, Ordering::Relaxed);
        let as_asked = |message| match bodies {
            true => body_of(py, message),
            false => Ok(bytes_of(py, &message)?.into_any()),
        };
        let messages = turn.messages.into_iter().map(as_asked).collect::<PyResult<_>>()?;
        Ok((messages, turn.waiting_bytes, turn.end))
    }

    fn close(&self) {
        self.call.close();
    }
}

/// Add the classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyInputTree>()?;
    module.add_class::<PyLink>()?;
    module.add_class::<PyDialler>()?;
    module.add_class::<PyCall>()
}
