//! TLS on the one port, by rustls: its certificate, key and client authority are files that are read again when they
//! change. A bad new file keeps the old one in force and is told.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use buildnet_formats::{FieldValue, NativeError};
use parking_lot::{Mutex, RwLock};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use x509_cert::Certificate;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::{DirectoryString, GeneralName};

use crate::watch::Stamp;

/// 2.5.4.3, commonName (RFC 5280 appendix A).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Where the door's certificate is.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// PEM: the server's certificate, then those between it and its authority.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// PEM: authorities whose certificates make callers.
    pub client_ca: Option<PathBuf>,
}

impl TlsOptions {
    fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.certificate, &self.key].into_iter().chain(&self.client_ca).map(PathBuf::as_path)
    }

    fn stamps(&self) -> Vec<Stamp> {
        self.files().map(Stamp::of).collect()
    }
}

/// What handshakes are made with now.
pub(crate) struct Tls {
    options: TlsOptions,
    config: RwLock<Arc<ServerConfig>>,
    stamps: Mutex<Vec<Stamp>>,
}

impl Tls {
    /// # Errors
    /// `invalid_request`, naming the file and what is wrong with it.
    pub(crate) fn new(options: TlsOptions) -> Result<Self, NativeError> {
        let stamps = options.stamps();
        let config = load(&options)?;
        Ok(Self { options, config: RwLock::new(config), stamps: Mutex::new(stamps) })
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config.read()))
    }

    /// Load the files again if one has changed; whether that was done.
    ///
    /// # Errors
    /// What is wrong with the new files; the old ones stay in force.
    pub(crate) fn refresh(&self) -> Result<bool, NativeError> {
        let mut stamps = self.stamps.lock();
        let now = self.options.stamps();
        if now == *stamps {
            return Ok(false);
        }
        // First, so that a bad file is told once; half of a change is followed by the other half.
        *stamps = now;
        *self.config.write() = load(&self.options)?;
        Ok(true)
    }
}

fn load(options: &TlsOptions) -> Result<Arc<ServerConfig>, NativeError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&options.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&options.key).map_err(|e| refuse(&options.key, &e))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| refuse(&options.certificate, &e))?;
    let builder = match &options.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| refuse(path, &e))?;
            }
            // Whoever shows no certificate may still show a token.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|e| refuse(path, &e))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|e| refuse(&options.certificate, &e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NativeError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| refuse(path, &e))?.collect();
    let found = found.map_err(|e| refuse(path, &e))?;
    if found.is_empty() {
        return Err(refuse(path, &"it holds no certificate"));
    }
    Ok(found)
}

fn refuse(path: &Path, why: &dyn std::fmt::Display) -> NativeError {
    NativeError::invalid("tls", format!("cannot use {} for TLS: {why}", path.display()))
        .with("path", FieldValue::Text(path.display().to_string()))
}

/// What a certificate calls its holder (`CN=`, `DNS:`, `URI:`, `EMAIL:`), and the second in which it ends. Verified
/// certificates only; one that cannot be taken apart has no name.
pub(crate) fn names_of(certificate: &CertificateDer<'_>) -> Option<(Vec<String>, u64)> {
    let certificate = Certificate::from_der(certificate).ok()?.tbs_certificate;
    let mut names = Vec::new();
    for attribute in certificate.subject.0.iter().flat_map(|rdn| rdn.0.iter()) {
        if attribute.oid == COMMON_NAME
            && let Ok(name) = attribute.value.to_der().and_then(|der| DirectoryString::from_der(&der))
        {
            let text = match &name {
                DirectoryString::PrintableString(text) => text.as_str(),
                DirectoryString::TeletexString(text) => text.as_str(),
                DirectoryString::Utf8String(text) => text.as_str(),
            };
            names.push(format!("CN={text}"));
        }
    }
    if let Ok(Some((_, alternatives))) = certificate.get::<SubjectAltName>() {
        for name in &alternatives.0 {
            match name {
                GeneralName::DnsName(name) => names.push(format!("DNS:{}", name.as_str())),
                GeneralName::UniformResourceIdentifier(name) => names.push(format!("URI:{}", name.as_str())),
                GeneralName::Rfc822Name(name) => names.push(format!("EMAIL:{}", name.as_str())),
                _ => {}
            }
        }
    }
    Some((names, certificate.validity.not_after.to_unix_duration().as_secs()))
}
