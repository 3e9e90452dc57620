//! Messages pass as bytes; who answers a call decodes it. A message that is not one is INVALID_ARGUMENT, never INTERNAL.

use buildnet_raw::frame_of;
use bytes::Bytes;
use prost::Message;
use tonic::Status;

pub(crate) fn decode<M: Message + Default>(body: Bytes) -> Result<M, Status> {
    M::decode(body).map_err(|error| Status::invalid_argument(format!("the request cannot be decoded: {error}")))
}

pub(crate) fn encode(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

/// A message behind gRPC's five bytes.
pub(crate) fn frame(message: Bytes) -> Bytes {
    Bytes::from([&frame_of(message.len())[..], &message].concat())
}
