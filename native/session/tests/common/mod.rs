//! Two ends that know each other, over whatever joins them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use buildnet_session::{Context, Handshake, Identity, Limits, Remote, SessionError, SessionStream, establish};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub const TIMEOUT: Duration = Duration::from_secs(5);
const NOW_UNIX_S: u64 = 1_800_000_000;

/// Who dials and who is dialled; `is_known`: the first knows the session key of the second.
pub fn ends(is_known: bool) -> (Handshake, Handshake) {
    let node = |n: u8| Arc::new(Identity::new(&[n; 32], &[n + 2; 32]).unwrap());
    let (one, two) = (node(1), node(2));
    let remote = Remote { node_key: two.node_key(), session_key: is_known.then(|| two.session_key()) };
    let context = Context { organisation: "team".to_owned(), term: 1 };
    let one = Handshake::initiator(&one, &remote, &context, b"", NOW_UNIX_S).unwrap();
    (one, Handshake::responder(&two, &context, NOW_UNIX_S).unwrap())
}

pub async fn over<S: AsyncRead + AsyncWrite + Unpin>(
    one: S,
    two: S,
    is_known: bool,
    limits: Limits,
) -> (SessionStream<S>, SessionStream<S>) {
    let (a, b) = ends(is_known);
    let both = tokio::join!(establish(one, a, limits, TIMEOUT), establish(two, b, limits, TIMEOUT));
    (both.0.unwrap(), both.1.unwrap())
}

/// What `a` and `b` send each other at once arrives as it was sent, and ends.
pub async fn both_ways<S: AsyncRead + AsyncWrite + Unpin>(
    a: SessionStream<S>,
    b: SessionStream<S>,
    here: &[u8],
    there: &[u8],
) {
    let ((mut a_read, mut a_write), (mut b_read, mut b_write)) = (tokio::io::split(a), tokio::io::split(b));
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    let done = tokio::join!(
        async {
            a_write.write_all(here).await?;
            a_write.shutdown().await
        },
        async {
            b_write.write_all(there).await?;
            b_write.shutdown().await
        },
        async { a_read.read_to_end(&mut at_a).await.map(drop) },
        async { b_read.read_to_end(&mut at_b).await.map(drop) },
    );
    for done in [done.0, done.1, done.2, done.3] {
        done.unwrap();
    }
    assert!(at_a == there && at_b == here, "other bytes arrived");
}

/// Time is the test's own.
pub fn paused<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(test);
}

pub fn reason(error: &io::Error) -> &SessionError {
    error.get_ref().unwrap().downcast_ref().unwrap()
}
