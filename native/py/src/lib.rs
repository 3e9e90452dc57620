//! The one crate that names PyO3: it translates between Python and the crates below, and holds no logic.

use pyo3::prelude::*;

mod attempt;
mod dial;
mod door;
mod error;
mod keys;
mod ledger;
mod logs;
mod process;
mod stage;
mod store;
mod tiers;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    error::register(module)?;
    keys::register(module)?;
    store::register(module)?;
    dial::register(module)?;
    door::register(module)?;
    ledger::register(module)?;
    logs::register(module)?;
    process::register(module)?;
    attempt::register(module)?;
    stage::register(module)?;
    tiers::register(module)
}
