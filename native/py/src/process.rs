//! Processes for Python: a plan goes in as a dict, an outcome comes back as one. Starting releases the interpreter lock.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use buildnet_formats::{Digest, NativeError};
use buildnet_stage as stage;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMapping};

use crate::error::raise;
use crate::store::PyStore;

/// One running command and everything it starts.
#[pyclass(frozen, module = "buildnet._native")]
pub struct Process {
    inner: stage::Process,
}

#[pymethods]
impl Process {
    /// Start `plan`; returns once the program runs.
    #[staticmethod]
    fn start(py: Python<'_>, plan: &Bound<'_, PyMapping>) -> PyResult<Self> {
        let plan = read_plan(plan)?;
        let inner = py.detach(|| stage::Process::start(&plan));
        inner.map(|inner| Self { inner }).map_err(raise)
    }

    /// Readable when there is new output (`read_logs` quiets that) and, for good, once the command has ended.
    #[getter]
    fn fd(&self) -> RawFd {
        self.inner.fd()
    }

    /// What was printed since the last call.
    #[pyo3(signature = (bytes_max = 1 << 20))]
    fn read_logs<'py>(&self, py: Python<'py>, bytes_max: usize) -> PyResult<Vec<(u8, u64, Bound<'py, PyBytes>)>> {
        let pieces = py.detach(|| self.inner.read_logs(bytes_max));
        let pieces = pieces.map_err(raise)?;
        let as_bytes = |(stream, offset, data): stage::LogPiece| (stream, offset, PyBytes::new(py, &data));
        Ok(pieces.into_iter().map(as_bytes).collect())
    }

    /// None while it runs, else how it ended.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        self.inner.poll().map(|outcome| outcome_dict(py, &outcome)).transpose()
    }

    /// End it and all it started, at once.
    fn kill(&self, reason: &str) {
        self.inner.kill(reason);
    }
}

/// Start this worker's launcher, so that the first action need not wait for it.
#[pyfunction]
fn start_launcher(py: Python<'_>) -> PyResult<()> {
    py.detach(stage::start_launcher).map_err(raise)
}

/// The launcher's pid while one runs.
#[pyfunction]
fn launcher_pid() -> Option<u32> {
    stage::launcher_pid()
}

/// Be a launcher on the socket at standard input; never returns. For a process that was made for it alone.
#[pyfunction]
fn launcher_main(homes: Vec<PathBuf>) {
    stage::launcher_main(&homes)
}

/// Each facility of the sandbox and whether it works here, found by trying, once.
#[pyfunction]
fn probe_isolation(py: Python<'_>) -> BTreeMap<&'static str, bool> {
    py.detach(stage::probe_isolation)
}

/// What ran in `work` wrote and did not declare: paths (at most 100), how many, and whether everything was looked at.
#[pyfunction]
#[pyo3(signature = (store, root, work, command, begun_unix_ns, *, upper = false))]
fn undeclared_writes(
    py: Python<'_>,
    store: &PyStore,
    root: &str,
    work: PathBuf,
    command: &[u8],
    begun_unix_ns: u64,
    upper: bool,
) -> PyResult<(Vec<String>, u64, bool)> {
    let written = py.detach(|| {
        let root: Digest = root.parse()?;
        stage::undeclared_writes(&*store.open()?, &root, &work, command, begun_unix_ns, upper)
    });
    written.map(|written| (written.paths, written.count, written.whole)).map_err(raise)
}

fn outcome_dict<'py>(py: Python<'py>, outcome: &stage::Outcome) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("exit_code", outcome.exit_code)?;
    dict.set_item("signal", outcome.signal)?;
    dict.set_item("reason", &outcome.reason)?;
    dict.set_item("wall_s", outcome.wall_s)?;
    dict.set_item("user_s", outcome.user_s)?;
    dict.set_item("system_s", outcome.system_s)?;
    dict.set_item("max_rss_bytes", outcome.max_rss_bytes)?;
    dict.set_item("isolation", outcome.isolation)?;
    dict.set_item("network", outcome.network)?;
    dict.set_item("limits", BTreeMap::from(outcome.limits))?;
    dict.set_item("begun_unix_ns", outcome.begun_unix_ns)?;
    dict.set_item("stdout_bytes", outcome.stdout_bytes)?;
    dict.set_item("stderr_bytes", outcome.stderr_bytes)?;
    Ok(dict)
}

fn read_plan(plan: &Bound<'_, PyMapping>) -> PyResult<stage::Plan> {
    let shown = optional::<Vec<PathBuf>>(plan, "shown")?.unwrap_or_default();
    Ok(stage::Plan {
        cwd: field(plan, "cwd")?,
        root: field(plan, "root")?,
        root_mount: optional::<RawFd>(plan, "root_mount")?.filter(|fd| *fd >= 0),
        hidden: optional::<Vec<PathBuf>>(plan, "hidden")?.unwrap_or_default(),
        files: read_files(plan)?,
        tmp: field(plan, "tmp")?,
        stdout_path: field(plan, "stdout_path")?,
        stderr_path: field(plan, "stderr_path")?,
        counted: optional::<Vec<PathBuf>>(plan, "counted")?.unwrap_or_default(),
        cgroup_name: field(plan, "cgroup_name")?,
        ..read_rules(plan, shown)?
    })
}

/// Small files by their paths.
pub(crate) fn read_files(plan: &Bound<'_, PyMapping>) -> PyResult<Vec<(PathBuf, Vec<u8>)>> {
    let files = optional::<BTreeMap<PathBuf, String>>(plan, "files")?.unwrap_or_default();
    Ok(files.into_iter().map(|(path, text)| (path, text.into_bytes())).collect())
}

/// A plan without its place.
pub(crate) fn read_rules(plan: &Bound<'_, PyMapping>, shown: Vec<PathBuf>) -> PyResult<stage::Plan> {
    let words: Vec<OsString> = field(plan, "argv")?;
    let env: BTreeMap<OsString, OsString> = field(plan, "env")?;
    let isolation: String = field(plan, "isolation")?;
    Ok(stage::Plan {
        argv: words.into_iter().map(OsString::into_vec).collect(),
        env: env.into_iter().map(|(name, value)| (name.into_vec(), value.into_vec())).collect(),
        cwd: PathBuf::new(),
        root: PathBuf::new(),
        root_mount: None,
        shown,
        hidden: Vec::new(),
        files: Vec::new(),
        devices: optional::<Vec<(PathBuf, PathBuf)>>(plan, "devices")?.unwrap_or_default(),
        tmp: PathBuf::new(),
        stdout_path: PathBuf::new(),
        stderr_path: PathBuf::new(),
        log_size_bytes_max: field(plan, "log_size_bytes_max")?,
        masked: optional::<Vec<Vec<u8>>>(plan, "masked")?.unwrap_or_default(),
        timeout: Duration::try_from_secs_f64(field(plan, "timeout_s")?)
            .map_err(|error| invalid("timeout_s", &error.to_string()))?,
        memory_bytes: optional(plan, "memory_bytes")?,
        pids_max: optional(plan, "pids_max")?,
        // setrlimit(2) counts whole seconds: rounding down would cut an action short.
        cpu_s: optional::<f64>(plan, "cpu_s")?.map(|seconds| seconds.ceil() as u64),
        cpu_milli: optional(plan, "cpu_milli")?,
        cpu_is_capped: optional(plan, "cpu_is_capped")?.unwrap_or(false),
        disk_bytes: optional(plan, "disk_bytes")?,
        counted: Vec::new(),
        network: field(plan, "network")?,
        isolation: match isolation.as_str() {
            "namespaces" => stage::Isolation::Namespaces,
            "process" => stage::Isolation::Process,
            other => {
                let message = format!("{other:?} is not 'namespaces' or 'process'");
                return Err(invalid("isolation", &message));
            }
        },
        cgroup_name: String::new(),
    })
}

pub(crate) fn field<'py, T: FromPyObjectOwned<'py>>(plan: &Bound<'py, PyMapping>, name: &str) -> PyResult<T> {
    let value = optional(plan, name)?;
    value.ok_or_else(|| invalid(name, "is required"))
}

pub(crate) fn optional<'py, T: FromPyObjectOwned<'py>>(
    plan: &Bound<'py, PyMapping>,
    name: &str,
) -> PyResult<Option<T>> {
    if !plan.contains(name)? {
        return Ok(None);
    }
    let value = plan.get_item(name)?;
    let read = value.extract::<Option<T>>();
    read.map_err(|error| invalid(name, &Into::<PyErr>::into(error).to_string()))
}

pub(crate) fn invalid(name: &str, message: &str) -> PyErr {
    raise(NativeError::invalid(name, format!("{name}: {message}")))
}

/// Add the class and the probe to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Process>()?;
    if let Ok(interpreter) = module.py().import("sys")?.getattr("executable")?.extract::<PathBuf>() {
        stage::set_interpreter(interpreter);
    }
    module.add_function(wrap_pyfunction!(start_launcher, module)?)?;
    module.add_function(wrap_pyfunction!(launcher_pid, module)?)?;
    module.add_function(wrap_pyfunction!(launcher_main, module)?)?;
    module.add_function(wrap_pyfunction!(undeclared_writes, module)?)?;
    module.add_function(wrap_pyfunction!(probe_isolation, module)?)
}
