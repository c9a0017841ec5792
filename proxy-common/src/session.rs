//! Sessions: one for each accepted downstream WebSocket, from the greeting to the close. They speak
//! the vendor's protocol, which is the same at both tiers.

mod client;
mod close;
mod config;
mod decision;
mod ending;
mod inbound;
mod log;
mod metrics;
mod open_sessions;
mod outbound;
mod queue_budget;
mod slow_consumer;
mod tier;

pub use self::{
    client::{ClientInfo, NamedSessions, SessionOptions, user_agent},
    close::{CloseFrame, CloseReason},
    config::SessionConfig,
    ending::{DrainSchedule, Until, close_session, keep_writing},
    inbound::{ClientMessage, Inbound},
    log::SessionLog,
    metrics::{LossReason, SessionMetrics},
    open_sessions::{OpenSession, OpenSessions, SessionSnapshot},
    outbound::{
        Outbound,
        chunk::{Chunk, ChunkBuffer},
    },
    queue_budget::{QueueBudget, QueueMetrics, enforce_until},
    slow_consumer::SlowLimits,
    tier::{ChangeOutcome, Subscriber, SubscriptionChange, Tier},
};

use std::{future, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    task::{coop::consume_budget, yield_now},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tungstenite::protocol::frame::coding::Control;

use self::{
    decision::{decide, narrow},
    log::End,
};
use crate::{
    access::{Abuse, AbuseLog, CommandBudget, KeyLease},
    protocol::{Command, Items, NoticePolicy, Position, Status, status_frame, summarize_channels},
    transport::Socket,
};

/// A client that is silent for this many ping intervals is closed.
const SILENT_PINGS: u32 = 3;
/// How long a client with a refused key may take to read the answer and to close by itself, as some
/// clients expect.
const AUTH_FAILED_PAUSE: Duration = Duration::from_millis(500);

/// All sessions of a tier.
#[derive(Debug)]
pub struct Sessions<T> {
    /// The tier that they subscribe to.
    pub tier: T,
    /// Their settings.
    pub config: SessionConfig,
    /// Their counters.
    pub metrics: Arc<SessionMetrics>,
    /// Counts and logs their abuse.
    pub abuse: Arc<AbuseLog>,
    /// Lists them.
    pub open: Arc<OpenSessions>,
    /// Logs them.
    pub log: Arc<SessionLog>,
}

/// One session in progress.
struct Session<'a, T: Tier> {
    sessions: &'a Sessions<T>,
    outbound: Arc<Outbound>,
    inbound: Inbound,
    subscriber: Option<T::Subscriber>,
    /// The key of its last `auth` command.
    key: Option<KeyLease>,
    /// What others may know of it.
    open: Arc<OpenSession>,
    commands: CommandBudget,
    /// Nothing is read until then.
    paused_until: Option<Instant>,
    started: Instant,
    last_heard: Instant,
    next_ping: Instant,
    /// Set once the program stops.
    schedule: Option<Box<DrainSchedule>>,
}

/// What a session has to do next.
enum Step<F> {
    /// Nothing: it has done it.
    Done(Result<(), CloseReason>),
    /// To take a message.
    Message(Pin<Box<F>>),
}

impl<T: Tier> Sessions<T> {
    /// Serves an upgraded connection until it ends. `early` holds bytes that arrived with the
    /// upgrade. Cancelling `stop` begins to drain the session.
    pub fn serve<'a>(
        &'a self,
        socket: Socket,
        early: &[u8],
        client: ClientInfo,
        stop: &'a CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<'a, T> {
        let (config, metrics) = (&self.config, Arc::clone(&self.metrics));
        let outbound = Arc::new(Outbound::new(socket, config.slow, metrics));
        let (entry, open) = self.open.enter(&outbound, client);
        SessionLog::opened(&open);
        let mut session = Session::new(self, outbound, early, open);
        session.reply(&Status::connected());
        self.metrics.opened.inc();
        self.metrics.sessions.inc();
        // An `async fn` would keep its arguments in addition to the session made of them.
        async move {
            let reason = session.run(stop).await;
            Box::pin(session.end(reason)).await;
            drop(entry);
            self.metrics.sessions.dec();
            self.metrics.closed.of(reason.label()).inc();
            if let Some(abuse) = reason.abuse() {
                self.abuse.note(abuse, session.open.client.address, None);
            }
        }
    }
}

impl<'a, T: Tier> Session<'a, T> {
    fn new(
        sessions: &'a Sessions<T>,
        outbound: Arc<Outbound>,
        early: &[u8],
        open: Arc<OpenSession>,
    ) -> Self {
        let now = Instant::now();
        Self {
            sessions,
            outbound,
            inbound: Inbound::new(early),
            subscriber: None,
            key: None,
            open,
            commands: CommandBudget::new(now.into_std()),
            paused_until: None,
            started: now,
            last_heard: now,
            next_ping: now + sessions.config.ping_interval,
            schedule: None,
        }
    }

    async fn run(&mut self, stop: &CancellationToken) -> CloseReason {
        loop {
            let deadline = self.next_deadline();
            let outbound = &self.outbound;
            let may_read = self.paused_until.is_none();
            // Fetch data only when nothing is queued, so that unread data waits in the tier's
            // bounded buffer.
            let may_pull = self.subscriber.is_some() && outbound.is_idle();
            let step = tokio::select! {
                biased; // Timers before data: the last branches may always be ready.
                () = stop.cancelled(), if self.schedule.is_none() => {
                    let (now, config) = (Instant::now(), &self.sessions.config);
                    let schedule = DrainSchedule::new(now, config, fastrand::f64());
                    self.schedule = Some(Box::new(schedule));
                    Step::Done(Ok(()))
                }
                () = sleep_until(deadline) => Step::Done(self.on_time(Instant::now())),
                written = outbound.run_writer() => Step::Done(written),
                message = self.inbound.next(outbound), if may_read => {
                    // Boxed: most sessions are idle, and should not hold the memory for a command.
                    Step::Message(Box::pin(self.on_message(message)))
                }
                pulled = pull(&mut self.subscriber), if may_pull => Step::Done(pulled),
            };
            // Outside of the `select!`, which would keep the message too.
            let step = match step {
                Step::Done(result) => result,
                Step::Message(handling) => handling.await,
            };
            if let Err(reason) = step {
                return reason;
            }
        }
    }

    /// When [`on_time`](Self::on_time) is due next.
    fn next_deadline(&self) -> Instant {
        let mut deadline = self.next_ping;
        if self.subscriber.is_none() {
            deadline = deadline.min(self.started + self.sessions.config.auth_timeout);
        }
        let others = [self.paused_until, self.close_at()];
        others.into_iter().flatten().fold(deadline, Instant::min)
    }

    /// When to close this session, once the program stops.
    fn close_at(&self) -> Option<Instant> {
        let schedule = self.schedule.as_ref()?;
        let empty = self.subscriber.as_ref().is_none_or(|subscriber| subscriber.held().is_empty());
        Some(if empty { schedule.close_at_if_empty } else { schedule.close_at })
    }

    fn on_time(&mut self, now: Instant) -> Result<(), CloseReason> {
        let config = &self.sessions.config;
        if self.close_at().is_some_and(|close_at| now >= close_at) {
            return Err(CloseReason::Drain);
        }
        if self.subscriber.is_none() && now >= self.started + config.auth_timeout {
            return Err(CloseReason::AuthTimeout);
        }
        if let Some(until) = self.paused_until {
            // Nothing is heard because nothing is read.
            self.last_heard = now;
            self.paused_until = (now < until).then_some(until);
        }
        if self.key.as_ref().is_some_and(KeyLease::is_revoked) {
            return Err(CloseReason::KeyRevoked);
        }
        if now >= self.last_heard + config.ping_interval * SILENT_PINGS {
            return Err(CloseReason::Silent);
        }
        if now >= self.next_ping {
            self.next_ping = now + config.ping_interval;
            self.outbound.send_control(Control::Ping, &[]);
        }
        Ok(())
    }

    async fn on_message(
        &mut self,
        message: Result<ClientMessage, CloseReason>,
    ) -> Result<(), CloseReason> {
        // Reads and writes that succeed at once never yield. A client that sends without pause
        // would keep the thread.
        match &message {
            Ok(ClientMessage::Part) => yield_now().await,
            _ => consume_budget().await,
        }
        let now = Instant::now();
        self.last_heard = now;
        self.charge_input(now);
        match message? {
            ClientMessage::Text(text) => self.on_command(&text).await,
            ClientMessage::Binary(_) => {
                self.reply_error("invalid command: expected a text frame, got a binary one");
                Ok(())
            }
            ClientMessage::Pong(payload) => {
                if let Some(subscriber) = &mut self.subscriber {
                    subscriber.on_pong(&payload);
                }
                Ok(())
            }
            ClientMessage::Ping | ClientMessage::Part => Ok(()),
            ClientMessage::Close => Err(CloseReason::ClientGone),
        }
    }

    /// Charges the command budget for what was read, and pauses reading if it is spent.
    fn charge_input(&mut self, now: Instant) {
        let bytes = std::mem::take(&mut self.inbound.uncharged);
        let rate = self.sessions.config.command_rate;
        let resume = self.commands.take(rate, bytes, now.into_std());
        self.paused_until = resume.map(Instant::from_std);
        if resume.is_some() {
            self.sessions.abuse.note(Abuse::CommandRate, self.open.client.address, None);
        }
    }

    async fn on_command(&mut self, text: &str) -> Result<(), CloseReason> {
        self.sessions.metrics.commands.inc();
        match Command::parse(text) {
            Ok(Command::Auth(key)) => {
                let Some(key) = self.sessions.config.keys.authenticate(&key) else {
                    return Err(CloseReason::AuthFailed);
                };
                self.on_key(key).await
            }
            Ok(Command::Subscribe(items)) => self.on_change(&items, true).await,
            Ok(Command::Unsubscribe(items)) => self.on_change(&items, false).await,
            Err(error) => {
                self.reply_error(error.to_string());
                Ok(())
            }
        }
    }

    /// The session goes on with this key.
    async fn on_key(&mut self, key: KeyLease) -> Result<(), CloseReason> {
        let market = self.open.client.market;
        let key = self.key.insert(key);
        self.open.set_key(key.shared_label());
        if !key.limits().include_market(market) {
            return Err(CloseReason::MarketRefused);
        }
        SessionLog::command(&self.open, key.label(), "auth", key.label());
        self.outbound.send_frame(&status_frame(&Status::auth_success()), Instant::now());
        match &mut self.subscriber {
            None => {
                self.sessions.log.started(&self.open, key.label());
                let admitted = self
                    .sessions
                    .tier
                    .admit(&self.outbound, &self.open.client, key.shared_label())
                    .await;
                self.subscriber = Some(admitted);
            }
            // A second auth is answered like the first. Of the subscriptions, those stay that the
            // newer key may have.
            Some(subscriber) => {
                if let Some(change) = narrow(market, key, subscriber) {
                    subscriber.change(change).await?;
                    self.open.set_subscriptions(subscriber.held().len());
                }
            }
        }
        Ok(())
    }

    async fn on_change(&mut self, items: &Items, subscribe: bool) -> Result<(), CloseReason> {
        let (Some(subscriber), Some(key)) = (&mut self.subscriber, &self.key) else {
            self.reply(&Status::auth_required());
            return Ok(());
        };
        let action = if subscribe { "subscribe" } else { "unsubscribe" };
        // Decide again if the coverage has changed meanwhile, which is rare.
        loop {
            let config = &self.sessions.config;
            let Some(change) = decide(config, key, subscriber, items, subscribe) else {
                self.reply_error(format!(
                    "nothing to {action}: expected channels separated by commas in \"params\", for example T.AAPL,Q.*"
                ));
                return Ok(());
            };
            let channels = tracing::enabled!(tracing::Level::DEBUG)
                .then(|| summarize_channels(change.channels.iter()));
            if subscriber.change(change).await? == ChangeOutcome::Applied {
                if let Some(channels) = channels {
                    SessionLog::command(&self.open, key.label(), action, &channels);
                }
                self.open.set_subscriptions(subscriber.held().len());
                return Ok(());
            }
        }
    }

    fn reply_error(&self, message: impl Into<String>) {
        self.reply(&Status::error(message));
    }

    fn reply(&self, status: &Status) {
        self.outbound.send_frame(&status_frame(status), Instant::now());
    }

    /// Closes the session as the reason demands, and logs its end.
    async fn end(&mut self, reason: CloseReason) {
        let policy = self.sessions.config.notices;
        let wants_notices = match &self.subscriber {
            Some(subscriber) => policy.includes(subscriber.held()),
            None => policy == NoticePolicy::Everyone,
        };
        let started = self.subscriber.is_some();
        // First, so that nothing more is routed to a session that ends.
        let says_position = matches!(reason, CloseReason::Drain | CloseReason::TakenOver);
        let position = match &mut self.subscriber {
            Some(subscriber) if wants_notices && says_position => subscriber.leave().await,
            _ => None,
        };
        self.subscriber = None;
        // A client that came back to it would miss what was dropped.
        let position = position.filter(|_| !self.outbound.has_dropped());
        let status = closing_status(reason, wants_notices, position);
        if let Some(refusal) = self.auth_refusal(reason) {
            self.reply(&refusal);
            keep_writing(&self.outbound, &mut self.inbound, AUTH_FAILED_PAUSE, Until::PeerClosed)
                .await;
        }
        let schedule = self.schedule.as_deref();
        close_session(&self.outbound, &mut self.inbound, reason, status.as_ref(), schedule).await;
        self.sessions.log.ended(&End {
            session: &self.open,
            started,
            key: self.key.as_ref().map(KeyLease::label),
            lived: self.started.elapsed(),
            totals: self.outbound.totals(),
            reason,
        });
    }

    /// The answer to the key, if the session ends because that was refused.
    fn auth_refusal(&self, reason: CloseReason) -> Option<Status> {
        match (reason, &self.key) {
            (CloseReason::AuthFailed, _) => Some(Status::auth_failed()),
            (CloseReason::MarketRefused, Some(key)) => {
                let (markets, market) = (key.limits().market_names(), self.open.client.market);
                Some(Status::market_refused(&markets, market))
            }
            _ => None,
        }
    }
}

/// The last status before the close frame, if the reason has one.
fn closing_status(
    reason: CloseReason,
    wants_notices: bool,
    position: Option<Position>,
) -> Option<Status> {
    let notice = |name, text| wants_notices.then(|| Status::new(name, text).at(position));
    match reason {
        CloseReason::AuthTimeout => Some(Status::auth_timeout()),
        CloseReason::KeyRevoked => Some(Status::new("auth_failed", "key revoked")),
        CloseReason::SlowConsumer => notice(
            "slow_consumer",
            "this client reads more slowly than its data comes: what was queued for it is lost",
        ),
        CloseReason::Drain => notice("draining", "the proxy is restarting"),
        CloseReason::TakenOver => notice("taken_over", "another connection took over this session"),
        CloseReason::AuthFailed
        | CloseReason::MarketRefused
        | CloseReason::ClientGone
        | CloseReason::Protocol
        | CloseReason::NotText
        | CloseReason::TooBig
        | CloseReason::Silent
        | CloseReason::ControlFlood
        | CloseReason::Internal => None,
    }
}

async fn pull<S: Subscriber>(subscriber: &mut Option<S>) -> Result<(), CloseReason> {
    match subscriber {
        Some(subscriber) => subscriber.pull().await,
        None => future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::{SinkExt, StreamExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_tungstenite::{
        WebSocketStream,
        tungstenite::{Message, Utf8Bytes, protocol::Role},
    };

    use super::*;
    use crate::metrics::Metrics;
    use crate::{
        access::Keys,
        protocol::{Channel, ChannelSet, ExtraKinds, Kind, Market, Unavailable},
    };

    /// A tier whose coverage changes between the decision on a subscription and its effect: T is
    /// available at first and refused from then on.
    #[derive(Default)]
    struct Fickle {
        /// The payloads of the pongs that reached its subscribers.
        pongs: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    struct FickleSubscriber {
        outbound: Arc<Outbound>,
        held: ChannelSet,
        version: u64,
        decisions: usize,
        pongs: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    impl Tier for Fickle {
        type Subscriber = FickleSubscriber;

        async fn admit(
            &self,
            outbound: &Arc<Outbound>,
            _: &ClientInfo,
            _: Arc<str>,
        ) -> FickleSubscriber {
            let outbound = Arc::clone(outbound);
            let pongs = Arc::clone(&self.pongs);
            let held = ChannelSet::default();
            FickleSubscriber { outbound, held, version: 0, decisions: 0, pongs }
        }
    }

    impl Subscriber for FickleSubscriber {
        fn held(&self) -> &ChannelSet {
            &self.held
        }

        fn coverage_version(&self) -> u64 {
            self.version
        }

        fn extra_kinds(&self) -> ExtraKinds {
            ExtraKinds::Unnamed
        }

        fn unavailable(&self, channel: &Channel) -> Option<Unavailable> {
            let refused = Channel::Kind(Kind::T);
            (self.version > 0 && *channel == refused)
                .then(|| Unavailable::refused(&refused, "not authorized"))
        }

        fn is_on_demand(&self, _: &Channel) -> bool {
            false
        }

        async fn change(
            &mut self,
            change: SubscriptionChange,
        ) -> Result<ChangeOutcome, CloseReason> {
            self.decisions += 1;
            let decided_by = change.coverage_version;
            self.version = 1;
            if decided_by != self.version {
                return Ok(ChangeOutcome::CoverageChanged);
            }
            assert_eq!(self.decisions, 2, "decided anew only when the coverage changed");
            self.held.add(change.channels);
            let frames = change.reply.iter().map(|frame| (frame, 0));
            self.outbound.send_frames(frames, Instant::now());
            Ok(ChangeOutcome::Applied)
        }

        fn on_pong(&mut self, payload: &[u8]) {
            self.pongs.lock().unwrap().push(payload.to_vec());
        }

        async fn pull(&mut self) -> Result<(), CloseReason> {
            future::pending().await
        }
    }

    /// Serves a client that sends these messages, until it has read this many frames. Returns the
    /// frames.
    async fn exchange(tier: Fickle, messages: &[Message], count: usize) -> Vec<Utf8Bytes> {
        let mut registered = Metrics::default();
        let metrics = SessionMetrics::register(&mut registered);
        let sessions = Sessions {
            tier,
            config: SessionConfig::for_tests(Keys::account("KEYS", &"key".into())),
            metrics: Arc::clone(&metrics),
            abuse: Arc::new(AbuseLog::register(&mut registered)),
            log: Arc::default(),
            open: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, peer) = listener.accept().await.unwrap();
        let client = async {
            let mut client = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
            for message in messages {
                client.send(message.clone()).await.unwrap();
            }
            let mut frames = Vec::new();
            while frames.len() < count {
                frames.push(client.next().await.unwrap().unwrap().into_text().unwrap());
            }
            frames
        };
        let stop = CancellationToken::new();
        let info = ClientInfo::new(peer, Market::Stocks);
        tokio::select! {
            frames = client => frames,
            () = sessions.serve(socket.into(), b"", info, &stop) => panic!("the session ended"),
        }
    }

    #[tokio::test]
    async fn one_answer_never_acknowledges_and_refuses_the_same_item() {
        let commands = [
            r#"{"action":"auth","params":"key"}"#.into(),
            r#"{"action":"subscribe","params":"T.*,Q.*"}"#.into(),
        ];
        let frames = exchange(Fickle::default(), &commands, 3).await;
        assert_eq!(
            frames[2].as_str(),
            r#"[{"ev":"status","status":"error","message":"\"T.*\" is not carried: upstream refused T.*: not authorized"},{"ev":"status","status":"success","message":"subscribed to: Q.*"}]"#
        );
    }

    #[tokio::test]
    async fn a_pong_reaches_the_subscriber_with_its_payload() {
        let tier = Fickle::default();
        let pongs = Arc::clone(&tier.pongs);
        let messages = [
            Message::Pong("too early".into()),
            r#"{"action":"auth","params":"key"}"#.into(),
            Message::Pong("1-2".into()),
            Message::Pong("".into()),
            r#"{"action":"subscribe","params":"Q.*"}"#.into(),
        ];
        exchange(tier, &messages, 3).await;
        assert_eq!(*pongs.lock().unwrap(), [b"1-2".to_vec(), b"".to_vec()]);
    }
}
