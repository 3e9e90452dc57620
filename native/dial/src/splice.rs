//! A socket of this process alone at which each connection becomes a session with one controller: for those who can dial
//! a path but speak no Noise. What passes is not looked at.

use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use buildnet_session::DATA_BYTES_MAX;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;

use crate::{DialError, Dialler};

const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Out of descriptors, most likely: some will be given back, and spinning helps nobody.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

/// Serves until it is dropped.
pub struct Splice {
    runtime: Option<Runtime>,
}

impl Splice {
    /// Listen at `path`, which lies in a directory of this user alone and must not exist.
    ///
    /// # Errors
    /// It cannot be listened on.
    pub fn open(dialler: Arc<Dialler>, path: &Path) -> Result<Self, DialError> {
        let local = |error| DialError::local(path, error);
        let listener = StdListener::bind(path).map_err(local)?;
        listener.set_nonblocking(true).map_err(local)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("buildnet-splice")
            .enable_all()
            .build()
            .map_err(local)?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::from_std(listener).map_err(local)?
        };
        runtime.spawn(serve(listener, dialler));
        Ok(Self { runtime: Some(runtime) })
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(CLOSE_TIMEOUT);
        }
    }
}

async fn serve(listener: UnixListener, dialler: Arc<Dialler>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_own(&stream) => {
                tokio::spawn(splice(stream, Arc::clone(&dialler)));
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}

/// The directory keeps others out; this does too where its mode was loosened.
fn is_own(stream: &UnixStream) -> bool {
    // SAFETY: geteuid takes nothing and cannot fail (geteuid(2)).
    let own = unsafe { libc::geteuid() };
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own)
}

async fn splice(mut stream: UnixStream, dialler: Arc<Dialler>) {
    // Why there is no session is kept by the dialler; the stream just ends.
    if let Ok(mut session) = dialler.dial().await {
        // How a connection ended is told by what runs over it.
        // What was read at once fits one frame.
        let size = DATA_BYTES_MAX;
        let _ = tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut session, size, size).await;
    }
}
