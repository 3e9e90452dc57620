//! Store as Python sees it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use buildnet_formats::{Digest, NativeError};
use buildnet_store::{Durability, Options, Origin, Store};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::raise;

const READ_BYTES_MAX: u64 = 64 << 20;

/// Blobs and action results below one directory, opened by one process.
#[pyclass(name = "Store", module = "buildnet._native", frozen)]
pub struct PyStore {
    root: String,
    store: Mutex<Option<Arc<Store>>>,
}

impl PyStore {
    /// The open store.
    pub fn open(&self) -> Result<Arc<Store>, NativeError> {
        self.store
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
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
    #[pyo3(signature = (root, durability = "process", *, blob_size_bytes_max = None, free_bytes_min = None))]
    fn new(
        py: Python<'_>,
        root: String,
        durability: &str,
        blob_size_bytes_max: Option<u64>,
        free_bytes_min: Option<u64>,
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
        };
        let path = PathBuf::from(&root);
        let store = py.detach(|| Store::open(&path, options)).map_err(raise)?;
        Ok(Self { root, store: Mutex::new(Some(Arc::new(store))) })
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
        let data = py.detach(|| store.get_bytes(&digest, size_bytes_max)).map_err(raise)?;
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
        py.detach(|| store.missing_of_result(result)).map(|m| texts(&m)).map_err(raise)
    }

    fn get_action_result<'py>(
        &self,
        py: Python<'py>,
        instance: &str,
        action: &str,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let store = self.open().map_err(raise)?;
        let action: Digest = action.parse().map_err(raise)?;
        let result = py.detach(|| store.get_action_result(instance, &action)).map_err(raise)?;
        Ok(result.map(|bytes| PyBytes::new(py, &bytes)))
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
        let origin = entry_index.map_or(Origin::Client, Origin::Published);
        py.detach(|| store.put_action_result(instance, &action, result, origin)).map_err(raise)
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let statistics = self.open().map_err(raise)?.statistics();
        let facts = PyDict::new(py);
        for (name, value) in statistics {
            facts.set_item(name, value)?;
        }
        Ok(facts)
    }

    fn close(&self) {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Add the class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyStore>()
}
