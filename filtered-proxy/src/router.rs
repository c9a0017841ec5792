//! The router: one task that owns the index, takes frames off the link and writes each session's
//! events.
//!
//! It applies changes of subscriptions one at a time, and answers them between batches. So a
//! session's events and acknowledgements have one order. No event of a new subscription comes
//! before its acknowledgement, and none of a removed subscription comes after its acknowledgement.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use proxy_common::{
    health::{EventTypes, IntakeMetrics},
    history::{History, ReceiptTime},
    link::{ContractAnswer, Link, LinkEvent},
    metrics::{Count, count_and_sample},
    program::{service_manager::Heartbeat, wiring::Upkeep},
    protocol::{
        Channel, ChannelSet, Coverage, ExtraKinds, Market, Notice, NoticePolicy, Outage, Position,
        PositionMark, Start, Status, TierName, command_text, newly_unavailable, object_frames,
        status_frame, status_frames,
    },
    session::{
        ChangeOutcome, LossReason, Outbound, SessionConfig, SessionMetrics, SubscriptionChange,
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
    feed::{CaughtUp, Feed, HistoryState, Use},
    followers::{Followers, Mark},
    index::{Index, SessionId},
    last_values::LastValues,
    named_sessions::SessionNames,
    replay::{Output, Part, Replay},
    replays::Replays,
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

/// How often sessions learn where the feed stands if nothing comes.
const MARKING: Duration = Duration::from_millis(50);

/// Most steps of a replay that the router does itself, between two batches.
const LAST_STEPS: usize = 16;

/// The same as `MAX_BATCH_BYTES` for messages that were missed.
const OLD_BATCH_BYTES: usize = 1 << 20;
/// How many bytes may wait for a session before it gets the rest of these messages by itself.
const OLD_QUEUE_BYTES: usize = 1 << 20;

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
pub(crate) enum Input {
    Join(SessionId, Arc<Outbound>, Follow),
    /// Comes with the label of the session's key. The router answers once it has applied or refused
    /// the change.
    Change(SessionId, Arc<str>, SubscriptionChange, oneshot::Sender<Changed>),
    /// The session ends. The router answers where the feed stands behind what it was sent.
    Leave(SessionId, oneshot::Sender<Option<Position>>),
    /// A replay has come near the live data. The router ends it, or gives it back if it has yet to
    /// go further.
    CaughtUp(SessionId, Box<Replay>, oneshot::Sender<Option<Box<Replay>>>),
}

/// What a session wants to learn about positions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Follow {
    /// Whether the session has a name.
    pub(crate) named: bool,
    /// How often it wants a status at most.
    pub(crate) interval: Option<Duration>,
}

/// The result of a change.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) outcome: ChangeOutcome,
    /// Where the feed stands.
    pub(crate) head: Option<Position>,
    /// Channels that were added, but whose events begin later: contracts without an answer, and
    /// what was subscribed while older messages have yet to come.
    pub(crate) later: ChannelSet,
}

/// The channels that a session holds and that are not routed yet.
#[derive(Debug, Default)]
struct Waiting {
    channels: ChannelSet,
    /// Those among them whose events begin once everything has come that was missed.
    late: ChannelSet,
    /// Whether the session replays: it gets everything it holds by itself, until it has caught up.
    replays: bool,
}

/// The state that sessions and the router share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) market: Market,
    pub(crate) notices: NoticePolicy,
    pub(crate) sessions: Arc<SessionMetrics>,
    pub(crate) next_session: AtomicU64,
    /// Sessions that ended, for the router to remove. Locked for a push or a swap only. Bounded by
    /// the number of sessions.
    closed: Mutex<Vec<SessionId>>,
    pub(crate) some_closed: Notify,
    /// The coverage of the firehose. Only the router writes it.
    pub(crate) coverage: watch::Sender<KnownCoverage>,
    /// The notices of current outages. Only the router writes them.
    outages: watch::Sender<Outages>,
    event_types: Arc<EventTypes>,
    pub(crate) history: History,
    /// Only the router writes it.
    pub(crate) history_state: watch::Sender<HistoryState>,
    pub(crate) replays: Replays,
    /// Locked for a moment.
    names: Mutex<SessionNames<Arc<Outbound>>>,
    /// What sessions have to add to their replays, or to begin one with. Their tasks look here
    /// before each step, and once everything has been sent that waited for the socket.
    set_aside: Mutex<HashMap<SessionId, Vec<Part>>>,
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
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) shared: Arc<Shared>,
}

/// The router's task.
#[derive(Debug)]
pub struct Router {
    market: Market,
    notices: NoticePolicy,
    feed: Feed,
    received: ReceiptTime,
    index: Index<Arc<Outbound>>,
    /// The index for messages that no session gets. It stays empty.
    nobody: Index<()>,
    /// Sessions with channels that are not in the index yet.
    waiting: BTreeMap<SessionId, Waiting>,
    followers: Followers<Arc<Outbound>>,
    batch: Batch,
    batch_bytes: usize,
    /// Most bytes of events in a snapshot.
    snapshot_bytes: usize,
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
    /// The outage that ends once everything that was missed has come. Until the firehose says where
    /// that begins, there is a time after which it is not expected to.
    resuming: Option<(Outage, Instant)>,
    /// Whether everything has come that was missed in the outage that ends.
    missed_nothing: bool,
    intake: IntakeMetrics,
    /// Objects without a type.
    malformed: Count,
    sessions: Arc<SessionMetrics>,
}

/// What a router remembers of a market.
#[derive(Debug)]
pub(crate) struct Memory {
    /// The last messages.
    pub(crate) history: History,
    /// The names of sessions.
    pub(crate) names: SessionNames<Arc<Outbound>>,
    /// The last event of each type and symbol, if they are kept.
    pub(crate) last_values: Option<LastValues>,
}

impl Router {
    /// Creates a router without sessions, and a handle to it.
    pub(crate) fn new(
        config: &SessionConfig,
        memory: Memory,
        intake: IntakeMetrics,
        malformed: Count,
        event_types: Arc<EventTypes>,
        sessions: Arc<SessionMetrics>,
    ) -> (Self, RouterHandle) {
        let Memory { history, names, last_values } = memory;
        let (sender, inputs) = mpsc::channel(INPUTS);
        let resumes = history.is_on();
        let shared = Arc::new(Shared {
            market: config.market,
            notices: config.notices,
            sessions: Arc::clone(&sessions),
            history: history.clone(),
            history_state: watch::Sender::default(),
            replays: Replays::default(),
            names: Mutex::new(names),
            set_aside: Mutex::default(),
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
            feed: Feed::new(history, resumes),
            received: ReceiptTime::default(),
            index: Index::default(),
            nobody: Index::default(),
            waiting: BTreeMap::new(),
            followers: Followers::default(),
            batch: Batch::new(last_values),
            // One batch must not make a session slow that has kept up.
            batch_bytes: MAX_BATCH_BYTES.min(config.slow.queue_bytes / 2),
            snapshot_bytes: config.slow.queue_bytes / 2,
            batch_read_at: None,
            next_measured: Instant::now(),
            inputs,
            shared,
            awaiting_end: BTreeSet::new(),
            contracts: Contracts::new(config.market),
            answers: Vec::new(),
            ending: None,
            resuming: None,
            missed_nothing: false,
            intake,
            malformed,
            sessions,
        };
        router.publish_history_state();
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
        let mut marking = interval(MARKING);
        marking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let starting =
            link.outage().map(|outage| Notice::upstream_down(TierName::Filtered, outage));
        self.shared.outages.send_modify(|o| o.ours = starting.map(|notice| notice.frame()));
        loop {
            let (bytes, marks_due) = (self.batch_limit(), self.marks_due());
            // Unbiased: neither changes nor data may keep the other waiting.
            tokio::select! {
                () = self.shared.some_closed.notified() => self.remove_closed(),
                input = self.inputs.recv() => match input {
                    Some(input) => self.apply(input),
                    None => return,
                },
                () = link.next_batch(&mut events, bytes) => {
                    for event in events.drain(..) {
                        self.route(event);
                    }
                    self.tell_answers();
                    self.deliver();
                    self.mark_followers(Instant::now());
                    if self.feed.is_catching_up() {
                        self.let_lagging_replay();
                    }
                }
                _ = marking.tick(), if !self.followers.is_empty() => {
                    self.mark_followers(Instant::now());
                }
                _ = recount.tick(), if self.contracts.has_recounts() => {
                    self.contracts.request_recounts();
                }
                () = due(self.ending.as_ref().map(|(_, until)| *until)) => self.end_outage(),
                () = due(marks_due) => self.on_caught_up(false),
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
            LinkEvent::Frame { frame, events, read_at, position } => {
                if position.is_none() && self.feed.is_waiting() {
                    self.expect_no_marks();
                }
                let came = self.received.of(read_at);
                let whose = self.feed.message(&frame, events, position, came);
                let received = self.feed.age(came).map_or(read_at, |age| read_at - age).into_std();
                match whose {
                    Use::Sessions => {
                        self.batch_read_at.get_or_insert(read_at);
                        let text = frame.shared_text();
                        let found = self.batch.add(text, received, self.market, &self.index);
                        self.account(found);
                    }
                    Use::HistoryOnly => self.take_old(frame.shared_text(), received),
                }
            }
            LinkEvent::Mark(mark) => self.on_mark(mark),
            LinkEvent::Malformed { events } => {
                self.sessions.lost(LossReason::Malformed, events);
                self.notify(&self.notice(Notice::malformed(TierName::Filtered)));
            }
            LinkEvent::Notice(frame, status) => {
                // The end of our own outage is announced before one of the firehose.
                let first = self.resuming.is_some() && self.feed.is_waiting();
                match first && status.status == "upstream_down" {
                    true => _ = self.keep(&frame),
                    // The firehose repeats an outage that goes on.
                    false if self.notify(&frame) == Use::HistoryOnly => return,
                    false => {}
                }
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
                (self.ending, self.resuming) = (None, None);
                self.deliver();
                self.feed.on_down();
                self.publish_history_state();
                let frame = self.notice(Notice::upstream_down(TierName::Filtered, &outage));
                self.notify(&frame);
                // The firehose repeats its outage once we are back.
                let outages = Outages { ours: Some(frame), firehoses: None };
                self.shared.outages.send_replace(outages);
            }
            LinkEvent::Up(outage) if self.feed.is_waiting() => {
                self.resuming = Some((outage, Instant::now() + ANSWER_TIMEOUT));
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
        let notice = match std::mem::take(&mut self.missed_nothing) {
            true => Notice::upstream_resumed(TierName::Filtered, &outage, now),
            false => Notice::upstream_up(TierName::Filtered, &outage, now),
        };
        let frame = self.notice(notice);
        match self.feed.was_down() {
            true => _ = self.notify(&frame),
            false => self.announce(&frame),
        }
        self.shared.outages.send_modify(|o| o.ours = None);
        self.notify_of_end(&frame);
        let firehoses = self.shared.outages.borrow().firehoses.clone();
        if let Some((frame, _)) = firehoses {
            self.announce(&frame);
        }
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
                let held_before = self.held(session);
                let held = self.hold_contract(session, &contract, granted);
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
        self.notify(&self.notice(Notice::malformed(TierName::Filtered)));
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
            self.hold_contract(session, &contract, true);
        }
        self.send_objects(by_session);
        let now = Instant::now();
        let newly_unavailable = |channels: &ChannelSet| {
            newly_unavailable(
                channels.iter(),
                |channel| coverage.unavailable(channel),
                |channel| before.unavailable(channel),
            )
        };
        for (channels, members) in self.index.cohorts() {
            let frames = newly_unavailable(channels);
            if frames.is_empty() {
                continue;
            }
            for outbound in members {
                outbound.send_frames(frames.iter().map(|frame| (frame, 0)), now);
            }
        }
        // A replay compares at its end.
        for (session, waiting) in self.waiting.iter().filter(|(_, waiting)| !waiting.replays) {
            let frames = newly_unavailable(&waiting.channels);
            if let Some(outbound) = self.index.member(*session) {
                outbound.send_frames(frames.iter().map(|frame| (frame, 0)), now);
            }
        }
    }

    /// Adds a notice to the history, and announces it unless it is for the history only. Returns
    /// which.
    fn notify(&mut self, frame: &Frame) -> Use {
        let whose = self.keep(frame);
        if whose == Use::Sessions {
            self.announce(frame);
        }
        whose
    }

    /// Adds a notice to the history. Returns what it is for.
    fn keep(&mut self, frame: &Frame) -> Use {
        self.deliver();
        self.feed.notice(frame)
    }

    /// Sends a notice to every session that gets notices and holds a channel, in order with the
    /// events before and after it.
    fn announce(&mut self, frame: &Frame) {
        self.deliver();
        if self.notices != NoticePolicy::Off {
            let now = Instant::now();
            self.index.holders().for_each(|outbound| outbound.send_frame(frame, now));
        }
    }

    /// The frame of a notice that stands where the feed stands.
    fn notice(&self, notice: Notice) -> Frame {
        notice.at(self.feed.head()).frame()
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
        if self.batch.last_values.as_mut().is_some_and(LastValues::take_skipped) {
            warn!("no room for more last values: snapshots are incomplete from now on");
        }
        if tally.missing_ev > 0 {
            self.report_missing_ev(tally.missing_ev);
        }
        if tally.oversize > 0 {
            warn!(events = tally.oversize, "dropped events that are too long for a message");
            self.sessions.lost(LossReason::Oversize, tally.oversize);
            self.notify(&self.notice(Notice::oversize(TierName::Filtered, tally.oversize)));
        }
    }

    fn apply(&mut self, input: Input) {
        match input {
            Input::Join(session, outbound, Follow { named, interval }) => {
                let now = Instant::now().into_std();
                self.followers.add(session, &outbound, named, interval, now);
                self.index.join(session, outbound);
            }
            // The session may have ended while it waited for an answer.
            Input::Change(session, key, change, done) => {
                let (outcome, later) = self.change(session, &key, change);
                let _ = done.send(Changed { outcome, head: self.feed.head(), later });
                self.mark_followers(Instant::now());
            }
            Input::Leave(session, done) => {
                let position = self.feed.head().filter(|_| self.is_live(session));
                self.remove(session);
                let _ = done.send(position);
            }
            Input::CaughtUp(session, replay, done) => {
                let _ = done.send(self.end_replay(session, replay));
            }
        }
    }

    fn change(
        &mut self,
        session: SessionId,
        key: &Arc<str>,
        change: SubscriptionChange,
    ) -> (ChangeOutcome, ChannelSet) {
        let SubscriptionChange {
            subscribe,
            channels,
            start,
            snapshot,
            reply,
            coverage_version,
            ..
        } = change;
        if subscribe && coverage_version != self.shared.coverage.borrow().version() {
            return (ChangeOutcome::CoverageChanged, ChannelSet::default());
        }
        let removes = !subscribe && !channels.is_empty();
        let (contracts, mut channels): (BTreeSet<_>, BTreeSet<_>) =
            channels.into_iter().partition(|channel| self.contracts.includes(channel));
        let (mut statuses, mut later) = (Vec::new(), ChannelSet::default());
        for contract in contracts {
            if !subscribe {
                self.contracts.unsubscribe(session, &contract);
            } else if !self.contracts.subscribe(session, key, &contract) {
                later.add([contract]);
                continue;
            } else if self.contracts.is_on_demand(&contract) {
                statuses.push(Status::subscribed(&contract.to_string()));
            }
            channels.insert(contract);
        }
        let held_before = self.held(session);
        let last_values = match snapshot && subscribe {
            true => self.snapshot(session, &channels),
            false => Vec::new(),
        };
        if start != Start::Live {
            self.begin_replay(session, &channels);
        } else if subscribe && self.feed.is_behind() {
            later.add(channels.iter().cloned());
        }
        let held = self.hold(session, channels, subscribe);
        let replays = self.waiting.get(&session).is_some_and(|waiting| waiting.replays);
        self.count_subscriptions();
        if let Some(outbound) = self.index.member(session) {
            // A session that subscribes while events may be missing also gets the notices of the
            // outages. One that holds nothing would not get the notices of their ends.
            let holds = held.is_some_and(|held| held > 0);
            let wants_notices = self.notices != NoticePolicy::Off;
            // A replay tells the outages itself, once it can begin.
            let tells = replays && self.feed.history_state() == HistoryState::Current;
            let notified = subscribe && holds && wants_notices && !tells;
            let outages = self.shared.outages.borrow();
            if removes && held_before > 0 && !holds && outages.go_on() && wants_notices {
                self.awaiting_end.insert(session);
            } else if holds {
                self.awaiting_end.remove(&session);
            }
            let answers = status_frames(&statuses);
            let notices = outages.frames().filter(|_| notified);
            let frames = reply.iter().chain(&answers).chain(notices).map(|frame| (frame, 0));
            let last_values = last_values.iter().map(|(frame, events)| (frame, *events));
            outbound.send_frames(frames.chain(last_values), Instant::now());
        }
        (ChangeOutcome::Applied, later)
    }

    /// How many channels a session holds.
    fn held(&self, session: SessionId) -> usize {
        let waiting = self.waiting.get(&session).map_or(0, |waiting| waiting.channels.len());
        self.index.held(session) + waiting
    }

    /// Adds or removes channels of a session. Those added are routed at once, unless older messages
    /// have yet to come, which are not for them. Returns how many it holds now; `None` if there is
    /// no such session.
    fn hold(
        &mut self,
        session: SessionId,
        channels: impl IntoIterator<Item = Channel> + Clone,
        subscribe: bool,
    ) -> Option<usize> {
        self.index.channels(session)?;
        let is_behind = self.feed.is_behind();
        if subscribe && (is_behind || self.waiting.contains_key(&session)) {
            let routed = self.index.channels(session);
            let waiting = self.waiting.entry(session).or_default();
            let is_held = |channel: &Channel| {
                routed.is_some_and(|routed| routed.contains(channel))
                    || waiting.channels.contains(channel)
            };
            let new: Vec<Channel> =
                channels.into_iter().filter(|channel| !is_held(channel)).collect();
            if is_behind {
                waiting.late.add(new.iter().cloned());
            }
            waiting.channels.add(new);
        } else {
            self.index.change(session, channels.clone(), subscribe);
            let channels: Vec<Channel> = channels.into_iter().collect();
            if !subscribe && let Some(waiting) = self.waiting.get_mut(&session) {
                waiting.channels.remove(&channels);
                waiting.late.remove(&channels);
                self.shared.take_back(session, &channels);
            }
        }
        Some(self.held(session))
    }

    /// Adds or removes a contract of a session, after an answer of the firehose.
    fn hold_contract(
        &mut self,
        session: SessionId,
        contract: &Channel,
        granted: bool,
    ) -> Option<usize> {
        let held = self.hold(session, [contract.clone()], granted);
        let waiting = self.waiting.get(&session);
        if granted && waiting.is_some_and(|w| w.replays && !w.late.contains(contract)) {
            let channels = ChannelSet::from_iter([contract.clone()]);
            self.shared.set_aside(session, Part::new(self.shared.history.end(), channels));
        }
        held
    }

    /// Routes nothing to a session from now on: it gets by itself what it holds, and these
    /// channels.
    fn begin_replay(&mut self, session: SessionId, asked: &BTreeSet<Channel>) {
        let Some(routed) = self.index.channels(session).cloned() else { return };
        self.index.change(session, routed.iter().cloned(), false);
        let waiting = self.waiting.entry(session).or_default();
        waiting.channels.add(routed.iter().chain(asked).cloned());
        waiting.late.remove(asked);
        waiting.replays = true;
        if !routed.is_empty() {
            self.shared.set_aside(session, Part::new(self.shared.history.end(), routed));
        }
    }

    /// Gives a session the rest of the history, and routes to it what it holds from there on. If
    /// that is much, or if older messages have yet to come, gives the replay back.
    fn end_replay(&mut self, session: SessionId, mut replay: Box<Replay>) -> Option<Box<Replay>> {
        if self.feed.history_state() == HistoryState::Filling {
            return Some(replay);
        }
        let outbound = self.index.member(session).cloned()?;
        let history = self.shared.history.clone();
        replay.add(self.shared.take_set_aside(session));
        for _ in 0..LAST_STEPS {
            replay.step(&history, u64::MAX, |output| self.shared.send(&outbound, &output));
            // What waits for its socket counts from now on.
            if replay.next() == history.end() || !outbound.is_idle() {
                break;
            }
        }
        if replay.next() != history.end() {
            return Some(replay);
        }
        let channels = self.route_again(session);
        let coverage = self.shared.coverage.borrow();
        let mut frames = newly_unavailable(
            channels.iter(),
            |channel| coverage.unavailable(channel),
            |channel| replay.coverage().unavailable(channel),
        );
        if self.notices != NoticePolicy::Off {
            let live = Notice::live(TierName::Filtered, replay.position(), SystemTime::now());
            frames.push(live.frame());
            frames.extend(self.shared.outages.borrow().frames().cloned());
        }
        outbound.send_frames(frames.iter().map(|frame| (frame, 0)), Instant::now());
        None
    }

    /// Routes to a session what it holds, except for what has yet to begin. Returns these channels.
    fn route_again(&mut self, session: SessionId) -> ChannelSet {
        let Waiting { mut channels, late, .. } = self.waiting.remove(&session).unwrap_or_default();
        if !late.is_empty() {
            channels.remove(late.iter());
            let waiting = Waiting { channels: late.clone(), late, replays: false };
            self.waiting.insert(session, waiting);
        }
        self.index.change(session, channels.iter().cloned(), true);
        channels
    }

    fn on_mark(&mut self, mark: PositionMark) {
        self.deliver();
        let came = self.received.of(Instant::now());
        let caught_up = self.feed.on_mark(mark, came);
        self.publish_history_state();
        if let Some(CaughtUp { missed_nothing }) = caught_up {
            self.on_caught_up(missed_nothing);
        }
    }

    /// The firehose has not said where the feed begins: it is older than this proxy.
    fn expect_no_marks(&mut self) {
        self.feed.on_no_marks();
        self.publish_history_state();
        self.on_caught_up(false);
    }

    /// When the firehose is not expected any more to say where the feed begins.
    fn marks_due(&self) -> Option<Instant> {
        let (_, until) = self.resuming.as_ref().filter(|_| self.feed.is_waiting())?;
        Some(*until)
    }

    /// Everything has come that was missed. Ends the outage, and routes the channels that sessions
    /// subscribed to during it.
    fn on_caught_up(&mut self, missed_nothing: bool) {
        let outage = self.resuming.take().map(|(outage, _)| outage);
        let complete = outage.as_ref().filter(|_| missed_nothing);
        let subscribed = complete.map(|outage| self.notice(Notice::subscribed_in_outage(outage)));
        let on_demand = complete.map(|outage| self.notice(Notice::on_demand_in_outage(outage)));
        let late = self.waiting.iter_mut().filter(|(_, waiting)| !waiting.late.is_empty());
        let late = late.map(|(session, waiting)| (*session, std::mem::take(&mut waiting.late)));
        for (session, channels) in late.collect::<Vec<_>>() {
            self.begin_here(session, channels, subscribed.as_ref());
        }
        self.waiting.retain(|_, waiting| waiting.replays);
        if let Some(on_demand) = &on_demand {
            for session in self.contracts.sessions().collect::<Vec<_>>() {
                self.begin_here(session, ChannelSet::default(), Some(on_demand));
            }
        }
        let Some(outage) = outage else { return };
        self.missed_nothing = missed_nothing;
        self.ending = Some((outage, Instant::now() + ANSWER_TIMEOUT));
        if !self.contracts.awaits_answers() {
            self.end_outage();
        }
    }

    /// Lets channels of a session begin that waited, and says this before them.
    fn begin_here(&mut self, session: SessionId, channels: ChannelSet, notice: Option<&Frame>) {
        if self.waiting.get(&session).is_some_and(|waiting| waiting.replays) {
            let part = Part::new(self.shared.history.end(), channels).saying(notice.cloned());
            return self.shared.set_aside(session, part);
        }
        self.index.change(session, channels.iter().cloned(), true);
        if self.notices != NoticePolicy::Off
            && let (Some(frame), Some(outbound)) = (notice, self.index.member(session))
        {
            outbound.send_frame(frame, Instant::now());
        }
    }

    fn publish_history_state(&self) {
        let state = self.feed.history_state();
        self.shared
            .history_state
            .send_if_modified(|known| std::mem::replace(known, state) != state);
    }

    /// Takes a frame from before this program began. Its events are counted, and may be the last of
    /// their symbols.
    fn take_old(&mut self, frame: Bytes, received: std::time::Instant) {
        let found = self.batch.add(frame, received, self.market, &self.nobody);
        let tally = self.batch.deliver(&self.nobody, |_, _| {});
        self.batch.kinds.take(|_, _| {});
        self.account(found);
        self.intake.not_subscribed.inc_by(tally.not_subscribed);
    }

    /// Most bytes of the next batch.
    fn batch_limit(&self) -> usize {
        match self.feed.is_catching_up() {
            true => OLD_BATCH_BYTES.min(self.batch_bytes),
            false => self.batch_bytes,
        }
    }

    /// Lets sessions that have much to read get the rest by themselves: messages that were missed
    /// come as fast as the firehose can send them, which must make no client slow.
    fn let_lagging_replay(&mut self) {
        let lagging = |(_, outbound): &(SessionId, &Arc<Outbound>)| {
            outbound.queued_bytes() > OLD_QUEUE_BYTES.min(self.batch_bytes / 2)
        };
        let lagging = self.index.sessions().filter(lagging);
        let lagging: Vec<_> = lagging.map(|(id, outbound)| (id, Arc::clone(outbound))).collect();
        for (session, outbound) in lagging {
            self.begin_replay(session, &BTreeSet::new());
            // If all has been sent meanwhile, its task may have looked too early.
            if outbound.is_idle() && !self.shared.take_set_aside(session).is_empty() {
                self.route_again(session);
            }
        }
    }

    /// Tells the sessions that want to know it where the feed stands.
    fn mark_followers(&mut self, now: Instant) {
        if self.followers.is_empty() || !self.followers.is_time(now.into_std()) {
            return;
        }
        if self.feed.is_filling() {
            // Sessions get nothing of what comes.
            return;
        }
        let Some(head) = self.feed.head() else { return };
        let (index, waiting) = (&self.index, &self.waiting);
        let due = self.followers.due(head, now.into_std(), |session, outbound: &Arc<Outbound>| {
            let live = index.held(session) > 0 && !waiting.contains_key(&session);
            live.then(|| outbound.sent_bytes())
        });
        if due.is_empty() {
            return;
        }
        let status = Notice::position(TierName::Filtered, head, self.feed.last_time()).frame();
        let payload = head.to_string();
        for (outbound, mark) in due {
            match mark {
                Mark::Status => outbound.send_frame(&status, now),
                Mark::Ping => outbound.send_ping_in_order(payload.as_bytes(), now),
            }
        }
    }

    /// The messages with the last values of these channels, or a reason why there are none. Counts
    /// their events as handed out to the session. Nothing waits in the batch, so these events are
    /// older than any that the session gets from now on.
    fn snapshot(&self, session: SessionId, channels: &BTreeSet<Channel>) -> Vec<(Frame, u32)> {
        if self.index.member(session).is_none() {
            return Vec::new();
        }
        let refused = |why: String| vec![(status_frame(&Status::error(why)), 0)];
        let Some(last_values) = &self.batch.last_values else {
            let why = "no last values without LAST_VALUES=on: live data follows";
            return refused(why.to_owned());
        };
        let (coverage, limit) = (self.shared.coverage.borrow(), self.snapshot_bytes);
        let now = Instant::now().into_std();
        match last_values.snapshot(channels, self.market, &coverage, now, limit) {
            Ok(frames) => {
                let events: u64 = frames.iter().map(|(_, events)| u64::from(*events)).sum();
                self.sessions.events_owed.inc_by(events);
                frames
            }
            Err(bytes) => refused(format!(
                "the last values have {bytes} bytes, and half of CLIENT_QUEUE_BYTES is {limit}: \
                 ask for fewer items at a time; live data follows"
            )),
        }
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
        closed.into_iter().for_each(|session| self.remove(session));
        self.count_subscriptions();
    }

    fn remove(&mut self, session: SessionId) {
        self.index.leave(session);
        self.contracts.leave(session);
        self.awaiting_end.remove(&session);
        self.waiting.remove(&session);
        self.shared.take_set_aside(session);
        self.followers.remove(session);
    }

    /// Whether a session gets everything that it holds as it comes.
    fn is_live(&self, session: SessionId) -> bool {
        let gets_messages = !self.feed.is_filling() && !self.waiting.contains_key(&session);
        gets_messages && self.index.held(session) > 0
    }

    fn count_subscriptions(&self) {
        let waiting: usize = self.waiting.values().map(|waiting| waiting.channels.len()).sum();
        self.sessions.subscriptions.set((self.index.subscriptions() + waiting) as i64);
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

    /// Sends a session what its replay yields.
    pub(crate) fn send(&self, outbound: &Outbound, output: &Output<'_>) {
        let now = Instant::now();
        match output {
            Output::Events(chunks) => {
                let events = chunks.iter().map(|chunk| u64::from(chunk.events())).sum();
                self.sessions.events_owed.inc_by(events);
                outbound.deliver(chunks, now, now);
            }
            Output::Notice(_) if self.notices == NoticePolicy::Off => {}
            Output::Notice(frame) => outbound.send_frame(frame, now),
        }
    }

    /// The names of sessions.
    pub(crate) fn names(&self) -> MutexGuard<'_, SessionNames<Arc<Outbound>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves something for a session to add to its replay.
    fn set_aside(&self, session: SessionId, part: Part) {
        self.all_set_aside().entry(session).or_default().push(part);
    }

    /// What was left for a session.
    pub(crate) fn take_set_aside(&self, session: SessionId) -> Vec<Part> {
        self.all_set_aside().remove(&session).unwrap_or_default()
    }

    /// Removes channels from what was left for a session.
    fn take_back(&self, session: SessionId, channels: &[Channel]) {
        for part in self.all_set_aside().get_mut(&session).into_iter().flatten() {
            part.channels.remove(channels);
        }
    }

    fn all_set_aside(&self) -> MutexGuard<'_, HashMap<SessionId, Vec<Part>>> {
        self.set_aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn closed(&self) -> MutexGuard<'_, Vec<SessionId>> {
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

#[cfg(test)]
mod tests {
    use proxy_common::{
        access::{CommandRate, Keys},
        health::Ledger,
        link::LinkMetrics,
        metrics::Metrics,
        protocol::{Kind, demux},
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
        let names = SessionNames::new(Duration::from_secs(1));
        let history = History::new(1_000_000);
        let memory = Memory { history, names, last_values: None };
        Router::new(&config(), memory, intake, Count::default(), event_types, sessions)
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
        let follow = Follow { named: false, interval: None };
        router.apply(Input::Join(1, Arc::new(outbound), follow));
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
        assert_eq!(outcome.0, ChangeOutcome::CoverageChanged);
        assert_eq!(router.index.subscriptions(), 0);
        assert!(client.try_read(&mut [0]).is_err(), "nothing is sent");
        assert_eq!(
            router.change(1, &"key".into(), change(decided_by + 1, true)).0,
            ChangeOutcome::Applied
        );
        assert_eq!(router.index.subscriptions(), 1);
        client.readable().await.unwrap();
        // An unsubscription depends on no coverage.
        assert_eq!(
            router.change(1, &"key".into(), change(decided_by, false)).0,
            ChangeOutcome::Applied
        );
        assert_eq!(router.index.subscriptions(), 0);
    }
}
