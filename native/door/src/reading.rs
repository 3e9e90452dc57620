//! A blob on its way out, piece by piece, as it is or as one zstd stream. Where it turns out rotten or gone here, it goes on
//! from a tier's copy; no byte is handed on before it was verified.

use std::sync::Arc;

use buildnet_formats::{Digest, NativeError};
use buildnet_store::{BlobReader, Chunk, Store};
use buildnet_tiers::Tiers;
use bytes::Bytes;
use tonic::Status;

use crate::bytestream::on_disk;
use crate::squeeze::Packer;
use crate::status::status_of;

/// A blob being read.
pub(crate) struct Reading {
    store: Arc<Store>,
    tiers: Option<Arc<Tiers>>,
    digest: Digest,
    reader: BlobReader,
    /// Until the end of the zstd stream is written.
    packer: Option<Packer>,
    piece_bytes_max: usize,
}

/// What of a blob is sent next.
pub(crate) enum Piece {
    Plain(Chunk),
    Packed(Vec<u8>),
}

impl Piece {
    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Self::Plain(chunk) => chunk.into_bytes(),
            Self::Packed(bytes) => bytes.into(),
        }
    }
}

impl Reading {
    /// Begin at `offset`, with at most `limit` bytes of the blob in pieces of at most `piece_bytes_max`.
    ///
    /// # Errors
    /// As [`Store::reader`]; those of the tiers.
    pub(crate) async fn open(
        store: &Arc<Store>,
        tiers: Option<&Arc<Tiers>>,
        digest: &Digest,
        (offset, limit): (u64, Option<u64>),
        piece_bytes_max: usize,
    ) -> Result<Self, NativeError> {
        let reader = match store.reader(digest, offset, limit) {
            Ok(reader) => reader,
            Err(error) => reader_from(store, tiers, digest, (offset, limit), error).await?,
        };
        let (store, tiers) = (Arc::clone(store), tiers.cloned());
        Ok(Self { store, tiers, digest: *digest, reader, packer: None, piece_bytes_max })
    }

    /// The same as one zstd stream.
    ///
    /// # Errors
    /// `internal`.
    pub(crate) fn packed(self) -> Result<Self, NativeError> {
        Ok(Self { packer: Some(Packer::new()?), ..self })
    }

    /// The whole rest, if it is in memory and verified already.
    pub(crate) fn whole(&mut self) -> Result<Option<Chunk>, NativeError> {
        self.store.next_chunk(&mut self.reader, usize::MAX)
    }

    /// Whether [`Reading::whole`] may be asked.
    pub(crate) fn is_whole(&self) -> bool {
        self.reader.is_packed()
    }

    /// The next piece, and what follows it; none at the end.
    pub(crate) async fn next(self) -> Result<Option<(Piece, Self)>, Status> {
        let (mut reading, mut step) = self.step().await?;
        if let Err(error) = step {
            let place = (reading.reader.offset(), Some(reading.reader.remaining()));
            let found = reader_from(&reading.store, reading.tiers.as_ref(), &reading.digest, place, error).await;
            reading.reader = found.map_err(|e| status_of(&e))?;
            (reading, step) = reading.step().await?;
        }
        Ok(step.map_err(|e| status_of(&e))?.map(|piece| (piece, reading)))
    }

    /// After an error it stands where it stood.
    async fn step(mut self) -> Result<(Self, Result<Option<Piece>, NativeError>), Status> {
        let rest = usize::try_from(self.reader.remaining()).unwrap_or(usize::MAX);
        on_disk(rest.min(self.piece_bytes_max), move || {
            let step = self.read();
            Ok((self, step))
        })
        .await
    }

    fn read(&mut self) -> Result<Option<Piece>, NativeError> {
        let chunk = self.store.next_chunk(&mut self.reader, self.piece_bytes_max)?;
        let Some(packer) = &mut self.packer else { return Ok(chunk.map(Piece::Plain)) };
        let last = self.reader.remaining() == 0;
        let packed = packer.feed(chunk.as_ref().map_or(&[], Chunk::as_slice), last)?;
        if last {
            self.packer = None;
        }
        Ok(Some(Piece::Packed(packed)))
    }
}

/// A reader of a tier's copy, brought here; the error stands when it is another, or no tier has one.
async fn reader_from(
    store: &Store,
    tiers: Option<&Arc<Tiers>>,
    digest: &Digest,
    (offset, limit): (u64, Option<u64>),
    error: NativeError,
) -> Result<BlobReader, NativeError> {
    let gone = matches!(error.code, "not_found" | "digest_mismatch");
    match tiers {
        Some(tiers) if gone && Box::pin(tiers.pull(vec![*digest])).await?.is_empty() => {
            store.reader(digest, offset, limit)
        }
        _ => Err(error),
    }
}
