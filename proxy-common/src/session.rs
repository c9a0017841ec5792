//! One accepted downstream WebSocket, from the greeting to the close: the vendor's protocol, the same on both ports.

use std::{collections::BTreeSet, future, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    task::{coop::consume_budget, yield_now},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use tungstenite::protocol::frame::coding::Control;

pub mod close;
mod echo;
mod inbound;
pub mod outbound;
pub mod queue_budget;
pub mod slow_consumer;

#[doc(hidden)]
pub use self::echo::echo;
use self::inbound::{Inbound, MAX_COMMAND_BYTES, Message, discard};
use crate::{
    access::{
        abuse::{Abuse, AbuseLog},
        command_rate::{Pace, Rate},
        keys::{Grant, Keys},
    },
    metrics::SessionMetrics,
    protocol::{
        channel::{Channel, items},
        channel_set::ChannelSet,
        coverage::Shortfall,
        market::Market,
        messages::{Command, Status, status_frame, status_frames},
        notice::Notices,
    },
    session::{
        close::CloseReason, outbound::Outbound, queue_budget::Budget, slow_consumer::SlowLimits,
    },
    transport::socket::Socket,
    websocket::frame::Frame,
};

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
    pub keys: Arc<Keys>,
    /// How fast commands may come.
    pub command_rate: Rate,
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
    /// The frames that answer the command: to be sent once the change holds, and before any event that it enables.
    pub reply: Vec<Frame>,
}

/// A tier, as its sessions see it.
pub trait Tier: Sized + Send + Sync + 'static {
    /// A session's place among the tier's data. Dropping it ends all its subscriptions.
    type Seat: Seat;

    /// Gives an authenticated session its place.
    fn admit(&self, outbound: &Arc<Outbound>) -> impl Future<Output = Self::Seat> + Send;

    /// What `/health` says.
    fn health(&self) -> crate::health::Health;

    /// Called about once a second.
    fn tick(&self);

    /// [`serve`], in the place of which [`echo`] puts the code below commands to the test.
    #[doc(hidden)]
    fn serve<'a>(
        ground: &Ground<'a, Self>,
        socket: Socket,
        early: &[u8],
        visitor: Visitor<'a>,
    ) -> impl Future<Output = CloseReason> + Send + use<'a, Self> {
        serve(ground, socket, early, visitor)
    }
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

    /// What a subscription of this channel would lack, as far as the tier knows.
    fn shortfall(&self, channel: &Channel) -> Option<Shortfall>;

    /// Waits for data and sends it, where the tier lets its sessions fetch their data; never returns otherwise. Only called
    /// while nothing is queued. Must be cancel-safe.
    fn pull(&mut self) -> impl Future<Output = Result<(), CloseReason>> + Send;
}

/// Who is at the other end of a session, and where to tell what they are up to.
#[derive(Debug, Clone, Copy)]
pub struct Visitor<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// Counts and logs abuse.
    pub abuse: &'a AbuseLog,
}

/// A session in progress.
struct Session<'a, T: Tier> {
    tier: &'a T,
    config: &'a SessionConfig,
    outbound: Arc<Outbound>,
    inbound: Inbound,
    seat: Option<T::Seat>,
    /// The key that opened it.
    grant: Option<Grant>,
    /// That key's label.
    label: Option<Arc<str>>,
    visitor: Visitor<'a>,
    pace: Pace,
    /// Until when nothing more is read.
    paused_until: Option<Instant>,
    started: Instant,
    last_heard: Instant,
    next_ping: Instant,
    /// Set once the program stops.
    leave: Option<Box<Leave>>,
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

/// What all sessions of a tier have in common.
#[derive(Debug)]
pub struct Ground<'a, T> {
    /// The tier.
    pub tier: &'a T,
    /// How sessions are served.
    pub config: &'a SessionConfig,
    /// What is counted about them.
    pub metrics: &'a Arc<SessionMetrics>,
    /// What they may queue together.
    pub budget: &'a Budget,
    /// Lets them say goodbye.
    pub stop: &'a CancellationToken,
}

/// Serves an upgraded connection until it ends, and says why it ended. `early` holds bytes that arrived with the upgrade.
pub fn serve<'a, T: Tier>(
    ground: &Ground<'a, T>,
    socket: Socket,
    early: &[u8],
    visitor: Visitor<'a>,
) -> impl Future<Output = CloseReason> + Send + use<'a, T> {
    let &Ground { budget, stop, .. } = ground;
    let inbound = Inbound::new(early, MAX_COMMAND_BYTES);
    let mut session = Session::new(ground, socket, inbound, visitor);
    session.outbound.send_frame(&status_frame(&Status::connected()), session.started);
    // Not an `async fn`, which would keep its arguments beside the session made of them.
    async move {
        let _entry = budget.enter(&session.outbound);
        let reason = session.run(stop).await;
        let noticed = match &session.seat {
            Some(seat) => session.config.notices.reach(seat.held()),
            None => session.config.notices == Notices::ToAll,
        };
        // The seat goes first: nothing more is routed to a session that ends.
        session.seat = None;
        Box::pin(session.end(reason, noticed)).await;
        let (client, key) = (session.visitor.client, session.label.as_deref());
        if reason.is_notable() {
            warn!(%client, key, reason = reason.label(), "session ended");
        } else {
            debug!(%client, key, reason = reason.label(), "session ended");
        }
        reason
    }
}

impl<'a, T: Tier> Session<'a, T> {
    fn new(ground: &Ground<'a, T>, socket: Socket, inbound: Inbound, visitor: Visitor<'a>) -> Self {
        let &Ground { tier, config, metrics, .. } = ground;
        let now = Instant::now();
        Self {
            tier,
            config,
            outbound: Arc::new(Outbound::new(socket, config.slow, Arc::clone(metrics))),
            inbound,
            seat: None,
            grant: None,
            label: None,
            visitor,
            pace: Pace::new(now.into_std()),
            paused_until: None,
            started: now,
            last_heard: now,
            next_ping: now + config.ping_interval,
            leave: None,
            metrics,
        }
    }

    async fn run(&mut self, stop: &CancellationToken) -> CloseReason {
        loop {
            let deadline = self.next_deadline();
            let outbound = &self.outbound;
            // Data is fetched only when all before it is written: what waits, waits where it is bounded.
            let may_read = self.paused_until.is_none();
            let may_pull = self.seat.is_some() && outbound.is_idle();
            let step = tokio::select! {
                biased; // Timers before data: the last branches may always be ready.
                () = stop.cancelled(), if self.leave.is_none() => {
                    let leave = Leave::new(Instant::now(), self.config, fastrand::f64());
                    self.leave = Some(Box::new(leave));
                    Ok(())
                }
                () = sleep_until(deadline) => self.on_time(Instant::now()),
                written = outbound.run_writer() => written,
                message = self.inbound.next(outbound), if may_read => {
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
        let others = [self.paused_until, self.turn()];
        others.into_iter().flatten().fold(deadline, Instant::min)
    }

    /// When this session goes, once the program stops.
    fn turn(&self) -> Option<Instant> {
        let holds = self.seat.as_ref().is_some_and(|seat| !seat.held().is_empty());
        self.leave.as_ref().map(|leave| if holds { leave.turn } else { leave.last_turn })
    }

    fn on_time(&mut self, now: Instant) -> Result<(), CloseReason> {
        if self.turn().is_some_and(|turn| now >= turn) {
            return Err(CloseReason::Drain);
        }
        if self.seat.is_none() && now >= self.started + self.config.auth_timeout {
            return Err(CloseReason::AuthTimeout);
        }
        if self.paused_until.is_some_and(|until| now >= until) {
            self.paused_until = None;
            // Nothing was heard because nobody listened.
            self.last_heard = now;
        }
        if self.grant.as_ref().is_some_and(Grant::is_revoked) {
            return Err(CloseReason::KeyRevoked);
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
        match &message {
            Ok(Message::Part) => yield_now().await,
            _ => consume_budget().await,
        }
        let now = Instant::now();
        self.last_heard = now;
        self.pay(now);
        match message? {
            Message::Text(text) => self.on_command(&text).await,
            Message::Binary(_) => {
                self.reply_error("invalid command: expected a text frame, got a binary one");
                Ok(())
            }
            Message::Control | Message::Part => Ok(()),
            Message::Close => Err(CloseReason::ClientGone),
        }
    }

    /// Pays for what was read, and reads no further for a while if it was too much.
    fn pay(&mut self, now: Instant) {
        let bytes = std::mem::take(&mut self.inbound.taken);
        let resume = self.pace.spend(self.config.command_rate, bytes, now.into_std());
        self.paused_until = resume.map(Instant::from_std);
        if resume.is_some() {
            self.visitor.abuse.note(Abuse::CommandRate, self.visitor.client);
        }
    }

    async fn on_command(&mut self, text: &str) -> Result<(), CloseReason> {
        self.metrics.commands.inc();
        match Command::parse(text) {
            Ok(Command::Auth(key)) => {
                let Some((label, grant)) = self.config.keys.judge(&key) else {
                    return Err(CloseReason::AuthFailed);
                };
                debug!(client = %self.visitor.client, key = &*label, "authenticated");
                self.grant = Some(grant);
                self.label = Some(label);
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
        seat.change(Change { subscribe, channels, reply: status_frames(&refusals) }).await
    }

    fn reply_error(&self, message: impl Into<String>) {
        self.reply(&Status::error(message));
    }

    fn reply(&self, status: &Status) {
        self.outbound.send_frame(&status_frame(status), Instant::now());
    }

    /// Says goodbye as the reason demands, with a notice if it gets any, and waits for the peer to take it.
    async fn end(&mut self, reason: CloseReason, noticed: bool) {
        let farewell = match reason {
            CloseReason::AuthTimeout => Some(Status::auth_timeout()),
            CloseReason::KeyRevoked => Some(Status::new("auth_failed", "key revoked")),
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
            | CloseReason::NotText
            | CloseReason::TooBig
            | CloseReason::Silent
            | CloseReason::ControlFlood
            | CloseReason::Internal => None,
        };
        self.outbound.finish(reason, farewell.as_ref());
        if reason.frame().is_some() {
            let now = Instant::now();
            let (flushed, gone) = match &self.leave {
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
                    message = self.inbound.next(&self.outbound) => match message {
                        Ok(Message::Close) | Err(CloseReason::ClientGone) => return false,
                        Ok(_) => yield_now().await,
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

async fn pull<S: Seat>(seat: &mut Option<S>) -> Result<(), CloseReason> {
    match seat {
        Some(seat) => seat.pull().await,
        None => future::pending().await,
    }
}
