//! The state of a router.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use proxy_common::{
    health::{EventTypes, IntakeMetrics},
    history::{History, ReceiptTime},
    metrics::Count,
    protocol::{Channel, ChannelSet, Market, NoticePolicy},
    session::{Outbound, SessionConfig, SessionMetrics},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

use super::{
    handle::{Input, LagLevels, RouterHandle, Shared},
    outage_end::OutageEnd,
};
#[cfg(feature = "nats")]
use crate::session_bucket::MarketBucket;
use crate::{
    batch::Batch,
    contracts::Contracts,
    feed::Feed,
    followers::Followers,
    index::{Index, SessionId},
    last_values::LastValues,
    named_sessions::SessionNames,
    replays::Replays,
};

/// Most inputs that wait for the router. A session whose change finds no room waits, and so reads
/// no further commands.
const INPUTS: usize = 1_024;
/// Most bytes of frames that the router takes before it writes their events. The rest waits in the
/// link's socket. A router that lags takes this much at once, and so writes fewer and longer
/// messages.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// What the firehose answered for a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Granted,
    Refused,
    /// Nothing, until the end of an outage could wait no longer.
    None,
}

/// The channels that a session holds and that are not routed yet.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) channels: ChannelSet,
    /// Those among them that begin after the messages that were missed.
    pub(super) late: ChannelSet,
    /// Whether the session replays: it gets everything it holds by itself, until it has caught up.
    pub(super) replays: bool,
}

/// The router's task.
#[derive(Debug)]
pub struct Router {
    pub(super) market: Market,
    pub(super) notices: NoticePolicy,
    pub(super) feed: Feed,
    pub(super) received: ReceiptTime,
    pub(super) index: Index<Arc<Outbound>>,
    /// The index for messages that no session gets. It stays empty.
    pub(super) nobody: Index<()>,
    /// Sessions with channels that are not in the index yet.
    pub(super) waiting: BTreeMap<SessionId, Waiting>,
    pub(super) followers: Followers<Arc<Outbound>>,
    pub(super) batch: Batch,
    pub(super) batch_bytes: usize,
    /// Most bytes of events in a snapshot.
    pub(super) snapshot_bytes: usize,
    /// When the first frame of the batch was read.
    pub(super) batch_read_at: Option<Instant>,
    /// The latency of the first batch is measured that was read then or later.
    pub(super) next_measured: Instant,
    pub(super) inputs: mpsc::Receiver<Input>,
    pub(super) shared: Arc<Shared>,
    /// Sessions that hold nothing, and that got the notice of an outage which has not ended.
    pub(super) awaiting_end: BTreeSet<SessionId>,
    pub(super) contracts: Contracts,
    /// Answers of the firehose for contracts, with the object for each, that no client has yet.
    pub(super) answers: Vec<(Channel, Answer, String)>,
    pub(super) outage_end: OutageEnd,
    pub(super) intake: IntakeMetrics,
    /// Objects without a type.
    pub(super) malformed: Count,
    pub(super) sessions: Arc<SessionMetrics>,
}

/// What a router remembers of a market.
#[derive(Debug)]
pub(crate) struct Memory {
    /// The last messages.
    pub(crate) history: History,
    /// The names of sessions.
    pub(crate) names: SessionNames<Arc<Outbound>>,
    /// Where other proxies read these names. Default: nowhere.
    #[cfg(feature = "nats")]
    pub(crate) bucket: Option<MarketBucket>,
    /// The last event of each type and symbol, if they are kept.
    pub(crate) last_values: Option<LastValues>,
    /// How far the link is from the end of the stream in NATS, if it reads one.
    pub(crate) lag: Option<LagLevels>,
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
        #[cfg(feature = "nats")]
        let bucket = memory.bucket;
        let Memory { history, names, last_values, lag, .. } = memory;
        let (sender, inputs) = mpsc::channel(INPUTS);
        let resumes = history.is_on();
        let shared = Arc::new(Shared {
            market: config.market,
            notices: config.notices,
            sessions: Arc::clone(&sessions),
            history: history.clone(),
            history_state: watch::Sender::default(),
            replays: Replays::default(),
            names: Arc::new(Mutex::new(names)),
            #[cfg(feature = "nats")]
            bucket,
            set_aside: Mutex::default(),
            next_session: AtomicU64::new(0),
            closed: Mutex::default(),
            some_closed: Notify::new(),
            coverage: watch::Sender::default(),
            outages: watch::Sender::default(),
            event_types,
            gaps: Mutex::default(),
            lag,
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
            outage_end: OutageEnd::None,
            intake,
            malformed,
            sessions,
        };
        router.publish_history_state();
        (router, handle)
    }
}
