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
use tonic::server::ServerStreamingService;
use tonic::{Request, Response, Status};

use crate::access::{Caller, Right};
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
    let (store, observe) = (Arc::clone(&services.store), &services.observe);
    let execute: re::ExecuteRequest = decode(request.get_ref().clone())?;
    caller.check(Right::Execute, &execute.instance_name)?;
    check_function(execute.digest_function).map_err(|e| status_of(&e))?;
    let action = Digest::required(execute.action_digest.as_ref(), "action_digest").map_err(|e| status_of(&e))?;
    let wanted = execute.clone();
    let answer = on_disk(usize::MAX, move || consider(&store, &wanted, &action)).await?;
    // Who skips the look-up neither hits nor misses.
    if !execute.skip_cache_lookup {
        let counter = if answer.is_some() { &observe.execute_hits } else { &observe.execute_misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(operation) = answer {
        return Ok(Response::new(Box::pin(stream::once(std::future::ready(Ok(encode(&operation)))))));
    }
    let replies = ServerStreamingService::call(&mut beyond, request).await?;
    Ok(replies.map(|replies| replies.boxed() as Replies))
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
fn consider(store: &Store, request: &re::ExecuteRequest, action: &Digest) -> Result<Option<Operation>, NativeError> {
    if !request.skip_cache_lookup
        && let Some(result) = store.get_action_result(&request.instance_name, action)?
    {
        return operation(store, request, action, result).map(Some);
    }
    let missing = store.missing_of_action(action)?;
    if missing.is_empty() { Ok(None) } else { Err(NativeError::missing(&missing)) }
}

fn operation(
    store: &Store,
    request: &re::ExecuteRequest,
    action: &Digest,
    result: Bytes,
) -> Result<Operation, NativeError> {
    let inline =
        Inline { stdout: request.inline_stdout, stderr: request.inline_stderr, files: &request.inline_output_files };
    let broken = |status: Status| NativeError::internal(status.message());
    let result = inlined(store, action.function(), result, &inline).map_err(broken)?;
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
