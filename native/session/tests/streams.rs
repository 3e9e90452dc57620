//! Over real streams: what is written is read, however it is cut; silence, stalls, a cut line and an end from outside are
//! noticed. Time is the test's own.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as Waking, Poll};
use std::time::Duration;

use buildnet_session::{
    FailureKind, Identity, Limits, Pattern, Peer, SessionError, SessionStream, TurnedAway, establish, establish_if,
};
use common::{TIMEOUT, both_ways, ends, over, paused, reason};
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

async fn pair(room: usize, limits: Limits) -> (SessionStream<DuplexStream>, SessionStream<DuplexStream>) {
    let (one, two) = tokio::io::duplex(room);
    over(one, two, true, limits).await
}

/// Gives and takes as many bytes at a time as it is told.
struct Choppy {
    inner: DuplexStream,
    sizes: Vec<usize>,
    turn: usize,
}

impl Choppy {
    fn next(&mut self) -> usize {
        self.turn += 1;
        self.sizes[self.turn % self.sizes.len()]
    }
}

impl AsyncRead for Choppy {
    fn poll_read(mut self: Pin<&mut Self>, waking: &mut Waking<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut piece = vec![0; self.next().min(buffer.remaining())];
        let mut read = ReadBuf::new(&mut piece);
        let done = Pin::new(&mut self.inner).poll_read(waking, &mut read);
        buffer.put_slice(read.filled());
        done
    }
}

impl AsyncWrite for Choppy {
    fn poll_write(mut self: Pin<&mut Self>, waking: &mut Waking<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let size = self.next().min(data.len());
        Pin::new(&mut self.inner).poll_write(waking, &data[..size])
    }

    fn poll_flush(mut self: Pin<&mut Self>, waking: &mut Waking<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(waking)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, waking: &mut Waking<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(waking)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn both_ways_at_once_over_any_cuts(
        here in proptest::collection::vec(any::<u8>(), 0..140_000),
        there in proptest::collection::vec(any::<u8>(), 0..140_000),
        sizes in proptest::collection::vec(1usize..5_000, 1..5),
        room in 50usize..100_000,
        rekey_frames in 1u64..5,
        is_known: bool,
    ) {
        paused(async {
            let (one, two) = tokio::io::duplex(room);
            let choppy = |inner| Choppy { inner, sizes: sizes.clone(), turn: 0 };
            let limits = Limits { rekey_frames, ..Limits::default() };
            let (a, b) = over(choppy(one), choppy(two), is_known, limits).await;
            both_ways(a, b, &here, &there).await;
        });
    }
}

#[test]
fn both_ends_name_the_other() {
    paused(async {
        let (a, b) = pair(4096, Limits::default()).await;
        assert_eq!(a.peer().node_key, Identity::new(&[2; 32], &[4; 32]).unwrap().node_key());
        assert_eq!(b.peer().node_key, Identity::new(&[1; 32], &[3; 32]).unwrap().node_key());
        assert_eq!(b.peer().pattern, Pattern::Ik);
    });
}

#[test]
fn a_cut_line_is_no_orderly_end() {
    paused(async {
        let (mut a, mut b) = pair(4096, Limits::default()).await;
        a.write_all(b"half").await.unwrap();
        a.flush().await.unwrap();
        drop(a);
        let mut read = Vec::new();
        let error = b.read_to_end(&mut read).await.unwrap_err();
        assert_eq!((error.kind(), &read[..]), (ErrorKind::UnexpectedEof, &b"half"[..]));
        assert!(matches!(reason(&error), SessionError::Truncated));
    });
}

#[test]
fn silence_ends_a_session_and_pings_break_it() {
    let limits =
        Limits { keep_alive: Duration::from_secs(15), idle_timeout: Duration::from_secs(50), ..Limits::default() };
    paused(async move {
        let (mut a, mut b) = pair(4096, limits).await;
        // While both are read from, an hour passes.
        let (mut here, mut there) = ([0], [0]);
        tokio::select! {
            done = a.read(&mut here) => panic!("{done:?}"),
            done = b.read(&mut there) => panic!("{done:?}"),
            () = tokio::time::sleep(Duration::from_secs(3600)) => {}
        }
        // Nobody reads from `b` any more, so it is silent.
        let began = tokio::time::Instant::now();
        let error = a.read(&mut here).await.unwrap_err();
        assert!(matches!(reason(&error), SessionError::Idle), "{error}");
        assert!(began.elapsed() <= Duration::from_secs(51), "{:?}", began.elapsed());
    });
}

#[test]
fn a_peer_that_takes_nothing_is_ended_and_holds_little() {
    let limits =
        Limits { stall_timeout: Duration::from_secs(20), idle_timeout: Duration::from_secs(500), ..Limits::default() };
    paused(async move {
        let (a, _b) = pair(4096, limits).await;
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
        assert!(written < 200_000, "{written} bytes wait");
    });
}

#[test]
fn a_session_is_ended_from_outside_and_the_peer_hears_why() {
    paused(async {
        let (mut a, mut b) = pair(4096, Limits::default()).await;
        let (closer, mut here, mut there) = (a.closer(), [0], [0]);
        let (at_a, at_b, ()) = tokio::join!(a.read(&mut here), b.read(&mut there), async {
            closer.close(9, "revoked");
            closer.close(1, "again");
        });
        assert!(matches!(reason(&at_a.unwrap_err()), SessionError::Ended(text) if text == "revoked"));
        let at_b = at_b.unwrap_err();
        assert!(matches!(reason(&at_b), SessionError::Closed { code: 9, text } if text == "revoked"), "{at_b}");
    });
}

#[test]
fn a_session_may_be_refused_with_a_reason() {
    paused(async {
        let (mut a, b) = pair(4096, Limits::default()).await;
        b.close(2, "this node was removed").await.unwrap();
        let error = a.read(&mut [0]).await.unwrap_err();
        assert!(matches!(reason(&error), SessionError::Closed { code: 2, .. }), "{error}");
    });
}

#[test]
fn a_dialler_is_let_in_or_hears_why_not() {
    for is_known in [true, false] {
        paused(async {
            let (one, two) = tokio::io::duplex(4096);
            let (a, b) = ends(is_known);
            let turn_away = |peer: Arc<Peer>| {
                assert_eq!(peer.node_key, Identity::new(&[1; 32], &[3; 32]).unwrap().node_key());
                std::future::ready(Err(TurnedAway { code: 7, text: "this node was removed".to_owned() }))
            };
            let both = tokio::join!(
                establish(one, a, Limits::default(), TIMEOUT),
                establish_if(two, b, Limits::default(), TIMEOUT, turn_away)
            );
            assert!(matches!(both.0, Err(SessionError::Closed { code: 7, text }) if text == "this node was removed"));
            assert!(matches!(both.1, Err(SessionError::Ended(text)) if text == "this node was removed"));
        });
    }
}

#[test]
fn a_closer_knows_how_a_session_went() {
    paused(async {
        let limits = Limits { rekey_frames: 2, ..Limits::default() };
        let (mut a, mut b) = pair(4096, limits).await;
        let (closer, mut read) = (b.closer(), [0; 4]);
        let heard = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&heard);
        closer.on_rekey(move |rekeys| {
            assert_eq!(count.swap(rekeys, Ordering::Relaxed) + 1, rekeys);
        });
        a.write_all(b"more").await.unwrap();
        a.flush().await.unwrap();
        b.read_exact(&mut read).await.unwrap();
        assert_eq!((closer.failure(), closer.rekeys() > 0), (None, true));
        assert_eq!(heard.load(Ordering::Relaxed), closer.rekeys());
        drop(a);
        b.read(&mut read).await.unwrap_err();
        let failure = closer.failure().unwrap();
        assert!(failure.kind == FailureKind::Gone && failure.text.contains("in the middle"), "{failure:?}");
    });
}

#[test]
fn who_does_not_shake_hands_in_time_is_let_go() {
    paused(async {
        let (one, _two) = tokio::io::duplex(4096);
        let error = establish(one, ends(true).1, Limits::default(), TIMEOUT).await.unwrap_err();
        assert!(matches!(error, SessionError::Slow));
    });
}

#[test]
fn garbage_after_a_good_handshake_is_refused_and_bounded() {
    paused(async {
        let (one, mut two) = tokio::io::duplex(1 << 20);
        let (a, mut b) = ends(true);
        let peer = async {
            let mut greeting = vec![0; 1024];
            let mut waiting = Vec::new();
            while !b.is_finished() {
                let count = two.read(&mut greeting).await.unwrap();
                waiting.extend_from_slice(&greeting[..count]);
                let taken = b.feed(&waiting).unwrap();
                waiting.drain(..taken);
            }
            two.write_all(&b.take_output()).await.unwrap();
            two.write_all(&vec![0xff; 200_000]).await.unwrap();
        };
        let (session, ()) = tokio::join!(establish(one, a, Limits::default(), TIMEOUT), peer);
        // Its first frame is still within the bound of the handshake.
        assert!(matches!(session, Err(SessionError::Oversize(4096))), "{session:?}");
    });
}
