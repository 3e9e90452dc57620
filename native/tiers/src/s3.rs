//! S3-compatible object storage behind the ports: one object a blob, named by its hash alone, and one an entry. It relies on
//! nothing but GET, HEAD, PUT, multipart upload and a listing at the start; keys and secrets never leave in a message.

use std::time::Duration;

use buildnet_formats::{Digest, NativeError};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig, WriteMultipart,
};

use crate::config::{Engine, Secret, TierConfig};
use crate::envelope;
use crate::port::{ActionCache, BlobStore, Done, EntryKey, Pieces, Source, TierError, Value};

/// Larger blobs go up in parts of this size.
const PART_BYTES: u64 = 8 << 20;
const PARTS_AT_ONCE: usize = 2;
const HEADS_AT_ONCE: usize = 32;
const MESSAGE_CHARS_MAX: usize = 300;

/// One bucket, below one prefix.
pub(crate) struct S3 {
    bucket: AmazonS3,
    prefix: String,
    /// What is cut out of messages: some servers repeat the key id.
    secrets: Vec<Secret>,
}

impl S3 {
    pub(crate) fn new(config: &TierConfig) -> Result<Self, NativeError> {
        let Engine::S3 { endpoint, region, bucket, credentials, session_token } = &config.engine else {
            return Err(NativeError::internal("not a tier of kind s3"));
        };
        let options = ClientOptions::new()
            .with_connect_timeout(config.timeout)
            .with_read_timeout(config.timeout)
            // One call may last longer than its next piece may take; that is bounded above the port.
            .with_timeout_disabled()
            .with_allow_http(true);
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_millis(500),
            base: 2.0,
        };
        let retry = RetryConfig { backoff, max_retries: 1, retry_timeout: config.timeout };
        let mut builder = AmazonS3Builder::new()
            .with_region(region)
            .with_bucket_name(bucket)
            .with_client_options(options)
            .with_retry(retry);
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let mut secrets = Vec::new();
        if let Some((id, secret)) = credentials {
            builder = builder.with_access_key_id(id.expose()).with_secret_access_key(secret.expose());
            secrets.extend([id.clone(), secret.clone()]);
        } else {
            builder = builder.with_skip_signature(true);
        }
        if let Some(token) = session_token {
            builder = builder.with_token(token.expose());
            secrets.push(token.clone());
        }
        let bucket = builder
            .build()
            .map_err(|e| NativeError::invalid("tier", format!("the tier {:?} cannot be used: {e}", config.name)))?;
        let prefix = config.prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { bucket, prefix, secrets })
    }

    fn blob(&self, digest: &Digest) -> Path {
        let hash = digest.hex();
        Path::from(format!("{}cas/{}/{}/{hash}", self.prefix, digest.function().name(), &hash[..2]))
    }

    fn entry(&self, key: &EntryKey) -> Path {
        let name = key.hashed();
        Path::from(format!("{}entries/{}/{name}", self.prefix, &name[..2]))
    }

    /// The size of an object; none when it is absent.
    async fn size_of(&self, path: &Path) -> Result<Option<u64>, TierError> {
        match self.bucket.head(path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &Error) -> TierError {
        TierError::Down(said(error, &self.secrets))
    }

    async fn put_parts(&self, path: &Path, source: Source) -> Result<(), TierError> {
        let upload = self.bucket.put_multipart(path).await.map_err(|e| self.failed(&e))?;
        let part_bytes = usize::try_from(PART_BYTES).unwrap_or(usize::MAX);
        let mut parts = WriteMultipart::new_with_chunk_size(upload, part_bytes);
        let mut pieces = source.pieces();
        let sent = async {
            while let Some(piece) = pieces.try_next().await? {
                parts.wait_for_capacity(PARTS_AT_ONCE).await.map_err(|e| self.failed(&e))?;
                parts.put(piece);
            }
            Ok(())
        };
        let sent: Result<(), TierError> = sent.await;
        match sent {
            Ok(()) => parts.finish().await.map(|_| ()).map_err(|e| self.failed(&e)),
            Err(error) => {
                // Parts that cannot be taken back are the bucket's to expire.
                let _ = parts.abort().await;
                Err(error)
            }
        }
    }
}

/// One short line of an error, without what must not be seen.
fn said(error: &Error, secrets: &[Secret]) -> String {
    let mut text = error.to_string();
    for secret in secrets {
        text = text.replace(secret.expose(), "[secret]");
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS_MAX).collect()
}

impl BlobStore for S3 {
    fn missing<'a>(&'a self, digests: &'a [Digest]) -> Done<'a, Vec<Digest>> {
        Box::pin(async move {
            let found = stream::iter(digests.iter().copied())
                .map(|digest| async move { Ok((digest, self.size_of(&self.blob(&digest)).await?)) })
                .buffered(HEADS_AT_ONCE);
            found
                .try_filter_map(
                    |(digest, size)| async move { Ok((size != Some(digest.size_bytes())).then_some(digest)) },
                )
                .try_collect()
                .await
        })
    }

    fn get<'a>(&'a self, digest: &'a Digest) -> Done<'a, Option<Pieces>> {
        Box::pin(async move {
            let found = match self.bucket.get(&self.blob(digest)).await {
                Ok(found) => found,
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(self.failed(&error)),
            };
            if found.meta.size != digest.size_bytes() {
                return Ok(None);
            }
            let secrets = self.secrets.clone();
            let pieces = found.into_stream().map_err(move |error| TierError::Down(said(&error, &secrets)));
            Ok(Some(pieces.boxed()))
        })
    }

    fn put<'a>(&'a self, digest: &'a Digest, source: Source) -> Done<'a, ()> {
        Box::pin(async move {
            let path = self.blob(digest);
            if digest.size_bytes() > PART_BYTES {
                return self.put_parts(&path, source).await;
            }
            let payload = PutPayload::from(source.bytes().await?);
            self.bucket.put(&path, payload).await.map(|_| ()).map_err(|e| self.failed(&e))
        })
    }

    fn find_by_hash<'a>(&'a self, digest: &'a Digest) -> Done<'a, Option<Digest>> {
        Box::pin(async move {
            let size = self.size_of(&self.blob(digest)).await?;
            Ok(size.map(|size| Digest::new(digest.function(), digest.hash(), size)))
        })
    }

    fn probe(&self) -> Done<'_, ()> {
        Box::pin(async move {
            // A listing fails without the bucket, where a HEAD of an object says no more than that it is absent.
            let prefix = Path::from(format!("{}entries/00", self.prefix));
            self.bucket.list(Some(&prefix)).try_next().await.map(|_| ()).map_err(|e| self.failed(&e))
        })
    }
}

impl ActionCache for S3 {
    fn get<'a>(&'a self, key: &'a EntryKey) -> Done<'a, Option<Value>> {
        Box::pin(async move {
            match self.bucket.get(&self.entry(key)).await {
                Ok(found) => {
                    let sealed = found.bytes().await.map_err(|e| self.failed(&e))?;
                    envelope::open(key, sealed).map(Some)
                }
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(self.failed(&error)),
            }
        })
    }

    fn put<'a>(&'a self, key: &'a EntryKey, value: Value) -> Done<'a, ()> {
        Box::pin(async move {
            let payload = PutPayload::from(envelope::seal(key, &value));
            self.bucket.put(&self.entry(key), payload).await.map(|_| ()).map_err(|e| self.failed(&e))
        })
    }

    fn remove<'a>(&'a self, key: &'a EntryKey) -> Done<'a, bool> {
        Box::pin(async move {
            let path = self.entry(key);
            // Deleting says nothing of what was there.
            if self.size_of(&path).await?.is_none() {
                return Ok(false);
            }
            match self.bucket.delete(&path).await {
                Ok(()) => Ok(true),
                Err(Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(self.failed(&error)),
            }
        })
    }
}

/// Built once for the process: TLS by ring, as everywhere in this workspace.
pub(crate) fn use_ring() {
    // A second caller finds the first one's choice, which is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
