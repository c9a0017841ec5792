//! Turning signals into an orderly end.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The signals that end the program.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Takes over SIGINT and SIGTERM.
    ///
    /// # Errors
    ///
    /// The system lets no handler be installed.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Cancels `stop` on the first signal; returns on the second, for those who will not wait.
    pub async fn watch(mut self, stop: CancellationToken) {
        info!(signal = self.next().await, "stopping; a second signal stops at once");
        stop.cancel();
        warn!(signal = self.next().await, "second signal: leaving without waiting for sessions");
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
