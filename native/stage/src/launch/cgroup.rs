//! One control group per action, below the worker's own group, so that the limits of whoever started the worker still hold.
//!
//! Uses whichever of cgroup v1 and v2 can really be written (kernel docs, cgroup-v1 and cgroup-v2); moves the worker only
//! within a group that was handed to it.
//! The parent `buildnet` goes when its last group goes: an enclosing group must stay removable.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::sys;

mod delegation;
mod readings;
mod trials;

use readings::Readings;
use trials::{can_be_born, can_bound, with_probe};

const PARENT: &str = "buildnet";
const MEMBERS: &str = "cgroup.procs";
/// The kernel's own (Documentation/scheduler/sched-bwc.rst).
const CPU_PERIOD_US: u64 = 100_000;
/// A million processors: more is no bound, and a number that the kernel may refuse.
const CPU_QUOTA_US_MAX: u64 = 1_000_000 * CPU_PERIOD_US;
const REMOVE_WAIT: Duration = Duration::from_secs(2);

/// A resource that a group bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memory,
    Pids,
    Cpu,
}

/// Which resources a group can bound here, and where.
#[derive(Debug, Default)]
pub(crate) struct Hierarchies {
    /// 1, 2, or 0 when nothing can be written.
    pub(crate) version: u8,
    /// Whether the kernel starts a process within a group.
    born: bool,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    cpu: Option<PathBuf>,
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

    pub(crate) fn has_cpu(&self) -> bool {
        self.cpu.is_some()
    }

    /// The directories below which groups are made.
    pub(crate) fn homes(&self) -> Vec<&Path> {
        let mut homes: Vec<&Path> =
            [&self.memory, &self.pids, &self.cpu].into_iter().flatten().map(PathBuf::as_path).collect();
        homes.dedup();
        homes
    }

    /// The name for an outcome.
    pub(crate) fn name(&self) -> &'static str {
        if self.version == 2 { "cgroup2" } else { "cgroup1" }
    }

    fn of(version: u8, usable: impl Fn(&str, &str) -> Option<PathBuf>) -> Self {
        let files = match version {
            2 => ["memory.max", "pids.max", "cpu.weight"],
            _ => ["memory.limit_in_bytes", "pids.max", "cpu.shares"],
        };
        let (memory, pids) = (usable("memory", files[0]), usable("pids", files[1]));
        let version = if memory.is_some() || pids.is_some() { version } else { 0 };
        Self { version, born: false, memory, pids, cpu: usable("cpu", files[2]) }
    }

    fn first(mounts: &str, own: &str) -> Self {
        Self::of(1, |controller, file| {
            let dir = own_dir(mounts, own, "cgroup", controller)?;
            can_bound(&dir, file).then_some(dir)
        })
    }

    /// v2 lets a group share out controllers only if it has no processes itself, which the worker's own has: it is vacated if
    /// it was handed over. Else the nearest group above that lets us is used: its limits, and those above it, still hold.
    fn second(mounts: &str, own: &str) -> Option<Self> {
        let (own_dir, mount) = own_dir_and_mount(mounts, own, "cgroup2", "")?;
        if delegation::vacate(&own_dir, &mount) {
            let found = Self::second_in(&own_dir);
            if found.version == 2 {
                return Some(found);
            }
        }
        let above = own_dir.ancestors().take_while(|dir| dir.starts_with(&mount));
        above.map(Self::second_in).find(|found| found.version == 2)
    }

    fn second_in(dir: &Path) -> Self {
        let found = Self::of(2, |_, file| can_bound(dir, file).then(|| dir.to_owned()));
        let born = found.version == 2 && with_probe(dir, can_be_born);
        Self { born, ..found }
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

/// What an action's group is to bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) pids_max: Option<u64>,
    pub(crate) cpu_milli: Option<u64>,
    /// Whether it may have no more than `cpu_milli`, also of processors that nobody else wants.
    pub(crate) cpu_is_capped: bool,
}

/// One controller's part of a group; with v2 all parts are the same directory.
#[derive(Debug)]
struct Part {
    kind: Kind,
    home: PathBuf,
    group: PathBuf,
}

/// The group of one action.
#[derive(Debug)]
pub(crate) struct Group {
    name: String,
    version: u8,
    born: bool,
    /// By `cgroup.kill`, after which nothing is born in it.
    killed: AtomicBool,
    parts: Vec<Part>,
    pub(crate) wants: Wants,
    /// What earlier actions in it did: the kernel counts on.
    before: Sight,
    readings: Readings,
    /// Whether the kernel's peak is of this action alone.
    peak_is_own: bool,
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
    pub(crate) fn make(name: &str, wants: Wants) -> io::Result<Option<Self>> {
        let here = Hierarchies::here();
        let wanted = [
            (Kind::Memory, here.memory.as_ref().zip(wants.memory_bytes)),
            (Kind::Pids, here.pids.as_ref().zip(wants.pids_max)),
            (Kind::Cpu, here.cpu.as_ref().zip(wants.cpu_milli)),
        ];
        let wanted: Vec<_> = wanted.into_iter().filter_map(|(kind, found)| Some((kind, found?))).collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        sweep(wanted.iter().map(|(_, (home, _))| *home));
        let mut group = Self {
            name: unique(name),
            version: here.version,
            born: here.born,
            killed: AtomicBool::new(false),
            parts: Vec::new(),
            wants,
            before: Sight::default(),
            readings: Readings::default(),
            peak_is_own: true,
        };
        for (kind, (home, amount)) in wanted {
            group.add(kind, home, amount)?;
        }
        group.readings = Readings::of(&group);
        Ok(Some(group))
    }

    fn add(&mut self, kind: Kind, home: &Path, amount: u64) -> io::Result<()> {
        let group = match self.parts.first() {
            Some(part) if self.version == 2 => part.group.clone(),
            _ => make(home, &self.name)?,
        };
        self.parts.push(Part { kind, home: home.to_owned(), group: group.clone() });
        match kind {
            Kind::Memory => self.limit_memory(&group, amount),
            Kind::Pids => fs::write(group.join("pids.max"), amount.to_string()),
            Kind::Cpu => self.share_cpu(&group, amount),
        }
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

    fn share_cpu(&self, group: &Path, cpu_milli: u64) -> io::Result<()> {
        if self.version == 2 {
            fs::write(group.join("cpu.weight"), weight_of(cpu_milli).to_string())?;
        } else {
            fs::write(group.join("cpu.shares"), shares_of(cpu_milli).to_string())?;
        }
        if !self.wants.cpu_is_capped {
            return Ok(());
        }
        let quota_us = quota_us_of(cpu_milli);
        if self.version == 2 {
            return fs::write(group.join("cpu.max"), format!("{quota_us} {CPU_PERIOD_US}"));
        }
        fs::write(group.join("cpu.cfs_period_us"), CPU_PERIOD_US.to_string())?;
        match fs::write(group.join("cpu.cfs_quota_us"), quota_us.to_string()) {
            // v1 refuses more than the group above has, which then bounds it (kernel/sched/core.c, tg_cfs_schedulable_down).
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            written => written,
        }
    }

    pub(crate) fn bounds_memory(&self) -> bool {
        self.part(Kind::Memory).is_some()
    }

    pub(crate) fn bounds_pids(&self) -> bool {
        self.part(Kind::Pids).is_some()
    }

    pub(crate) fn shares_cpu(&self) -> bool {
        self.part(Kind::Cpu).is_some()
    }

    fn part(&self, kind: Kind) -> Option<&Path> {
        self.parts.iter().find(|part| part.kind == kind).map(|part| part.group.as_path())
    }

    /// Each directory once.
    fn dirs(&self) -> impl Iterator<Item = &Path> {
        let count = if self.version == 2 { 1 } else { self.parts.len() };
        self.parts.iter().take(count).map(|part| part.group.as_path())
    }

    /// The ways in for one process of one thread: the directory that the kernel starts it in, else files to write "0" to.
    pub(crate) fn entrances(&self) -> io::Result<Vec<OwnedFd>> {
        // The same to a process of one thread, but `cgroup.procs` waits for every processor to have paused, which takes
        // some 10 ms each time (kernel/cgroup/cgroup.c, cgroup_procs_write_start).
        let name = if self.version == 1 { "tasks" } else { MEMBERS };
        let open = |dir: &Path| {
            if self.born { File::open(dir) } else { OpenOptions::new().write(true).open(dir.join(name)) }
        };
        self.dirs().map(|dir| sys::above_stdio(open(dir)?.into())).collect()
    }

    /// What this action did in it.
    pub(crate) fn look(&self) -> Sight {
        let all = self.readings.sight();
        Sight {
            memory_kills: all.memory_kills.saturating_sub(self.before.memory_kills),
            fork_refusals: all.fork_refusals.saturating_sub(self.before.fork_refusals),
            memory_peak_bytes: all.memory_peak_bytes.filter(|_| self.peak_is_own),
        }
    }

    /// Make it as new for another action, after `look` saw so much; false when it cannot be, or when it is not empty.
    pub(crate) fn renew(&mut self, seen: Sight) -> bool {
        if *self.killed.get_mut() || !self.is_empty() {
            return false;
        }
        if let Some(limit) = self.part(Kind::Memory).and(self.wants.memory_bytes) {
            // Cached pages of an earlier action give way, but a group full of them is slow.
            if self.readings.used_bytes().is_none_or(|used| used > limit / 8) {
                return false;
            }
            // v2 forgets it for the descriptor that wrote alone (cgroup-v2.rst, memory.peak), by which it is read too.
            self.peak_is_own = self.readings.forget_peak();
        }
        // Empty, so nothing was counted since.
        self.before.memory_kills += seen.memory_kills;
        self.before.fork_refusals += seen.fork_refusals;
        true
    }

    fn is_empty(&self) -> bool {
        if let Some(members) = self.readings.members() {
            return members == Some(0);
        }
        self.dirs().all(|dir| fs::read_to_string(dir.join(MEMBERS)).is_ok_and(|text| text.is_empty()))
    }

    /// SIGKILL to every member, for what has left the process group.
    pub(crate) fn kill(&self) {
        for dir in self.dirs() {
            // v2 since Linux 5.14: nobody gets away by forking (cgroup-v2.rst, cgroup.kill).
            if self.version == 2 && fs::write(dir.join("cgroup.kill"), "1").is_ok() {
                self.killed.store(true, Ordering::SeqCst);
                continue;
            }
            let members = fs::read_to_string(dir.join(MEMBERS)).unwrap_or_default();
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
        for part in &self.parts {
            while part.group.exists() && !remove(&part.home, &self.name) && Instant::now() < end {
                self.kill();
                sys::nap_ms(1);
            }
        }
    }
}

/// Processor time in each `CPU_PERIOD_US`; the kernel takes no less than a millisecond.
fn quota_us_of(cpu_milli: u64) -> u64 {
    (cpu_milli.saturating_mul(CPU_PERIOD_US) / 1000).clamp(1000, CPU_QUOTA_US_MAX)
}

/// cgroup v1: 1024 shares are one processor's, and 2 the least.
fn shares_of(cpu_milli: u64) -> u64 {
    (cpu_milli.saturating_mul(1024) / 1000).clamp(2, 262_144)
}

/// cgroup v2: weights are 1 to 10,000, and 100 is what a group has that nobody set: one processor's.
fn weight_of(cpu_milli: u64) -> u64 {
    (cpu_milli / 10).clamp(1, 10_000)
}

/// Remove the groups that this process left, wherever it could have made some; only the empty ones go.
pub(crate) fn remove_all_of(owner: u32, homes: &[PathBuf]) {
    for home in homes {
        let entries = fs::read_dir(home.join(PARENT)).into_iter().flatten().flatten();
        for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
            if name.split('-').next() == Some(owner.to_string().as_str()) {
                remove(home, &name);
            }
        }
    }
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
mod tests;
