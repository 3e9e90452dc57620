//! What an action will see, worked out on the host's paths before clone: nothing that the plan does not show.
//!
//! It only looks at paths; `mounts` acts on what it found. Whatever is hidden stays hidden, through whichever path it
//! would be shown.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{self, Result};

use super::mounts::{Bind, EXECUTION_ROOT, Entry, Mounts};

/// Ours whatever is shown.
const OWN: [&str; 5] = ["/buildnet", "/dev", "/proc", "/tmp", "/var/tmp"];

/// What is made, moved or removed at a path that is shown is seen so much later at most.
const SEEN_FOR: Duration = Duration::from_secs(1);
const KNOWN_MAX: usize = 16;

/// What a view is made from; paths of the host.
#[derive(Clone, Copy)]
pub(crate) struct ViewOf<'a> {
    pub(crate) root: &'a Path,
    pub(crate) root_mount: Option<RawFd>,
    pub(crate) tmp: &'a Path,
    pub(crate) shown: &'a [PathBuf],
    pub(crate) hidden: &'a [PathBuf],
    pub(crate) files: &'a [(PathBuf, Vec<u8>)],
    pub(crate) devices: &'a [(PathBuf, PathBuf)],
    pub(crate) shm_size_bytes: Option<u64>,
}

/// What stands at a path of the new root.
#[derive(Clone)]
enum Node {
    Directory,
    Symlink(PathBuf),
    File(Vec<u8>),
    Bind { source: PathBuf, directory: bool },
}

type Nodes = BTreeMap<PathBuf, Node>;

/// Work out a view. What is to be shown and is not there is left out.
pub(crate) fn plan_view(of: ViewOf<'_>) -> Result<Mounts> {
    // One that is a mount of its own need not be anywhere else.
    let root = if of.root_mount.is_some() { of.root.to_owned() } else { real("root", of.root)? };
    let tmp = real("tmp", of.tmp)?;
    let mut nodes = (*shown_of(of.shown)?).clone();
    let var_tmp = Path::new("/var/tmp");
    let host_var_tmp = covers(&nodes, var_tmp);
    if !host_var_tmp {
        nodes.insert(var_tmp.to_owned(), Node::Symlink("/tmp".into()));
    }
    for (path, text) in of.files {
        if !covers(&nodes, path) && !nodes.contains_key(path) {
            nodes.insert(path.clone(), Node::File(text.clone()));
        }
    }
    let masked = masks(&nodes, of.hidden)?;
    add_parents(&mut nodes);
    let entries = nodes.into_iter().map(|(path, node)| entry(&path, node));
    // A host whose /var/tmp is no directory of its own has none to replace.
    let second = host_var_tmp && std::fs::symlink_metadata(var_tmp).is_ok_and(|facts| facts.is_dir());
    let execution_root = bind(&root, Path::new(OsStr::from_bytes(EXECUTION_ROOT.to_bytes())), true)?;
    execution_root.fd.set(of.root_mount.unwrap_or(-1));
    Ok(Mounts {
        base: c_path(&tmp)?,
        devices: of.devices.iter().map(|(source, target)| device(source, target)).collect::<Result<_>>()?,
        entries: entries.collect::<Result<_>>()?,
        masked,
        root: execution_root,
        tmp: bind(&tmp, Path::new("/tmp"), true)?,
        var_tmp: if second { Some(bind(&tmp, var_tmp, true)?) } else { None },
        shm: shm_options(of.shm_size_bytes)?,
    })
}

/// What lies at these paths of the host. One answer serves for a moment: it takes hundreds of system calls, and a worker's
/// toolchain is asked for with every action.
fn shown_of(shown: &[PathBuf]) -> Result<Arc<Nodes>> {
    static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let fresh = |known: &Known| known.shown == shown && now.duration_since(known.seen) < SEEN_FOR;
    if let Some(found) = known().iter().find(|known| fresh(known)) {
        return Ok(Arc::clone(&found.nodes));
    }
    let mut nodes = Nodes::new();
    show(&mut nodes, &wanted(shown)?);
    let nodes = Arc::new(nodes);
    let mut all = known();
    all.retain(|known| known.shown != shown && now.duration_since(known.seen) < SEEN_FOR);
    if all.len() < KNOWN_MAX {
        all.push(Known { shown: shown.to_vec(), seen: now, nodes: Arc::clone(&nodes) });
    }
    Ok(nodes)
}

struct Known {
    shown: Vec<PathBuf>,
    seen: Instant,
    nodes: Arc<Nodes>,
}

/// The path inside of a path in the execution root.
pub(crate) fn inside(root: &Path, path: &Path) -> Result<PathBuf> {
    let below = path.strip_prefix(root);
    let below = below.map_err(|_| error::invalid("cwd", format!("is not below {}", root.display())))?;
    Ok(Path::new(OsStr::from_bytes(EXECUTION_ROOT.to_bytes())).join(below))
}

/// The paths to show, parents first; `/` means each of its entries.
fn wanted(shown: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for path in shown {
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return Err(error::invalid("shown", format!("{} is not an absolute path without ..", path.display())));
        }
        if path == Path::new("/") {
            let entries = std::fs::read_dir(path).map_err(|failed| error::io("list", path, &failed))?;
            paths.extend(entries.flatten().map(|entry| entry.path()).filter(|path| !is_own(path)));
        } else if is_own(path) && !path.starts_with("/tmp") {
            let message = format!("{} is the action's own; show a path elsewhere", path.display());
            return Err(error::invalid("shown", message));
        } else {
            paths.push(path.clone());
        }
    }
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

fn is_own(path: &Path) -> bool {
    OWN.iter().any(|own| path.starts_with(own))
}

/// Directories and files as they are; then symlinks, which stay symlinks where what they lead to is shown.
fn show(nodes: &mut Nodes, paths: &[PathBuf]) {
    let mut links = Vec::new();
    for path in paths {
        let Ok(source) = std::fs::canonicalize(path) else { continue };
        if source != *path {
            links.push((path, source));
        } else if !covers(nodes, path) {
            insert_bind(nodes, path, source);
        }
    }
    for (path, source) in links {
        if covers(nodes, path) {
            continue;
        }
        if covers(nodes, &source) {
            nodes.insert(path.clone(), Node::Symlink(source));
        } else {
            insert_bind(nodes, path, source);
        }
    }
}

fn insert_bind(nodes: &mut Nodes, path: &Path, source: PathBuf) {
    // Sockets, fifos and devices of the host are nobody's input.
    match std::fs::metadata(&source) {
        Ok(facts) if facts.is_dir() || facts.is_file() => {
            nodes.insert(path.to_owned(), Node::Bind { source, directory: facts.is_dir() });
        }
        _ => {}
    }
}

/// Whether the path is there because it, or a directory above it, is shown.
fn covers(nodes: &Nodes, path: &Path) -> bool {
    path.ancestors().any(|above| matches!(nodes.get(above), Some(Node::Bind { .. } | Node::Symlink(_))))
}

/// Where hidden directories would appear.
fn masks(nodes: &Nodes, hidden: &[PathBuf]) -> Result<Vec<CString>> {
    let mut masked = Vec::new();
    for hidden in hidden.iter().filter(|path| path.is_dir()) {
        let hidden = real("hidden", hidden)?;
        for (path, node) in nodes {
            let Node::Bind { source, directory: true } = node else { continue };
            if let Ok(below) = hidden.strip_prefix(source) {
                // Joining nothing would add a slash.
                masked.push(if below == Path::new("") { c_path(path)? } else { c_path(&path.join(below))? });
            } else if source.starts_with(&hidden) {
                masked.push(c_path(path)?);
            }
        }
    }
    Ok(masked)
}

fn add_parents(nodes: &mut Nodes) {
    let parents: Vec<PathBuf> = nodes
        .keys()
        .flat_map(|path| path.ancestors().skip(1))
        .filter(|path| *path != Path::new("/") && !nodes.contains_key(*path))
        .map(Path::to_owned)
        .collect();
    for parent in parents {
        nodes.insert(parent, Node::Directory);
    }
}

fn entry(path: &Path, node: Node) -> Result<Entry> {
    Ok(match node {
        Node::Directory => Entry::Directory(c_path(path)?),
        Node::Symlink(target) => Entry::Symlink { path: c_path(path)?, target: c_path(&target)? },
        Node::File(text) => Entry::File { path: c_path(path)?, text },
        Node::Bind { source, directory } => Entry::Bind(bind(&source, path, directory)?),
    })
}

fn bind(source: &Path, target: &Path, directory: bool) -> Result<Bind> {
    Ok(Bind { source: c_path(source)?, target: c_path(target)?, directory, fd: Cell::new(-1) })
}

fn device(source: &Path, target: &Path) -> Result<Bind> {
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !target.starts_with("/dev/") || !target.components().all(plain) {
        return Err(error::invalid("devices", format!("{} is no path below /dev", target.display())));
    }
    bind(source, target, false)
}

/// It is memory: bounded as the action's memory is, else by the kernel (half of what there is).
fn shm_options(size_bytes: Option<u64>) -> Result<CString> {
    let size = size_bytes.map_or_else(String::new, |bytes| format!(",size={bytes}"));
    CString::new(format!("mode=1777{size}")).map_err(|_| error::invalid("memory_bytes", "is no number"))
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| error::invalid("path", "contains a NUL byte"))
}

fn real(field: &str, path: &Path) -> Result<PathBuf> {
    if !path.is_absolute() {
        return Err(error::invalid(field, format!("{} is not absolute", path.display())));
    }
    std::fs::canonicalize(path).map_err(|error| error::io("use", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    type Test = std::result::Result<(), Box<dyn std::error::Error>>;

    fn text(path: &CString) -> String {
        path.to_string_lossy().into_owned()
    }

    /// (path, what it is) of each entry.
    fn entries(mounts: &Mounts) -> Vec<(String, String)> {
        let say = |entry: &Entry| match entry {
            Entry::Directory(path) => (text(path), "directory".to_owned()),
            Entry::Symlink { path, target } => (text(path), format!("-> {}", text(target))),
            Entry::File { path, text: bytes } => (text(path), format!("{} bytes", bytes.len())),
            Entry::Bind(bind) => (text(&bind.target), format!("= {}", text(&bind.source))),
        };
        mounts.entries.iter().map(say).collect()
    }

    fn view(shown: &[PathBuf], hidden: &[PathBuf], dir: &Path) -> Result<Mounts> {
        plan_view(ViewOf {
            root: dir,
            root_mount: None,
            tmp: dir,
            shown,
            hidden,
            files: &[],
            devices: &[],
            shm_size_bytes: Some(5),
        })
    }

    #[test]
    fn what_is_shown_is_bound_and_symlinks_between_shown_paths_stay() -> Test {
        let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("usr/bin"))?;
        fs::create_dir_all(at("far/away"))?;
        fs::write(at("far/conf"), "x")?;
        symlink("usr/bin", at("bin"))?;
        symlink("far/away", at("near"))?;
        let shown = ["bin", "near", "usr", "usr/bin", "bin/x", "gone", "far/conf"].map(at);
        let mounts = view(&shown, &[], dir.path())?;
        let base = dir.path().display();
        let found = entries(&mounts);
        let said = |name: &str| found.iter().find(|(path, _)| *path == format!("{base}/{name}"));
        assert_eq!(said("bin").map(|one| &one.1), Some(&format!("-> {base}/usr/bin")));
        assert_eq!(said("near").map(|one| &one.1), Some(&format!("= {base}/far/away")));
        assert_eq!(said("usr").map(|one| &one.1), Some(&format!("= {base}/usr")));
        assert_eq!(said("far").map(|one| &one.1), Some(&"directory".to_owned()));
        assert_eq!(said("far/conf").map(|one| &one.1), Some(&format!("= {base}/far/conf")));
        for absent in ["usr/bin", "bin/x", "gone"] {
            assert_eq!(said(absent), None, "{absent}");
        }
        let mut sorted = found.clone();
        sorted.sort_by(|a, b| Path::new(&a.0).cmp(Path::new(&b.0)));
        assert_eq!(found, sorted, "parents come first");
        assert_eq!(text(&mounts.shm), "mode=1777,size=5");
        Ok(())
    }

    #[test]
    fn hidden_directories_are_masked_wherever_they_would_appear() -> Test {
        let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("opt/state/deep"))?;
        fs::create_dir_all(at("safe"))?;
        symlink("opt", at("other"))?;
        let hidden = [at("opt/state")];
        let masked = |shown: &[PathBuf]| -> Result<Vec<String>> {
            Ok(view(shown, &hidden, dir.path())?.masked.iter().map(text).collect())
        };
        let base = dir.path().display();
        assert_eq!(masked(&[at("opt")])?, [format!("{base}/opt/state")]);
        assert_eq!(masked(&[at("other")])?, [format!("{base}/other/state")]);
        assert_eq!(masked(&[at("opt/state/deep")])?, [format!("{base}/opt/state/deep")]);
        assert_eq!(masked(&[at("opt/state")])?, [format!("{base}/opt/state")]);
        assert!(masked(&[at("safe")])?.is_empty());
        Ok(())
    }

    #[test]
    fn the_whole_machine_is_each_entry_of_its_root_but_what_is_the_actions_own() -> Test {
        let dir = tempfile::tempdir()?;
        let found = entries(&view(&["/".into()], &[], dir.path())?);
        let names: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
        assert!(names.contains(&"/usr"));
        for own in ["/proc", "/dev", "/tmp"] {
            assert!(!names.contains(&own));
        }
        Ok(())
    }

    #[test]
    fn paths_that_cannot_be_shown_are_refused_with_the_reason() -> Test {
        let dir = tempfile::tempdir()?;
        for (path, why) in [("usr", "absolute"), ("/usr/../etc", ".."), ("/proc/sys", "own"), ("/var/tmp/x", "own")] {
            let Err(refused) = view(&[path.into()], &[], dir.path()) else { return Err(path.into()) };
            assert!(refused.message.contains(why), "{}", refused.message);
        }
        Ok(())
    }

    #[test]
    fn the_working_directory_moves_with_the_execution_root() -> Test {
        let root = Path::new("/scratch/7/root");
        assert_eq!(inside(root, root)?, Path::new("/buildnet/root"));
        assert_eq!(inside(root, &root.join("a/b"))?, Path::new("/buildnet/root/a/b"));
        assert!(inside(root, Path::new("/elsewhere")).is_err());
        Ok(())
    }
}
