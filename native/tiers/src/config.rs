//! What a tier is told at the start. Python has checked it against the file; nothing here reads a file or a variable.

use std::fmt;
use std::time::Duration;

/// A credential: it shows itself to the engine that needs it, and to no log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hide `text`.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// When what is written here goes to a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Before it is acknowledged.
    Through,
    /// After; a durable queue remembers it.
    Back,
    /// Not at all.
    Never,
}

/// Which engine, and how it is reached.
#[derive(Clone, Debug)]
pub enum Engine {
    /// S3-compatible object storage.
    S3 {
        /// `http://HOST:PORT` of a storage of one's own; none for AWS.
        endpoint: Option<String>,
        /// Region, which is part of every signature.
        region: String,
        /// The bucket, which must exist.
        bucket: String,
        /// Key id and secret; without them requests are not signed.
        credentials: Option<(Secret, Secret)>,
        /// Of temporary credentials.
        session_token: Option<Secret>,
    },
    /// Redis, Valkey, Dragonfly: what speaks RESP.
    Redis {
        /// `redis://HOST:PORT/DB` or `rediss://` with TLS.
        address: String,
        /// ACL user.
        username: Option<String>,
        /// Its password.
        password: Option<Secret>,
        /// How long a value is kept; none: until the engine evicts it.
        ttl: Option<Duration>,
    },
    /// A Remote Execution API server.
    Reapi {
        /// `grpc://HOST:PORT` or `grpcs://` with TLS.
        address: String,
        /// Sent as a bearer token.
        token: Option<Secret>,
        /// PEM certificates to believe in place of the system's.
        authorities: Option<Vec<u8>>,
        /// PEM certificate chain and key, to be known by.
        identity: Option<(Vec<u8>, Secret)>,
    },
}

/// One tier.
#[derive(Clone, Debug)]
pub struct TierConfig {
    /// What it is called in statistics, messages and the name of its queue's file.
    pub name: String,
    /// Which engine.
    pub engine: Engine,
    /// Whether it is asked.
    pub read: bool,
    /// Whether and when it is written to.
    pub write: Write,
    /// Larger blobs are neither put there nor asked for.
    pub blob_size_bytes_max: u64,
    /// How long one answer, or the next piece of one, may take.
    pub timeout: Duration,
    /// What every name there begins with; the instance name of a REAPI server.
    pub prefix: String,
    /// Whether the server refuses to start while it does not answer.
    pub required: bool,
    /// Writes that may wait in the queue.
    pub queue_entries_max: usize,
    /// Their blobs together.
    pub queue_bytes_max: u64,
}
