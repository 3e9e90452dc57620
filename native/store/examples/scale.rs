//! One measurement of a store for bench/store_scale.py: `fill ROOT COUNT`, then `open ROOT COUNT`, then `hits ROOT COUNT`.
//! It prints JSON and judges nothing.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, NativeError};
use buildnet_store::{Draft, Options, Origin, Store};
use prost::Message;

const BLOB_BYTES: usize = 512;
const BATCH: u64 = 100;
const ASKED: u64 = 200_000;

fn content(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOB_BYTES / 8)
}

/// A walk over all numbers below `count` that meets no neighbour next.
fn scattered(step: u64, count: u64) -> u64 {
    step.wrapping_mul(0x9e37_79b9_7f4a_7c15) % count
}

/// What this thread has run so far: who shares the machine takes of the time on the wall, and hardly any of this.
fn ran() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call only writes to `time`; this clock is always there (clock_gettime(2)), and zeros stay if it were not.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn open(root: &Path) -> Result<Arc<Store>, NativeError> {
    Ok(Arc::new(Store::open(root, Options { free_bytes_min: 0, ..Options::default() })?))
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// What every action of these has: two files and a log, of three blobs that are there.
fn result(outputs: &[Digest]) -> Vec<u8> {
    let file = |path: &str, digest: &Digest| re::OutputFile {
        path: path.to_owned(),
        digest: Some(digest.to_message()),
        ..Default::default()
    };
    let result = re::ActionResult {
        output_files: vec![file("out/program", &outputs[0]), file("out/program.d", &outputs[1])],
        stdout_digest: Some(outputs[2].to_message()),
        ..Default::default()
    };
    result.encode_to_vec()
}

type Facts = Result<Vec<(&'static str, f64)>, NativeError>;

fn fill(root: &Path, count: u64) -> Facts {
    let store = open(root)?;
    let mut inserted_s = 0.0;
    for first in (0..count).step_by(BATCH as usize) {
        let data: Vec<Vec<u8>> = (first..count.min(first + BATCH)).map(content).collect();
        let batch: Vec<(Digest, &[u8])> = data.iter().map(|data| (Digest::of(data), data.as_slice())).collect();
        let began = ran();
        for answer in store.put_many(&batch) {
            answer?;
        }
        // Of the last tenth: what an insert costs in a store of this size.
        if first >= count - count / 10 {
            inserted_s += (ran() - began).as_secs_f64();
        }
    }
    Ok(vec![("inserts_per_s", (count / 10) as f64 / inserted_s)])
}

fn measure(root: &Path, count: u64) -> Facts {
    let before = resident_bytes();
    let began = Instant::now();
    let store = open(root)?;
    let opened_s = began.elapsed().as_secs_f64();
    let resident = resident_bytes();
    let digests: Vec<Digest> = (0..ASKED).map(|step| Digest::of(&content(scattered(step, count)))).collect();
    let began = ran();
    let mut missing = 0;
    for asked in digests.chunks(1000) {
        missing += store.find_missing(asked)?.len();
    }
    let asked_s = (ran() - began).as_secs_f64();
    let reads = &digests[..20_000];
    let began = ran();
    for digest in reads {
        store.get_bytes(digest, 1 << 20)?;
    }
    let read_s = (ran() - began).as_secs_f64();
    Ok(vec![
        ("opened_s", opened_s),
        ("resident_bytes", resident as f64),
        ("resident_before_bytes", before as f64),
        ("missing", missing as f64),
        ("lookups_per_s", ASKED as f64 / asked_s),
        ("reads_per_s", reads.len() as f64 / read_s),
    ])
}

/// Put a result for each of `count` actions, and ask for any of them: what a store that was just filled costs a hit.
fn hits(root: &Path, count: u64) -> Facts {
    let store = open(root)?;
    let outputs: Vec<Digest> = (0..3).map(|number| Digest::of(&content(number))).collect();
    let value = bytes::Bytes::from(result(&outputs));
    for first in (0..count).step_by(BATCH as usize) {
        let drafts = (first..count.min(first + BATCH))
            .map(|number| Ok((Draft::action("", &Digest::of(&content(number)), value.clone())?, Origin::Client(None))))
            .collect::<Result<Vec<_>, NativeError>>()?;
        store.put_drafts(drafts)?;
    }
    let actions: Vec<Digest> = (0..ASKED).map(|step| Digest::of(&content(scattered(step, count)))).collect();
    let began = ran();
    let mut missing = 0;
    for action in &actions {
        missing += usize::from(store.get_action_result("", action)?.is_none());
    }
    let hit_s = (ran() - began).as_secs_f64();
    Ok(vec![("missing", missing as f64), ("hits_per_s", ASKED as f64 / hit_s)])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, what, root, count] = arguments.as_slice() else { return Err("fill|open|hits ROOT COUNT".into()) };
    let count = count.parse()?;
    let facts = match what.as_str() {
        "fill" => fill(Path::new(root), count)?,
        "hits" => hits(Path::new(root), count)?,
        _ => measure(Path::new(root), count)?,
    };
    let facts: Vec<String> = facts.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    writeln!(std::io::stdout(), "{{{}}}", facts.join(","))?;
    Ok(())
}
