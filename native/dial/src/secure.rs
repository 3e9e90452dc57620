//! How a caller verifies a server by TLS, and proves itself there. It reads no file.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::TlsOptions;

/// A configuration for HTTP/2.
///
/// # Errors
/// What is wrong with a PEM; it quotes no key.
pub(crate) fn client_config(options: &TlsOptions) -> Result<Arc<ClientConfig>, String> {
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
