//! Networks without anything outside, which wait for their next action: to make and remove one costs more than all else.
//!
//! Only a network in which nothing was ever sent is used again: no connection, no port that lingers, no cache can be in
//! it. A command has no right to set it up otherwise: it belongs to the user namespace of the worker.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};

use super::sys::{self, Errno};

/// What a supervisor exits with when nothing was sent in its network.
pub(crate) const UNUSED: i32 = 64;
/// More slots than this make and remove some of theirs.
const IDLE_MAX: usize = 64;

/// Of one launcher, which has one thread and so may step into a network and back.
pub(crate) struct Networks {
    host: OwnedFd,
    idle: Vec<OwnedFd>,
}

impl Networks {
    /// None where only a user namespace gives the right to make networks: then each action makes its own.
    pub(crate) fn here() -> Option<Self> {
        let host = OwnedFd::from(File::open("/proc/self/ns/net").ok()?);
        let mut networks = Self { host, idle: Vec::new() };
        let first = networks.take().ok()?;
        networks.idle.push(first);
        Some(networks)
    }

    /// An empty network whose loopback is up.
    pub(crate) fn take(&mut self) -> Result<OwnedFd, Errno> {
        match self.idle.pop() {
            Some(network) => Ok(network),
            None => self.make(),
        }
    }

    fn make(&self) -> Result<OwnedFd, Errno> {
        sys::leave_network()?;
        let made = sys::raise_loopback().and_then(|()| {
            let file = File::open("/proc/self/ns/net");
            file.map(OwnedFd::from).map_err(|failed| failed.raw_os_error().unwrap_or(libc::EIO))
        });
        if let Err(errno) = enter(&self.host) {
            // In the wrong network the next action with the machine's would be without: better no launcher.
            sys::exit(errno);
        }
        made
    }

    /// The action that had it is gone.
    pub(crate) fn give_back(&mut self, network: OwnedFd) {
        if self.idle.len() < IDLE_MAX {
            self.idle.push(network);
        }
    }
}

/// Make this process one of the network's.
pub(crate) fn enter(network: &OwnedFd) -> Result<(), Errno> {
    sys::enter_network(network.as_raw_fd())
}

/// Whether nothing was ever sent in this process's network.
pub(crate) fn is_unused() -> bool {
    fs::read_to_string("/proc/self/net/dev").is_ok_and(|text| all_zero(&text))
}

/// proc_pid_net(5): two lines of titles, then a line of counters for each interface.
fn all_zero(text: &str) -> bool {
    let mut counters = text.lines().skip(2).filter_map(|line| line.split_once(':')).peekable();
    counters.peek().is_some()
        && counters.all(|(_, numbers)| numbers.split_ascii_whitespace().all(|number| number == "0"))
}

#[cfg(test)]
mod tests {
    use super::all_zero;

    const TITLES: &str = "Inter-|   Receive\n face |bytes    packets\n";

    #[test]
    fn a_network_is_unused_until_a_byte_was_sent() {
        assert!(all_zero(&format!("{TITLES}    lo:       0       0    0\n")));
        assert!(all_zero(&format!("{TITLES}  sit0: 0 0\n    lo: 0 0\n")));
        assert!(!all_zero(&format!("{TITLES}    lo:      84       1    0\n")));
        assert!(!all_zero(&format!("{TITLES}  sit0: 0 0\n    lo: 0 1\n")));
        assert!(!all_zero(TITLES), "nothing was seen");
        assert!(!all_zero(""));
    }
}
