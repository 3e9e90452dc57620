//! One port: gRPC over h2c and HTTP/1.1. Calls that move bytes end here, every other one is handed on in batches.
//! The door decides nothing, and none of its threads waits for Python.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod behind;
mod bridge;
mod bytestream;
mod chunks;
mod codec;
mod execution;
mod grpc;
mod http;
mod results;
mod rope;
mod server;
mod services;
mod squeeze;
mod status;
mod uploads;
mod wire;

pub use bridge::{Event, Hub, Kind, MESSAGE_COST_BYTES, MetadataValue, Op, WINDOW_BYTES};
pub use server::{Door, DoorOptions};
