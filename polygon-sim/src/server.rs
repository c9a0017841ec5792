//! The simulator's port, and the handles that steer its markets.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures_util::future::join_all;
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
    market::Market,
    session,
    stats::SimStats,
};

/// The pause of the accept loop when the system lacks a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the tasks have to end after the stop.
const GRACE: Duration = Duration::from_secs(5);

/// A simulator bound to a port, not serving yet.
#[derive(Debug)]
pub struct Simulator {
    listener: TcpListener,
    addr: SocketAddr,
    /// One for each market, at least one.
    hubs: Arc<[Arc<Hub>]>,
}

impl Simulator {
    /// Binds the port; 0 takes a free one. Clients can connect at once, and [`Simulator::serve`]
    /// serves them.
    ///
    /// # Errors
    /// When the address cannot be bound or a setting cannot be used. The message names it.
    pub async fn bind(addr: impl ToSocketAddrs, config: SimConfig) -> Result<Self> {
        let hubs = config.validate()?.into_iter().map(|market| Hub::new(market, config.clone()));
        let hubs = hubs.map(|hub| hub.map(Arc::new)).collect::<Result<_>>()?;
        let listener = TcpListener::bind(addr).await.context("failed to bind the simulator")?;
        let addr = listener.local_addr().context("failed to read the bound address")?;
        Ok(Self { listener, addr, hubs })
    }

    /// The address it is bound to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where a client of the first market connects: `ws://127.0.0.1:PORT/stocks`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://{}/{}", self.addr, self.hubs[0].market.segment())
    }

    /// A handle that steers and watches the first market, at any time.
    #[must_use]
    pub fn handle(&self) -> SimHandle {
        SimHandle { hub: Arc::clone(&self.hubs[0]) }
    }

    /// A handle for each market, in the order of the settings.
    #[must_use]
    pub fn handles(&self) -> Vec<SimHandle> {
        self.hubs.iter().map(|hub| SimHandle { hub: Arc::clone(hub) }).collect()
    }

    /// Serves until `stop`, then drops every connection without a close frame, as the vendor does
    /// when it recycles them. Dropping the future has the same effect, without the wait.
    ///
    /// # Errors
    /// When the markets' task fails.
    pub async fn serve(self, stop: CancellationToken) -> Result<()> {
        let tasks = TaskTracker::new();
        let halt = stop.child_token();
        let _halt_if_dropped = halt.clone().drop_guard();
        let markets = self.hubs.iter().map(|hub| feed::run(Arc::clone(hub), halt.clone()));
        let mut markets = tasks.spawn(join_all(markets.collect::<Vec<_>>()));
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            ended = &mut markets => ended.map(drop).context("failed to run the markets"),
            () = self.accept(&tasks, &halt) => Ok(()),
        };
        halt.cancel();
        tasks.close();
        if timeout(GRACE, tasks.wait()).await.is_err() {
            warn!(left = tasks.len(), "tasks still running after the grace period");
        }
        outcome
    }

    /// Accepts connections forever, each in a task of its own.
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
            let (hubs, halt) = (Arc::clone(&self.hubs), halt.clone());
            let session = async move {
                tokio::select! {
                    biased;
                    () = halt.cancelled() => {}
                    end = session::run(tcp, &hubs) => debug!(end = end.name(), "session ended"),
                }
            };
            tasks.spawn(session.instrument(debug_span!("session", %peer)));
        }
    }
}

/// Steers and watches one market of a simulator. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SimHandle {
    hub: Arc<Hub>,
}

impl SimHandle {
    /// Its market.
    #[must_use]
    pub fn market(&self) -> Market {
        self.hub.market
    }

    /// Sends these events in one frame to every authenticated connection. Each event is the exact
    /// text of one JSON object and is sent byte for byte; the frame is `[a,b]`. A connection gets
    /// the events that it is subscribed to, and no frame if there are none. Statuses go to all
    /// connections. An event of a kind that the market lacks goes to no connection: send it with
    /// [`SimHandle::publish_raw`].
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

    /// Sends a recorded frame to every authenticated connection: unaltered to one that is
    /// subscribed to all its events, otherwise those events in one frame. Events of kinds that the
    /// market lacks go to no connection.
    pub fn replay(&self, text: &str) {
        self.hub.replay(text);
    }

    /// Whether any connection is subscribed to anything.
    #[must_use]
    pub fn has_audience(&self) -> bool {
        self.hub.has_audience()
    }

    /// The most bytes that wait for any connection.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.hub.waiting_bytes()
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

    /// Injects a fault.
    pub fn inject(&self, fault: Fault) {
        self.hub.inject(fault);
    }

    /// The counters at this moment.
    #[must_use]
    pub fn stats(&self) -> SimStats {
        self.hub.stats()
    }

    /// The channels that all authenticated connections hold now, as their clients spelled them.
    #[must_use]
    pub fn subscriptions(&self) -> BTreeSet<String> {
        self.hub.subscriptions()
    }

    /// Every command received, in order, with `***` in place of keys. It keeps the last 10,000
    /// commands, at most 32 MiB.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        self.hub.journal.commands()
    }

    /// Every data frame written, exact and in order over all connections, if [`SimConfig::record`]
    /// is on. It contains every frame that a client may have read, but none whose write failed.
    /// Statuses, garbage and binary frames are left out.
    ///
    /// # Panics
    /// When more than 1 GiB were sent: an incomplete record must not look complete.
    #[must_use]
    pub fn sent(&self) -> Vec<String> {
        self.hub.journal.frames()
    }
}
