//! The port: opened, watched over and closed in an orderly way. It answers nothing itself.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use buildnet_formats::{FieldValue, NativeError};
use buildnet_store::Store;
use buildnet_tiers::Tiers;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::credentials::{Access, AccessOptions};
use crate::heap;
use crate::http::HttpCache;
use crate::hub::{Event, Hub};
use crate::lanes::{self, Lanes};
use crate::listener::accept;
use crate::observe::{Observe, ObserveOptions, Statistics};
use crate::recent;
use crate::services::Services;
use crate::sessions::{SessionOptions, Sessions};
use crate::tls::{Tls, TlsOptions};
use crate::updates::Updates;
use crate::uploads::Uploads;
use crate::usage::Used;
use crate::writes::Writes;

const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often files that may change are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How to listen.
#[derive(Clone, Debug)]
pub struct DoorOptions {
    /// Network threads; 0 for as many as there are processors, within bounds.
    pub threads: usize,
    /// Larger requests are refused.
    pub message_size_bytes_max: usize,
    /// Whether actions are executed here, or only cached.
    pub execution: bool,
    /// What is told of calls, and where.
    pub observe: ObserveOptions,
    /// What stands behind the store.
    pub tiers: Option<Arc<Tiers>>,
    /// Who is let in.
    pub access: AccessOptions,
    /// TLS, or plaintext.
    pub tls: Option<TlsOptions>,
    /// Whether Python has an application for HTTP requests that are not for a cache.
    pub application: bool,
    /// Whether to listen on a loopback port too, in plaintext and for tokens only: for the workers of this machine, who
    /// have nothing to verify a certificate by.
    pub local: bool,
    /// Who this end is to nodes that dial it by sessions; none to take no sessions.
    pub sessions: Option<SessionOptions>,
}

impl Default for DoorOptions {
    fn default() -> Self {
        Self {
            threads: 0,
            message_size_bytes_max: 16 << 20,
            execution: true,
            observe: ObserveOptions::default(),
            tiers: None,
            access: AccessOptions::open(),
            tls: None,
            application: false,
            local: false,
            sessions: None,
        }
    }
}

/// The listening port and its threads.
pub struct Door {
    inner: Arc<Inner>,
    threads: usize,
    runtimes: Mutex<Vec<Runtime>>,
    stop: watch::Sender<bool>,
    local: bool,
    local_address: OnceLock<SocketAddr>,
}

/// What answers.
pub(crate) struct Inner {
    pub(crate) hub: Arc<Hub>,
    pub(crate) services: Arc<Services>,
    pub(crate) http: HttpCache,
    pub(crate) message_size_bytes_max: usize,
    pub(crate) access: Access,
    pub(crate) tls: Option<Tls>,
    pub(crate) sessions: Option<Arc<Sessions>>,
    pub(crate) observe: Arc<Observe>,
    /// Whether the door is closing.
    pub(crate) stop: watch::Receiver<bool>,
}

impl Door {
    /// A door that does not listen yet.
    ///
    /// # Errors
    /// `invalid_request` when a file of TLS or of revoked tokens cannot be used, or the access log cannot be written.
    pub fn new(store: Arc<Store>, hub: Arc<Hub>, options: DoorOptions) -> Result<Self, NativeError> {
        let observe = Arc::new(Observe::new(hub.paths(), &options.observe)?);
        let tiers = options.tiers;
        let updates = Arc::new(Updates::new(tiers.clone()));
        if let Some(tiers) = &tiers {
            tiers.keep_by(updates.keeper());
        }
        let services = Services {
            store: Arc::clone(&store),
            tiers: tiers.clone(),
            uploads: Uploads::default(),
            writes: Writes::default(),
            updates: Arc::clone(&updates),
            execution: options.execution,
            observe: Arc::clone(&observe),
        };
        let sessions = options.sessions.map(|options| Arc::new(Sessions::new(options)));
        if let Some(sessions) = sessions.clone() {
            observe.watch("sessions".to_owned(), Box::new(move || sessions.counts()));
        }
        let application = options.application.then(|| Arc::clone(&hub));
        let (stop, stopping) = watch::channel(false);
        let inner = Inner {
            hub,
            services: Arc::new(services),
            http: HttpCache::new(store, tiers, updates, application),
            message_size_bytes_max: options.message_size_bytes_max,
            access: Access::new(options.access)?,
            tls: options.tls.map(Tls::new).transpose()?,
            sessions,
            observe,
            stop: stopping,
        };
        Ok(Self {
            inner: Arc::new(inner),
            threads: if options.threads == 0 { lanes::count() } else { options.threads },
            runtimes: Mutex::default(),
            stop,
            local: options.local,
            local_address: OnceLock::new(),
        })
    }

    /// Show numbers that Python knows on `/metrics` and `/status`; a later call adds and replaces.
    ///
    /// # Errors
    /// `invalid_request` when a name is not one for a metric.
    pub fn report(&self, values: BTreeMap<String, u64>) -> Result<(), NativeError> {
        self.inner.observe.report(values)
    }

    /// What each caller took from the cache and gave to it, since this was last asked.
    pub fn take_usage(&self) -> Vec<Used> {
        self.inner.observe.usage.take()
    }

    /// Show the numbers of something behind the store, a tier for example, under its name.
    pub fn watch(&self, name: String, statistics: Statistics) {
        self.inner.observe.watch(name, statistics);
    }

    /// Open the access log anew, after it was moved away.
    pub fn reopen_log(&self) {
        if let Some(log) = &self.inner.observe.log {
            log.reopen();
        }
    }

    /// Listen on `HOST:PORT`; port 0 picks a free one. Returns the address.
    ///
    /// # Errors
    /// `port_in_use`, or `invalid_request` when the address cannot be listened on or traces cannot be sent.
    pub fn start(&self, listen: &str) -> Result<SocketAddr, NativeError> {
        let refuse = |error: &std::io::Error| {
            let code = match error.kind() {
                std::io::ErrorKind::AddrInUse => "port_in_use",
                _ => "invalid_request",
            };
            let remedy = if code == "port_in_use" { "; stop what listens there, or choose another port" } else { "" };
            NativeError::new(code, format!("cannot listen on {listen}: {error}{remedy}"))
                .with("listen", FieldValue::Text(listen.to_owned()))
        };
        let address = listen
            .to_socket_addrs()
            .map_err(|e| refuse(&e))?
            .next()
            .ok_or_else(|| NativeError::invalid("listen", format!("{listen} names no address")))?;
        heap::few_heaps(self.threads);
        let runtimes = lanes::start(self.threads).map_err(|e| refuse(&e))?;
        let runtime = &runtimes[0];
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(|e| refuse(&e))?;
        let address = listener.local_addr().map_err(|e| refuse(&e))?;
        let mut local = None;
        if self.local {
            let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).map_err(|e| refuse(&e))?;
            // A door starts once.
            let _ = self.local_address.set(listener.local_addr().map_err(|e| refuse(&e))?);
            local = Some(listener);
        }
        let Inner { hub, services, observe, .. } = &*self.inner;
        observe.start_traces(runtime.handle())?;
        // A door listens once.
        observe.listen.get_or_init(|| address.to_string());
        runtime.spawn(count(Arc::clone(observe)));
        runtime.spawn(services.updates.writer(hub, &services.store));
        runtime.spawn(accept(Arc::clone(&self.inner), Lanes::of(&runtimes), listener, local));
        runtime.spawn(watch_files(Arc::clone(&self.inner)));
        *self.runtimes.lock().unwrap_or_else(PoisonError::into_inner) = runtimes;
        Ok(address)
    }

    /// Where the workers of this machine dial, once the door listens there.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.local_address.get().copied()
    }

    /// Calls without good credentials, and calls whose caller lacked a right.
    pub fn refusals(&self) -> (u64, u64) {
        self.inner.access.refusals()
    }

    /// End every session of a node, with a farewell's code and text; returns how many those are.
    ///
    /// # Errors
    /// `invalid_request` when the key is not one.
    pub fn end_sessions(&self, node_key: &str, code: u8, text: &str) -> Result<usize, NativeError> {
        let key = node_key
            .parse()
            .map_err(|error: buildnet_session::SessionError| NativeError::invalid("node_key", error.to_string()))?;
        Ok(self.inner.sessions.as_ref().map_or(0, |sessions| sessions.end(key, code, text)))
    }

    /// Accept no more, tell every connection to finish, and push [`Event::Drained`] when all have.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// End whatever is left, and write out what is told of it.
    pub fn close(&self) {
        self.inner.observe.close();
        let runtimes = std::mem::take(&mut *self.runtimes.lock().unwrap_or_else(PoisonError::into_inner));
        lanes::close(runtimes, CLOSE_TIMEOUT);
    }
}

/// Keep a count of every method each second.
async fn count(observe: Arc<Observe>) {
    let mut every = tokio::time::interval(recent::EVERY);
    loop {
        every.tick().await;
        observe.keep();
    }
}

/// Take up files that changed: the certificate, its authority, revoked tokens.
async fn watch_files(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        let inner = Arc::clone(&inner);
        let looked = tokio::task::spawn_blocking(move || {
            let tls = inner.tls.as_ref().map_or(Ok(false), Tls::refresh);
            match tls {
                Ok(true) => inner.hub.push(Event::Said("the certificate was read again and is in force".to_owned())),
                Ok(false) => {}
                Err(error) => {
                    inner.hub.push(Event::Said(format!("{}; the one before stays in force", error.message)));
                }
            }
            if let Err(error) = inner.access.refresh() {
                inner.hub.push(Event::Said(format!("{}; the list before stays in force", error.message)));
            }
        });
        if looked.await.is_err() {
            // Only at the end of the runtime.
            return;
        }
    }
}
