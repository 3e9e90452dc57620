//! CPU time and memory of a process and all that it started, from /proc. What has gone counts as nothing.

use std::fs;

/// Linux counts CPU time for user space in hundredths of a second on every machine (`USER_HZ`).
const TICK_US: u64 = 10_000;
const PROCESSES_MAX: usize = 4096;

/// The process and its descendants.
pub fn tree(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() && found.len() < PROCESSES_MAX {
        let pid = found[next];
        next += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        }
    }
    found
}

/// User and system time of all, in microseconds.
pub fn cpu_us(pids: &[u32]) -> u64 {
    let of = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| ticks(&stat));
    pids.iter().filter_map(of).sum::<u64>() * TICK_US
}

/// Resident sets in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// The sum of what each has now.
    pub resident_kib: u64,
    /// The sum of the most that each ever had.
    pub peak_kib: u64,
}

/// What all have in memory.
pub fn memory(pids: &[u32]) -> Memory {
    let mut all = Memory::default();
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        all.resident_kib += kib(&status, "VmRSS:").unwrap_or(0);
        all.peak_kib += kib(&status, "VmHWM:").unwrap_or(0);
    }
    all
}

fn ticks(stat: &str) -> Option<u64> {
    // The name may hold spaces and parentheses; the numbers follow the last one (proc(5)).
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace().skip(11);
    let user: u64 = words.next()?.parse().ok()?;
    let system: u64 = words.next()?.parse().ok()?;
    user.checked_add(system)
}

fn kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn this_process_has_memory_and_time() {
        let me = std::process::id();
        assert!(tree(me).contains(&me));
        let memory = memory(&[me]);
        assert!(100 < memory.resident_kib && memory.resident_kib <= memory.peak_kib);
        assert_eq!(ticks("1 (a) b) S 1 1 1 0 -1 4 0 0 0 0 7 5 0 0"), Some(12));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,200}") {
            let _ = (ticks(&text), kib(&text, "VmRSS:"));
        }
    }
}
