//! A worker's attempts for Python: orders go in as dicts, events come out as tuples. Nothing but `fetch`, `open` and `close`
//! blocks.

use std::os::fd::{IntoRawFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use buildnet_attempt as native;
use buildnet_formats::{Digest, NativeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMapping, PyTuple};

use crate::dial::PyLink;
use crate::error::{error_of, raise};
use crate::process::{field, invalid, optional, read_files, read_rules};
use crate::stage::PyTrees;
use crate::store::{PyStore, digests};

/// Paths that commands are shown, read once for many orders.
#[pyclass(name = "Shown", module = "buildnet._native", frozen)]
pub struct PyShown(Vec<PathBuf>);

#[pymethods]
impl PyShown {
    #[new]
    fn new(paths: Vec<PathBuf>) -> Self {
        Self(paths)
    }
}

/// The attempts of one worker.
#[pyclass(name = "Crew", module = "buildnet._native", frozen)]
pub struct PyCrew {
    crew: Mutex<Option<Arc<native::Crew>>>,
    hidden: Vec<PathBuf>,
    files: Vec<(PathBuf, Vec<u8>)>,
}

#[pymethods]
impl PyCrew {
    /// See buildnet_attempt::Room.
    #[staticmethod]
    fn open(py: Python<'_>, room: &Bound<'_, PyMapping>) -> PyResult<Self> {
        let store: PyRef<'_, PyStore> = entry(room, "store")?;
        let link: PyRef<'_, PyLink> = entry(room, "link")?;
        let trees = optional::<Option<Py<PyTrees>>>(room, "trees")?.flatten();
        let made = native::Room {
            store: store.open().map_err(raise)?,
            link: link.open().map_err(raise)?,
            trees: trees.map(|trees| trees.get().share()),
            scratch: field(room, "scratch")?,
            cleared: field(room, "cleared")?,
            node: field(room, "node")?,
            away_timeout: Duration::try_from_secs_f64(field(room, "away_timeout_s")?)
                .map_err(|error| invalid("away_timeout_s", &error.to_string()))?,
            threads_max: field(room, "threads_max")?,
        };
        let (hidden, files) = (field(room, "hidden")?, read_files(room)?);
        let crew = py.detach(|| native::Crew::open(made)).map_err(raise)?;
        Ok(Self { crew: Mutex::new(Some(Arc::new(crew))), hidden, files })
    }

    /// Readable while there are events to take.
    #[getter]
    fn fd(&self) -> PyResult<RawFd> {
        Ok(self.open_crew()?.fd())
    }

    /// What there is to be said: (fence, what, about it).
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.open_crew()?.take().into_iter().map(|event| told(py, event)).collect()
    }

    /// Have an attempt made.
    fn run(&self, order: &Bound<'_, PyMapping>) -> PyResult<PyAttempt> {
        let order = self.order(order)?;
        Ok(PyAttempt(self.open_crew()?.run(order)))
    }

    /// Bring blobs, and a tree, into the worker's store.
    #[pyo3(signature = (blobs, tree = None))]
    #[allow(clippy::needless_pass_by_value)]
    fn fetch(&self, py: Python<'_>, blobs: Vec<String>, tree: Option<&str>) -> PyResult<()> {
        let blobs = digests(&blobs).map_err(raise)?;
        let tree: Option<Digest> = tree.map(str::parse).transpose().map_err(raise)?;
        let crew = self.open_crew()?;
        py.detach(|| crew.fetch(&blobs, tree.as_ref())).map_err(raise)
    }

    /// Return once nothing of any attempt is left.
    fn close(&self, py: Python<'_>) {
        let crew = self.crew.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| {
            if let Some(crew) = crew {
                crew.close();
            }
        });
    }
}

impl PyCrew {
    fn open_crew(&self) -> PyResult<Arc<native::Crew>> {
        let crew = self.crew.lock().unwrap_or_else(PoisonError::into_inner).clone();
        crew.ok_or_else(|| raise(NativeError::internal("the crew is closed")))
    }

    fn order(&self, order: &Bound<'_, PyMapping>) -> PyResult<native::Order> {
        let shown: PyRef<'_, PyShown> = entry(order, "shown")?;
        let mut plan = read_rules(order, shown.0.clone())?;
        plan.hidden.clone_from(&self.hidden);
        plan.files.clone_from(&self.files);
        let root: String = field(order, "input_root")?;
        let effects: Vec<(String, String, bool)> = field(order, "effects")?;
        let grant = |(name, level, enforced)| native::Grant { name, level, enforced };
        let command: Bound<'_, PyBytes> = entry(order, "command")?;
        Ok(native::Order {
            fence: field(order, "fence")?,
            plan,
            command: command.as_bytes().to_vec(),
            working_directory: field(order, "working_directory")?,
            search_path: field(order, "search_path")?,
            input_root: root.parse().map_err(raise)?,
            has_outputs: field(order, "has_outputs")?,
            writes_are_strict: field(order, "writes_are_strict")?,
            effects: effects.into_iter().map(grant).collect(),
            unseen_hint: field(order, "unseen_hint")?,
            elsewhere: field(order, "elsewhere")?,
        })
    }
}

/// A hold on one attempt.
#[pyclass(name = "Attempt", module = "buildnet._native", frozen)]
pub struct PyAttempt(native::Attempt);

#[pymethods]
impl PyAttempt {
    /// Stop it, in whatever step it is.
    fn stop(&self, reason: &str) {
        self.0.stop(reason);
    }

    /// Tell of what is printed from now on.
    fn quiet(&self) {
        self.0.quiet();
    }

    /// Tell of nothing that is printed.
    fn mute(&self) {
        self.0.mute();
    }

    /// Descriptors of the logs, the caller's to close; -1 where nothing was printed.
    fn logs(&self) -> PyResult<(RawFd, RawFd)> {
        let [stdout, stderr] = self.0.logs()?;
        let number = |file: Option<_>| file.map_or(-1, IntoRawFd::into_raw_fd);
        Ok((number(stdout), number(stderr)))
    }

    /// The sandbox elsewhere has run it, or could not.
    #[pyo3(signature = (ending = None))]
    fn finish(&self, ending: Option<&Bound<'_, PyMapping>>) -> PyResult<()> {
        let ending = ending.map(read_ending).transpose()?;
        self.0.finish(ending);
        Ok(())
    }
}

fn read_ending(ending: &Bound<'_, PyMapping>) -> PyResult<native::Ending> {
    Ok(native::Ending {
        exit_code: field(ending, "exit_code")?,
        reason: field(ending, "reason")?,
        wall_s: field(ending, "wall_s")?,
        user_s: field(ending, "user_s")?,
        system_s: field(ending, "system_s")?,
        max_rss_bytes: field(ending, "max_rss_bytes")?,
        isolation: field(ending, "isolation")?,
        limits: field(ending, "limits")?,
        begun_unix_ns: field(ending, "begun_unix_ns")?,
        printed_bytes: field(ending, "printed_bytes")?,
    })
}

fn told<'py>(py: Python<'py>, event: native::Event) -> PyResult<Bound<'py, PyTuple>> {
    match event {
        native::Event::Printed(fence) => (fence, "printed", py.None()).into_pyobject(py),
        native::Event::Staged(fence, mount) => (fence, "staged", mount).into_pyobject(py),
        native::Event::CommandEnded(fence) => (fence, "command_ended", py.None()).into_pyobject(py),
        native::Event::Ended(fence, done) => match *done {
            Ok(report) => (fence, "reported", report_dict(py, &report)?).into_pyobject(py),
            Err(error) => (fence, "failed", error_of(py, &error).into_value(py)).into_pyobject(py),
        },
    }
}

fn report_dict<'py>(py: Python<'py>, report: &native::Report) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("result", PyBytes::new(py, &report.result))?;
    dict.set_item("exit_code", report.exit_code)?;
    dict.set_item("reason", &report.reason)?;
    dict.set_item("failure", report.failure.as_ref().map(|error| error_of(py, error).into_value(py)))?;
    dict.set_item("paths", &report.written.paths)?;
    dict.set_item("count", report.written.count)?;
    dict.set_item("whole", report.written.whole)?;
    Ok(dict)
}

/// An entry that borrows from Python.
fn entry<'py, T>(map: &Bound<'py, PyMapping>, name: &str) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py>,
{
    let value = map.get_item(name)?;
    let read: Result<T, _> = value.extract();
    read.map_err(|error| {
        let error: PyErr = error.into();
        raise(NativeError::invalid(name, format!("{name}: {error}")))
    })
}

/// Add the classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyShown>()?;
    module.add_class::<PyCrew>()?;
    module.add_class::<PyAttempt>()
}
