//! The two loops over a ledger's bytes that every action pays for: records of its tail, and hashes of its tree.
//!
//! What the bytes mean, and what is read of them, stands in Python (`buildnet.ledger`).

mod tail;
mod tree;

pub use tail::append_records;
pub use tree::{HASH_BYTES, Hash, extend};
