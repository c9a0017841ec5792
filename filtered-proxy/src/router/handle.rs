//! A handle to the router: what sessions ask of it, and the state that both share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use proxy_common::{
    health::{EventTypes, Lag},
    history::History,
    metrics::Level,
    program::wiring::Upkeep,
    protocol::{Channel, ChannelSet, Market, NoticePolicy, Position},
    session::{ChangeOutcome, Outbound, SessionMetrics, SubscriptionChange},
    status::TierView,
    websocket::Frame,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::Instant,
};

#[cfg(feature = "nats")]
use crate::session_bucket::MarketBucket;
use crate::{
    coverage::KnownCoverage,
    feed::HistoryState,
    index::SessionId,
    named_sessions::SessionNames,
    replay::{Output, Part, Replay},
    replays::Replays,
};

/// Most gaps kept for the status from one second to the next.
const MAX_GAPS: usize = 20;

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

/// The state that sessions and the router share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) market: Market,
    pub(crate) notices: NoticePolicy,
    pub(crate) sessions: Arc<SessionMetrics>,
    pub(crate) next_session: AtomicU64,
    /// Sessions that ended, for the router to remove. Locked for a push or a swap only. Bounded by
    /// the number of sessions.
    pub(super) closed: Mutex<Vec<SessionId>>,
    pub(crate) some_closed: Notify,
    /// The coverage of the firehose. Only the router writes it.
    pub(crate) coverage: watch::Sender<KnownCoverage>,
    /// The notices of current outages. Only the router writes them.
    pub(super) outages: watch::Sender<Outages>,
    pub(super) event_types: Arc<EventTypes>,
    pub(crate) history: History,
    /// Only the router writes it.
    pub(crate) history_state: watch::Sender<HistoryState>,
    pub(crate) replays: Replays,
    /// Locked for a moment.
    pub(crate) names: Arc<Mutex<SessionNames<Arc<Outbound>>>>,
    /// Where other proxies read these names. Default: nowhere.
    #[cfg(feature = "nats")]
    pub(crate) bucket: Option<MarketBucket>,
    /// Parts that the router has added for sessions, and that their tasks have not taken yet. A
    /// task looks here before each step of a replay, and once nothing waits for its socket.
    pub(super) set_aside: Mutex<HashMap<SessionId, Vec<Part>>>,
    /// Gaps that the firehose has reported, until the status takes them. Locked for a moment.
    pub(super) gaps: Mutex<Vec<String>>,
    /// How far the link is from the end of the stream in NATS, if it reads one.
    pub(super) lag: Option<LagLevels>,
}

/// The gauges of the lag behind a stream in NATS.
#[derive(Debug)]
pub(crate) struct LagLevels {
    /// Messages yet to be read.
    pub(crate) messages: Level,
    /// Age of the last message read, if more follow.
    pub(crate) milliseconds: Level,
}

/// The notices of current outages.
#[derive(Debug, Default)]
pub(super) struct Outages {
    /// The notice for our link.
    pub(super) ours: Option<Frame>,
    /// The notice for the firehose's link, as the firehose sent it, and its text for `/health`.
    pub(super) firehoses: Option<(Frame, String)>,
}

impl Outages {
    /// Whether an outage has not ended.
    pub(super) fn go_on(&self) -> bool {
        self.ours.is_some() || self.firehoses.is_some()
    }

    pub(super) fn frames(&self) -> impl Iterator<Item = &Frame> {
        self.ours.iter().chain(self.firehoses.as_ref().map(|(frame, _)| frame))
    }
}

/// A handle to the router, for sessions and for `/health`.
#[derive(Debug, Clone)]
pub struct RouterHandle {
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) shared: Arc<Shared>,
}

impl Shared {
    pub(super) fn add_gap(&self, text: String) {
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
    pub(super) fn set_aside(&self, session: SessionId, part: Part) {
        self.all_set_aside().entry(session).or_default().push(part);
    }

    /// Takes the parts that the router has added for a session.
    pub(crate) fn take_set_aside(&self, session: SessionId) -> Vec<Part> {
        self.all_set_aside().remove(&session).unwrap_or_default()
    }

    /// Removes channels from what was left for a session.
    pub(super) fn take_back(&self, session: SessionId, channels: &[Channel]) {
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

    fn is_behind(&self) -> bool {
        self.shared.outages.borrow().ours.is_some()
    }

    fn lag(&self) -> Option<Lag> {
        let LagLevels { messages, milliseconds } = self.shared.lag.as_ref()?;
        let number = |level: &Level| u64::try_from(level.get()).unwrap_or(0);
        Some(Lag { messages: number(messages), milliseconds: number(milliseconds) })
    }

    fn view(&self) -> TierView {
        TierView { types: self.shared.event_types.last(), ..TierView::default() }
    }

    fn take_gaps(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.gaps.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
