//! A session's side of the router: what it holds, and its way through the history if it comes back.

use std::{
    future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use proxy_common::{
    history::{History, Lookup, TIME_STEP},
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

use crate::{
    feed::HistoryState,
    index::SessionId,
    named_sessions::Entered,
    replay::Replay,
    router::{Follow, Input, RouterHandle},
};

/// How long a session that comes back may take from one subscription to the next, before it goes on
/// from where it stood: the vendor's Go client sends one channel in a message.
const COLLECTING: Duration = Duration::from_millis(250);
/// How near to the live data a replay hands over to the router, in entries of the history.
const NEAR: u64 = 256;
/// How long a position may be ahead of the feed here. Another proxy may be a little faster.
const MAX_AHEAD: Duration = Duration::from_secs(5);
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
            name: None,
            outbound: Arc::clone(outbound),
            router: self.clone(),
            held: ChannelSet::default(),
            came_from: None,
            place: Place::Live,
            next_status: Instant::now(),
        };
        subscriber.take_name(client.session_name());
        let interval = client.options.as_ref().and_then(|options| options.positions);
        let follow = Follow { named: subscriber.name.is_some(), interval };
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
    /// The name that it holds.
    name: Option<Arc<str>>,
    outbound: Arc<Outbound>,
    router: RouterHandle,
    held: ChannelSet,
    /// What its client confirmed before it came back, until it subscribes.
    came_from: Option<Position>,
    place: Place,
    /// When a replay may say next where it stands.
    next_status: Instant,
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

/// A replay that has not begun.
#[derive(Debug)]
struct Starting {
    /// One for each place.
    parts: Vec<(Begin, ChannelSet)>,
    /// Other subscriptions may follow until then.
    collects_until: Instant,
    /// Since when the feed here is known to be behind a position.
    ahead_since: Option<Instant>,
    /// Whether it is within the limit of its key.
    has_turn: bool,
    may_repeat: &'static str,
}

impl Starting {
    /// A replay of nothing. `named` says whether the client comes back by its name.
    fn new(named: bool, collects: Duration) -> Self {
        Self {
            parts: Vec::new(),
            collects_until: Instant::now() + collects,
            ahead_since: None,
            has_turn: false,
            may_repeat: match named {
                true => "up to 250 ms or 256 KiB of it may repeat what came before",
                false => "nothing repeats",
            },
        }
    }

    /// Adds channels whose events begin here.
    fn add(&mut self, begin: Begin, channels: impl IntoIterator<Item = Channel>) {
        let mut channels = channels.into_iter().peekable();
        // A place at which nothing begins must not be the first.
        if channels.peek().is_none() {
            return;
        }
        match self.parts.iter_mut().find(|(known, _)| *known == begin) {
            Some((_, part)) => part.add(channels),
            None => self.parts.push((begin, channels.collect())),
        }
    }

    /// Whether the client asked for old events.
    fn is_asked_for(&self) -> bool {
        self.parts.iter().any(|(begin, _)| matches!(begin, Begin::Asked(_)))
    }
}

/// Where the events of some channels begin.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Begin {
    /// With this entry of the history.
    At(u64),
    /// Where the client said.
    Asked(Start),
}

impl RouterSubscriber {
    /// Takes the name in the session's path, if there is one.
    fn take_name(&mut self, name: Option<&Arc<str>>) {
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
                self.name = Some(Arc::clone(name));
                self.came_from = confirmed;
                if let Some(older) = taken_over {
                    older.evict(CloseReason::TakenOver);
                }
            }
            Entered::Full => {
                let why = "no room for another named session: nothing is remembered of this one";
                self.outbound.send_frame(&status_frame(&Status::error(why)), Instant::now());
            }
        }
    }

    /// A client that comes back must know if the proxy has forgotten it: after a restart, at
    /// another proxy, or too late.
    fn announce_that_nothing_is_remembered(&self, name: &str) {
        if self.router.shared.notices != NoticePolicy::Off {
            let text = format!("nothing is remembered under the name {name}: live events follow");
            let status = Status::new("session", text);
            self.outbound.send_frame(&status_frame(&status), Instant::now());
        }
    }

    /// The client has received everything up to this position.
    fn confirm(&self, position: Position) {
        if let Some(name) = &self.name {
            self.router.shared.names().confirm(&self.key, name, self.session, position);
        }
    }

    /// Where a subscription begins that says `start`.
    fn start_of(&self, start: Start) -> Start {
        match (start, self.came_from) {
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

    /// Takes over a change that the router has applied. What the session held before begins with
    /// entry `end` of the history.
    fn applied(&mut self, change: Applied, end: u64) {
        let Applied { subscribe, channels, start, held_before } = change;
        if !subscribe {
            match &mut self.place {
                Place::Live | Place::Ending(_) => {}
                Place::Starting(starting) => {
                    starting.parts.iter_mut().for_each(|(_, part)| part.remove(&channels));
                }
                Place::Replaying(replay) => replay.remove(&channels),
            }
            return;
        }
        let named = self.came_from.is_some();
        let collects = if named { COLLECTING } else { Duration::ZERO };
        match (&mut self.place, start) {
            (Place::Live | Place::Ending(_), Start::Live) => {}
            (Place::Live | Place::Ending(_), start) => {
                let mut starting = Starting::new(named, collects);
                starting.add(Begin::Asked(start), channels);
                starting.add(Begin::At(end), held_before.iter().cloned());
                self.place = Place::Starting(Box::new(starting));
            }
            (Place::Starting(starting), start) => {
                let begin = match start {
                    Start::Live => Begin::At(end),
                    start => Begin::Asked(start),
                };
                starting.add(begin, channels);
                starting.collects_until = starting.collects_until.max(Instant::now() + collects);
                starting.has_turn &= start == Start::Live || named;
            }
            (Place::Replaying(replay), Start::Live) => replay.add_next(channels),
            (Place::Replaying(replay), start) => {
                let mut starting = Starting::new(named, collects);
                starting.add(Begin::Asked(start), channels);
                for (at, channels) in replay.parts() {
                    starting.add(Begin::At(at), channels.iter().cloned());
                }
                self.place = Place::Starting(Box::new(starting));
            }
        }
    }

    /// Replays what the router has set aside for this session, if it has.
    fn look_aside(&mut self) {
        let at = self.router.shared.set_aside().remove(&self.session);
        if let (Some(at), Place::Live) = (at, &self.place) {
            let mut starting = Starting::new(false, Duration::ZERO);
            starting.add(Begin::At(at), self.held.iter().cloned());
            // The client has not asked for it.
            starting.has_turn = true;
            self.place = Place::Starting(Box::new(starting));
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
        let history = &self.router.shared.history;
        let mut found = Vec::new();
        for (begin, channels) in &starting.parts {
            let lookup = match begin {
                Begin::At(at) => Lookup::At(*at),
                Begin::Asked(start) => find(history, *start),
            };
            let (at, gone) = match lookup {
                Lookup::At(at) => (at, None),
                Lookup::Gone(at, why) => (at, Some(why)),
                Lookup::Ahead => {
                    let current = *state.borrow() == HistoryState::Current;
                    let since = starting.ahead_since.get_or_insert_with(Instant::now);
                    if !current {
                        starting.ahead_since = None;
                    } else if since.elapsed() >= MAX_AHEAD {
                        let at = match begin {
                            Begin::Asked(Start::From(position, _))
                                if position.epoch == history.head().epoch =>
                            {
                                history.end()
                            }
                            _ => history.newest(usize::MAX),
                        };
                        found.push((at, Some(Gone::OtherEpoch), begin, channels));
                        continue;
                    }
                    sleep(LOOK_AGAIN).await;
                    return Ok(());
                }
            };
            found.push((at, gone, begin, channels));
        }
        let first = found.iter().map(|(at, ..)| *at).min().unwrap_or_default();
        // What was dropped since the look-up is lost as well.
        let (first, position, time) = history.place(first);
        let coverage = self.router.shared.coverage.borrow().clone();
        let now = Instant::now().into_std();
        let mut replay = Replay::new(self.router.shared.market, first, position, coverage, now);
        replay.add(found.iter().map(|(at, _, _, channels)| (*at, (*channels).clone())));
        let mut notices = Vec::new();
        for (at, gone, begin, _) in found {
            let start = match begin {
                Begin::Asked(start) => *start,
                Begin::At(_) => continue,
            };
            if let Some(why) = gone {
                let after = start.position();
                let (_, position, _) = history.place(at);
                let why = match (why, after) {
                    (Gone::TooOld(Some(_)), Some(after)) => {
                        Gone::TooOld(Some(position.seq.saturating_sub(after.seq)))
                    }
                    (why, _) => why,
                };
                notices.push(Notice::gone(TierName::Filtered, why, after, position));
            } else if let Start::From(behind, skip) = start
                && at == first
            {
                replay.skip(skip, behind);
            }
        }
        notices.dedup_by_key(|notice| notice.frame());
        if starting.is_asked_for() {
            let may_repeat = starting.may_repeat;
            notices.push(Notice::resumed(TierName::Filtered, position, time, may_repeat));
        }
        self.came_from = None;
        self.place = Place::Replaying(Box::new(replay));
        if let Some(name) = &self.name {
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
            let Place::Replaying(replay) = &mut self.place else { return Ok(()) };
            replay.step(&shared.history, |output| shared.send(&self.outbound, &output));
            let (position, next) = (replay.position(), replay.next());
            if !replay.is_skipping() {
                self.mark(position, next);
            }
        }
        yield_now().await;
        let Place::Replaying(replay) = &self.place else { return Ok(()) };
        if shared.history.end() - replay.next() > NEAR {
            return Ok(());
        }
        // The client may have come from a proxy that was a little faster.
        let is_ahead = replay.is_skipping() && replay.next() == shared.history.end();
        if is_ahead || *shared.history_state.borrow() == HistoryState::Filling {
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
    fn mark(&mut self, position: Position, next: u64) {
        let now = Instant::now();
        if self.name.is_some() {
            self.outbound.send_ping_in_order(position.to_string().as_bytes(), now);
        }
        let interval = self.options.as_ref().and_then(|options| options.positions);
        if let Some(interval) = interval
            && now >= self.next_status
        {
            self.next_status = now + interval;
            let (_, _, time) = self.router.shared.history.place(next);
            self.notify(&Notice::position(TierName::Filtered, position, time));
        }
    }
}

/// A change that the router has applied.
struct Applied {
    subscribe: bool,
    channels: Vec<Channel>,
    start: Start,
    held_before: ChannelSet,
}

/// The entry with which a subscription begins. The times of entries that came from the firehose's
/// history are too early by less than a step.
fn find(history: &History, start: Start) -> Lookup {
    match start {
        Start::Since(time) => history.since(time.saturating_sub(TIME_STEP)),
        start => history.find_start(start),
    }
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
            let held_before = self.held.clone();
            if subscribe {
                self.held.add(channels.iter().cloned());
            } else {
                self.held.remove(&channels);
            }
            if subscribe
                && held_before.is_empty()
                && start == Start::Live
                && let Some(name) = &self.name
            {
                changed.head.into_iter().for_each(|head| self.confirm(head));
                self.announce_that_nothing_is_remembered(name);
            }
            let channels = channels.into_iter().collect();
            self.applied(Applied { subscribe, channels, start, held_before }, changed.end);
        }
        Ok(changed.outcome)
    }

    async fn pull(&mut self) -> Result<(), CloseReason> {
        self.look_aside();
        match &self.place {
            Place::Live => future::pending().await,
            Place::Starting(_) => self.begin().await,
            Place::Replaying(_) => self.replay().await,
            Place::Ending(_) => {
                self.await_router().await;
                Ok(())
            }
        }
    }

    fn on_pong(&mut self, payload: &[u8]) {
        let position = str::from_utf8(payload).ok().and_then(|text| text.parse().ok());
        // A client may send any pong. What it has not been sent yet would be lost for it.
        if let Some(position) = position
            && position <= self.router.shared.history.head()
        {
            self.confirm(position);
        }
    }
}

impl Drop for RouterSubscriber {
    fn drop(&mut self) {
        let shared = &self.router.shared;
        if let Some(name) = &self.name {
            let now = Instant::now().into_std();
            shared.names().leave(&self.key, name, self.session, now);
        }
        shared.closed().push(self.session);
        shared.some_closed.notify_one();
    }
}
