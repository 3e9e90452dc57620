//! Dials one controller by sessions. Whom it must meet is said once and never given up; what it learns there (the session
//! key, a later term) serves the next dial.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as Waking, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use buildnet_session::{
    Context, Handshake, Identity, Limits, NodeKey, Refusal, Remote, SessionError, SessionKey, SessionStream,
    bound_unsent, establish,
};
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::codegen::http::Uri;

use crate::channel::Counted;
use crate::{Carrier, DialError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Another term, another pattern, and a token where none was shown: each may take one more.
const ATTEMPTS_MAX: usize = 4;

/// Whom to dial.
pub struct DiallerOptions {
    /// `HOST:PORT`.
    pub address: String,
    /// The organisation's name.
    pub organisation: String,
    /// Who must answer.
    pub node_key: NodeKey,
    /// Known from an earlier session.
    pub session_key: Option<SessionKey>,
    /// Of the controller, or an earlier one.
    pub term: u64,
    /// What carries the session; none where it is dialled directly.
    pub carrier: Option<Carrier>,
    /// A join token, raw; empty for none. It is shown only where this node is not known without.
    pub token: Vec<u8>,
    /// After so many frames this end changes its key; none for the default, 2^20.
    pub rekey_frames: Option<u64>,
}

/// How the next handshake is made.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Plan {
    session_key: Option<SessionKey>,
    term: u64,
    shows_token: bool,
}

#[derive(Default)]
struct Learnt {
    /// The peer's session key and term, once met.
    met: Option<(SessionKey, u64)>,
    /// Why the last dial failed.
    failure: Option<(&'static str, String)>,
}

/// A stream of bytes below a session.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What a session runs on: a socket, or a call that carries it.
pub(crate) type Ground = Box<dyn Stream>;

/// Makes connections that are sessions with one controller.
pub struct Dialler {
    identity: Arc<Identity>,
    options: DiallerOptions,
    learnt: Mutex<Learnt>,
}

impl Dialler {
    /// A dialler; nothing is dialled yet. `node_seed` and `session_secret` are this node's raw keys, 32 bytes each.
    ///
    /// # Errors
    /// Either is none.
    pub fn new(node_seed: &[u8], session_secret: &[u8], options: DiallerOptions) -> Result<Self, DialError> {
        let identity =
            Identity::new(node_seed, session_secret).map_err(|error| DialError::Invalid(error.to_string()))?;
        Ok(Self { identity: Arc::new(identity), options, learnt: Mutex::default() })
    }

    /// As it is told to people.
    pub fn url(&self) -> String {
        let by = self.options.carrier.as_ref().map(|carrier| format!("+{}", carrier.scheme())).unwrap_or_default();
        format!("bnet{by}://{}/{}", self.options.address, self.options.organisation)
    }

    /// The controller's session key and term, once there was a session in this process.
    pub fn met(&self) -> Option<(SessionKey, u64)> {
        self.learnt().met
    }

    /// Why the last dial failed, as a slug of the error tree and a text; none when it did not.
    pub fn failure(&self) -> Option<(&'static str, String)> {
        self.learnt().failure.clone()
    }

    fn learnt(&self) -> MutexGuard<'_, Learnt> {
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dial, shake hands, and be let in; what carries the session runs on `executor`.
    ///
    /// # Errors
    /// Nobody answers, somebody else does, or the controller does not let this node in.
    pub(crate) async fn dial(&self, executor: &Counted) -> Result<SessionStream<Ground>, DialError> {
        let done = self.attempts(executor).await;
        let mut learnt = self.learnt();
        match done {
            Ok((stream, term)) => {
                learnt.met = Some((stream.peer().session_key, term));
                learnt.failure = None;
                Ok(stream)
            }
            Err(error) => {
                let error = self.told(error);
                learnt.failure = Some((error.code(), error.to_string()));
                Err(error)
            }
        }
    }

    async fn ground(&self, executor: &Counted) -> io::Result<Ground> {
        let address = self.options.address.clone();
        Ok(match &self.options.carrier {
            None => Box::new(connected(address).await?),
            Some(carrier) => Box::new(carrier.open(address, executor).await?),
        })
    }

    async fn attempts(&self, executor: &Counted) -> Result<(SessionStream<Ground>, u64), SessionError> {
        let known = self.learnt().met;
        let session_key = known.map(|(key, _)| key).or(self.options.session_key);
        let term = known.map_or(0, |(_, term)| term).max(self.options.term);
        let mut plan = Plan { session_key, term, shows_token: session_key.is_none() && !self.options.token.is_empty() };
        let mut left = ATTEMPTS_MAX;
        loop {
            left -= 1;
            let stream = self.ground(executor).await?;
            match self.attempt(plan, stream).await {
                Ok(stream) => return Ok((stream, plan.term)),
                Err(error) => match self.next(plan, &error).filter(|_| left > 0) {
                    Some(next) => plan = next,
                    None => return Err(error),
                },
            }
        }
    }

    /// What a failure leaves to try. A refusal is nobody's word, so it can cost one more dial and nothing else: whoever
    /// answers must prove the key that was named.
    fn next(&self, plan: Plan, error: &SessionError) -> Option<Plan> {
        let has_token = !self.options.token.is_empty();
        match error {
            SessionError::Term { theirs, .. } if *theirs > plan.term => Some(Plan { term: *theirs, ..plan }),
            // Its session key is a new one, perhaps; XX tells it who dials only after it has proven itself.
            SessionError::Refused(Refusal::Handshake) if plan.session_key.is_some() => {
                Some(Plan { session_key: None, shows_token: has_token, ..plan })
            }
            SessionError::Closed { code, .. } if is(*code, Code::Unauthenticated) && has_token && !plan.shows_token => {
                Some(Plan { session_key: None, shows_token: true, ..plan })
            }
            _ => None,
        }
    }

    async fn attempt(&self, plan: Plan, stream: Ground) -> Result<SessionStream<Ground>, SessionError> {
        let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let remote = Remote { node_key: self.options.node_key, session_key: plan.session_key };
        let context = Context { organisation: self.options.organisation.clone(), term: plan.term };
        let token: &[u8] = if plan.shows_token { &self.options.token } else { b"" };
        let handshake = Handshake::initiator(&self.identity, &remote, &context, token, now_unix_s)?;
        let mut limits = Limits::default();
        limits.rekey_frames = self.options.rekey_frames.unwrap_or(limits.rekey_frames);
        establish(stream, handshake, limits, HANDSHAKE_TIMEOUT).await
    }

    fn told(&self, error: SessionError) -> DialError {
        let url = self.url();
        let code = match &error {
            SessionError::Closed { code, .. } if is(*code, Code::Unauthenticated) => "unauthenticated",
            SessionError::Closed { code, .. } if is(*code, Code::PermissionDenied) => "forbidden",
            SessionError::Refused(_) | SessionError::Handshake => "unauthenticated",
            SessionError::WrongPeer { .. } | SessionError::Certificate(_) => "bad_signature",
            SessionError::Term { .. } | SessionError::Invalid(_) => "invalid_request",
            SessionError::NotASession | SessionError::Oversize(_) | SessionError::Version(_) => {
                let message = format!("{error}; is it a BuildNET controller?");
                return DialError::Unmet { url, code: "invalid_request", message };
            }
            _ => return DialError::Down { url, reason: error.to_string() },
        };
        let message = match error {
            SessionError::Closed { text, .. } => text,
            SessionError::Term { ours, theirs } => format!(
                "the controller is of term {theirs}, and this node has met term {ours}: its state was restored from an \
                 older copy, perhaps; ask for a new join line"
            ),
            other => other.to_string(),
        };
        DialError::Unmet { url, code, message }
    }
}

pub(crate) async fn connected(address: String) -> io::Result<TcpStream> {
    let dialled = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&address));
    let stream = dialled.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    // Without them small frames wait; a socket that refuses an option still works.
    let _ = stream.set_nodelay(true);
    let _ = bound_unsent(&stream);
    Ok(stream)
}

fn is(farewell: u8, code: Code) -> bool {
    i32::from(farewell) == code as i32
}

/// Gives `tonic` sessions for connections.
#[derive(Clone)]
pub(crate) struct Connector(pub(crate) Arc<Dialler>, pub(crate) Counted);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<SessionStream<Ground>>;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Self::Response, DialError>>;

    fn poll_ready(&mut self, _: &mut Waking<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self(dialler, executor) = self.clone();
        Box::pin(async move { dialler.dial(&executor).await.map(TokioIo::new) })
    }
}
