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

const WANTS: Wants = Wants { memory_bytes: Some(1 << 20), pids_max: Some(10), cpu_milli: None };

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
fn damaged_tables_name_no_group() {
    for text in ["", " - ", "a - cgroup", "1 2 3 - cgroup x memory", "::\n:\n"] {
        assert_eq!(own_dir(text, text, "cgroup", "memory"), None);
    }
}
