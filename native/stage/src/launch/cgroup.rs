//! One control group per action, below the worker's own group, so that the limits of whoever started the worker still hold.
//!
//! Uses whichever of cgroup v1 and v2 can really be written (kernel docs, cgroup-v1 and cgroup-v2); never moves the worker.
//! The parent `buildnet` goes when its last action goes: an enclosing group must stay removable.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::sys;

const PARENT: &str = "buildnet";
const REMOVE_WAIT: Duration = Duration::from_secs(2);

/// Which resources a group can bound here, and where.
#[derive(Debug, Default)]
pub(crate) struct Hierarchies {
    /// 1, 2, or 0 when nothing can be written.
    pub(crate) version: u8,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    /// For the probe only: no plan asks for a share of the processor yet.
    pub(crate) cpu: bool,
}

impl Hierarchies {
    /// Tried once per process by making and removing a group.
    pub(crate) fn here() -> &'static Self {
        static HERE: OnceLock<Hierarchies> = OnceLock::new();
        HERE.get_or_init(|| {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let found = Self::second(&mounts, &own);
            found.unwrap_or_else(|| Self::first(&mounts, &own))
        })
    }

    pub(crate) fn has_memory(&self) -> bool {
        self.memory.is_some()
    }

    pub(crate) fn has_pids(&self) -> bool {
        self.pids.is_some()
    }

    /// The name for an outcome.
    pub(crate) fn name(&self) -> &'static str {
        if self.version == 2 { "cgroup2" } else { "cgroup1" }
    }

    fn first(mounts: &str, own: &str) -> Self {
        let usable = |controller: &str, file: &str| {
            let dir = own_dir(mounts, own, "cgroup", controller)?;
            can_bound(&dir, file).then_some(dir)
        };
        let memory = usable("memory", "memory.limit_in_bytes");
        let pids = usable("pids", "pids.max");
        Self {
            version: u8::from(memory.is_some() || pids.is_some()),
            memory,
            pids,
            cpu: usable("cpu", "cpu.cfs_quota_us").is_some(),
        }
    }

    /// v2 lets a group share out controllers only if it has no processes itself, which the worker's own has. The nearest
    /// group above that lets us is used: its limits, and those above it, still hold.
    fn second(mounts: &str, own: &str) -> Option<Self> {
        let (own_dir, mount) = own_dir_and_mount(mounts, own, "cgroup2", "")?;
        let above = own_dir.ancestors().take_while(|dir| dir.starts_with(&mount));
        above.map(Self::second_in).find(|found| found.version == 2)
    }

    fn second_in(dir: &Path) -> Self {
        let usable = |file: &str| can_bound(dir, file).then(|| dir.to_owned());
        let (memory, pids) = (usable("memory.max"), usable("pids.max"));
        Self {
            version: if memory.is_some() || pids.is_some() { 2 } else { 0 },
            memory,
            pids,
            cpu: usable("cpu.max").is_some(),
        }
    }
}

/// The directory of this process's own group in the hierarchy of `controller` (v1) or in the one of v2 (empty).
fn own_dir(mounts: &str, own: &str, kind: &str, controller: &str) -> Option<PathBuf> {
    own_dir_and_mount(mounts, own, kind, controller).map(|(dir, _)| dir)
}

fn own_dir_and_mount(mounts: &str, own: &str, kind: &str, controller: &str) -> Option<(PathBuf, PathBuf)> {
    // proc_pid_mountinfo(5): ... root mount-point options [optional]* - type source super-options
    let (root, point) = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let options = right.nth(2).filter(|_| line.contains(&format!(" - {kind} ")))?;
        let wanted = controller.is_empty() || options.split(',').any(|word| word == controller);
        let mut left = left.split(' ').skip(3);
        wanted.then_some(())?;
        Some((left.next()?, left.next()?))
    })?;
    // cgroups(7): id:controllers:path, with no controllers for v2.
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let wanted = controllers.split(',').any(|word| word == controller);
        fields.next().filter(|_| wanted)
    })?;
    let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or("");
    let point = PathBuf::from(point);
    Some((point.join(below.trim_start_matches('/')), point))
}

/// Whether a process of ours can really enter a new group there that has this limit.
fn can_bound(dir: &Path, file: &str) -> bool {
    let name = unique("probe");
    let Ok(group) = make(dir, &name) else {
        return false;
    };
    let entered = group.join(file).exists() && can_enter(&group);
    remove(dir, &name) && entered
}

fn can_enter(group: &Path) -> bool {
    let Ok(procs) = OpenOptions::new().write(true).open(group.join("cgroup.procs")) else {
        return false;
    };
    // SAFETY: the child makes one system call and exits.
    match unsafe { sys::fork_into(0) } {
        Ok(0) => sys::exit(i32::from(sys::write(procs.as_raw_fd(), b"0").is_err())),
        Ok(pid) => sys::wait_for(pid) == 0,
        Err(_) => false,
    }
}

/// A name that no other process and no other action of this one uses.
fn unique(name: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{next}-{name}", std::process::id())
}

fn make(dir: &Path, name: &str) -> io::Result<PathBuf> {
    let parent = dir.join(PARENT);
    let group = parent.join(name);
    // Another action that ends may remove the empty parent between the two steps.
    let mut tries = 0;
    loop {
        match fs::create_dir(&parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => share_out(dir, &parent),
        }
        match fs::create_dir(&group) {
            Ok(()) => return Ok(group),
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 100 => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// v2 only. A controller that is not offered is refused; the limit files then tell which there are.
fn share_out(dir: &Path, parent: &Path) {
    if !dir.join("cgroup.subtree_control").exists() {
        return;
    }
    for group in [dir, parent] {
        for controller in ["+memory", "+pids", "+cpu"] {
            let _ = fs::write(group.join("cgroup.subtree_control"), controller);
        }
    }
}

fn remove(dir: &Path, name: &str) -> bool {
    let parent = dir.join(PARENT);
    let gone = fs::remove_dir(parent.join(name)).is_ok();
    // Fails while other actions have groups there.
    let _ = fs::remove_dir(parent);
    gone
}

/// The group of one action.
#[derive(Debug)]
pub(crate) struct Group {
    name: String,
    version: u8,
    memory: Option<(PathBuf, PathBuf)>,
    pids: Option<(PathBuf, PathBuf)>,
}

/// What the group saw.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sight {
    pub(crate) memory_kills: u64,
    pub(crate) fork_refusals: u64,
    pub(crate) memory_peak_bytes: Option<u64>,
}

impl Group {
    /// Make the group and set its limits; `Ok(None)` when there is nothing to bound or nothing to bound it with.
    pub(crate) fn make(name: &str, memory_bytes: Option<u64>, pids_max: Option<u64>) -> io::Result<Option<Self>> {
        let here = Hierarchies::here();
        let memory = here.memory.clone().filter(|_| memory_bytes.is_some());
        let pids = here.pids.clone().filter(|_| pids_max.is_some());
        if memory.is_none() && pids.is_none() {
            return Ok(None);
        }
        sweep(memory.iter().chain(&pids));
        let mut group = Self { name: unique(name), version: here.version, memory: None, pids: None };
        let result = group.fill(memory.zip(memory_bytes), pids.zip(pids_max));
        result.map(|()| Some(group))
    }

    fn fill(&mut self, memory: Option<(PathBuf, u64)>, pids: Option<(PathBuf, u64)>) -> io::Result<()> {
        if let Some((dir, bytes)) = memory {
            let group = make(&dir, &self.name)?;
            self.memory = Some((dir, group.clone()));
            self.limit_memory(&group, bytes)?;
        }
        if let Some((dir, count)) = pids {
            // In v2 both limits live in one group.
            let group = match &self.memory {
                Some((_, group)) if self.version == 2 => group.clone(),
                _ => make(&dir, &self.name)?,
            };
            self.pids = Some((dir, group.clone()));
            fs::write(group.join("pids.max"), count.to_string())?;
        }
        Ok(())
    }

    fn limit_memory(&self, group: &Path, bytes: u64) -> io::Result<()> {
        if self.version == 2 {
            fs::write(group.join("memory.max"), bytes.to_string())?;
            // Kill the whole action: half of a build is worth nothing. Both files are absent in small kernels.
            let _ = fs::write(group.join("memory.oom.group"), "1");
            let _ = fs::write(group.join("memory.swap.max"), "0");
            return Ok(());
        }
        fs::write(group.join("memory.limit_in_bytes"), bytes.to_string())?;
        // Absent without swap accounting: then swap is not bounded, as everywhere on such a host.
        let _ = fs::write(group.join("memory.memsw.limit_in_bytes"), bytes.to_string());
        Ok(())
    }

    pub(crate) fn bounds_memory(&self) -> bool {
        self.memory.is_some()
    }

    pub(crate) fn bounds_pids(&self) -> bool {
        self.pids.is_some()
    }

    fn dirs(&self) -> impl Iterator<Item = &Path> {
        let memory = self.memory.iter().map(|(_, group)| group.as_path());
        let pids = self.pids.iter().map(|(_, group)| group.as_path());
        let both = self.version == 2 && self.memory.is_some();
        memory.chain(pids.filter(move |_| !both))
    }

    /// A file of each group; writing "0" to one moves the writer, a process of one thread, in.
    pub(crate) fn entrances(&self) -> io::Result<Vec<OwnedFd>> {
        // The same to a process of one thread, but `cgroup.procs` waits for every processor to have paused: 20 ms
        // instead of 0.06 ms were seen (kernel/cgroup/cgroup.c, cgroup_procs_write_start).
        let name = if self.version == 1 { "tasks" } else { "cgroup.procs" };
        self.dirs()
            .map(|dir| {
                let file = OpenOptions::new().write(true).open(dir.join(name))?;
                sys::above_stdio(file.into())
            })
            .collect()
    }

    pub(crate) fn look(&self) -> Sight {
        let mut sight = Sight::default();
        let names = match self.version {
            2 => ["memory.events", "memory.peak"],
            _ => ["memory.oom_control", "memory.max_usage_in_bytes"],
        };
        if let Some((_, group)) = &self.memory {
            sight.memory_kills = keyed(&group.join(names[0]), "oom_kill");
            let peak = fs::read_to_string(group.join(names[1])).ok();
            sight.memory_peak_bytes = peak.and_then(|text| text.trim().parse().ok());
        }
        if let Some((_, group)) = &self.pids {
            sight.fork_refusals = keyed(&group.join("pids.events"), "max");
        }
        sight
    }

    /// SIGKILL to every member, for what has left the process group.
    pub(crate) fn kill(&self) {
        for dir in self.dirs() {
            let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in members.lines().filter_map(|line| line.parse().ok()) {
                // A pid of 0 is one of another pid namespace: not ours to name.
                if pid > 1 {
                    sys::kill(pid, libc::SIGKILL);
                }
            }
        }
    }
}

impl Drop for Group {
    /// Members may take a moment to leave after their death.
    fn drop(&mut self) {
        let end = Instant::now() + REMOVE_WAIT;
        for (dir, group) in self.memory.iter().chain(&self.pids) {
            while group.exists() && !remove(dir, &self.name) && Instant::now() < end {
                self.kill();
                sys::nap_ms(1);
            }
        }
    }
}

fn keyed(path: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let value = lines.filter(|(name, _)| *name == key).map(|(_, value)| value);
    value.filter_map(|value| value.parse().ok()).next_back().unwrap_or(0)
}

/// Once per process: remove empty groups of workers that died without doing so.
fn sweep<'a>(dirs: impl Iterator<Item = &'a PathBuf>) {
    static SWEPT: OnceLock<()> = OnceLock::new();
    SWEPT.get_or_init(|| {
        for dir in dirs {
            let entries = fs::read_dir(dir.join(PARENT)).into_iter().flatten().flatten();
            for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
                let owner = name.split('-').next().unwrap_or_default();
                if owner.parse::<u32>().is_ok() && !Path::new("/proc").join(owner).exists() {
                    remove(dir, &name);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
35 31 0:31 / /sys/fs/cgroup/memory rw,relatime shared:4 - cgroup cgroup rw,memory
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 /slice /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const OWN: &str = "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/slice/unit\n";

    #[test]
    fn own_group_is_found_in_each_kind_of_hierarchy() {
        let dir = |kind, controller| own_dir(MOUNTS, OWN, kind, controller);
        assert_eq!(dir("cgroup", "memory"), Some("/sys/fs/cgroup/memory/a/b".into()));
        assert_eq!(dir("cgroup", "cpu"), Some("/sys/fs/cgroup/cpu/".into()));
        assert_eq!(dir("cgroup2", ""), Some("/sys/fs/cgroup/unified/unit".into()));
        assert_eq!(dir("cgroup", "pids"), None);
    }

    #[test]
    fn damaged_tables_name_no_group() {
        for text in ["", " - ", "a - cgroup", "1 2 3 - cgroup x memory", "::\n:\n"] {
            assert_eq!(own_dir(text, text, "cgroup", "memory"), None);
        }
    }
}
