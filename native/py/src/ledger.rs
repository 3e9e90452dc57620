//! The ledger's two loops over bytes, for Python.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};

use buildnet_ledger::{self as ledger, Hash};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

/// Append records to a file: into the page cache, which is quicker than to give the interpreter lock away and back.
#[pyfunction]
fn append_records(file: RawFd, first: u64, bodies: Vec<PyBackedBytes>) -> PyResult<usize> {
    // SAFETY: the caller keeps it open for as long as this lasts, and closes it.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(file) });
    let appended = ledger::append_records(&*file, first, bodies.iter().map(|body| &**body));
    appended.map_err(|error| PyOSError::new_err((error.raw_os_error(), error.to_string())))
}

/// Grow a tree of `size` leaves whose edge is `edge`, hashes one behind the other; its edge then, and what is complete now.
#[pyfunction]
fn extend_tree<'py>(
    py: Python<'py>,
    size: u64,
    edge: &[u8],
    bodies: Vec<PyBackedBytes>,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let (hashes, rest) = edge.as_chunks::<{ ledger::HASH_BYTES }>();
    if !rest.is_empty() || hashes.len() != size.count_ones() as usize {
        return Err(PyValueError::new_err(format!(
            "a tree of {size} leaves has {} complete subtrees",
            size.count_ones()
        )));
    }
    let mut edge: Vec<Hash> = hashes.to_vec();
    let complete = py.detach(|| ledger::extend(size, &mut edge, bodies.iter().map(|body| &**body)));
    Ok((PyBytes::new(py, edge.as_flattened()), PyBytes::new(py, &complete)))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(append_records, module)?)?;
    module.add_function(wrap_pyfunction!(extend_tree, module)?)
}
