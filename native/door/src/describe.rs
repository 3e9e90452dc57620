//! What a call was about, read from its own message once it is known that someone is told. A message that cannot be read
//! says nothing; this never fails a call.

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::bytestream as bs;
use buildnet_formats::{ReadName, WriteName};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;
use tonic::metadata::MetadataMap;

use crate::execution::EXECUTE;
use crate::observe::Ended;
use crate::services::Method;
use crate::sorts::Sort;

/// Longer text of a caller's is cut.
pub(crate) const TEXT_CHARS_MAX: usize = 256;
pub(crate) const METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";

/// Which instance, and which blob or action.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) instance: String,
    pub(crate) digest: String,
}

impl About {
    fn new(instance: String, digest: Option<re::Digest>) -> Self {
        let digest = digest.map(|digest| format!("{}/{}", digest.hash, digest.size_bytes)).unwrap_or_default();
        Self { instance, digest }
    }

    fn named(instance: String, digest: impl std::fmt::Display) -> Self {
        Self { instance, digest: digest.to_string() }
    }
}

pub(crate) fn about(call: &Ended) -> About {
    match call.facts.message.get() {
        Some(message) if EXECUTE.trim_start_matches('/') == &*call.method => execution(message.clone()),
        Some(message) => read(call.sort, message.clone()).unwrap_or_default(),
        None => About::default(),
    }
}

fn read(sort: Sort, message: Bytes) -> Option<About> {
    if sort == Sort::WRITE {
        let name = WriteName::parse(std::str::from_utf8(&message).ok()?).ok()?;
        return Some(About::named(name.instance, name.digest));
    }
    if sort == Sort::READ {
        let name = ReadName::parse(&bs::ReadRequest::decode(message).ok()?.resource_name).ok()?;
        return Some(About::named(name.instance, name.digest));
    }
    if sort == Sort::GET_TREE {
        let request = re::GetTreeRequest::decode(message).ok()?;
        return Some(About::new(request.instance_name, request.root_digest));
    }
    let is = |method: Method| sort == Sort::of(method);
    Some(if is(Method::GetActionResult) {
        let request = re::GetActionResultRequest::decode(message).ok()?;
        About::new(request.instance_name, request.action_digest)
    } else if is(Method::UpdateActionResult) {
        let request = re::UpdateActionResultRequest::decode(message).ok()?;
        About::new(request.instance_name, request.action_digest)
    } else if is(Method::FindMissingBlobs) {
        let request = re::FindMissingBlobsRequest::decode(message).ok()?;
        About::new(request.instance_name, only(request.blob_digests))
    } else if is(Method::BatchReadBlobs) {
        let request = re::BatchReadBlobsRequest::decode(message).ok()?;
        About::new(request.instance_name, only(request.digests))
    } else if is(Method::BatchUpdateBlobs) {
        let request = re::BatchUpdateBlobsRequest::decode(message).ok()?;
        About::new(request.instance_name, only(request.requests).and_then(|one| one.digest))
    } else if is(Method::SplitBlob) {
        let request = re::SplitBlobRequest::decode(message).ok()?;
        About::new(request.instance_name, request.blob_digest)
    } else if is(Method::SpliceBlob) {
        let request = re::SpliceBlobRequest::decode(message).ok()?;
        About::new(request.instance_name, request.blob_digest)
    } else {
        return None;
    })
}

fn execution(message: Bytes) -> About {
    let request = re::ExecuteRequest::decode(message).unwrap_or_default();
    About::new(request.instance_name, request.action_digest)
}

/// The digest of a batch of one; more are no digest of the call's.
fn only<T>(mut all: Vec<T>) -> Option<T> {
    if all.len() == 1 { all.pop() } else { None }
}

/// RequestMetadata out of its header.
pub(crate) fn metadata(header: &HeaderValue) -> Option<re::RequestMetadata> {
    re::RequestMetadata::decode(request_metadata(header)?).ok()
}

/// The bytes of a RequestMetadata, whatever they say; none where they are no base64.
pub(crate) fn request_metadata(header: &HeaderValue) -> Option<Bytes> {
    let headers: HeaderMap = [(HeaderName::from_static(METADATA), header.clone())].into_iter().collect();
    MetadataMap::from_headers(headers).get_bin(METADATA)?.to_bytes().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildnet_formats::Digest;
    use proptest::prelude::*;

    #[test]
    fn a_look_up_names_its_instance_and_action() {
        let action = Digest::of(b"x");
        let request = re::GetActionResultRequest {
            instance_name: "a/b".to_owned(),
            action_digest: Some(action.to_message()),
            ..Default::default()
        };
        let about = read(Sort::of(Method::GetActionResult), request.encode_to_vec().into()).unwrap();
        assert_eq!(about, About { instance: "a/b".to_owned(), digest: action.to_string() });
        let name = format!("a/b/uploads/u/blobs/{action}");
        assert_eq!(read(Sort::WRITE, name.into()).unwrap(), about);
    }

    proptest! {
        #[test]
        fn no_message_panics(bytes: Vec<u8>, sort in 0usize..Method::ALL.len()) {
            let _ = read(Sort::of(Method::ALL[sort]), bytes.clone().into());
            let _ = read(Sort::WRITE, bytes.clone().into());
            let _ = read(Sort::READ, bytes.into());
        }
    }
}
