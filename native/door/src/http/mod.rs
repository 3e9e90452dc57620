//! The HTTP side of the port: Bazel's `/cas/HASH` and `/ac/HASH`, below an optional instance name, and `/status`.
//!
//! A CAS body must be what its name says. An AC body is stored untouched; one that is an ActionResult is returned only
//! while it is complete. The name has no size, so these entries are apart from those written over gRPC.

use std::sync::Arc;
use std::time::Instant;

use buildnet_formats::{Digest, Function, NativeError};
use buildnet_store::{BlobWriter, Store};
use buildnet_tiers::{EntryKey, TierFacts, Tiers};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tonic::body::Body;

use crate::access::{Caller, Right};
use crate::bytestream::on_disk;
use crate::status::http_status_of;

const ENTRY_BYTES_MAX: usize = 64 << 20;
const CHUNK_BYTES: usize = 512 << 10;

/// What the HTTP side stands on.
pub(crate) struct HttpCache {
    pub(crate) store: Arc<Store>,
    pub(crate) tiers: Option<Arc<Tiers>>,
    pub(crate) started: Instant,
}

#[derive(Clone, Copy)]
enum Kind {
    Cas,
    Entry,
}

impl HttpCache {
    pub(crate) async fn answer(&self, caller: &Caller, request: Request<Incoming>) -> Response<Body> {
        let path = percent_encoding::percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
        if path == "/status" {
            return self.status(request.method());
        }
        let Some((kind, instance, hash)) = parse(&path) else {
            return refusal(
                StatusCode::NOT_FOUND,
                "nothing is served at this path; caches are at /cas/HASH and /ac/HASH, and /status is a status",
            );
        };
        let method = request.method().clone();
        let right = match (&method, kind) {
            (&Method::PUT, Kind::Cas) => Right::WriteCas,
            (&Method::PUT, Kind::Entry) => Right::WriteActionCache,
            _ => Right::Read,
        };
        if let Err(status) = caller.check(right, &instance) {
            return refusal(StatusCode::FORBIDDEN, status.message());
        }
        let done = match (&method, kind) {
            (&Method::GET | &Method::HEAD, Kind::Cas) => self.read_blob(&hash, method == Method::HEAD).await,
            (&Method::GET | &Method::HEAD, Kind::Entry) => self.read_entry(caller, &instance, &hash).await,
            (&Method::PUT, Kind::Cas) => self.write_blob(hash, request).await,
            (&Method::PUT, Kind::Entry) => self.write_entry(&caller.written(&instance), hash, request).await,
            _ => return refusal(StatusCode::METHOD_NOT_ALLOWED, "use GET, HEAD or PUT"),
        };
        match done {
            Ok(response) => response,
            Err(error) => refusal(http_status_of(&error), &error.message),
        }
    }

    fn status(&self, method: &Method) -> Response<Body> {
        if method != Method::GET && method != Method::HEAD {
            return refusal(StatusCode::METHOD_NOT_ALLOWED, "use GET");
        }
        let facts: Vec<String> =
            self.store.statistics().iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        let tiers: Vec<String> = self.tiers.iter().flat_map(|tiers| tiers.statistics()).map(tier_facts).collect();
        let text = format!(
            "{{\"version\":\"{}\",\"uptime_s\":{},\"store\":{{{}}},\"tiers\":[{}]}}\n",
            env!("CARGO_PKG_VERSION"),
            self.started.elapsed().as_secs(),
            facts.join(","),
            tiers.join(",")
        );
        respond(StatusCode::OK, "application/json", Bytes::from(text))
    }

    async fn read_blob(&self, hash: &Digest, head: bool) -> Result<Response<Body>, NativeError> {
        if let Some(tiers) = &self.tiers
            && self.store.find_by_hash(hash).is_none()
        {
            tiers.pull_by_hash(*hash).await?;
        }
        let digest = self.store.find_by_hash(hash).ok_or_else(|| NativeError::not_found("blob", hash.hex()))?;
        let response = Response::builder()
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, digest.size_bytes());
        let broken = |e: http::Error| NativeError::internal(e.to_string());
        if head {
            return response.body(Body::empty()).map_err(broken);
        }
        let reader = match (self.store.reader(&digest, 0, None), &self.tiers) {
            // Rotten here, it may be whole there.
            (Err(error), Some(tiers)) if gone(&error) && tiers.pull(vec![digest]).await?.is_empty() => {
                self.store.reader(&digest, 0, None)?
            }
            (opened, _) => opened?,
        };
        let store = Arc::clone(&self.store);
        // A blob that turns out rotten ends the body early: the client sees fewer bytes than were announced.
        let frames = futures_util::stream::try_unfold((store, reader), |(store, mut reader)| async move {
            let size = usize::try_from(reader.remaining()).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let step = on_disk(size, move || {
                let chunk = store.next_chunk(&mut reader, CHUNK_BYTES)?;
                Ok((store, reader, chunk))
            });
            let (store, reader, chunk) = step.await?;
            Ok::<_, tonic::Status>(chunk.map(|data| (Frame::data(data.into_bytes()), (store, reader))))
        });
        response.body(Body::new(StreamBody::new(frames))).map_err(broken)
    }

    async fn read_entry(&self, caller: &Caller, instance: &str, hash: &Digest) -> Result<Response<Body>, NativeError> {
        for namespace in caller.looked_up(instance) {
            let mut value = self.store.get_entry_by_hash(&namespace, hash)?;
            if let Some(tiers) = self.tiers.as_ref().filter(|_| value.is_none())
                && tiers.pull_entry(entry_key(&namespace, hash)).await?
            {
                value = self.store.get_entry_by_hash(&namespace, hash)?;
            }
            if let Some(value) = value {
                return Ok(respond(StatusCode::OK, "application/octet-stream", value));
            }
        }
        Err(NativeError::not_found("entry", hash.hex()))
    }

    async fn write_blob(&self, hash: Digest, request: Request<Incoming>) -> Result<Response<Body>, NativeError> {
        let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let mut body = BodyStream::new(request.into_body());
        let digest;
        match announced {
            Some(size) => {
                digest = Digest::new(Function::Sha256, hash.hash(), size);
                // A body that is not needed is read to its end all the same, so that the connection can be used again.
                let known = self.store.contains(&digest);
                let mut writer = if known { None } else { Some(self.store.writer(digest)?) };
                while let Some(frame) = body.next().await {
                    if let (Ok(data), Some(writer)) = (frame.map_err(broken_off)?.into_data(), &mut writer) {
                        writer.write(&data)?;
                    }
                }
                writer.map_or(Ok(()), BlobWriter::commit)?;
            }
            None => {
                let mut data = Vec::new();
                while let Some(frame) = body.next().await {
                    if let Ok(more) = frame.map_err(broken_off)?.into_data() {
                        check_size(data.len() + more.len())?;
                        data.extend_from_slice(&more);
                    }
                }
                digest = Digest::new(Function::Sha256, hash.hash(), data.len() as u64);
                self.store.put_expected(&digest, &data)?;
            }
        }
        if let Some(tiers) = &self.tiers {
            tiers.written(vec![digest]).await.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(respond(StatusCode::OK, "text/plain", Bytes::new()))
    }

    async fn write_entry(
        &self,
        namespace: &str,
        hash: Digest,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, NativeError> {
        let announced: Option<usize> =
            request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        check_size(announced.unwrap_or(0))?;
        let limited = http_body_util::Limited::new(request.into_body(), ENTRY_BYTES_MAX);
        let data = limited.collect().await.map_err(broken_off)?.to_bytes();
        self.store.put_entry_by_hash(namespace, &hash, &data)?;
        if let Some(tiers) = &self.tiers {
            tiers.entry_written(entry_key(namespace, &hash)).await?;
        }
        Ok(respond(StatusCode::OK, "text/plain", Bytes::new()))
    }
}

/// Names of tiers are small letters, digits and dashes: nothing to escape.
fn tier_facts(tier: TierFacts) -> String {
    let TierFacts { name, kind, counts } = tier;
    let counts: Vec<String> = counts.iter().map(|(fact, value)| format!(",\"{fact}\":{value}")).collect();
    format!("{{\"name\":\"{name}\",\"kind\":\"{kind}\"{}}}", counts.join(""))
}

fn gone(error: &NativeError) -> bool {
    matches!(error.code, "not_found" | "digest_mismatch")
}

/// HTTP names an action by its hash alone.
fn entry_key(namespace: &str, hash: &Digest) -> EntryKey {
    EntryKey::Action { namespace: namespace.to_owned(), action: *hash, size_known: false }
}

fn check_size(size: usize) -> Result<(), NativeError> {
    if size > ENTRY_BYTES_MAX {
        return Err(NativeError::too_large(
            format!("a body of {size} bytes is over the limit of {ENTRY_BYTES_MAX}"),
            ENTRY_BYTES_MAX as u64,
        ));
    }
    Ok(())
}

fn broken_off(error: impl std::fmt::Display) -> NativeError {
    NativeError::invalid("body", format!("the body broke off: {error}"))
}

/// `{/instance}/cas/HASH` or `{/instance}/ac/HASH`.
fn parse(path: &str) -> Option<(Kind, String, Digest)> {
    let (rest, name) = path.rsplit_once('/')?;
    let (instance, kind) = rest.rsplit_once('/')?;
    let kind = match kind {
        "cas" => Kind::Cas,
        "ac" => Kind::Entry,
        _ => return None,
    };
    let digest = Digest::from_parts(Some(Function::Sha256), name, 0).ok()?;
    Some((kind, instance.trim_start_matches('/').to_owned(), digest))
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

fn refusal(status: StatusCode, message: &str) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", Bytes::from(format!("{message}\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_name_a_cache_an_instance_and_a_hash() {
        let hash = Digest::of(b"x").hex();
        for (path, instance) in [("/cas/", ""), ("/a/b/ac/", "a/b")] {
            assert_eq!(parse(&format!("{path}{hash}")).unwrap().1, instance);
        }
        assert!(parse("/cas/123").is_none());
        assert!(parse(&format!("/other/{hash}")).is_none());
    }

    proptest! {
        #[test]
        fn no_path_panics(path: String) {
            let _ = parse(&path);
        }
    }
}
