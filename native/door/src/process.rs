//! What the kernel says of this process. A number that it does not say is 0; nothing here fails a page.

use std::fs;
use std::mem::MaybeUninit;

/// Numbers of this process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Process {
    /// User and system time.
    pub(crate) cpu_s: f64,
    pub(crate) resident_bytes: u64,
    pub(crate) open_fds: u64,
    pub(crate) max_fds: u64,
}

impl Process {
    pub(crate) fn now() -> Self {
        Self { cpu_s: cpu_s(), resident_bytes: resident_bytes(), open_fds: open_fds(), max_fds: max_fds() }
    }
}

fn cpu_s() -> f64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills a struct of ours; one of zeros is valid too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn resident_bytes() -> u64 {
    let pages =
        fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    // SAFETY: sysconf takes no pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0) * u64::try_from(page).unwrap_or(0)
}

fn open_fds() -> u64 {
    // The directory that is being read is one of them.
    fs::read_dir("/proc/self/fd").map_or(0, |entries| (entries.count() as u64).saturating_sub(1))
}

fn max_fds() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills a struct of ours.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_all_of_them() {
        let now = Process::now();
        assert!(now.cpu_s > 0.0 && now.resident_bytes > 1 << 20 && now.open_fds > 2 && now.max_fds > 2, "{now:?}");
    }
}
