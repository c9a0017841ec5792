//! The router: one task that owns the index, takes frames off the link and writes each session's
//! events.
//!
//! It applies changes of subscriptions one at a time, and answers them between batches. So a
//! session's events and acknowledgements have one order. No event of a new subscription comes
//! before its acknowledgement, and none of a removed subscription comes after its acknowledgement.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use proxy_common::{
    health::{EventTypes, IntakeMetrics},
    link::{ContractAnswer, Link, LinkEvent},
    metrics::{Count, count_and_sample},
    program::{service_manager::Heartbeat, wiring::Upkeep},
    protocol::{
        Channel, ChannelSet, Coverage, ExtraKinds, Market, Notice, NoticePolicy, Outage, Status,
        TierName, Unavailable, command_text, newly_unavailable, object_frames, status_frames,
    },
    session::{
        ChangeOutcome, ClientInfo, CloseReason, LossReason, Outbound, SessionConfig,
        SessionMetrics, Subscriber, SubscriptionChange, Tier,
    },
    status::TierView,
    websocket::Frame,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    batch::{Batch, Found},
    contracts::{Contracts, Request},
    coverage::KnownCoverage,
    index::{Index, SessionId},
};

/// Most inputs that wait for the router. A session whose change finds no room waits, and so reads
/// no further commands.
const INPUTS: usize = 1_024;
/// Most bytes of frames that the router takes before it writes their events. The rest waits in the
/// link's socket. A router that lags takes this much at once, and so writes fewer and longer
/// messages.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// Latencies are measured of batches that were read at least this far apart.
const MEASURING_INTERVAL: Duration = Duration::from_millis(1);

/// Most gaps kept for the status from one second to the next.
const MAX_GAPS: usize = 20;

/// How long the end of an outage waits for the firehose's answers for contracts.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the firehose may be sent how many clients hold a contract.
const RECOUNT: Duration = Duration::from_secs(1);

/// What the firehose answered for a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Granted,
    Refused,
    /// Nothing, until the end of an outage could wait no longer.
    None,
}

/// A request of a session to the router.
#[derive(Debug)]
enum Input {
    Join(SessionId, Arc<Outbound>),
    /// Comes with the label of the session's key. The router answers once it has applied or refused
    /// the change.
    Change(SessionId, Arc<str>, SubscriptionChange, oneshot::Sender<ChangeOutcome>),
}

/// The state that sessions and the router share.
#[derive(Debug)]
struct Shared {
    next_session: AtomicU64,
    /// Sessions that ended, for the router to remove. Locked for a push or a swap only. Bounded by
    /// the number of sessions.
    closed: Mutex<Vec<SessionId>>,
    some_closed: Notify,
    /// The coverage of the firehose. Only the router writes it.
    coverage: watch::Sender<KnownCoverage>,
    /// The notices of current outages. Only the router writes them.
    outages: watch::Sender<Outages>,
    event_types: Arc<EventTypes>,
    /// Gaps that the firehose has reported, until the status takes them. Locked for a moment.
    gaps: Mutex<Vec<String>>,
}

/// The notices of current outages.
#[derive(Debug, Default)]
struct Outages {
    /// The notice for our link.
    ours: Option<Frame>,
    /// The notice for the firehose's link, as the firehose sent it, and its text for `/health`.
    firehoses: Option<(Frame, String)>,
}

impl Outages {
    /// Whether an outage has not ended.
    fn go_on(&self) -> bool {
        self.ours.is_some() || self.firehoses.is_some()
    }

    fn frames(&self) -> impl Iterator<Item = &Frame> {
        self.ours.iter().chain(self.firehoses.as_ref().map(|(frame, _)| frame))
    }
}

/// A handle to the router, for sessions and for `/health`.
#[derive(Debug, Clone)]
pub struct RouterHandle {
    inputs: mpsc::Sender<Input>,
    shared: Arc<Shared>,
}

/// The router's task.
#[derive(Debug)]
pub struct Router {
    market: Market,
    notices: NoticePolicy,
    index: Index<Arc<Outbound>>,
    batch: Batch,
    batch_bytes: usize,
    /// When the first frame of the batch was read.
    batch_read_at: Option<Instant>,
    /// The latency of the first batch is measured that was read then or later.
    next_measured: Instant,
    inputs: mpsc::Receiver<Input>,
    shared: Arc<Shared>,
    /// Sessions that hold nothing, and that were told of an outage which has not ended.
    awaiting_end: BTreeSet<SessionId>,
    contracts: Contracts,
    /// Answers of the firehose for contracts that no client has been told yet: the object for each.
    answers: Vec<(Channel, Answer, String)>,
    /// The outage that has ended but for the firehose's answers for contracts, and until when these
    /// may take.
    ending: Option<(Outage, Instant)>,
    intake: IntakeMetrics,
    /// Objects without a type.
    malformed: Count,
    sessions: Arc<SessionMetrics>,
}

impl Router {
    /// Creates a router without sessions, and a handle to it.
    pub fn new(
        config: &SessionConfig,
        intake: IntakeMetrics,
        malformed: Count,
        event_types: Arc<EventTypes>,
        sessions: Arc<SessionMetrics>,
    ) -> (Self, RouterHandle) {
        let (sender, inputs) = mpsc::channel(INPUTS);
        let shared = Arc::new(Shared {
            next_session: AtomicU64::new(0),
            closed: Mutex::default(),
            some_closed: Notify::new(),
            coverage: watch::Sender::default(),
            outages: watch::Sender::default(),
            event_types,
            gaps: Mutex::default(),
        });
        let handle = RouterHandle { inputs: sender, shared: Arc::clone(&shared) };
        let router = Self {
            market: config.market,
            notices: config.notices,
            index: Index::default(),
            batch: Batch::default(),
            // One batch must not make a session slow that has kept up.
            batch_bytes: MAX_BATCH_BYTES.min(config.slow.queue_bytes / 2),
            batch_read_at: None,
            next_measured: Instant::now(),
            inputs,
            shared,
            awaiting_end: BTreeSet::new(),
            contracts: Contracts::new(config.market),
            answers: Vec::new(),
            ending: None,
            intake,
            malformed,
            sessions,
        };
        (router, handle)
    }

    /// Routes until `stop`, or until no handle is left. Then closes the link.
    pub async fn run(mut self, mut link: Link, stop: CancellationToken, heartbeat: Heartbeat) {
        stop.run_until_cancelled(self.route_all(&mut link, heartbeat)).await;
        link.close().await;
    }

    async fn route_all(&mut self, link: &mut Link, mut heartbeat: Heartbeat) {
        let mut events = Vec::new();
        let mut recount = interval(RECOUNT);
        recount.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let starting =
            link.outage().map(|outage| Notice::upstream_down(TierName::Filtered, outage));
        self.shared.outages.send_modify(|o| o.ours = starting.map(|notice| notice.frame()));
        loop {
            // Unbiased: neither changes nor data may keep the other waiting.
            tokio::select! {
                () = self.shared.some_closed.notified() => self.remove_closed(),
                input = self.inputs.recv() => match input {
                    Some(input) => self.apply(input),
                    None => return,
                },
                () = link.next_batch(&mut events, self.batch_bytes) => {
                    for event in events.drain(..) {
                        self.route(event);
                    }
                    self.tell_answers();
                    self.deliver();
                }
                _ = recount.tick(), if self.contracts.has_recounts() => {
                    self.contracts.request_recounts();
                }
                () = due(self.ending.as_ref().map(|(_, until)| *until)) => self.end_outage(),
                () = heartbeat.beat(), if heartbeat.is_on() => {}
            }
            if self.ending.is_some() && !self.contracts.awaits_answers() {
                self.end_outage();
            }
            for Request { subscribe, on_behalf_of, contracts } in self.contracts.take_requests() {
                let action = if subscribe { "subscribe" } else { "unsubscribe" };
                let items: Vec<String> = contracts.iter().map(ToString::to_string).collect();
                link.send(&command_text(action, &items.join(","), Some(&on_behalf_of)));
            }
        }
    }

    fn route(&mut self, event: LinkEvent) {
        if !matches!(event, LinkEvent::Contract { .. }) {
            self.tell_answers();
        }
        match event {
            LinkEvent::Frame { frame, read_at, .. } => {
                self.batch_read_at.get_or_insert(read_at);
                let found = self.batch.add(frame.shared_text(), self.market, &self.index);
                self.account(found);
            }
            LinkEvent::Malformed { events } => {
                self.sessions.lost(LossReason::Malformed, events);
                self.notify(&Notice::malformed(TierName::Filtered).frame());
            }
            LinkEvent::Notice(frame, status) => {
                self.notify(&frame);
                match status.status.as_str() {
                    "upstream_down" => {
                        let firehoses = Some((frame, status.message));
                        self.shared.outages.send_modify(|o| o.firehoses = firehoses);
                    }
                    "upstream_up" => {
                        self.shared.outages.send_modify(|o| o.firehoses = None);
                        self.notify_of_end(&frame);
                    }
                    "gap" => self.shared.add_gap(status.message),
                    _ => {}
                }
            }
            LinkEvent::Down(outage) => {
                self.contracts.on_down();
                self.ending = None;
                let frame = Notice::upstream_down(TierName::Filtered, &outage).frame();
                self.notify(&frame);
                // The firehose repeats its outage once we are back.
                let outages = Outages { ours: Some(frame), firehoses: None };
                self.shared.outages.send_replace(outages);
            }
            LinkEvent::Up(outage) => {
                self.ending = Some((outage, Instant::now() + ANSWER_TIMEOUT));
                if !self.contracts.awaits_answers() {
                    self.end_outage();
                }
            }
            LinkEvent::Coverage(object) => self.on_coverage(&object),
            LinkEvent::Contract { item, answer } => self.on_contract(&item, answer),
            LinkEvent::AllAnswered | LinkEvent::Subscriptions(_) => {}
        }
    }

    fn on_contract(&mut self, item: &str, answer: ContractAnswer) {
        let Ok(contract) = Channel::parse(item, self.market) else { return };
        let (answer, object) = match answer {
            ContractAnswer::Subscribed => (Answer::Granted, Status::subscribed(item).object()),
            ContractAnswer::Refused(object) => (Answer::Refused, object),
            ContractAnswer::Unsubscribed => {
                // Answers before this one are of earlier requests.
                self.tell_answers();
                return self.contracts.on_unsubscribed(&contract);
            }
        };
        self.answers.push((contract, answer, object));
    }

    /// Notifies the clients that everything arrives again.
    fn end_outage(&mut self) {
        let Some((outage, _)) = self.ending.take() else { return };
        self.refuse_unanswered();
        self.contracts.on_up();
        let now = SystemTime::now();
        let frame = Notice::upstream_up(TierName::Filtered, &outage, now).frame();
        self.notify(&frame);
        self.shared.outages.send_modify(|o| o.ours = None);
        self.notify_of_end(&frame);
    }

    /// Tells the clients which contracts the end of an outage does not include, because the
    /// firehose has not answered for them. An answer that comes later is told as usual.
    fn refuse_unanswered(&mut self) {
        for contract in self.contracts.take_unanswered() {
            let item = contract.to_string();
            let why = format!("{item:?} waits: the firehose has not answered yet");
            let object = Status::error(why).about(item).object();
            self.answers.push((contract, Answer::None, object));
        }
        self.tell_answers();
    }

    /// Applies the firehose's answers for contracts, between the events before and after them, and
    /// tells the clients that hold these.
    fn tell_answers(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        self.deliver();
        let mut by_session = BTreeMap::<SessionId, Vec<String>>::new();
        let mut unnotified = BTreeSet::new();
        for (contract, answer, object) in std::mem::take(&mut self.answers) {
            let granted = answer == Answer::Granted;
            let sessions = match answer {
                Answer::Granted | Answer::Refused => self.contracts.on_answer(&contract, granted),
                Answer::None => self.contracts.on_no_answer(&contract),
            };
            for session in sessions {
                by_session.entry(session).or_default().push(object.clone());
                let held_before = self.index.held(session);
                let held = self.index.change(session, [contract.clone()], granted);
                let outages = self.shared.outages.borrow();
                if !outages.go_on() || self.notices == NoticePolicy::Off {
                    continue;
                }
                if held == Some(0) && held_before > 0 {
                    // It would not get the notice of the outage's end.
                    self.awaiting_end.insert(session);
                } else if granted && held == Some(1) && !self.awaiting_end.remove(&session) {
                    // It held nothing, so it did not get the notices of the outages.
                    unnotified.insert(session);
                }
            }
        }
        self.send_objects(by_session);
        let (outages, now) = (self.shared.outages.borrow(), Instant::now());
        for outbound in unnotified.into_iter().filter_map(|session| self.index.member(session)) {
            outbound.send_frames(outages.frames().map(|frame| (frame, 0)), now);
        }
    }

    fn send_objects(&mut self, by_session: BTreeMap<SessionId, Vec<String>>) {
        self.count_subscriptions();
        let now = Instant::now();
        for (session, objects) in by_session {
            if let Some(outbound) = self.index.member(session) {
                let frames = object_frames(objects);
                outbound.send_frames(frames.iter().map(|frame| (frame, 0)), now);
            }
        }
    }

    /// Records the counts of a frame. An event that `split` loses stays missing in the ledger.
    fn account(&self, found: Found) {
        self.intake.routed.inc_by(found.events);
        self.sessions.lost(LossReason::Malformed, found.missing_ev);
    }

    /// Counts objects that were dropped because they have no type, and notifies the clients.
    fn report_missing_ev(&mut self, objects: u64) {
        if count_and_sample(&self.malformed, objects) {
            warn!(objects, "objects without a type from upstream dropped");
        }
        self.notify(&Notice::malformed(TierName::Filtered).frame());
    }

    /// Stores the coverage that the firehose reports, and sends each session the statuses of its
    /// channels that have become unavailable.
    fn on_coverage(&mut self, object: &str) {
        self.deliver();
        let before = self.shared.coverage.borrow().clone();
        let coverage = before.after(Coverage::read(object, self.market));
        self.shared.coverage.send_replace(coverage.clone());
        if let ExtraKinds::These(kinds) = coverage.kinds() {
            self.batch.kinds.list(&kinds);
        }
        self.index.set_on_demand(&coverage.on_demand(), &coverage.listed());
        let mut by_session = BTreeMap::<SessionId, Vec<String>>::new();
        for (session, contract) in self.contracts.on_coverage(&coverage.on_demand()) {
            let object = Status::subscribed(&contract.to_string()).object();
            by_session.entry(session).or_default().push(object);
            self.index.change(session, [contract], true);
        }
        self.send_objects(by_session);
        let now = Instant::now();
        for (channels, members) in self.index.cohorts() {
            let frames = newly_unavailable(
                channels.iter(),
                |channel| coverage.unavailable(channel),
                |channel| before.unavailable(channel),
            );
            if frames.is_empty() {
                continue;
            }
            for outbound in members {
                outbound.send_frames(frames.iter().map(|frame| (frame, 0)), now);
            }
        }
    }

    /// Sends a notice to every session that gets notices and holds a channel, in order with the
    /// events before and after it.
    fn notify(&mut self, frame: &Frame) {
        self.deliver();
        if self.notices == NoticePolicy::Off {
            return;
        }
        let now = Instant::now();
        for outbound in self.index.holders() {
            outbound.send_frame(frame, now);
        }
    }

    /// Tells the sessions that hold nothing of the end of the outage they were told of, unless
    /// another one goes on.
    fn notify_of_end(&mut self, frame: &Frame) {
        if self.shared.outages.borrow().go_on() {
            return;
        }
        let now = Instant::now();
        for session in std::mem::take(&mut self.awaiting_end) {
            if let Some(outbound) = self.index.member(session) {
                outbound.send_frame(frame, now);
            }
        }
    }

    fn deliver(&mut self) {
        if self.batch.bytes() == 0 {
            return;
        }
        let (index, now) = (&self.index, Instant::now());
        let read_at = self.batch_read_at.take().unwrap_or(now);
        let mut owed = 0;
        let tally = self.batch.deliver(index, |cohort, chunks| {
            let events: u64 = chunks.iter().map(|chunk| u64::from(chunk.events())).sum();
            for outbound in index.members(cohort) {
                owed += events;
                outbound.deliver(chunks, now, read_at);
            }
        });
        if read_at >= self.next_measured {
            self.intake.forward_latency.observe(read_at.elapsed());
            self.next_measured = read_at + MEASURING_INTERVAL;
        }
        let came = SystemTime::now();
        let types = &self.shared.event_types;
        self.batch.kinds.take(|kind, events| types.record(kind, events, came));
        self.sessions.events_owed.inc_by(owed);
        self.intake.not_subscribed.inc_by(tally.not_subscribed);
        if tally.missing_ev > 0 {
            self.report_missing_ev(tally.missing_ev);
        }
        if tally.oversize > 0 {
            warn!(events = tally.oversize, "dropped events that are too long for a message");
            self.sessions.lost(LossReason::Oversize, tally.oversize);
            self.notify(&Notice::oversize(TierName::Filtered, tally.oversize).frame());
        }
    }

    fn apply(&mut self, input: Input) {
        match input {
            Input::Join(session, outbound) => self.index.join(session, outbound),
            Input::Change(session, key, change, done) => {
                let outcome = self.change(session, &key, change);
                // The session may have ended while it waited.
                let _ = done.send(outcome);
            }
        }
    }

    fn change(
        &mut self,
        session: SessionId,
        key: &Arc<str>,
        change: SubscriptionChange,
    ) -> ChangeOutcome {
        let SubscriptionChange { subscribe, channels, reply, coverage_version, .. } = change;
        if subscribe && coverage_version != self.shared.coverage.borrow().version() {
            return ChangeOutcome::CoverageChanged;
        }
        let removes = !subscribe && !channels.is_empty();
        let (contracts, mut channels): (BTreeSet<_>, BTreeSet<_>) =
            channels.into_iter().partition(|channel| self.contracts.includes(channel));
        let mut statuses = Vec::new();
        for contract in contracts {
            if !subscribe {
                self.contracts.unsubscribe(session, &contract);
            } else if !self.contracts.subscribe(session, key, &contract) {
                continue;
            } else if self.contracts.is_on_demand(&contract) {
                statuses.push(Status::subscribed(&contract.to_string()));
            }
            channels.insert(contract);
        }
        let held_before = self.index.held(session);
        let held = self.index.change(session, channels, subscribe);
        self.count_subscriptions();
        if let Some(outbound) = self.index.member(session) {
            // A session that subscribes while events may be missing also gets the notices of the
            // outages. One that holds nothing would not get the notices of their ends.
            let holds = held.is_some_and(|held| held > 0);
            let wants_notices = self.notices != NoticePolicy::Off;
            let notified = subscribe && holds && wants_notices;
            let outages = self.shared.outages.borrow();
            if removes && held_before > 0 && !holds && outages.go_on() && wants_notices {
                self.awaiting_end.insert(session);
            } else if holds {
                self.awaiting_end.remove(&session);
            }
            let answers = status_frames(&statuses);
            let notices = outages.frames().filter(|_| notified);
            let frames = reply.iter().chain(&answers).chain(notices);
            outbound.send_frames(frames.map(|frame| (frame, 0)), Instant::now());
        }
        ChangeOutcome::Applied
    }

    /// Removes sessions that ended. Their joins may still wait, so the inputs so far are applied
    /// first.
    fn remove_closed(&mut self) {
        let closed = std::mem::take(&mut *self.shared.closed());
        for _ in 0..self.inputs.len() {
            if let Ok(input) = self.inputs.try_recv() {
                self.apply(input);
            }
        }
        for session in closed {
            self.index.leave(session);
            self.contracts.leave(session);
            self.awaiting_end.remove(&session);
        }
        self.count_subscriptions();
    }

    fn count_subscriptions(&self) {
        self.sessions.subscriptions.set(self.index.subscriptions() as i64);
    }
}

/// Completes at this time; never if there is none.
async fn due(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    fn add_gap(&self, text: String) {
        let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
        if gaps.len() < MAX_GAPS {
            gaps.push(text);
        }
    }

    fn closed(&self) -> MutexGuard<'_, Vec<SessionId>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upkeep for RouterHandle {
    /// The outage that the firehose reports of its own upstream.
    fn problems(&self) -> Vec<String> {
        let outages = self.shared.outages.borrow();
        outages.firehoses.iter().map(|(_, text)| text.clone()).collect()
    }

    fn view(&self) -> TierView {
        TierView { types: self.shared.event_types.last(), ..TierView::default() }
    }

    fn take_gaps(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.gaps.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Tier for RouterHandle {
    type Subscriber = RouterSubscriber;

    async fn admit(
        &self,
        outbound: &Arc<Outbound>,
        _: &ClientInfo,
        key: Arc<str>,
    ) -> RouterSubscriber {
        let session = self.shared.next_session.fetch_add(1, Ordering::Relaxed);
        // If the router is gone, the session's first change fails.
        let _ = self.inputs.send(Input::Join(session, Arc::clone(outbound))).await;
        RouterSubscriber { session, key, router: self.clone(), held: ChannelSet::default() }
    }
}

/// A session's side of the router.
#[derive(Debug)]
pub struct RouterSubscriber {
    session: SessionId,
    /// The label of its key.
    key: Arc<str>,
    router: RouterHandle,
    held: ChannelSet,
}

impl Subscriber for RouterSubscriber {
    fn held(&self) -> &ChannelSet {
        &self.held
    }

    fn coverage_version(&self) -> u64 {
        self.router.shared.coverage.borrow().version()
    }

    fn extra_kinds(&self) -> ExtraKinds {
        self.router.shared.coverage.borrow().kinds()
    }

    fn is_on_demand(&self, channel: &Channel) -> bool {
        self.router.shared.coverage.borrow().is_on_demand(channel)
    }

    fn unavailable(&self, channel: &Channel) -> Option<Unavailable> {
        self.router.shared.coverage.borrow().unavailable(channel)
    }

    async fn change(&mut self, change: SubscriptionChange) -> Result<ChangeOutcome, CloseReason> {
        let (subscribe, channels) = (change.subscribe, change.channels.clone());
        let (done, answer) = oneshot::channel();
        let input = Input::Change(self.session, Arc::clone(&self.key), change, done);
        self.router.inputs.send(input).await.map_err(|_| CloseReason::Internal)?;
        let outcome = answer.await.map_err(|_| CloseReason::Internal)?;
        if outcome == ChangeOutcome::Applied {
            if subscribe {
                self.held.add(channels);
            } else {
                self.held.remove(&channels);
            }
        }
        Ok(outcome)
    }

    async fn pull(&mut self) -> Result<(), CloseReason> {
        std::future::pending().await
    }
}

impl Drop for RouterSubscriber {
    fn drop(&mut self) {
        self.router.shared.closed().push(self.session);
        self.router.shared.some_closed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        access::{CommandRate, Keys},
        health::Ledger,
        link::LinkMetrics,
        metrics::Metrics,
        protocol::{Kind, Start, demux},
        session::SlowLimits,
        transport::Socket,
    };
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::split::{event::EventKind, split};

    fn config() -> SessionConfig {
        let second = Duration::from_secs(1);
        SessionConfig {
            market: Market::Stocks,
            keys: Arc::new(Keys::account("KEYS", &"key".into())),
            command_rate: CommandRate::per_second(1),
            auth_timeout: second,
            ping_interval: second,
            max_subscriptions: 10,
            slow: SlowLimits { queue_bytes: 1_000_000, max_lag: second },
            drain_spread: second,
            drain_timeout: second,
            notices: NoticePolicy::Everyone,
        }
    }

    fn router() -> (Router, RouterHandle) {
        let mut metrics = Metrics::default();
        let intake = IntakeMetrics::register(&mut metrics);
        let event_types = EventTypes::register(&mut metrics, true);
        let sessions = SessionMetrics::register(&mut metrics);
        Router::new(&config(), intake, Count::default(), event_types, sessions)
    }

    /// The ledger after a frame, if `split` loses the events at these positions.
    fn ledger_after_losing(frame: &str, lost: &[usize]) -> Ledger {
        let (router, _) = router();
        let link = LinkMetrics::default();
        link.events.inc_by(demux(Frame::new(frame.as_bytes())).unwrap().events);
        let (mut found, mut position) = (Found::default(), 0);
        split(frame.as_bytes(), |event| {
            if !lost.contains(&position) {
                match event.kind {
                    EventKind::Missing => found.missing_ev += 1,
                    EventKind::Known(_) | EventKind::Unknown => found.events += 1,
                }
            }
            position += 1;
        });
        router.account(found);
        Ledger::read(&link, &router.intake, &router.sessions, None)
    }

    #[test]
    fn a_sound_frame_that_loses_an_event_unbalances_the_ledger() {
        let frame = r#"[{"ev":"T","sym":"A"},{"ev":"T","in":{"ev":"Q"}},{"sym":"A"},{"ev":"Q"}]"#;
        let sound = ledger_after_losing(frame, &[]);
        assert!(sound.balanced, "{sound:?}");
        assert_eq!((sound.intake.received, sound.intake.routed, sound.intake.malformed), (4, 3, 1));
        for lost in 0..4 {
            let ledger = ledger_after_losing(frame, &[lost]);
            assert_eq!((ledger.balanced, ledger.intake.unaccounted), (false, 1), "{ledger:?}");
        }
    }

    #[tokio::test]
    async fn a_subscription_decided_by_an_older_coverage_changes_and_answers_nothing() {
        let (mut router, _handle) = router();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let limits = config().slow;
        let outbound = Outbound::new(Socket::from(socket), limits, Arc::clone(&router.sessions));
        router.apply(Input::Join(1, Arc::new(outbound)));
        let change = |version, subscribe| SubscriptionChange {
            subscribe,
            channels: BTreeSet::from([Channel::Kind(Kind::T)]),
            on_behalf_of: None,
            start: Start::Live,
            snapshot: false,
            reply: vec![Frame::new(b"[]")],
            coverage_version: version,
        };
        let decided_by = router.shared.coverage.borrow().version();
        router.on_coverage(r#"{"ev":"status","status":"gap"}"#);
        let outcome = router.change(1, &"key".into(), change(decided_by, true));
        assert_eq!(outcome, ChangeOutcome::CoverageChanged);
        assert_eq!(router.index.subscriptions(), 0);
        assert!(client.try_read(&mut [0]).is_err(), "nothing is sent");
        assert_eq!(
            router.change(1, &"key".into(), change(decided_by + 1, true)),
            ChangeOutcome::Applied
        );
        assert_eq!(router.index.subscriptions(), 1);
        client.readable().await.unwrap();
        // An unsubscription depends on no coverage.
        assert_eq!(
            router.change(1, &"key".into(), change(decided_by, false)),
            ChangeOutcome::Applied
        );
        assert_eq!(router.index.subscriptions(), 0);
    }
}
