//! Messages pass as bytes; who answers a call decodes it. A message that is not one is INVALID_ARGUMENT, never INTERNAL.

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
    let mut framed = Vec::with_capacity(5 + message.len());
    framed.push(0);
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&message);
    Bytes::from(framed)
}
