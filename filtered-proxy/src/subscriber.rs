//! A session's side of the router: what it holds, and its way through the history if it comes back.

use std::{
    future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use proxy_common::{
    protocol::{
        Channel, ChannelSet, ExtraKinds, Gone, Notice, NoticePolicy, Position, Start, Status,
        TierName, Unavailable, status_frame,
    },
    session::{
        ChangeOutcome, ClientInfo, CloseReason, NamedSessions, Outbound, SessionOptions,
        Subscriber, SubscriptionChange, Tier,
    },
};
use tokio::{
    sync::oneshot,
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};
#[cfg(feature = "nats")]
use tracing::warn;

use crate::{
    feed::HistoryState,
    index::SessionId,
    named_sessions::Entered,
    replay::Replay,
    replay_start::{Asked, MAX_AHEAD, Starting},
    router::{Follow, Input, RouterHandle},
};

/// How long a session that comes back may take from one subscription to the next, before it goes on
/// from where it stood: the vendor's Go client sends one channel in a message.
const COLLECTING: Duration = Duration::from_millis(250);
/// How near to the live data a replay hands over to the router, in entries of the history.
const NEAR: u64 = 256;
/// Most commands of a replay that leave out events.
const MAX_COUNTS: usize = 64;
/// How often a replay that waits for the feed looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Tier for RouterHandle {
    type Subscriber = RouterSubscriber;

    const NAMED_SESSIONS: NamedSessions = NamedSessions::Accepted;

    async fn admit(
        &self,
        outbound: &Arc<Outbound>,
        client: &ClientInfo,
        key: Arc<str>,
    ) -> RouterSubscriber {
        let session = self.shared.next_session.fetch_add(1, Ordering::Relaxed);
        let mut subscriber = RouterSubscriber {
            session,
            key,
            options: client.options.clone(),
            named: None,
            outbound: Arc::clone(outbound),
            router: self.clone(),
            held: ChannelSet::default(),
            place: Place::Live,
            next_status: Instant::now(),
        };
        subscriber.take_name(client.session_name()).await;
        let interval = client.options.as_ref().and_then(|options| options.positions);
        let follow = Follow { named: subscriber.named.is_some(), interval };
        // If the router is gone, the session's first change fails.
        let _ = self.inputs.send(Input::Join(session, Arc::clone(outbound), follow)).await;
        subscriber
    }
}

/// A session's side of the router.
#[derive(Debug)]
pub struct RouterSubscriber {
    session: SessionId,
    /// The label of its key.
    key: Arc<str>,
    options: Option<Arc<SessionOptions>>,
    /// The name that it holds. Boxed, because few sessions have one.
    named: Option<Box<Named>>,
    outbound: Arc<Outbound>,
    router: RouterHandle,
    held: ChannelSet,
    place: Place,
    /// When a replay may say next where it stands.
    next_status: Instant,
}

/// What a session with a name keeps.
#[derive(Debug)]
struct Named {
    name: Arc<str>,
    /// What its client confirmed before it came back, until it subscribes.
    came_from: Option<Position>,
    /// Whether the proxy remembered nothing of it, until it subscribes.
    is_new: bool,
}

/// Where a session gets its events from.
#[derive(Debug)]
enum Place {
    /// From the router.
    Live,
    /// It will replay.
    Starting(Box<Starting>),
    /// It replays.
    Replaying(Box<Replay>),
    /// The router has its replay, to end it.
    Ending(oneshot::Receiver<Option<Box<Replay>>>),
}

impl RouterSubscriber {
    /// Takes the name in the session's path, if there is one.
    async fn take_name(&mut self, name: Option<&Arc<str>>) {
        let Some(name) = name else { return };
        if !self.router.shared.history.is_on() {
            let why = "nothing is remembered of this named session: HISTORY_BYTES is 0";
            return self.outbound.send_frame(&status_frame(&Status::error(why)), Instant::now());
        }
        let holder = Arc::clone(&self.outbound);
        let now = Instant::now().into_std();
        let entered = self.router.shared.names().enter(&self.key, name, self.session, holder, now);
        match entered {
            Entered::Holds { taken_over, confirmed } => {
                if let Some(older) = taken_over {
                    older.evict(CloseReason::TakenOver);
                }
                let came_from = match self.claim(name).await {
                    Some(claimed) => claimed,
                    None => confirmed,
                };
                let (name, is_new) = (Arc::clone(name), came_from.is_none());
                self.named = Some(Box::new(Named { name, came_from, is_new }));
            }
            Entered::Full => {
                let why = "no room for another named session: nothing is remembered of this one";
                self.outbound.send_frame(&status_frame(&Status::error(why)), Instant::now());
            }
        }
    }

    /// Claims the name beside other proxies. Returns what was confirmed, here or there; `None` if
    /// the names are not shared, or if that cannot be known now.
    #[cfg(feature = "nats")]
    async fn claim(&self, name: &Arc<str>) -> Option<Option<Position>> {
        let shared = &self.router.shared;
        match shared.bucket.as_ref()?.claim(&self.key, name).await {
            Ok(claimed) => Some(shared.names().claimed(&self.key, name, self.session, claimed)),
            Err(error) => {
                warn!(%error, "failed to ask NATS where a named session stood");
                None
            }
        }
    }

    #[cfg(not(feature = "nats"))]
    #[expect(clippy::unused_async, reason = "with NATS, it waits")]
    async fn claim(&self, _name: &Arc<str>) -> Option<Option<Position>> {
        None
    }

    /// A client that comes back must know if the proxy has forgotten it: after a restart, at
    /// another proxy, or too late.
    fn announce_that_nothing_is_remembered(&mut self) {
        let Some(Named { name, is_new, .. }) = self.named.as_deref_mut() else { return };
        if std::mem::take(is_new) && self.router.shared.notices != NoticePolicy::Off {
            let text = format!("nothing is remembered under the name {name}: live events follow");
            let status = Status::new("session", text);
            self.outbound.send_frame(&status_frame(&status), Instant::now());
        }
    }

    /// The client has received everything up to this position.
    fn confirm(&self, position: Position) {
        if let Some(Named { name, .. }) = self.named.as_deref() {
            self.router.shared.names().confirm(&self.key, name, self.session, position);
        }
    }

    /// What the client confirmed before it came back, until the session goes on from there.
    fn came_from(&self) -> Option<Position> {
        self.named.as_ref()?.came_from
    }

    /// Where a subscription begins that says `start`.
    fn start_of(&self, start: Start) -> Start {
        match (start, self.came_from()) {
            (Start::Live, Some(position)) => Start::From(position, 0),
            (start, _) => start,
        }
    }

    /// Waits until the router has ended the replay or given it back.
    async fn await_router(&mut self) {
        if let Place::Ending(answer) = &mut self.place {
            self.place = match answer.await {
                Ok(Some(replay)) => Place::Replaying(replay),
                // Without a router, the next change fails.
                Ok(None) | Err(_) => Place::Live,
            };
        }
    }

    /// Takes over a change that the router has applied. A client that has events counts them with
    /// the channels `counted`.
    fn applied(
        &mut self,
        subscribe: bool,
        channels: Vec<Channel>,
        start: Start,
        counted: ChannelSet,
    ) {
        if !subscribe {
            return match &mut self.place {
                Place::Live | Place::Ending(_) => {}
                Place::Starting(starting) => starting.remove(&channels),
                Place::Replaying(replay) => replay.remove(&channels),
            };
        }
        if channels.is_empty() && start == Start::Live {
            return;
        }
        let named = self.came_from().is_some();
        let collects = if named { COLLECTING } else { Duration::ZERO };
        if start != Start::Live && !matches!(self.place, Place::Starting(_)) {
            let parts = match std::mem::replace(&mut self.place, Place::Live) {
                Place::Replaying(replay) => replay.into_parts().collect(),
                Place::Live | Place::Starting(_) | Place::Ending(_) => Vec::new(),
            };
            self.place = Place::Starting(Box::new(Starting::new(parts, named, collects)));
        }
        // The router may have set something aside before the change.
        self.look_aside();
        match &mut self.place {
            Place::Live | Place::Ending(_) => {}
            Place::Starting(starting) if start == Start::Live => starting.add_next(channels),
            Place::Starting(starting) => {
                let start = match start {
                    Start::From(position, 1..) if starting.counts() >= MAX_COUNTS => {
                        self.outbound.send_frame(&status_frame(&too_many_counts()), Instant::now());
                        Start::From(position, 0)
                    }
                    start => start,
                };
                let channels = channels.into_iter().collect();
                starting.ask(Asked { start, channels, counted });
                starting.collects_until = starting.collects_until.max(Instant::now() + collects);
                starting.has_turn &= named;
            }
            Place::Replaying(replay) => replay.add_next(channels),
        }
    }

    /// Takes what the router has set aside for this session's replay, which begins if it does not
    /// go on already.
    fn look_aside(&mut self) {
        if matches!(self.place, Place::Ending(_)) {
            // The router still has the replay, and adds it.
            return;
        }
        let parts = self.router.shared.take_set_aside(self.session);
        if parts.is_empty() {
            return;
        }
        match &mut self.place {
            Place::Starting(starting) => starting.parts.extend(parts),
            Place::Replaying(replay) => replay.add(parts),
            Place::Live | Place::Ending(_) => {
                // The client has not asked for it, so the limit of its key does not matter.
                let mut starting = Starting::new(parts, false, Duration::ZERO);
                starting.has_turn = true;
                self.place = Place::Starting(Box::new(starting));
            }
        }
    }

    fn notify(&self, notice: &Notice) {
        if self.router.shared.notices != NoticePolicy::Off {
            self.outbound.send_frame(&notice.frame(), Instant::now());
        }
    }

    /// Begins the replay, once its start is known here.
    async fn begin(&mut self) -> Result<(), CloseReason> {
        let Place::Starting(starting) = &mut self.place else { return Ok(()) };
        sleep_until(starting.collects_until).await;
        let mut state = self.router.shared.history_state.subscribe();
        // Without a router the session ends with its next change.
        if state.wait_for(|state| *state != HistoryState::Filling).await.is_err() {
            return future::pending().await;
        }
        let Place::Starting(starting) = &mut self.place else { return Ok(()) };
        if !starting.has_turn {
            self.router.shared.replays.wait_for_turn(&self.key).await;
            starting.has_turn = true;
        }
        let history = self.router.shared.history.clone();
        let Some(found) = starting.look_up(&history, *state.borrow()) else {
            sleep(LOOK_AGAIN).await;
            return Ok(());
        };
        // Behind the look-up, so that nothing set aside begins before the replay.
        self.look_aside();
        let Place::Starting(starting) = std::mem::replace(&mut self.place, Place::Live) else {
            return Ok(());
        };
        let starts = starting.parts.iter().map(|part| part.from);
        let wanted = starts.chain(found.iter().map(|found| found.at)).min();
        let wanted = wanted.unwrap_or_else(|| history.end());
        let (first, position, time) = history.place(wanted);
        // Of a gap that ends where the client stands, only the notice follows.
        let stands = found.iter().filter_map(|found| found.stands_at(first));
        let position = stands.fold(position, Position::max);
        let mut notices: Vec<_> = found.iter().filter_map(|found| found.gap(&history)).collect();
        notices.dedup_by_key(|notice| notice.frame());
        if wanted < first {
            let why = Gone::Overtaken(None);
            notices.insert(0, Notice::gone(TierName::Filtered, why, None, position));
        }
        if !found.is_empty() {
            let may_repeat = starting.may_repeat;
            notices.push(Notice::resumed(TierName::Filtered, position, time, may_repeat));
        }
        let coverage = self.router.shared.coverage.borrow().clone();
        let now = Instant::now().into_std();
        let mut replay = Replay::new(self.router.shared.market, first, position, coverage, now);
        let asked = found.into_iter().filter_map(|found| found.into_part(first));
        replay.add(starting.parts.into_iter().chain(asked));
        replay.add_next(starting.next.iter().cloned());
        self.place = Place::Replaying(Box::new(replay));
        if let Some(Named { name, came_from, .. }) = self.named.as_deref_mut() {
            *came_from = None;
            self.router.shared.names().go_back(&self.key, name, self.session, position);
        }
        for notice in &notices {
            self.notify(notice);
        }
        Ok(())
    }

    /// Sends the next part of the history. Near its end, hands over to the router.
    async fn replay(&mut self) -> Result<(), CloseReason> {
        let shared = Arc::clone(&self.router.shared);
        {
            let _turn = shared.replays.work().await;
            // What is set aside from now on begins here or later.
            let end = shared.history.end();
            self.look_aside();
            let Place::Replaying(replay) = &mut self.place else { return Ok(()) };
            replay.step(&shared.history, end, |output| shared.send(&self.outbound, &output));
            let (position, next) = (replay.position(), replay.next());
            let says_position = replay.is_at_its_position();
            if !replay.is_skipping() {
                self.mark(position, next, says_position);
            }
        }
        yield_now().await;
        let Place::Replaying(replay) = &mut self.place else { return Ok(()) };
        if shared.history.end() - replay.next() > NEAR {
            return Ok(());
        }
        let state = *shared.history_state.borrow();
        // The client may have come from a proxy that was a little faster.
        let is_ahead = replay.is_skipping() && replay.next() == shared.history.end();
        let counts = is_ahead && state == HistoryState::Current;
        if replay.ahead_for(counts, Instant::now().into_std()) >= MAX_AHEAD {
            replay.leave_nothing_out();
            let status = Status::error("fewer events came than this client says it has");
            self.outbound.send_frame(&status_frame(&status), Instant::now());
            return Ok(());
        }
        if is_ahead || state == HistoryState::Filling {
            sleep(LOOK_AGAIN).await;
            return Ok(());
        }
        if replay.is_skipping() {
            return Ok(());
        }
        let room = self.router.inputs.reserve().await.map_err(|_| CloseReason::Internal)?;
        if let Place::Replaying(replay) = std::mem::replace(&mut self.place, Place::Live) {
            let (done, answer) = oneshot::channel();
            room.send(Input::CaughtUp(self.session, replay, done));
            self.place = Place::Ending(answer);
        }
        Ok(())
    }

    /// Says where a replay stands, before this entry of the history.
    fn mark(&mut self, position: Position, next: u64, says_position: bool) {
        let now = Instant::now();
        if self.named.is_some() {
            self.outbound.send_ping_in_order(position.to_string().as_bytes(), now);
        }
        let interval = self.options.as_ref().and_then(|options| options.positions);
        if let Some(interval) = interval.filter(|_| says_position)
            && now >= self.next_status
        {
            self.next_status = now + interval;
            let (_, _, time) = self.router.shared.history.place(next);
            self.notify(&Notice::position(TierName::Filtered, position, time));
        }
    }
}

fn too_many_counts() -> Status {
    Status::error(format!(
        "more than {MAX_COUNTS} commands with a count of events: those of this one may repeat"
    ))
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

    async fn change(
        &mut self,
        mut change: SubscriptionChange,
    ) -> Result<ChangeOutcome, CloseReason> {
        self.await_router().await;
        self.look_aside();
        let (subscribe, channels) = (change.subscribe, change.channels.clone());
        if subscribe && !channels.is_empty() {
            change.start = self.start_of(change.start);
            let snapshot = self.options.as_ref().is_some_and(|options| options.snapshot);
            let is_live = change.start == Start::Live && matches!(self.place, Place::Live);
            change.snapshot = is_live && (change.snapshot || snapshot);
        } else {
            change.start = Start::Live;
        }
        let start = change.start;
        let (done, answer) = oneshot::channel();
        let input = Input::Change(self.session, Arc::clone(&self.key), change, done);
        self.router.inputs.send(input).await.map_err(|_| CloseReason::Internal)?;
        let changed = answer.await.map_err(|_| CloseReason::Internal)?;
        if changed.outcome == ChangeOutcome::Applied {
            let held_nothing = self.held.is_empty();
            if subscribe {
                self.held.add(channels.iter().cloned());
            } else {
                self.held.remove(&channels);
            }
            if subscribe && held_nothing && start == Start::Live && !channels.is_empty() {
                changed.head.into_iter().for_each(|head| self.confirm(head));
                self.announce_that_nothing_is_remembered();
            }
            let counted = channels.iter().cloned().collect();
            let now = channels.into_iter().filter(|channel| !changed.later.contains(channel));
            self.applied(subscribe, now.collect(), start, counted);
        }
        Ok(changed.outcome)
    }

    async fn leave(&mut self) -> Option<Position> {
        self.await_router().await;
        match &self.place {
            Place::Replaying(replay) => replay.is_at_its_position().then(|| replay.position()),
            Place::Starting(_) | Place::Ending(_) => None,
            Place::Live => {
                let (done, answer) = oneshot::channel();
                self.router.inputs.send(Input::Leave(self.session, done)).await.ok()?;
                answer.await.ok().flatten()
            }
        }
    }

    async fn pull(&mut self) -> Result<(), CloseReason> {
        self.look_aside();
        match &self.place {
            Place::Live => future::pending().await,
            // Boxed, so that a session that never replays has no room for it.
            Place::Starting(_) => Box::pin(self.begin()).await,
            Place::Replaying(_) => Box::pin(self.replay()).await,
            Place::Ending(_) => {
                Box::pin(self.await_router()).await;
                Ok(())
            }
        }
    }

    fn on_pong(&mut self, payload: &[u8]) {
        let position = str::from_utf8(payload).ok().and_then(|text| text.parse().ok());
        // A client may send any pong, and one may come late. What the client has not been sent yet
        // would be lost for it.
        let sent = match &self.place {
            Place::Replaying(replay) => replay.position(),
            Place::Live | Place::Starting(_) | Place::Ending(_) => {
                self.router.shared.history.head()
            }
        };
        if let Some(position) = position
            && position <= sent
        {
            self.confirm(position);
        }
    }
}

impl Drop for RouterSubscriber {
    fn drop(&mut self) {
        let shared = &self.router.shared;
        if let Some(Named { name, .. }) = self.named.as_deref() {
            let now = Instant::now().into_std();
            shared.names().leave(&self.key, name, self.session, now);
        }
        shared.closed().push(self.session);
        shared.some_closed.notify_one();
    }
}
