//! Two ends meet, or learn why not: over every split of the bytes, and with every byte altered.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use buildnet_session::{
    Context, Event, Frames, Handshake, Identity, Limits, Pattern, Peer, Refusal, Remote, SessionError, TOKEN_BYTES_MAX,
};
use proptest::prelude::*;

const NOW_UNIX_S: u64 = 1_800_000_000;
const BEGIN: Duration = Duration::ZERO;

fn node(n: u8) -> Arc<Identity> {
    Arc::new(Identity::new(&[n; 32], &[n ^ 0xff; 32]).unwrap())
}

fn context() -> Context {
    Context { organisation: "team".to_owned(), term: 7 }
}

fn known(of: &Identity) -> Remote {
    Remote { node_key: of.node_key(), session_key: Some(of.session_key()) }
}

fn unknown(of: &Identity) -> Remote {
    Remote { node_key: of.node_key(), session_key: None }
}

/// Feed all of `bytes` in pieces of these sizes, over and over.
fn feed(end: &mut Handshake, bytes: &[u8], sizes: &[usize]) -> Result<Vec<u8>, SessionError> {
    let mut waiting = Vec::new();
    let mut rest = bytes;
    for size in sizes.iter().cycle() {
        let (piece, after) = rest.split_at((*size).min(rest.len()));
        rest = after;
        waiting.extend_from_slice(piece);
        let taken = end.feed(&waiting)?;
        waiting.drain(..taken);
        if rest.is_empty() {
            return Ok(waiting);
        }
    }
    unreachable!("the sizes cycle");
}

type Ends = ((Peer, Frames), (Peer, Frames));

fn meet(mut one: Handshake, mut two: Handshake, sizes: &[usize]) -> Result<Ends, SessionError> {
    for _ in 0..3 {
        let left = feed(&mut two, &one.take_output(), sizes)?;
        assert!(left.is_empty());
        let left = feed(&mut one, &two.take_output(), sizes)?;
        assert!(left.is_empty());
    }
    assert!(one.is_finished() && two.is_finished());
    Ok((one.finish(Limits::default(), BEGIN)?, two.finish(Limits::default(), BEGIN)?))
}

fn dial(remote: &Remote, context: &Context, token: &[u8]) -> Handshake {
    Handshake::initiator(&node(1), remote, context, token, NOW_UNIX_S).unwrap()
}

fn answer(context: &Context) -> Handshake {
    Handshake::responder(&node(2), context, NOW_UNIX_S).unwrap()
}

fn assert_heard(from: &mut Frames, to: &mut Frames) {
    let mut wire = Vec::new();
    from.seal(&[std::io::IoSlice::new(b"hello")], BEGIN, &mut wire).unwrap();
    let Some(Event::Data(place)) = to.open(&mut wire, BEGIN).unwrap().event else { panic!("no data") };
    assert_eq!(&wire[place], b"hello");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn both_learn_each_others_key_however_the_bytes_come(
        sizes in proptest::collection::vec(1usize..200, 1..6),
        is_known: bool,
        token in proptest::collection::vec(any::<u8>(), 0..TOKEN_BYTES_MAX),
    ) {
        let two = node(2);
        let remote = if is_known { known(&two) } else { unknown(&two) };
        let ((peer_of_one, mut one), (peer_of_two, mut two)) =
            meet(dial(&remote, &context(), &token), answer(&context()), &sizes).unwrap();
        // A token needs a message that nobody can repeat.
        let pattern = if is_known && token.is_empty() { Pattern::Ik } else { Pattern::Xx };
        prop_assert_eq!(peer_of_one.pattern, pattern);
        prop_assert_eq!(peer_of_two.pattern, pattern);
        prop_assert_eq!(peer_of_one.node_key, node(2).node_key());
        prop_assert_eq!(peer_of_one.session_key, node(2).session_key());
        prop_assert_eq!(peer_of_two.node_key, node(1).node_key());
        prop_assert_eq!(peer_of_two.session_key, node(1).session_key());
        prop_assert_eq!(peer_of_one.handshake_hash, peer_of_two.handshake_hash);
        prop_assert_eq!(peer_of_two.token.map(|t| t.to_vec()), Some(token).filter(|t| !t.is_empty()));
        assert_heard(&mut one, &mut two);
        assert_heard(&mut two, &mut one);
    }

    /// No byte of a handshake can be another: whatever is altered, no end is left that believes.
    #[test]
    fn an_altered_byte_ends_it(is_known: bool, message in 0usize..3, at: prop::sample::Index, bits in 1u8..) {
        let remote = if is_known { known(&node(2)) } else { unknown(&node(2)) };
        let token: &[u8] = if is_known { b"" } else { b"token" };
        let (mut one, mut two) = (dial(&remote, &context(), token), answer(&context()));
        let mut is_altered = false;
        for number in 0..3 {
            let (from, to) = if number % 2 == 0 { (&mut one, &mut two) } else { (&mut two, &mut one) };
            let mut bytes = from.take_output();
            if number == message && !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
                is_altered = true;
            }
            if to.feed(&bytes).is_err() {
                prop_assert!(is_altered && !to.is_finished());
                prop_assert!(to.feed(&bytes).is_err(), "it goes on after an error");
                return Ok(());
            }
        }
        // A length that grew leaves the end waiting for bytes that never come.
        prop_assert!(!(is_altered && one.is_finished() && two.is_finished()), "an altered message {message} was believed");
    }

    #[test]
    fn garbage_is_refused_and_breaks_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..2048), begins_well: bool) {
        let mut bytes = bytes;
        if begins_well {
            let start = dial(&known(&node(2)), &context(), b"").take_output();
            bytes.splice(0..0, start[..20].iter().copied());
        }
        for mut end in [answer(&context()), dial(&known(&node(2)), &context(), b"")] {
            let _ = end.take_output();
            prop_assert!(end.feed(&bytes).is_err() || !end.is_finished());
        }
    }
}

#[test]
fn what_is_no_session_is_known_by_its_first_bytes_and_gets_no_answer() {
    for bytes in [&b"G"[..], b"PRI", b"\x16\x03", &[0xb5, b'B', b'X']] {
        let mut end = answer(&context());
        assert!(matches!(end.feed(bytes), Err(SessionError::NotASession)), "{bytes:?}");
        assert!(end.take_output().is_empty());
    }
    let mut end = answer(&context());
    assert_eq!(end.feed(&buildnet_session::MAGIC).unwrap(), 6);
}

#[test]
fn another_key_than_the_one_dialled_is_refused() {
    // The session key is another's: nobody can open the first message.
    let remote = Remote { node_key: node(2).node_key(), session_key: Some(node(3).session_key()) };
    let (mut one, mut two) = (dial(&remote, &context(), b""), answer(&context()));
    assert!(matches!(two.feed(&one.take_output()), Err(SessionError::Handshake)));
    let refusal = two.take_output();
    assert!(matches!(one.feed(&refusal), Err(SessionError::Refused(Refusal::Handshake))));
    // The node key is another's, in both patterns: the dialler sees who answered, and shows no token.
    for session_key in [None, Some(node(2).session_key())] {
        let remote = Remote { node_key: node(3).node_key(), session_key };
        let token: &[u8] = if session_key.is_none() { b"token" } else { b"" };
        let (mut one, mut two) = (dial(&remote, &context(), token), answer(&context()));
        two.feed(&one.take_output()).unwrap();
        let error = one.feed(&two.take_output()).unwrap_err();
        assert!(matches!(error, SessionError::WrongPeer { found, .. } if found == node(2).node_key()));
        assert!(one.take_output().is_empty());
    }
}

#[test]
fn another_organisation_or_term_is_refused() {
    let other = Context { organisation: "teams".to_owned(), ..context() };
    for remote in [known(&node(2)), unknown(&node(2))] {
        assert!(meet(dial(&remote, &other, b""), answer(&context()), &[4096]).is_err());
    }
    for term in [6, 8] {
        let other = Context { term, ..context() };
        let (mut one, mut two) = (dial(&known(&node(2)), &other, b""), answer(&context()));
        let refused = two.feed(&one.take_output()).unwrap_err();
        assert!(matches!(refused, SessionError::Term { ours: 7, theirs } if theirs == term));
        let told = one.feed(&two.take_output()).unwrap_err();
        assert!(matches!(told, SessionError::Term { ours, theirs: 7 } if ours == term));
    }
}

#[test]
fn another_version_or_pattern_is_told() {
    let start = dial(&known(&node(2)), &context(), b"").take_output();
    for (at, value, expected) in [(6, 2, Refusal::Version), (7, 9, Refusal::Pattern)] {
        let mut bytes = start.clone();
        bytes[at] = value;
        let mut two = answer(&context());
        assert!(two.feed(&bytes).is_err());
        let mut one = dial(&known(&node(2)), &context(), b"");
        let told = one.feed(&two.take_output()).unwrap_err();
        assert!(matches!(told, SessionError::Refused(refusal) if refusal == expected), "{told}");
    }
}

#[test]
fn a_certificate_ends_with_its_day() {
    for skew_s in [-100_000i64, 100_000] {
        let now = NOW_UNIX_S.checked_add_signed(skew_s).unwrap();
        let two = Handshake::responder(&node(2), &context(), now).unwrap();
        let error = meet(dial(&known(&node(2)), &context(), b""), two, &[4096]).unwrap_err();
        assert!(error.to_string().contains("set the clocks"), "{error}");
    }
}

#[test]
fn a_repeated_handshake_is_answered_but_not_believed() {
    let mut one = dial(&known(&node(2)), &context(), b"");
    let (hello, mut first, mut again) = (one.take_output(), answer(&context()), answer(&context()));
    first.feed(&hello).unwrap();
    one.feed(&first.take_output()).unwrap();
    let (_, mut frames) = one.finish(Limits::default(), BEGIN).unwrap();
    let mut proof = Vec::new();
    frames.ping(BEGIN, &mut proof).unwrap();

    let (_, mut real) = first.finish(Limits::default(), BEGIN).unwrap();
    assert!(!real.is_confirmed());
    real.open(&mut proof.clone(), BEGIN).unwrap();
    assert!(real.is_confirmed());

    again.feed(&hello).unwrap();
    let (_, mut repeated) = again.finish(Limits::default(), BEGIN).unwrap();
    assert!(matches!(repeated.open(&mut proof, BEGIN), Err(SessionError::Frame)));
    assert!(!repeated.is_confirmed());
}

#[test]
fn a_repeated_introduction_shows_no_token_twice() {
    let (mut one, mut two) = (dial(&unknown(&node(2)), &context(), b"token"), answer(&context()));
    let hello = one.take_output();
    two.feed(&hello).unwrap();
    one.feed(&two.take_output()).unwrap();
    let proof = one.take_output();
    two.feed(&proof).unwrap();
    let (peer, _) = two.finish(Limits::default(), BEGIN).unwrap();
    assert_eq!(peer.token.as_deref().map(Vec::as_slice), Some(&b"token"[..]));
    let mut again = answer(&context());
    again.feed(&hello).unwrap();
    assert!(matches!(again.feed(&proof), Err(SessionError::Handshake)));
}

#[test]
fn too_long_is_refused_before_anything_is_sent() {
    let long = Context { organisation: "x".repeat(256), term: 0 };
    assert!(Handshake::responder(&node(2), &long, NOW_UNIX_S).is_err());
    let token = vec![1; TOKEN_BYTES_MAX + 1];
    assert!(Handshake::initiator(&node(1), &unknown(&node(2)), &context(), &token, NOW_UNIX_S).is_err());
    // A message of the handshake that says that it is longer than any.
    let mut bytes = dial(&known(&node(2)), &context(), b"").take_output();
    bytes[16..18].copy_from_slice(&[0xff, 0xff]);
    assert!(matches!(answer(&context()).feed(&bytes), Err(SessionError::Oversize(65_535))));
}

#[test]
fn nothing_of_a_secret_is_shown() {
    let (mut one, mut two) = (dial(&unknown(&node(2)), &context(), b"sesame"), answer(&context()));
    two.feed(&one.take_output()).unwrap();
    one.feed(&two.take_output()).unwrap();
    two.feed(&one.take_output()).unwrap();
    let shown = format!("{one:?} {two:?}");
    let (peer, frames) = two.finish(Limits::default(), BEGIN).unwrap();
    let shown = format!("{shown} {peer:?} {frames:?}");
    assert!(!shown.contains("sesame") && !shown.contains("115, 101, 115"), "{shown}");
}
