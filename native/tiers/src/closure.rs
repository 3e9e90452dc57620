//! What a result or an action refers to, at any depth. Trees and Directories that are not here are fetched on the way, since
//! they must be read; the files that they name are not.

use std::collections::HashSet;
use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{
    DEPTH_MAX, DIRECTORIES_MAX, Digest, Function, MESSAGE_BYTES_MAX, NativeError, decode_action, decode_directory,
};
use bytes::Bytes;
use prost::Message;

use crate::inner::Inner;
use crate::port::{EntryKey, TierError, Value, blocking};

/// Digests once each, in the order found.
#[derive(Default)]
struct Found {
    order: Vec<Digest>,
    known: HashSet<Digest>,
}

impl Found {
    fn add(&mut self, digest: Digest) {
        if self.known.insert(digest) {
            self.order.push(digest);
        }
    }
}

impl Inner {
    /// Every blob that a result refers to; none when a Tree or Directory of it is nowhere.
    ///
    /// # Errors
    /// `invalid_request` when the result, or what it refers to, is malformed; those of the local disk.
    pub(crate) async fn references(
        self: &Arc<Self>,
        function: Function,
        result: &[u8],
    ) -> Result<Option<Vec<Digest>>, NativeError> {
        let result = re::ActionResult::decode(result)
            .map_err(|e| NativeError::invalid("action_result", format!("the bytes are not an ActionResult: {e}")))?;
        let by = Some(function);
        let mut found = Found::default();
        for file in &result.output_files {
            found.add(Digest::required_by(by, file.digest.as_ref(), "output_files.digest")?);
        }
        for log in [&result.stdout_digest, &result.stderr_digest].into_iter().flatten() {
            found.add(Digest::from_message_by(by, log)?);
        }
        for directory in &result.output_directories {
            if let Some(tree) = &directory.tree_digest {
                let tree = Digest::from_message_by(by, tree)?;
                let Some(bytes) = self.read(&tree).await? else { return Ok(None) };
                let decoded = re::Tree::decode(bytes)
                    .map_err(|e| NativeError::invalid("tree_digest", format!("{tree} is not a Tree: {e}")))?;
                found.add(tree);
                for file in decoded.root.iter().chain(&decoded.children).flat_map(|directory| &directory.files) {
                    found.add(Digest::required_by(by, file.digest.as_ref(), "tree_digest")?);
                }
            }
            if let Some(root) = &directory.root_directory_digest
                && !self.walk(Digest::from_message_by(by, root)?, &mut found).await?
            {
                return Ok(None);
            }
        }
        Ok(Some(found.order))
    }

    /// Every blob that the value of an entry refers to. Bytes that are not just an ActionResult refer to nothing: clients
    /// of HTTP have formats of their own.
    pub(crate) async fn references_of(
        self: &Arc<Self>,
        key: &EntryKey,
        value: &Value,
    ) -> Result<Option<Vec<Digest>>, NativeError> {
        if value.as_blob {
            return Ok(Some(vec![String::from_utf8_lossy(&value.bytes).parse()?]));
        }
        let EntryKey::Action { action, size_known, .. } = key else { return Ok(Some(Vec::new())) };
        if *size_known || value.action_size.is_some() {
            return self.references(action.function(), &value.bytes).await;
        }
        let decoded = re::ActionResult::decode(value.bytes.clone()).ok();
        if decoded.is_none_or(|result| result.encode_to_vec() != value.bytes) {
            return Ok(Some(Vec::new()));
        }
        match self.references(action.function(), &value.bytes).await {
            Err(error) if error.code == "invalid_request" => Ok(Some(Vec::new())),
            other => other,
        }
    }

    /// Fetch an action, its Command and the Directories below its input root; returns its files, to be fetched next.
    pub(crate) async fn files_of_action(self: &Arc<Self>, action: &Digest) -> Result<Vec<Digest>, NativeError> {
        let Some(bytes) = self.read(action).await? else { return Ok(Vec::new()) };
        let decoded = decode_action(&bytes)?;
        let by = Some(action.function());
        let mut found = Found::default();
        found.add(Digest::required_by(by, decoded.command_digest.as_ref(), "command_digest")?);
        let root = Digest::required_by(by, decoded.input_root_digest.as_ref(), "input_root_digest")?;
        self.walk(root, &mut found).await?;
        Ok(found.order)
    }

    /// Fetch the Directories below `root`; returns whether all are here.
    pub(crate) async fn pull_tree(self: &Arc<Self>, root: Digest) -> Result<bool, NativeError> {
        self.walk(root, &mut Found::default()).await
    }

    /// Breadth first, each level fetched at once. An absent Directory is passed over, and said at the end.
    async fn walk(self: &Arc<Self>, root: Digest, found: &mut Found) -> Result<bool, NativeError> {
        let mut queued = HashSet::from([root]);
        let mut level = vec![root];
        let mut whole = true;
        for _ in 0..=DEPTH_MAX {
            if level.is_empty() {
                return Ok(whole);
            }
            let absent: HashSet<Digest> = self.pull(&level).await?.into_iter().collect();
            let mut next = Vec::new();
            for digest in level {
                found.add(digest);
                if absent.contains(&digest) {
                    whole = false;
                    continue;
                }
                let Some(bytes) = self.read(&digest).await? else {
                    whole = false;
                    continue;
                };
                let directory = decode_directory(&bytes)?;
                let by = Some(digest.function());
                for file in &directory.files {
                    found.add(Digest::required_by(by, file.digest.as_ref(), "files.digest")?);
                }
                for child in &directory.directories {
                    let child = Digest::required_by(by, child.digest.as_ref(), "directories.digest")?;
                    if queued.insert(child) {
                        next.push(child);
                    }
                }
            }
            if queued.len() > DIRECTORIES_MAX {
                return Err(NativeError::invalid(
                    "digest",
                    format!("the tree {root} has over {DIRECTORIES_MAX} directories"),
                ));
            }
            level = next;
        }
        Err(NativeError::invalid("digest", format!("the tree {root} is nested deeper than {DEPTH_MAX} levels")))
    }

    /// A message's bytes, from here or a tier; none when it is nowhere.
    async fn read(self: &Arc<Self>, digest: &Digest) -> Result<Option<Bytes>, NativeError> {
        // Twice: the first reading may find that the local bytes are rotten.
        for _ in 0..2 {
            if !self.ensure(*digest).await? {
                return Ok(None);
            }
            let (store, digest) = (Arc::clone(&self.store), *digest);
            match blocking(move || store.get_bytes(&digest, MESSAGE_BYTES_MAX)).await {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(TierError::Local(error)) if matches!(error.code, "not_found" | "digest_mismatch") => {}
                Err(TierError::Local(error)) => return Err(error),
                Err(other) => return Err(NativeError::new("cancelled", other.text())),
            }
        }
        Ok(None)
    }
}
