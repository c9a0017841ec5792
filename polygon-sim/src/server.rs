//! The simulator's port, and the handle that steers it.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    net::{TcpListener, ToSocketAddrs},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, debug_span, warn};

use crate::{
    config::{SimConfig, check_rate},
    fault::Fault,
    feed,
    hub::Hub,
    session,
    stats::SimStats,
};

/// Pause of the accept loop when the machine is out of something it needs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the tasks have to end once stopped.
const GRACE: Duration = Duration::from_secs(5);

/// A simulated vendor bound to a port, not serving yet.
#[derive(Debug)]
pub struct Simulator {
    listener: TcpListener,
    addr: SocketAddr,
    hub: Arc<Hub>,
}

impl Simulator {
    /// Binds the port (0 takes a free one); clients can connect at once and are served once
    /// [`Simulator::serve`] runs.
    ///
    /// # Errors
    /// When the address cannot be bound or a setting cannot be served; the message names it.
    pub async fn bind(addr: impl ToSocketAddrs, config: SimConfig) -> Result<Self> {
        let hub = Arc::new(Hub::new(config)?);
        let listener = TcpListener::bind(addr).await.context("failed to bind the simulator")?;
        let addr = listener.local_addr().context("failed to read the bound address")?;
        Ok(Self { listener, addr, hub })
    }

    /// The address bound.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where a client connects: `ws://127.0.0.1:PORT/stocks`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://{}/{}", self.addr, self.hub.market.segment())
    }

    /// A handle that steers and watches this simulator, before, while and after it serves.
    #[must_use]
    pub fn handle(&self) -> SimHandle {
        SimHandle { hub: Arc::clone(&self.hub) }
    }

    /// Serves until `stop`, then drops every connection without a close frame, as the vendor does
    /// when it recycles them. Dropping the future has the same effect, without the wait.
    ///
    /// # Errors
    /// When the market's task fails.
    pub async fn serve(self, stop: CancellationToken) -> Result<()> {
        let tasks = TaskTracker::new();
        let halt = stop.child_token();
        let _halt_if_dropped = halt.clone().drop_guard();
        let mut market = tasks.spawn(feed::run(Arc::clone(&self.hub), halt.clone()));
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            ended = &mut market => ended.context("failed to run the market"),
            () = self.accept(&tasks, &halt) => Ok(()),
        };
        halt.cancel();
        tasks.close();
        if timeout(GRACE, tasks.wait()).await.is_err() {
            warn!(left = tasks.len(), "tasks still running after the grace period");
        }
        outcome
    }

    /// Accepts connections for ever, each in a task of its own.
    async fn accept(&self, tasks: &TaskTracker, halt: &CancellationToken) {
        loop {
            let (tcp, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    debug!(%error, "failed to accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if let Err(error) = tcp.set_nodelay(true) {
                debug!(%error, %peer, "connection gone before it was served");
                continue;
            }
            let (hub, halt) = (Arc::clone(&self.hub), halt.clone());
            let session = async move {
                tokio::select! {
                    biased;
                    () = halt.cancelled() => {}
                    end = session::run(tcp, hub) => debug!(?end, "session ended"),
                }
            };
            tasks.spawn(session.instrument(debug_span!("session", %peer)));
        }
    }
}

/// Steers and watches a simulator; cheap to clone.
#[derive(Debug, Clone)]
pub struct SimHandle {
    hub: Arc<Hub>,
}

impl SimHandle {
    /// Sends one frame holding these events, each the exact text of one JSON object, to every
    /// authenticated connection; events go byte for byte, joined as `[a,b]`. A connection gets
    /// only those it is subscribed to, and no frame when none is left; statuses go to all. Events
    /// of a kind the market lacks go to nobody: send those with [`SimHandle::publish_raw`].
    ///
    /// # Panics
    /// When an event is not a JSON object with a string `ev` and the symbol field of its kind.
    pub fn publish(&self, events: &[String]) {
        self.hub.publish(events);
    }

    /// Sends this text as one frame, unaltered, to every authenticated connection.
    pub fn publish_raw(&self, text: &str) {
        self.hub.publish_raw(text);
    }

    /// Sets the rate of generated events per second; 0 stops them.
    ///
    /// # Panics
    /// When the rate is negative or not a number.
    pub fn set_rate(&self, events_per_second: f64) {
        if let Err(error) = self.try_set_rate(events_per_second) {
            panic!("{error}");
        }
    }

    /// Sets the rate as [`SimHandle::set_rate`] does.
    ///
    /// # Errors
    /// When the rate is negative or not a number.
    pub fn try_set_rate(&self, events_per_second: f64) -> Result<()> {
        check_rate(events_per_second)?;
        self.hub.set_rate(events_per_second);
        Ok(())
    }

    /// Makes something go wrong.
    pub fn inject(&self, fault: Fault) {
        self.hub.inject(fault);
    }

    /// The counters now.
    #[must_use]
    pub fn stats(&self) -> SimStats {
        self.hub.stats()
    }

    /// Channels held now over all authenticated connections, as their clients spelled them.
    #[must_use]
    pub fn subscriptions(&self) -> BTreeSet<String> {
        self.hub.subscriptions()
    }

    /// Every command received, in order, keys replaced by `***`. Bounded to 10,000 commands and
    /// 32 MiB; the oldest are dropped.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        self.hub.journal.commands()
    }

    /// Every data frame written, exact and in order over all connections, when
    /// [`SimConfig::record`] is on. What a client may have read is in it; a frame whose write was
    /// cut off is not. Statuses, garbage and binary frames are left out.
    ///
    /// # Panics
    /// When more than 1 GiB were sent: an incomplete record must not pass for a whole one.
    #[must_use]
    pub fn sent(&self) -> Vec<String> {
        self.hub.journal.frames()
    }
}
