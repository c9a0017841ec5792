//! One accepted downstream WebSocket, from the greeting to the close: the vendor's protocol, the same on both ports.

use std::{collections::BTreeSet, future, io, sync::Arc, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    net::TcpStream,
    task::coop::consume_budget,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tungstenite::protocol::frame::coding::Control;

use crate::{
    budget::Budget,
    channel::{Channel, items},
    channel_set::ChannelSet,
    close::CloseReason,
    config::Keys,
    frame::Frame,
    market::Market,
    metrics::SessionMetrics,
    outbound::Outbound,
    protocol::{Command, Status, status_frame, status_frames},
    slow::SlowLimits,
    websocket::{Decoded, Decoder, Violation},
};

/// The longest command taken: room for 50,000 subscriptions.
const MAX_COMMAND_BYTES: usize = 1 << 20;
/// Bytes read at a time from a client; clients say little.
const READ_BYTES: usize = 4 << 10;
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
    /// Most time for taking what is queued when the program stops.
    pub drain_timeout: Duration,
}

/// A change of subscriptions that a client asked for, checked.
#[derive(Debug)]
pub struct Change {
    /// Whether the channels are added or removed.
    pub subscribe: bool,
    /// The channels that the session does not hold yet, or holds still.
    pub channels: BTreeSet<Channel>,
    /// The frames that answer the command: to be sent once the change holds, and before any event that it enables.
    pub reply: Vec<Frame>,
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
    fn held(&self) -> &ChannelSet;

    /// Waits for data and sends it, where the tier lets its sessions fetch their data; never returns otherwise. Only called
    /// while nothing is queued. Must be cancel-safe.
    fn pull(&mut self) -> impl Future<Output = Result<(), CloseReason>> + Send;
}

/// A session in progress.
struct Session<'a, T: Tier> {
    tier: &'a T,
    config: &'a SessionConfig,
    outbound: Arc<Outbound>,
    inbound: Inbound,
    seat: Option<T::Seat>,
    started: Instant,
    last_heard: Instant,
    next_ping: Instant,
    metrics: &'a SessionMetrics,
}

/// Serves an upgraded connection until it ends, and says why it ended.
///
/// `early` holds bytes that arrived with the upgrade. Stop it through `stop`, which lets it say goodbye.
pub async fn serve<T: Tier>(
    tier: &T,
    config: &SessionConfig,
    metrics: &Arc<SessionMetrics>,
    budget: &Budget,
    socket: TcpStream,
    early: Bytes,
    stop: &CancellationToken,
) -> CloseReason {
    let now = Instant::now();
    let mut session = Session {
        tier,
        config,
        outbound: Arc::new(Outbound::new(socket, config.slow, Arc::clone(metrics))),
        inbound: Inbound::new(&early),
        seat: None,
        started: now,
        last_heard: now,
        next_ping: now + config.ping_interval,
        metrics,
    };
    drop(early);
    let _entry = budget.enter(&session.outbound);
    session.outbound.send_frame(&status_frame(&Status::connected()), now);
    let reason = session.run(stop).await;
    // The seat goes first: nothing more is routed to a session that ends.
    session.seat = None;
    Box::pin(session.end(reason)).await;
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
                () = stop.cancelled() => Err(CloseReason::Drain),
                () = sleep_until(deadline) => self.on_time(Instant::now()),
                written = outbound.run_writer() => written,
                message = self.inbound.next(outbound) => {
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
        deadline
    }

    fn on_time(&mut self, now: Instant) -> Result<(), CloseReason> {
        if self.seat.is_none() && now >= self.started + self.config.auth_timeout {
            return Err(CloseReason::AuthTimeout);
        }
        if now >= self.last_heard + self.config.ping_interval * SILENT_PINGS {
            return Err(CloseReason::Silent);
        }
        if now >= self.next_ping {
            self.next_ping = now + self.config.ping_interval;
            self.outbound.send_control(Control::Ping, &[]);
        }
        Ok(())
    }

    async fn on_message(
        &mut self,
        message: Result<Message, CloseReason>,
    ) -> Result<(), CloseReason> {
        // Reading and writing on the spot never yield by themselves: a client that talks without pause would keep its thread.
        consume_budget().await;
        self.last_heard = Instant::now();
        match message? {
            Message::Text(text) => {
                let text = str::from_utf8(&text).map_err(|_| CloseReason::Protocol)?;
                self.on_command(text).await
            }
            Message::Binary => {
                self.reply_error("invalid command: expected a text frame, got a binary one");
                Ok(())
            }
            Message::Control => Ok(()),
            Message::Close => Err(CloseReason::ClientGone),
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
        seat.change(Change { subscribe, channels, reply: status_frames(&refusals) }).await
    }

    fn reply_error(&self, message: impl Into<String>) {
        self.reply(&Status::error(message));
    }

    fn reply(&self, status: &Status) {
        self.outbound.send_frame(&status_frame(status), Instant::now());
    }

    /// Says goodbye as the reason demands, and waits for the peer to take it.
    async fn end(&mut self, reason: CloseReason) {
        let farewell = match reason {
            CloseReason::AuthTimeout => Some(Status::auth_timeout()),
            CloseReason::SlowConsumer => Some(Status::new(
                "slow_consumer",
                "this client reads more slowly than its data comes: what was queued for it is lost",
            )),
            CloseReason::Drain => Some(Status::new("draining", "the proxy is restarting")),
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
            let drain = reason == CloseReason::Drain;
            let patience = if drain { self.config.drain_timeout } else { CLOSE_TIMEOUT };
            if self.linger(patience, Until::Written).await {
                self.linger(CLOSE_TIMEOUT, Until::Left).await;
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
                    message = self.inbound.next(&self.outbound) => match message {
                        Ok(Message::Close) | Err(CloseReason::ClientGone) => return false,
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

/// What a client says.
enum Message {
    /// A text message, not yet known to be text.
    Text(BytesMut),
    Binary,
    /// A sign of life. Pings are answered already.
    Control,
    /// The client leaves. It is answered already.
    Close,
}

/// The read half of a session. It keeps no buffer while nothing is half read.
struct Inbound {
    decoder: Decoder,
    buffer: BytesMut,
}

impl Inbound {
    /// `early` came before the session began.
    fn new(early: &[u8]) -> Self {
        Self { decoder: Decoder::of_client(MAX_COMMAND_BYTES), buffer: BytesMut::from(early) }
    }

    /// Reads the next message, and answers those that want an answer. Cancel-safe: what was read stays.
    async fn next(&mut self, outbound: &Outbound) -> Result<Message, CloseReason> {
        loop {
            let decoded = match self.decoder.decode(&mut self.buffer) {
                Ok(decoded) => decoded,
                Err(Violation::TooBig(_)) => return Err(CloseReason::TooBig),
                Err(Violation::Protocol(_)) => return Err(CloseReason::Protocol),
            };
            if self.buffer.is_empty() {
                self.buffer = BytesMut::new();
            }
            match decoded {
                Decoded::Text { mut bytes, head } => {
                    bytes.advance(head);
                    return Ok(Message::Text(bytes));
                }
                Decoded::Binary(_) => return Ok(Message::Binary),
                Decoded::Ping(payload) => {
                    outbound.send_control(Control::Pong, &payload);
                    return Ok(Message::Control);
                }
                Decoded::Pong => return Ok(Message::Control),
                Decoded::Close(frame) => {
                    let code = frame.map(|frame| u16::from(frame.code).to_be_bytes());
                    let payload = code.as_ref().map_or(&[][..], |code| &code[..]);
                    outbound.send_control(Control::Close, payload);
                    return Ok(Message::Close);
                }
                Decoded::Missing(_) => {}
            }
            let socket = outbound.socket();
            // Not `readable()`, whose future is larger: nobody else waits to read.
            future::poll_fn(|cx| socket.poll_read_ready(cx))
                .await
                .map_err(|_| CloseReason::ClientGone)?;
            self.read(socket)?;
        }
    }

    /// Reads what has come, through a buffer that all sessions of a thread share: its stack.
    fn read(&mut self, socket: &TcpStream) -> Result<(), CloseReason> {
        let mut bytes = [0; READ_BYTES];
        match socket.try_read(&mut bytes) {
            Ok(0) => Err(CloseReason::ClientGone),
            Ok(n) => {
                self.buffer.extend_from_slice(&bytes[..n]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(CloseReason::ClientGone),
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
        None => future::pending().await,
    }
}
