//! What an Action, a Command and a Directory must look like before anything acts on them (REAPI sections of the same
//! names). A message is refused with the field and the reason; nothing is repaired.

use std::collections::HashSet;

use prost::Message;

use crate::wire::build::bazel::remote::execution::v2 as re;
use crate::{Digest, NativeError};

/// Levels of directories in an input or output tree.
pub const DEPTH_MAX: usize = 1000;
/// Distinct directories in one tree.
pub const DIRECTORIES_MAX: usize = 1_000_000;
/// Size of one Action, Command, Directory or Tree message.
pub const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// Properties of nodes that a Command may ask for (REAPI ExecutionCapabilities.supported_node_properties).
pub const NODE_PROPERTIES: [&str; 2] = ["mtime", "unix_mode"];
/// How older clients write them.
const NODE_PROPERTIES_BEFORE: [&str; 2] = ["MTime", "UnixMode"];

const PATH_BYTES_MAX: usize = 4096;

/// Decode an Action whose bytes are canonical: no unknown field, no other order, no default written out.
///
/// # Errors
/// `invalid_request` when it cannot be decoded, is not canonical, or lacks a digest.
pub fn decode_action(bytes: &[u8]) -> Result<re::Action, NativeError> {
    let action: re::Action = decode(bytes, "action_digest", "Action")?;
    if action.encode_to_vec() != bytes {
        return Err(NativeError::invalid(
            "action_digest",
            "the Action is not canonical: it has unknown fields, or fields out of order",
        ));
    }
    Digest::required(action.command_digest.as_ref(), "command_digest")?;
    Digest::required(action.input_root_digest.as_ref(), "input_root_digest")?;
    Ok(action)
}

/// Decode a Command and check its arguments, variables, paths and what it asks of outputs.
///
/// # Errors
/// `invalid_request` with the field.
pub fn decode_command(bytes: &[u8]) -> Result<re::Command, NativeError> {
    let command: re::Command = decode(bytes, "command_digest", "Command")?;
    if command.arguments.first().is_none_or(String::is_empty) {
        return Err(NativeError::invalid("arguments", "the Command has no arguments; the first names the program"));
    }
    if command.arguments.iter().any(|argument| argument.contains('\0')) {
        return Err(NativeError::invalid("arguments", "an argument holds a NUL byte"));
    }
    let mut names = HashSet::new();
    for variable in &command.environment_variables {
        let name = &variable.name;
        if name.is_empty() || name.contains(['=', '\0']) || variable.value.contains('\0') {
            return Err(NativeError::invalid("environment_variables", format!("{name:?} cannot be a variable")));
        }
        if !names.insert(name) {
            return Err(NativeError::invalid("environment_variables", format!("{name:?} is set twice")));
        }
    }
    if !command.working_directory.is_empty() {
        check_path(&command.working_directory, "working_directory")?;
    }
    #[allow(deprecated)]
    let outputs = [
        ("output_paths", &command.output_paths),
        ("output_files", &command.output_files),
        ("output_directories", &command.output_directories),
    ];
    for (field, paths) in outputs {
        for path in paths {
            check_output(path, field, &command.working_directory)?;
        }
    }
    let is_known = |name: &str| NODE_PROPERTIES.contains(&name) || NODE_PROPERTIES_BEFORE.contains(&name);
    if let Some(name) = command.output_node_properties.iter().find(|name| !is_known(name)) {
        let message = format!("{name:?} is not one of {}", NODE_PROPERTIES.join(", "));
        return Err(NativeError::invalid("output_node_properties", message));
    }
    Ok(command)
}

/// Decode a Directory and check that its names are plain, sorted and unique, and that its symlinks are relative.
///
/// # Errors
/// `invalid_request` naming the entry.
pub fn decode_directory(bytes: &[u8]) -> Result<re::Directory, NativeError> {
    let directory: re::Directory = decode(bytes, "input_root_digest", "Directory")?;
    check_directory(&directory)?;
    Ok(directory)
}

fn check_directory(directory: &re::Directory) -> Result<(), NativeError> {
    let mut names = HashSet::new();
    let groups: [Vec<&str>; 3] = [
        directory.files.iter().map(|f| f.name.as_str()).collect(),
        directory.directories.iter().map(|d| d.name.as_str()).collect(),
        directory.symlinks.iter().map(|s| s.name.as_str()).collect(),
    ];
    for group in &groups {
        for name in group {
            check_name(name)?;
            if !names.insert(*name) {
                return Err(refuse_entry(name, "stands twice in one Directory"));
            }
        }
        if let Some(pair) = group.windows(2).find(|pair| pair[0] > pair[1]) {
            return Err(refuse_entry(pair[1], "is out of order: entries are sorted by name"));
        }
    }
    for file in &directory.files {
        Digest::required(file.digest.as_ref(), "files.digest")?;
    }
    for child in &directory.directories {
        Digest::required(child.digest.as_ref(), "directories.digest")?;
    }
    for link in &directory.symlinks {
        if link.target.is_empty() || link.target.contains('\0') {
            return Err(refuse_entry(&link.name, "is a symlink without a target"));
        }
        if link.target.starts_with('/') {
            return Err(refuse_entry(&link.name, "is a symlink to an absolute path, which this server does not allow"));
        }
    }
    Ok(())
}

/// Whether a relative symlink in a directory `depth` levels below the root stays below the root.
pub fn symlink_target_stays(target: &str, depth: usize) -> bool {
    let mut level = depth;
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => match level.checked_sub(1) {
                Some(up) => level = up,
                None => return false,
            },
            _ => level += 1,
        }
    }
    !target.starts_with('/')
}

fn check_name(name: &str) -> Result<(), NativeError> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) || name.len() > 255 {
        return Err(refuse_entry(name, "is not the name of a directory entry"));
    }
    Ok(())
}

fn check_path(path: &str, field: &'static str) -> Result<(), NativeError> {
    let refuse = |why: &str| NativeError::invalid(field, format!("{path:?} in {field} {why}"));
    check_plain(path, field)?;
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(refuse("is not normalised: it has an empty, '.' or '..' segment, or a slash at its end"));
    }
    Ok(())
}

/// Compilers are told to write beside the directory that they run in, and their wrappers (recc) repeat the path as it was
/// given: it may climb, as long as it stays below the input root.
fn check_output(path: &str, field: &'static str, working_directory: &str) -> Result<(), NativeError> {
    let refuse = |why: &str| NativeError::invalid(field, format!("{path:?} in {field} {why}"));
    check_plain(path, field)?;
    // An empty path is the working directory itself, which only a directory can be.
    if path.is_empty() && field == "output_files" {
        return Err(refuse("names no file"));
    }
    if path.ends_with('/') {
        return Err(refuse("has a slash at its end"));
    }
    let depth = working_directory.split('/').filter(|part| !part.is_empty()).count();
    if !symlink_target_stays(path, depth) {
        return Err(refuse("leads out of the input root"));
    }
    Ok(())
}

fn check_plain(path: &str, field: &'static str) -> Result<(), NativeError> {
    let refuse = |why: &str| NativeError::invalid(field, format!("{path:?} in {field} {why}"));
    if path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(refuse("is too long or holds a NUL byte"));
    }
    if path.starts_with('/') {
        return Err(refuse("is absolute; paths are relative to the input root"));
    }
    Ok(())
}

fn refuse_entry(name: &str, why: &str) -> NativeError {
    NativeError::invalid("input_root_digest", format!("the input {name:?} {why}"))
}

fn decode<M: Message + Default>(bytes: &[u8], field: &'static str, kind: &str) -> Result<M, NativeError> {
    M::decode(bytes).map_err(|error| NativeError::invalid(field, format!("the bytes are not a {kind}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn action() -> re::Action {
        re::Action {
            command_digest: Some(Digest::of(b"c").to_message()),
            input_root_digest: Some(Digest::of(b"r").to_message()),
            ..Default::default()
        }
    }

    #[test]
    fn an_action_must_be_canonical() {
        let bytes = action().encode_to_vec();
        assert!(decode_action(&bytes).is_ok());
        let mut unknown = bytes.clone();
        unknown.extend_from_slice(&[0xf8, 0x07, 0x01]);
        assert!(decode_action(&unknown).unwrap_err().message.contains("canonical"));
        let mut twice = bytes.clone();
        twice.extend_from_slice(&bytes);
        assert!(decode_action(&twice).is_err());
        assert!(decode_action(&[]).is_err());
    }

    #[test]
    fn names_that_leave_their_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "../x", "/tmp/x", "a\0"] {
            let directory = re::Directory {
                files: vec![re::FileNode {
                    name: name.to_owned(),
                    digest: Some(Digest::empty().to_message()),
                    ..Default::default()
                }],
                ..Default::default()
            };
            assert!(decode_directory(&directory.encode_to_vec()).is_err(), "{name:?}");
        }
    }

    #[test]
    fn entries_are_sorted_and_unique_over_all_kinds() {
        let file = |name: &str| re::FileNode {
            name: name.to_owned(),
            digest: Some(Digest::empty().to_message()),
            ..Default::default()
        };
        let link = |name: &str| re::SymlinkNode { name: name.to_owned(), target: "t".to_owned(), ..Default::default() };
        let check = |files: Vec<re::FileNode>, symlinks: Vec<re::SymlinkNode>| {
            decode_directory(&re::Directory { files, symlinks, ..Default::default() }.encode_to_vec())
        };
        assert!(check(vec![file("a"), file("b")], vec![link("c")]).is_ok());
        assert!(check(vec![file("b"), file("a")], vec![]).is_err());
        assert!(check(vec![file("a"), file("a")], vec![]).is_err());
        assert!(check(vec![file("a")], vec![link("a")]).is_err());
    }

    #[test]
    fn a_symlink_may_climb_no_further_than_the_root() {
        assert!(symlink_target_stays("a/../b", 0));
        assert!(symlink_target_stays("../b", 1));
        assert!(!symlink_target_stays("../b", 0));
        assert!(!symlink_target_stays("a/../../b", 0));
        assert!(!symlink_target_stays("/etc", 5));
    }

    #[test]
    fn output_paths_stay_inside() {
        let decoded = |working_directory: &str, path: &str| {
            let command = re::Command {
                arguments: vec!["x".to_owned()],
                working_directory: working_directory.to_owned(),
                output_paths: vec![path.to_owned()],
                ..Default::default()
            };
            decode_command(&command.encode_to_vec())
        };
        for path in ["/abs", "../up", "a/../../b", "a/", "a\0b"] {
            assert!(decoded("", path).is_err(), "{path:?}");
        }
        for path in ["", ".", "a//b", "./a", "a/../b"] {
            assert!(decoded("", path).is_ok(), "{path:?}");
        }
        assert!(decoded("w/v", "../../up").is_ok() && decoded("w/v", "../../../up").is_err());
        for place in ["..", "a/../b", "./a", "a/", "/a"] {
            assert!(decoded(place, "x").is_err(), "{place:?}");
        }
    }

    #[test]
    fn a_property_of_nodes_that_nobody_can_tell_is_refused_before_anything_runs() {
        let asking = |name: &str| re::Command {
            arguments: vec!["x".to_owned()],
            output_node_properties: vec!["unix_mode".to_owned(), name.to_owned()],
            ..Default::default()
        };
        for name in ["mtime", "MTime"] {
            assert!(decode_command(&asking(name).encode_to_vec()).is_ok(), "{name}");
        }
        for name in ["colour", "", "MTIME"] {
            let refused = decode_command(&asking(name).encode_to_vec()).unwrap_err();
            assert_eq!(refused.code, "invalid_request", "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = decode_action(&bytes);
            let _ = decode_command(&bytes);
            let _ = decode_directory(&bytes);
        }

        #[test]
        fn a_decoded_action_has_one_encoding(bytes: Vec<u8>) {
            if let Ok(action) = decode_action(&bytes) {
                prop_assert_eq!(action.encode_to_vec(), bytes);
            }
        }
    }
}
