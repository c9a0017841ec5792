//! The link: our one managed connection to an upstream, over its reconnects.
//!
//! The firehose's link to the vendor and the filtered proxy's link to the firehose are this same
//! code. A link connects, logs in, subscribes to the channels wanted, and yields [`LinkEvent`]s.
//! After a loss it does all of that again by itself. It reads only while its consumer polls it.

mod backoff;
mod config;
mod connection;
mod dial_right;
mod error;
mod event;
mod login;
mod metrics;
#[cfg(feature = "nats")]
mod nats;
mod spacing;
mod status;
mod subscriptions;
mod upstream;
mod upstream_socket;

#[cfg(feature = "nats")]
pub use self::nats::{NatsUpstream, ReaderMetrics};
pub use self::{
    config::{LinkConfig, redacted},
    dial_right::{DialGrant, DialRight, Watchdog, uptime},
    error::LinkError,
    event::{ContractAnswer, LinkEvent},
    login::{Opened, authenticate, connect, open},
    metrics::LinkMetrics,
    spacing::Spacing,
    status::{ChannelStatus, LastError, LinkState, LinkStatus},
    subscriptions::{Request, SubscriptionOutcome, UpstreamSubscriptions, Wanted},
    upstream_socket::{SocketError, Stream, UpstreamMessage, UpstreamSocket},
};

use std::{
    future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tracing::{debug, error, info, warn};

use self::{backoff::Backoff, connection::Connection, upstream::Upstream};
use crate::protocol::{Channel, Outage, Position, Start};

/// How long an upstream may take to answer our close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest wait between attempts while the firehose is silent. Each attempt waits for it as
/// well.
const SILENT_WAIT: Duration = Duration::from_millis(250);

/// One link. Yields events to the caller of [`next`](Self::next). Makes no progress otherwise.
pub struct Link {
    config: Arc<LinkConfig>,
    wanted: watch::Receiver<Wanted>,
    status: Arc<watch::Sender<LinkStatus>>,
    retry: Arc<Notify>,
    metrics: Arc<LinkMetrics>,
    backoff: Backoff,
    phase: Phase,
    /// The outage that is going on, if any.
    outage: Option<Outage>,
    /// Where the feed stood behind the last frame of the last connection, if it can be resumed.
    position: Option<Position>,
    /// Whether the next connection asks for no old messages: among them is one that both ends count
    /// differently.
    begins_anew: bool,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

enum Phase {
    Waiting(BoxFuture<()>),
    Connecting(BoxFuture<Result<Upstream, LinkError>>),
    Up(Box<Connection>),
}

/// Shows the state of a link, and can end its wait between attempts.
#[derive(Debug, Clone)]
pub struct LinkHandle {
    status: watch::Receiver<LinkStatus>,
    retry: Arc<Notify>,
}

impl LinkHandle {
    /// The current state.
    pub fn status(&self) -> LinkStatus {
        self.status.borrow().clone()
    }

    /// Ends a wait between attempts, even the long one after a refused key. Has no effect while
    /// connected.
    pub fn retry_now(&self) {
        self.retry.notify_waiters();
    }
}

impl Link {
    /// A link that begins to connect when first polled, and subscribes to the channels that
    /// `wanted` holds at any time.
    pub fn new(
        config: LinkConfig,
        wanted: watch::Receiver<Wanted>,
        metrics: Arc<LinkMetrics>,
    ) -> (Self, LinkHandle) {
        let (status, receiver) = watch::channel(LinkStatus::new(config.upstream, config.shown()));
        let retry = Arc::new(Notify::new());
        let handle = LinkHandle { status: receiver, retry: Arc::clone(&retry) };
        let config = Arc::new(config);
        let link = Self {
            phase: Phase::Waiting(Box::pin(wait_for_spacing(Arc::clone(&config)))),
            config,
            wanted,
            status: Arc::new(status),
            retry,
            metrics,
            backoff: Backoff::default(),
            outage: Some(Outage::now("starting")),
            position: None,
            begins_anew: false,
        };
        (link, handle)
    }

    /// The outage that is going on, if any. The first one begins with the program.
    pub fn outage(&self) -> Option<&Outage> {
        self.outage.as_ref()
    }

    /// What the current connection wants; `None` without a connection.
    pub fn requested(&self) -> Option<&Wanted> {
        let Phase::Up(connection) = &self.phase else { return None };
        Some(&connection.subscriptions.wanted)
    }

    /// Sends a command of the link's owner. Without a connection it is lost.
    pub fn send(&mut self, command: &str) {
        if let Phase::Up(connection) = &mut self.phase {
            connection.send(command);
        }
    }

    /// The next event.
    ///
    /// Cancel-safe: nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> LinkEvent {
        future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Waits for an event, then takes all that are ready, until their frames hold `bytes` or more.
    ///
    /// Cancel-safe: events are only taken when the future completes.
    pub async fn next_batch(&mut self, events: &mut Vec<LinkEvent>, bytes: usize) {
        future::poll_fn(|cx| {
            let mut held = 0;
            while held < bytes {
                let Poll::Ready(event) = self.poll_next(cx) else { break };
                if let LinkEvent::Frame { frame, .. } = &event {
                    held += frame.bytes().len();
                }
                events.push(event);
            }
            if events.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// Ends the link with a close frame, so that the upstream frees the account's connection at
    /// once. Waits up to 2 s for its answer.
    pub async fn close(self) {
        let upstream = self.config.upstream;
        let closing = async {
            let socket = match self.phase {
                Phase::Waiting(_) => return Ok(false),
                // The upstream may count this connection already.
                Phase::Connecting(login) => match login.await {
                    Ok(socket) => socket,
                    Err(_) => return Ok(false),
                },
                Phase::Up(connection) => connection.into_socket(),
            };
            socket.close().await.map(|()| true)
        };
        match timeout(CLOSE_TIMEOUT, closing).await {
            Ok(Ok(true)) => info!(upstream, "link closed"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => warn!(upstream, %error, "link closed without an answer"),
            Err(_) => warn!(upstream, "link closed without an answer in time"),
        }
    }

    /// The next event if it is ready; otherwise the task is woken when it is.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<LinkEvent> {
        loop {
            match &mut self.phase {
                Phase::Waiting(wait) => {
                    ready!(wait.as_mut().poll(cx));
                    match self.config.dial_right.as_ref().map_or(Ok(()), DialRight::check) {
                        Ok(()) => self.connect(),
                        Err(error) => {
                            if let Some(event) = self.stand_by(error) {
                                return Poll::Ready(event);
                            }
                        }
                    }
                }
                Phase::Connecting(login) => match ready!(login.as_mut().poll(cx)) {
                    Ok(socket) => self.on_login(socket),
                    Err(error @ LinkError::Standby(_)) => {
                        if let Some(event) = self.stand_by(error) {
                            return Poll::Ready(event);
                        }
                    }
                    Err(error) => {
                        if let Some(event) = self.on_end(&error, Duration::ZERO) {
                            return Poll::Ready(event);
                        }
                    }
                },
                Phase::Up(connection) => match ready!(connection.poll(cx)) {
                    Ok(event) => return Poll::Ready(self.on_event(event)),
                    Err(error) => {
                        let life = connection.age();
                        // One that ended before its first frame knows no better place.
                        match (connection.position(), &error) {
                            (_, LinkError::Positions { .. }) => {
                                (self.position, self.begins_anew) = (None, true);
                            }
                            (None, _) => {}
                            (position, _) => self.position = position,
                        }
                        self.metrics.up.dec();
                        if let Some(event) = self.on_end(&error, life) {
                            return Poll::Ready(event);
                        }
                    }
                },
            }
        }
    }

    /// Adds to an event of the connection what only the link knows.
    fn on_event(&mut self, event: LinkEvent) -> LinkEvent {
        match event {
            LinkEvent::AllAnswered => {
                // An unsubscription has no answer, so the state is published here.
                self.publish_channels();
                // Until every channel was answered, events could be missed.
                let Some(outage) = self.outage.take() else { return LinkEvent::AllAnswered };
                let ended = (outage.clone(), SystemTime::now());
                self.status.send_modify(|status| status.last_outage = Some(ended));
                LinkEvent::Up(outage)
            }
            LinkEvent::Subscriptions(outcomes) => {
                self.log_outcomes(&outcomes);
                self.publish_channels();
                LinkEvent::Subscriptions(outcomes)
            }
            event => event,
        }
    }

    fn connect(&mut self) {
        self.status.send_modify(|status| status.state = LinkState::Connecting);
        let (config, status) = (Arc::clone(&self.config), Arc::clone(&self.status));
        self.phase = Phase::Connecting(Box::pin(async move {
            let connected =
                || status.send_modify(|status| status.state = LinkState::Authenticating);
            Upstream::begin(&config, connected).await
        }));
    }

    fn on_login(&mut self, socket: Upstream) {
        let start = self.start();
        let connection = Connection::new(
            socket,
            self.wanted.clone(),
            self.config.ping_interval,
            start,
            Arc::clone(&self.metrics),
        );
        self.status.send_modify(|status| {
            status.state = LinkState::Up;
            status.since = SystemTime::now();
            status.last_error = None;
            status.connects += 1;
            if let Some(channels) = connection.channels() {
                status.channels = channels;
            }
        });
        let url = self.config.shown();
        info!(upstream = self.config.upstream, url, "Authenticated successfully");
        self.phase = Phase::Up(Box::new(connection));
        self.metrics.connects.inc();
        self.metrics.up.inc();
    }

    /// Where a new connection begins.
    fn start(&mut self) -> Option<Start> {
        let newest = match std::mem::take(&mut self.begins_anew) {
            true => Start::Newest(0),
            false => Start::Newest(self.config.history_bytes?),
        };
        Some(self.position.map_or(newest, |position| Start::From(position, 0)))
    }

    /// Whether the link asks the firehose for what it missed.
    pub fn resumes(&self) -> bool {
        self.config.history_bytes.is_some()
    }

    /// Decides when to try again. `life` is how long the connection had been logged in. Returns the
    /// outage if it begins now, or if its reason has changed.
    fn on_end(&mut self, error: &LinkError, life: Duration) -> Option<LinkEvent> {
        let chance = fastrand::f64();
        let by_backoff = self.backoff.after(life, chance);
        // The vendor evicts with this code. Once can be chance.
        let evicted = LinkError::MaxConnections("closed with code 1008 again".to_owned());
        let again = *error == LinkError::ClosedByPolicy && self.backoff.is_repeated_policy_close();
        let error = if again { &evicted } else { error };
        self.metrics.disconnects.of(error.label()).inc();
        let (wait, state) = match error {
            LinkError::AuthFailed(_) => (self.config.refused_interval, LinkState::Refused),
            LinkError::MaxConnections(_) => {
                (self.backoff.after_eviction(chance), LinkState::Waiting)
            }
            LinkError::TryLater(_, told) => (by_backoff.max(*told), LinkState::Waiting),
            LinkError::NoFirehose(_) => (by_backoff.min(SILENT_WAIT), LinkState::Waiting),
            LinkError::Unreachable(_)
            | LinkError::Timeout(_)
            | LinkError::Protocol(_)
            | LinkError::Positions { .. }
            | LinkError::Silent
            | LinkError::ClosedByPolicy
            | LinkError::Standby(_)
            | LinkError::Closed(_) => (by_backoff, LinkState::Waiting),
        };
        let now = SystemTime::now();
        // Before the log line: whoever reads it may ask for the status.
        self.status.send_modify(|status| {
            if status.state == LinkState::Up {
                status.since = now;
            }
            status.channels = ChannelStatus::default();
            status.state = state;
            status.last_error = Some(LastError { error: error.clone(), at: now, wait });
        });
        let (upstream, url) = (self.config.upstream, self.config.shown());
        let next_try = rounded(wait);
        let failures = self.backoff.failures();
        let advice = error.advice();
        if state == LinkState::Refused {
            error!(upstream, url, %error, %next_try, failures, advice, "upstream refuses the key");
        } else {
            warn!(upstream, url, %error, %next_try, failures, advice, "link is down");
        }
        let (retry, config) = (Arc::clone(&self.retry), Arc::clone(&self.config));
        self.phase = Phase::Waiting(Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = retry.notified() => info!(upstream, "trying again on request"),
                // What an attempt has met says nothing about the next right to dial.
                () = taken(&config) => {}
            }
            wait_for_spacing(config).await;
        }));
        self.change_outage(error)
    }

    /// Waits until this program may dial. Returns the outage if its reason has changed.
    fn stand_by(&mut self, error: LinkError) -> Option<LinkEvent> {
        let event = self.change_outage(&error);
        let (known, config) = (error.to_string(), Arc::clone(&self.config));
        self.status.send_modify(|status| {
            if status.state != LinkState::Standby {
                (status.state, status.since) = (LinkState::Standby, SystemTime::now());
            }
            let (at, wait) = (SystemTime::now(), Duration::ZERO);
            status.last_error = Some(LastError { error, at, wait });
        });
        self.phase = Phase::Waiting(Box::pin(async move {
            if let Some(right) = &config.dial_right {
                right.changed(&known).await;
            }
        }));
        if let Some(LinkEvent::Down(outage)) = &event {
            info!(upstream = self.config.upstream, reason = outage.reason, "may not dial");
        }
        event
    }

    /// Begins an outage with this reason, or changes the reason of the one that goes on. `None` if
    /// that is its reason already.
    fn change_outage(&mut self, error: &LinkError) -> Option<LinkEvent> {
        let reason = error.to_string();
        let outage = match self.outage.take() {
            Some(known) if known.reason == reason => {
                self.outage = Some(known);
                return None;
            }
            Some(known) => Outage { reason, ..known },
            None => match error {
                LinkError::NoFirehose(since) => Outage { from: *since, reason },
                _ => Outage::now(reason),
            },
        };
        Some(LinkEvent::Down(self.outage.insert(outage).clone()))
    }

    /// Symbols have no line each, because clients choose how many there are.
    fn log_outcomes(&self, outcomes: &[SubscriptionOutcome]) {
        let upstream = self.config.upstream;
        let (mut symbols, mut refused, mut unanswered) = (0, 0, 0);
        let mut last_refusal = "";
        for outcome in outcomes {
            match outcome {
                SubscriptionOutcome::Carried(Channel::Symbol(..)) => symbols += 1,
                SubscriptionOutcome::Refused(Channel::Symbol(..), why) => {
                    (refused, last_refusal) = (refused + 1, why);
                }
                SubscriptionOutcome::Unanswered(Channel::Symbol(..)) => unanswered += 1,
                SubscriptionOutcome::Full(kind, held) => {
                    warn!(upstream, %kind, held, "upstream has no room for more contracts");
                }
                SubscriptionOutcome::Carried(Channel::All) => {
                    info!(upstream, "Subscribed to wildcard (*)");
                }
                SubscriptionOutcome::Carried(channel) => info!(upstream, %channel, "subscribed"),
                SubscriptionOutcome::Refused(channel, why) => {
                    warn!(upstream, %channel, why, "upstream refuses this channel; the others go on");
                }
                SubscriptionOutcome::Unanswered(channel) => {
                    warn!(upstream, %channel, "upstream did not answer the subscription");
                }
            }
        }
        if symbols > 0 {
            debug!(upstream, symbols, "subscribed");
        }
        if refused > 0 {
            warn!(upstream, symbols = refused, why = last_refusal, "upstream refuses symbols");
        }
        if unanswered > 0 {
            warn!(upstream, symbols = unanswered, "upstream did not answer for symbols");
        }
    }

    fn publish_channels(&self) {
        if let Phase::Up(connection) = &self.phase
            && let Some(channels) = connection.channels()
        {
            self.status.send_modify(|status| status.channels = channels);
        }
    }
}

/// Waits until the right to dial is taken; for ever if it cannot be.
async fn taken(config: &LinkConfig) {
    match &config.dial_right {
        Some(right) => right.taken().await,
        None => future::pending().await,
    }
}

/// Waits until an attempt may begin, if other links connect to the same upstream.
async fn wait_for_spacing(config: Arc<LinkConfig>) {
    if let Some(spacing) = &config.spacing {
        spacing.wait().await;
    }
}

/// A time as people write it, to the millisecond.
fn rounded(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(time.as_millis() as u64))
}
