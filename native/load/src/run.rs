//! The closed loop: so many calls are under way at once, each followed by the next. A loop ends, whatever the server does.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::task::{JoinSet, LocalSet};

use crate::arguments::RunOptions;
use crate::connection::{self, Connection, Failure};
use crate::content::splitmix;
use crate::histogram::Histogram;
use crate::process;
use crate::report::{self, Report};
use crate::work::Work;

/// A server that has not answered by then will not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const FAILURES_KEPT: usize = 3;

/// What was counted.
pub struct Tally {
    /// Nanoseconds of each right answer.
    pub latency: Histogram,
    /// Calls that failed.
    pub errors: u64,
    /// Answers that were not right.
    pub wrong: u64,
    /// The first failures, in words.
    pub texts: Vec<String>,
    calls_left: u64,
}

/// Load the server and print what was seen; whether every answer was right.
///
/// # Errors
/// The server cannot be reached, or refuses what the run needs.
pub fn run(options: &RunOptions) -> Result<bool, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let report = LocalSet::new().block_on(&runtime, measure(options))?;
    report::print(options, &report)?;
    Ok(report.tally.errors == 0 && report.tally.wrong == 0 && report.tally.latency.total() > 0)
}

async fn measure(options: &RunOptions) -> Result<Report, String> {
    let count = options.connections.min(options.streams);
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(connection::connect(&options.address).await?);
    }
    let work = Rc::new(Work::prepare(options, &mut connections[0], options.family.unwrap_or_else(seed)).await?);
    let warmup = drive(&work, &connections, options.streams, options.warmup_s, u64::MAX).await;
    if warmup.errors + warmup.wrong > 0 {
        return Err(format!("before time ran: {}", warmup.texts.join("; ")));
    }
    let own = [std::process::id()];
    let pids = options.pid.map(process::tree).unwrap_or_default();
    let (server_us, own_us) = (process::cpu_us(&pids), process::cpu_us(&own));
    let started = Instant::now();
    let tally = drive(&work, &connections, options.streams, options.seconds, options.calls_max).await;
    Ok(Report {
        elapsed_s: started.elapsed().as_secs_f64(),
        server_cpu_us: process::cpu_us(&pids).saturating_sub(server_us),
        own_cpu_us: process::cpu_us(&own).saturating_sub(own_us),
        memory: process::memory(&options.pid.map(process::tree).unwrap_or_default()),
        tally,
    })
}

async fn drive(work: &Rc<Work>, connections: &[Connection], streams: usize, seconds: f64, calls_max: u64) -> Tally {
    let tally = Rc::new(RefCell::new(Tally {
        latency: Histogram::new(),
        errors: 0,
        wrong: 0,
        texts: Vec::new(),
        calls_left: calls_max,
    }));
    let deadline = Instant::now() + Duration::from_secs_f64(seconds);
    let mut loops = JoinSet::new();
    for index in 0..streams {
        let connection = connections[index % connections.len()].clone();
        loops.spawn_local(one_after_another(Rc::clone(work), connection, Rc::clone(&tally), deadline));
    }
    let all = async { while loops.join_next().await.is_some() {} };
    let late = tokio::time::timeout(Duration::from_secs_f64(seconds) + ANSWER_TIMEOUT, all).await.is_err();
    loops.shutdown().await;
    let mut tally =
        tally.replace(Tally { latency: Histogram::new(), errors: 0, wrong: 0, texts: Vec::new(), calls_left: 0 });
    if late {
        tally.count(&Failure::Call("no answer within a minute".to_owned()));
    }
    tally
}

async fn one_after_another(work: Rc<Work>, mut connection: Connection, tally: Rc<RefCell<Tally>>, deadline: Instant) {
    let mut now = Instant::now();
    while now < deadline && tally.borrow_mut().take() {
        let outgoing = work.next();
        let ready = work.ready(&mut connection, &outgoing).await;
        let sent = Instant::now();
        let answer = match ready {
            Ok(()) => work.call(&mut connection, &outgoing).await,
            failed => failed,
        };
        now = Instant::now();
        let mut tally = tally.borrow_mut();
        match answer {
            Ok(()) => tally.latency.record(u64::try_from((now - sent).as_nanos()).unwrap_or(u64::MAX)),
            Err(failure) => {
                tally.count(&failure);
                if matches!(failure, Failure::Broken(_)) {
                    break;
                }
            }
        }
    }
}

impl Tally {
    fn take(&mut self) -> bool {
        let left = self.calls_left > 0;
        self.calls_left = self.calls_left.saturating_sub(1);
        left
    }

    fn count(&mut self, failure: &Failure) {
        let text = match failure {
            Failure::Broken(text) | Failure::Call(text) => {
                self.errors += 1;
                text
            }
            Failure::Wrong(text) => {
                self.wrong += 1;
                text
            }
        };
        if self.texts.len() < FAILURES_KEPT {
            self.texts.push(text.clone());
        }
    }
}

/// New in each run, and in no family that is the same in every run.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let mut state = now ^ (u64::from(std::process::id()) << 48);
    splitmix(&mut state) | (1 << 63)
}
