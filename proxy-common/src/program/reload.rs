//! The reload on SIGHUP: reads keys and certificate again. If that fails, the old ones stay in use.

use std::sync::Arc;

use tracing::{error, info};

use crate::{access::Keys, config::ConfigError, link::LinkHandle, transport::Certificate};

/// The parts of a tier that are read or tried again.
#[derive(Clone)]
pub struct Reload {
    /// The links whose refused login is tried again at once.
    pub links: Vec<LinkHandle>,
    /// Keys to read again, if they come from a file.
    pub keys: Arc<Keys>,
    /// The certificate to read again, if the port has one.
    pub certificate: Option<Arc<Certificate>>,
}

impl Reload {
    /// Reloads now. Logs a part that cannot be read, and leaves it as it was.
    pub async fn run(&self) {
        for link in &self.links {
            link.retry_now();
        }
        let Self { keys, certificate, .. } = self.clone();
        match read(move || keys.reload()).await {
            Ok(Some(done)) => {
                info!(
                    keys = done.keys,
                    added = done.added,
                    removed = done.removed,
                    "keys read again"
                );
            }
            Ok(None) => {}
            Err(error) => {
                error!(%error, "failed to read the keys again: they stay as they were");
            }
        }
        if let Some(certificate) = certificate {
            match read(move || certificate.reload()).await {
                Ok(()) => info!("certificate read again, for connections to come"),
                Err(error) => {
                    error!(%error, "failed to read the certificate again: it stays as it was");
                }
            }
        }
    }
}

/// Reads on a thread that carries no data, because files may lie on a slow disk.
async fn read<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConfigError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
