//! What was sealed is opened once, in order and whole, or the session ends.
#![allow(clippy::unwrap_used)]

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use buildnet_session::{
    CLOSE_TEXT_BYTES_MAX, Context, DATA_BYTES_MAX, Due, Event, Frames, Handshake, Identity, Limits, Remote,
    SessionError,
};
use proptest::prelude::*;

const BEGIN: Duration = Duration::ZERO;

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn pair(limits: Limits) -> (Frames, Frames) {
    let node = |n: u8| Arc::new(Identity::new(&[n; 32], &[n + 2; 32]).unwrap());
    let (one, two) = (node(1), node(2));
    let remote = Remote { node_key: two.node_key(), session_key: Some(two.session_key()) };
    let context = Context { organisation: String::new(), term: 0 };
    let mut a = Handshake::initiator(&one, &remote, &context, b"", 1).unwrap();
    let mut b = Handshake::responder(&two, &context, 1).unwrap();
    b.feed(&a.take_output()).unwrap();
    a.feed(&b.take_output()).unwrap();
    (a.finish(limits, BEGIN).unwrap().1, b.finish(limits, BEGIN).unwrap().1)
}

fn sealed(frames: &mut Frames, data: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    assert_eq!(frames.seal(&[IoSlice::new(data)], BEGIN, &mut wire).unwrap(), data.len());
    wire
}

fn opened(frames: &mut Frames, wire: &[u8]) -> Result<Vec<u8>, SessionError> {
    let (mut plain, mut wire) = (Vec::new(), wire.to_vec());
    loop {
        let consumed = match one(frames, &mut wire, BEGIN, &mut plain)? {
            (consumed, Some(_)) => consumed,
            (_, None) => return Ok(plain),
        };
        wire.drain(..consumed);
    }
}

/// One frame, its data appended to `plain`: how many bytes it took, and what it was.
fn one(
    frames: &mut Frames,
    wire: &mut [u8],
    now: Duration,
    plain: &mut Vec<u8>,
) -> Result<(usize, Option<Event>), SessionError> {
    let opened = frames.open(wire, now)?;
    if let Some(Event::Data(place)) = &opened.event {
        plain.extend_from_slice(&wire[place.clone()]);
    }
    Ok((opened.consumed, opened.event))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    /// Any sequence of writes, keys changed in between or not, cut anywhere on its way, is the same bytes at the end.
    #[test]
    fn what_was_written_is_read(
        writes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 0..20),
        sizes in proptest::collection::vec(1usize..700, 1..8),
        rekey_frames in 1u64..8,
    ) {
        let (mut a, mut b) = pair(Limits { rekey_frames, ..Limits::default() });
        let mut wire = Vec::new();
        for data in &writes {
            let (one, two) = data.split_at(data.len() / 3);
            prop_assert_eq!(a.seal(&[IoSlice::new(one), IoSlice::new(two)], BEGIN, &mut wire).unwrap(), data.len());
        }
        let (mut waiting, mut plain, mut rest) = (Vec::new(), Vec::new(), &wire[..]);
        for size in sizes.iter().cycle() {
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            rest = after;
            waiting.extend_from_slice(piece);
            loop {
                let (consumed, event) = one(&mut b, &mut waiting, BEGIN, &mut plain).unwrap();
                waiting.drain(..consumed);
                if event.is_none() {
                    break;
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(waiting.is_empty());
        prop_assert_eq!(plain, writes.concat());
    }

    /// Frames that are left out, repeated or moved: all before is read, nothing after.
    #[test]
    fn another_order_ends_it(order in proptest::collection::vec(0usize..6, 1..8)) {
        let (mut a, mut b) = pair(Limits::default());
        let frames: Vec<Vec<u8>> = (1..7u8).map(|n| sealed(&mut a, &[n; 5])).collect();
        for (place, number) in order.iter().enumerate() {
            let mut frame = frames[*number].clone();
            let done = b.open(&mut frame, BEGIN);
            if order[..=place].iter().enumerate().all(|(place, number)| place == *number) {
                prop_assert_eq!(done.unwrap().event, Some(Event::Data(3..8)));
                prop_assert_eq!(&frame[3..8], &[*number as u8 + 1; 5]);
            } else {
                prop_assert!(matches!(done, Err(SessionError::Frame)));
                prop_assert_ne!(&frame[3..8], &[*number as u8 + 1; 5]);
            }
        }
    }

    #[test]
    fn an_altered_byte_ends_it(at: prop::sample::Index, bits in 1u8.., cut: bool) {
        let (mut a, mut b) = pair(Limits::default());
        let mut wire = sealed(&mut a, b"some data");
        let at = at.index(wire.len());
        wire[at] ^= bits;
        if cut {
            wire.truncate(at);
        }
        // What is cut, or says that it is longer, waits for bytes that never come.
        match opened(&mut b, &wire) {
            Ok(plain) => prop_assert!(plain.is_empty()),
            Err(error) => prop_assert!(matches!(error, SessionError::Frame)),
        }
    }

    #[test]
    fn garbage_opens_nothing(wire in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let (_, mut b) = pair(Limits::default());
        prop_assert!(opened(&mut b, &wire).map_or(true, |plain| plain.is_empty()));
    }
}

#[test]
fn a_frame_holds_64_kib_and_no_more() {
    let (mut a, mut b) = pair(Limits::default());
    let data = vec![7; 3 * DATA_BYTES_MAX];
    let mut wire = Vec::new();
    assert_eq!(a.seal(&[IoSlice::new(&data)], BEGIN, &mut wire).unwrap(), DATA_BYTES_MAX);
    assert_eq!(wire.len(), 2 + 65_535);
    assert_eq!(opened(&mut b, &wire).unwrap(), data[..DATA_BYTES_MAX]);
    assert_eq!(a.seal(&[], BEGIN, &mut wire).unwrap(), 0);
    // Too short for a tag and a kind.
    for length in 0..=16u16 {
        let (_, mut b) = pair(Limits::default());
        assert!(matches!(b.open(&mut length.to_be_bytes(), BEGIN), Err(SessionError::Frame)));
    }
}

#[test]
fn after_an_error_nothing_is_opened_any_more() {
    let (mut a, mut b) = pair(Limits::default());
    let (first, second) = (sealed(&mut a, b"1"), sealed(&mut a, b"2"));
    assert!(opened(&mut b, &second).is_err());
    assert!(opened(&mut b, &first).is_err());
}

#[test]
fn keys_change_by_count_and_by_time() {
    let limits = Limits { rekey_frames: 10, rekey_interval: seconds(60), ..Limits::default() };
    let (mut a, mut b) = pair(limits);
    for _ in 0..100 {
        let wire = sealed(&mut a, b"x");
        assert_eq!(opened(&mut b, &wire).unwrap(), b"x");
    }
    // Nine of data, then the one that announces a key.
    assert_eq!(a.rekeys(), 11);
    let (mut a, mut b) = pair(Limits { rekey_interval: seconds(60), ..Limits::default() });
    for minute in 1..=5 {
        let mut wire = Vec::new();
        a.ping(seconds(60 * minute), &mut wire).unwrap();
        assert_eq!(b.open(&mut wire, BEGIN).unwrap().event, Some(Event::Rekeyed));
        assert_eq!(a.rekeys(), minute);
        a.ping(seconds(60 * minute + 1), &mut wire).unwrap();
        assert_eq!(a.rekeys(), minute);
        assert!(opened(&mut b, &wire[2 + 17..]).unwrap().is_empty());
    }
}

#[test]
fn a_farewell_is_the_last_that_is_said() {
    let (mut a, mut b) = pair(Limits::default());
    let mut wire = sealed(&mut a, b"last");
    a.close(3, &"é\n".repeat(400), BEGIN, &mut wire).unwrap();
    let whole = wire.len();
    a.close(0, "", BEGIN, &mut wire).unwrap();
    assert_eq!(wire.len(), whole);
    assert!(a.seal(&[IoSlice::new(b"more")], BEGIN, &mut wire).is_err());
    let consumed = b.open(&mut wire, BEGIN).unwrap().consumed;
    let Some(Event::Closed { code: 3, text }) = b.open(&mut wire[consumed..], BEGIN).unwrap().event else {
        panic!("no farewell");
    };
    assert!(text.chars().all(|c| !c.is_control()) && text.starts_with('é'));
    assert!(text.chars().count() <= CLOSE_TEXT_BYTES_MAX);
    // The other direction goes on, and shows that it does.
    assert_eq!(opened(&mut a, &sealed(&mut b, b"bye")).unwrap(), b"bye");
    assert_eq!((a.due(seconds(49)), b.due(seconds(100))), (Due::At(seconds(50)), Due::Ping));
}

#[test]
fn time_asks_for_pings_and_ends_silence() {
    let limits = Limits { keep_alive: seconds(15), idle_timeout: seconds(50), ..Limits::default() };
    let (mut a, mut b) = pair(limits);
    assert_eq!(a.due(BEGIN), Due::At(seconds(15)));
    assert_eq!(a.due(seconds(15)), Due::Ping);
    let mut wire = Vec::new();
    a.ping(seconds(15), &mut wire).unwrap();
    assert_eq!(a.due(seconds(15)), Due::At(seconds(30)));
    assert_eq!(b.open(&mut wire, seconds(16)).unwrap().event, Some(Event::Ping));
    assert_eq!(b.due(seconds(65)), Due::Ping);
    assert_eq!(b.due(seconds(66)), Due::Idle);
    assert_eq!(a.due(seconds(50)), Due::Idle);
}
