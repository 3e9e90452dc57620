//! What a session costs on this machine, as JSON: processor time of a handshake (both ends), of moving bytes through the
//! frames alone, of an HTTP/2 stream within a session beside one on the bare socket, in turns,
//! and the memory of one that waits. `bench/session.py` runs it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use buildnet_session::{
    Context, DATA_BYTES_MAX, Frames, Handshake, Identity, Limits, Remote, SessionStream, establish,
};
use bytes::Bytes;
use http::{Request, Response};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HANDSHAKES: u32 = 500;
const FRAMES_BYTES: usize = 512 << 20;
const SOCKET_BYTES: usize = 256 << 20;
const WRITE_BYTES: usize = 64 << 10;
/// As the door's.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const ROUNDS: usize = 5;
/// Both ends are here, and 1,024 descriptors are usual.
const SESSIONS: usize = 400;

fn node() -> Arc<Identity> {
    let (mut seed, mut secret) = ([0; 32], [0; 32]);
    SystemRandom::new().fill(&mut seed).unwrap();
    SystemRandom::new().fill(&mut secret).unwrap();
    Arc::new(Identity::new(&seed, &secret).unwrap())
}

fn now_unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Of this thread, unlike a wall clock on a shared machine.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

fn ends(one: &Arc<Identity>, two: &Arc<Identity>, is_known: bool) -> (Handshake, Handshake) {
    let remote = Remote { node_key: two.node_key(), session_key: is_known.then(|| two.session_key()) };
    let context = Context { organisation: "bench".to_owned(), term: 1 };
    let token: &[u8] = if is_known { b"" } else { b"0123456789abcdef" };
    let dial = Handshake::initiator(one, &remote, &context, token, now_unix_s()).unwrap();
    (dial, Handshake::responder(two, &context, now_unix_s()).unwrap())
}

fn meet(one: &Arc<Identity>, two: &Arc<Identity>, is_known: bool) -> (Frames, Frames) {
    let (mut a, mut b) = ends(one, two, is_known);
    for _ in 0..2 {
        b.feed(&a.take_output()).unwrap();
        a.feed(&b.take_output()).unwrap();
    }
    let limits = Limits::default();
    (a.finish(limits, Duration::ZERO).unwrap().1, b.finish(limits, Duration::ZERO).unwrap().1)
}

fn handshake_ms(is_known: bool) -> f64 {
    let (one, two) = (node(), node());
    let began = cpu();
    for _ in 0..HANDSHAKES {
        meet(&one, &two, is_known);
    }
    (cpu() - began).as_secs_f64() * 1e3 / f64::from(HANDSHAKES)
}

/// Seal and open, one thread doing both.
fn frames_mib_s() -> f64 {
    let (mut a, mut b) = meet(&node(), &node(), true);
    let data = vec![7; DATA_BYTES_MAX];
    let mut wire = Vec::new();
    let (began, mut moved) = (cpu(), 0);
    while moved < FRAMES_BYTES {
        moved += a.seal(&[IoSlice::new(&data)], Duration::ZERO, &mut wire).unwrap();
        b.open(&mut wire, Duration::ZERO).unwrap();
        wire.clear();
    }
    moved as f64 / (1 << 20) as f64 / (cpu() - began).as_secs_f64()
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(64 << 10)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    while let Some(call) = connection.accept().await {
        let (request, mut respond) = call.unwrap();
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(piece) = body.data().await {
                let length = piece.unwrap().len();
                body.flow_control().release_capacity(length).unwrap();
            }
            respond.send_response(Response::new(()), true).unwrap();
        });
    }
}

/// One upload over HTTP/2, as gRPC makes it: MiB a second of this thread's processor time, both ends and the kernel's part.
async fn upload<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(from: S, to: S) -> f64 {
    let server = tokio::spawn(serve(to));
    let (client, connection) = h2::client::handshake(from).await.unwrap();
    let client_side = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let data = Bytes::from(vec![7; WRITE_BYTES]);
    let began = cpu();
    let request = Request::post("http://bench/").body(()).unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    let mut left = SOCKET_BYTES;
    while left > 0 {
        body.reserve_capacity(WRITE_BYTES);
        let room = std::future::poll_fn(|waking| body.poll_capacity(waking)).await.unwrap().unwrap();
        let size = room.min(WRITE_BYTES).min(left);
        left -= size;
        body.send_data(data.slice(..size), left == 0).unwrap();
    }
    response.await.unwrap();
    let speed = SOCKET_BYTES as f64 / (1 << 20) as f64 / (cpu() - began).as_secs_f64();
    drop((client, body));
    client_side.abort();
    server.abort();
    speed
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap());
    let (one, two) = tokio::join!(dialled, listener.accept());
    (one.unwrap(), two.unwrap().0)
}

async fn sessions() -> (SessionStream<TcpStream>, SessionStream<TcpStream>) {
    let (one, two) = sockets().await;
    let (a, b) = ends(&node(), &node(), true);
    let (limits, timeout) = (Limits::default(), Duration::from_secs(5));
    let (a, b) = tokio::join!(establish(one, a, limits, timeout), establish(two, b, limits, timeout));
    (a.unwrap(), b.unwrap())
}

async fn socket_mib_s(is_session: bool) -> f64 {
    if is_session {
        let (one, two) = sessions().await;
        return upload(one, two).await;
    }
    let (one, two) = sockets().await;
    upload(one, two).await
}

fn resident_kib() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = pages.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as f64 / 1024.0
}

/// Of an end of a session on which little is said: user memory, without the kernel's for its socket.
async fn idle_kib() -> f64 {
    let before = resident_kib();
    let mut held = Vec::new();
    for _ in 0..SESSIONS {
        let (mut one, mut two) = sessions().await;
        for _ in 0..2 {
            let mut heard = [0; 1000];
            one.write_all(&[1; 1000]).await.unwrap();
            one.flush().await.unwrap();
            two.read_exact(&mut heard).await.unwrap();
            (one, two) = (two, one);
        }
        held.push((one, two));
    }
    (resident_kib() - before) / (2 * held.len()) as f64
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // First, before anything else has taken memory and given it back.
    let idle_kib = runtime.block_on(idle_kib());
    let (mut plain, mut session) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(runtime.block_on(socket_mib_s(false)));
        session.push(runtime.block_on(socket_mib_s(true)));
    }
    let result = serde_json::json!({
        "handshake_ik_cpu_ms": handshake_ms(true),
        "handshake_xx_cpu_ms": handshake_ms(false),
        "idle_kib": idle_kib,
        "frames_mib_s": frames_mib_s(),
        "plain_mib_s": plain,
        "session_mib_s": session,
    });
    println!("{result}");
}
