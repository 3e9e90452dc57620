//! Representations on their way out: verified bytes with a strong entity tag, whole, in part, or as zstd. A blob found
//! damaged midway goes on from a tier's copy; where there is none the body ends early, and the client sees fewer bytes than
//! were announced.

use buildnet_formats::{Digest, Function, NativeError};
use buildnet_store::Chunk;
use bytes::Bytes;
use http::response::Builder;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use tonic::body::Body;

use super::HttpCache;
use super::conditions::{Decision, decide};
use super::encoding::accepts_zstd;
use super::refusal::Refusal;
use crate::bytestream::on_disk;
use crate::reading::Reading;
use crate::squeeze::pack;

const CHUNK_BYTES: usize = 512 << 10;
/// Less is not worth packing.
const PACKED_BYTES_MIN: u64 = 512;
const OCTETS: &str = "application/octet-stream";

/// What a client asks of a representation.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    /// Whether this cache offers content codings.
    pub(super) coded: bool,
}

impl Asked<'_> {
    /// A part is of the bytes as they are, and HEAD tells of those.
    fn zstd(&self) -> bool {
        self.coded
            && self.method == Method::GET
            && !self.headers.contains_key(header::RANGE)
            && accepts_zstd(self.headers)
    }
}

/// A short answer.
pub(super) fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// The strong entity tag of the bytes that have this digest.
pub(super) fn tag_of(digest: &Digest) -> String {
    format!("\"{}\"", digest.hex())
}

/// The strong entity tag of bytes that are not a blob.
pub(super) fn tag_of_bytes(bytes: &[u8]) -> String {
    tag_of(&Digest::by(Function::Blake3, bytes))
}

/// Which bytes of a body of this size are wanted, and what their answer begins with; else what is decided instead.
fn span(asked: Asked<'_>, tag: &str, size: u64) -> Result<(u64, u64, Builder), Decision> {
    match decide(asked.method, asked.headers, tag, size) {
        Decision::Whole => Ok((0, size, plain(Response::builder(), tag, size))),
        Decision::Part { offset, length } => Ok((offset, length, part(tag, offset, length, size))),
        other => Err(other),
    }
}

/// Answer with bytes in memory.
///
/// # Errors
/// 412, 416.
pub(super) fn send_bytes(bytes: Bytes, asked: Asked<'_>) -> Result<Response<Body>, Refusal> {
    if asked.zstd() && bytes.len() as u64 >= PACKED_BYTES_MIN {
        let tag = zstd_tag(&tag_of_bytes(&bytes));
        let packed = pack(&bytes)?;
        if packed.len() < bytes.len() {
            return match decide(asked.method, asked.headers, &tag, 0) {
                Decision::Whole => finish(coded(Response::builder(), &tag), Full::new(packed)),
                other => refused(other, &tag, 0),
            };
        }
    }
    let tag = tag_of_bytes(&bytes);
    let size = bytes.len() as u64;
    let (offset, length, builder) = match span(asked, &tag, size) {
        Ok(span) => span,
        Err(other) => return refused(other, &tag, size),
    };
    if asked.method == Method::HEAD {
        return finish(builder, Body::empty());
    }
    let cut = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    finish(builder, Full::new(bytes.slice(cut(offset)..cut(offset + length))))
}

impl HttpCache {
    /// Answer with a blob that was seen to be here.
    ///
    /// # Errors
    /// 404 when it has gone since, and no tier has it; 412, 416.
    pub(super) async fn send_blob(&self, digest: &Digest, asked: Asked<'_>) -> Result<Response<Body>, Refusal> {
        let size = digest.size_bytes();
        if asked.zstd() && size >= PACKED_BYTES_MIN {
            let tag = zstd_tag(&tag_of(digest));
            match decide(asked.method, asked.headers, &tag, 0) {
                Decision::Whole => {
                    if let Some(response) = self.send_packed(digest, &tag).await? {
                        return Ok(response);
                    }
                }
                other => return refused(other, &tag, 0),
            }
        }
        let tag = tag_of(digest);
        let (offset, length, builder) = match span(asked, &tag, size) {
            Ok(span) => span,
            Err(other) => return refused(other, &tag, size),
        };
        if asked.method == Method::HEAD {
            return finish(builder, Body::empty());
        }
        let mut reading = self.reading(digest, (offset, Some(length))).await?;
        if reading.is_whole() {
            return finish(builder, Full::new(reading.whole()?.map(Chunk::into_bytes).unwrap_or_default()));
        }
        finish(builder, stream(reading))
    }

    /// As zstd: the frames that are stored where there are some, else packed on the way. None where that does not pay.
    async fn send_packed(&self, digest: &Digest, tag: &str) -> Result<Option<Response<Body>>, Refusal> {
        if let Some(frames) = self.store.packed_zstd(digest) {
            return finish(coded(Response::builder(), tag), Full::new(frames)).map(Some);
        }
        let mut reading = self.reading(digest, (0, None)).await?;
        if !reading.is_whole() {
            return finish(coded(Response::builder(), tag), stream(reading.packed()?)).map(Some);
        }
        let Some(chunk) = reading.whole()? else { return Ok(None) };
        let size = chunk.len();
        let packed = on_disk(size, move || pack(chunk.as_slice())).await?;
        if packed.len() >= size {
            return Ok(None);
        }
        finish(coded(Response::builder(), tag), Full::new(packed)).map(Some)
    }

    async fn reading(&self, digest: &Digest, place: (u64, Option<u64>)) -> Result<Reading, NativeError> {
        Reading::open(&self.store, self.tiers.as_ref(), digest, place, CHUNK_BYTES).await
    }
}

/// The bytes of a blob, piece by piece as its client takes them.
fn stream(reading: Reading) -> Body {
    let frames = futures_util::stream::try_unfold(reading, |reading| async move {
        let next = reading.next().await?;
        Ok::<_, tonic::Status>(next.map(|(piece, rest)| (Frame::data(piece.into_bytes()), rest)))
    });
    Body::new(StreamBody::new(frames))
}

fn zstd_tag(tag: &str) -> String {
    format!("{}-zstd\"", tag.trim_end_matches('"'))
}

fn plain(builder: Builder, tag: &str, length: u64) -> Builder {
    builder
        .header(header::CONTENT_TYPE, OCTETS)
        .header(header::CONTENT_LENGTH, length)
        .header(header::ETAG, tag)
        .header(header::ACCEPT_RANGES, "bytes")
}

fn part(tag: &str, offset: u64, length: u64, size: u64) -> Builder {
    let range = format!("bytes {offset}-{}/{size}", offset + length - 1);
    let builder = Response::builder().status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, range);
    plain(builder, tag, length)
}

fn coded(builder: Builder, tag: &str) -> Builder {
    builder
        .header(header::CONTENT_TYPE, OCTETS)
        .header(header::CONTENT_ENCODING, "zstd")
        .header(header::ETAG, tag)
        .header(header::VARY, header::ACCEPT_ENCODING)
}

fn refused(decision: Decision, tag: &str, size: u64) -> Result<Response<Body>, Refusal> {
    match decision {
        Decision::NotModified => {
            finish(Response::builder().status(StatusCode::NOT_MODIFIED).header(header::ETAG, tag), Body::empty())
        }
        Decision::Unsatisfiable => {
            let message = format!("the range begins past the end: there are {size} bytes");
            let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "out_of_range", message);
            let value = HeaderValue::from_str(&format!("bytes */{size}"));
            Err(refusal.with(header::CONTENT_RANGE, value.map_err(|e| NativeError::internal(e.to_string()))?))
        }
        _ => Err(precondition_failed()),
    }
}

/// What is here is not what the client's condition says.
pub(super) fn precondition_failed() -> Refusal {
    Refusal::new(
        StatusCode::PRECONDITION_FAILED,
        "invalid_request",
        "what is here now does not meet If-Match or If-None-Match; look at it again",
    )
}

fn finish<B>(builder: Builder, body: B) -> Result<Response<Body>, Refusal>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    builder.body(Body::new(body)).map_err(|e| NativeError::internal(e.to_string()).into())
}
