//! Staging and collecting for Python; every function does I/O with the interpreter lock released.

use std::path::PathBuf;
use std::sync::Arc;

use buildnet_formats::{Digest, NativeError};
use buildnet_stage as native;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::raise;
use crate::store::{PyStore, texts};

const FILE_COUNT_MAX: u64 = 100_000;
const SIZE_BYTES_MAX: u64 = 64 << 30;

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
    module.add_function(wrap_pyfunction!(stage, module)?)?;
    module.add_function(wrap_pyfunction!(collect, module)?)?;
    module.add_function(wrap_pyfunction!(remove_tree, module)?)
}
