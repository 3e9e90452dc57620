//! One port: gRPC over h2c and HTTP/1.1, or both over TLS. Calls that move bytes end here, every other one is handed on in batches.
//! The door decides nothing, and none of its threads waits for Python.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod access_log;
mod behind;
mod bridge;
mod budget;
mod bytestream;
mod check;
mod chunks;
mod codec;
mod credentials;
mod describe;
mod dispatch;
mod execution;
mod grpc;
mod heap;
mod http;
mod hub;
mod lanes;
mod listener;
mod metrics;
mod observe;
mod pages;
mod process;
mod reading;
mod reads;
mod recent;
mod results;
mod rope;
mod server;
mod services;
mod sessions;
mod sorts;
mod spare;
mod squeeze;
mod status;
mod tls;
mod tokens;
mod traces;
mod transport;
mod turn;
mod updates;
mod uploads;
mod usage;
mod watch;
mod watched;
mod web;
mod wire;
mod writes;

pub use access_log::LogOptions;
pub use buildnet_raw::Message;
pub use credentials::{AccessOptions, CertificateRule};
pub use hub::{ClientResult, Event, Hub, Kind, MESSAGE_COST_BYTES, MetadataValue, Op, WINDOW_BYTES};
pub use observe::{ObserveOptions, Statistics};
pub use server::{Door, DoorOptions};
pub use sessions::SessionOptions;
pub use tls::TlsOptions;
pub use usage::Used;
pub use web::{WebHead, WebRequest};
