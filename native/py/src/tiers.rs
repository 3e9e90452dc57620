//! Tiers as Python sees them: configured by tables that were checked there.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use buildnet_formats::{Digest, NativeError};
use buildnet_tiers::{Engine, EntryKey, Secret, TierConfig, Tiers, Write};
use bytes::Bytes;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::raise;
use crate::store::PyStore;

/// What stands behind one store.
#[pyclass(name = "Tiers", module = "buildnet._native", frozen)]
pub struct PyTiers {
    tiers: Mutex<Option<Arc<Tiers>>>,
}

impl PyTiers {
    /// The open tiers.
    pub fn open(&self) -> Result<Arc<Tiers>, NativeError> {
        let held = self.tiers.lock().unwrap_or_else(PoisonError::into_inner);
        held.clone().ok_or_else(|| NativeError::internal("the tiers are closed"))
    }
}

#[pymethods]
impl PyTiers {
    #[new]
    #[allow(clippy::needless_pass_by_value)]
    fn new(
        py: Python<'_>,
        store: &Bound<'_, PyStore>,
        configs: Vec<Bound<'_, PyDict>>,
        directory: PathBuf,
    ) -> PyResult<Self> {
        let store = store.get().open().map_err(raise)?;
        let configs = configs.iter().map(config_of).collect::<PyResult<Vec<_>>>()?;
        let tiers = py.detach(|| Tiers::open(&store, configs, &directory)).map_err(raise)?;
        Ok(Self { tiers: Mutex::new(Some(Arc::new(tiers))) })
    }

    fn pull_result(&self, py: Python<'_>, result: &[u8]) -> PyResult<()> {
        let tiers = self.open().map_err(raise)?;
        let result = Bytes::copy_from_slice(result);
        py.detach(|| tiers.pull_result(result)).map_err(raise)
    }

    fn blob_written(&self, py: Python<'_>, digest: &str) -> PyResult<()> {
        let tiers = self.open().map_err(raise)?;
        let digest: Digest = digest.parse().map_err(raise)?;
        py.detach(|| tiers.wait_written(digest)).map_err(raise)
    }

    fn result_written(&self, py: Python<'_>, instance: String, action: &str) -> PyResult<()> {
        let tiers = self.open().map_err(raise)?;
        let action: Digest = action.parse().map_err(raise)?;
        let key = EntryKey::Action { namespace: instance, action, size_known: true };
        py.detach(|| tiers.wait_entry_written(key)).map_err(raise)
    }

    fn next_report(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let tiers = self.open().map_err(raise)?;
        Ok(py.detach(|| tiers.next_report()))
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let tiers = self.open().map_err(raise)?;
        let rows = tiers.statistics().into_iter().map(|tier| {
            let row = PyDict::new(py);
            row.set_item("name", tier.name)?;
            row.set_item("kind", tier.kind)?;
            for (fact, value) in tier.counts {
                row.set_item(fact, value)?;
            }
            Ok(row)
        });
        rows.collect()
    }

    fn close(&self, py: Python<'_>) {
        let tiers = self.tiers.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tiers) = tiers {
            py.detach(|| tiers.close());
        }
    }
}

/// One value of a table; absent or None where it need not be.
fn maybe<'py, T: for<'a> FromPyObject<'a, 'py>>(table: &Bound<'py, PyDict>, key: &str) -> PyResult<Option<T>> {
    match table.get_item(key)? {
        Some(value) if !value.is_none() => value.extract().map(Some).map_err(Into::into),
        _ => Ok(None),
    }
}

fn must<'py, T: for<'a> FromPyObject<'a, 'py>>(table: &Bound<'py, PyDict>, key: &'static str) -> PyResult<T> {
    maybe(table, key)?.ok_or_else(|| PyKeyError::new_err(key))
}

fn secret(table: &Bound<'_, PyDict>, key: &str) -> PyResult<Option<Secret>> {
    Ok(maybe(table, key)?.map(Secret::new))
}

fn config_of(table: &Bound<'_, PyDict>) -> PyResult<TierConfig> {
    let write = match must::<String>(table, "write")?.as_str() {
        "through" => Write::Through,
        "back" => Write::Back,
        "never" => Write::Never,
        other => return Err(raise(NativeError::invalid("write", format!("{other:?} is no way to write")))),
    };
    Ok(TierConfig {
        name: must(table, "name")?,
        engine: engine_of(table)?,
        read: must(table, "read")?,
        write,
        blob_size_bytes_max: must(table, "blob_size_bytes_max")?,
        timeout: Duration::try_from_secs_f64(must(table, "timeout_s")?)
            .map_err(|e| raise(NativeError::invalid("timeout", e.to_string())))?,
        prefix: must(table, "prefix")?,
        required: must(table, "required")?,
        queue_entries_max: must(table, "queue_entries_max")?,
        queue_bytes_max: must(table, "queue_bytes_max")?,
    })
}

fn engine_of(table: &Bound<'_, PyDict>) -> PyResult<Engine> {
    match must::<String>(table, "kind")?.as_str() {
        "s3" => Ok(Engine::S3 {
            endpoint: maybe(table, "address")?,
            region: must(table, "region")?,
            bucket: must(table, "bucket")?,
            credentials: secret(table, "access_key_id")?.zip(secret(table, "secret_access_key")?),
            session_token: secret(table, "session_token")?,
        }),
        "redis" => Ok(Engine::Redis {
            address: must(table, "address")?,
            username: maybe(table, "username")?,
            password: secret(table, "password")?,
            ttl: maybe(table, "ttl_s")?.map(Duration::from_secs),
        }),
        "reapi" => Ok(Engine::Reapi {
            address: must(table, "address")?,
            token: secret(table, "token")?,
            authorities: maybe::<Vec<u8>>(table, "authorities")?,
            identity: maybe::<Vec<u8>>(table, "certificate")?.zip(secret(table, "key")?),
        }),
        other => Err(raise(NativeError::invalid("kind", format!("{other:?} is no kind of tier")))),
    }
}

/// Add the class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTiers>()
}
