//! Bytes in the pieces in which they came, so that a large message is never copied to be whole.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;

/// Pieces in order.
#[derive(Default)]
pub(crate) struct Rope {
    pieces: VecDeque<Bytes>,
    length: usize,
    /// The room that these bytes take of what all requests may, of each sort of room one.
    charges: Vec<OwnedSemaphorePermit>,
}

impl From<Bytes> for Rope {
    fn from(bytes: Bytes) -> Self {
        let mut rope = Self::default();
        rope.push(bytes);
        rope
    }
}

impl Rope {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.length += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Count bytes that were pushed.
    pub(crate) fn charge(&mut self, more: Option<OwnedSemaphorePermit>) {
        let Some(more) = more else { return };
        match self.charges.iter_mut().find(|charge| Arc::ptr_eq(charge.semaphore(), more.semaphore())) {
            Some(charge) => charge.merge(more),
            None => self.charges.push(more),
        }
    }

    /// The room that these bytes take, for who keeps them otherwise.
    pub(crate) fn take_charges(&mut self) -> Vec<OwnedSemaphorePermit> {
        std::mem::take(&mut self.charges)
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.length += other.length;
        for charge in other.charges {
            self.charge(Some(charge));
        }
        self.pieces.extend(other.pieces);
    }

    /// The first piece, or nothing.
    pub(crate) fn first(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece.as_ref())
    }

    pub(crate) fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter()
    }

    /// Drop bytes from the front.
    pub(crate) fn advance(&mut self, mut count: usize) {
        self.length = self.length.saturating_sub(count);
        while let Some(front) = self.pieces.front_mut() {
            if front.len() > count {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.pieces.pop_front();
        }
    }

    /// Take the first bytes; the caller has checked that there are so many.
    pub(crate) fn take(&mut self, mut count: usize) -> Self {
        // What stays is little, and has its place in the next charge.
        let mut taken = Self { charges: std::mem::take(&mut self.charges), ..Self::default() };
        while count > 0 {
            let Some(front) = self.pieces.front_mut() else { break };
            if front.len() > count {
                taken.push(front.split_to(count));
                self.length -= count;
                return taken;
            }
            count -= front.len();
            self.length -= front.len();
            if let Some(piece) = self.pieces.pop_front() {
                taken.push(piece);
            }
        }
        taken
    }

    /// All bytes as one; free of a copy when they are one already.
    pub(crate) fn into_bytes(mut self) -> Bytes {
        if self.pieces.len() <= 1 {
            return self.pieces.pop_front().unwrap_or_default();
        }
        let mut whole = BytesMut::with_capacity(self.length);
        for piece in &self.pieces {
            whole.extend_from_slice(piece);
        }
        whole.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_bytes(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..6), at: usize) {
            let whole = pieces.concat();
            let at = at % (whole.len() + 1);
            let mut rope = Rope::default();
            for piece in pieces {
                rope.push(piece.into());
            }
            let mut rest = rope;
            let taken = rest.take(at);
            prop_assert_eq!((taken.len(), rest.len()), (at, whole.len() - at));
            let skip = rest.len() / 2;
            rest.advance(skip);
            prop_assert_eq!(taken.into_bytes(), &whole[..at]);
            prop_assert_eq!(rest.into_bytes(), &whole[at + skip..]);
        }
    }
}
