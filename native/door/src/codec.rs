//! Messages pass as bytes; who answers a call decodes it. A message that is not one is INVALID_ARGUMENT, never INTERNAL.

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};

use crate::hub::Parts;

pub(crate) use buildnet_raw::Raw;

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

/// As [`Raw`], with replies in two parts.
#[derive(Clone, Copy)]
pub(crate) struct Parted;

impl Codec for Parted {
    type Encode = Parts;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Raw;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Parted {
    type Item = Parts;
    type Error = Status;

    fn encode(&mut self, item: Parts, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // At once, so that what is copied once is not moved again.
        dst.reserve(item.len());
        dst.put(item.head);
        dst.put(item.rest);
        Ok(())
    }
}
