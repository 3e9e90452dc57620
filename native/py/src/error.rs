//! Native errors become Python's NativeError with `code`, `message` and `fields`.

use buildnet_formats::{FieldValue, NativeError};
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyDict;

pyo3::create_exception!(_native, PyNativeError, PyException, "An error of the native half.");

/// Raise `error` in Python.
pub fn raise(error: NativeError) -> PyErr {
    Python::attach(|py| error_of(py, &error))
}

/// `error` as Python has it, not raised.
pub fn error_of(py: Python<'_>, error: &NativeError) -> PyErr {
    let raised = PyNativeError::new_err(error.message.clone());
    let value = raised.value(py);
    let fields = PyDict::new(py);
    let set = || -> PyResult<()> {
        for (name, field) in &error.fields {
            match field {
                FieldValue::Text(text) => fields.set_item(name, text)?,
                FieldValue::Int(number) => fields.set_item(name, number)?,
                FieldValue::Texts(texts) => fields.set_item(name, texts)?,
            }
        }
        value.setattr("code", error.code)?;
        value.setattr("message", &error.message)?;
        value.setattr("fields", &fields)
    };
    match set() {
        Ok(()) => raised,
        Err(failed) => failed,
    }
}

/// Add the exception to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let class = module.py().get_type::<PyNativeError>();
    class.setattr("__module__", "buildnet._native")?;
    class.setattr("__name__", "NativeError")?;
    class.setattr("__qualname__", "NativeError")?;
    module.add("NativeError", class)
}
