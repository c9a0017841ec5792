//! One accepted downstream WebSocket, from the greeting to the close: the vendor's protocol, the same on both ports.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    net::TcpStream,
    task::coop::consume_budget,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{
    Error, Message,
    error::{CapacityError, ProtocolError},
    protocol::{Role, WebSocketConfig, WebSocketContext},
};
use tokio_util::sync::CancellationToken;

use crate::{
    carried::Shortfall,
    channel::{Channel, items},
    close::CloseReason,
    config::Keys,
    market::Market,
    metrics::SessionMetrics,
    notice::Notices,
    outbound::Outbound,
    protocol::{Command, Status, status_message, status_messages},
    slow::SlowLimits,
};

/// The longest command taken: room for 50,000 subscriptions.
const MAX_COMMAND_BYTES: usize = 1 << 20;
/// Bytes read at a time from a client, and kept by each session; clients say little.
const READ_BYTES: usize = 512;
/// A client silent for this many pings is closed.
const SILENT_PINGS: u32 = 3;
/// How long a client with a wrong key may take to read the verdict and leave by itself, which some expect to.
const VERDICT_PAUSE: Duration = Duration::from_millis(500);
/// How long a client may take to answer our close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a session needs to know.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The market served.
    pub market: Market,
    /// The keys that open a session.
    pub keys: Keys,
    /// Most time from the greeting to the auth command.
    pub auth_timeout: Duration,
    /// Time between our pings.
    pub ping_interval: Duration,
    /// Most subscriptions held.
    pub max_subscriptions: usize,
    /// How far it may fall behind.
    pub slow: SlowLimits,
    /// When the program stops, sessions are closed spread over this time.
    pub drain_spread: Duration,
    /// Most time from then to the end of the last session.
    pub drain_timeout: Duration,
    /// Which sessions get notices.
    pub notices: Notices,
}

/// A change of subscriptions that a client asked for, checked.
#[derive(Debug)]
pub struct Change {
    /// Whether the channels are added or removed.
    pub subscribe: bool,
    /// The channels that the session does not hold yet, or holds still.
    pub channels: BTreeSet<Channel>,
    /// The messages that answer the command: to be sent once the change holds, and before any event that it enables.
    pub reply: Vec<Bytes>,
}

/// A tier, as its sessions see it.
pub trait Tier: Send + Sync + 'static {
    /// A session's place among the tier's data. Dropping it ends all its subscriptions.
    type Seat: Seat;

    /// Gives an authenticated session its place.
    fn admit(&self, outbound: &Arc<Outbound>) -> impl Future<Output = Self::Seat> + Send;

    /// What `/health` says.
    fn health(&self) -> crate::health::Health;

    /// Called about once a second.
    fn tick(&self);
}

/// A session's place among a tier's data.
pub trait Seat: Send {
    /// Makes a change and sends its reply, in order with the events around it.
    ///
    /// # Errors
    ///
    /// The session has to end.
    fn change(&mut self, change: Change) -> impl Future<Output = Result<(), CloseReason>> + Send;

    /// The subscriptions that the session holds.
    fn held(&self) -> &BTreeSet<Channel>;

    /// What a subscription of this channel would lack, as far as the tier knows.
    fn shortfall(&self, channel: &Channel) -> Option<Shortfall>;

    /// Waits for data and sends it, where the tier lets its sessions fetch their data; never returns otherwise. Only called
    /// while nothing is queued. Must be cancel-safe.
    fn pull(&mut self) -> impl Future<Output = Result<(), CloseReason>> + Send;
}

/// A session in progress.
struct Session<'a, T: Tier> {
    tier: &'a T,
    config: &'a SessionConfig,
    outbound: Arc<Outbound>,
    websocket: WebSocketContext,
    seat: Option<T::Seat>,
    started: Instant,
    last_heard: Instant,
    next_ping: Instant,
    /// Set once the program stops.
    leave: Option<Leave>,
    metrics: &'a SessionMetrics,
}

/// When a session goes as the program stops.
#[derive(Clone, Copy)]
struct Leave {
    /// Its turn: until then it is served as ever.
    turn: Instant,
    /// The turn of those that hold nothing yet: the vendor's Python client forgets what it is about to subscribe to.
    last_turn: Instant,
    /// What is queued for it is given up.
    flushed: Instant,
    /// It is over, whatever the client does.
    gone: Instant,
}

impl Leave {
    /// For a session that learns of the stop now. `chance` is evenly spread over `0.0..1.0`.
    fn new(now: Instant, config: &SessionConfig, chance: f64) -> Self {
        // The rest is for ending the program.
        let whole = config.drain_timeout.mul_f64(0.95);
        let gone = now + whole;
        let spread = config.drain_spread.min(whole);
        let (turn, last_turn) = (now + spread.mul_f64(chance), now + spread);
        Self { turn, last_turn, flushed: gone - CLOSE_TIMEOUT.min(whole / 5), gone }
    }
}

/// Serves an upgraded connection until it ends, and says why it ended.
///
/// `early` holds bytes that arrived with the upgrade. Stop it through `stop`, which lets it say goodbye.
pub async fn serve<T: Tier>(
    tier: &T,
    config: &SessionConfig,
    metrics: &Arc<SessionMetrics>,
    socket: TcpStream,
    early: Bytes,
    stop: &CancellationToken,
) -> CloseReason {
    let limits = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .max_message_size(Some(MAX_COMMAND_BYTES))
        .max_frame_size(Some(MAX_COMMAND_BYTES));
    // Copied: the few bytes would keep the whole buffer of the HTTP phase.
    let websocket =
        WebSocketContext::from_partially_read(early.to_vec(), Role::Server, Some(limits));
    drop(early);
    let now = Instant::now();
    let mut session = Session {
        tier,
        config,
        outbound: Arc::new(Outbound::new(socket, config.slow, Arc::clone(metrics))),
        websocket,
        seat: None,
        started: now,
        last_heard: now,
        next_ping: now + config.ping_interval,
        leave: None,
        metrics,
    };
    session.outbound.send_message(&status_message(&Status::connected()), now);
    let reason = session.run(stop).await;
    let noticed = match &session.seat {
        Some(seat) => config.notices.reach(seat.held()),
        None => config.notices == Notices::ToAll,
    };
    // The seat goes first: nothing more is routed to a session that ends.
    session.seat = None;
    Box::pin(session.end(reason, noticed)).await;
    reason
}

impl<T: Tier> Session<'_, T> {
    async fn run(&mut self, stop: &CancellationToken) -> CloseReason {
        loop {
            let deadline = self.next_deadline();
            let outbound = &self.outbound;
            // Data is fetched only when all before it is written: what waits, waits where it is bounded.
            let may_pull = self.seat.is_some() && outbound.is_idle();
            let step = tokio::select! {
                biased; // Timers before data: the last branches may always be ready.
                () = stop.cancelled(), if self.leave.is_none() => {
                    self.leave = Some(Leave::new(Instant::now(), self.config, fastrand::f64()));
                    Ok(())
                }
                () = sleep_until(deadline) => self.on_time(Instant::now()),
                written = outbound.run_writer() => written,
                message = read(&mut self.websocket, outbound) => {
                    // Boxed: an idle session, which most are, should not carry the room that a command needs.
                    Box::pin(self.on_message(message)).await
                }
                pulled = pull(&mut self.seat), if may_pull => pulled,
            };
            if let Err(reason) = step {
                return reason;
            }
        }
    }

    /// When to look at the clock again.
    fn next_deadline(&self) -> Instant {
        let mut deadline = self.next_ping;
        if self.seat.is_none() {
            deadline = deadline.min(self.started + self.config.auth_timeout);
        }
        if let Some(turn) = self.turn() {
            deadline = deadline.min(turn);
        }
        deadline
    }

    /// When this session goes, once the program stops.
    fn turn(&self) -> Option<Instant> {
        let holds = self.seat.as_ref().is_some_and(|seat| !seat.held().is_empty());
        self.leave.map(|leave| if holds { leave.turn } else { leave.last_turn })
    }

    fn on_time(&mut self, now: Instant) -> Result<(), CloseReason> {
        if self.turn().is_some_and(|turn| now >= turn) {
            return Err(CloseReason::Drain);
        }
        if self.seat.is_none() && now >= self.started + self.config.auth_timeout {
            return Err(CloseReason::AuthTimeout);
        }
        if now >= self.last_heard + self.config.ping_interval * SILENT_PINGS {
            return Err(CloseReason::Silent);
        }
        if now >= self.next_ping {
            self.next_ping = now + self.config.ping_interval;
            self.outbound.ping();
        }
        Ok(())
    }

    async fn on_message(&mut self, message: Result<Message, Error>) -> Result<(), CloseReason> {
        // Reading and writing on the spot never yield by themselves: a client that talks without pause would keep its thread.
        consume_budget().await;
        self.last_heard = Instant::now();
        match message {
            Ok(Message::Text(text)) => self.on_command(&text).await,
            Ok(Message::Binary(_)) => {
                self.reply_error("invalid command: expected a text frame, got a binary one");
                Ok(())
            }
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => Ok(()),
            Ok(Message::Close(_)) => Err(CloseReason::ClientGone),
            Err(Error::Capacity(CapacityError::MessageTooLong { .. })) => Err(CloseReason::TooBig),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                Err(CloseReason::ClientGone)
            }
            Err(Error::Protocol(_) | Error::Utf8(_)) => Err(CloseReason::Protocol),
            Err(_) => Err(CloseReason::ClientGone),
        }
    }

    async fn on_command(&mut self, text: &str) -> Result<(), CloseReason> {
        self.metrics.commands.inc();
        match Command::parse(text) {
            Ok(Command::Auth(key)) => {
                if !self.config.keys.contains(&key) {
                    return Err(CloseReason::AuthFailed);
                }
                self.reply(&Status::auth_success());
                // A second auth is answered like the first and changes nothing.
                if self.seat.is_none() {
                    self.seat = Some(self.tier.admit(&self.outbound).await);
                }
            }
            Ok(Command::Subscribe(params)) => self.on_change(&params, true).await?,
            Ok(Command::Unsubscribe(params)) => self.on_change(&params, false).await?,
            Err(error) => self.reply_error(error.to_string()),
        }
        Ok(())
    }

    async fn on_change(&mut self, params: &str, subscribe: bool) -> Result<(), CloseReason> {
        let Some(seat) = &mut self.seat else {
            self.reply(&Status::auth_required());
            return Ok(());
        };
        let limit = self.config.max_subscriptions;
        let held = seat.held();
        let mut channels = BTreeSet::new();
        let mut refusals = Vec::new();
        let mut accepted = Vec::new();
        let mut named = items(params);
        for item in named.by_ref().take(limit) {
            match Channel::parse(item, self.config.market) {
                Ok(channel)
                    if subscribe
                        && held.len() + channels.len() >= limit
                        && !held.contains(&channel)
                        && !channels.contains(&channel) =>
                {
                    refusals.push(Status::error(format!(
                        "subscription limit of {limit} reached: {item:?} not subscribed"
                    )));
                }
                Ok(channel) => {
                    let shortfall = seat.shortfall(&channel).filter(|_| subscribe);
                    refusals.extend(shortfall.as_ref().map(|shortfall| shortfall.status(item)));
                    if matches!(shortfall, Some(Shortfall::Whole(_))) {
                        continue;
                    }
                    if held.contains(&channel) != subscribe {
                        channels.insert(channel);
                    }
                    accepted.push(if subscribe {
                        Status::subscribed(item)
                    } else {
                        Status::unsubscribed(item)
                    });
                }
                Err(error) => refusals.push(Status::error(error.to_string())),
            }
        }
        let ignored = named.count();
        if ignored > 0 {
            refusals.push(Status::error(format!(
                "a command may name {limit} channels at most: the last {ignored} were ignored"
            )));
        }
        refusals.append(&mut accepted);
        if refusals.is_empty() {
            let action = if subscribe { "subscribe" } else { "unsubscribe" };
            self.reply_error(format!(
                "nothing to {action}: expected channels separated by commas in \"params\", for example T.AAPL,Q.*"
            ));
            return Ok(());
        }
        seat.change(Change { subscribe, channels, reply: status_messages(&refusals) }).await
    }

    fn reply_error(&self, message: impl Into<String>) {
        self.reply(&Status::error(message));
    }

    fn reply(&self, status: &Status) {
        self.outbound.send_message(&status_message(status), Instant::now());
    }

    /// Says goodbye as the reason demands, with a notice if it gets any, and waits for the peer to take it.
    async fn end(&mut self, reason: CloseReason, noticed: bool) {
        let farewell = match reason {
            CloseReason::AuthTimeout => Some(Status::auth_timeout()),
            CloseReason::SlowConsumer => noticed.then(|| Status::new(
                "slow_consumer",
                "this client reads more slowly than its data comes: what was queued for it is lost",
            )),
            CloseReason::Drain => {
                noticed.then(|| Status::new("draining", "the proxy is restarting"))
            }
            CloseReason::AuthFailed => {
                self.reply(&Status::auth_failed());
                self.linger(VERDICT_PAUSE, Until::Left).await;
                None
            }
            CloseReason::ClientGone
            | CloseReason::Protocol
            | CloseReason::TooBig
            | CloseReason::Silent
            | CloseReason::ControlFlood
            | CloseReason::Internal => None,
        };
        self.outbound.finish(reason, farewell.as_ref());
        if reason.frame().is_some() {
            let now = Instant::now();
            let (flushed, gone) = match self.leave {
                Some(leave) => (leave.flushed, leave.gone),
                None => (now + CLOSE_TIMEOUT, now + 2 * CLOSE_TIMEOUT),
            };
            if self.linger(flushed - now, Until::Written).await {
                self.linger(CLOSE_TIMEOUT.min(gone - Instant::now()), Until::Left).await;
            }
        }
        self.outbound.abandon(reason);
    }

    /// Goes on writing and reads on, throwing commands away, until time is up or `until` has come. Closing a socket with unread
    /// input would reset the connection and could take our last words with it. Tells whether the peer is still there.
    async fn linger(&mut self, limit: Duration, until: Until) -> bool {
        let lingering = async {
            loop {
                if until == Until::Written && self.outbound.is_idle() {
                    return true;
                }
                tokio::select! {
                    written = self.outbound.run_writer() => if written.is_err() { return false },
                    message = read(&mut self.websocket, &self.outbound) => match message {
                        Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::Io(_)) => {
                            return false;
                        }
                        Ok(_) => consume_budget().await,
                        Err(_) => {
                            discard(&self.outbound).await;
                            return false;
                        }
                    },
                }
            }
        };
        timeout(limit, lingering).await.unwrap_or(false)
    }
}

/// What a session that ends waits for, beside its time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Everything is written.
    Written,
    /// The peer has left.
    Left,
}

/// Reads the next message, and sends what the library answers to it. Cancel-safe: what was read stays in the context.
async fn read(websocket: &mut WebSocketContext, outbound: &Outbound) -> Result<Message, Error> {
    loop {
        let mut io = SessionIo { outbound };
        match websocket.read(&mut io) {
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                outbound.socket().readable().await?;
            }
            Ok(message @ (Message::Ping(_) | Message::Close(_))) => {
                // The library keeps its answer until it is used again. That a close ends it is no news.
                let _ = websocket.flush(&mut io);
                outbound.flush();
                return Ok(message);
            }
            other => return other,
        }
    }
}

/// Reads what nobody understands any more, until the peer leaves.
async fn discard(outbound: &Outbound) {
    let mut buffer = [0; READ_BYTES];
    while outbound.socket().readable().await.is_ok() {
        match outbound.socket().try_read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => consume_budget().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

async fn pull<S: Seat>(seat: &mut Option<S>) -> Result<(), CloseReason> {
    match seat {
        Some(seat) => seat.pull().await,
        None => std::future::pending().await,
    }
}

/// The socket as the WebSocket library sees it: it reads from the socket, and its own answers (pongs, close frames) go to the
/// lane of control frames, whole, so that they never cut into a data frame.
struct SessionIo<'a> {
    outbound: &'a Outbound,
}

impl Read for SessionIo<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.outbound.socket().try_read(buffer)
    }
}

impl Write for SessionIo<'_> {
    fn write(&mut self, framed: &[u8]) -> io::Result<usize> {
        self.outbound.send_control(framed);
        Ok(framed.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
