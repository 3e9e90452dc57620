//! What a server costs that does nothing: the same HTTP/2 and gRPC as the door, constant answers, and no store.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::bytestream as bs;
use buildnet_raw::Raw;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tonic::body::Body;
use tonic::server::{ClientStreamingService, Grpc, ServerStreamingService, UnaryService};
use tonic::{Status, Streaming};

use crate::arguments::FloorOptions;
use crate::content::{HASH_CHARS, KEPT, Template, tail};
use crate::messages::{MISS_SIZE_BYTES, action_result, executed};

const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
const MESSAGE_BYTES_MAX: usize = 16 << 20;
const CHUNK_BYTES: usize = 512 << 10;
/// Blobs of each size that the load reads back.
const POOL_BLOBS: u64 = 640;
const ANSWERS_MAX: usize = 4096;

/// Listen, print the address, and serve until killed.
///
/// # Errors
/// The address cannot be listened on.
pub fn serve(options: &FloorOptions) -> Result<(), String> {
    let named = |error: std::io::Error| format!("{}: {error}", options.listen);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.threads)
        .enable_all()
        .build()
        .map_err(named)?;
    runtime.block_on(async {
        let listener = TcpListener::bind(&options.listen).await.map_err(named)?;
        let address = listener.local_addr().map_err(named)?;
        writeln!(std::io::stdout(), "grpc://{address}").map_err(named)?;
        let floor = Arc::new(Floor::new());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(Arc::clone(&floor), stream));
            }
        })
        .await
        .map_err(|error| error.to_string())
    })
}

async fn connection(floor: Arc<Floor>, stream: TcpStream) {
    // A socket that refuses the option still works.
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let service = service_fn(move |request: Request<Incoming>| {
        let floor = Arc::clone(&floor);
        async move { Ok::<_, Infallible>(floor.answer(request.map(Body::new)).await) }
    });
    // How a connection ended is its peer's affair.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

struct Floor {
    result: Bytes,
    operation: Bytes,
    /// Answers that hold blobs, by request: made once, then constant.
    answers: Mutex<HashMap<Bytes, Arc<[Bytes]>>>,
    blobs: Mutex<HashMap<usize, Arc<Blobs>>>,
}

struct Blobs {
    template: Template,
    numbers: HashMap<[u8; HASH_CHARS], u64>,
}

impl Floor {
    fn new() -> Self {
        Self {
            result: Bytes::from(action_result().encode_to_vec()),
            operation: Bytes::from(executed().encode_to_vec()),
            answers: Mutex::default(),
            blobs: Mutex::default(),
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let mut grpc = Grpc::new(Raw).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let path = request.uri().path();
        let Some((_, method)) = path.rsplit_once('/') else {
            return Status::unimplemented("no such path").into_http();
        };
        let method = match method {
            "Read" => return grpc.server_streaming(Constant { floor: self, method: Method::Read }, request).await,
            "Execute" => {
                return grpc.server_streaming(Constant { floor: self, method: Method::Execute }, request).await;
            }
            "Write" => return grpc.client_streaming(Count, request).await,
            "GetActionResult" => Method::Result,
            "UpdateActionResult" => Method::Update,
            "FindMissingBlobs" => Method::NoneMissing,
            "BatchUpdateBlobs" => Method::BatchUpdate,
            "BatchReadBlobs" => Method::BatchRead,
            _ => return Status::unimplemented("the floor has no such method").into_http(),
        };
        grpc.unary(Constant { floor: self, method }, request).await
    }

    fn unary(&self, method: Method, request: Bytes) -> Result<Bytes, Status> {
        match method {
            // The size of the action is the last field of the request.
            Method::Result if request.ends_with(&[0x10, MISS_SIZE_BYTES as u8]) => Err(Status::not_found("")),
            Method::Result | Method::Update => Ok(self.result.clone()),
            Method::BatchUpdate => batch_update(request),
            Method::BatchRead => Ok(self.remembered(request, |floor, request| floor.batch_read(request))?[0].clone()),
            Method::NoneMissing | Method::Read | Method::Execute => Ok(Bytes::new()),
        }
    }

    fn remembered(
        &self,
        request: Bytes,
        make: impl FnOnce(&Self, Bytes) -> Result<Vec<Bytes>, Status>,
    ) -> Result<Arc<[Bytes]>, Status> {
        let known =
            |floor: &Self| floor.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&request).map(Arc::clone);
        if let Some(answer) = known(self) {
            return Ok(answer);
        }
        let answer: Arc<[Bytes]> = make(self, request.clone())?.into();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() < ANSWERS_MAX {
            answers.insert(request, Arc::clone(&answer));
        }
        Ok(answer)
    }

    fn batch_read(&self, request: Bytes) -> Result<Vec<Bytes>, Status> {
        let request: re::BatchReadBlobsRequest = decode(request)?;
        let mut responses = Vec::with_capacity(request.digests.len());
        for digest in request.digests {
            let data = self.blob(&digest.hash, digest.size_bytes)?;
            responses.push(re::batch_read_blobs_response::Response {
                digest: Some(digest),
                data,
                ..Default::default()
            });
        }
        Ok(vec![Bytes::from(re::BatchReadBlobsResponse { responses }.encode_to_vec())])
    }

    fn read(&self, request: Bytes) -> Result<Vec<Bytes>, Status> {
        let request: bs::ReadRequest = decode(request)?;
        let mut words = request.resource_name.rsplit('/');
        let size = words.next().and_then(|word| word.parse().ok()).unwrap_or(-1);
        let blob = self.blob(words.next().unwrap_or_default(), size)?;
        let pieces = (0..blob.len()).step_by(CHUNK_BYTES).map(|at| blob.slice(at..blob.len().min(at + CHUNK_BYTES)));
        Ok(pieces.map(|data| Bytes::from(bs::ReadResponse { data }.encode_to_vec())).collect())
    }

    fn blob(&self, hash: &str, size: i64) -> Result<Bytes, Status> {
        let size = usize::try_from(size).map_err(|_| Status::invalid_argument("size"))?;
        let mut pools = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let blobs = pools.entry(size).or_insert_with(|| {
            let template = Template::new(size);
            let numbers = (0..POOL_BLOBS).map(|number| (template.hash(&tail(KEPT, number)), number)).collect();
            Arc::new(Blobs { template, numbers })
        });
        let number = <&[u8; HASH_CHARS]>::try_from(hash.as_bytes()).ok().and_then(|hash| blobs.numbers.get(hash));
        let number = number.ok_or_else(|| Status::not_found("the floor has no such blob"))?;
        Ok(blobs.template.blob(&tail(KEPT, *number)))
    }
}

/// The one answer that is no constant: it names what it was sent, or it could not be verified.
fn batch_update(request: Bytes) -> Result<Bytes, Status> {
    let request: re::BatchUpdateBlobsRequest = decode(request)?;
    let response = |request: re::batch_update_blobs_request::Request| re::batch_update_blobs_response::Response {
        digest: request.digest,
        ..Default::default()
    };
    let responses = request.requests.into_iter().map(response).collect();
    Ok(Bytes::from(re::BatchUpdateBlobsResponse { responses }.encode_to_vec()))
}

fn decode<M: Message + Default>(body: Bytes) -> Result<M, Status> {
    M::decode(body).map_err(|error| Status::invalid_argument(error.to_string()))
}

#[derive(Clone, Copy)]
enum Method {
    Result,
    Update,
    NoneMissing,
    BatchUpdate,
    BatchRead,
    Read,
    Execute,
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, Status>> + Send>>;

struct Constant {
    floor: Arc<Floor>,
    method: Method,
}

impl UnaryService<Bytes> for Constant {
    type Response = Bytes;
    type Future = std::future::Ready<Result<tonic::Response<Bytes>, Status>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        std::future::ready(self.floor.unary(self.method, request.into_inner()).map(tonic::Response::new))
    }
}

type Pieces = stream::Iter<std::vec::IntoIter<Result<Bytes, Status>>>;

impl ServerStreamingService<Bytes> for Constant {
    type Response = Bytes;
    type ResponseStream = Pieces;
    type Future = std::future::Ready<Result<tonic::Response<Pieces>, Status>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        if let Method::Execute = self.method {
            let operation = Ok(tonic::Response::new(stream::iter(vec![Ok(self.floor.operation.clone())])));
            return std::future::ready(operation);
        }
        let pieces = self.floor.remembered(request.into_inner(), |floor, request| floor.read(request));
        let streamed = |pieces: Arc<[Bytes]>| stream::iter(pieces.iter().cloned().map(Ok).collect::<Vec<_>>());
        std::future::ready(pieces.map(|pieces| tonic::Response::new(streamed(pieces))))
    }
}

struct Count;

impl ClientStreamingService<Bytes> for Count {
    type Response = Bytes;
    type Future = Answer<Bytes>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let mut requests = request.into_inner();
        Box::pin(async move {
            let mut committed_size = 0;
            while let Some(message) = requests.message().await? {
                let request: bs::WriteRequest = decode(message)?;
                committed_size += request.data.len() as i64;
                if request.finish_write {
                    break;
                }
            }
            Ok(tonic::Response::new(Bytes::from(bs::WriteResponse { committed_size }.encode_to_vec())))
        })
    }
}
