//! The lease: which of several firehoses may dial the vendor, for each market.
//!
//! A thread of its own contends for the leases: a renewal must wait neither for data nor for the
//! program's other tasks. What follows from a lease stands in [`hold`]: the role, the epoch and the
//! right to dial.

#[cfg(feature = "nats")]
mod bucket;
mod file;
mod hold;
#[cfg(feature = "nats")]
mod nats;
pub mod protocol;
mod status;
pub mod value;

pub(crate) use self::status::LeaseStatus;

use std::{io, path::PathBuf, sync::Arc, thread, time::Duration};

use proxy_common::{
    config::ConfigError,
    link::{DialGrant, DialRight, Watchdog},
    metrics::Metrics,
    nats::{NatsConfig, instance},
    protocol::Market,
};
use tokio::{
    runtime::Builder,
    sync::{oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tracing::{Instrument, error_span, warn};

use self::hold::{Contender, Hold};
use crate::{epochs::Epochs, ring::Readers, role::Role};

/// How long a stopping program waits for the store to take the release.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where the leases are, as `LEASE` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseKind {
    /// Nowhere: this program always may dial.
    None,
    /// In files: this path and the market's name.
    File(PathBuf),
    /// In a bucket of the NATS that gets the feed.
    Nats,
}

impl LeaseKind {
    /// Parses `none`, `file:PATH` or `nats`.
    ///
    /// # Errors
    ///
    /// It is none of them.
    pub fn parse(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("file:")) {
            ("none", _) => Ok(Self::None),
            ("nats", _) => Ok(Self::Nats),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err("expected none, file:PATH or nats".to_owned()),
        }
    }
}

/// The checked settings of leases.
#[derive(Debug, Clone)]
pub enum LeaseConfig {
    /// A locked file for each market: this path, a dot and the market's name.
    File(PathBuf),
    /// A bucket in NATS.
    Nats {
        /// How to reach it.
        nats: Box<NatsConfig>,
        /// How many servers keep a bucket that is made.
        replicas: usize,
        /// The times of the protocol.
        timing: protocol::Timing,
    },
}

impl LeaseConfig {
    /// What it is called.
    fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Nats { .. } => "nats",
        }
    }
}

/// The leases of a program, before they are contended for.
pub(crate) struct Leases {
    config: LeaseConfig,
    name: String,
    address: String,
    contenders: Vec<Contender>,
    rights: Vec<DialRight>,
}

/// A market's part in them.
pub(crate) struct MarketLease {
    pub(crate) right: DialRight,
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) status: Arc<LeaseStatus>,
    pub(crate) release: Release,
}

/// Releases the lease of a market. Dropping it does the same without waiting for the end.
pub(crate) struct Release {
    stop: oneshot::Sender<()>,
    released: oneshot::Receiver<()>,
}

/// The thread that contends. It ends once every market has released its lease or forgotten it.
pub(crate) struct Contention(#[expect(dead_code, reason = "it ends with this value")] Watchdog);

impl Leases {
    /// Nothing is contended for yet. `address` is where this program listens, for people.
    pub(crate) fn new(config: LeaseConfig, address: String) -> Self {
        let (name, contenders, rights) = (name(), Vec::new(), Vec::new());
        Self { config, name, address, contenders, rights }
    }

    /// The lease of a market. The links of the market need its right to dial.
    pub(crate) fn market(
        &mut self,
        market: Market,
        ring: &Readers,
        epochs: Epochs,
        metrics: &mut Metrics,
    ) -> MarketLease {
        let (grant, right) = DialGrant::new("standby: the lease has yet to be looked at");
        self.rights.push(right.clone());
        let status = Arc::new(LeaseStatus::register(self.config.kind(), &self.name, metrics));
        let (hold, role) = Hold::new(grant, ring.clone(), epochs, Arc::clone(&status));
        let (stop, stopped) = oneshot::channel();
        let (done, released) = oneshot::channel();
        self.contenders.push(Contender { market, hold, stop: stopped, released: done });
        MarketLease { right, role, status, release: Release { stop, released } }
    }

    /// Starts to contend.
    ///
    /// # Errors
    ///
    /// The system has no thread left, or a file cannot be opened. The error names the variable.
    pub(crate) fn start(self) -> Result<Contention, ConfigError> {
        let Self { config, name, address, contenders, rights } = self;
        let no_thread = |error: io::Error| ConfigError::other(format!("LEASE: {error}"));
        let files = match &config {
            LeaseConfig::File(path) => {
                let open = |contender: &Contender| file::Lock::open(path, contender.market);
                Some(contenders.iter().map(open).collect::<Result<Vec<_>, _>>()?)
            }
            LeaseConfig::Nats { .. } => None,
        };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let contend = move || {
            runtime.block_on(async {
                let mut tasks = JoinSet::new();
                match (config, files) {
                    (_, Some(files)) => {
                        for (file, contender) in files.into_iter().zip(contenders) {
                            let span = error_span!("lease", market = contender.market.name());
                            let (name, address) = (name.clone(), address.clone());
                            tasks.spawn(
                                file::contend(file, name, address, contender).instrument(span),
                            );
                        }
                        while tasks.join_next().await.is_some() {}
                    }
                    #[cfg(feature = "nats")]
                    (LeaseConfig::Nats { nats, replicas, timing }, None) => {
                        let store = nats::StoreConfig { nats: *nats, replicas, timing };
                        nats::contend(store, name, address, contenders).await;
                    }
                    (_, None) => warn!("this build has no NATS"),
                }
            });
        };
        thread::Builder::new().name("lease".to_owned()).spawn(contend).map_err(no_thread)?;
        Ok(Contention(Watchdog::start(rights).map_err(no_thread)?))
    }
}

impl Release {
    /// Releases the lease, if it is held. To be called once the vendor's connections are closed.
    /// Waits for at most a second.
    pub(crate) async fn release(self) {
        let _ = self.stop.send(());
        if timeout(RELEASE_TIMEOUT, self.released).await.is_err() {
            warn!("the lease could not be released: others wait as after a crash");
        }
    }
}

/// The name of this run of the program: machine, process, and chance.
fn name() -> String {
    let host: String = instance().host.chars().filter(|c| c.is_ascii_graphic()).collect();
    let host = if host.is_empty() { "firehose" } else { &host };
    format!("{host}:{}:{:04x}", std::process::id(), fastrand::u16(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_lease_is_parsed() {
        assert_eq!(LeaseKind::parse("none"), Ok(LeaseKind::None));
        assert_eq!(LeaseKind::parse("nats"), Ok(LeaseKind::Nats));
        assert_eq!(LeaseKind::parse("file:/run/x"), Ok(LeaseKind::File("/run/x".into())));
        for text in ["", "file:", "file", "redis", "NATS"] {
            assert_eq!(LeaseKind::parse(text), Err("expected none, file:PATH or nats".to_owned()));
        }
    }

    #[test]
    fn a_name_is_one_word_and_differs_from_run_to_run() {
        assert!(!name().contains(char::is_whitespace));
        assert!((0..20).any(|_| name() != name()));
    }
}
