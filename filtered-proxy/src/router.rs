//! The router: one task that owns the index, takes frames off the link and writes each session's events.
//!
//! Changes of subscriptions come to it one at a time and are answered by it, between batches. So a session's events and
//! acknowledgements stand in one order: nothing before the acknowledgement of a subscription was enabled by it, and nothing
//! after the acknowledgement of an unsubscription still matches it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use bytes::Bytes;
use proxy_common::{
    link::{Link, LinkEvent},
    metrics::{LossReason, SessionMetrics},
    protocol::{
        channel::Channel,
        channel_set::ChannelSet,
        coverage::{Carried, Shortfall, news},
        market::Market,
        notice::{self, Notice, Notices, OutageNotice},
    },
    session::{Change, Seat, close::CloseReason, outbound::Outbound},
    websocket::frame::Frame,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::Instant,
};
use tracing::{debug, warn};

use crate::{
    TIER,
    batch::Batch,
    coverage::Carriage,
    index::{Index, SessionId},
    metrics::RouterMetrics,
};

/// Inputs waiting for the router. A session whose change finds no room waits, and so reads no further commands.
const INPUTS: usize = 1_024;
/// Most bytes of frames taken before what they hold is written; what the link has ready beyond waits in the socket. A router
/// that is behind takes this much at once, and so writes fewer and longer messages.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// What sessions ask of the router.
#[derive(Debug)]
enum Input {
    Join(SessionId, Arc<Outbound>),
    /// Answered once it holds.
    Change(SessionId, Change, oneshot::Sender<()>),
}

/// What sessions and router share.
#[derive(Debug)]
struct Shared {
    next_session: AtomicU64,
    /// Sessions that ended, to be removed by the router. Held for a push or a swap only; bounded by the number of sessions.
    gone: Mutex<Vec<SessionId>>,
    someone_left: Notify,
    /// What the firehose carries; `None` as long as it has not told. Written by the router.
    carriage: watch::Sender<Option<Carriage>>,
    /// The notices of outages that last: of our link, and of the firehose's as it told us. Written by the router.
    down: watch::Sender<[Option<Frame>; 2]>,
}

/// The way to the router.
#[derive(Debug, Clone)]
pub struct RouterHandle {
    inputs: mpsc::Sender<Input>,
    shared: Arc<Shared>,
}

/// The task that routes.
#[derive(Debug)]
pub struct Router {
    market: Market,
    notices: Notices,
    index: Index<Arc<Outbound>>,
    batch: Batch,
    batch_bytes: usize,
    inputs: mpsc::Receiver<Input>,
    shared: Arc<Shared>,
    metrics: RouterMetrics,
    sessions: Arc<SessionMetrics>,
    /// Events that the link told to be in the frames at hand.
    told: u64,
    /// Whether one of these frames could not be read to its end.
    damaged: bool,
}

impl Router {
    /// A router without sessions, and the way to it. `queue_bytes` is the most that may be queued for a session.
    pub fn new(
        market: Market,
        queue_bytes: usize,
        notices: Notices,
        metrics: RouterMetrics,
        sessions: Arc<SessionMetrics>,
    ) -> (Self, RouterHandle) {
        let (sender, inputs) = mpsc::channel(INPUTS);
        let shared = Arc::new(Shared {
            next_session: AtomicU64::new(0),
            gone: Mutex::default(),
            someone_left: Notify::new(),
            carriage: watch::Sender::new(None),
            down: watch::Sender::new([None, None]),
        });
        let handle = RouterHandle { inputs: sender, shared: Arc::clone(&shared) };
        let router = Self {
            market,
            notices,
            index: Index::default(),
            batch: Batch::default(),
            // One batch must not be what makes a session slow that was not behind.
            batch_bytes: MAX_BATCH_BYTES.min(queue_bytes / 2),
            inputs,
            shared,
            metrics,
            sessions,
            told: 0,
            damaged: false,
        };
        (router, handle)
    }

    /// Routes until dropped, or until nobody is left who could bring a session.
    pub async fn run(mut self, mut link: Link) {
        let mut events = Vec::new();
        self.is_down(0, link.outage().map(|outage| Notice::upstream_down(TIER, outage).frame()));
        loop {
            // In no order of preference: neither changes nor data may keep the other waiting.
            tokio::select! {
                () = self.shared.someone_left.notified() => self.sweep(),
                input = self.inputs.recv() => match input {
                    Some(input) => self.apply(input),
                    None => return,
                },
                () = link.next_batch(&mut events, self.batch_bytes) => self.route(&mut events),
            }
        }
    }

    fn route(&mut self, events: &mut Vec<LinkEvent>) {
        for event in events.drain(..) {
            match event {
                LinkEvent::Frame { frame, events } => {
                    self.route_frame(frame.shared_text(), events);
                }
                LinkEvent::Malformed => self.notify(&Notice::malformed(TIER).frame()),
                LinkEvent::Notice(frame) => {
                    self.notify(&frame);
                    match notice::outage(frame.text()) {
                        Some(OutageNotice::Down) => self.is_down(1, Some(frame)),
                        Some(OutageNotice::Up) => self.is_down(1, None),
                        None => {}
                    }
                }
                LinkEvent::Down(outage) => {
                    let frame = Notice::upstream_down(TIER, &outage).frame();
                    self.notify(&frame);
                    self.is_down(0, Some(frame));
                    // The firehose says again what lasts, once we are back.
                    self.is_down(1, None);
                }
                LinkEvent::Up(outage) => {
                    self.notify(&Notice::upstream_up(TIER, &outage, SystemTime::now()).frame());
                    self.is_down(0, None);
                }
                LinkEvent::Carried(object) => self.learn(&object),
                LinkEvent::Settled | LinkEvent::Channels(_) => {}
            }
        }
        self.deliver();
    }

    /// Keeps the notice of an outage for who comes while it lasts: of our link (0), or of the firehose's (1).
    fn is_down(&self, which: usize, notice: Option<Frame>) {
        self.shared.down.send_modify(|down| down[which] = notice);
    }

    fn route_frame(&mut self, text: Bytes, events: u64) {
        let length = text.len();
        self.told += events;
        if let Some(malformed) = self.batch.add(text, self.market, &self.index) {
            debug!(at = malformed.at, length, "malformed frame");
            self.damaged = true;
            self.complain("a frame that is no array of events", 1);
        }
    }

    /// Something was dropped because it is no event.
    fn complain(&mut self, what: &str, count: u64) {
        // The metric counts them all; one line in a thousand is enough for the log.
        if self.metrics.malformed.inc_by(count).is_multiple_of(1_000) {
            warn!(what, "malformed data from upstream dropped");
        }
        self.notify(&Notice::malformed(TIER).frame());
    }

    /// Takes in what the firehose carries, and tells the sessions that hold what it does not, unless they knew.
    fn learn(&mut self, object: &str) {
        self.deliver();
        let told = Carried::read(object, self.market);
        let before = self.shared.carriage.borrow().clone();
        let carriage = told.map(|told| Carriage::after(before.as_ref(), told));
        self.shared.carriage.send_replace(carriage.clone());
        let Some(carriage) = carriage else { return };
        let now = Instant::now();
        for (channels, members) in self.index.cohorts() {
            let known = |channel: &Channel| before.as_ref()?.shortfall(channel);
            let frames = news(channels.iter(), |channel| carriage.shortfall(channel), known);
            if frames.is_empty() {
                continue;
            }
            for outbound in members {
                outbound.send_frames(frames.iter().map(|frame| (frame, 0)), now);
            }
        }
    }

    /// Tells every session that gets notices and holds anything, in order with the events around it.
    fn notify(&mut self, frame: &Frame) {
        self.deliver();
        if self.notices == Notices::Off {
            return;
        }
        let now = Instant::now();
        for outbound in self.index.holders() {
            outbound.send_frame(frame, now);
        }
    }

    fn deliver(&mut self) {
        if self.batch.bytes() == 0 {
            return;
        }
        let (index, now) = (&self.index, Instant::now());
        let mut owed = 0;
        let tally = self.batch.deliver(index, |cohort, chunks| {
            let events: u64 = chunks.iter().map(|chunk| u64::from(chunk.events())).sum();
            for outbound in index.members(cohort) {
                owed += events;
                outbound.deliver(chunks, now);
            }
        });
        self.sessions.events_owed.inc_by(owed);
        let intake = &self.metrics.intake;
        intake.unwanted.inc_by(tally.unwanted);
        let damaged = std::mem::take(&mut self.damaged) || tally.nameless > 0;
        let lost = intake.found(tally.events, std::mem::take(&mut self.told), damaged);
        self.sessions.lost(LossReason::Malformed, lost);
        if tally.nameless > 0 {
            self.complain("objects without a type", tally.nameless);
        }
        if tally.oversize > 0 {
            warn!(events = tally.oversize, "events longer than a message may be dropped");
            self.sessions.lost(LossReason::Oversize, tally.oversize);
            self.notify(&Notice::oversize(TIER, tally.oversize).frame());
        }
    }

    fn apply(&mut self, input: Input) {
        match input {
            Input::Join(session, outbound) => self.index.join(session, outbound),
            Input::Change(session, change, done) => {
                // What the firehose told since the session was asked about it.
                let late = match &*self.shared.carriage.borrow() {
                    Some(carriage) if change.subscribe => {
                        let whole = |channel: &Channel| {
                            let shortfall = carriage.shortfall(channel);
                            shortfall.filter(|shortfall| matches!(shortfall, Shortfall::Whole(_)))
                        };
                        news(&change.channels, whole, |_| None)
                    }
                    Some(_) | None => Vec::new(),
                };
                self.index.change(session, change.channels, change.subscribe);
                self.count_subscriptions();
                if let Some(outbound) = self.index.member(session) {
                    let now = Instant::now();
                    // Who subscribes while something is missing is told, as those were who were there when it began.
                    let tells = change.subscribe && self.notices != Notices::Off;
                    let down = self.shared.down.borrow();
                    let down = down.iter().flatten().filter(|_| tells);
                    let frames = change.reply.iter().chain(&late).chain(down);
                    outbound.send_frames(frames.map(|frame| (frame, 0)), now);
                }
                // The session may have ended while it waited.
                let _ = done.send(());
            }
        }
    }

    /// Removes sessions that ended. Their joining stands in the inputs before, so these come first.
    fn sweep(&mut self) {
        let mut gone = Vec::new();
        std::mem::swap(&mut gone, &mut *self.shared.gone());
        for _ in 0..self.inputs.len() {
            if let Ok(input) = self.inputs.try_recv() {
                self.apply(input);
            }
        }
        for session in gone {
            self.index.leave(session);
        }
        self.count_subscriptions();
    }

    fn count_subscriptions(&self) {
        self.sessions.subscriptions.set(self.index.subscriptions() as i64);
    }
}

impl Shared {
    fn gone(&self) -> std::sync::MutexGuard<'_, Vec<SessionId>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RouterHandle {
    /// What the firehose tells to be wrong upstream of it.
    pub fn problems(&self) -> Vec<String> {
        let [_, of_firehose] = &*self.shared.down.borrow();
        of_firehose.iter().filter_map(|notice| notice::message(notice.text())).collect()
    }

    /// Gives a session its place. The router that is gone is noticed at the first change.
    pub async fn join(&self, outbound: Arc<Outbound>) -> RouterSeat {
        let session = self.shared.next_session.fetch_add(1, Ordering::Relaxed);
        let _ = self.inputs.send(Input::Join(session, outbound)).await;
        RouterSeat { session, router: self.clone(), held: ChannelSet::default() }
    }
}

/// A session's place with the router.
#[derive(Debug)]
pub struct RouterSeat {
    session: SessionId,
    router: RouterHandle,
    held: ChannelSet,
}

impl Seat for RouterSeat {
    async fn change(&mut self, change: Change) -> Result<(), CloseReason> {
        if change.subscribe {
            self.held.add(change.channels.iter().cloned());
        } else {
            self.held.remove(&change.channels);
        }
        let (done, answer) = oneshot::channel();
        let input = Input::Change(self.session, change, done);
        self.router.inputs.send(input).await.map_err(|_| CloseReason::Internal)?;
        answer.await.map_err(|_| CloseReason::Internal)
    }

    fn held(&self) -> &ChannelSet {
        &self.held
    }

    fn shortfall(&self, channel: &Channel) -> Option<Shortfall> {
        self.router.shared.carriage.borrow().as_ref()?.shortfall(channel)
    }

    async fn pull(&mut self) -> Result<(), CloseReason> {
        std::future::pending().await
    }
}

impl Drop for RouterSeat {
    fn drop(&mut self) {
        self.router.shared.gone().push(self.session);
        self.router.shared.someone_left.notify_one();
    }
}
