//! The access log: JSON lines of errors, slow calls and a sample of the rest. One thread writes them from a bounded queue;
//! what does not fit is counted and dropped, so that no call ever waits for the disk. It is told no credentials.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use buildnet_formats::NativeError;
use serde_json::{Map, Value, json};

use crate::describe::{self, TEXT_CHARS_MAX};
use crate::observe::{Ended, reason};

/// Lines that may wait for the thread.
const QUEUE_MAX: usize = 8192;
/// How long an end waits for a disk that does not take the last lines.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a quiet thread looks whether the file was renamed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How the log is kept.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// A file, or `-` for standard output.
    pub path: String,
    /// Calls that took longer are always told.
    pub slow: Duration,
    /// Share of the other calls that is told, from 0 to 1.
    pub sample: f64,
}

/// Why a call is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Error,
    Slow,
    Sample,
}

/// A call, and why it is told.
type Line = (Box<Ended>, Reason);

struct Shared {
    reopen: AtomicBool,
    written: AtomicU64,
    dropped: AtomicU64,
}

/// The queue's end that calls see.
pub(crate) struct AccessLog {
    slow: Duration,
    /// Below this a random number of 64 bits means that the call is told.
    share: u64,
    draws: AtomicU64,
    shared: Arc<Shared>,
    queue: Mutex<Option<SyncSender<Line>>>,
    /// Closed by the thread when it ends.
    ended: Mutex<Receiver<()>>,
}

impl AccessLog {
    /// Open the file and start the thread.
    ///
    /// # Errors
    /// `invalid_request` when the file cannot be opened, or the share is not one.
    pub(crate) fn start(options: &LogOptions) -> Result<Self, NativeError> {
        if !(0.0..=1.0).contains(&options.sample) {
            let message = format!("the sample must be from 0 to 1, not {}", options.sample);
            return Err(NativeError::invalid("access_log_sample", message));
        }
        let sink = Sink::open(&options.path).map_err(|error| {
            let message = format!("cannot write the access log {}: {error}; name another file", options.path);
            NativeError::invalid("access_log", message)
        })?;
        let shared =
            Arc::new(Shared { reopen: AtomicBool::new(false), written: AtomicU64::new(0), dropped: AtomicU64::new(0) });
        let (queue, lines) = sync_channel(QUEUE_MAX);
        let own = Arc::clone(&shared);
        let (alive, ended) = sync_channel(0);
        std::thread::Builder::new()
            .name("buildnet-log".to_owned())
            .spawn(move || {
                write_lines(sink, &lines, &own);
                drop(alive);
            })
            .map_err(|e| NativeError::internal(format!("no thread for the access log: {e}")))?;
        Ok(Self {
            slow: options.slow,
            // A share of 1 is every number there is.
            share: (options.sample * u64::MAX as f64) as u64,
            draws: AtomicU64::new(0),
            shared,
            queue: Mutex::new(Some(queue)),
            ended: Mutex::new(ended),
        })
    }

    /// Whether and why a call is told.
    pub(crate) fn wants(&self, took: Duration, error: bool) -> Option<Reason> {
        let drawn = || self.share > 0 && scramble(self.draws.fetch_add(1, Ordering::Relaxed)) <= self.share;
        reason(error, took >= self.slow, drawn())
    }

    pub(crate) fn tell(&self, call: Ended, why: Reason) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.as_ref().is_none_or(|queue| queue.try_send((Box::new(call), why)).is_err()) {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Open the file anew before the next line.
    pub(crate) fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Relaxed);
    }

    /// Lines written, and lines dropped because the queue was full or the disk refused them.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.shared.written.load(Ordering::Relaxed), self.shared.dropped.load(Ordering::Relaxed))
    }

    /// Write what waits, and end the thread; a disk that takes nothing is left after some seconds.
    pub(crate) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Nothing is ever sent: the answer is that the thread ended, or that it did not.
        let _ = self.ended.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(CLOSE_TIMEOUT);
    }
}

/// A number that looks random, from one that counts (the finaliser of SplitMix64).
fn scramble(count: u64) -> u64 {
    let mut z = count.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

enum Sink {
    Stdout,
    File { path: PathBuf, writer: BufWriter<File> },
}

impl Sink {
    fn open(path: &str) -> io::Result<Self> {
        if path == "-" {
            return Ok(Self::Stdout);
        }
        let path = PathBuf::from(path);
        Ok(Self::File { writer: BufWriter::new(open_file(&path)?), path })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().write_all(line),
            Self::File { writer, .. } => writer.write_all(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().flush(),
            Self::File { writer, .. } => writer.flush(),
        }
    }

    /// Open the file anew when it was asked for, renamed or removed; until that works the old one is written.
    fn follow(&mut self, asked: bool) {
        let Self::File { path, writer } = self else { return };
        let same = || -> io::Result<bool> {
            let (named, open) = (std::fs::metadata(&*path)?, writer.get_ref().metadata()?);
            Ok((named.dev(), named.ino()) == (open.dev(), open.ino()))
        };
        if !asked && same().unwrap_or(false) {
            return;
        }
        // What is buffered belongs to the old file; a new one that cannot be opened is tried again at the next line.
        if writer.flush().is_ok()
            && let Ok(file) = open_file(path)
        {
            *writer = BufWriter::new(file);
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o640).open(path)
}

fn write_lines(mut sink: Sink, lines: &Receiver<Line>, shared: &Shared) {
    loop {
        let first = match lines.recv_timeout(LOOK_EVERY) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        sink.follow(shared.reopen.swap(false, Ordering::Relaxed));
        let mut count = 0;
        let mut failed = 0;
        // One flush for what has gathered, so that a burst costs few system calls.
        for (call, why) in first.into_iter().chain(lines.try_iter().take(QUEUE_MAX)) {
            match sink.write(line_of(&call, why).as_bytes()) {
                Ok(()) => count += 1,
                Err(_) => failed += 1,
            }
        }
        if sink.flush().is_err() {
            (count, failed) = (0, failed + count);
        }
        shared.written.fetch_add(count, Ordering::Relaxed);
        shared.dropped.fetch_add(failed, Ordering::Relaxed);
    }
}

/// One line. Fields that are not known are left out.
fn line_of(call: &Ended, why: Reason) -> String {
    let facts = &call.facts;
    let about = describe::about(call);
    let mut line = Map::new();
    let mut text = |name: &str, value: &str| {
        if !value.is_empty() {
            line.insert(name.to_owned(), Value::String(plain(value)));
        }
    };
    text("time", &prost_types::Timestamp::from(facts.at).to_string());
    text("peer", &facts.peer);
    text("subject", facts.subject.as_deref().unwrap_or(""));
    text("method", &call.method);
    text("path", facts.path.as_deref().unwrap_or(""));
    text("instance", &about.instance);
    text("digest", &about.digest);
    if let Some(metadata) = facts.metadata.as_ref().and_then(describe::metadata) {
        let tool = metadata.tool_details.unwrap_or_default();
        text("tool", format!("{} {}", tool.tool_name, tool.tool_version).trim());
        text("invocation_id", &metadata.tool_invocation_id);
        text("correlated_id", &metadata.correlated_invocations_id);
        text("action_id", &metadata.action_id);
        text("mnemonic", &metadata.action_mnemonic);
        text("target", &metadata.target_id);
    }
    text("code", call.code);
    let word = match why {
        Reason::Error => "error",
        Reason::Slow => "slow",
        Reason::Sample => "sample",
    };
    text("why", word);
    line.insert("bytes_in".to_owned(), json!(call.received));
    line.insert("bytes_out".to_owned(), json!(call.sent));
    line.insert("duration_ms".to_owned(), json!((call.took.as_secs_f64() * 1e6).round() / 1e3));
    let mut text = Value::Object(line).to_string();
    text.push('\n');
    text
}

/// Text of a caller's, of bounded length and without what could steer a terminal or turn a line around.
fn plain(text: &str) -> String {
    let steers =
        |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    text.chars().take(TEXT_CHARS_MAX).map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::ended;
    use proptest::prelude::*;

    fn log(path: &Path, sample: f64) -> AccessLog {
        let options = LogOptions { path: path.display().to_string(), slow: Duration::from_millis(500), sample };
        AccessLog::start(&options).unwrap()
    }

    #[test]
    fn what_is_told_is_written_and_a_renamed_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = log(&path, 0.0);
        log.tell(ended("one"), Reason::Error);
        while log.counts().0 < 1 {
            std::thread::yield_now();
        }
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        log.tell(ended("two"), Reason::Slow);
        log.close();
        let lines = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        let old: Value = serde_json::from_str(lines("old").trim()).unwrap();
        let new: Value = serde_json::from_str(lines("log").trim()).unwrap();
        assert_eq!((old["path"].as_str(), old["why"].as_str()), (Some("one"), Some("error")));
        assert_eq!((new["path"].as_str(), new["why"].as_str()), (Some("two"), Some("slow")));
        log.tell(ended("late"), Reason::Slow);
        assert_eq!(log.counts(), (2, 1));
    }

    #[test]
    fn a_log_that_takes_nothing_holds_up_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a path that ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        // Whoever holds both ends of a pipe can open each without waiting for the other.
        let reader = File::options().read(true).write(true).open(&path).unwrap();
        let log = log(&path, 1.0);
        let lines = (QUEUE_MAX * 2) as u64;
        for _ in 0..lines {
            log.tell(ended(&"x".repeat(200)), Reason::Sample);
        }
        let dropped = log.counts().1;
        assert!(dropped > 0 && dropped < lines, "{dropped}");
        log.close();
        drop(reader);
    }

    #[test]
    fn errors_and_slow_calls_are_always_told_and_the_rest_by_its_share() {
        let directory = tempfile::tempdir().unwrap();
        let quick = Duration::from_millis(1);
        let none = log(&directory.path().join("a"), 0.0);
        assert_eq!(none.wants(quick, true), Some(Reason::Error));
        assert_eq!(none.wants(Duration::from_secs(1), false), Some(Reason::Slow));
        assert_eq!(none.wants(quick, false), None);
        let all = log(&directory.path().join("b"), 1.0);
        assert!((0..1000).all(|_| all.wants(quick, false) == Some(Reason::Sample)));
        let tenth = log(&directory.path().join("c"), 0.1);
        let told = (0..10_000).filter(|_| tenth.wants(quick, false).is_some()).count();
        assert!((800..1200).contains(&told), "{told}");
        let refused = LogOptions { path: "-".to_owned(), slow: quick, sample: 1.5 };
        assert!(AccessLog::start(&refused).is_err());
    }

    proptest! {
        #[test]
        fn no_text_leaves_its_line(text: String) {
            let line = line_of(&ended(&text), Reason::Sample);
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert!(!line.trim_end_matches('\n').contains(|c: char| c.is_control()));
            prop_assert!(serde_json::from_str::<Value>(&line).is_ok());
        }
    }
}
