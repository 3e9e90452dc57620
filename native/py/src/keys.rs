//! Keys for Python: what is a key's, and where it is kept, is decided there.

use buildnet_keys::{self as keys, KEY_BYTES, KeyError};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

fn raised(error: KeyError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn sized(secret: &[u8]) -> PyResult<&[u8; KEY_BYTES]> {
    secret.try_into().map_err(|_| PyValueError::new_err(format!("a secret has {KEY_BYTES} bytes")))
}

/// An Ed25519 key that signs.
#[pyclass(frozen, module = "buildnet._native")]
struct SigningKey(keys::SigningKey);

#[pymethods]
impl SigningKey {
    #[new]
    fn new(seed: &[u8]) -> PyResult<Self> {
        Ok(Self(keys::SigningKey::of_seed(sized(seed)?)))
    }

    #[staticmethod]
    fn generate(py: Python<'_>) -> PyResult<Self> {
        // The interpreter's own source of secrets (PEP 506), so that there is one.
        let seed = py.import("secrets")?.call_method1("token_bytes", (KEY_BYTES,))?;
        Self::new(seed.extract()?)
    }

    #[staticmethod]
    fn of_pem(pem: &str) -> PyResult<Self> {
        keys::SigningKey::of_pem(pem).map(Self).map_err(raised)
    }

    fn pem(&self) -> String {
        self.0.pem().to_string()
    }

    #[getter]
    fn seed<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &*self.0.seed())
    }

    #[getter]
    fn public<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.public())
    }

    fn sign<'py>(&self, py: Python<'py>, message: &[u8]) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.sign(message))
    }
}

#[pyfunction]
fn is_signed(public: &[u8], signature: &[u8], message: &[u8]) -> bool {
    keys::is_signed(public, signature, message)
}

#[pyfunction]
fn public_pem(public: &[u8]) -> PyResult<String> {
    keys::public_pem(public).map_err(raised)
}

#[pyfunction]
fn public_of_pem<'py>(py: Python<'py>, pem: &str) -> PyResult<Bound<'py, PyBytes>> {
    keys::public_of_pem(pem).map(|key| PyBytes::new(py, &key)).map_err(raised)
}

#[pyfunction]
fn session_pem(secret: &[u8]) -> PyResult<String> {
    Ok(keys::session_pem(sized(secret)?).to_string())
}

#[pyfunction]
fn session_secret_of_pem<'py>(py: Python<'py>, pem: &str) -> PyResult<Bound<'py, PyBytes>> {
    keys::session_secret_of_pem(pem).map(|secret| PyBytes::new(py, &*secret)).map_err(raised)
}

/// Add the class and functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SigningKey>()?;
    module.add_function(wrap_pyfunction!(is_signed, module)?)?;
    module.add_function(wrap_pyfunction!(public_pem, module)?)?;
    module.add_function(wrap_pyfunction!(public_of_pem, module)?)?;
    module.add_function(wrap_pyfunction!(session_pem, module)?)?;
    module.add_function(wrap_pyfunction!(session_secret_of_pem, module)?)
}
