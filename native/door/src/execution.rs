//! Execute, as far as no decision is needed: a cached result is answered, a malformed or incomplete action refused.
//! Only an action that could run is handed on (decision 0007).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::longrunning::{Operation, operation};
use buildnet_formats::wire::google::rpc;
use buildnet_formats::{Digest, Function, NativeError};
use buildnet_store::Store;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::Any;
use tonic::server::ServerStreamingService;
use tonic::{Request, Response, Status};

use crate::access::{Caller, Right};
use crate::behind::inlined_from;
use crate::bridge::Bridged;
use crate::bytestream::on_disk;
use crate::codec::{decode, encode};
use crate::results::{Inline, inlined};
use crate::services::Services;
use crate::status::{any, status_of};

pub(crate) const EXECUTE: &str = "/build.bazel.remote.execution.v2.Execution/Execute";

const RESPONSE: &str = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse";
/// Of ExecuteResponse.result.
const RESULT_FIELD: u32 = 1;
const RESPONSE_BYTES_MORE: usize = 16;

static CACHED: AtomicU64 = AtomicU64::new(0);

/// Execute before Python.
pub(crate) struct Execute {
    pub(crate) services: Arc<Services>,
    pub(crate) caller: Caller,
    pub(crate) beyond: Bridged,
}

type Replies = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
type Answer = Pin<Box<dyn Future<Output = Result<Response<Replies>, Status>> + Send>>;

impl ServerStreamingService<Bytes> for Execute {
    type Response = Bytes;
    type ResponseStream = Replies;
    type Future = Answer;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (services, caller) = (Arc::clone(&self.services), self.caller.clone());
        let beyond = Bridged { hub: Arc::clone(&self.beyond.hub), method: self.beyond.method };
        Box::pin(execute(services, caller, beyond, request))
    }
}

async fn execute(
    services: Arc<Services>,
    caller: Caller,
    mut beyond: Bridged,
    request: Request<Bytes>,
) -> Result<Response<Replies>, Status> {
    let execute: re::ExecuteRequest = decode(request.get_ref().clone())?;
    caller.check(Right::Execute, &execute.instance_name)?;
    check_function(execute.digest_function).map_err(|e| status_of(&e))?;
    let action = Digest::required(execute.action_digest.as_ref(), "action_digest").map_err(|e| status_of(&e))?;
    let answer = admit(&services, &caller, &execute, action).await?;
    // Who skips the look-up neither hits nor misses.
    if !execute.skip_cache_lookup {
        let observe = &services.observe;
        let counter = if answer.is_some() { &observe.execute_hits } else { &observe.execute_misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(operation) = answer {
        return Ok(Response::new(Box::pin(stream::once(std::future::ready(Ok(encode(&operation)))))));
    }
    let replies = ServerStreamingService::call(&mut beyond, request).await?;
    Ok(replies.map(|replies| replies.boxed() as Replies))
}

/// The finished operation when the result is cached here or in a tier; none when the action is to be run, with all that it
/// needs here.
async fn admit(
    services: &Services,
    caller: &Caller,
    request: &re::ExecuteRequest,
    action: Digest,
) -> Result<Option<Operation>, Status> {
    let complete = || {
        let store = Arc::clone(&services.store);
        on_disk(usize::MAX, move || Ok(complete(&store, &action)))
    };
    // A result that is here waits for no disk: a hop to another thread would cost more than the answer.
    let first = match hit(&services.store, caller, request, &action) {
        Ok(None) => complete().await?,
        answered => answered,
    };
    let Some(tiers) = services.tiers.as_ref().filter(|_| !matches!(first, Ok(Some(_)))) else {
        return first.map_err(|e| status_of(&e));
    };
    if !request.skip_cache_lookup {
        for namespace in caller.looked_up(&request.instance_name) {
            let found = tiers.action_result(namespace.into_owned(), action).await.map_err(|e| status_of(&e))?;
            if let Some(result) = found {
                let result = inlined_from(&services.store, tiers, &action, result, &inline_of(request)).await?;
                return Ok(Some(operation_of(request, &action, result)));
            }
        }
    }
    match first {
        Err(error) if error.code == "blobs_missing" => {
            tiers.pull_action(action).await.map_err(|e| status_of(&e))?;
            complete().await?.map_err(|e| status_of(&e))
        }
        other => other.map_err(|e| status_of(&e)),
    }
}

fn inline_of(request: &re::ExecuteRequest) -> Inline<'_> {
    Inline { stdout: request.inline_stdout, stderr: request.inline_stderr, files: &request.inline_output_files }
}

/// Actions are executed under SHA-256; the other functions are for caching (GetCapabilities says so).
fn check_function(number: i32) -> Result<(), NativeError> {
    match Function::of_message(number)? {
        None | Some(Function::Sha256) => Ok(()),
        Some(other) => Err(NativeError::invalid(
            "digest_function",
            format!("actions are executed under sha256, not under {}; see ExecutionCapabilities", other.name()),
        )),
    }
}

/// The finished operation when the result is cached here.
fn hit(
    store: &Store,
    caller: &Caller,
    request: &re::ExecuteRequest,
    action: &Digest,
) -> Result<Option<Operation>, NativeError> {
    if request.skip_cache_lookup {
        return Ok(None);
    }
    for namespace in caller.looked_up(&request.instance_name) {
        if let Some(hit) = store.get_action_result(&namespace, action)? {
            let result = inlined(store, action.function(), hit, &inline_of(request))?;
            return Ok(Some(operation_of(request, action, result)));
        }
    }
    Ok(None)
}

/// None when all that an action needs is here.
fn complete(store: &Store, action: &Digest) -> Result<Option<Operation>, NativeError> {
    let missing = store.missing_of_action(action)?;
    if missing.is_empty() { Ok(None) } else { Err(NativeError::missing(&missing)) }
}

/// The operation of a result that has inside what was asked.
fn operation_of(request: &re::ExecuteRequest, action: &Digest, result: Bytes) -> Operation {
    let metadata = re::ExecuteOperationMetadata {
        stage: re::execution_stage::Value::Completed as i32,
        action_digest: Some(action.to_message()),
        digest_function: re::digest_function::Value::Sha256 as i32,
        ..Default::default()
    };
    let number = CACHED.fetch_add(1, Ordering::Relaxed);
    let name = format!("operations/cached-{number}-{}", action.hex());
    let name = match request.instance_name.as_str() {
        "" => name,
        instance => format!("{instance}/{name}"),
    };
    Operation {
        name,
        metadata: Some(any("build.bazel.remote.execution.v2.ExecuteOperationMetadata", &metadata)),
        done: true,
        result: Some(operation::Result::Response(Any { type_url: RESPONSE.to_owned(), value: response_of(&result) })),
    }
}

/// An ExecuteResponse of a cached result, whose bytes stay as they are.
fn response_of(result: &[u8]) -> Vec<u8> {
    let rest = re::ExecuteResponse { cached_result: true, status: Some(rpc::Status::default()), ..Default::default() };
    let mut response = Vec::with_capacity(result.len() + RESPONSE_BYTES_MORE);
    encode_key(RESULT_FIELD, WireType::LengthDelimited, &mut response);
    encode_varint(result.len() as u64, &mut response);
    response.extend_from_slice(result);
    rest.encode_raw(&mut response);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_holds_the_result_as_it_is() {
        let result = re::ActionResult { exit_code: 3, stdout_raw: Bytes::from(vec![7; 300]), ..Default::default() };
        let response = re::ExecuteResponse {
            result: Some(result.clone()),
            cached_result: true,
            status: Some(rpc::Status::default()),
            ..Default::default()
        };
        assert_eq!(response_of(&result.encode_to_vec()), response.encode_to_vec());
    }
}
