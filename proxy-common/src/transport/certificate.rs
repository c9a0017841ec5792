//! The proxy's own certificate, for clients that connect with `wss://`.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    ALL_VERSIONS, ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

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
    config: RwLock<Arc<ServerConfig>>,
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
        let config = RwLock::new(load(&chain, &key)?);
        Ok(Some(Self { chain, key, config }))
    }

    /// Reads the files again. New connections get the new certificate, open ones keep the old one.
    /// Blocks while it reads.
    ///
    /// # Errors
    ///
    /// Those of [`Certificate::read`]. The old certificate stays in use.
    pub fn reload(&self) -> Result<(), ConfigError> {
        let config = load(&self.chain, &self.key)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// An acceptor that uses the current certificate.
    pub fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

/// Loads both files. Enables TLS 1.2 and 1.3, the only versions that the library has.
fn load(chain: &Path, key: &Path) -> Result<Arc<ServerConfig>, ConfigError> {
    let certificates = certificates(CERTIFICATE, chain)?;
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
    Ok(Arc::new(config))
}
