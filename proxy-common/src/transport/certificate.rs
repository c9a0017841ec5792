//! The proxy's own certificate, for clients that connect with `wss://`.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ALL_VERSIONS, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;
use x509_cert::der::Decode;

use crate::config::{
    ConfigError,
    pem::{certificates, pem_fault},
};

const CERTIFICATE: &str = "TLS_CERT";
const KEY: &str = "TLS_KEY";

/// A certificate with its private key, and the files to reload them from.
pub struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    /// Read for each connection, written on reload; never held across an await.
    loaded: RwLock<Loaded>,
}

#[derive(Clone)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// Since 1970. `None` if the certificate has a form that only the TLS library understands.
    expiry: Option<Duration>,
}

impl Certificate {
    /// Reads a certificate and the chain above it from one file in PEM form, and its private key
    /// from another, which may be the same file. `None` if neither file is named.
    ///
    /// # Errors
    ///
    /// Only one is named, a file cannot be read or lacks its certificate or key, or the key belongs
    /// to another certificate.
    pub fn read(chain: Option<&Path>, key: Option<&Path>) -> Result<Option<Self>, ConfigError> {
        let (chain, key) = match (chain, key) {
            (None, None) => return Ok(None),
            (Some(_), None) => {
                return Err(ConfigError::missing(KEY, format!("the private key of {CERTIFICATE}")));
            }
            (None, Some(_)) => {
                return Err(ConfigError::missing(CERTIFICATE, format!("the certificate of {KEY}")));
            }
            (Some(chain), Some(key)) => (chain.to_owned(), key.to_owned()),
        };
        let loaded = RwLock::new(load(&chain, &key)?);
        Ok(Some(Self { chain, key, loaded }))
    }

    /// Reads the files again. New connections get the new certificate, open ones keep the old one.
    /// Blocks while it reads.
    ///
    /// # Errors
    ///
    /// Those of [`Certificate::read`]. The old certificate stays in use.
    pub fn reload(&self) -> Result<(), ConfigError> {
        let loaded = load(&self.chain, &self.key)?;
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// When the first certificate of the chain that has an end expires, since 1970.
    pub fn expiry(&self) -> Option<Duration> {
        self.loaded().expiry
    }

    /// An acceptor that uses the current certificate.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.loaded().config.into()
    }

    fn loaded(&self) -> Loaded {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// When the first of these certificates expires.
fn expiry(chain: &[CertificateDer<'_>]) -> Option<Duration> {
    let ends = chain.iter().filter_map(|certificate| {
        let certificate = x509_cert::Certificate::from_der(certificate).ok()?;
        Some(certificate.tbs_certificate().validity().not_after.to_unix_duration())
    });
    ends.min()
}

/// Loads both files. Enables TLS 1.2 and 1.3, the only versions that the library has.
fn load(chain: &Path, key: &Path) -> Result<Loaded, ConfigError> {
    let certificates = certificates(CERTIFICATE, chain)?;
    let expiry = expiry(&certificates);
    let wrong = |why: String| ConfigError::invalid(KEY, key.display(), why);
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| {
        let why = pem_fault(error);
        wrong(format!("expected a file with a private key in PEM form, under no password: {why}"))
    })?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(ALL_VERSIONS)
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, private))
        .map_err(|error| {
            wrong(format!("expected the private key of the certificate in {CERTIFICATE}: {error}"))
        })?;
    // Browsers also offer HTTP/2, which has no upgrade of this kind.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Loaded { config: Arc::new(config), expiry })
}
