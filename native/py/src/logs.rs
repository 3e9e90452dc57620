//! Bytes that stay native while Python decides about them, and what it asks of logs.

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use buildnet_logs::{Record, Spooled, append, chunk_of, keep, record_of, records};
use buildnet_raw::Message;
use bytes::Bytes;
use pyo3::exceptions::{PyBufferError, PyIndexError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PySlice};

use crate::error::raise;
use crate::store::PyStore;

/// From here on a copy costs more than an object of its own.
const LARGE_BYTES: usize = 16 << 10;

/// Bytes that Python may look at and pass on. A slice shares them.
#[pyclass(name = "Body", module = "buildnet._native", frozen)]
pub struct PyBody {
    message: Message,
    /// Whole, for who looks at them.
    joined: OnceLock<Bytes>,
}

impl PyBody {
    fn of(message: Message) -> Self {
        Self { message, joined: OnceLock::new() }
    }

    pub fn message(&self) -> &Message {
        &self.message
    }
}

/// The bytes of a `bytes` or a `Body`.
pub fn message_of(data: &Bound<'_, PyAny>) -> PyResult<Message> {
    Ok(match data.cast::<PyBody>() {
        Ok(body) => body.get().message.clone(),
        Err(_) => Bytes::copy_from_slice(data.cast::<PyBytes>()?.as_bytes()).into(),
    })
}

#[pymethods]
impl PyBody {
    #[new]
    fn new(data: &Bound<'_, PyBytes>) -> Self {
        Self::of(Bytes::copy_from_slice(data.as_bytes()).into())
    }

    fn __len__(&self) -> usize {
        self.message.len()
    }

    fn __getitem__(&self, range: &Bound<'_, PySlice>) -> PyResult<Self> {
        let range = range.indices(isize::try_from(self.message.len())?)?;
        if range.step != 1 {
            return Err(PyIndexError::new_err("a slice of a body has every byte"));
        }
        let begin = usize::try_from(range.start)?;
        Ok(Self::of(self.message.slice(begin, begin + range.slicelength)))
    }

    /// # Safety
    /// `view` is the interpreter's, for `PyObject_GetBuffer`.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err("a body cannot be written to"));
        }
        let body = slf.get();
        let data = body.joined.get_or_init(|| body.message.joined());
        let size = isize::try_from(data.len())?;
        // SAFETY: the view holds the object, whose bytes neither move nor change while it lives.
        let done =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), data.as_ptr().cast_mut().cast(), size, 1, flags) };
        if done < 0 { Err(PyErr::fetch(slf.py())) } else { Ok(()) }
    }
}

/// `data` as Python has it: a copy of what is small, the bytes themselves where there are many.
pub fn body_of(py: Python<'_>, data: Message) -> PyResult<Bound<'_, PyAny>> {
    if data.len() < LARGE_BYTES {
        return Ok(bytes_of(py, &data)?.into_any());
    }
    Ok(Bound::new(py, PyBody::of(data))?.into_any())
}

/// A copy.
pub fn bytes_of<'py>(py: Python<'py>, data: &Message) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, data.len(), |room| {
        data.copy_to(room);
        Ok(())
    })
}

/// Fence, stream, offset, when it was printed in Unix milliseconds, data.
type Chunk<'py> = (u64, i32, u64, Option<i64>, Bound<'py, PyAny>);

/// The piece of a log that a JoinRequest is, or None.
#[pyfunction]
fn log_chunk<'py>(py: Python<'py>, message: &PyBody) -> PyResult<Option<Chunk<'py>>> {
    let Some((chunk, data)) = chunk_of(&message.message) else { return Ok(None) };
    let at_ms = chunk
        .printed_at
        .map(|at| at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos.div_euclid(1_000_000))));
    Ok(Some((chunk.fence, chunk.stream, chunk.offset, at_ms, body_of(py, data)?)))
}

/// Stream, offset, data, whether bytes before it are not kept, when it was printed in Unix seconds, fence.
type Told<'py> = (i32, u64, Bound<'py, PyBytes>, bool, Option<f64>, u64);

/// A LogRecord.
#[pyfunction]
fn log_record<'py>(py: Python<'py>, message: &Bound<'py, PyAny>) -> PyResult<Told<'py>> {
    let (record, data) = record_of(&message_of(message)?).map_err(|error| PyValueError::new_err(error.to_string()))?;
    let at_s = record.printed_at.map(|at| at.seconds as f64 + f64::from(at.nanos) / 1e9);
    Ok((record.stream, record.offset, bytes_of(py, &data)?, record.gap, at_s, record.fence))
}

/// Stream, offset, when it was printed in Unix milliseconds or 0, data.
type Row<'py> = (u8, u64, u64, Bound<'py, PyAny>);

/// The whole records of a spooled segment from `position` to `end`, as many as one read gives, and their bytes in the file;
/// without `waits` None where the disk would be waited for.
#[pyfunction]
fn log_records(
    py: Python<'_>,
    file: RawFd,
    position: u64,
    end: u64,
    waits: bool,
) -> PyResult<Option<(Vec<Row<'_>>, u64)>> {
    // SAFETY: the caller keeps it open for as long as this lasts, and closes it.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(file) });
    let Some((found, used)) = py.detach(|| records(&file, position, end, waits))? else { return Ok(None) };
    let rows =
        found.into_iter().map(|one| Ok((one.stream, one.offset, one.printed_at_unix_ms, body_of(py, one.data)?)));
    Ok(Some((rows.collect::<PyResult<_>>()?, used)))
}

/// Write records (stream, offset, Unix milliseconds or 0, data) to a segment, behind its first `position` bytes; returns where
/// they end.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)]
fn log_append(py: Python<'_>, path: PathBuf, position: u64, rows: Vec<Row<'_>>) -> PyResult<u64> {
    let record = |(stream, offset, printed_at_unix_ms, data): Row<'_>| {
        Ok(Record { stream, offset, printed_at_unix_ms, data: message_of(&data)? })
    };
    let records: Vec<Record> = rows.into_iter().map(record).collect::<PyResult<_>>()?;
    Ok(py.detach(|| append(&OpenOptions::new().write(true).open(path)?, position, &records))?)
}

/// Store one stream of a spooled log as the blob that it is said to be; False where the segments do not have all of it. Each
/// is a path, and where its records begin and end.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)]
fn keep_log(
    py: Python<'_>,
    store: &PyStore,
    digest: &str,
    stream: u8,
    segments: Vec<(PathBuf, u64, u64)>,
) -> PyResult<bool> {
    let store = store.open().map_err(raise)?;
    let digest = digest.parse().map_err(raise)?;
    let segments: Vec<Spooled> = segments.into_iter().map(|(path, begin, end)| Spooled { path, begin, end }).collect();
    py.detach(|| keep(&store, digest, stream, &segments)).map_err(raise)
}

/// Add the class and the functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyBody>()?;
    module.add_function(wrap_pyfunction!(log_append, module)?)?;
    module.add_function(wrap_pyfunction!(log_chunk, module)?)?;
    module.add_function(wrap_pyfunction!(log_record, module)?)?;
    module.add_function(wrap_pyfunction!(keep_log, module)?)?;
    module.add_function(wrap_pyfunction!(log_records, module)?)
}
