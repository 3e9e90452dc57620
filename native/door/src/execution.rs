//! Execute, as far as no decision is needed: a cached result is answered, a malformed or incomplete action refused.
//! Only an action that could run is handed on (decision 0007).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::longrunning::{Operation, operation};
use buildnet_formats::wire::google::rpc;
use buildnet_formats::{Digest, Function, NativeError};
use buildnet_store::{Hit, Store};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
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
    let here = |skip_cache: bool| {
        let (store, caller, mut wanted) = (Arc::clone(&services.store), caller.clone(), request.clone());
        wanted.skip_cache_lookup |= skip_cache;
        on_disk(usize::MAX, move || Ok(consider(&store, &caller, &wanted, &action)))
    };
    let first = here(false).await?;
    let Some(tiers) = services.tiers.as_ref().filter(|_| !matches!(first, Ok(Some(_)))) else {
        return first.map_err(|e| status_of(&e));
    };
    if !request.skip_cache_lookup {
        for namespace in caller.looked_up(&request.instance_name) {
            let found = tiers.action_result(namespace.into_owned(), action).await.map_err(|e| status_of(&e))?;
            if let Some(result) = found {
                let result = inlined_from(&services.store, tiers, &action, result, &inline_of(request)).await?;
                return operation_of(request, &action, result).map(Some).map_err(|e| status_of(&e));
            }
        }
    }
    match first {
        Err(error) if error.code == "blobs_missing" => {
            tiers.pull_action(action).await.map_err(|e| status_of(&e))?;
            here(true).await?.map_err(|e| status_of(&e))
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

/// The finished operation when the result is cached; none when the action is to be run.
fn consider(
    store: &Store,
    caller: &Caller,
    request: &re::ExecuteRequest,
    action: &Digest,
) -> Result<Option<Operation>, NativeError> {
    if !request.skip_cache_lookup {
        for namespace in caller.looked_up(&request.instance_name) {
            if let Some(hit) = store.get_action_result(&namespace, action)? {
                return operation(store, request, action, hit).map(Some);
            }
        }
    }
    let missing = store.missing_of_action(action)?;
    if missing.is_empty() { Ok(None) } else { Err(NativeError::missing(&missing)) }
}

fn operation(store: &Store, request: &re::ExecuteRequest, action: &Digest, hit: Hit) -> Result<Operation, NativeError> {
    operation_of(request, action, inlined(store, action.function(), hit, &inline_of(request))?)
}

/// The operation of a result that has inside what was asked.
fn operation_of(request: &re::ExecuteRequest, action: &Digest, result: Bytes) -> Result<Operation, NativeError> {
    let broken = |status: Status| NativeError::internal(status.message());
    let response = re::ExecuteResponse {
        result: Some(decode(result).map_err(broken)?),
        cached_result: true,
        status: Some(rpc::Status::default()),
        ..Default::default()
    };
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
    Ok(Operation {
        name,
        metadata: Some(any("build.bazel.remote.execution.v2.ExecuteOperationMetadata", &metadata)),
        done: true,
        result: Some(operation::Result::Response(any("build.bazel.remote.execution.v2.ExecuteResponse", &response))),
    })
}
