//! As much of WebDAV (RFC 4918, class 1) as sccache asks for. Collections are not kept: every name that ends in a slash is
//! one, always there and never listed.

use buildnet_formats::NativeError;
use buildnet_store::Kept;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use percent_encoding::{AsciiSet, CONTROLS};
use tonic::body::Body;

use super::HttpCache;
use super::outbound::{empty, respond, tag_of, tag_of_bytes};
use super::refusal::Refusal;
use super::route::nothing_here;
use super::values::Named;
use crate::access::Caller;

const ALLOWED: &str = "GET, HEAD, PUT, DELETE, OPTIONS, PROPFIND, MKCOL";
/// What a path may not hold plainly, nor text in XML.
const IN_HREF: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'`').add(b'&').add(b'\'').add(b'%');

impl HttpCache {
    /// What WebDAV adds to GET, HEAD, PUT and DELETE; `named` is none for a collection.
    pub(super) async fn webdav(
        &self,
        caller: &Caller,
        named: Option<&Named<'_>>,
        parts: &Parts,
    ) -> Result<Response<Body>, Refusal> {
        match (parts.method.as_str(), named) {
            ("PROPFIND", _) => self.propfind(caller, named, parts).await,
            ("MKCOL", None) => Ok(empty(StatusCode::CREATED)),
            ("MKCOL", Some(named)) if self.look_up(caller, named.instance, named.path).await?.is_some() => {
                Err(Refusal::method(ALLOWED))
            }
            ("MKCOL", Some(_)) => Ok(empty(StatusCode::CREATED)),
            (_, None) => Err(nothing_here()),
            (_, Some(_)) => Err(Refusal::method(ALLOWED)),
        }
    }

    async fn propfind(
        &self,
        caller: &Caller,
        named: Option<&Named<'_>>,
        parts: &Parts,
    ) -> Result<Response<Body>, Refusal> {
        if parts.headers.get("depth").is_some_and(|depth| depth.as_bytes().eq_ignore_ascii_case(b"infinity")) {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "invalid_request",
                "collections are not listed here; ask with Depth 0 or 1",
            ));
        }
        let properties = match named {
            None => "<D:resourcetype><D:collection/></D:resourcetype>".to_owned(),
            Some(named) => {
                let kept = self.look_up(caller, named.instance, named.path).await?;
                let (size, tag) = match kept.ok_or_else(|| NativeError::not_found("value", named.path))? {
                    Kept::Here(value) => (value.len() as u64, tag_of_bytes(&value)),
                    Kept::Blob(digest) => (digest.size_bytes(), tag_of(&digest)),
                };
                format!(
                    "<D:resourcetype/><D:getcontentlength>{size}</D:getcontentlength><D:getetag>{tag}</D:getetag>\
                     <D:getcontenttype>application/octet-stream</D:getcontenttype>"
                )
            }
        };
        let path = super::route::decoded(parts.uri.path())?;
        let href = percent_encoding::utf8_percent_encode(&path, IN_HREF);
        // When a value was written is not kept; clients want a date, and this one is not later than any write.
        let modified = httpdate::fmt_http_date(self.started_at);
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<D:multistatus xmlns:D=\"DAV:\"><D:response><D:href>{href}\
             </D:href><D:propstat><D:prop>{properties}<D:getlastmodified>{modified}</D:getlastmodified></D:prop>\
             <D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response></D:multistatus>\n"
        );
        Ok(respond(StatusCode::MULTI_STATUS, "application/xml; charset=utf-8", text))
    }
}

/// What OPTIONS answers anywhere. No origin is allowed: no page in a browser may write to a cache.
pub(super) fn options() -> Response<Body> {
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert("dav", HeaderValue::from_static("1"));
    headers.insert(header::ALLOW, HeaderValue::from_static(ALLOWED));
    // turbo's preflight looks whether it may send these (issue 4: Turborepo v8).
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, PUT, POST, OPTIONS"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(
            "Authorization, Content-Type, User-Agent, x-artifact-duration, x-artifact-tag, x-artifact-dirty-hash, \
             x-artifact-client-ci, x-artifact-client-interactive",
        ),
    );
    response
}
