//! Which groups are found and bounded, from texts of the kernel and with the real ones where they can be made.

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
fn one_processor_is_what_a_group_has_by_itself() {
    assert_eq!((shares_of(1000), weight_of(1000)), (1024, 100));
    assert_eq!((shares_of(1), weight_of(1)), (2, 1));
    assert_eq!((shares_of(u64::MAX), weight_of(u64::MAX)), (262_144, 10_000));
    assert_eq!((shares_of(500), weight_of(500)), (512, 50));
}

#[test]
fn a_cap_is_a_part_of_each_period() {
    assert_eq!([1000, 250, 1, u64::MAX].map(quota_us_of), [100_000, 25_000, 1000, CPU_QUOTA_US_MAX]);
}

#[test]
fn processors_are_shared_and_capped_only_where_that_is_wanted() {
    let fake = Fake::new(&[("cpu.weight", "100"), ("cpu.max", "max 100000")]);
    for (cpu_is_capped, max) in [(false, "max 100000"), (true, "150000 100000")] {
        let group = std::mem::ManuallyDrop::new(fake.group(Wants { cpu_is_capped, ..WANTS }));
        group.share_cpu(&fake.dir, 1500).unwrap();
        assert_eq!((fake.text("cpu.weight").as_str(), fake.text("cpu.max").as_str()), ("150", max));
    }
}

#[test]
fn version_one_takes_a_cap_by_its_own_names() {
    let fake = Fake::new(&[("cpu.shares", "1024"), ("cpu.cfs_quota_us", "-1"), ("cpu.cfs_period_us", "100000")]);
    let mut group = std::mem::ManuallyDrop::new(fake.group(Wants { cpu_is_capped: true, ..WANTS }));
    group.version = 1;
    group.share_cpu(&fake.dir, 500).unwrap();
    assert_eq!(
        ["cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"].map(|name| fake.text(name)),
        ["512", "50000", "100000"]
    );
}

/// A group of version 2 as the kernel shows one, in a directory of this test's own.
struct Fake {
    dir: PathBuf,
}

impl Fake {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = std::env::temp_dir().join(format!("buildnet-cgroup-{}", unique("fake")));
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        Self { dir }
    }

    fn group(&self, wants: Wants) -> Group {
        let part = |kind| Part { kind, home: self.dir.clone(), group: self.dir.clone() };
        let mut group = Group {
            name: "fake".into(),
            version: 2,
            born: true,
            killed: AtomicBool::new(false),
            parts: vec![part(Kind::Memory), part(Kind::Pids)],
            wants,
            before: Sight::default(),
            readings: Readings::default(),
            peak_is_own: true,
        };
        group.readings = Readings::of(&group);
        group
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

const WANTS: Wants = Wants { memory_bytes: Some(1 << 20), pids_max: Some(10), cpu_milli: None, cpu_is_capped: false };

#[test]
fn version_two_kills_all_of_an_action_and_lets_none_of_it_swap() {
    let fake = Fake::new(&[("memory.max", "max"), ("memory.oom.group", "0"), ("memory.swap.max", "max")]);
    let group = std::mem::ManuallyDrop::new(fake.group(WANTS));
    group.limit_memory(&fake.dir, 4096).unwrap();
    let told = ["memory.max", "memory.oom.group", "memory.swap.max"].map(|name| fake.text(name));
    assert_eq!(told, ["4096", "1", "0"]);
    group.kill();
    assert_eq!(fake.text("cgroup.kill"), "1");
}

#[test]
fn version_two_tells_what_this_action_did_and_no_earlier_one() {
    let fake = Fake::new(&[
        ("memory.events", "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 1\n"),
        ("memory.peak", "12345\n"),
        ("memory.current", "4096\n"),
        ("pids.events", "max 5\n"),
        ("pids.current", "0\n"),
    ]);
    let mut group = std::mem::ManuallyDrop::new(fake.group(WANTS));
    let first = group.look();
    assert_eq!((first.memory_kills, first.fork_refusals, first.memory_peak_bytes), (3, 5, Some(12345)));
    assert!(group.renew(first));
    // The kernel counts on, but for the peak, which it was told to forget.
    assert_eq!(fake.text("memory.peak"), "02345\n");
    fs::write(fake.dir.join("memory.events"), "oom_kill 4\n").unwrap();
    fs::write(fake.dir.join("memory.peak"), "4321\n").unwrap();
    let second = group.look();
    assert_eq!((second.memory_kills, second.fork_refusals, second.memory_peak_bytes), (1, 0, Some(4321)));
}

#[test]
fn version_two_renews_no_group_that_is_full_or_inhabited() {
    for (current, pids) in [("131073", "0"), ("0", "1"), ("none", "0")] {
        let fake = Fake::new(&[("memory.current", current), ("pids.current", pids)]);
        let mut group = std::mem::ManuallyDrop::new(fake.group(WANTS));
        assert!(!group.renew(Sight::default()), "{current} bytes and {pids} processes are left");
    }
}

#[test]
fn version_two_renews_no_group_that_was_killed() {
    let fake = Fake::new(&[("memory.current", "0"), ("pids.current", "0")]);
    let mut group = std::mem::ManuallyDrop::new(fake.group(WANTS));
    assert!(group.renew(Sight::default()));
    group.kill();
    assert!(!group.renew(Sight::default()), "what is born there would die at once");
}

#[test]
fn damaged_tables_name_no_group() {
    for text in ["", " - ", "a - cgroup", "1 2 3 - cgroup x memory", "::\n:\n"] {
        assert_eq!(own_dir(text, text, "cgroup", "memory"), None);
    }
}

/// A group of version 2 of a test's own, below this process's; None where none can be made, which is said.
struct Own {
    dir: PathBuf,
}

impl Own {
    fn new(name: &str) -> Option<Self> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let found = own_dir_and_mount(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"), "cgroup2", "");
        let dir = found.map(|(dir, _)| dir.join(unique(name))).filter(|dir| fs::create_dir(dir).is_ok());
        if dir.is_none() {
            eprintln!("SKIPPED {name}: no group of version 2 can be made here");
        }
        dir.map(|dir| Self { dir })
    }

    fn members(&self, below: &str) -> String {
        fs::read_to_string(self.dir.join(below).join(MEMBERS)).unwrap()
    }

    fn mark(&self) {
        let path = std::ffi::CString::new(self.dir.to_str().unwrap()).unwrap();
        let name = c"user.delegate";
        // SAFETY: both texts end with NUL; one byte is given.
        let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), b"1".as_ptr().cast(), 1, 0) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let end = Instant::now() + REMOVE_WAIT;
        for dir in [self.dir.join("buildnet-self"), self.dir.clone()] {
            // What has just ended may be counted a moment longer.
            while dir.exists() && fs::remove_dir(&dir).is_err() && Instant::now() < end {
                sys::nap_ms(1);
            }
        }
    }
}

#[test]
fn only_a_group_that_was_handed_over_is_vacated() {
    let Some(own) = Own::new("vacate") else { return };
    let mut member = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = format!("{}\n", member.id());
    fs::write(own.dir.join(MEMBERS), &pid).unwrap();
    let above = own.dir.parent().unwrap();
    let refused = delegation::vacate(&own.dir, above);
    let left = (own.members(""), own.dir.join("buildnet-self").exists());
    own.mark();
    // Twice: a second worker of the same group finds the leaf there.
    let vacated = [delegation::vacate(&own.dir, above), delegation::vacate(&own.dir, above)];
    let moved = (own.members(""), own.members("buildnet-self"));
    member.kill().unwrap();
    member.wait().unwrap();
    assert_eq!((refused, left), (false, (pid.clone(), false)));
    assert_eq!((vacated, moved), ([true, true], (String::new(), pid)));
}

/// Runs as a process of its own that shares this one's memory: exits with 0 if it is where its argument says.
extern "C" fn is_within(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the test passes a CString that it keeps.
    let name = unsafe { std::ffi::CStr::from_ptr(argument.cast()) }.to_bytes();
    let mut text = [0u8; 4096];
    let fd = sys::open(c"/proc/self/cgroup", libc::O_RDONLY, 0).unwrap_or(-1);
    let count = sys::read(fd, &mut text).unwrap_or(0);
    let found = text[..count].windows(name.len()).any(|window| window == name);
    sys::close(fd);
    sys::exit(libc::c_int::from(!found))
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_command_is_born_in_its_group() {
    let Some(own) = Own::new("born") else { return };
    let name = std::ffi::CString::new(own.dir.file_name().unwrap().to_str().unwrap()).unwrap();
    let group: OwnedFd = File::open(&own.dir).unwrap().into();
    assert!(sys::is_directory(&group));
    let argument = name.as_ptr().cast_mut().cast();
    // SAFETY: `is_within` ends in exit, and takes a C string.
    let within = unsafe { sys::start_within(&group, is_within, argument) }.map(sys::wait_for);
    // SAFETY: as above.
    let without = unsafe { sys::start(is_within, argument) }.map(sys::wait_for);
    assert_eq!((within, without), (Ok(0), Ok(1 << 8)));
}

#[test]
fn a_descriptor_that_is_no_group_starts_nothing() {
    let other: OwnedFd = File::open("/").unwrap().into();
    let name = c"x";
    // SAFETY: as above.
    let started = unsafe { sys::start_within(&other, is_within, name.as_ptr().cast_mut().cast()) };
    assert!(started.is_err());
}
