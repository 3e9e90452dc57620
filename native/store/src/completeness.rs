//! What a result or an action refers to, at any depth, and what of it is absent. A hit is complete or it is no hit.

use std::collections::HashMap;
use std::sync::Arc;

use buildnet_formats::quick::{References, references};
use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{
    Digest, Function, MESSAGE_BYTES_MAX, NativeError, decode_action, decode_command, decode_directory,
};
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;

use crate::trees::Wanted;
use crate::{Draft, Origin, Store};

/// Of a directory that is read at once.
const FLAT_BYTES_MAX: u64 = 16 << 10;

/// A result that is complete.
pub struct Hit {
    /// As its writer sent it.
    pub bytes: Bytes,
    /// Whether bytes that have a digest stand inside it as well, where that is known.
    holds_contents: Option<bool>,
    result: Option<re::ActionResult>,
}

impl Hit {
    /// A result that is complete by what its reader knows.
    pub fn new(bytes: Bytes, result: re::ActionResult) -> Self {
        Self { bytes, holds_contents: None, result: Some(result) }
    }

    /// Whether bytes that have a digest stand inside it as well.
    pub fn holds_contents(&self) -> bool {
        self.holds_contents.unwrap_or_else(|| self.result.as_ref().is_none_or(holds_contents))
    }

    /// The result, decoded.
    ///
    /// # Errors
    /// `state_corrupt` when it is none, which was checked when it was written.
    pub fn decoded(self) -> Result<re::ActionResult, NativeError> {
        let broken = |e: prost::DecodeError| NativeError::new("state_corrupt", format!("a stored result is none: {e}"));
        self.result.map_or_else(|| re::ActionResult::decode(self.bytes).map_err(broken), Ok)
    }
}

fn decoded(result: &[u8]) -> Result<re::ActionResult, NativeError> {
    re::ActionResult::decode(result)
        .map_err(|e| NativeError::invalid("action_result", format!("the bytes are not an ActionResult: {e}")))
}

fn holds_contents(result: &re::ActionResult) -> bool {
    (!result.stdout_raw.is_empty() && result.stdout_digest.is_some())
        || (!result.stderr_raw.is_empty() && result.stderr_digest.is_some())
        || result.output_files.iter().any(|file| !file.contents.is_empty())
}

/// What Trees refer to, so that a hit does not read them again. They are named by content: what was read stays true.
#[derive(Default)]
pub(crate) struct Closures(Mutex<HeldClosures>);

#[derive(Default)]
struct HeldClosures {
    by_tree: HashMap<Digest, Arc<[Digest]>>,
    digests: usize,
}

/// Digests kept in [`Closures`], all together: 80 bytes each.
const CLOSURES_MAX: usize = 100_000;

impl Closures {
    fn get(&self, tree: &Digest) -> Option<Arc<[Digest]>> {
        self.0.lock().by_tree.get(tree).cloned()
    }

    fn put(&self, tree: Digest, files: Arc<[Digest]>) {
        let mut held = self.0.lock();
        if held.digests + files.len() > CLOSURES_MAX {
            *held = HeldClosures::default();
        }
        if files.len() <= CLOSURES_MAX {
            held.digests += files.len() + 1;
            held.by_tree.insert(tree, files);
        }
    }
}

fn has_well_formed_digests(function: Function, result: &re::ActionResult) -> bool {
    let files = result.output_files.iter().map(|file| file.digest.as_ref());
    let trees = result.output_directories.iter().filter_map(|d| d.tree_digest.as_ref());
    let roots = result.output_directories.iter().filter_map(|d| d.root_directory_digest.as_ref());
    let logs = [&result.stdout_digest, &result.stderr_digest].into_iter().flatten();
    files
        .chain(trees.chain(roots).chain(logs).map(Some))
        .all(|digest| digest.is_some_and(|digest| Digest::from_message_by(Some(function), digest).is_ok()))
}

impl Store {
    /// The stored result of an action, if every blob that it refers to is here; those are kept a while.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn get_action_result(&self, namespace: &str, action: &Digest) -> Result<Option<Hit>, NativeError> {
        let Some(entry) = self.entry_of_action(namespace, action)? else {
            return Ok(None);
        };
        let known = entry.has_size();
        let bytes = entry.value;
        // What was checked when it was written, and refers to files and logs alone, need not be decoded.
        if known && let Some(references) = references(action.function(), &bytes) {
            let References { digests, holds_contents } = references?;
            let complete = self.find_missing(&digests)?.is_empty();
            return Ok(complete.then_some(Hit { bytes, holds_contents: Some(holds_contents), result: None }));
        }
        // What HTTP clients keep under a hash need not be an ActionResult; here it is a miss.
        let Ok(result) = re::ActionResult::decode(bytes.clone()) else { return Ok(None) };
        match self.missing_of(Some(action.function()), &result) {
            Ok(missing) => Ok(missing.is_empty().then_some(Hit { bytes, holds_contents: None, result: Some(result) })),
            Err(error) if error.code == "invalid_request" => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The stored result of an action, whether or not what it refers to is here.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn stored_result(&self, namespace: &str, action: &Digest) -> Result<Option<Bytes>, NativeError> {
        Ok(self.entry_of_action(namespace, action)?.map(|entry| entry.value))
    }

    /// Store the exact bytes of a result.
    ///
    /// # Errors
    /// `invalid_request` when they are not an ActionResult with well-formed digests; `blobs_missing` when a published
    /// result refers to blobs that are absent. A client's own entry may dangle: it is no hit until its blobs are here.
    pub fn put_action_result(
        self: &Arc<Self>,
        namespace: &str,
        action: &Digest,
        result: &[u8],
        origin: Origin,
    ) -> Result<(), NativeError> {
        self.check_result(action, result, origin)?;
        let draft = Draft::action(namespace, action, Bytes::copy_from_slice(result))?;
        self.put_drafts(vec![(draft, origin)])
    }

    /// Check a result before it is stored.
    ///
    /// # Errors
    /// As [`Store::put_action_result`].
    pub fn check_result(&self, action: &Digest, result: &[u8], origin: Origin) -> Result<(), NativeError> {
        let missing = self.missing_of_result(Some(action.function()), result)?;
        if !missing.is_empty() && matches!(origin, Origin::Published(_)) {
            return Err(NativeError::missing(&missing));
        }
        Ok(())
    }

    /// Whether an entry's value refers to nothing absent. One that is no ActionResult refers to nothing.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn entry_is_complete(&self, function: Function, value: &[u8]) -> Result<bool, NativeError> {
        // A message with fields that are newer than these is an ActionResult all the same: only digests tell.
        let Ok(result) = re::ActionResult::decode(value) else { return Ok(true) };
        if !has_well_formed_digests(function, &result) {
            return Ok(true);
        }
        match self.missing_of_result(Some(function), value) {
            Ok(missing) => Ok(missing.is_empty()),
            // A Tree or Directory that it refers to is malformed.
            Err(error) if error.code == "invalid_request" => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Blobs that an ActionResult refers to and that are absent: files, stdout, stderr, Trees and every file in them,
    /// root Directories and all below them. Those present are kept a while.
    ///
    /// # Errors
    /// `invalid_request` when the bytes, or a Tree or Directory that they refer to, are malformed.
    pub fn missing_of_result(&self, function: Option<Function>, result: &[u8]) -> Result<Vec<Digest>, NativeError> {
        self.missing_of(function, &decoded(result)?)
    }

    /// As [`Store::missing_of_result`], of a result that refers to no directory: a look into the index for each output,
    /// and nothing is read. None when it refers to some.
    ///
    /// # Errors
    /// As [`Store::missing_of_result`].
    pub fn missing_of_flat_result(&self, result: &[u8]) -> Result<Option<Vec<Digest>>, NativeError> {
        let result = decoded(result)?;
        if result.output_directories.is_empty() { self.missing_of(None, &result).map(Some) } else { Ok(None) }
    }

    /// Keep all that a result refers to from being evicted until [`Store::release`], and name what of it is absent; the
    /// rest is held all the same.
    ///
    /// # Errors
    /// As [`Store::missing_of_result`] and [`Store::hold`].
    pub fn hold_result(&self, name: &str, result: &[u8]) -> Result<Vec<Digest>, NativeError> {
        self.hold_references(name, &decoded(result)?)
    }

    /// As [`Store::hold_result`], of a result that refers to no directory: nothing is read. None, with nothing held, when
    /// it refers to some.
    ///
    /// # Errors
    /// As [`Store::hold_result`].
    pub fn hold_flat_result(&self, name: &str, result: &[u8]) -> Result<Option<Vec<Digest>>, NativeError> {
        let result = decoded(result)?;
        if result.output_directories.is_empty() { self.hold_references(name, &result).map(Some) } else { Ok(None) }
    }

    fn hold_references(&self, name: &str, result: &re::ActionResult) -> Result<Vec<Digest>, NativeError> {
        let mut needed = Wanted::by(None);
        let mut missing = self.references_of(None, result, |digests| {
            digests.iter().for_each(|digest| needed.add(*digest));
            Ok(Vec::new())
        })?;
        self.hold(name, &needed.order)?;
        // Looked for once it is held: what is found now stays.
        missing.extend(self.find_missing(&needed.order)?);
        Ok(missing)
    }

    fn missing_of(&self, function: Option<Function>, result: &re::ActionResult) -> Result<Vec<Digest>, NativeError> {
        self.references_of(function, result, |digests| self.find_missing(digests))
    }

    /// All that a result refers to goes to `look`, which may name what is absent; returns that, and Trees and Directories
    /// that could not be read for being absent.
    fn references_of(
        &self,
        function: Option<Function>,
        result: &re::ActionResult,
        mut look: impl FnMut(&[Digest]) -> Result<Vec<Digest>, NativeError>,
    ) -> Result<Vec<Digest>, NativeError> {
        let mut plain = Vec::with_capacity(result.output_files.len() + 2);
        for file in &result.output_files {
            plain.push(Digest::required_by(function, file.digest.as_ref(), "output_files.digest")?);
        }
        for log in [&result.stdout_digest, &result.stderr_digest].into_iter().flatten() {
            plain.push(Digest::from_message_by(function, log)?);
        }
        let mut missing = look(&plain)?;
        for directory in &result.output_directories {
            // A client that is told of a directory without contents could only fail, or make an empty one.
            if directory.tree_digest.is_none() && directory.root_directory_digest.is_none() {
                let message =
                    format!("output directory {:?} names neither a tree nor a root directory", directory.path);
                return Err(NativeError::invalid("output_directories.tree_digest", message));
            }
            if let Some(tree) = &directory.tree_digest {
                let tree = Digest::from_message_by(function, tree)?;
                match self.files_of_tree(&tree)? {
                    Some(files) => {
                        missing.extend(look(&[tree])?);
                        missing.extend(look(&files)?);
                    }
                    None => missing.push(tree),
                }
            }
            if let Some(root) = &directory.root_directory_digest {
                let mut wanted = Wanted::by(function);
                let walked = self.walk(Digest::from_message_by(function, root)?, &mut wanted, &mut missing)?;
                missing.extend(look(&walked)?);
                missing.extend(look(&wanted.order)?);
            }
        }
        Ok(missing)
    }

    /// Every file of a Tree, once each; none when the Tree itself is absent.
    fn files_of_tree(&self, digest: &Digest) -> Result<Option<Arc<[Digest]>>, NativeError> {
        if !self.contains(digest) {
            return Ok(None);
        }
        if let Some(files) = self.closures.get(digest) {
            return Ok(Some(files));
        }
        let bytes = self.get_bytes(digest, MESSAGE_BYTES_MAX)?;
        let tree = re::Tree::decode(bytes)
            .map_err(|e| NativeError::invalid("tree_digest", format!("{digest} is not a Tree: {e}")))?;
        let mut wanted = Wanted::by(Some(digest.function()));
        for directory in tree.root.iter().chain(&tree.children) {
            for file in &directory.files {
                wanted.add_message(file.digest.as_ref(), "tree_digest")?;
            }
        }
        let files: Arc<[Digest]> = wanted.order.into();
        self.closures.put(*digest, Arc::clone(&files));
        Ok(Some(files))
    }

    /// Check an action before it is queued, and name every blob that it needs and that is absent: the Action, its
    /// Command, and its whole input tree.
    ///
    /// # Errors
    /// `invalid_request` when any of them is malformed, the tree is deeper than [`buildnet_formats::DEPTH_MAX`] levels or unfolds into too
    /// many paths.
    pub fn missing_of_action(&self, action: &Digest) -> Result<Vec<Digest>, NativeError> {
        if !self.contains(action) {
            return Ok(vec![*action]);
        }
        let decoded = decode_action(&self.get_bytes(action, MESSAGE_BYTES_MAX)?)?;
        let function = Some(action.function());
        let command = Digest::required_by(function, decoded.command_digest.as_ref(), "command_digest")?;
        let mut missing = Vec::new();
        if self.contains(&command) {
            decode_command(&self.get_bytes(&command, MESSAGE_BYTES_MAX)?)?;
        } else {
            missing.push(command);
        }
        let mut wanted = Wanted::by(function);
        let root = Digest::required_by(function, decoded.input_root_digest.as_ref(), "input_root_digest")?;
        self.walk(root, &mut wanted, &mut missing)?;
        missing.extend(self.find_missing(&wanted.order)?);
        Ok(missing)
    }

    /// Keep everything that an action needs from being evicted until [`Store::release`].
    ///
    /// # Errors
    /// As [`Store::missing_of_action`], `not_found`, and as [`Store::hold`].
    pub fn hold_action(&self, name: &str, action: &Digest) -> Result<(), NativeError> {
        let (command, root) = self.parts_of_action(action)?;
        let mut wanted = Wanted::by(Some(action.function()));
        let walked = self.walk(root, &mut wanted, &mut Vec::new())?;
        let mut needed = wanted.order;
        needed.extend([*action, command]);
        needed.extend(walked);
        self.hold(name, &needed)
    }

    /// As [`Store::hold_action`], of an action whose inputs are one directory: three small messages are read, and no
    /// more. False, with nothing held, when there are more.
    ///
    /// # Errors
    /// As [`Store::hold_action`].
    pub fn hold_flat_action(&self, name: &str, action: &Digest) -> Result<bool, NativeError> {
        let (command, root) = self.parts_of_action(action)?;
        if root.size_bytes() > FLAT_BYTES_MAX {
            return Ok(false);
        }
        let directory = decode_directory(&self.get_bytes(&root, MESSAGE_BYTES_MAX)?)?;
        if !directory.directories.is_empty() {
            return Ok(false);
        }
        let mut wanted = Wanted::by(Some(action.function()));
        for file in &directory.files {
            wanted.add_message(file.digest.as_ref(), "files.digest")?;
        }
        let mut needed = wanted.order;
        needed.extend([*action, command, root]);
        self.hold(name, &needed).map(|()| true)
    }

    fn parts_of_action(&self, action: &Digest) -> Result<(Digest, Digest), NativeError> {
        let decoded = decode_action(&self.get_bytes(action, MESSAGE_BYTES_MAX)?)?;
        let function = Some(action.function());
        let command = Digest::required_by(function, decoded.command_digest.as_ref(), "command_digest")?;
        let root = Digest::required_by(function, decoded.input_root_digest.as_ref(), "input_root_digest")?;
        Ok((command, root))
    }
}
