//! The command line. A word that is not known, or a number out of its range, is refused with the usage.

/// What is shown when the command line is not understood.
pub const USAGE: &str = "\
buildnet-load floor [--listen HOST:PORT] [--threads N]
buildnet-load run --url grpc://HOST:PORT --call CALL [--instance NAME] [--seconds S] [--warmup S] [--calls N]
    [--connections N] [--streams N] [--serial] [--digests N] [--present all|half] [--size BYTES] [--pid PID] [--json]
    [--family F] [--stored N]
calls: get-action-result-hit get-action-result-miss update-action-result find-missing batch-update batch-read
    execute execute-hit write-small read-small write-large read-large
--streams is how many calls are under way at once, over all connections. What update-action-result and batch-update put is
of a family that is new in each run, or F, numbered from 0; get-action-result-hit and find-missing ask for a few of their own,
or, at random, for the first N of family F, which must be there.";

/// Those below are what every run puts or never puts.
const FAMILY_MIN: u64 = 16;
const LARGE_BYTES: usize = 64 << 20;
const SMALL_BYTES: usize = 16 << 10;
const BATCHED_BYTES: usize = 4 << 10;
const BLOB_BYTES_MAX: usize = 1 << 30;

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Serve constants.
    Floor(FloorOptions),
    /// Load a server.
    Run(RunOptions),
}

/// Where the floor listens.
#[derive(Debug)]
pub struct FloorOptions {
    /// `HOST:PORT`.
    pub listen: String,
    /// Network threads.
    pub threads: usize,
}

/// The call that is made over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// GetActionResult of an entry that is there.
    ResultHit,
    /// GetActionResult of an entry that is not.
    ResultMiss,
    /// UpdateActionResult, a new action each.
    ResultUpdate,
    /// Execute of an action whose result is there.
    ExecuteHit,
    /// FindMissingBlobs.
    FindMissing,
    /// BatchUpdateBlobs, ten new blobs each.
    BatchUpdate,
    /// BatchReadBlobs, ten blobs each.
    BatchRead,
    /// ByteStream.Write of a new blob.
    Write,
    /// ByteStream.Read.
    Read,
    /// Execute of a new action that does nothing; its blobs are uploaded before its time runs.
    Execute,
}

/// One run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// `HOST:PORT` of the server.
    pub address: String,
    /// Instance name; empty for none.
    pub instance: String,
    /// The call as it was named.
    pub name: String,
    /// The call.
    pub call: Call,
    /// Timed seconds.
    pub seconds: f64,
    /// Seconds before, not counted.
    pub warmup_s: f64,
    /// End after so many calls at the latest.
    pub calls_max: u64,
    /// Connections.
    pub connections: usize,
    /// Calls under way at once, over all connections.
    pub streams: usize,
    /// Digests in one FindMissingBlobs.
    pub digests: usize,
    /// Whether half of them are missing.
    pub half: bool,
    /// Bytes of one blob.
    pub size_bytes: usize,
    /// The family of what is new, or of what is asked for; a new one if none.
    pub family: Option<u64>,
    /// How many of that family an earlier run has put.
    pub stored: Option<u64>,
    /// Whose CPU and memory to count, with its children.
    pub pid: Option<u32>,
    /// Print JSON.
    pub json: bool,
}

/// Read the command line.
///
/// # Errors
/// What is wrong, and the usage.
pub fn parse(words: &[String]) -> Result<Command, String> {
    let (command, rest) = words.split_first().ok_or_else(|| USAGE.to_owned())?;
    let parsed = match command.as_str() {
        "floor" => floor(rest).map(Command::Floor),
        "run" => run(rest).map(Command::Run),
        _ => Err(format!("{command} is not a command")),
    };
    parsed.map_err(|text| format!("{text}\n{USAGE}"))
}

fn floor(words: &[String]) -> Result<FloorOptions, String> {
    let mut options = FloorOptions { listen: "127.0.0.1:0".to_owned(), threads: 1 };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--listen" => options.listen.clone_from(value(word, &mut words)?),
            "--threads" => options.threads = number(word, &mut words, 1, 256)?,
            _ => return Err(format!("{word} is not an option of floor")),
        }
    }
    Ok(options)
}

fn run(words: &[String]) -> Result<RunOptions, String> {
    let mut size_bytes = None;
    let mut options = RunOptions {
        address: String::new(),
        instance: String::new(),
        name: String::new(),
        call: Call::ResultHit,
        seconds: 3.0,
        warmup_s: 0.3,
        calls_max: u64::MAX,
        connections: 4,
        streams: 64,
        digests: 10,
        half: false,
        size_bytes: 0,
        family: None,
        stored: None,
        pid: None,
        json: false,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--url" => {
                let url = value(word, &mut words)?;
                let address = url.strip_prefix("grpc://").unwrap_or(url).trim_end_matches('/');
                address.clone_into(&mut options.address);
            }
            "--call" => value(word, &mut words)?.clone_into(&mut options.name),
            "--instance" => value(word, &mut words)?.clone_into(&mut options.instance),
            "--seconds" => options.seconds = number(word, &mut words, 0.01, 3600.0)?,
            "--warmup" => options.warmup_s = number(word, &mut words, 0.0, 60.0)?,
            "--calls" => options.calls_max = number(word, &mut words, 1, u64::MAX)?,
            "--connections" => options.connections = number(word, &mut words, 1, 1024)?,
            "--streams" => options.streams = number(word, &mut words, 1, 65536)?,
            "--serial" => (options.connections, options.streams) = (1, 1),
            "--digests" => options.digests = number(word, &mut words, 1, 20_000)?,
            "--present" => options.half = half(value(word, &mut words)?)?,
            "--size" => size_bytes = Some(number(word, &mut words, 64, BLOB_BYTES_MAX)?),
            "--family" => options.family = Some(number(word, &mut words, FAMILY_MIN, u64::MAX)?),
            "--stored" => options.stored = Some(number(word, &mut words, 1, u64::MAX)?),
            "--pid" => options.pid = Some(number(word, &mut words, 1, u32::MAX)?),
            "--json" => options.json = true,
            _ => return Err(format!("{word} is not an option of run")),
        }
    }
    if options.address.is_empty() {
        return Err("--url is needed".to_owned());
    }
    if options.stored.is_some() && options.family.is_none() {
        return Err("--stored needs --family: whose first N are asked for".to_owned());
    }
    let (call, default_bytes) = call_of(&options.name)?;
    options.call = call;
    options.size_bytes = size_bytes.unwrap_or(default_bytes);
    Ok(options)
}

fn half(word: &str) -> Result<bool, String> {
    match word {
        "all" => Ok(false),
        "half" => Ok(true),
        _ => Err(format!("--present is all or half, not {word}")),
    }
}

fn call_of(name: &str) -> Result<(Call, usize), String> {
    Ok(match name {
        "get-action-result-hit" => (Call::ResultHit, BATCHED_BYTES),
        "get-action-result-miss" => (Call::ResultMiss, BATCHED_BYTES),
        "update-action-result" => (Call::ResultUpdate, BATCHED_BYTES),
        "execute-hit" => (Call::ExecuteHit, BATCHED_BYTES),
        "find-missing" => (Call::FindMissing, 64),
        "batch-update" => (Call::BatchUpdate, BATCHED_BYTES),
        "batch-read" => (Call::BatchRead, BATCHED_BYTES),
        "write-small" => (Call::Write, SMALL_BYTES),
        "read-small" => (Call::Read, SMALL_BYTES),
        "write-large" => (Call::Write, LARGE_BYTES),
        "read-large" => (Call::Read, LARGE_BYTES),
        "execute" => (Call::Execute, 64),
        "" => return Err("--call is needed".to_owned()),
        _ => return Err(format!("{name} is not a call")),
    })
}

fn value<'a>(option: &str, words: &mut std::slice::Iter<'a, String>) -> Result<&'a String, String> {
    words.next().ok_or_else(|| format!("{option} needs a value"))
}

fn number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
    option: &str,
    words: &mut std::slice::Iter<'_, String>,
    least: T,
    most: T,
) -> Result<T, String> {
    let word = value(option, words)?;
    let parsed: T = word.parse().map_err(|_| format!("{option}: {word} is not a number"))?;
    if parsed < least || parsed > most {
        return Err(format!("{option} is {least} to {most}, not {word}"));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_run_is_read_whole() {
        let parsed = parse(&words("run --url grpc://h:1 --call write-large --streams 4 --pid 7 --json")).unwrap();
        let Command::Run(options) = parsed else { panic!("not a run") };
        assert_eq!((options.address.as_str(), options.call, options.streams), ("h:1", Call::Write, 4));
        assert_eq!((options.size_bytes, options.pid, options.json), (LARGE_BYTES, Some(7), true));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for line in [
            "",
            "run",
            "run --url grpc://h:1",
            "run --url h:1 --call none",
            "floor --no",
            "run --streams x",
            "run --url h:1 --call find-missing --stored 9",
        ] {
            assert!(parse(&words(line)).unwrap_err().contains("buildnet-load run"));
        }
    }

    proptest! {
        #[test]
        fn any_words_are_answered(words in proptest::collection::vec(".{0,12}", 0..8)) {
            let _ = parse(&words);
        }
    }
}
