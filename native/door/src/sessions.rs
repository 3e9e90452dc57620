//! Sessions of nodes at the port: each proves its keys, is let in by Python or hears why not, and can be ended at any time
//! by the key of its node. Whom to let in is not decided here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use buildnet_formats::NativeError;
use buildnet_session::{
    Closer, Context, FailureKind, Handshake, Identity, Limits, MAGIC, NodeKey, Pattern, Peer, SessionError,
    SessionStream, TurnedAway, establish_if,
};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tonic::{Code, Status};

use crate::hub::{Event, Hub, Waiting};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of one node at once: a worker has one, and those that were lost and not yet found to be.
const SESSIONS_OF_A_NODE_MAX: usize = 16;
/// Its own end changes keys every 15 minutes, or after 2^20 frames.
const REKEYS_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Who this end is to nodes that dial it.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Its keys.
    pub identity: Arc<Identity>,
    /// Its organisation and term.
    pub context: Context,
}

impl SessionOptions {
    /// From the raw keys (RFC 8032, RFC 7748), 32 bytes each.
    ///
    /// # Errors
    /// `invalid_request` when either is none.
    pub fn new(node_seed: &[u8], session_secret: &[u8], organisation: &str, term: u64) -> Result<Self, NativeError> {
        let identity = Identity::new(node_seed, session_secret)
            .map_err(|error| NativeError::invalid("sessions", error.to_string()))?;
        let context = Context { organisation: organisation.to_owned(), term };
        Ok(Self { identity: Arc::new(identity), context })
    }
}

/// How sessions went.
#[derive(Default)]
struct Counts {
    opened: AtomicU64,
    turned_away: AtomicU64,
    refused_garbage: AtomicU64,
    refused_oversize: AtomicU64,
    refused_proof: AtomicU64,
    refused_term: AtomicU64,
    refused_slow: AtomicU64,
    cut_short: AtomicU64,
    broken: AtomicU64,
    stalled: AtomicU64,
}

impl Counts {
    fn refused(&self, error: &SessionError) {
        let count = match error {
            SessionError::NotASession
            | SessionError::Version(_)
            | SessionError::Pattern(_)
            | SessionError::Protocol(_)
            | SessionError::Invalid(_) => &self.refused_garbage,
            SessionError::Oversize(_) => &self.refused_oversize,
            SessionError::Handshake
            | SessionError::Frame
            | SessionError::Certificate(_)
            | SessionError::WrongPeer { .. }
            | SessionError::Refused(_) => &self.refused_proof,
            SessionError::Term { .. } => &self.refused_term,
            SessionError::Slow | SessionError::Idle | SessionError::Stalled => &self.refused_slow,
            SessionError::Ended(_) => &self.turned_away,
            SessionError::Truncated | SessionError::Closed { .. } | SessionError::Io(_) => &self.cut_short,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Every session of this door.
pub(crate) struct Sessions {
    options: SessionOptions,
    open: Mutex<HashMap<NodeKey, Vec<(u64, Closer)>>>,
    counts: Counts,
}

impl Sessions {
    pub(crate) fn new(options: SessionOptions) -> Self {
        Self { options, open: Mutex::default(), counts: Counts::default() }
    }

    /// Whether a connection that begins with this byte is to be one.
    pub(crate) fn begins(first: u8) -> bool {
        first == MAGIC[0]
    }

    /// Shake hands, and have Python let the peer in. None when there is no session; the peer was told why, as far as it
    /// may know.
    pub(crate) async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        stream: S,
        from: SocketAddr,
    ) -> Option<(SessionStream<S>, Open)> {
        let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut place = None;
        let slot = &mut place;
        let admit = move |peer: Arc<Peer>| async move {
            let open = self.admit(hub, &peer, from).await?;
            let closer = open.closer.clone();
            *slot = Some(open);
            Ok::<_, TurnedAway>(closer)
        };
        let shaken = match Handshake::responder(&self.options.identity, &self.options.context, now_unix_s) {
            Ok(handshake) => establish_if(stream, handshake, Limits::default(), HANDSHAKE_TIMEOUT, admit).await,
            Err(error) => Err(error),
        };
        match shaken {
            Ok(stream) => {
                self.counts.opened.fetch_add(1, Ordering::Relaxed);
                place.map(|open| (stream, open))
            }
            Err(error) => {
                self.counts.refused(&error);
                None
            }
        }
    }

    async fn admit(self: &Arc<Self>, hub: &Arc<Hub>, peer: &Peer, from: SocketAddr) -> Result<Open, TurnedAway> {
        let (reply, answer) = oneshot::channel();
        let guard = hub.open(Waiting::Unary(reply)).map_err(|status| turned_away(&status))?;
        // Held before Python decides: whoever is put out meanwhile is put out.
        let mut open = self.hold(hub, peer.node_key, guard.id)?;
        hub.push(Event::Greeted {
            id: guard.id,
            node_key: peer.node_key.to_string(),
            token: peer.token.as_ref().map(|token| token.to_vec()),
            pattern: if peer.pattern == Pattern::Ik { "IK" } else { "XX" },
            peer: from.to_string(),
        });
        match answer.await {
            Ok(Ok(_)) => {
                open.is_told = true;
                open.tell_rekeys();
                Ok(open)
            }
            Ok(Err(status)) => Err(turned_away(&status)),
            Err(_) => Err(turned_away(&Status::unavailable("the server is stopping"))),
        }
    }

    fn hold(self: &Arc<Self>, hub: &Arc<Hub>, node_key: NodeKey, id: u64) -> Result<Open, TurnedAway> {
        let closer = Closer::default();
        let mut all = self.open.lock();
        let of_node = all.entry(node_key).or_default();
        if of_node.len() >= SESSIONS_OF_A_NODE_MAX {
            let text = format!("this node has {SESSIONS_OF_A_NODE_MAX} sessions already; end some");
            return Err(turned_away(&Status::resource_exhausted(text)));
        }
        of_node.push((id, closer.clone()));
        drop(all);
        let sessions = Arc::clone(self);
        Ok(Open { sessions, hub: Arc::clone(hub), node_key, id, closer, is_told: false, is_orderly: false })
    }

    /// End every session of a node, with a code and a text for the peer; returns how many those are.
    pub(crate) fn end(&self, node_key: NodeKey, code: u8, text: &str) -> usize {
        let closers: Vec<Closer> =
            self.open.lock().get(&node_key).into_iter().flatten().map(|(_, closer)| closer.clone()).collect();
        for closer in &closers {
            closer.close(code, text);
        }
        closers.len()
    }

    /// What is counted, for those who look from outside.
    pub(crate) fn counts(&self) -> Vec<(&'static str, u64)> {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let open = self.open.lock().values().map(Vec::len).sum::<usize>();
        let Counts {
            opened,
            turned_away,
            refused_garbage,
            refused_oversize,
            refused_proof,
            refused_term,
            refused_slow,
            cut_short,
            broken,
            stalled,
        } = &self.counts;
        vec![
            ("open", open as u64),
            ("opened", read(opened)),
            ("turned_away", read(turned_away)),
            ("refused_garbage", read(refused_garbage)),
            ("refused_oversize", read(refused_oversize)),
            ("refused_proof", read(refused_proof)),
            ("refused_term", read(refused_term)),
            ("refused_slow", read(refused_slow)),
            ("cut_short", read(cut_short)),
            ("broken", read(broken)),
            ("stalled", read(stalled)),
        ]
    }
}

/// A farewell's code is that of gRPC's status.
fn turned_away(status: &Status) -> TurnedAway {
    let code = match status.code() {
        Code::Ok => Code::Unknown,
        code => code,
    };
    TurnedAway { code: code as u8, text: status.message().to_owned() }
}

/// One session's place among all; Python hears when a session that it let in is over.
pub(crate) struct Open {
    sessions: Arc<Sessions>,
    hub: Arc<Hub>,
    pub(crate) node_key: NodeKey,
    id: u64,
    closer: Closer,
    is_told: bool,
    /// Whether its connection ended by itself.
    pub(crate) is_orderly: bool,
}

impl Open {
    /// Python hears of changed keys, of one session no more often than `REKEYS_TOLD_EVERY`: a node could change its keys
    /// with every frame, and what it is told next counts those between.
    fn tell_rekeys(&self) {
        let (hub, id, node_key) = (Arc::clone(&self.hub), self.id, self.node_key.to_string());
        let told: Mutex<Option<Instant>> = Mutex::default();
        self.closer.on_rekey(move |rekeys| {
            let mut told = told.lock();
            if told.is_none_or(|at| at.elapsed() >= REKEYS_TOLD_EVERY) {
                *told = Some(Instant::now());
                hub.push(Event::SessionRekeyed { id, node_key: node_key.clone(), rekeys });
            }
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut all = self.sessions.open.lock();
        if let Some(of_node) = all.get_mut(&self.node_key) {
            of_node.retain(|(id, _)| *id != self.id);
            if of_node.is_empty() {
                all.remove(&self.node_key);
            }
        }
        drop(all);
        if !self.is_told {
            return;
        }
        let failure = self.closer.failure();
        let counts = &self.sessions.counts;
        match failure.as_ref().map(|failure| failure.kind) {
            Some(FailureKind::Broken) => counts.broken.fetch_add(1, Ordering::Relaxed),
            Some(FailureKind::Stalled) => counts.stalled.fetch_add(1, Ordering::Relaxed),
            Some(FailureKind::Gone) | None => 0,
        };
        let reason = match failure {
            Some(failure) => failure.text,
            None if self.is_orderly => String::new(),
            None => "the connection was ended".to_owned(),
        };
        let (id, node_key, rekeys) = (self.id, self.node_key.to_string(), self.closer.rekeys());
        self.hub.push(Event::SessionEnded { id, node_key, reason, rekeys });
    }
}
