//! How a caller verifies a server by TLS, and proves itself there. It reads no file.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{DialError, TlsOptions};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The host of a URL that names a server by host and port.
pub(crate) fn host_of(url: &Uri) -> Option<&str> {
    url.host().filter(|host| !host.is_empty() && url.port().is_some())
}

/// This end of TLS with one server.
#[derive(Clone)]
pub(crate) struct Secure {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Secure {
    /// TLS with the `host` of `url`; nothing is dialled.
    ///
    /// # Errors
    /// The host is none, or a certificate is not one.
    pub(crate) fn new(url: &str, host: &str, options: &TlsOptions) -> Result<Self, DialError> {
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
        let name = name.map_err(|_| DialError::Url(url.to_owned()))?;
        let refused = |reason| DialError::Invalid(format!("TLS to {url}: {reason}"));
        Ok(Self { config: client_config(options).map_err(refused)?, name })
    }

    /// # Errors
    /// The server is not who it should be, or takes too long.
    pub(crate) async fn shake_hands<S>(self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = TlsConnector::from(self.config).connect(self.name, stream);
        let within = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
        within.map_err(|_| io::Error::other("no TLS handshake in time"))?
    }
}

/// A configuration for HTTP/2.
///
/// # Errors
/// What is wrong with a PEM; it quotes no key.
fn client_config(options: &TlsOptions) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match &options.ca {
        Some(pem) => {
            for certificate in certificates(pem, "the authority")? {
                roots.add(certificate).map_err(|error| format!("the authority: {error}"))?;
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match &options.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the key: {error}"))?;
            builder
                .with_client_auth_cert(certificates(certificate, "the certificate")?, key)
                .map_err(|error| format!("the certificate and its key: {error}"))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(read) if read.is_empty() => Err(format!("{what}: no certificate in the PEM")),
        Ok(read) => Ok(read),
        Err(error) => Err(format!("{what}: {error}")),
    }
}
