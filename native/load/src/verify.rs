//! Whether an answer is the right one, to the byte. What cannot be decoded is a wrong answer, not an error of the run.

use std::collections::BTreeSet;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::bytestream as bs;
use buildnet_formats::wire::google::longrunning::{Operation, operation};
use bytes::Bytes;
use prost::Message;

use crate::content::{Hash, Tail, Template};
use crate::messages::{FRAME_BYTES, text};

const DATA_TAG: u8 = 0x52;

/// Check the result of an action. Who ran it and when is the server's to add to.
///
/// # Errors
/// How it differs.
pub fn result(message: Bytes, want: &re::ActionResult) -> Result<(), String> {
    same(&decode(message)?, want)
}

fn same(got: &re::ActionResult, want: &re::ActionResult) -> Result<(), String> {
    if got.output_files != want.output_files
        || got.stdout_digest != want.stdout_digest
        || got.exit_code != want.exit_code
    {
        return Err(format!("another result: {got:?}"));
    }
    Ok(())
}

/// Check that an operation has ended with the cached result of an action.
///
/// # Errors
/// How it differs.
pub fn executed(message: Bytes, want: &re::ActionResult) -> Result<(), String> {
    let response = response_of(message)?;
    if !response.cached_result {
        return Err("it was executed".to_owned());
    }
    same(&response.result.unwrap_or_default(), want)
}

/// What an operation ended with.
///
/// # Errors
/// It has not ended, or cannot be decoded.
pub fn response_of(message: Bytes) -> Result<re::ExecuteResponse, String> {
    let operation: Operation = decode(message)?;
    let Some(operation::Result::Response(response)) = operation.result.filter(|_| operation.done) else {
        return Err(format!("{} ended before it was done", operation.name));
    };
    decode(Bytes::from(response.value))
}

/// Check the missing digests, in whatever order.
///
/// # Errors
/// How many differ.
pub fn missing(message: Bytes, want: &BTreeSet<String>, size: usize) -> Result<(), String> {
    let got: re::FindMissingBlobsResponse = decode(message)?;
    let sizes = got.missing_blob_digests.iter().all(|digest| usize::try_from(digest.size_bytes) == Ok(size));
    let hashes: BTreeSet<String> = got.missing_blob_digests.iter().map(|digest| digest.hash.clone()).collect();
    if !sizes || hashes != *want || hashes.len() != got.missing_blob_digests.len() {
        return Err(format!("{} digests are missing, not {}, or others", hashes.len(), want.len()));
    }
    Ok(())
}

/// Check that each blob of a batch was taken.
///
/// # Errors
/// The first that was not.
pub fn batch_update(message: Bytes, want: &[Hash]) -> Result<(), String> {
    let got: re::BatchUpdateBlobsResponse = decode(message)?;
    if got.responses.len() != want.len() {
        return Err(format!("{} responses to {} blobs", got.responses.len(), want.len()));
    }
    let mut answered: Vec<&str> = Vec::with_capacity(want.len());
    for response in &got.responses {
        if let Some(status) = response.status.as_ref().filter(|status| status.code != 0) {
            return Err(format!("status {}: {}", status.code, status.message));
        }
        answered.push(response.digest.as_ref().map_or("", |digest| digest.hash.as_str()));
    }
    let in_order = answered.iter().zip(want).all(|(got, want)| got.as_bytes() == want);
    if !in_order && !want.iter().all(|want| answered.iter().any(|got| got.as_bytes() == want)) {
        return Err("responses name other digests".to_owned());
    }
    Ok(())
}

/// Check each blob of a batch, in whatever order.
///
/// # Errors
/// The first that is not there, or not itself.
pub fn batch_read(message: Bytes, want: &[(Hash, Tail)], template: &Template) -> Result<(), String> {
    let got: re::BatchReadBlobsResponse = decode(message)?;
    if got.responses.len() != want.len() {
        return Err(format!("{} responses to {} blobs", got.responses.len(), want.len()));
    }
    for (hash, tail) in want {
        let named = |response: &&re::batch_read_blobs_response::Response| {
            response.digest.as_ref().is_some_and(|digest| digest.hash.as_bytes() == hash)
        };
        let response = got.responses.iter().find(named).ok_or_else(|| format!("{} is not in it", text(hash)))?;
        if let Some(status) = response.status.as_ref().filter(|status| status.code != 0) {
            return Err(format!("status {}: {}", status.code, status.message));
        }
        if response.data.len() != template.size() || !template.matches(tail, 0, &response.data) {
            return Err(format!("{} has other bytes", text(hash)));
        }
    }
    Ok(())
}

/// Check what an upload committed.
///
/// # Errors
/// The other number.
pub fn written(message: Bytes, size: usize) -> Result<(), String> {
    let got: bs::WriteResponse = decode(message)?;
    if usize::try_from(got.committed_size) != Ok(size) {
        return Err(format!("committed {} bytes of {size}", got.committed_size));
    }
    Ok(())
}

fn decode<M: Message + Default>(message: Bytes) -> Result<M, String> {
    M::decode(message).map_err(|error| format!("an answer that cannot be decoded: {error}"))
}

enum Field {
    Tag,
    Length { value: usize, shift: u32 },
}

/// Compares a ByteStream.Read with the blob while it arrives, however it is cut, and copies nothing.
pub struct Reading<'a> {
    template: &'a Template,
    tail: Tail,
    offset: usize,
    prefix: [u8; FRAME_BYTES],
    prefix_have: usize,
    message_left: usize,
    data_left: usize,
    field: Field,
}

impl<'a> Reading<'a> {
    /// Of the blob with this tail.
    pub fn new(template: &'a Template, tail: Tail) -> Self {
        Self {
            template,
            tail,
            offset: 0,
            prefix: [0; FRAME_BYTES],
            prefix_have: 0,
            message_left: 0,
            data_left: 0,
            field: Field::Tag,
        }
    }

    /// Take the next bytes.
    ///
    /// # Errors
    /// They are not what the blob has there, or no ReadResponse.
    pub fn feed(&mut self, mut chunk: &[u8]) -> Result<(), String> {
        while let Some(first) = chunk.first() {
            let taken = if self.message_left == 0 {
                self.take_prefix(*first)?
            } else if self.data_left > 0 {
                self.take_data(&chunk[..chunk.len().min(self.data_left)])?
            } else {
                self.take_field(*first)?
            };
            chunk = &chunk[taken..];
        }
        Ok(())
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// The blob has not.
    pub fn finish(&self) -> Result<(), String> {
        if self.offset != self.template.size() || self.message_left != 0 || self.prefix_have != 0 {
            return Err(format!("{} bytes of {}", self.offset, self.template.size()));
        }
        Ok(())
    }

    fn take_prefix(&mut self, byte: u8) -> Result<usize, String> {
        self.prefix[self.prefix_have] = byte;
        self.prefix_have += 1;
        if self.prefix_have == FRAME_BYTES {
            let [flag, length @ ..] = self.prefix;
            if flag != 0 {
                return Err(format!("a message with flag {flag}"));
            }
            self.prefix_have = 0;
            self.message_left = u32::from_be_bytes(length) as usize;
            self.field = Field::Tag;
        }
        Ok(1)
    }

    fn take_data(&mut self, piece: &[u8]) -> Result<usize, String> {
        if !self.template.matches(&self.tail, self.offset, piece) {
            return Err(format!("other bytes at {} of {}", self.offset, self.template.size()));
        }
        self.offset += piece.len();
        self.data_left -= piece.len();
        self.message_left -= piece.len();
        Ok(piece.len())
    }

    fn take_field(&mut self, byte: u8) -> Result<usize, String> {
        self.message_left -= 1;
        match self.field {
            Field::Tag if byte == DATA_TAG => self.field = Field::Length { value: 0, shift: 0 },
            Field::Tag => return Err(format!("a ReadResponse with the tag {byte:#x}")),
            Field::Length { shift, .. } if shift > 28 => return Err("a length without end".to_owned()),
            Field::Length { value, shift } => {
                let value = value | usize::from(byte & 0x7f) << shift;
                if byte & 0x80 != 0 {
                    self.field = Field::Length { value, shift: shift + 7 };
                } else if value > self.message_left {
                    return Err(format!("{value} bytes of data in a message with {} left", self.message_left));
                } else {
                    (self.data_left, self.field) = (value, Field::Tag);
                }
            }
        }
        Ok(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{KEPT, tail};
    use crate::messages::framed;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_read_is_verified_however_it_is_cut(
            size in 16usize..4000, message in 1usize..2000, frame in 1usize..700, wrong: Option<usize>
        ) {
            let template = Template::new(size);
            let tail = tail(KEPT, 3);
            let blob = template.blob(&tail);
            let mut sent: Vec<u8> = Vec::new();
            for data in blob.chunks(message) {
                sent.extend(framed(&bs::ReadResponse { data: Bytes::copy_from_slice(data) }));
            }
            if let Some(wrong) = wrong {
                let at = wrong % sent.len();
                sent[at] ^= 1;
            }
            let mut reading = Reading::new(&template, tail);
            let verdict = sent.chunks(frame).try_for_each(|piece| reading.feed(piece)).and_then(|()| reading.finish());
            prop_assert_eq!(verdict.is_ok(), wrong.is_none());
        }

        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) {
            let template = Template::new(64);
            let _ = Reading::new(&template, tail(KEPT, 0)).feed(&bytes);
            let bytes = Bytes::from(bytes);
            let _ = (result(bytes.clone(), &re::ActionResult::default()), written(bytes.clone(), 1));
            let _ = (batch_update(bytes.clone(), &[]), batch_read(bytes.clone(), &[], &template));
            let _ = (missing(bytes.clone(), &BTreeSet::new(), 1), executed(bytes, &re::ActionResult::default()));
        }
    }
}
