//! The two ports that every engine stands behind. An engine moves bytes and says what went wrong; it verifies nothing,
//! repeats nothing and decides nothing: that is done once, above it.

use std::sync::Arc;

use buildnet_formats::{Digest, NativeError};
use buildnet_store::{EntryName, Store};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use sha2::{Digest as _, Sha256};

/// What is read of a local blob at a time.
const CHUNK_BYTES: usize = 512 << 10;

/// Why an engine did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TierError {
    /// It does not answer, or cannot now: later it may.
    Down(String),
    /// It will never take this.
    Refused(String),
    /// What it holds is not what was put there.
    Damaged(String),
    /// The local store failed, not the tier.
    Local(NativeError),
}

impl TierError {
    /// What happened, for a person; holds no credential.
    pub fn text(&self) -> &str {
        match self {
            Self::Down(text) | Self::Refused(text) | Self::Damaged(text) => text,
            Self::Local(error) => &error.message,
        }
    }
}

impl From<NativeError> for TierError {
    fn from(error: NativeError) -> Self {
        Self::Local(error)
    }
}

/// Answers of a port.
pub type Done<'a, T> = BoxFuture<'a, Result<T, TierError>>;
/// The bytes of one blob, in order, unverified.
pub type Pieces = BoxStream<'static, Result<Bytes, TierError>>;

/// A local blob on its way to a tier; it can be read more than once.
#[derive(Clone)]
pub struct Source {
    store: Arc<Store>,
    digest: Digest,
}

impl Source {
    /// The blob `digest` of `store`.
    pub fn new(store: Arc<Store>, digest: Digest) -> Self {
        Self { store, digest }
    }

    /// Its bytes in order, verified by the store; read by a thread that may wait for the disk.
    pub fn pieces(&self) -> Pieces {
        let start = (Arc::clone(&self.store), self.digest, None);
        stream::try_unfold(start, |(store, digest, reader)| async move {
            let step = blocking(move || {
                let mut reader = match reader {
                    Some(reader) => reader,
                    None => store.reader(&digest, 0, None)?,
                };
                let chunk = store.next_chunk(&mut reader, CHUNK_BYTES)?;
                Ok((store, reader, chunk))
            });
            let (store, reader, chunk) = step.await?;
            Ok(chunk.map(|chunk| (chunk.into_bytes(), (store, digest, Some(reader)))))
        })
        .boxed()
    }

    /// All of them at once.
    ///
    /// # Errors
    /// As [`Store::get_bytes`].
    pub async fn bytes(&self) -> Result<Bytes, TierError> {
        let (store, digest) = (Arc::clone(&self.store), self.digest);
        blocking(move || store.get_bytes(&digest, digest.size_bytes())).await
    }
}

/// Do disk work without holding up the network.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NativeError> + Send + 'static,
) -> Result<T, TierError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(TierError::Local),
        Err(_) => Err(TierError::Down("the server is stopping".to_owned())),
    }
}

/// Blobs by digest. Contract: `tests/contract/test_tiers.py`.
pub trait BlobStore: Send + Sync {
    /// Those of `digests` that are absent, or there with another size.
    fn missing<'a>(&'a self, digests: &'a [Digest]) -> Done<'a, Vec<Digest>>;

    /// The bytes of a blob; none when it is absent, or there with another size: the name that was asked for may be wrong.
    fn get<'a>(&'a self, digest: &'a Digest) -> Done<'a, Option<Pieces>>;

    /// Keep a blob, whole or not at all.
    fn put<'a>(&'a self, digest: &'a Digest, source: Source) -> Done<'a, ()>;

    /// The digest of the blob with the hash of `digest`, where blobs can be found without their size.
    fn find_by_hash<'a>(&'a self, digest: &'a Digest) -> Done<'a, Option<Digest>>;

    /// Whether it answers at all.
    fn probe(&self) -> Done<'_, ()>;
}

/// Entries by name. Contract: `tests/contract/test_tiers.py`.
pub trait ActionCache: Send + Sync {
    /// The value of an entry; none when there is none, or the engine knows no such names.
    fn get<'a>(&'a self, key: &'a EntryKey) -> Done<'a, Option<Value>>;

    /// Keep an entry. An engine that knows no such names keeps nothing.
    fn put<'a>(&'a self, key: &'a EntryKey, value: Value) -> Done<'a, ()>;

    /// Forget an entry; whether there was one. An engine that cannot be told to forget keeps it, and says that there was none.
    fn remove<'a>(&'a self, key: &'a EntryKey) -> Done<'a, bool>;
}

/// What an entry is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EntryKey {
    /// The result of an action. Without `size_known` the size in the digest means nothing (HTTP names hashes only).
    Action {
        /// Namespace of the action cache.
        namespace: String,
        /// The action.
        action: Digest,
        /// Whether its size was said.
        size_known: bool,
    },
    /// A value under a path.
    Path {
        /// Namespace of the action cache.
        namespace: String,
        /// The path.
        path: String,
    },
}

impl EntryKey {
    /// What the local store finds it by.
    ///
    /// # Errors
    /// `invalid_request` when the name is too long.
    pub fn local(&self) -> Result<EntryName, NativeError> {
        match self {
            Self::Action { namespace, action, .. } => EntryName::action(namespace, action),
            Self::Path { namespace, path } => EntryName::path(namespace, path),
        }
    }

    /// A name that any engine takes, in hex: namespaces and paths may hold any character and be long.
    pub(crate) fn hashed(&self) -> String {
        hex::encode(self.name_hash())
    }

    /// Length-prefixed, so that no two names run together.
    pub(crate) fn name_hash(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        let mut add = |part: &[u8]| {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        };
        match self {
            Self::Action { namespace, action, .. } => {
                add(b"action");
                add(namespace.as_bytes());
                add(action.function().name().as_bytes());
                add(action.hash());
            }
            Self::Path { namespace, path } => {
                add(b"path");
                add(namespace.as_bytes());
                add(path.as_bytes());
            }
        }
        hasher.finalize().into()
    }
}

/// The value of an entry, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Size of the action, where it was said.
    pub action_size: Option<u64>,
    /// Whether the bytes are the text of a digest whose blob is the value.
    pub as_blob: bool,
    /// The value, exactly as it came.
    pub bytes: Bytes,
}

impl Value {
    /// The blob that is the value, where one is.
    ///
    /// # Errors
    /// `invalid_request` when the bytes are no digest.
    pub fn blob(&self) -> Result<Digest, NativeError> {
        String::from_utf8_lossy(&self.bytes).parse()
    }
}

/// Collect the pieces of a small blob.
pub(crate) async fn collect(mut pieces: Pieces, size_bytes: u64) -> Result<Bytes, TierError> {
    let mut all = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0));
    while let Some(piece) = pieces.try_next().await? {
        all.extend_from_slice(&piece);
        if all.len() as u64 > size_bytes {
            return Err(TierError::Damaged(format!("more than {size_bytes} bytes came")));
        }
    }
    Ok(all.into())
}
