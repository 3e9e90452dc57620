//! Sessions where only HTTP/2 passes: the bytes of one are the messages of a call of TransportService, and what a socket's
//! session is told, asked and allowed, it is too. Whoever ends TLS between sees ciphertext.

use std::future::ready;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use buildnet_session::{Carried, Written};
use futures_util::{StreamExt, future, stream};
use http::{Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tonic::Status;
use tonic::body::Body;

use crate::grpc::{Answer, respond};
use crate::listener::{Heard, Origin, session};
use crate::server::Inner;
use crate::sessions::Sessions;
use crate::sorts::Sort;
use crate::watched;

/// The call that carries a session. Its caller proves who they are in the handshake, so it needs no other credentials.
pub(crate) const OPEN: &str = "/buildnet.v1.TransportService/Open";

impl Inner {
    /// Answer a call of [`OPEN`].
    pub(crate) fn open(self: &Arc<Self>, origin: &Origin, request: Request<Incoming>) -> Response<Body> {
        let record = self.observe.begin(Sort::OPEN, &self.access.nobody(), origin.peer, &request);
        let (request, received) = watched::request(request);
        watched::grpc(record, received, respond(self.carry(origin, request), &origin.line))
    }

    fn carry(self: &Arc<Self>, origin: &Origin, request: Request<Body>) -> Result<Answer, Status> {
        let Some(sessions) = self.sessions.clone() else {
            return Err(Status::unimplemented(format!("{} is not offered here", OPEN.trim_start_matches('/'))));
        };
        if origin.is_session() {
            return Err(Status::failed_precondition("a session carries no other; open it on a connection of its own"));
        }
        if request.version() < Version::HTTP_2 {
            return Err(Status::failed_precondition("a session is carried by HTTP/2; HTTP/1.1 cannot"));
        }
        // It costs what a connection does.
        let place = origin.line.place().ok_or_else(|| {
            Status::resource_exhausted("the server has as many connections as it may; try again later")
        })?;
        let (written, line) = (Written::default(), origin.line.another());
        let carrying = written.carrying();
        let stream = Carried::new(request.into_body().map_err(io::Error::other), written);
        let stream = Heard::new(stream, &line);
        let origin = Origin { peer: origin.peer, line, certified: None, strict: origin.strict, secure: origin.secure };
        let (tell, told) = oneshot::channel();
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let _place = place;
            // Who has given the call up does not ask how it ended.
            let _ = tell.send(inner.serve_carried(&sessions, stream, origin).await);
        });
        let end = async { told.await.unwrap_or_else(|_| Err(Status::unavailable("the server is stopping"))) };
        let end = stream::once(end).filter_map(|done| ready(done.err().map(Err)));
        Ok(Answer::Many(carrying.map(Ok).chain(end).boxed()))
    }

    async fn serve_carried<S>(
        self: &Arc<Self>,
        sessions: &Arc<Sessions>,
        stream: Heard<S>,
        origin: Origin,
    ) -> Result<(), Status>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let line = Arc::clone(&origin.line);
        let (graceful, mut stop) = (GracefulShutdown::new(), self.stop.clone());
        let stopped = async move { stop.wait_for(|stopped| *stopped).await.is_ok() };
        let served = async {
            let mut served = pin!(session(self, sessions, stream, origin, graceful.watcher(), self.stop.clone()));
            tokio::select! {
                done = &mut served => done,
                // The connection that carries it ends once it has.
                _ = stopped => future::join(graceful.shutdown(), served).await.1,
            }
        };
        tokio::select! {
            done = served => done,
            () = line.outstayed() => Err(Status::deadline_exceeded("nothing was asked for too long")),
        }
    }
}
