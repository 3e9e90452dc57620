//! A session whose bytes travel as messages of a call: they arrive whole however both are cut, what is no such message ends
//! it and is told apart, and a call that takes nothing holds little. Time is the test's own.
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::pin::Pin;
use std::task::{Context as Waking, Poll};
use std::time::Duration;

use buildnet_formats::wire::buildnet::v1::{OpenRequest, OpenResponse};
use buildnet_session::{
    CARRIED_BYTES_MAX, Carried, Carrying, FailureKind, Limits, SessionError, SessionStream, Written, establish,
    next_frame,
};
use bytes::{BufMut, Bytes, BytesMut};
use common::{TIMEOUT, both_ways, ends, over, paused, reason};
use futures_util::StreamExt;
use http_body::{Body, Frame};
use proptest::prelude::*;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// What a call brings, as it is sent or as a test says.
struct Bringing(mpsc::Receiver<Bytes>);

impl Body for Bringing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, waking: &mut Waking<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(waking).map(|next| next.map(|data| Ok(Frame::data(data))))
    }
}

/// Bring the other end what this one sends, `cut` bytes at a time.
fn bring(mut carrying: Carrying, cut: usize, to: mpsc::Sender<Bytes>) {
    tokio::spawn(async move {
        while let Some(mut bytes) = carrying.next().await {
            while !bytes.is_empty() {
                if to.send(bytes.split_to(cut.min(bytes.len()))).await.is_err() {
                    return;
                }
            }
        }
    });
}

/// One end of a call.
fn carried(body: Bringing) -> (Carried<Bringing>, Carrying) {
    let written = Written::default();
    let carrying = written.carrying();
    (Carried::new(body, written), carrying)
}

/// Two ends of one call, and what brings the second more than the first sends.
fn call(cut: usize) -> (Carried<Bringing>, Carried<Bringing>, mpsc::WeakSender<Bytes>) {
    let ((to_one, at_one), (to_two, at_two)) = (mpsc::channel(1), mpsc::channel(1));
    let (one, from_one) = carried(Bringing(at_one));
    let (two, from_two) = carried(Bringing(at_two));
    let more = to_two.downgrade();
    bring(from_one, cut, to_two);
    bring(from_two, cut, to_one);
    (one, two, more)
}

type Session = SessionStream<Carried<Bringing>>;

async fn sessions(cut: usize, limits: Limits) -> (Session, Session, mpsc::WeakSender<Bytes>) {
    let (one, two, more) = call(cut);
    let (a, b) = over(one, two, true, limits).await;
    (a, b, more)
}

fn message(frame: &[u8]) -> Vec<u8> {
    let message = OpenResponse { frame: Bytes::copy_from_slice(frame) }.encode_to_vec();
    [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn both_ways_at_once_over_any_cuts(
        here in proptest::collection::vec(any::<u8>(), 0..200_000),
        there in proptest::collection::vec(any::<u8>(), 0..200_000),
        cut in 1usize..100_000,
    ) {
        paused(async {
            let (a, b, _) = sessions(cut, Limits::default()).await;
            both_ways(a, b, &here, &there).await;
        });
    }

    #[test]
    fn frames_come_whole_however_their_messages_are_cut(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..6),
        cuts in proptest::collection::vec(1usize..400, 1..6),
    ) {
        let sent: Vec<u8> = frames.iter().flat_map(|frame| message(frame)).collect();
        let (mut came, mut read, mut rest) = (BytesMut::new(), Vec::new(), &sent[..]);
        for cut in cuts.iter().cycle() {
            while let Some(frame) = next_frame(&mut came).unwrap() {
                read.push(frame.to_vec());
            }
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            came.put_slice(now);
            rest = later;
        }
        prop_assert!(came.is_empty());
        prop_assert_eq!(read, frames);
    }

    #[test]
    fn any_bytes_are_a_frame_wait_for_more_or_are_refused(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..12)) {
        let mut came = BytesMut::new();
        for piece in pieces {
            came.put_slice(&piece);
            let before = came.len();
            match next_frame(&mut came) {
                Ok(Some(frame)) => prop_assert!(!frame.is_empty() && came.len() + frame.len() < before),
                Ok(None) => prop_assert_eq!(came.len(), before),
                Err(_) => break,
            }
        }
    }
}

#[test]
fn what_is_no_message_is_told_apart() {
    let largest = message(&vec![7; CARRIED_BYTES_MAX]);
    let frame = next_frame(&mut BytesMut::from(&largest[..])).unwrap().unwrap();
    assert_eq!(frame.len(), CARRIED_BYTES_MAX);
    // A field of a later version is passed over.
    let later =
        [&message(b"frame")[..5], &OpenRequest { frame: Bytes::from_static(b"frame") }.encode_to_vec()].concat();
    let mut later = [&later[..], &[2 << 3, 9]].concat();
    later[4] += 2;
    assert_eq!(next_frame(&mut BytesMut::from(&later[..])).unwrap().unwrap(), &b"frame"[..]);
    let size = u32::try_from(CARRIED_BYTES_MAX + 5).unwrap().to_be_bytes();
    let large = [&[0], &size[..]].concat();
    assert!(matches!(next_frame(&mut BytesMut::from(&large[..])), Err(SessionError::Oversize(_))));
    for garbage in [&[1, 0, 0, 0, 0][..], &[0; 5], &message(b""), &[0, 0, 0, 0, 2, 0x0a, 9]] {
        assert!(matches!(next_frame(&mut BytesMut::from(garbage)), Err(SessionError::Protocol(_))), "{garbage:?}");
    }
}

#[test]
fn a_message_that_is_none_refuses_a_handshake_and_breaks_a_session() {
    for (sent, is_oversize) in [(&[0, 0, 0, 0, 2, 0x0a, 9][..], false), (&[0, 0, 0x10, 0, 0], true)] {
        let is_it = |error: &SessionError| match error {
            SessionError::Oversize(_) => is_oversize,
            SessionError::Protocol(_) => !is_oversize,
            _ => false,
        };
        paused(async move {
            let (words, said) = mpsc::channel(1);
            words.send(Bytes::copy_from_slice(sent)).await.unwrap();
            let (end, _carrying) = carried(Bringing(said));
            let error = establish(end, ends(true).1, Limits::default(), TIMEOUT).await.unwrap_err();
            assert!(is_it(&error), "{error:?}");
        });
        paused(async move {
            let (_a, mut b, more) = sessions(1 << 10, Limits::default()).await;
            more.upgrade().unwrap().send(Bytes::copy_from_slice(sent)).await.unwrap();
            let closer = b.closer();
            let error = b.read(&mut [0]).await.unwrap_err();
            assert!(is_it(reason(&error)), "{error:?}");
            assert_eq!(closer.failure().unwrap().kind, FailureKind::Broken);
        });
    }
}

#[test]
fn a_call_that_takes_nothing_ends_its_session_and_holds_little() {
    let limits =
        Limits { stall_timeout: Duration::from_secs(20), idle_timeout: Duration::from_secs(500), ..Limits::default() };
    paused(async move {
        let (a, _b, _) = sessions(4 << 10, limits).await;
        let closer = a.closer();
        let (mut read, mut write) = tokio::io::split(a);
        let mut written = 0;
        let stuck = async {
            while let Ok(count) = write.write(&[0; 10_000]).await {
                written += count;
            }
        };
        let mut one = [0];
        let error = tokio::select! {
            () = stuck => unreachable!("it writes without end"),
            done = read.read(&mut one) => done.unwrap_err(),
        };
        assert!(matches!(reason(&error), SessionError::Stalled), "{error}");
        assert_eq!(closer.failure().unwrap().kind, FailureKind::Stalled);
        assert!(written < 500_000, "{written} bytes wait");
    });
}

#[test]
fn a_call_that_was_given_up_ends_its_session() {
    paused(async {
        let (mut a, b, _) = sessions(1 << 10, Limits::default()).await;
        drop(b);
        let error = a.read(&mut [0]).await.unwrap_err();
        assert!(matches!(reason(&error), SessionError::Truncated), "{error:?}");
        let (mut end, carrying) = carried(Bringing(mpsc::channel(1).1));
        drop(carrying);
        assert_eq!(end.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn what_was_written_before_the_end_still_leaves() {
    paused(async {
        let (mut end, mut carrying) = carried(Bringing(mpsc::channel(1).1));
        end.write_all(b"farewell").await.unwrap();
        drop(end);
        assert_eq!(carrying.next().await.unwrap(), message(b"farewell"));
        assert_eq!(carrying.next().await, None);
    });
}
