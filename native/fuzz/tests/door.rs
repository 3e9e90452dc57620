//! A door on loopback and what may come through it: answered or refused in time, never with a fault of its own, and the
//! next caller is served.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use buildnet_door::{AccessOptions, Door, DoorOptions, Event, Hub, Op};
use buildnet_formats::Digest;
use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::bytestream as bs;
use buildnet_fuzz::{corpus, fuzz};
use buildnet_store::{Options, Store};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request};
use prost::Message;
use ring::signature::{Ed25519KeyPair, KeyPair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Runtime;

const CAS: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// UNKNOWN, INTERNAL, UNAVAILABLE and DATA_LOSS blame the server, and Go clients repeat them.
const SERVERS_FAULT: [i32; 4] = [2, 13, 14, 15];

struct House {
    _root: tempfile::TempDir,
    store: Arc<Store>,
    _door: Door,
    address: SocketAddr,
    runtime: Runtime,
    client: SendRequest<Bytes>,
}

struct Answered {
    code: i32,
    body: Vec<u8>,
}

/// What clients write is told to a ledger that takes everything.
async fn ledger(hub: Arc<Hub>) {
    // SAFETY: the hub's descriptor is open as long as the hub, which is held here; its copy lives as long as it is watched.
    let wake = unsafe {
        let own = BorrowedFd::borrow_raw(hub.fd()).try_clone_to_owned().unwrap();
        AsyncFd::register_with_interest(own, Interest::READABLE).unwrap()
    };
    loop {
        let mut ready = wake.readable().await.unwrap();
        ready.clear_ready();
        for event in hub.drain() {
            if let Event::Results { id, rows, .. } = event {
                hub.submit(vec![(id, Op::Reply(vec![0; 8 * rows.len()].into()))]);
            }
        }
    }
}

impl House {
    fn open() -> Self {
        Self::guarded(DoorOptions::default().access)
    }

    fn guarded(access: AccessOptions) -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = Options { free_bytes_min: 0, blob_size_bytes_max: 64 << 20, ..Options::default() };
        let store = Arc::new(Store::open(root.path(), options).unwrap());
        let hub = Arc::new(Hub::new(Vec::new()).unwrap());
        let door =
            Door::new(Arc::clone(&store), Arc::clone(&hub), DoorOptions { access, ..DoorOptions::default() }).unwrap();
        let address = door.start("127.0.0.1:0").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let (client, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            client
        });
        runtime.spawn(ledger(hub));
        Self { _root: root, store, _door: door, address, runtime, client }
    }

    /// One call with `data` as it is; none where no client could send the path.
    fn call(&self, path: &str, headers: HeaderMap, data: Vec<u8>) -> Result<Option<Answered>, String> {
        let uri = format!("http://{}{path}", self.address);
        let Ok(mut request) = Request::builder().method("POST").uri(uri).body(()) else { return Ok(None) };
        *request.headers_mut() = headers;
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let exchange = self.exchange(request, data.into());
        match self.runtime.block_on(async { tokio::time::timeout(ANSWER_TIMEOUT, exchange).await }) {
            Ok(done) => done.map(Some),
            Err(_) => Err(format!("no answer to {path}")),
        }
    }

    async fn exchange(&self, request: Request<()>, data: Bytes) -> Result<Answered, String> {
        let text = |error: h2::Error| error.to_string();
        let mut client = self.client.clone().ready().await.map_err(text)?;
        let (response, mut sending) = client.send_request(request, false).map_err(text)?;
        // A call that its headers alone refuse may be answered, and its stream closed, before the body leaves (RFC 9113, 8.1).
        let sent = sending.send_data(data, true);
        let response = response.await.map_err(|error| match &sent {
            Ok(()) => error.to_string(),
            Err(unsent) => format!("{unsent}, and then {error}"),
        })?;
        let status = |headers: &HeaderMap| headers.get("grpc-status").and_then(|v| v.to_str().ok()?.parse().ok());
        let first = status(response.headers());
        let mut incoming = response.into_body();
        let mut body = Vec::new();
        if let Some(code) = first {
            return Ok(Answered { code, body });
        }
        while let Some(piece) = incoming.data().await {
            let piece = piece.map_err(text)?;
            incoming.flow_control().release_capacity(piece.len()).map_err(text)?;
            body.extend_from_slice(&piece);
        }
        let trailers = incoming.trailers().await.map_err(text)?;
        let code = trailers.as_ref().and_then(status).ok_or("no grpc-status")?;
        Ok(Answered { code, body })
    }

    fn judged(&self, path: &str, headers: HeaderMap, data: Vec<u8>) -> Result<Option<Answered>, String> {
        let answered = self.call(path, headers, data)?;
        match answered {
            Some(answered) if SERVERS_FAULT.contains(&answered.code) => Err(format!("{path}: code {}", answered.code)),
            answered => Ok(answered),
        }
    }

    fn is_served(&self) -> Result<(), String> {
        self.is_served_with(HeaderMap::new())
    }

    fn is_served_with(&self, headers: HeaderMap) -> Result<(), String> {
        let path = format!("{CAS}FindMissingBlobs");
        let answered = self.call(&path, headers, framed(&[]))?;
        answered.filter(|a| a.code == 0).map(|_| ()).ok_or("the next caller is not served".to_owned())
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

/// A path, a line's end, and what follows.
fn parted(input: &[u8]) -> Option<(String, &[u8])> {
    let at = input.iter().position(|byte| *byte == b'\n')?;
    Some((String::from_utf8(input[..at].to_vec()).ok()?, &input[at + 1..]))
}

#[test]
fn request_messages() {
    let house = House::open();
    fuzz(&corpus("requests"), |input| {
        let Some((path, message)) = parted(input) else { return Ok(()) };
        house.judged(&path, HeaderMap::new(), framed(message))?;
        house.is_served()
    });
}

#[test]
fn request_frames() {
    let house = House::open();
    let seeds: Vec<Vec<u8>> = corpus("requests")
        .iter()
        .filter_map(|seed| parted(seed).map(|(path, m)| [path.as_bytes(), b"\n", framed(m).as_slice()].concat()))
        .collect();
    fuzz(&seeds, |input| {
        let Some((path, data)) = parted(input) else { return Ok(()) };
        house.judged(&path, HeaderMap::new(), data.to_vec())?;
        house.is_served()
    });
}

#[test]
fn request_headers() {
    let house = House::open();
    fuzz(&corpus("headers"), |input| {
        let mut headers = HeaderMap::new();
        for line in input.split(|byte| *byte == b'\n') {
            let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
            let name = http::HeaderName::from_bytes(&line[..at]);
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&line[at + 1..])) {
                // HTTP/2 has no connections' own headers (RFC 9113, 8.2.2).
                if !matches!(name.as_str(), "connection" | "transfer-encoding" | "upgrade" | "te" | "content-length") {
                    headers.append(name, value);
                }
            }
        }
        house.judged(&format!("{CAS}FindMissingBlobs"), headers, framed(&[]))?;
        house.is_served()
    });
}

struct Signer {
    pair: Ed25519KeyPair,
    header: String,
}

impl Signer {
    fn new(seed: u8) -> (Self, Vec<u8>) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let public = pair.public_key().as_ref().to_vec();
        let name = ring::digest::digest(&ring::digest::SHA256, &public);
        let header = format!(r#"{{"alg":"EdDSA","typ":"JWT","kid":"{}"}}"#, hex::encode(&name.as_ref()[..16]));
        (Self { pair, header }, public)
    }

    fn token(&self, claims: &[u8]) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(&self.header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

/// The header of a call that brings a token; none where no client could send it.
fn bearer(token: &[u8]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok()?);
    Some(headers)
}

#[test]
fn tokens() {
    let (signer, key) = Signer::new(1);
    let (stranger, _) = Signer::new(2);
    let house = House::guarded(AccessOptions { keys: vec![key], ..AccessOptions::default() });
    let claims = corpus("claims");
    let good: Vec<String> = claims.iter().map(|claims| signer.token(claims)).collect();
    let mut seeds: Vec<Vec<u8>> = claims.iter().map(|claims| stranger.token(claims).into_bytes()).collect();
    seeds.extend(good.iter().map(|token| token.as_bytes()[..token.len() - 4].to_vec()));
    let path = format!("{CAS}FindMissingBlobs");
    let next = bearer(good[0].as_bytes()).unwrap();
    fuzz(&seeds, |input| {
        let Some(headers) = bearer(input) else { return Ok(()) };
        let answered = house.judged(&path, headers, framed(&[]))?.ok_or("no answer")?;
        // The end that was cut off may come back by chance.
        if answered.code != 16 && !good.iter().any(|token| token.as_bytes() == input.trim_ascii()) {
            return Err(format!("code {} for a token that nobody signed", answered.code));
        }
        house.is_served_with(next.clone())
    });
}

#[test]
fn claims() {
    let (signer, key) = Signer::new(1);
    let house = House::guarded(AccessOptions { keys: vec![key], ..AccessOptions::default() });
    let seeds = corpus("claims");
    let next = bearer(signer.token(&seeds[0]).as_bytes()).unwrap();
    let request = re::FindMissingBlobsRequest { instance_name: "team/a".to_owned(), ..Default::default() };
    let request = framed(&request.encode_to_vec());
    fuzz(&seeds, |input| {
        let headers = bearer(signer.token(input).as_bytes()).ok_or("no header")?;
        house.judged(&format!("{CAS}FindMissingBlobs"), headers, request.clone())?;
        house.is_served_with(next.clone())
    });
}

#[test]
fn compressed_streams() {
    let house = House::open();
    let content = b"what was compressed, and compressed, and compressed".repeat(40);
    let (digest, bomb) = (Digest::of(&content), vec![0; 32 << 20]);
    let mut seeds = corpus("zstd");
    for (content, level) in [(content.as_slice(), 3), (content.as_slice(), 19), (bomb.as_slice(), 1)] {
        seeds.push(zstd::bulk::compress(content, level).unwrap());
    }
    let batch_path = format!("{CAS}BatchUpdateBlobs");
    fuzz(&seeds, |input| {
        let blob = re::batch_update_blobs_request::Request {
            digest: Some(digest.to_message()),
            data: input.to_vec().into(),
            compressor: re::compressor::Value::Zstd as i32,
        };
        let batch = re::BatchUpdateBlobsRequest { requests: vec![blob], ..Default::default() }.encode_to_vec();
        let answered = house.judged(&batch_path, HeaderMap::new(), framed(&batch))?.ok_or("no answer")?;
        let batch = re::BatchUpdateBlobsResponse::decode(&answered.body[5..]).map_err(|e| e.to_string())?;
        let code = batch.responses[0].status.as_ref().map_or(0, |status| status.code);
        if SERVERS_FAULT.contains(&code) {
            return Err(format!("a batch: code {code}"));
        }
        let write = bs::WriteRequest {
            resource_name: format!("uploads/x/compressed-blobs/zstd/{digest}"),
            data: input.to_vec().into(),
            finish_write: true,
            ..Default::default()
        };
        house.judged("/google.bytestream.ByteStream/Write", HeaderMap::new(), framed(&write.encode_to_vec()))?;
        match house.store.get_bytes(&digest, 1 << 30) {
            Ok(read) if read != content => Err("wrong bytes were taken".to_owned()),
            _ => Ok(()),
        }
    });
}

#[test]
fn content_in_chunks() {
    let house = House::open();
    let seeds: Vec<Vec<u8>> =
        (1..6usize).map(|n| (0..n * 700_000).map(|at| ((at * at) >> n) as u8).collect()).collect();
    fuzz(&seeds, |input| {
        let digest = house.store.put_bytes(input).map_err(|e| e.to_string())?;
        let split = re::SplitBlobRequest { blob_digest: Some(digest.to_message()), ..Default::default() };
        let answered = house.judged(&format!("{CAS}SplitBlob"), HeaderMap::new(), framed(&split.encode_to_vec()))?;
        let answered = answered.ok_or("no answer")?;
        if answered.code != 0 {
            return if input.is_empty() { Ok(()) } else { Err(format!("code {}", answered.code)) };
        }
        let split = re::SplitBlobResponse::decode(&answered.body[5..]).map_err(|e| e.to_string())?;
        let mut whole = Vec::new();
        for chunk in &split.chunk_digests {
            let chunk = Digest::from_message(chunk).map_err(|e| e.to_string())?;
            whole.extend_from_slice(&house.store.get_bytes(&chunk, 1 << 30).map_err(|e| e.to_string())?);
        }
        if whole == input { Ok(()) } else { Err("the chunks are not the blob".to_owned()) }
    });
}

#[test]
fn http_requests() {
    let house = House::open();
    fuzz(&corpus("http"), |input| {
        let mut stream = TcpStream::connect(house.address).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(|e| e.to_string())?;
        // The door may have answered and closed before all of it was sent.
        let sent = stream.write_all(input).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        if let (Ok(()), Err(error)) = (&sent, &read)
            && matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
        {
            return Err("no answer, and no end".to_owned());
        }
        if answer.starts_with(b"HTTP/1.1 500") || answer.starts_with(b"HTTP/1.1 503") {
            return Err(String::from_utf8_lossy(&answer).into_owned());
        }
        house.is_served()
    });
}
