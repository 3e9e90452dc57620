//! Door as Python sees it: events come out as tuples, decisions go in as tuples.
//!
//! Events: `(0, id, method, body | None, metadata, timeout_s | None, peer)`, `(1, id, body)`, `(2, id)`, `(3, id)`,
//! `(4, id, bytes)`, `(5,)`, `(6, id, rows)`, `(7, text)`, `(8, id, (method, path, query, version, scheme), headers, body,
//! caller, peer)`, `(9, id, node_key, token | None, pattern, peer)`, `(10, id, node_key, reason, rekeys)`, `(11, id,
//! node_key, rekeys)`: call, message, half-close, cancel, credit, drained, results, said, request, greeted, session
//! ended, session rekeyed. The body of a message is bytes, or a `Body` where it is large.
//! Decisions: `(id, 0, body)`, `(id, 1, body | (head, rest))`, `(id, 2, None)`, `(id, 3, (code, text, details))`, `(id, 4, bytes)`,
//! `(id, 5, (status, headers))`: reply, message, end, fail, ack, start.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use buildnet_door::{
    AccessOptions, CertificateRule, Door, DoorOptions, Event, Hub, Kind, LogOptions, Message, MetadataValue,
    ObserveOptions, Op, SessionOptions, TlsOptions, WebHead,
};
use buildnet_formats::NativeError;
use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::error::raise;
use crate::logs::{PyBody, body_of};
use crate::store::PyStore;
use crate::tiers::PyTiers;

/// Who is let in: keys as raw Ed25519, a file of revoked tokens, scopes of callers without credentials, certificates.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PyAccess {
    keys: Vec<Vec<u8>>,
    revoked: Option<PathBuf>,
    anonymous: Vec<String>,
    certificates: Vec<PyCertificate>,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PyCertificate {
    name: String,
    scopes: Vec<String>,
    instances: Option<Vec<String>>,
    namespace: Option<String>,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PyTls {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

/// Who the door is to nodes: raw keys, the organisation's name, the controller's term.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PySessions {
    node_seed: Vec<u8>,
    session_secret: Vec<u8>,
    organisation: String,
    term: u64,
}

impl PySessions {
    fn options(&self) -> Result<SessionOptions, NativeError> {
        SessionOptions::new(&self.node_seed, &self.session_secret, &self.organisation, self.term)
    }
}

impl From<PyAccess> for AccessOptions {
    fn from(access: PyAccess) -> Self {
        let certificates = access.certificates.into_iter().map(|rule| CertificateRule {
            name: rule.name,
            scopes: rule.scopes,
            instances: rule.instances,
            namespace: rule.namespace,
        });
        Self {
            keys: access.keys,
            revoked: access.revoked,
            anonymous: access.anonymous,
            certificates: certificates.collect(),
        }
    }
}

impl From<PyTls> for TlsOptions {
    fn from(tls: PyTls) -> Self {
        Self { certificate: tls.certificate, key: tls.key, client_ca: tls.client_ca }
    }
}

/// One listening port.
#[pyclass(name = "Door", module = "buildnet._native", frozen)]
pub struct PyDoor {
    hub: Arc<Hub>,
    door: Door,
}

#[pymethods]
impl PyDoor {
    #[new]
    #[pyo3(signature = (
        store, methods, *,
        threads = 0, message_size_bytes_max = 16 << 20, execution = true, access = None, tls = None, local = false,
        sessions = None, application = false, tiers = None,
        durability = "process", access_log = None, slow_ms = 500, access_log_sample = 0.01, traces = false
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        store: &Bound<'_, PyStore>,
        methods: Vec<(String, String)>,
        threads: usize,
        message_size_bytes_max: usize,
        execution: bool,
        access: Option<PyAccess>,
        tls: Option<PyTls>,
        local: bool,
        sessions: Option<PySessions>,
        application: bool,
        tiers: Option<&Bound<'_, PyTiers>>,
        durability: &str,
        access_log: Option<String>,
        slow_ms: u64,
        access_log_sample: f64,
        traces: bool,
    ) -> PyResult<Self> {
        let methods = methods
            .into_iter()
            .map(|(path, kind)| {
                let kind = match kind.as_str() {
                    "unary" => Kind::Unary,
                    "server_stream" => Kind::ServerStream,
                    "bidi" => Kind::Bidi,
                    other => return Err(PyValueError::new_err(format!("{other:?} is not a kind of method"))),
                };
                Ok((path, kind))
            })
            .collect::<PyResult<Vec<_>>>()?;
        let hub = Hub::new(methods).map_err(|e| raise(NativeError::internal(e.to_string())))?;
        let hub = Arc::new(hub);
        let slow = Duration::from_millis(slow_ms);
        let access_log = access_log.map(|path| LogOptions { path, slow, sample: access_log_sample });
        let observe = ObserveOptions { access_log, traces, durability: durability.to_owned() };
        let tiers = tiers.map(|tiers| tiers.get().open()).transpose().map_err(raise)?;
        let options = DoorOptions {
            threads,
            message_size_bytes_max,
            execution,
            access: access.map_or_else(AccessOptions::open, AccessOptions::from),
            tls: tls.map(TlsOptions::from),
            local,
            sessions: sessions.map(|sessions| sessions.options()).transpose().map_err(raise)?,
            application,
            tiers: tiers.clone(),
            observe,
        };
        let store = store.get().open().map_err(raise)?;
        let door = Door::new(store, Arc::clone(&hub), options).map_err(raise)?;
        if let Some(tiers) = tiers {
            for (number, facts) in tiers.statistics().into_iter().enumerate() {
                let tiers = Arc::clone(&tiers);
                let read = move || tiers.statistics().swap_remove(number).counts;
                door.watch(format!("tier_{}", facts.name), Box::new(read));
            }
        }
        Ok(Self { hub, door })
    }

    #[getter]
    fn fd(&self) -> RawFd {
        self.hub.fd()
    }

    fn start(&self, py: Python<'_>, listen: &str) -> PyResult<String> {
        py.detach(|| self.door.start(listen)).map(|address| address.to_string()).map_err(raise)
    }

    #[getter]
    fn local_address(&self) -> Option<String> {
        self.door.local_address().map(|address| address.to_string())
    }

    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let events = PyList::empty(py);
        for event in self.hub.drain() {
            events.append(tuple_of(py, event)?)?;
        }
        Ok(events)
    }

    fn submit(&self, ops: Vec<(u64, u8, Bound<'_, PyAny>)>) -> PyResult<()> {
        let ops = ops.into_iter().map(|(id, op, payload)| Ok((id, op_of(op, &payload)?)));
        self.hub.submit(ops.collect::<PyResult<Vec<_>>>()?);
        Ok(())
    }

    fn report(&self, values: BTreeMap<String, u64>) -> PyResult<()> {
        self.door.report(values).map_err(raise)
    }

    /// What each caller did with the cache since this was last asked.
    fn take_usage<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let told = self.door.take_usage().into_iter().map(|used| {
            let facts = PyDict::new(py);
            facts.set_item("subject", used.subject)?;
            facts.set_item("worker", used.worker)?;
            facts.set_item("results", used.results)?;
            facts.set_item("reads", used.reads)?;
            facts.set_item("read_bytes", used.read_bytes)?;
            facts.set_item("writes", used.writes)?;
            facts.set_item("written_bytes", used.written_bytes)?;
            Ok(facts)
        });
        told.collect()
    }

    fn reopen_log(&self) {
        self.door.reopen_log();
    }

    fn end_sessions(&self, node_key: &str, code: u8, text: &str) -> PyResult<usize> {
        self.door.end_sessions(node_key, code, text).map_err(raise)
    }

    fn stop(&self) {
        self.door.stop();
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.door.close());
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (calls, open, batches) = self.hub.counts();
        let facts = PyDict::new(py);
        facts.set_item("calls", calls)?;
        facts.set_item("calls_open", open)?;
        facts.set_item("batches", batches)?;
        let (unauthenticated, forbidden) = self.door.refusals();
        facts.set_item("calls_unauthenticated", unauthenticated)?;
        facts.set_item("calls_forbidden", forbidden)?;
        Ok(facts)
    }
}

fn metadata_of(py: Python<'_>, metadata: Vec<(String, MetadataValue)>) -> PyResult<Bound<'_, PyList>> {
    let pairs = PyList::empty(py);
    for (key, value) in metadata {
        match value {
            MetadataValue::Text(text) => pairs.append((key, text))?,
            MetadataValue::Binary(data) => pairs.append((key, PyBytes::new(py, &data)))?,
        }
    }
    Ok(pairs)
}

fn tuple_of(py: Python<'_>, event: Event) -> PyResult<Bound<'_, PyTuple>> {
    match event {
        Event::Call { id, method, body, metadata, timeout_s, peer } => {
            let pairs = metadata_of(py, metadata)?;
            let body = body.map(|body| PyBytes::new(py, &body));
            (0u8, id, method, body, pairs, timeout_s, peer).into_pyobject(py)
        }
        Event::Message { id, body } => (1u8, id, body_of(py, body)?).into_pyobject(py),
        Event::HalfClose { id } => (2u8, id).into_pyobject(py),
        Event::Cancel { id } => (3u8, id).into_pyobject(py),
        Event::Credit { id, bytes } => (4u8, id, bytes).into_pyobject(py),
        Event::Drained => (5u8,).into_pyobject(py),
        Event::Request { id, request } => {
            let headers = PyList::empty(py);
            for (name, value) in &request.headers {
                headers.append((PyBytes::new(py, name), PyBytes::new(py, value)))?;
            }
            let caller = metadata_of(py, request.caller)?;
            let line = (request.method, request.path, request.query, request.version, request.scheme);
            (8u8, id, line, headers, PyBytes::new(py, &request.body), caller, request.peer).into_pyobject(py)
        }
        Event::Results { id, rows, actions } => {
            let told = PyList::empty(py);
            for (place, ran) in actions {
                let requested = PyBytes::new(py, &ran.requested);
                let result = PyBytes::new(py, &ran.result);
                told.append((place, ran.namespace, ran.action.to_string(), result, ran.caller, requested))?;
            }
            (6u8, id, rows, told).into_pyobject(py)
        }
        Event::Said(text) => (7u8, text).into_pyobject(py),
        Event::Greeted { id, node_key, token, pattern, peer } => {
            let token = token.map(|token| PyBytes::new(py, &token));
            (9u8, id, node_key, token, pattern, peer).into_pyobject(py)
        }
        Event::SessionRekeyed { id, node_key, rekeys } => (11u8, id, node_key, rekeys).into_pyobject(py),
        Event::SessionEnded { id, node_key, reason, rekeys } => (10u8, id, node_key, reason, rekeys).into_pyobject(py),
    }
}

/// Name and value of a header.
type Pair = (Vec<u8>, Vec<u8>);

fn op_of(op: u8, payload: &Bound<'_, PyAny>) -> PyResult<Op> {
    let body = || -> PyResult<Bytes> { Ok(Bytes::copy_from_slice(payload.cast::<PyBytes>()?.as_bytes())) };
    Ok(match op {
        0 => Op::Reply(body()?),
        1 => Op::Message(match payload.cast::<PyTuple>() {
            Ok(pair) => {
                let (head, rest): (Bound<'_, PyBytes>, Bound<'_, PyBody>) = pair.extract()?;
                let mut message = Message::from(Bytes::copy_from_slice(head.as_bytes()));
                for piece in rest.get().message().pieces() {
                    message.push(piece.clone());
                }
                message
            }
            Err(_) => body()?.into(),
        }),
        2 => Op::End,
        3 => {
            let (code, text, details): (i32, String, Vec<u8>) = payload.extract()?;
            Op::Fail(Hub::failure(code, text, details.into()))
        }
        4 => Op::Ack(payload.extract()?),
        5 => {
            let (status, pairs): (u16, Vec<Pair>) = payload.extract()?;
            let headers = pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
            Op::Start(WebHead { status, headers })
        }
        other => return Err(PyValueError::new_err(format!("{other} is not a decision"))),
    })
}

/// Add the class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyDoor>()
}
