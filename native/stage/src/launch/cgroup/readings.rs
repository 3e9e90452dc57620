//! What a control group says of the action in it, from files that stay open. It changes nothing.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use super::{Group, Kind, Sight};

/// What is read for each action, opened once: absent where the kernel has none.
#[derive(Debug, Default)]
pub(super) struct Readings {
    kills: Option<File>,
    peak: Option<File>,
    used: Option<File>,
    refusals: Option<File>,
    members: Option<File>,
}

impl Readings {
    pub(super) fn of(group: &Group) -> Self {
        let names = match group.version {
            2 => ["memory.events", "memory.peak", "memory.current"],
            _ => ["memory.oom_control", "memory.max_usage_in_bytes", "memory.usage_in_bytes"],
        };
        let file = |kind, name: &str| File::open(group.part(kind)?.join(name)).ok();
        // Older kernels refuse to have the peak written.
        let peak = group.part(Kind::Memory).map(|dir| dir.join(names[1]));
        let peak = peak
            .and_then(|path| OpenOptions::new().read(true).write(true).open(&path).or_else(|_| File::open(&path)).ok());
        Self {
            kills: file(Kind::Memory, names[0]),
            peak,
            used: file(Kind::Memory, names[2]),
            refusals: file(Kind::Pids, "pids.events"),
            members: file(Kind::Pids, "pids.current"),
        }
    }

    pub(super) fn used_bytes(&self) -> Option<u64> {
        number(self.used.as_ref())
    }

    /// None where no such file is; what it says, else.
    pub(super) fn members(&self) -> Option<Option<u64>> {
        self.members.as_ref().map(|file| number(Some(file)))
    }

    /// Have the peak of memory counted anew; false when it cannot be.
    pub(super) fn forget_peak(&self) -> bool {
        self.peak.as_ref().is_some_and(|file| file.write_at(b"0", 0).is_ok())
    }

    pub(super) fn sight(&self) -> Sight {
        Sight {
            memory_kills: keyed(self.kills.as_ref(), "oom_kill"),
            fork_refusals: keyed(self.refusals.as_ref(), "max"),
            memory_peak_bytes: number(self.peak.as_ref()),
        }
    }
}

/// As the file is now; these are short.
fn text(file: Option<&File>) -> Option<String> {
    let mut buffer = [0; 512];
    let count = file?.read_at(&mut buffer, 0).ok()?;
    String::from_utf8(buffer[..count].to_vec()).ok()
}

fn number(file: Option<&File>) -> Option<u64> {
    text(file)?.trim().parse().ok()
}

fn keyed(file: Option<&File>, key: &str) -> u64 {
    let text = text(file).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let value = lines.filter(|(name, _)| *name == key).map(|(_, value)| value);
    value.filter_map(|value| value.parse().ok()).next_back().unwrap_or(0)
}
