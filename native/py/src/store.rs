//! Store as Python sees it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use buildnet_formats::{Digest, NativeError};
use buildnet_store::{Background, Cursor, Durability, Options, Origin, Store};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::raise;

/// Kind, name, size of the content and on the disk.
type Row = (String, String, u64, u64);
/// Rows, and the segment and offset where the next ones begin.
type Rows = (Vec<Row>, Option<(u32, u32)>);

const READ_BYTES_MAX: u64 = 64 << 20;
/// Read with the interpreter held: to give it away and have it back takes longer than a copy from the page cache.
const QUICK_BYTES_MAX: u64 = 64 << 10;

/// Blobs and action results below one directory, opened by one process.
#[pyclass(name = "Store", module = "buildnet._native", frozen)]
pub struct PyStore {
    root: String,
    /// Whether what is written waits for the disk.
    syncs: bool,
    store: Mutex<Option<Held>>,
}

/// The store and the thread that looks after it, which ends first.
struct Held {
    _background: Background,
    store: Arc<Store>,
}

impl PyStore {
    /// The open store.
    pub fn open(&self) -> Result<Arc<Store>, NativeError> {
        self.store
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(|held| Arc::clone(&held.store))
            .ok_or_else(|| NativeError::internal("the store is closed"))
    }
}

/// Parse digest texts.
pub fn digests(texts: &[String]) -> Result<Vec<Digest>, NativeError> {
    texts.iter().map(|text| text.parse()).collect()
}

/// Digests as text.
pub fn texts(digests: &[Digest]) -> Vec<String> {
    digests.iter().map(ToString::to_string).collect()
}

#[pymethods]
impl PyStore {
    #[new]
    #[pyo3(signature = (
        root, durability = "process", *,
        blob_size_bytes_max = None, free_bytes_min = None, size_bytes_max = None, keep_s = None, segment_bytes = None
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        root: String,
        durability: &str,
        blob_size_bytes_max: Option<u64>,
        free_bytes_min: Option<u64>,
        size_bytes_max: Option<u64>,
        keep_s: Option<u64>,
        segment_bytes: Option<u64>,
    ) -> PyResult<Self> {
        let durability = match durability {
            "process" => Durability::Process,
            "power" => Durability::Power,
            other => {
                return Err(raise(NativeError::invalid("durability", format!("{other:?} is not a durability"))));
            }
        };
        let defaults = Options::default();
        let options = Options {
            durability,
            blob_size_bytes_max: blob_size_bytes_max.unwrap_or(defaults.blob_size_bytes_max),
            free_bytes_min: free_bytes_min.unwrap_or(defaults.free_bytes_min),
            size_bytes_max: size_bytes_max.unwrap_or(defaults.size_bytes_max),
            keep_s: keep_s.unwrap_or(defaults.keep_s),
            segment_bytes: segment_bytes.unwrap_or(defaults.segment_bytes),
            ..defaults
        };
        let path = PathBuf::from(&root);
        let held = py.detach(|| {
            let store = Arc::new(Store::open(&path, options)?);
            Ok(Held { _background: Background::start(&store)?, store })
        });
        Ok(Self { root, syncs: durability == Durability::Power, store: Mutex::new(Some(held.map_err(raise)?)) })
    }

    #[getter]
    fn root(&self) -> &str {
        &self.root
    }

    fn put_bytes(&self, py: Python<'_>, data: &[u8]) -> PyResult<String> {
        let store = self.open().map_err(raise)?;
        py.detach(|| store.put_bytes(data)).map(|d| d.to_string()).map_err(raise)
    }

    fn put_file(&self, py: Python<'_>, path: PathBuf) -> PyResult<String> {
        let store = self.open().map_err(raise)?;
        py.detach(|| store.put_file(&path)).map(|d| d.to_string()).map_err(raise)
    }

    #[pyo3(signature = (digest, size_bytes_max = READ_BYTES_MAX))]
    fn get_bytes<'py>(&self, py: Python<'py>, digest: &str, size_bytes_max: u64) -> PyResult<Bound<'py, PyBytes>> {
        let store = self.open().map_err(raise)?;
        let digest: Digest = digest.parse().map_err(raise)?;
        let read = || store.get_bytes(&digest, size_bytes_max);
        let data = if digest.size_bytes() <= QUICK_BYTES_MAX { read() } else { py.detach(read) }.map_err(raise)?;
        Ok(PyBytes::new(py, &data))
    }

    #[pyo3(signature = (digest, dest, executable = false))]
    fn export_file(&self, py: Python<'_>, digest: &str, dest: PathBuf, executable: bool) -> PyResult<()> {
        let store = self.open().map_err(raise)?;
        let digest: Digest = digest.parse().map_err(raise)?;
        py.detach(|| store.export_file(&digest, &dest, executable)).map_err(raise)
    }

    #[allow(clippy::needless_pass_by_value)]
    fn find_missing(&self, py: Python<'_>, digests: Vec<String>) -> PyResult<Vec<String>> {
        let store = self.open().map_err(raise)?;
        py.detach(|| store.find_missing(&self::digests(&digests)?)).map(|m| texts(&m)).map_err(raise)
    }

    fn missing_of_action(&self, py: Python<'_>, action: &str) -> PyResult<Vec<String>> {
        let store = self.open().map_err(raise)?;
        let action: Digest = action.parse().map_err(raise)?;
        py.detach(|| store.missing_of_action(&action)).map(|m| texts(&m)).map_err(raise)
    }

    fn missing_of_result(&self, py: Python<'_>, result: &[u8]) -> PyResult<Vec<String>> {
        let store = self.open().map_err(raise)?;
        py.detach(|| store.missing_of_result(None, result)).map(|m| texts(&m)).map_err(raise)
    }

    fn missing_of_flat_result(&self, result: &[u8]) -> PyResult<Option<Vec<String>>> {
        // Microseconds: to give the interpreter away and have it back would take longer.
        let missing = self.open().map_err(raise)?.missing_of_flat_result(result).map_err(raise)?;
        Ok(missing.map(|missing| texts(&missing)))
    }

    fn get_action_result<'py>(
        &self,
        py: Python<'py>,
        instance: &str,
        action: &str,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let store = self.open().map_err(raise)?;
        let action: Digest = action.parse().map_err(raise)?;
        let result = store.get_action_result(instance, &action).map_err(raise)?;
        Ok(result.map(|hit| PyBytes::new(py, &hit.bytes)))
    }

    fn put_action_result(
        &self,
        py: Python<'_>,
        instance: &str,
        action: &str,
        result: &[u8],
        entry_index: Option<u64>,
    ) -> PyResult<()> {
        let store = self.open().map_err(raise)?;
        let action: Digest = action.parse().map_err(raise)?;
        let origin = entry_index.map_or(Origin::Client(None), Origin::Published);
        let put = || store.put_action_result(instance, &action, result, origin);
        if self.syncs { py.detach(put) } else { put() }.map_err(raise)
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let statistics = self.open().map_err(raise)?.statistics();
        let facts = PyDict::new(py);
        for (name, value) in statistics {
            facts.set_item(name, value)?;
        }
        Ok(facts)
    }

    #[allow(clippy::needless_pass_by_value)]
    fn hold(&self, py: Python<'_>, name: &str, digests: Vec<String>) -> PyResult<()> {
        let store = self.open().map_err(raise)?;
        let digests = self::digests(&digests).map_err(raise)?;
        py.detach(|| store.hold(name, &digests)).map_err(raise)
    }

    fn hold_action(&self, py: Python<'_>, name: &str, action: &str) -> PyResult<()> {
        let store = self.open().map_err(raise)?;
        let action: Digest = action.parse().map_err(raise)?;
        py.detach(|| store.hold_action(name, &action)).map_err(raise)
    }

    fn hold_flat_action(&self, name: &str, action: &str) -> PyResult<bool> {
        let action: Digest = action.parse().map_err(raise)?;
        self.open().map_err(raise)?.hold_flat_action(name, &action).map_err(raise)
    }

    fn hold_result(&self, py: Python<'_>, name: &str, result: &[u8]) -> PyResult<Vec<String>> {
        let store = self.open().map_err(raise)?;
        let missing = py.detach(|| store.hold_result(name, result)).map_err(raise)?;
        Ok(texts(&missing))
    }

    fn hold_flat_result(&self, name: &str, result: &[u8]) -> PyResult<Option<Vec<String>>> {
        let missing = self.open().map_err(raise)?.hold_flat_result(name, result).map_err(raise)?;
        Ok(missing.map(|missing| texts(&missing)))
    }

    fn release(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        let store = self.open().map_err(raise)?;
        py.detach(|| store.release(name));
        Ok(())
    }

    fn entry_index(&self, py: Python<'_>, instance: &str, action: &str) -> PyResult<Option<u64>> {
        let store = self.open().map_err(raise)?;
        let action: Digest = action.parse().map_err(raise)?;
        py.detach(|| store.published_index(instance, &action)).map_err(raise)
    }

    fn evict<'py>(&self, py: Python<'py>, size_bytes: u64) -> PyResult<Bound<'py, PyDict>> {
        let store = self.open().map_err(raise)?;
        let (done, compacted) =
            py.detach(|| Ok((store.evict_to(size_bytes, size_bytes)?, store.compact()?))).map_err(raise)?;
        let facts = PyDict::new(py);
        facts.set_item("records", done.records)?;
        facts.set_item("bytes", done.bytes)?;
        facts.set_item("moved", done.moved)?;
        facts.set_item("compacted_bytes", compacted)?;
        Ok(facts)
    }

    #[pyo3(signature = (progress = None))]
    fn scrub<'py>(&self, py: Python<'py>, progress: Option<Py<PyAny>>) -> PyResult<Bound<'py, PyDict>> {
        let store = self.open().map_err(raise)?;
        let asked = Progress::new(progress);
        let seen = py.detach(|| store.scrub(|seen| asked.goes_on((seen.records, seen.bytes, seen.damaged.len()))));
        let seen = asked.settle(seen.map_err(raise))?;
        let facts = PyDict::new(py);
        facts.set_item("records", seen.records)?;
        facts.set_item("bytes", seen.bytes)?;
        facts.set_item("damaged", seen.damaged)?;
        facts.set_item("orphans", seen.orphans)?;
        Ok(facts)
    }

    #[pyo3(signature = (segment, offset, kind, prefix, count_max))]
    fn page(
        &self,
        py: Python<'_>,
        segment: u32,
        offset: u32,
        kind: Option<&str>,
        prefix: &str,
        count_max: usize,
    ) -> PyResult<Rows> {
        let store = self.open().map_err(raise)?;
        let from = Cursor { segment, offset };
        let page = py.detach(|| store.page(from, kind, prefix, count_max)).map_err(raise)?;
        let rows = page.rows.into_iter().map(|row| (row.kind.to_owned(), row.name, row.size_bytes, row.stored_bytes));
        Ok((rows.collect(), page.next.map(|next| (next.segment, next.offset))))
    }

    #[pyo3(signature = (progress = None))]
    fn taken<'py>(&self, py: Python<'py>, progress: Option<Py<PyAny>>) -> PyResult<Bound<'py, PyDict>> {
        let store = self.open().map_err(raise)?;
        let asked = Progress::new(progress);
        let taken = py.detach(|| store.taken(|records| asked.goes_on((records,))));
        let taken = asked.settle(taken.map_err(raise))?;
        let groups: Vec<_> = taken
            .groups
            .into_iter()
            .map(|((kind, of), group)| (kind, of, group.count, group.size_bytes, group.stored_bytes))
            .collect();
        let facts = PyDict::new(py);
        facts.set_item("groups", groups)?;
        facts.set_item("segments", taken.segments)?;
        facts.set_item("segment_bytes", taken.segment_bytes)?;
        facts.set_item("live_bytes", taken.live_bytes)?;
        facts.set_item("large_files", taken.large_files)?;
        facts.set_item("large_bytes", taken.large_bytes)?;
        Ok(facts)
    }

    #[pyo3(signature = (digest, looked_max, progress = None))]
    fn referrers(
        &self,
        py: Python<'_>,
        digest: &str,
        looked_max: u64,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<(Vec<String>, u64, bool)> {
        let store = self.open().map_err(raise)?;
        let digest: Digest = digest.parse().map_err(raise)?;
        let asked = Progress::new(progress);
        let found = py.detach(|| store.referrers(&digest, looked_max, |looked| asked.goes_on((looked,))));
        let found = asked.settle(found.map_err(raise))?;
        Ok((found.names, found.looked, found.whole))
    }

    fn rehearse<'py>(&self, py: Python<'py>, size_bytes: u64) -> PyResult<Bound<'py, PyDict>> {
        let store = self.open().map_err(raise)?;
        let done = py.detach(|| store.rehearse(size_bytes)).map_err(raise)?;
        let facts = PyDict::new(py);
        facts.set_item("records", done.records)?;
        facts.set_item("bytes", done.bytes)?;
        facts.set_item("moved", done.moved)?;
        Ok(facts)
    }

    #[pyo3(signature = (count_max = 1000))]
    fn list(&self, py: Python<'_>, count_max: usize) -> PyResult<Vec<Row>> {
        let store = self.open().map_err(raise)?;
        let mut rows = Vec::new();
        py.detach(|| {
            store.list(|row| {
                rows.push((row.kind.to_owned(), row.name, row.size_bytes, row.stored_bytes));
                rows.len() < count_max
            });
        });
        Ok(rows)
    }

    fn facts<'py>(&self, py: Python<'py>, digest: &str) -> PyResult<Option<Bound<'py, PyDict>>> {
        let store = self.open().map_err(raise)?;
        let digest: Digest = digest.parse().map_err(raise)?;
        let Some(known) = py.detach(|| store.facts(&digest)) else { return Ok(None) };
        let facts = PyDict::new(py);
        facts.set_item("stored_bytes", known.stored_bytes)?;
        facts.set_item("stored_as", known.stored_as)?;
        facts.set_item("segment", known.segment)?;
        facts.set_item("segments_before", known.segments_before)?;
        facts.set_item("usage", known.usage)?;
        facts.set_item("used_at_s", known.used_at_s)?;
        facts.set_item("kept_until_s", known.kept_until_s)?;
        facts.set_item("held_by", known.held_by)?;
        Ok(Some(facts))
    }

    fn close(&self, py: Python<'_>) {
        let held = self.store.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(held));
    }
}

/// Whom long work is told to now and then; a false answer, or an exception, ends the work.
struct Progress {
    told: Option<Py<PyAny>>,
    raised: Mutex<Option<PyErr>>,
}

impl Progress {
    fn new(told: Option<Py<PyAny>>) -> Self {
        Self { told, raised: Mutex::new(None) }
    }

    fn goes_on<A: for<'py> pyo3::call::PyCallArgs<'py>>(&self, counts: A) -> bool {
        Python::attach(|py| {
            let answer = match &self.told {
                Some(told) => told.call1(py, counts).and_then(|answer| answer.is_truthy(py)),
                None => py.check_signals().map(|()| true),
            };
            answer.unwrap_or_else(|raised| {
                *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(raised);
                false
            })
        })
    }

    /// What the work came to, unless it was ended by an exception.
    fn settle<T>(self, done: PyResult<T>) -> PyResult<T> {
        match self.raised.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(raised) => Err(raised),
            None => done,
        }
    }
}

/// Add the class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyStore>()
}
