//! What a run prints. A figure that was not measured is left out, never shown as zero.

use std::io::Write;

use crate::arguments::RunOptions;
use crate::process::Memory;
use crate::run::Tally;

/// What was measured.
pub struct Report {
    /// Counts and latencies.
    pub tally: Tally,
    /// Wall time.
    pub elapsed_s: f64,
    /// CPU of the server and its children.
    pub server_cpu_us: u64,
    /// CPU of this process.
    pub own_cpu_us: u64,
    /// Of the server and its children, at the end.
    pub memory: Memory,
}

/// Print it to standard output; failures in words go to standard error.
///
/// # Errors
/// Standard output is closed.
pub fn print(options: &RunOptions, report: &Report) -> Result<(), String> {
    for text in &report.tally.texts {
        eprintln!("{}: {text}", options.name);
    }
    let lines = if options.json { json(options, report) } else { words(options, report) };
    std::io::stdout().write_all(lines.as_bytes()).map_err(|error| error.to_string())
}

struct Figures {
    calls: u64,
    calls_per_s: f64,
    mib_per_s: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
    own_us: f64,
    server_us: f64,
}

fn figures(options: &RunOptions, report: &Report) -> Figures {
    let latency = &report.tally.latency;
    let calls = latency.total();
    let us = |ns: u64| ns as f64 / 1e3;
    let per_call = |cpu: u64| cpu as f64 / calls.max(1) as f64;
    let calls_per_s = calls as f64 / report.elapsed_s;
    Figures {
        calls,
        calls_per_s,
        mib_per_s: calls_per_s * options.size_bytes as f64 / f64::from(1 << 20),
        p50: us(latency.quantile(0.5)),
        p90: us(latency.quantile(0.9)),
        p99: us(latency.quantile(0.99)),
        max: us(latency.max()),
        own_us: per_call(report.own_cpu_us),
        server_us: per_call(report.server_cpu_us),
    }
}

fn json(options: &RunOptions, report: &Report) -> String {
    let f = figures(options, report);
    let server = options.pid.map_or_else(String::new, |_| {
        format!(
            r#", "server_cpu_us_per_call": {:.2}, "server_resident_kib": {}, "server_peak_kib": {}"#,
            f.server_us, report.memory.resident_kib, report.memory.peak_kib
        )
    });
    format!(
        "{{\"call\": \"{}\", \"calls\": {}, \"elapsed_s\": {:.3}, \"calls_per_s\": {:.2}, \"mib_per_s\": {:.2}, \
         \"p50_us\": {:.1}, \"p90_us\": {:.1}, \"p99_us\": {:.1}, \"max_us\": {:.1}, \"errors\": {}, \"wrong\": {}, \
         \"load_cpu_us_per_call\": {:.2}{server}}}\n",
        options.name,
        f.calls,
        report.elapsed_s,
        f.calls_per_s,
        f.mib_per_s,
        f.p50,
        f.p90,
        f.p99,
        f.max,
        report.tally.errors,
        report.tally.wrong,
        f.own_us,
    )
}

fn words(options: &RunOptions, report: &Report) -> String {
    let f = figures(options, report);
    let server = options.pid.map_or_else(String::new, |_| {
        format!("  server: {:.2} us CPU a call, {} MiB at its largest\n", f.server_us, report.memory.peak_kib / 1024)
    });
    format!(
        "{}: {:.0} calls/s ({:.1} MiB/s of blobs), {} calls in {:.2} s\n  p50 {:.0} us, p90 {:.0} us, p99 {:.0} us, \
         max {:.0} us\n  errors {}, wrong answers {}\n{server}  this program: {:.2} us CPU a call\n",
        options.name,
        f.calls_per_s,
        f.mib_per_s,
        f.calls,
        report.elapsed_s,
        f.p50,
        f.p90,
        f.p99,
        f.max,
        report.tally.errors,
        report.tally.wrong,
        f.own_us,
    )
}
