//! The link: our one managed connection to an upstream, over its reconnects.
//!
//! The firehose's link to the vendor and the filtered proxy's link to the firehose are this same code. A link connects, logs
//! in, asks for the channels wanted, and yields what happens as [`LinkEvent`]s; after a loss it does all that again by itself.
//! It reads without ever waiting for whoever consumes the events, as long as that one keeps calling [`Link::next`].

use std::{
    collections::VecDeque,
    fmt, future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use rustls::pki_types::CertificateDer;
use secrecy::SecretString;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tracing::{error, info, warn};
use url::Url;

use crate::{
    health::ChannelHealth,
    link::{backoff::Backoff, subscriptions::Change},
    metrics::{LinkMetrics, Reason},
    protocol::channel::Channel,
    websocket::frame::Frame,
};

pub mod backoff;
mod client_socket;
mod connection;
mod echo;
mod login;
pub mod subscriptions;

#[doc(hidden)]
pub use self::echo::echo;
use client_socket::WebSocket;
use connection::{Connection, Received};

/// The channels a link is to ask for.
pub type Wanted = std::collections::BTreeSet<Channel>;

/// What a link needs to know.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// What the upstream is called in logs: `Polygon` or `firehose`.
    pub upstream: &'static str,
    /// Where it is.
    pub url: Url,
    /// The key presented.
    pub key: SecretString,
    /// Certificate authorities trusted for `wss`, beside the public ones built in.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// Most time for connecting, for the greeting and for the verdict each.
    pub login_timeout: Duration,
    /// After a refused login the key is tried again at this interval, or on [`LinkHandle::retry_now`].
    pub refused_interval: Duration,
    /// Time between pings. A link on which nothing arrived during two of them is dead.
    pub ping_interval: Duration,
}

impl LinkConfig {
    /// A configuration with the usual times: 10 s for each step of the login, 15 min after a refused one, pings every 15 s.
    pub fn new(upstream: &'static str, url: Url, key: SecretString) -> Self {
        Self {
            upstream,
            url,
            key,
            extra_roots: Vec::new(),
            login_timeout: Duration::from_secs(10),
            refused_interval: Duration::from_secs(15 * 60),
            ping_interval: Duration::from_secs(15),
        }
    }
}

/// What happens on a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// Logged in, and everything that the link is asked for is answered. This is the outage that has just ended; the first one
    /// begins with the program.
    Up(Outage),
    /// A message came that holds no events, whatever it was to hold: it is dropped.
    Malformed,
    /// The connection is lost, since now. Reconnecting goes on by itself.
    Down(Outage),
    /// Everything that the link is asked for by now is answered, there being no outage.
    Settled,
    /// An array of data events, byte for byte as upstream sent it.
    Frame {
        /// The frame.
        frame: Frame,
        /// How many events it holds, told by their key `ev`.
        events: u64,
    },
    /// A notice of the upstream that concerns those downstream: a frame that holds it alone.
    Notice(Frame),
    /// A firehose tells what it carries: the text of its status object, for [`Carried::read`](crate::protocol::coverage::Carried::read).
    Carried(String),
    /// The upstream answered subscriptions.
    Channels(Vec<Change>),
}

/// A time in which not everything comes that is wanted.
#[derive(Debug, Clone)]
pub struct Outage {
    /// When it began.
    pub from: SystemTime,
    /// Why, for people.
    pub reason: String,
}

impl Outage {
    /// One that begins now.
    pub fn now(reason: impl Into<String>) -> Self {
        Self { from: SystemTime::now(), reason: reason.into() }
    }
}

/// What a link is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// Opening a connection.
    Connecting,
    /// Connected, waiting for the verdict on the key.
    Authenticating,
    /// Logged in.
    Up,
    /// Waiting before the next try.
    Waiting,
    /// The key was refused; waiting long before the next try.
    Refused,
}

/// The state of a link, for `/health`.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// What it is doing.
    pub state: LinkState,
    /// Since when it has been up, or has not been.
    pub since: SystemTime,
    /// Why the last connection or try ended.
    pub last_error: Option<String>,
    /// Successful logins.
    pub connects: u64,
    /// What is asked of the upstream.
    pub channels: ChannelHealth,
}

/// Why a connection or a try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkError {
    /// No connection, no TLS, or no upgrade.
    Unreachable(String),
    /// A step of the login took too long.
    Timeout(&'static str),
    /// The key or the plan was refused, in the upstream's words.
    AuthFailed(String),
    /// Another process took the account's connection, in the upstream's words.
    MaxConnections(String),
    /// The upstream spoke otherwise than expected.
    Protocol(String),
    /// Nothing came for two pings: a half-open connection.
    Silent,
    /// The connection ended.
    Closed(String),
}

impl LinkError {
    /// Every value of [`label`](Self::label).
    pub const LABELS: [&str; 7] = [
        "unreachable",
        "timeout",
        "auth_failed",
        "max_connections",
        "protocol",
        "silent",
        "closed",
    ];

    /// The value of the metric label `reason`.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => Self::LABELS[0],
            Self::Timeout(_) => Self::LABELS[1],
            Self::AuthFailed(_) => Self::LABELS[2],
            Self::MaxConnections(_) => Self::LABELS[3],
            Self::Protocol(_) => Self::LABELS[4],
            Self::Silent => Self::LABELS[5],
            Self::Closed(_) => Self::LABELS[6],
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "unreachable: {why}"),
            Self::Timeout(step) => write!(f, "no {step} in time"),
            Self::AuthFailed(why) => write!(f, "auth_failed: {why}"),
            Self::MaxConnections(why) => {
                write!(f, "max_connections: another process uses this account's connection: {why}")
            }
            Self::Protocol(why) => write!(f, "unexpected answer: {why}"),
            Self::Silent => f.write_str("half-open connection: nothing received during two pings"),
            Self::Closed(why) => write!(f, "connection lost: {why}"),
        }
    }
}

/// One link. Yields events to whoever calls [`next`](Self::next); makes no progress otherwise.
pub struct Link {
    config: Arc<LinkConfig>,
    wanted: watch::Receiver<Wanted>,
    status: Arc<watch::Sender<LinkStatus>>,
    retry: Arc<Notify>,
    metrics: Arc<LinkMetrics>,
    backoff: Backoff,
    phase: Phase,
    /// The outage that lasts.
    outage: Option<Outage>,
    /// Events known but not yet yielded; a frame brings at most a few notices.
    ready: VecDeque<LinkEvent>,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

enum Phase {
    Waiting(BoxFuture<()>),
    Connecting(BoxFuture<Result<WebSocket, LinkError>>),
    Up(Box<Connection>),
}

/// Sees a link's state and may hurry it.
#[derive(Debug, Clone)]
pub struct LinkHandle {
    status: watch::Receiver<LinkStatus>,
    retry: Arc<Notify>,
}

impl LinkHandle {
    /// The state of this moment.
    pub fn status(&self) -> LinkStatus {
        self.status.borrow().clone()
    }

    /// Ends a wait between tries, even the long one after a refused key. Without effect while connected.
    pub fn retry_now(&self) {
        self.retry.notify_waiters();
    }
}

impl Link {
    /// A link that begins to connect when first polled, and asks for the channels that `wanted` holds at any time.
    pub fn new(
        config: LinkConfig,
        wanted: watch::Receiver<Wanted>,
        metrics: Arc<LinkMetrics>,
    ) -> (Self, LinkHandle) {
        let status = LinkStatus {
            state: LinkState::Connecting,
            since: SystemTime::now(),
            last_error: None,
            connects: 0,
            channels: ChannelHealth::default(),
        };
        let (status, receiver) = watch::channel(status);
        let retry = Arc::new(Notify::new());
        let handle = LinkHandle { status: receiver, retry: Arc::clone(&retry) };
        let link = Self {
            config: Arc::new(config),
            wanted,
            status: Arc::new(status),
            retry,
            metrics,
            backoff: Backoff::default(),
            phase: Phase::Waiting(Box::pin(future::ready(()))),
            outage: Some(Outage::now("starting")),
            ready: VecDeque::new(),
        };
        (link, handle)
    }

    /// The outage that lasts: at first the one that begins with the program.
    pub fn outage(&self) -> Option<&Outage> {
        self.outage.as_ref()
    }

    /// The next thing that happens.
    ///
    /// Cancel-safe: nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> LinkEvent {
        future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Waits for something to happen, then takes all that has, until the frames hold `bytes` or more.
    ///
    /// Cancel-safe: events are only taken when the future completes.
    pub async fn next_batch(&mut self, events: &mut Vec<LinkEvent>, bytes: usize) {
        future::poll_fn(|cx| {
            let mut taken = 0;
            while taken < bytes {
                let Poll::Ready(event) = self.poll_next(cx) else { break };
                if let LinkEvent::Frame { frame, .. } = &event {
                    taken += frame.bytes().len();
                }
                events.push(event);
            }
            if events.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// The next thing that happens, if it has happened already; otherwise the task is woken when it does.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<LinkEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(event);
            }
            match &mut self.phase {
                Phase::Waiting(wait) => {
                    ready!(wait.as_mut().poll(cx));
                    self.connect();
                }
                Phase::Connecting(login) => match ready!(login.as_mut().poll(cx)) {
                    Ok(socket) => self.on_login(socket),
                    Err(error) => self.on_end(&error, Duration::ZERO),
                },
                Phase::Up(connection) => match ready!(connection.poll(cx)) {
                    Ok(Received::Data { frame, events }) => {
                        return Poll::Ready(LinkEvent::Frame { frame, events });
                    }
                    Ok(Received::Malformed) => return Poll::Ready(LinkEvent::Malformed),
                    Ok(Received::Notice(frame)) => return Poll::Ready(LinkEvent::Notice(frame)),
                    Ok(Received::Carried(text)) => return Poll::Ready(LinkEvent::Carried(text)),
                    Ok(Received::Channels(changes)) => {
                        self.on_channels(&changes);
                        return Poll::Ready(LinkEvent::Channels(changes));
                    }
                    // Until now events were missed that nobody would know of.
                    Ok(Received::Settled) => {
                        // What nobody wants any more is gone without an answer.
                        self.report_channels();
                        let ended = self.outage.take();
                        return Poll::Ready(ended.map_or(LinkEvent::Settled, LinkEvent::Up));
                    }
                    Err(error) => {
                        let life = connection.age();
                        self.metrics.up.set(0);
                        self.on_end(&error, life);
                        // An outage that was not over yet goes on.
                        if self.outage.is_none() {
                            let outage = Outage::now(error.to_string());
                            self.outage = Some(outage.clone());
                            self.ready.push_back(LinkEvent::Down(outage));
                        }
                    }
                },
            }
        }
    }

    fn connect(&mut self) {
        self.set_state(LinkState::Connecting);
        let (config, status) = (Arc::clone(&self.config), Arc::clone(&self.status));
        self.phase = Phase::Connecting(Box::pin(async move {
            let socket = login::connect(&config).await?;
            status.send_modify(|status| status.state = LinkState::Authenticating);
            login::authenticate(&config, socket).await
        }));
    }

    fn on_login(&mut self, socket: WebSocket) {
        let url = shown(&self.config.url);
        info!(upstream = self.config.upstream, url, "Authenticated successfully");
        let connection = Connection::new(
            socket,
            self.wanted.clone(),
            self.config.ping_interval,
            Arc::clone(&self.metrics),
        );
        self.status.send_modify(|status| {
            status.state = LinkState::Up;
            status.since = SystemTime::now();
            status.connects += 1;
            if let Some(channels) = connection.channels() {
                status.channels = channels;
            }
        });
        self.phase = Phase::Up(Box::new(connection));
        self.metrics.connects.inc();
        self.metrics.up.set(1);
    }

    /// Decides when to try again. `life` is how long the connection had been logged in.
    fn on_end(&mut self, error: &LinkError, life: Duration) {
        self.metrics.disconnects.get_or_create(&Reason::new(error.label())).inc();
        let chance = fastrand::f64();
        let by_backoff = self.backoff.after(life, chance);
        let (wait, state) = match error {
            LinkError::AuthFailed(_) => (self.config.refused_interval, LinkState::Refused),
            LinkError::MaxConnections(_) => {
                (self.backoff.after_eviction(chance), LinkState::Waiting)
            }
            LinkError::Unreachable(_)
            | LinkError::Timeout(_)
            | LinkError::Protocol(_)
            | LinkError::Silent
            | LinkError::Closed(_) => (by_backoff, LinkState::Waiting),
        };
        let upstream = self.config.upstream;
        match error {
            LinkError::AuthFailed(_) => error!(
                upstream, %error, next_try = ?wait,
                "upstream refuses the key; correct it and restart, or send SIGHUP to try again now"
            ),
            _ => {
                warn!(upstream, %error, next_try = ?wait, failures = self.backoff.failures(), "no link");
            }
        }
        self.status.send_modify(|status| {
            if status.state == LinkState::Up {
                status.since = SystemTime::now();
            }
            status.channels = ChannelHealth::default();
            status.state = state;
            status.last_error = Some(error.to_string());
        });
        let retry = Arc::clone(&self.retry);
        self.phase = Phase::Waiting(Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = retry.notified() => info!(upstream, "trying again on request"),
            }
        }));
    }

    fn on_channels(&mut self, changes: &[Change]) {
        let upstream = self.config.upstream;
        let symbols = changes.iter().filter(|c| matches!(c, Change::Carried(Channel::Symbol(..))));
        match symbols.count() {
            0 => {}
            symbols => info!(upstream, symbols, "subscribed"),
        }
        for change in changes {
            match change {
                Change::Carried(Channel::All) => info!(upstream, "Subscribed to wildcard (*)"),
                Change::Carried(Channel::Symbol(..)) => {}
                Change::Carried(channel) => info!(upstream, %channel, "subscribed"),
                Change::Refused(channel, why) => {
                    warn!(upstream, %channel, why, "upstream refuses this channel; the others go on");
                }
                Change::Unanswered(channel) => {
                    warn!(upstream, %channel, "upstream did not answer the subscription");
                }
            }
        }
        self.report_channels();
    }

    /// Brings what is told of channels up to date.
    fn report_channels(&self) {
        if let Phase::Up(connection) = &self.phase
            && let Some(channels) = connection.channels()
        {
            self.status.send_modify(|status| status.channels = channels);
        }
    }

    fn set_state(&self, state: LinkState) {
        self.status.send_modify(|status| status.state = state);
    }
}

/// An address without what may be a secret in it.
fn shown(url: &Url) -> String {
    let (scheme, path) = (url.scheme(), url.path());
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{path}")
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("config", &self.config).finish_non_exhaustive()
    }
}
