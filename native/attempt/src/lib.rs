//! A worker's attempts, from an order to what it came to: fetched, staged, run, collected, offered and put aside. It decides
//! nothing: what to run, within what and what its end means is the caller's.
//!
//! One thread stays with an attempt for its whole life, so no step waits for another thread to wake. Whatever happens, every
//! order ends with one `Done`, after every blob of its result is at the controller and its scratch is put aside.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod attempt;
mod clearing;
mod crew;
mod events;
mod inputs;
mod order;
mod patience;
mod program;
mod record;
mod report;

pub use crew::{Attempt, Crew};
pub use events::Event;
pub use order::{Done, Ending, Grant, Order, RESULT_BYTES_SAID_MAX, Report, Room};
