//! What strangers say where a session begins: refused, or the beginning of one that proves its peer; never a panic, and
//! never more held than a greeting.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use buildnet_fuzz::{corpus, fuzz};
use buildnet_session::{
    CARRIED_BYTES_MAX, Context, Frames, Handshake, Identity, Limits, Remote, SessionError, next_frame,
};
use bytes::BytesMut;

/// The committed inputs were made for these.
const NOW_UNIX_S: u64 = 1_800_000_000;

fn node(n: u8) -> Arc<Identity> {
    Arc::new(Identity::new(&[n; 32], &[n ^ 0xff; 32]).unwrap())
}

fn context() -> Context {
    Context { organisation: "team".to_owned(), term: 7 }
}

/// Feed everything in two pieces; what the end answered, and whether it still waits.
fn feed(end: &mut Handshake, input: &[u8]) -> Result<usize, SessionError> {
    let half = input.len() / 2;
    let mut taken = end.feed(&input[..half])?;
    if taken == half {
        taken += end.feed(&input[half..])?;
    }
    Ok(taken)
}

fn open_all(frames: &mut Frames, input: &[u8]) -> Result<(), String> {
    let (mut input, mut at) = (input.to_vec(), 0);
    while let Ok(opened) = frames.open(&mut input[at..], Duration::ZERO) {
        if opened.event.is_none() {
            break;
        }
        at += opened.consumed;
    }
    if frames.is_confirmed() { Err("bytes that nobody sealed were believed".to_owned()) } else { Ok(()) }
}

/// A responder holds no secret of the initiator's, so nothing recorded or made up may confirm one.
#[test]
fn a_door_believes_no_stranger() {
    fuzz(&corpus("sessions"), |input| {
        let mut end = Handshake::responder(&node(2), &context(), NOW_UNIX_S).map_err(|e| e.to_string())?;
        let done = feed(&mut end, input);
        let answer = end.take_output();
        if answer.len() > 1200 {
            return Err(format!("an answer of {} bytes", answer.len()));
        }
        match done {
            Err(SessionError::NotASession) if !answer.is_empty() => Err("an answer to what is no session".to_owned()),
            Err(_) => match end.feed(input) {
                Ok(_) => Err("it goes on after an error".to_owned()),
                Err(_) => Ok(()),
            },
            Ok(taken) if end.is_finished() => {
                let (_, mut frames) = end.finish(Limits::default(), Duration::ZERO).map_err(|e| e.to_string())?;
                open_all(&mut frames, &input[taken..])
            }
            Ok(taken) if taken < input.len() => Err(format!("{} bytes were left", input.len() - taken)),
            Ok(_) => Ok(()),
        }
    });
}

/// Nor may a dialler be talked into a session by who holds no key.
#[test]
fn a_dialler_believes_no_stranger() {
    let remote = Remote { node_key: node(2).node_key(), session_key: Some(node(2).session_key()) };
    let unknown = Remote { session_key: None, ..remote };
    fuzz(&corpus("session_answers"), |input| {
        for remote in [&remote, &unknown] {
            let end = Handshake::initiator(&node(1), remote, &context(), b"", NOW_UNIX_S);
            let mut end = end.map_err(|e| e.to_string())?;
            drop(end.take_output());
            let _ = feed(&mut end, input);
            if end.is_finished() {
                return Err("a session with nobody".to_owned());
            }
        }
        Ok(())
    });
}

/// Messages that carry a session are taken one by one, each within its bound, or refused for good.
#[test]
fn what_carries_a_session_is_taken_whole_or_refused() {
    fuzz(&corpus("carried"), |input| {
        let (mut came, mut taken) = (BytesMut::new(), 0);
        for piece in input.chunks(input.len() / 3 + 1) {
            came.extend_from_slice(piece);
            loop {
                let before = came.len();
                match next_frame(&mut came) {
                    Ok(None) if came.len() == before => break,
                    Ok(Some(frame)) if (1..=CARRIED_BYTES_MAX).contains(&frame.len()) => taken += before - came.len(),
                    Err(SessionError::Oversize(_) | SessionError::Protocol(_)) => return Ok(()),
                    other => return Err(format!("{other:?} of {before} bytes")),
                }
            }
        }
        if taken + came.len() == input.len() { Ok(()) } else { Err("bytes were lost".to_owned()) }
    });
}
