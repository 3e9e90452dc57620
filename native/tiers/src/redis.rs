//! Redis, Valkey, Dragonfly behind the ports: one string a value, under an optional time to live. It takes no large blob:
//! a value stands whole in the engine's memory and in ours.

use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, Cmd, IntoConnectionInfo, RedisError, cmd, pipe};
use buildnet_formats::{Digest, NativeError};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

use crate::config::{Engine, TierConfig};
use crate::envelope;
use crate::port::{ActionCache, BlobStore, Done, EntryKey, Source, TierError, Value};

/// What RESP allows in one string; a tier's own limit is below it.
pub(crate) const VALUE_BYTES_MAX: u64 = 512 << 20;
const NAMES_PER_CALL: usize = 1000;

/// One database, below one prefix.
pub(crate) struct Redis {
    connection: ConnectionManager,
    prefix: String,
    ttl: Option<Duration>,
}

impl Redis {
    /// Prepare a connection; the first call dials. Must be called within the runtime that will use it.
    pub(crate) fn new(config: &TierConfig) -> Result<Self, NativeError> {
        let Engine::Redis { address, username, password, ttl } = &config.engine else {
            return Err(NativeError::internal("not a tier of kind redis"));
        };
        let unusable =
            |e: RedisError| NativeError::invalid("tier", format!("the tier {:?} cannot be used: {e}", config.name));
        let information = address.as_str().into_connection_info().map_err(unusable)?;
        let mut settings = information.redis_settings().clone().set_skip_set_lib_name();
        if let Some(username) = username {
            settings = settings.set_username(username);
        }
        if let Some(password) = password {
            settings = settings.set_password(password.expose());
        }
        let client = Client::open(information.set_redis_settings(settings)).map_err(unusable)?;
        let manager = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(config.timeout))
            .set_response_timeout(Some(config.timeout))
            // The breaker decides when to try again.
            .set_number_of_retries(0);
        let connection = ConnectionManager::new_lazy_with_config(client, manager).map_err(unusable)?;
        let prefix = config.prefix.trim_matches(':');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}:") };
        Ok(Self { connection, prefix, ttl: *ttl })
    }

    fn blob(&self, digest: &Digest) -> String {
        format!("{}cas:{}:{}", self.prefix, digest.function().name(), digest.hex())
    }

    fn entry(&self, key: &EntryKey) -> String {
        format!("{}entry:{}", self.prefix, key.hashed())
    }

    async fn ask<T: ::redis::FromRedisValue>(&self, command: &Cmd) -> Result<T, TierError> {
        command.query_async(&mut self.connection.clone()).await.map_err(|e| failed(&e))
    }

    async fn fetch(&self, name: &str) -> Result<Option<Bytes>, TierError> {
        let value: Option<Vec<u8>> = self.ask(cmd("GET").arg(name)).await?;
        Ok(value.map(Bytes::from))
    }

    async fn keep(&self, name: &str, value: &[u8]) -> Result<(), TierError> {
        let mut command = cmd("SET");
        command.arg(name).arg(value);
        if let Some(ttl) = self.ttl {
            command.arg("EX").arg(ttl.as_secs().max(1));
        }
        self.ask(&command).await
    }
}

fn failed(error: &RedisError) -> TierError {
    TierError::Down(error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect())
}

impl BlobStore for Redis {
    fn missing<'a>(&'a self, digests: &'a [Digest]) -> Done<'a, Vec<Digest>> {
        Box::pin(async move {
            let mut missing = Vec::new();
            for some in digests.chunks(NAMES_PER_CALL) {
                let mut lengths = pipe();
                for digest in some {
                    lengths.cmd("STRLEN").arg(self.blob(digest));
                }
                let lengths: Vec<u64> =
                    lengths.query_async(&mut self.connection.clone()).await.map_err(|e| failed(&e))?;
                let absent = some.iter().zip(lengths).filter(|(digest, length)| *length != digest.size_bytes());
                missing.extend(absent.map(|(digest, _)| *digest));
            }
            Ok(missing)
        })
    }

    fn get<'a>(&'a self, digest: &'a Digest) -> Done<'a, Option<crate::port::Pieces>> {
        Box::pin(async move {
            let value = self.fetch(&self.blob(digest)).await?;
            let value = value.filter(|value| value.len() as u64 == digest.size_bytes());
            Ok(value.map(|value| stream::iter([Ok(value)]).boxed()))
        })
    }

    fn put<'a>(&'a self, digest: &'a Digest, source: Source) -> Done<'a, ()> {
        Box::pin(async move {
            let value = source.bytes().await?;
            self.keep(&self.blob(digest), &value).await
        })
    }

    fn find_by_hash<'a>(&'a self, digest: &'a Digest) -> Done<'a, Option<Digest>> {
        Box::pin(async move {
            // An absent string has length 0, and so has no stored blob.
            let length: u64 = self.ask(cmd("STRLEN").arg(self.blob(digest))).await?;
            Ok((length > 0).then(|| Digest::new(digest.function(), digest.hash(), length)))
        })
    }

    fn probe(&self) -> Done<'_, ()> {
        Box::pin(async move { self.ask::<String>(&cmd("PING")).await.map(|_| ()) })
    }
}

impl ActionCache for Redis {
    fn get<'a>(&'a self, key: &'a EntryKey) -> Done<'a, Option<Value>> {
        Box::pin(async move {
            let sealed = self.fetch(&self.entry(key)).await?;
            sealed.map(|sealed| envelope::open(key, sealed)).transpose()
        })
    }

    fn put<'a>(&'a self, key: &'a EntryKey, value: Value) -> Done<'a, ()> {
        Box::pin(async move { self.keep(&self.entry(key), &envelope::seal(key, &value)).await })
    }

    fn remove<'a>(&'a self, key: &'a EntryKey) -> Done<'a, bool> {
        Box::pin(async move { Ok(self.ask::<u64>(cmd("DEL").arg(self.entry(key))).await? > 0) })
    }
}
