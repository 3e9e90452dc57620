//! Messages in the pieces in which they came: a long one is never copied to be whole. Five bytes stand before each (gRPC over
//! HTTP/2, Length-Prefixed-Message). Who may send how much, and for how long, is decided elsewhere.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// What stands before a message: whether it is compressed, and its length.
pub const FRAME_BYTES: usize = 5;
/// Below it a piece is copied to its neighbours: one of its own would take more than its bytes.
const SMALL_BYTES: usize = 4 << 10;
/// Small messages leave together up to about this.
const GATHERED_BYTES: usize = 16 << 10;

/// What stands before a message of this length.
#[must_use]
pub fn frame_of(length: usize) -> [u8; FRAME_BYTES] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [0, a, b, c, d]
}

/// The length of the message behind this.
///
/// # Errors
/// It is compressed, or longer than `size_bytes_max`.
pub fn length_of(frame: [u8; FRAME_BYTES], size_bytes_max: usize) -> Result<usize, Status> {
    let [compressed, a, b, c, d] = frame;
    if compressed != 0 {
        // A refusal says what is taken instead (gRPC Compression).
        let mut accepted = MetadataMap::new();
        accepted.insert("grpc-accept-encoding", MetadataValue::from_static("identity"));
        let text = "compressed messages are not offered; ask for compressed-blobs instead";
        return Err(Status::with_metadata(Code::Unimplemented, text, accepted));
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > size_bytes_max {
        let text = format!("a message of {length} bytes is over the limit of {size_bytes_max}");
        return Err(Status::resource_exhausted(text));
    }
    Ok(length)
}

/// Bytes in pieces, which clones share.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pieces: Vec<Bytes>,
    length: usize,
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        let mut message = Self::default();
        message.push(bytes);
        message
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.length == other.length && self.pieces.iter().flatten().eq(other.pieces.iter().flatten())
    }
}

impl Eq for Message {}

impl Message {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// In their order; none is empty.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// Add to the end.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.length += piece.len();
            self.pieces.push(piece);
        }
    }

    /// The bytes from `begin` to `end`, which are shared.
    ///
    /// # Panics
    /// They are not all here.
    #[must_use]
    pub fn slice(&self, begin: usize, end: usize) -> Self {
        assert!(begin <= end && end <= self.length, "{begin} to {end} of {}", self.length);
        let mut part = Self::default();
        let mut at = 0;
        for piece in &self.pieces {
            let after = at + piece.len();
            if begin < after && at < end {
                part.push(piece.slice(begin.max(at) - at..end.min(after) - at));
            }
            at = after;
        }
        part
    }

    /// All bytes as one; free of a copy when they are one already.
    pub fn joined(&self) -> Bytes {
        match self.pieces.as_slice() {
            [] => Bytes::new(),
            [whole] => whole.clone(),
            pieces => pieces.concat().into(),
        }
    }

    /// Write all bytes to `room`, which has their length.
    ///
    /// # Panics
    /// It has another.
    pub fn copy_to(&self, room: &mut [u8]) {
        assert_eq!(room.len(), self.length);
        let mut rest = room;
        for piece in &self.pieces {
            rest.put_slice(piece);
        }
    }
}

/// What came of a stream and is no whole message yet.
#[derive(Default)]
pub struct Inbound {
    held: Message,
    /// Small pieces behind `held`, gathered.
    small: BytesMut,
    /// Of the message that comes.
    length: Option<usize>,
}

impl Inbound {
    /// More came.
    pub fn push(&mut self, data: Bytes) {
        if data.len() < SMALL_BYTES {
            self.small.extend_from_slice(&data);
        } else {
            self.settle();
            self.held.push(data);
        }
    }

    fn settle(&mut self) {
        self.held.push(self.small.split().freeze());
    }

    /// Whether nothing waits for its rest.
    pub fn is_empty(&self) -> bool {
        self.waiting() == 0 && self.length.is_none()
    }

    fn waiting(&self) -> usize {
        self.held.len() + self.small.len()
    }

    fn take(&mut self, count: usize) -> Message {
        self.settle();
        let taken = self.held.slice(0, count);
        self.held = self.held.slice(count, self.held.len());
        taken
    }

    /// The next whole message; none where more has to come.
    ///
    /// # Errors
    /// It is compressed, or longer than `size_bytes_max`. Nothing can follow.
    pub fn next(&mut self, size_bytes_max: usize) -> Result<Option<Message>, Status> {
        let length = match self.length {
            Some(length) => length,
            None if self.waiting() < FRAME_BYTES => return Ok(None),
            None => {
                let mut frame = [0; FRAME_BYTES];
                self.take(FRAME_BYTES).copy_to(&mut frame);
                length_of(frame, size_bytes_max)?
            }
        };
        self.length = Some(length);
        if self.waiting() < length {
            return Ok(None);
        }
        self.length = None;
        Ok(Some(self.take(length)))
    }
}

/// Messages on their way out, behind their frames: small ones together, long ones in their own pieces.
#[derive(Default)]
pub struct Outbound {
    chunks: VecDeque<Bytes>,
    /// What leaves after `chunks`.
    small: BytesMut,
}

impl Outbound {
    /// One message more.
    pub fn push(&mut self, message: &Message) {
        self.small.extend_from_slice(&frame_of(message.len()));
        for piece in message.pieces() {
            if piece.len() < SMALL_BYTES {
                self.small.extend_from_slice(piece);
            } else {
                self.chunks.push_back(self.small.split().freeze());
                self.chunks.push_back(piece.clone());
            }
        }
    }

    /// Whether what is here is to leave before more is asked for.
    pub fn is_full(&self) -> bool {
        !self.chunks.is_empty() || self.small.len() >= GATHERED_BYTES
    }

    /// What leaves next; none is empty.
    pub fn chunk(&mut self) -> Option<Bytes> {
        while let Some(chunk) = self.chunks.pop_front() {
            if !chunk.is_empty() {
                return Some(chunk);
            }
        }
        (!self.small.is_empty()).then(|| self.small.split().freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sizes() -> impl Strategy<Value = Vec<usize>> {
        proptest::collection::vec(prop_oneof![0usize..9, 4000usize..5000, 20_000usize..30_000], 0..6)
    }

    proptest! {
        #[test]
        fn messages_come_whole_however_they_are_cut(lengths in sizes(), cuts in proptest::collection::vec(1usize..9000, 1..9)) {
            let sent: Vec<Vec<u8>> = lengths.iter().map(|size| (0..*size).map(|at| at as u8).collect()).collect();
            let mut outbound = Outbound::default();
            for one in &sent {
                let (front, back) = one.split_at(one.len() / 3);
                let mut message = Message::from(Bytes::copy_from_slice(front));
                message.push(Bytes::copy_from_slice(back));
                outbound.push(&message);
            }
            let chunks: Vec<Bytes> = std::iter::from_fn(|| outbound.chunk()).collect();
            prop_assert!(chunks.iter().all(|chunk| !chunk.is_empty()));
            let mut rest = Bytes::from(chunks.concat());
            let framed: Vec<u8> = sent.iter().flat_map(|one| [&frame_of(one.len())[..], one].concat()).collect();
            prop_assert_eq!(&rest, &framed);
            let (mut inbound, mut came) = (Inbound::default(), Vec::new());
            for cut in cuts.iter().cycle() {
                while let Some(message) = inbound.next(1 << 20).unwrap() {
                    prop_assert_eq!(message.pieces().iter().map(Bytes::len).sum::<usize>(), message.len());
                    prop_assert!(message.pieces().len() <= 2 + 2 * message.len() / SMALL_BYTES);
                    came.push(message.joined());
                }
                if rest.is_empty() {
                    break;
                }
                inbound.push(rest.split_to((*cut).min(rest.len())));
            }
            prop_assert!(inbound.is_empty());
            prop_assert_eq!(came, sent);
        }

        #[test]
        fn no_bytes_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..9)) {
            let mut inbound = Inbound::default();
            for piece in pieces {
                inbound.push(piece.into());
                while let Ok(Some(message)) = inbound.next(1 << 10) {
                    prop_assert!(message.len() <= 1 << 10);
                }
            }
        }

        #[test]
        fn a_slice_is_that_of_the_bytes(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..6), a: usize, b: usize) {
            let whole = pieces.concat();
            let (a, b) = (a % (whole.len() + 1), b % (whole.len() + 1));
            let mut message = Message::default();
            for piece in pieces {
                message.push(piece.into());
            }
            let part = message.slice(a.min(b), a.max(b));
            prop_assert_eq!(part.joined(), &whole[a.min(b)..a.max(b)]);
            let mut room = vec![0; part.len()];
            part.copy_to(&mut room);
            prop_assert_eq!(room, part.joined());
        }
    }

    #[test]
    fn what_is_compressed_or_too_long_is_refused() {
        for (bytes, code) in
            [(&[1, 0, 0, 0, 0], tonic::Code::Unimplemented), (&[0, 0, 0, 0, 9], tonic::Code::ResourceExhausted)]
        {
            let mut inbound = Inbound::default();
            inbound.push(Bytes::copy_from_slice(bytes));
            let refusal = inbound.next(8).unwrap_err();
            assert_eq!(refusal.code(), code);
            assert_eq!(refusal.metadata().get("grpc-accept-encoding").is_some(), code == Code::Unimplemented);
        }
    }
}
