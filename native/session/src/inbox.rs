//! Bytes as they came, opened where they lie, and given away from there: each is copied once on its way in. It holds one
//! frame of the largest kind and little more.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context as Waking, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};

use crate::SessionError;
use crate::frames::{Event, Frames, MESSAGE_BYTES_MAX, end_of_frame};

/// A frame, and the length of the one behind it; what else comes with them is moved to the front, so it is little.
const LARGE_BYTES: usize = MESSAGE_BYTES_MAX + 1 + (4 << 10);
const SMALL_BYTES: usize = 4 << 10;
/// Of the frame behind, which is read with the end of a large one.
const LENGTH_BYTES: usize = 2;

#[derive(Default)]
pub(crate) struct Inbox {
    buffer: Box<[u8]>,
    /// What was opened and not yet given away.
    plain: Range<usize>,
    /// What was not opened yet.
    sealed: Range<usize>,
}

impl Inbox {
    /// `early`: what came already.
    pub(crate) fn new(early: &[u8]) -> Self {
        Self { buffer: early.into(), plain: 0..0, sealed: 0..early.len() }
    }

    /// Open the next frame, if all of it is there. What was opened before must be given away.
    pub(crate) fn open(&mut self, frames: &mut Frames, now: Duration) -> Result<Option<Event>, SessionError> {
        let begin = self.sealed.start;
        let opened = frames.open(&mut self.buffer[self.sealed.clone()], now)?;
        self.sealed.start += opened.consumed;
        if let Some(Event::Data(place)) = &opened.event {
            self.plain = begin + place.start..begin + place.end;
        }
        Ok(opened.event)
    }

    /// Give away what was opened, as far as there is room; whether there was something.
    pub(crate) fn give(&mut self, wanted: &mut ReadBuf<'_>) -> bool {
        let count = self.plain.len().min(wanted.remaining());
        let is_some = !self.plain.is_empty();
        wanted.put_slice(&self.buffer[self.plain.start..self.plain.start + count]);
        self.plain.start += count;
        is_some
    }

    /// Read once from the stream below; returns how many bytes came. Nothing may be left to give away.
    pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        inner: &mut S,
        waking: &mut Waking<'_>,
    ) -> Poll<io::Result<usize>> {
        let lacking = self.make_room();
        let room = &mut self.buffer[self.sealed.end..];
        // The rest of a large frame is read alone, so that of the next there is little to move.
        let limit = if lacking > SMALL_BYTES { (lacking + LENGTH_BYTES).min(room.len()) } else { room.len() };
        let mut read = ReadBuf::new(&mut room[..limit]);
        ready!(Pin::new(inner).poll_read(waking, &mut read))?;
        let count = read.filled().len();
        self.sealed.end += count;
        Poll::Ready(Ok(count))
    }

    /// Room for the rest of the frame that has begun; returns how much that is, 0 where it is not known.
    fn make_room(&mut self) -> usize {
        if self.sealed.is_empty() {
            self.sealed = 0..0;
        }
        let frame = end_of_frame(&self.buffer[self.sealed.clone()]);
        let wanted = frame.unwrap_or(LENGTH_BYTES);
        if self.sealed.start + wanted > self.buffer.len() || self.sealed.end == self.buffer.len() {
            // Little at first: a session that only says that it is there needs no more.
            let size = if wanted <= SMALL_BYTES { SMALL_BYTES } else { LARGE_BYTES };
            self.move_to_front(size.max(self.buffer.len()));
        }
        frame.map_or(0, |frame| frame - self.sealed.len())
    }

    fn move_to_front(&mut self, size: usize) {
        let count = self.sealed.len();
        if self.buffer.len() < size {
            let mut larger = vec![0; size];
            larger[..count].copy_from_slice(&self.buffer[self.sealed.clone()]);
            self.buffer = larger.into();
        } else {
            self.buffer.copy_within(self.sealed.clone(), 0);
        }
        self.sealed = 0..count;
    }

    /// Let memory go that only a burst needed.
    pub(crate) fn rest(&mut self) {
        if self.sealed.is_empty() && self.plain.is_empty() {
            *self = Self::default();
        }
    }
}
