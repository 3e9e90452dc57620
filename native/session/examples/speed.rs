//! What a session costs on this machine, as JSON: processor time of a handshake (both ends), and of moving bytes through the
//! frames alone and over a socket beside the same socket without a session. `bench/session.py` runs it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::IoSlice;
use std::time::{Duration, Instant};

use buildnet_session::{Context, DATA_BYTES_MAX, Frames, Handshake, Identity, Limits, Remote, establish};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HANDSHAKES: u32 = 500;
const FRAMES_BYTES: usize = 512 << 20;
const SOCKET_BYTES: usize = 512 << 20;
const WRITE_BYTES: usize = 64 << 10;
const ROUNDS: usize = 5;

fn node() -> Identity {
    let (mut seed, mut secret) = ([0; 32], [0; 32]);
    SystemRandom::new().fill(&mut seed).unwrap();
    SystemRandom::new().fill(&mut secret).unwrap();
    Identity::new(&seed, &secret).unwrap()
}

fn now_unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Of this thread, unlike a wall clock on a shared machine.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

fn ends(one: &Identity, two: &Identity, is_known: bool) -> (Handshake, Handshake) {
    let remote = Remote { node_key: two.node_key(), session_key: is_known.then(|| two.session_key()) };
    let context = Context { organisation: "bench".to_owned(), term: 1 };
    let token: &[u8] = if is_known { b"" } else { b"0123456789abcdef" };
    let dial = Handshake::initiator(one, &remote, &context, token, now_unix_s()).unwrap();
    (dial, Handshake::responder(two, &context, now_unix_s()).unwrap())
}

fn meet(one: &Identity, two: &Identity, is_known: bool) -> (Frames, Frames) {
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
    let (mut wire, mut plain) = (Vec::new(), Vec::new());
    let (began, mut moved) = (cpu(), 0);
    while moved < FRAMES_BYTES {
        moved += a.seal(&[IoSlice::new(&data)], Duration::ZERO, &mut wire).unwrap();
        b.open(&wire, Duration::ZERO, &mut plain).unwrap();
        wire.clear();
        plain.clear();
    }
    moved as f64 / (1 << 20) as f64 / (cpu() - began).as_secs_f64()
}

async fn move_bytes<S: AsyncRead + AsyncWrite + Unpin>(mut from: S, mut to: S) -> f64 {
    let data = vec![7; WRITE_BYTES];
    let began = Instant::now();
    let send = async {
        for _ in 0..SOCKET_BYTES / WRITE_BYTES {
            from.write_all(&data).await.unwrap();
        }
        from.flush().await.unwrap();
        from
    };
    let take = async {
        let mut buffer = vec![0; WRITE_BYTES];
        let mut read = 0;
        while read < SOCKET_BYTES {
            read += to.read(&mut buffer).await.unwrap();
        }
    };
    tokio::join!(send, take);
    SOCKET_BYTES as f64 / (1 << 20) as f64 / began.elapsed().as_secs_f64()
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap());
    let (one, two) = tokio::join!(dialled, listener.accept());
    (one.unwrap(), two.unwrap().0)
}

async fn socket_mib_s(is_session: bool) -> f64 {
    let (one, two) = sockets().await;
    if !is_session {
        return move_bytes(one, two).await;
    }
    let (a, b) = ends(&node(), &node(), true);
    let (limits, timeout) = (Limits::default(), Duration::from_secs(5));
    let (a, b) = tokio::join!(establish(one, a, limits, timeout), establish(two, b, limits, timeout));
    move_bytes(a.unwrap(), b.unwrap()).await
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut plain, mut session) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(runtime.block_on(socket_mib_s(false)));
        session.push(runtime.block_on(socket_mib_s(true)));
    }
    let result = serde_json::json!({
        "handshake_ik_cpu_ms": handshake_ms(true),
        "handshake_xx_cpu_ms": handshake_ms(false),
        "frames_mib_s": frames_mib_s(),
        "plain_mib_s": plain,
        "session_mib_s": session,
    });
    println!("{result}");
}
