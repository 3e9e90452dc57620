//! Staging and collecting for Python; every function does I/O with the interpreter lock released.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use buildnet_formats::{Digest, NativeError};
use buildnet_stage::{self as native, FILE_COUNT_MAX, SIZE_BYTES_MAX};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::raise;
use crate::store::{PyStore, texts};

/// Write the input tree `root` below `dest`, with the working directory and the parents of the outputs of `command`.
#[pyfunction]
fn stage<'py>(
    py: Python<'py>,
    store: &PyStore,
    root: &str,
    dest: PathBuf,
    command: &[u8],
) -> PyResult<Bound<'py, PyDict>> {
    let staged = py.detach(|| {
        let digest: Digest = root.parse()?;
        native::stage(&*store.open()?, &digest, &dest, command)
    });
    let staged = staged.map_err(raise)?;
    let dict = PyDict::new(py);
    dict.set_item("files", staged.files)?;
    dict.set_item("bytes", staged.bytes)?;
    dict.set_item("directories", staged.directories)?;
    Ok(dict)
}

/// Input trees that are kept for later actions.
#[pyclass(name = "Trees", module = "buildnet._native", frozen)]
pub struct PyTrees(Arc<native::Trees>);

impl PyTrees {
    /// The same trees.
    pub fn share(&self) -> Arc<native::Trees> {
        Arc::clone(&self.0)
    }
}

#[pymethods]
impl PyTrees {
    /// None where trees cannot be kept.
    #[staticmethod]
    fn open(py: Python<'_>, directory: PathBuf, size_bytes_max: u64) -> PyResult<Option<Self>> {
        py.detach(|| native::Trees::open(&directory, size_bytes_max)).map(|trees| trees.map(Self)).map_err(raise)
    }

    /// The kept tree, in use until it is released, or None.
    fn find(&self, root: &str) -> PyResult<Option<PyKeptTree>> {
        let digest: Digest = root.parse().map_err(raise)?;
        Ok(self.0.find(&digest).map(|kept| PyKeptTree(Mutex::new(Some(kept)))))
    }

    /// Make an action's execution root in `scratch`.
    fn stage(
        &self,
        py: Python<'_>,
        store: &PyStore,
        root: &str,
        scratch: PathBuf,
        command: &[u8],
    ) -> PyResult<PyStagedRoot> {
        let staged = py.detach(|| {
            let digest: Digest = root.parse()?;
            native::stage_kept(&self.0, &*store.open()?, &digest, &scratch, command)
        });
        let view = match staged.map_err(raise)? {
            native::Root::Copied(_) => None,
            native::Root::Seen(view) => Some(view),
        };
        Ok(PyStagedRoot { copied: scratch.join("root"), view: Mutex::new(view) })
    }

    /// Trees, and what they take of the disk.
    fn counts(&self) -> (u64, u64) {
        self.0.counts()
    }
}

/// Keeps a tree in use.
#[pyclass(name = "KeptTree", module = "buildnet._native", frozen)]
pub struct PyKeptTree(Mutex<Option<native::KeptTree>>);

#[pymethods]
impl PyKeptTree {
    fn release(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// The execution root of one action.
#[pyclass(name = "StagedRoot", module = "buildnet._native", frozen)]
pub struct PyStagedRoot {
    copied: PathBuf,
    view: Mutex<Option<native::View>>,
}

#[pymethods]
impl PyStagedRoot {
    /// Where this process finds it.
    #[getter]
    fn path(&self) -> OsString {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        view.as_ref().map_or_else(|| self.copied.clone(), native::View::path).into_os_string()
    }

    /// The mount that the action is to see in its place, or -1.
    #[getter]
    fn mount_fd(&self) -> RawFd {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(-1, native::View::fd)
    }

    /// Give up the mount and the tree below it.
    fn close(&self, py: Python<'_>) {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(view));
    }
}

/// Store the outputs of `command` below `work`; returns an ActionResult of outputs only, and every blob it references.
#[pyfunction]
#[pyo3(signature = (store, work, command, *, file_count_max = FILE_COUNT_MAX, size_bytes_max = SIZE_BYTES_MAX))]
fn collect<'py>(
    py: Python<'py>,
    store: &PyStore,
    work: PathBuf,
    command: &[u8],
    file_count_max: u64,
    size_bytes_max: u64,
) -> PyResult<(Bound<'py, PyBytes>, Vec<String>)> {
    let limits = native::CollectLimits { file_count_max, size_bytes_max };
    let collected = py.detach(|| -> Result<_, NativeError> {
        let store: Arc<_> = store.open()?;
        let collected = native::collect(&store, &work, command, limits)?;
        Ok((collected.result_bytes(), texts(&collected.digests)))
    });
    let (result, digests) = collected.map_err(raise)?;
    Ok((PyBytes::new(py, &result), digests))
}

/// Remove `path` and all below it, whatever an action made of it.
#[pyfunction]
fn remove_tree(py: Python<'_>, path: PathBuf) -> PyResult<()> {
    py.detach(|| native::remove_tree(&path)).map_err(raise)
}

/// Add the functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTrees>()?;
    module.add_class::<PyKeptTree>()?;
    module.add_class::<PyStagedRoot>()?;
    module.add_function(wrap_pyfunction!(stage, module)?)?;
    module.add_function(wrap_pyfunction!(collect, module)?)?;
    module.add_function(wrap_pyfunction!(remove_tree, module)?)
}
