//! A session's side of the firehose: the channels it holds, and its cursor in the ring.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use proxy_common::{
    protocol::{
        Channel, ChannelSet, ExtraKinds, Gone, Notice, NoticePolicy, OnBehalfOf, Outage, Position,
        Start, Status, TierName, Unavailable, newly_unavailable, status_frames,
    },
    session::{
        ChangeOutcome, ClientInfo, CloseReason, LossReason, Outbound, SessionMetrics, Subscriber,
        SubscriptionChange, Tier,
    },
    websocket::Frame,
};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::{
    contracts::{Standing, View},
    demand::UpstreamDemand,
    entitlements::{Entitlements, Refusals},
    outage_notices::OutageNotices,
    replay::{Cursor, Replay},
    ring::{Content, Next, Published, Reader, Readers},
};

/// Most messages that a session takes out of the ring before it writes them.
const BATCH: usize = 64;
/// The same in bytes. The last message may exceed it.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// How often a session that asked for old messages hears where the feed stands.
const MARK_INTERVAL: Duration = Duration::from_secs(1);

/// Most contracts that a session may hold on behalf of other keys, if `MAX_SUBSCRIPTIONS` is less.
const MAX_CONTRACTS_FOR_OTHERS: usize = 50_000;

/// The parts of the firehose that all sessions share.
#[derive(Debug, Clone)]
pub struct Shared {
    pub(crate) ring: Readers,
    /// The current outage.
    pub(crate) outage: watch::Receiver<Option<Outage>>,
    pub(crate) demand: Arc<UpstreamDemand>,
    pub(crate) entitlements: Arc<Entitlements>,
    pub(crate) notices: NoticePolicy,
    pub(crate) metrics: Arc<SessionMetrics>,
    /// Most bytes queued for a session.
    pub(crate) queue_bytes: usize,
    /// Most contracts of a session, counted for each key on whose behalf it asks.
    pub(crate) max_contracts: usize,
    pub(crate) next_session: Arc<AtomicU64>,
    /// One permit for each replay that may work at a time.
    pub(crate) replays: Arc<Semaphore>,
}

impl Tier for Shared {
    type Subscriber = FirehoseSubscriber;

    async fn admit(
        &self,
        outbound: &Arc<Outbound>,
        _: &ClientInfo,
        key: Arc<str>,
    ) -> FirehoseSubscriber {
        FirehoseSubscriber {
            session: self.next_session.fetch_add(1, Ordering::Relaxed),
            key,
            contracts: BTreeMap::new(),
            claims: 0,
            standings: self.demand.contracts_version(),
            outbound: Arc::clone(outbound),
            shared: self.clone(),
            refused: self.entitlements.refused(),
            held: ChannelSet::default(),
            reader: None,
            replay: None,
            next_mark: None,
            outages: OutageNotices::default(),
            batch: Vec::new(),
            batch_bytes: 0,
            batch_read_at: None,
        }
    }
}

/// One session's side of the firehose. While it holds any channel, it reads the ring, or the
/// history until it has caught up.
#[derive(Debug)]
pub struct FirehoseSubscriber {
    session: u64,
    /// The label of the session's key.
    key: Arc<str>,
    /// The contracts among the channels held.
    contracts: BTreeMap<Channel, HeldContract>,
    /// How many contracts are held, counted for each key.
    claims: usize,
    /// Changes when contracts lose their room, or get it during an outage.
    standings: watch::Receiver<u64>,
    outbound: Arc<Outbound>,
    shared: Shared,
    /// The refusals that this session knows of.
    refused: Arc<Refusals>,
    held: ChannelSet,
    /// Its cursor in the ring, while it gets live data.
    reader: Option<Reader>,
    /// What it gets of the history before.
    replay: Option<Replay>,
    /// When to say next where the feed stands. Set once it has asked for old messages.
    next_mark: Option<Instant>,
    outages: OutageNotices,
    batch: Vec<(Frame, u32)>,
    batch_bytes: usize,
    /// When the first data of the batch was read from upstream.
    batch_read_at: Option<Instant>,
}

/// A contract that a session holds.
#[derive(Debug, Default)]
pub(crate) struct HeldContract {
    /// The labels of the keys on whose behalf.
    keys: BTreeSet<Arc<str>>,
    last_answer: LastAnswer,
}

/// The last answer for a contract.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum LastAnswer {
    #[default]
    Nothing,
    /// With the number of the admission.
    Subscribed(u64),
    Waiting,
    Refused,
}

impl HeldContract {
    /// Answers again, whatever the last answer was.
    #[cfg(feature = "nats")]
    pub(crate) fn forget_answer(&mut self) {
        self.last_answer = LastAnswer::Nothing;
    }

    /// Whether another answer may come without a sign.
    #[cfg(feature = "nats")]
    pub(crate) fn waits(&self) -> bool {
        matches!(self.last_answer, LastAnswer::Nothing | LastAnswer::Waiting)
    }

    /// The answer to a session that has read this much of the ring, if it differs from the last.
    pub(crate) fn changed_answer(
        &mut self,
        contract: &Channel,
        view: &View<'_>,
        read: u64,
    ) -> Option<Status> {
        let (last_answer, status) = match view.standing {
            Standing::Granted if view.granted_at <= read => {
                (LastAnswer::Subscribed(view.admission), Status::subscribed(&contract.to_string()))
            }
            // No answer yet. If it has lost its room since the last one, and got it back already,
            // the session must learn that events are missing.
            Standing::Asked | Standing::Granted => match self.last_answer {
                LastAnswer::Subscribed(admission) if admission != view.admission => {
                    (LastAnswer::Waiting, Status::waiting(contract, 1, view.room))
                }
                _ => return None,
            },
            Standing::Waiting { place, room } => {
                (LastAnswer::Waiting, Status::waiting(contract, *place, *room))
            }
            Standing::Refused(why) => {
                let item = contract.to_string();
                (LastAnswer::Refused, Unavailable::refused(contract, why).status(&item).about(item))
            }
        };
        (std::mem::replace(&mut self.last_answer, last_answer) != last_answer).then_some(status)
    }
}

impl FirehoseSubscriber {
    /// Adds channels, unless the vendor's refusals have changed since the decision.
    fn subscribe(
        &mut self,
        channels: BTreeSet<Channel>,
        version: u64,
        start: Start,
    ) -> ChangeOutcome {
        // Take the cursor first: before the upstream is asked, so that no event is missed, and
        // before the refusals are read, so that no change of them is missed.
        let enters = self.reader.is_none() && self.replay.is_none();
        if enters && start == Start::Live {
            self.reader = Some(self.shared.ring.reader());
        }
        let refused = self.shared.entitlements.refused();
        if refused.version != version {
            if enters {
                self.leave_ring();
            }
            return ChangeOutcome::CoverageChanged;
        }
        if enters {
            self.refused = refused;
            self.outages = OutageNotices::default();
        }
        let demand = &self.shared.demand;
        demand.add(channels.iter().filter(|channel| !demand.is_on_demand(channel)));
        self.hold(|held| held.add(channels));
        if start != Start::Live {
            let cursor = match (self.replay.take(), self.reader.take()) {
                (Some(replay), _) => Some(replay.cursor()),
                (None, reader) => reader.map(|reader| Cursor {
                    next: reader.next_entry(),
                    position: reader.feed_position().0,
                    unread: Some(reader.leave()),
                    gaps: Vec::new(),
                }),
            };
            let replay = Replay::new(&self.shared.ring, start, self.shared.queue_bytes, cursor);
            self.replay = Some(replay);
            self.next_mark = Some(Instant::now());
        }
        ChangeOutcome::Applied
    }

    /// Changes the channels held, and counts them.
    fn hold(&mut self, change: impl FnOnce(&mut ChannelSet)) {
        let before = self.held.len() as i64;
        change(&mut self.held);
        self.shared.metrics.subscriptions.inc_by(self.held.len() as i64 - before);
    }

    /// Asks for contracts, and returns the answers that are known.
    fn add_contracts(
        &mut self,
        contracts: BTreeSet<Channel>,
        clients: &OnBehalfOf,
        for_others: bool,
    ) -> Vec<Status> {
        let key = &clients.key;
        let limit = match for_others {
            // A filtered proxy asks for all its clients, and limits each of them itself.
            true => self.shared.max_contracts.max(MAX_CONTRACTS_FOR_OTHERS),
            false => self.shared.max_contracts,
        };
        let room = limit.saturating_sub(self.claims);
        let mut statuses = Vec::new();
        // What has changed before must not be lost by the answers to this command.
        if self.standings.has_changed().unwrap_or(false) {
            self.standings.borrow_and_update();
            statuses = self.changed_answers(None);
        }
        let (mut asked, mut added) = (BTreeSet::new(), 0);
        for contract in contracts {
            let held = self.contracts.get(&contract);
            let is_new = held.is_none_or(|held| !held.keys.contains(key));
            if is_new && added >= room {
                let item = contract.to_string();
                let full =
                    format!("subscription limit of {limit} reached: {item:?} not subscribed");
                statuses.push(Status::error(full).about(item));
                continue;
            }
            let held = self.contracts.entry(contract.clone()).or_default();
            // A repeated subscription is answered as well. A filtered proxy that repeats one which
            // is served has the answer, and only says how many clients hold it now.
            if !for_others || is_new || !matches!(held.last_answer, LastAnswer::Subscribed(_)) {
                held.last_answer = LastAnswer::Nothing;
            }
            added += usize::from(held.keys.insert(Arc::clone(key)));
            asked.insert(contract);
        }
        self.claims += added;
        self.hold(|held| held.add(asked.iter().cloned()));
        self.shared.demand.add_contracts(self.session, clients, &asked, Instant::now());
        statuses.extend(self.changed_answers(Some(&mut asked.iter())));
        statuses
    }

    fn remove_contracts(&mut self, contracts: &BTreeSet<Channel>, key: &Arc<str>) {
        let mut left = Vec::new();
        for contract in contracts {
            let Some(held) = self.contracts.get_mut(contract) else { continue };
            self.claims -= usize::from(held.keys.remove(key));
            if held.keys.is_empty() {
                self.contracts.remove(contract);
                left.push(contract.clone());
            }
        }
        self.shared.demand.remove_contracts(self.session, key, contracts, Instant::now());
        self.hold(|held| held.remove(&left));
    }

    /// The answers that differ from the last ones, for these contracts or for all, if any has
    /// changed.
    fn changed_answers(
        &mut self,
        among: Option<&mut dyn Iterator<Item = &Channel>>,
    ) -> Vec<Status> {
        let read = self.reader.as_ref().map_or(0, Reader::read);
        let mut statuses = Vec::new();
        self.shared.demand.contracts(|contracts| {
            let mut tell = |contract: &Channel, held: &mut HeldContract| {
                let view = contracts.view(contract);
                statuses.extend(view.and_then(|view| held.changed_answer(contract, &view, read)));
            };
            match among {
                None => self.contracts.iter_mut().for_each(|(contract, held)| tell(contract, held)),
                Some(among) => among.for_each(|contract| {
                    if let Some(held) = self.contracts.get_mut(contract) {
                        tell(contract, held);
                    }
                }),
            }
        });
        statuses
    }

    /// Queues the answers for contracts that have lost their room, or got it during an outage.
    fn enqueue_changed_answers(&mut self) {
        self.standings.borrow_and_update();
        if !self.contracts.is_empty() {
            let statuses = self.changed_answers(None);
            self.enqueue_statuses(&statuses);
        }
    }

    fn enqueue_statuses(&mut self, statuses: &[Status]) {
        for frame in status_frames(statuses) {
            self.enqueue(frame, 0);
        }
    }

    fn unsubscribe(&mut self, channels: &BTreeSet<Channel>, key: &Arc<str>) {
        let on_demand = |channel: &&Channel| self.shared.demand.is_on_demand(channel);
        let contracts: BTreeSet<Channel> = channels.iter().filter(on_demand).cloned().collect();
        let others: Vec<Channel> =
            channels.iter().filter(|channel| !on_demand(channel)).cloned().collect();
        if !contracts.is_empty() {
            self.remove_contracts(&contracts, key);
        }
        self.shared.demand.remove(&others, Instant::now());
        self.hold(|held| held.remove(&others));
        if self.held.is_empty() {
            self.leave_ring();
        }
    }

    /// Gives up the cursor. Events that it has not read are lost for this session.
    fn leave_ring(&mut self) {
        let replays = self.replay.take().and_then(|replay| replay.unread);
        for mut unread in self.reader.take().map(Reader::leave).into_iter().chain(replays) {
            self.shared.metrics.lost(LossReason::SessionClosed, unread.take(u64::MAX));
        }
    }

    /// Waits for the end of an outage that a session without subscriptions has been told of, and
    /// tells it.
    async fn await_outage_end(&mut self) {
        if !self.outages.is_open() || self.shared.outage.wait_for(Option::is_none).await.is_err() {
            // The publisher ends only with the program. Every session sees that stop by itself.
            return std::future::pending().await;
        }
        if let Some(frame) = self.outage_end() {
            self.outbound.send_frames([(&frame, 0)], Instant::now());
        }
    }

    /// The notice that an outage has ended, for a session without subscriptions that was told of
    /// it.
    fn outage_end(&mut self) -> Option<Frame> {
        let notice = self.outages.end(SystemTime::now())?;
        let notice = notice.at(Some(self.shared.ring.feed_position()));
        let gets = self.held.is_empty() && self.shared.notices == NoticePolicy::Everyone;
        (gets || self.shared.notices.includes(&self.held)).then(|| notice.frame())
    }

    /// The notice for a session that subscribes while events may be missing; `None` at other times.
    fn outage_notice(&mut self) -> Option<Frame> {
        if self.reader.is_none() && self.replay.is_none() {
            return None;
        }
        let end = self.shared.ring.end();
        let outage = self.current_outage()?;
        let notice = self.outages.down(outage, end).at(Some(self.shared.ring.feed_position()));
        self.shared.notices.includes(&self.held).then(|| notice.frame())
    }

    fn current_outage(&self) -> Option<Outage> {
        let subscribing =
            || (!self.shared.demand.all_answered()).then(|| Outage::now("subscribing"));
        self.shared.outage.borrow().clone().or_else(subscribing)
    }

    /// Queues what a session has yet to learn of outages that began or ended while it replayed.
    fn enqueue_outage(&mut self) {
        let frame = match (self.outages.is_open(), self.current_outage().is_some()) {
            (true, false) => self.outage_end(),
            (false, true) => self.outage_notice(),
            (true, true) | (false, false) => None,
        };
        if let Some(frame) = frame {
            self.enqueue(frame, 0);
        }
    }

    fn enqueue_next(&mut self, next: Next) {
        // Before any data that the upstream sent after a contract had lost its room.
        if self.standings.has_changed().unwrap_or(false) {
            self.enqueue_changed_answers();
        }
        match next {
            Next::Message(message) => self.enqueue_message(message),
            Next::Gap { frames, events, after, then } => {
                self.shared.metrics.lost(LossReason::RingOverrun, events);
                let notice = Notice::gap(TierName::Firehose, frames, Some(events));
                let position = then.feed_position();
                self.enqueue_notice(Some(&notice.at(Some(position))));
                if after.epoch != position.epoch {
                    let (tier, why) = (TierName::Firehose, Gone::OtherEpoch);
                    let notice = Notice::gone(tier, why, Some(after), position);
                    self.enqueue_notice(Some(&notice));
                }
                // Control messages may be among the lost ones.
                self.enqueue_entitlements();
                self.enqueue_changed_answers();
                let outage = then.is_in_outage().then(|| {
                    let lasting = self.shared.outage.borrow().clone();
                    lasting.unwrap_or_else(|| Outage::now("announced in a frame that was lost"))
                });
                let (complete, position) = (then.last_complete(), then.position());
                let feed = Some(then.feed_position());
                let notice = self.outages.catch_up(outage, complete, position, SystemTime::now());
                self.enqueue_notice(notice.map(|notice| notice.at(feed)).as_ref());
                self.enqueue_message(then);
            }
        }
    }

    fn enqueue_message(&mut self, message: Published) {
        let (position, feed) = (message.position(), Some(message.feed_position()));
        match message.content {
            Content::Data => {
                self.batch_read_at.get_or_insert(message.read_at);
                self.enqueue(message.frame, message.events);
            }
            Content::Notice | Content::Epoch(_) if self.shared.notices.includes(&self.held) => {
                self.enqueue(message.frame, 0);
            }
            Content::Notice | Content::Epoch(_) => {}
            Content::Down(outage) => {
                let notice = self.outages.down(outage, position).at(feed);
                self.enqueue_notice(Some(&notice));
                // Contracts with room count as granted from here on.
                self.enqueue_changed_answers();
            }
            Content::Complete(since) => {
                let notice = self.outages.up(since, position).map(|notice| notice.at(feed));
                self.enqueue_notice(notice.as_ref());
            }
            Content::EntitlementsChanged => self.enqueue_entitlements(),
            // In order with the data: an answer comes before the events that it enables.
            Content::Contracts(answered) if !self.contracts.is_empty() => {
                let statuses = self.changed_answers(Some(&mut answered.iter()));
                self.enqueue_statuses(&statuses);
            }
            Content::Contracts(_) => {}
        }
    }

    fn enqueue_notice(&mut self, notice: Option<&Notice>) {
        if let Some(notice) = notice
            && self.shared.notices.includes(&self.held)
        {
            self.enqueue(notice.frame(), 0);
        }
    }

    /// Reports to the client which of its channels the vendor has newly refused. A client that
    /// holds `*`, such as a filtered proxy, also gets the coverage.
    fn enqueue_entitlements(&mut self) {
        let entitlements = Arc::clone(&self.shared.entitlements);
        let refused = entitlements.refused();
        if Arc::ptr_eq(&refused, &self.refused) {
            return;
        }
        let known = std::mem::replace(&mut self.refused, Arc::clone(&refused));
        let now = |channel: &Channel| entitlements.unavailable(channel, &refused);
        let before = |channel: &Channel| entitlements.unavailable(channel, &known);
        for frame in newly_unavailable(self.held.iter(), now, before) {
            self.enqueue(frame, 0);
        }
        if self.held.contains(&Channel::All) {
            self.enqueue(entitlements.coverage_frame(), 0);
        }
    }

    /// Says where the feed stands behind what is queued, if that is due.
    fn enqueue_mark(&mut self) {
        let now = Instant::now();
        if let Some(due) = &mut self.next_mark
            && now >= *due
            && let Some(reader) = &self.reader
        {
            *due = now + MARK_INTERVAL;
            let (position, time) = reader.feed_position();
            let mark = Notice::position(TierName::Firehose, position, time);
            self.enqueue_notice(Some(&mark));
        }
    }

    /// Queues the next part of the history. At its end, goes on with the ring.
    fn enqueue_replay(&mut self) {
        let Some(replay) = &mut self.replay else { return };
        let (history, notices) =
            (self.shared.ring.history(), self.shared.notices.includes(&self.held));
        let mut frames = Vec::new();
        let at_end = replay.read(history, None, notices, &mut frames);
        let mut reader = None;
        if at_end {
            // The ring gives the messages from this moment on, the history those before.
            let taken = self.shared.ring.reader();
            while !replay.read(history, Some(taken.next_entry()), notices, &mut frames) {}
            reader = Some(taken);
        }
        let mut unread = replay.unread.take();
        for (frame, events) in frames {
            let events_again = unread.as_mut().map_or(0, |unread| unread.take(events.into()));
            self.shared.metrics.events_owed.inc_by(u64::from(events) - events_again);
            self.enqueue(frame, events);
        }
        if let Some(replay) = &mut self.replay {
            replay.unread = unread;
        }
        if let Some(reader) = reader {
            let (position, _) = reader.feed_position();
            self.leave_ring();
            self.reader = Some(reader);
            let live = Notice::live(TierName::Firehose, position, SystemTime::now());
            self.enqueue_notice(Some(&live));
            // What has changed meanwhile.
            self.enqueue_entitlements();
            self.enqueue_changed_answers();
            self.enqueue_outage();
        }
    }

    fn send_batch(&mut self) {
        let frames = self.batch.iter().map(|(frame, events)| (frame, *events));
        let now = Instant::now();
        self.outbound.send_data(frames, now, self.batch_read_at.take().unwrap_or(now));
        self.batch.clear();
        self.batch_bytes = 0;
        if let Some(reader) = &mut self.reader {
            reader.report();
        }
    }

    fn enqueue(&mut self, frame: Frame, events: u32) {
        self.batch_bytes += frame.bytes().len();
        self.batch.push((frame, events));
    }
}

impl Subscriber for FirehoseSubscriber {
    fn held(&self) -> &ChannelSet {
        &self.held
    }

    fn coverage_version(&self) -> u64 {
        self.shared.entitlements.refused().version
    }

    fn extra_kinds(&self) -> ExtraKinds {
        ExtraKinds::These(self.shared.entitlements.kinds().clone())
    }

    fn is_on_demand(&self, channel: &Channel) -> bool {
        self.shared.demand.is_on_demand(channel)
    }

    fn unavailable(&self, channel: &Channel) -> Option<Unavailable> {
        let entitlements = &self.shared.entitlements;
        entitlements.unavailable(channel, &entitlements.refused())
    }

    async fn change(&mut self, change: SubscriptionChange) -> Result<ChangeOutcome, CloseReason> {
        let SubscriptionChange {
            subscribe,
            channels,
            start,
            on_behalf_of,
            mut reply,
            coverage_version,
            ..
        } = change;
        let for_others = on_behalf_of.is_some();
        let clients =
            on_behalf_of.unwrap_or_else(|| OnBehalfOf { key: Arc::clone(&self.key), clients: 1 });
        if !channels.is_empty() {
            if subscribe {
                let all = channels.contains(&Channel::All);
                let demand = &self.shared.demand;
                let (contracts, channels): (BTreeSet<_>, BTreeSet<_>) =
                    channels.into_iter().partition(|channel| demand.is_on_demand(channel));
                let outcome = self.subscribe(channels, coverage_version, start);
                if outcome != ChangeOutcome::Applied {
                    return Ok(outcome);
                }
                reply.extend(all.then(|| self.shared.entitlements.coverage_frame()));
                if !contracts.is_empty() {
                    reply.extend(status_frames(
                        &self.add_contracts(contracts, &clients, for_others),
                    ));
                }
            } else {
                self.unsubscribe(&channels, &clients.key);
                // Whoever holds nothing waits for no answer of the upstream.
                if self.held.is_empty() && self.shared.outage.borrow().is_none() {
                    reply.extend(self.outage_end());
                }
            }
        }
        if subscribe {
            reply.extend(self.outage_notice());
        }
        self.outbound.send_frames(reply.iter().map(|frame| (frame, 0)), Instant::now());
        Ok(ChangeOutcome::Applied)
    }

    async fn leave(&mut self) -> Option<Position> {
        let live = self.reader.as_ref().map(|reader| reader.feed_position().0);
        let position = live.or_else(|| self.replay.as_ref().map(Replay::position));
        self.leave_ring();
        position
    }

    async fn pull(&mut self) -> Result<(), CloseReason> {
        if self.replay.is_some() {
            let replays = Arc::clone(&self.shared.replays);
            let _turn = replays.acquire().await;
            self.enqueue_replay();
            self.send_batch();
            tokio::task::yield_now().await;
            return Ok(());
        }
        let Some(reader) = &mut self.reader else {
            self.await_outage_end().await;
            return Ok(());
        };
        let next = tokio::select! {
            // Answers do not wait for data.
            _ = self.standings.changed(), if !self.contracts.is_empty() => None,
            next = reader.next() => match next {
                Some(next) => Some(next),
                // The publisher ends only with the program. Every session sees that stop by itself.
                None => return std::future::pending().await,
            },
        };
        match next {
            Some(next) => self.enqueue_next(next),
            None => self.enqueue_changed_answers(),
        }
        // One batch must not make a session slow that has kept up.
        let max_bytes = MAX_BATCH_BYTES.min(self.shared.queue_bytes / 2);
        while self.batch.len() < BATCH
            && self.batch_bytes < max_bytes
            && let Some(next) = self.reader.as_mut().and_then(Reader::try_next)
        {
            self.enqueue_next(next);
        }
        self.enqueue_mark();
        self.send_batch();
        Ok(())
    }
}

impl Drop for FirehoseSubscriber {
    fn drop(&mut self) {
        self.leave_ring();
        self.shared.metrics.subscriptions.dec_by(self.held.len() as i64);
        let (demand, now) = (&self.shared.demand, Instant::now());
        demand.remove(self.held.iter().filter(|channel| !demand.is_on_demand(channel)), now);
        let mut by_key = BTreeMap::<&Arc<str>, Vec<&Channel>>::new();
        for (contract, held) in &self.contracts {
            for key in &held.keys {
                by_key.entry(key).or_default().push(contract);
            }
        }
        for (key, contracts) in by_key {
            demand.remove_contracts(self.session, key, contracts, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proxy_common::{
        history::History,
        link::SubscriptionOutcome,
        metrics::Level,
        protocol::{Feed, Kind, Market},
        session::SlowLimits,
        transport::Socket,
    };
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::{
        contracts::Contracts,
        ring::Ring,
        sources::{Source, Sources},
    };

    #[tokio::test]
    async fn a_subscription_decided_by_older_refusals_changes_and_answers_nothing() {
        let trades = Channel::Kind(Kind::T);
        let all = BTreeSet::from([trades.clone()]);
        let mut ring = Ring::new(8, 8_000, Level::default(), History::new(0));
        let feed = Feed::new(Market::Stocks, "localhost");
        let sources = Arc::new(Sources::new(vec![Source { feed, kinds: BTreeSet::new() }], 1));
        let (demand, _wanted) = UpstreamDemand::new(
            Arc::clone(&sources),
            all.clone(),
            Duration::ZERO,
            Contracts::new([], 0, Duration::ZERO),
        );
        let shared = Shared {
            ring: ring.readers(),
            outage: watch::Sender::new(None).subscribe(),
            demand: Arc::new(demand),
            entitlements: Arc::new(Entitlements::new(sources, all, BTreeSet::new(), 0)),
            notices: NoticePolicy::Everyone,
            metrics: Arc::default(),
            queue_bytes: 1_000_000,
            max_contracts: 10,
            next_session: Arc::default(),
            replays: Arc::new(Semaphore::new(1)),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let info = ClientInfo::new(client.local_addr().unwrap(), Market::Stocks);
        let limits = SlowLimits { queue_bytes: 1_000_000, max_lag: Duration::from_secs(1) };
        let outbound = Outbound::new(Socket::from(socket), limits, Arc::clone(&shared.metrics));
        let mut subscriber = shared.admit(&Arc::new(outbound), &info, "key".into()).await;
        let change = |version| SubscriptionChange {
            subscribe: true,
            channels: BTreeSet::from([trades.clone()]),
            on_behalf_of: None,
            start: Start::Live,
            snapshot: false,
            reply: vec![Frame::new(b"[]")],
            coverage_version: version,
        };

        let decided_by = subscriber.coverage_version();
        assert_eq!(subscriber.unavailable(&trades), None);
        let refused = SubscriptionOutcome::Refused(trades.clone(), "not authorized".to_owned());
        assert!(shared.entitlements.update(&[refused]));
        let outcome = subscriber.change(change(decided_by)).await.unwrap();
        assert_eq!(outcome, ChangeOutcome::CoverageChanged);
        assert!(subscriber.held().is_empty() && shared.demand.wanted().is_empty());
        let receipt = ring.publish(Frame::new(b"[{}]"), 1, Instant::now());
        assert_eq!(receipt.readers, 0, "its cursor is gone");
        assert!(client.try_read(&mut [0]).is_err(), "nothing is sent");

        assert!(subscriber.unavailable(&trades).is_some(), "decided again");
        let carried = SubscriptionOutcome::Carried(trades.clone());
        assert!(shared.entitlements.update(&[carried]));
        let version = subscriber.coverage_version();
        let outcome = subscriber.change(change(version)).await.unwrap();
        assert_eq!(outcome, ChangeOutcome::Applied);
        assert!(subscriber.held().contains(&trades));
        client.readable().await.unwrap();
    }
}
