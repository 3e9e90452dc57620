//! Calls with tiers behind the store: each is answered from the store first, and only what that lacks is asked of the tiers.
//! Without tiers none of this runs. It checks no right: the first answer did.

use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, Function, NativeError};
use buildnet_raw::FRAME_BYTES;
use buildnet_store::{Hit, Store};
use buildnet_tiers::Tiers;
use bytes::Bytes;
use tonic::{Code, Status};

use crate::access::Caller;
use crate::bytestream::on_disk;
use crate::codec::{decode, frame};
use crate::results::{Inline, inlined};
use crate::services::{Method, Services};
use crate::spare;
use crate::status::{inner_status, status_of};
use crate::wire::{FindMissing, framed};

fn refuse(error: NativeError) -> Status {
    status_of(&error)
}

impl Services {
    /// The store's own answer to a call; what may wait for the disk does not hold up the network, nor long work where `many`
    /// calls wait for its thread.
    pub(crate) async fn answer_here(
        self: &Arc<Self>,
        caller: &Caller,
        method: Method,
        body: Bytes,
        many: bool,
    ) -> Result<Bytes, Status> {
        if method.is_slow(self.store.waits_for_disk()) {
            let (services, caller) = (Arc::clone(self), caller.clone());
            return on_disk(usize::MAX, move || Ok(services.answer(&caller, method, body))).await?;
        }
        if many && method.is_long(body.len()) {
            let (services, caller) = (Arc::clone(self), caller.clone());
            return Box::pin(spare::beside(move || services.answer(&caller, method, body))).await?;
        }
        self.answer(caller, method, body)
    }

    /// Complete the store's own answer to a call.
    pub(crate) async fn answer_behind(
        self: &Arc<Self>,
        tiers: &Tiers,
        caller: &Caller,
        method: Method,
        body: Bytes,
        first: Result<Bytes, Status>,
    ) -> Result<Bytes, Status> {
        match method {
            Method::FindMissingBlobs => self.find_missing_behind(tiers, &body, first?).await,
            Method::BatchReadBlobs => {
                let answer = first?;
                let request: re::BatchReadBlobsRequest = decode(body.clone())?;
                let absent = self.absent_of(request.digest_function, &request.digests)?;
                if absent.is_empty() || tiers.pull(absent.clone()).await.map_err(refuse)?.len() == absent.len() {
                    return Ok(answer);
                }
                self.answer_here(caller, method, body, false).await
            }
            Method::BatchUpdateBlobs => batch_updated(tiers, &body, first?).await,
            Method::GetActionResult => match first {
                Err(status) if status.code() == Code::NotFound => self.result_behind(tiers, caller, body, status).await,
                other => other,
            },
            Method::SplitBlob => match first {
                Err(status) if status.code() == Code::NotFound => {
                    let request: re::SplitBlobRequest = decode(body.clone())?;
                    let blob = request.blob_digest.into_iter().collect::<Vec<_>>();
                    self.again(tiers, caller, method, body, request.digest_function, &blob, status).await
                }
                other => other,
            },
            Method::SpliceBlob => {
                let request: re::SpliceBlobRequest = decode(body.clone())?;
                let done = match first {
                    Err(status) if status.code() == Code::NotFound => {
                        let function = request.digest_function;
                        self.again(tiers, caller, method, body, function, &request.chunk_digests, status).await?
                    }
                    other => other?,
                };
                let blob = request.blob_digest.as_ref();
                let blob = action_of(request.digest_function, blob).map_err(refuse)?;
                written(tiers, blob).await?;
                Ok(done)
            }
            _ => first,
        }
    }

    /// Bring blobs here and answer the call once more; with nothing brought, the first refusal stands.
    #[allow(clippy::too_many_arguments)]
    async fn again(
        self: &Arc<Self>,
        tiers: &Tiers,
        caller: &Caller,
        method: Method,
        body: Bytes,
        function: i32,
        blobs: &[re::Digest],
        refusal: Status,
    ) -> Result<Bytes, Status> {
        let absent = self.absent_of(function, blobs)?;
        if absent.is_empty() || tiers.pull(absent.clone()).await.map_err(refuse)?.len() == absent.len() {
            return Err(refusal);
        }
        self.answer_here(caller, method, body, false).await
    }

    /// Well-formed digests that are not here; the store's answer has refused the others.
    fn absent_of(&self, function: i32, messages: &[re::Digest]) -> Result<Vec<Digest>, Status> {
        let function = Function::of_message(function).map_err(refuse)?;
        let digests: Vec<Digest> =
            messages.iter().filter_map(|message| Digest::from_message_by(function, message).ok()).collect();
        self.store.find_missing(&digests).map_err(refuse)
    }

    async fn find_missing_behind(&self, tiers: &Tiers, body: &Bytes, first: Bytes) -> Result<Bytes, Status> {
        if first.len() == FRAME_BYTES {
            return Ok(first);
        }
        let request = FindMissing::decode(body)?;
        let absent = self.store.find_missing(&request.digests).map_err(refuse)?;
        let missing = tiers.missing(absent).await.map_err(refuse)?;
        let missing_blob_digests = missing.iter().map(Digest::to_message).collect();
        Ok(framed(&re::FindMissingBlobsResponse { missing_blob_digests }))
    }

    async fn result_behind(
        &self,
        tiers: &Tiers,
        caller: &Caller,
        body: Bytes,
        refusal: Status,
    ) -> Result<Bytes, Status> {
        let request: re::GetActionResultRequest = decode(body)?;
        let action = action_of(request.digest_function, request.action_digest.as_ref()).map_err(refuse)?;
        for namespace in caller.looked_up(&request.instance_name) {
            let found = tiers.action_result(namespace.into_owned(), action).await.map_err(refuse)?;
            if let Some(result) = found {
                let inline = Inline {
                    stdout: request.inline_stdout,
                    stderr: request.inline_stderr,
                    files: &request.inline_output_files,
                };
                return inlined_from(&self.store, tiers, &action, result, &inline).await.map(frame);
            }
        }
        Err(refusal)
    }
}

/// The result with what was asked put inside, wherever that is.
pub(crate) async fn inlined_from(
    store: &Store,
    tiers: &Tiers,
    action: &Digest,
    result: Bytes,
    inline: &Inline<'_>,
) -> Result<Bytes, Status> {
    let decoded: re::ActionResult = decode(result.clone())?;
    if inline.stdout || inline.stderr || !inline.files.is_empty() {
        let stdout = decoded.stdout_digest.iter().filter(|_| inline.stdout);
        let stderr = decoded.stderr_digest.iter().filter(|_| inline.stderr);
        let files = decoded.output_files.iter().filter(|file| inline.files.contains(&file.path));
        let wanted = stdout.chain(stderr).chain(files.filter_map(|file| file.digest.as_ref()));
        let wanted: Vec<Digest> =
            wanted.filter_map(|message| Digest::from_message_by(Some(action.function()), message).ok()).collect();
        // What cannot be brought is not inlined; its digest stays.
        tiers.pull(wanted).await.map_err(refuse)?;
    }
    inlined(store, action.function(), Hit::new(result, decoded), inline).map_err(refuse)
}

fn action_of(function: i32, message: Option<&re::Digest>) -> Result<Digest, NativeError> {
    Digest::required_by(Function::of_message(function)?, message, "action_digest")
}

/// Tell the tiers of one blob that a client sent.
pub(crate) async fn written(tiers: &Tiers, digest: Digest) -> Result<(), Status> {
    tiers.written(vec![digest]).await.into_iter().try_for_each(|done| done).map_err(refuse)
}

/// Blobs that the store took and a tier did not are not acknowledged.
async fn batch_updated(tiers: &Tiers, body: &Bytes, answer: Bytes) -> Result<Bytes, Status> {
    let request: re::BatchUpdateBlobsRequest = decode(body.clone())?;
    let function = Function::of_message(request.digest_function).map_err(refuse)?;
    let mut response: re::BatchUpdateBlobsResponse = decode(answer.slice(FRAME_BYTES..))?;
    let (mut digests, mut numbers) = (Vec::new(), Vec::new());
    for (number, one) in response.responses.iter().enumerate() {
        if one.status.as_ref().is_some_and(|status| status.code == 0)
            && let Ok(digest) = Digest::required_by(function, one.digest.as_ref(), "digest")
        {
            digests.push(digest);
            numbers.push(number);
        }
    }
    let done = tiers.written(digests).await;
    if done.iter().all(Result::is_ok) {
        return Ok(answer);
    }
    for (number, done) in numbers.into_iter().zip(done) {
        response.responses[number].status = Some(inner_status(&done));
    }
    Ok(framed(&response))
}
