//! Results by action, in SQLite. It keeps exact bytes and never judges them; completeness is asked of the store.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use buildnet_formats::{Digest, FieldValue, NativeError};
use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::{Durability, newer};

const SCHEMA: i64 = 1;
const READERS: usize = 2;
/// Key size of entries that HTTP clients name by hash alone.
const SIZE_UNKNOWN: i64 = -1;

/// Who wrote an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client, by UpdateActionResult or HTTP; not in the ledger.
    Client,
    /// The controller, after the ledger entry of this index was committed.
    Published(u64),
}

pub(crate) struct ActionCache {
    writer: Mutex<Connection>,
    readers: Vec<Mutex<Connection>>,
}

impl ActionCache {
    pub(crate) fn open(path: &Path, durability: Durability) -> Result<Self, NativeError> {
        let damaged = |e: rusqlite::Error| sql(path, &e);
        let writer = Connection::open(path).map_err(damaged)?;
        let found: i64 = writer.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(damaged)?;
        if found > SCHEMA {
            return Err(newer(path, found, SCHEMA));
        }
        writer.pragma_update(None, "journal_mode", "WAL").map_err(damaged)?;
        // NORMAL loses no commit when a process dies, and never the database; FULL also waits for the disk.
        let synchronous = if durability == Durability::Power { "FULL" } else { "NORMAL" };
        writer.pragma_update(None, "synchronous", synchronous).map_err(damaged)?;
        writer
            .execute_batch(&format!(
                "BEGIN;
                 CREATE TABLE IF NOT EXISTS action_result (
                   instance TEXT NOT NULL, hash BLOB NOT NULL, size_bytes INTEGER NOT NULL,
                   result BLOB NOT NULL, entry_index INTEGER,
                   PRIMARY KEY (instance, hash, size_bytes)) WITHOUT ROWID;
                 PRAGMA user_version = {SCHEMA};
                 COMMIT;"
            ))
            .map_err(damaged)?;
        let mut readers = Vec::new();
        for _ in 0..READERS {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            readers.push(Mutex::new(Connection::open_with_flags(path, flags).map_err(damaged)?));
        }
        Ok(Self { writer: Mutex::new(writer), readers })
    }

    pub(crate) fn get(&self, instance: &str, action: &Digest) -> Result<Option<Bytes>, NativeError> {
        self.select(instance, action.hash(), action.size_bytes().cast_signed())
    }

    pub(crate) fn put(
        &self,
        instance: &str,
        action: &Digest,
        result: &[u8],
        origin: Origin,
    ) -> Result<(), NativeError> {
        self.insert(instance, action.hash(), action.size_bytes().cast_signed(), result, origin)
    }

    pub(crate) fn get_by_hash(&self, instance: &str, hash: &[u8; 32]) -> Result<Option<Bytes>, NativeError> {
        self.select(instance, hash, SIZE_UNKNOWN)
    }

    pub(crate) fn put_by_hash(&self, instance: &str, hash: &[u8; 32], value: &[u8]) -> Result<(), NativeError> {
        self.insert(instance, hash, SIZE_UNKNOWN, value, Origin::Client)
    }

    pub(crate) fn count(&self) -> Result<u64, NativeError> {
        self.reader()
            .query_row("SELECT count(*) FROM action_result", [], |row| row.get::<_, i64>(0))
            .map(i64::cast_unsigned)
            .map_err(|e| sql(Path::new("action_cache.sqlite"), &e))
    }

    fn select(&self, instance: &str, hash: &[u8; 32], size: i64) -> Result<Option<Bytes>, NativeError> {
        let connection = self.reader();
        let mut statement = connection
            .prepare_cached("SELECT result FROM action_result WHERE instance = ? AND hash = ? AND size_bytes = ?")
            .map_err(|e| sql(Path::new("action_cache.sqlite"), &e))?;
        statement
            .query_row(params![instance, hash, size], |row| row.get::<_, Vec<u8>>(0))
            .optional()
            .map(|found| found.map(Bytes::from))
            .map_err(|e| sql(Path::new("action_cache.sqlite"), &e))
    }

    fn insert(
        &self,
        instance: &str,
        hash: &[u8; 32],
        size: i64,
        value: &[u8],
        origin: Origin,
    ) -> Result<(), NativeError> {
        let entry_index = match origin {
            Origin::Client => None,
            Origin::Published(index) => Some(index.cast_signed()),
        };
        let connection = held(&self.writer);
        connection
            .prepare_cached(
                "INSERT INTO action_result (instance, hash, size_bytes, result, entry_index) VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET result = excluded.result, entry_index = excluded.entry_index",
            )
            .and_then(|mut statement| statement.execute(params![instance, hash, size, value, entry_index]))
            .map(|_| ())
            .map_err(|e| sql(Path::new("action_cache.sqlite"), &e))
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        for reader in &self.readers {
            if let Ok(connection) = reader.try_lock() {
                return connection;
            }
        }
        held(&self.readers[0])
    }
}

/// A panic while a connection was held leaves no half statement: SQLite rolls back.
fn held(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sql(path: &Path, error: &rusqlite::Error) -> NativeError {
    let code = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => "storage_full",
        _ => "state_corrupt",
    };
    NativeError::new(code, format!("{}: {error}", path.display()))
        .with("path", FieldValue::Text(path.display().to_string()))
}
