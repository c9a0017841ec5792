//! What SIGHUP asks for: what can be read again is, without touching what works.

use std::sync::Arc;

use tracing::{error, info};

use crate::{keys::Keys, link::LinkHandle};

/// The parts of a tier that are read or tried again.
#[derive(Debug, Clone)]
pub struct Reload {
    /// A refused login is tried again at once.
    pub link: LinkHandle,
    /// A file of keys is read again.
    pub keys: Arc<Keys>,
}

impl Reload {
    /// Does it now. What cannot be read is logged, and stays as it was.
    pub async fn run(&self) {
        self.link.retry_now();
        let keys = Arc::clone(&self.keys);
        // Not on a thread that data flows through: the file may lie on a slow disk.
        match tokio::task::spawn_blocking(move || keys.reload()).await {
            Ok(Ok(Some(done))) => {
                info!(
                    keys = done.keys,
                    added = done.added,
                    removed = done.removed,
                    "keys read again"
                );
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                error!(%error, "failed to read the keys again: they stay as they were");
            }
            Err(error) => error!(%error, "failed to read the keys again"),
        }
    }
}
