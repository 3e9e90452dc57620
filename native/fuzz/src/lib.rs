//! Inputs for every parser of outside bytes: what is committed under `corpus/`, and what mutation makes of it for as long
//! as `BUILDNET_FUZZ_S` says. It judges nothing; each target in `tests/` says what must hold.
//!
//! Mutation is blind: it is told nothing of the paths that an input takes. What a found failure shrank to belongs into
//! the corpus, where every later run begins.

use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

const SECONDS_DEFAULT: u64 = 2;
/// Inputs between two looks at the clock.
const CASES_AT_ONCE: u32 = 8;
/// Bytes with which lengths, signs, varints and terminators go wrong.
const EDGES: &[&[u8]] = &[
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"/",
    b"//",
    b"..",
    b"%",
    b"%00",
    b" ",
    b"\n",
    b"\r\n",
    b"-1",
    b"9223372036854775808",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xff\xff\xff\x7f",
    "\u{202e}é".as_bytes(),
];

/// One change to an input.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    Edge(Index, usize),
    Cut(Index, Index),
    Repeat(Index, Index),
    Truncate(Index),
    Splice(Index, Index),
    Insert(Index, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (any::<Index>(), 1u8..).prop_map(|(at, bits)| Change::Flip(at, bits)),
        3 => (any::<Index>(), 0..EDGES.len()).prop_map(|(at, edge)| Change::Edge(at, edge)),
        2 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Change::Cut(a, b)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Change::Repeat(a, b)),
        1 => any::<Index>().prop_map(Change::Truncate),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(other, at)| Change::Splice(other, at)),
        1 => (any::<Index>(), proptest::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, b)| Change::Insert(at, b)),
    ]
}

fn apply(input: &mut Vec<u8>, change: &Change, corpus: &[Vec<u8>]) {
    let place = |index: &Index| index.index(input.len() + 1);
    let range = |a: &Index, b: &Index| {
        let (a, b) = (place(a), place(b));
        a.min(b)..a.max(b)
    };
    match change {
        Change::Flip(at, bits) if !input.is_empty() => {
            let at = at.index(input.len());
            input[at] ^= bits;
        }
        Change::Flip(..) => {}
        Change::Edge(at, edge) => {
            let at = place(at);
            input.splice(at..at, EDGES[*edge].iter().copied());
        }
        Change::Cut(a, b) => drop(input.drain(range(a, b))),
        Change::Repeat(a, b) => {
            let range = range(a, b);
            let again = input[range.clone()].to_vec();
            input.splice(range.end..range.end, again);
        }
        Change::Truncate(at) => input.truncate(place(at)),
        Change::Splice(other, at) => {
            let other = other.get(corpus);
            let at = place(at);
            input.truncate(at);
            input.extend_from_slice(&other[at.min(other.len())..]);
        }
        Change::Insert(at, bytes) => {
            let at = place(at);
            input.splice(at..at, bytes.iter().copied());
        }
    }
}

/// The committed inputs of a target, by name.
///
/// # Panics
/// When there are none: a target without a corpus tries next to nothing.
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    paths.sort();
    let inputs: Vec<Vec<u8>> = paths.iter().filter_map(|path| std::fs::read(path).ok()).collect();
    assert!(!inputs.is_empty(), "{} holds no input", directory.display());
    inputs
}

/// Try every input of `seeds` as it is, and then mutations of them until the time is over; `try_one` panics, or says what
/// went wrong, for an input that breaks a promise.
///
/// # Panics
/// With the smallest input found that breaks a promise.
pub fn fuzz(seeds: &[Vec<u8>], try_one: impl Fn(&[u8]) -> Result<(), String>) {
    for seed in seeds {
        if let Err(what) = try_one(seed) {
            panic!("{what}: {}", String::from_utf8_lossy(seed));
        }
    }
    let seconds = std::env::var("BUILDNET_FUZZ_S").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS_DEFAULT);
    let end = Instant::now() + Duration::from_secs(seconds);
    let config = Config { cases: CASES_AT_ONCE, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let seeds = seeds.to_vec();
    let chosen = seeds.clone();
    let inputs = (any::<Index>(), proptest::collection::vec(change(), 1..6)).prop_map(move |(seed, changes)| {
        let mut input = seed.get(&chosen).clone();
        changes.iter().for_each(|change| apply(&mut input, change, &chosen));
        input
    });
    let mut tried = 0;
    while Instant::now() < end {
        let done = runner.run(&inputs, |input| try_one(&input).map_err(TestCaseError::fail));
        if let Err(error) = done {
            panic!("{error}");
        }
        tried += CASES_AT_ONCE;
    }
    assert!(tried > 0, "no time was given");
}
