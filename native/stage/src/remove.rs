//! Scratch trees go, whatever an action made of them; nothing outside them does.
//!
//! Follows no symlink, crosses no mount, needs neither stack nor path length for deep trees.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use crate::error::{self, Result};
use crate::place::Cursor;

/// Remove `path` and all below it; what is not there is removed already.
///
/// # Errors
/// `invalid_request` for a path without a name, `sandbox_failed` when something cannot be removed.
pub fn remove_tree(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(error::invalid("path", format!("{} has no name to remove", path.display())));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let mut cursor = match std::fs::canonicalize(parent).and_then(|parent| Cursor::open(&parent)) {
        Err(failed) if failed.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(|failed| error::io("open", parent, &failed))?,
    };
    remove(&mut cursor, name.to_owned()).map_err(|failed| {
        let at = parent.join(cursor.path());
        error::io("remove all of", &at, &failed)
    })
}

fn remove(cursor: &mut Cursor, name: OsString) -> io::Result<()> {
    // Per level: its own name, and the directories in it that are still to be removed.
    let mut levels: Vec<(OsString, Vec<OsString>)> = Vec::new();
    if let Some(entered) = take(cursor, name, None)? {
        levels.push((entered, unlink_files(cursor)?));
    }
    while let Some((_, directories)) = levels.last_mut() {
        if let Some(next) = directories.pop() {
            if let Some(entered) = take(cursor, next, Some(true))? {
                let inside = unlink_files(cursor)?;
                levels.push((entered, inside));
            }
            continue;
        }
        if let Some((done, _)) = levels.pop() {
            cursor.leave()?;
            absent_is_fine(cursor.remove_directory(&done))?;
        }
    }
    Ok(())
}

/// Unlink `name`, or enter it when it is a directory: then its name comes back.
fn take(cursor: &mut Cursor, name: OsString, directory: Option<bool>) -> io::Result<Option<OsString>> {
    let directory = match directory {
        Some(known) => known,
        None => match cursor.facts(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            facts => facts?.kind() == crate::place::Kind::Directory,
        },
    };
    if !directory {
        absent_is_fine(cursor.unlink(&name))?;
        return Ok(None);
    }
    match cursor.enter_by_force(&name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        entered => entered.map(|()| Some(name)),
    }
}

/// Unlink all but the directories, which come back.
fn unlink_files(cursor: &Cursor) -> io::Result<Vec<OsString>> {
    let mut directories = Vec::new();
    for (name, directory) in cursor.list()? {
        let directory = match directory {
            Some(known) => known,
            None => cursor.facts(&name)?.kind() == crate::place::Kind::Directory,
        };
        if directory {
            directories.push(name);
        } else {
            absent_is_fine(cursor.unlink(&name))?;
        }
    }
    Ok(directories)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    type Test = std::result::Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn a_tree_goes_and_what_it_points_to_stays() -> Test {
        let dir = tempfile::tempdir()?;
        let (tree, kept) = (dir.path().join("tree"), dir.path().join("kept"));
        fs::create_dir_all(tree.join("a/b"))?;
        fs::create_dir(&kept)?;
        fs::write(kept.join("file"), "x")?;
        symlink(&kept, tree.join("a/link"))?;
        symlink("nowhere", tree.join("a/b/dangling"))?;
        fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o000))?;
        remove_tree(&tree)?;
        assert!(!tree.exists());
        assert!(kept.join("file").exists());
        remove_tree(&tree)?;
        Ok(())
    }

    #[test]
    fn a_symlink_itself_goes() -> Test {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("kept"))?;
        symlink("kept", dir.path().join("link"))?;
        remove_tree(&dir.path().join("link"))?;
        assert!(dir.path().join("kept").exists());
        assert!(!dir.path().join("link").is_symlink());
        Ok(())
    }

    #[test]
    fn the_root_is_refused() {
        assert!(remove_tree(Path::new("/")).is_err());
        assert!(remove_tree(Path::new("a/..")).is_err());
    }
}
