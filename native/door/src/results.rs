//! The action cache's two calls, and what is put inside a result on request.

use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, Function, NativeError};
use buildnet_store::{Hit, Origin, Store};
use bytes::Bytes;
use http::HeaderValue;
use prost::Message;
use tonic::Status;

use crate::access::{Caller, Right};
use crate::codec::{decode, encode, frame};
use crate::describe::request_metadata;
use crate::grpc::Answer;
use crate::hub::ClientResult;
use crate::services::{REPLY_BYTES_MAX, Services};
use crate::status::status_of;
use crate::updates::Update;
use crate::wire::{GetResult, UpdateResult};

const INLINE_BYTES_MAX: usize = 3 << 20;

impl Services {
    pub(crate) fn get_action_result(&self, caller: &Caller, body: Bytes) -> Result<Bytes, Status> {
        let nothing = Inline { stdout: false, stderr: false, files: &[] };
        if let Some(quick) = GetResult::decode(&body) {
            return self.result_of(caller, quick.instance, quick.action, &nothing);
        }
        let request: re::GetActionResultRequest = decode(body)?;
        let action = Function::of_message(request.digest_function)
            .and_then(|function| Digest::required_by(function, request.action_digest.as_ref(), "action_digest"));
        let inline = Inline {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            files: &request.inline_output_files,
        };
        self.result_of(caller, &request.instance_name, action, &inline)
    }

    fn result_of(
        &self,
        caller: &Caller,
        instance: &str,
        action: Result<Digest, NativeError>,
        inline: &Inline<'_>,
    ) -> Result<Bytes, Status> {
        caller.check(Right::Read, instance)?;
        let action = action.map_err(|e| status_of(&e))?;
        for namespace in caller.looked_up(instance) {
            if let Some(hit) = self.store.get_action_result(&namespace, &action).map_err(|e| status_of(&e))? {
                let result = inlined(&self.store, action.function(), hit, inline).map_err(|e| status_of(&e))?;
                return Ok(frame(result));
            }
        }
        Err(miss())
    }

    /// The ledger says that a client wrote this, and then it is there.
    pub(crate) async fn update_action_result(
        &self,
        caller: &Caller,
        requested: Option<HeaderValue>,
        body: Bytes,
    ) -> Result<Answer, Status> {
        let request = UpdateResult::decode(&body)?;
        caller.check(Right::WriteActionCache, &request.instance)?;
        let namespace = caller.written(&request.instance);
        let store = Arc::clone(&self.store);
        let update = || {
            let action = request.action?;
            let result = match request.result {
                None => return Err(NativeError::invalid("action_result", "action_result is not set")),
                // Some clients take a result of no bytes for a miss (REAPI ActionResult): it is given a worker.
                Some(result) if result.is_empty() => {
                    let worker = re::ExecutedActionMetadata { worker: "client".to_owned(), ..Default::default() };
                    encode(&re::ActionResult { execution_metadata: Some(worker), ..Default::default() })
                }
                Some(result) => result,
            };
            store.check_result(&action, &result, Origin::Client(None))?;
            let mut update = Update::of_action(&namespace, &action, result.clone())?;
            // Where the Action is not here there is nothing to say of it but its digest: many clients never send it.
            if action.function() == Function::Sha256 && store.contains(&action) {
                update.client = Some(ClientResult {
                    namespace: namespace.into_owned(),
                    action,
                    result: result.clone(),
                    caller: caller.subject().unwrap_or_default().to_owned(),
                    requested: requested.as_ref().and_then(request_metadata).unwrap_or_default(),
                });
            }
            Ok((update, result))
        };
        let (update, result) = update().map_err(|e| status_of(&e))?;
        self.updates.keep(update).await?;
        Ok(Answer::One(Some(frame(result))))
    }
}

/// What a caller wants inside the result rather than beside it.
pub(crate) struct Inline<'a> {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) files: &'a [String],
}

/// The commonest answer of a cold build: it says nothing that its caller does not know, and costs next to nothing.
fn miss() -> Status {
    Status::not_found("no complete result is known for this action")
}

/// The result with what was asked put inside and nothing else, as long as it fits a reply (REAPI: MUST omit else).
pub(crate) fn inlined(store: &Store, function: Function, hit: Hit, inline: &Inline<'_>) -> Result<Bytes, NativeError> {
    let nothing = !inline.stdout && !inline.stderr && inline.files.is_empty();
    if nothing && hit.bytes.len() <= REPLY_BYTES_MAX && !hit.holds_contents() {
        return Ok(hit.bytes);
    }
    let mut decoded = hit.decoded()?;
    shrink(&mut decoded, inline);
    let mut room = INLINE_BYTES_MAX.saturating_sub(decoded.encoded_len());
    let mut take = |digest: Option<&re::Digest>| -> Option<Bytes> {
        let digest = Digest::from_message_by(Some(function), digest?).ok()?;
        // A blob that cannot be read now is not inlined; its digest stays.
        let data = store.get_bytes(&digest, room as u64).ok()?;
        room -= data.len();
        Some(data)
    };
    if inline.stdout && decoded.stdout_raw.is_empty() {
        decoded.stdout_raw = take(decoded.stdout_digest.as_ref()).unwrap_or_default();
    }
    if inline.stderr && decoded.stderr_raw.is_empty() {
        decoded.stderr_raw = take(decoded.stderr_digest.as_ref()).unwrap_or_default();
    }
    for file in &mut decoded.output_files {
        if file.contents.is_empty() && inline.files.contains(&file.path) {
            file.contents = take(file.digest.as_ref()).unwrap_or_default();
        }
    }
    Ok(encode(&decoded))
}

/// Take out what an uploader put inside although it has a digest and nobody asked for it, or it would not fit.
fn shrink(result: &mut re::ActionResult, inline: &Inline<'_>) {
    let large = result.encoded_len() > INLINE_BYTES_MAX;
    if result.stdout_digest.is_some() && (large || !inline.stdout) {
        result.stdout_raw = Bytes::new();
    }
    if result.stderr_digest.is_some() && (large || !inline.stderr) {
        result.stderr_raw = Bytes::new();
    }
    for file in &mut result.output_files {
        if large || !inline.files.contains(&file.path) {
            file.contents = Bytes::new();
        }
    }
}
