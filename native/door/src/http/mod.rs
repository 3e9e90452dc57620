//! The HTTP side of the port: the caches that build clients speak to by HTTP, on one store and under one policy. Nothing is
//! decided here but which cache is meant; what is not understood is refused, and the connection stays usable or is closed.

mod application;
mod bazel;
mod conditions;
mod encoding;
mod inbound;
mod outbound;
mod refusal;
mod route;
mod turbo;
mod values;
mod webdav;

use std::sync::Arc;
use std::time::SystemTime;

use buildnet_store::Store;
use buildnet_tiers::Tiers;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Version, header};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tonic::body::Body;

use self::inbound::{Budget, Inbound, Rest};
use self::refusal::{Dialect, Refusal};
use self::route::{Cache, Route, Target, bad, route};
use self::values::Named;
use crate::access::{Caller, Right};
use crate::hub::Hub;
use crate::listener::Origin;
use crate::updates::Updates;
use crate::watched::Received;

/// Large results that are in memory at once to be understood.
const LARGE_ENTRIES_MAX: usize = 2;

/// What the HTTP side stands on.
pub(crate) struct HttpCache {
    store: Arc<Store>,
    tiers: Option<Arc<Tiers>>,
    updates: Arc<Updates>,
    started_at: SystemTime,
    budget: Budget,
    large_entries: Semaphore,
    /// One turn at a time, where the first write of a name counts.
    first_writes: tokio::sync::Mutex<()>,
    /// Where requests go that are for no cache.
    application: Option<Arc<Hub>>,
    exchanges: Arc<Semaphore>,
}

impl HttpCache {
    pub(crate) fn new(
        store: Arc<Store>,
        tiers: Option<Arc<Tiers>>,
        updates: Arc<Updates>,
        application: Option<Arc<Hub>>,
    ) -> Self {
        Self {
            store,
            tiers,
            updates,
            started_at: SystemTime::now(),
            budget: Budget::default(),
            large_entries: Semaphore::new(LARGE_ENTRIES_MAX),
            first_writes: tokio::sync::Mutex::new(()),
            application,
            exchanges: Arc::new(Semaphore::new(application::EXCHANGES_MAX)),
        }
    }

    /// Answer a request; what comes of its body is counted in `received`, beyond the answer too.
    pub(crate) async fn answer(
        &self,
        caller: &Caller,
        origin: &Origin,
        request: Request<Incoming>,
        received: &Arc<Received>,
    ) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let mut inbound = Inbound::new(&parts, body, &self.budget, Arc::clone(received));
        let (dialect, done) = self.dispatch(caller, origin, &parts, &mut inbound).await;
        let response = done.unwrap_or_else(|refusal| refusal.into_response(dialect));
        settled(parts.version, inbound, response).await
    }

    /// Answer a request that is refused for its caller's sake; what is still sent of it is read within limits.
    pub(crate) async fn refuse(&self, request: Request<Incoming>, response: Response<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let inbound = Inbound::new(&parts, body, &self.budget, Arc::default());
        settled(parts.version, inbound, response).await
    }

    async fn dispatch(
        &self,
        caller: &Caller,
        origin: &Origin,
        parts: &Parts,
        inbound: &mut Inbound,
    ) -> (Dialect, Result<Response<Body>, Refusal>) {
        if let Err(refusal) = check_host(parts) {
            return (Dialect::Plain, Err(refusal));
        }
        let Route { instance, target } = match route(parts.uri.path()) {
            Ok(route) => route,
            Err(refusal) => return (Dialect::Plain, Err(refusal)),
        };
        let dialect = match &target {
            Target::Value { cache: Cache::Gradle, .. } => Dialect::Gradle,
            Target::TurboStatus | Target::TurboEvents | Target::TurboQuery | Target::TurboArtifact(_) => Dialect::Turbo,
            _ => Dialect::Plain,
        };
        if let (Target::Above, Some(hub)) = (&target, &self.application)
            && application::is_asked(&parts.method)
        {
            // The path that is checked is the one that is told: two spellings of it are one.
            let path = format!("/{instance}");
            return (dialect, self.application(hub, caller, origin, parts, path, inbound).await);
        }
        (dialect, self.serve(caller, instance, &target, parts, inbound).await)
    }

    async fn serve(
        &self,
        caller: &Caller,
        instance: String,
        target: &Target,
        parts: &Parts,
        inbound: &mut Inbound,
    ) -> Result<Response<Body>, Refusal> {
        if parts.method == Method::OPTIONS {
            return Ok(webdav::options());
        }
        let instance = match target {
            Target::TurboStatus | Target::TurboEvents | Target::TurboQuery | Target::TurboArtifact(_) => {
                turbo::instance_of(instance, parts)?
            }
            _ => instance,
        };
        caller.check(right_of(&parts.method, target), &instance)?;
        match target {
            Target::Blob(named) => self.blob(named, parts, inbound).await,
            Target::Entry(action) => self.entry(caller, &instance, action, parts, inbound).await,
            Target::Value { cache, path } => {
                let named = Named { cache: *cache, instance: &instance, path };
                self.value(caller, &named, parts, inbound).await
            }
            Target::Folder | Target::Above => self.webdav(caller, None, parts).await,
            turbo => self.turbo(caller, &instance, turbo, parts, inbound).await,
        }
    }
}

/// The response, once it is clear what becomes of the rest of the request.
async fn settled(version: Version, mut inbound: Inbound, mut response: Response<Body>) -> Response<Body> {
    match inbound.settle().await {
        Rest::Nothing => return response,
        Rest::NeverSent => {}
        Rest::Coming => response = response.map(|body| inbound.linger(body)),
    }
    // HTTP/2 ends one stream and keeps the others (RFC 9113 8.2.2 forbids the word).
    if version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// An HTTP/1.1 request names its host once (RFC 9112 section 3.2).
fn check_host(parts: &Parts) -> Result<(), Refusal> {
    if parts.version != Version::HTTP_11 || parts.headers.get_all(header::HOST).iter().count() == 1 {
        return Ok(());
    }
    Err(bad("a request of HTTP/1.1 has one Host header"))
}

/// What a request needs.
fn right_of(method: &Method, target: &Target) -> Right {
    match (method.as_str(), target) {
        ("PUT", Target::Blob(_)) => Right::WriteCas,
        ("PUT" | "DELETE" | "MKCOL", _) => Right::WriteActionCache,
        _ => Right::Read,
    }
}
