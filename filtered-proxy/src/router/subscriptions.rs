//! What sessions ask of the router: to join, to change what they hold, and to end a replay.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use proxy_common::{
    protocol::{
        Channel, ChannelSet, Notice, NoticePolicy, Start, Status, TierName, newly_unavailable,
        status_frame, status_frames,
    },
    session::{ChangeOutcome, SubscriptionChange},
    websocket::Frame,
};
use tokio::time::Instant;

use super::{
    handle::{Changed, Follow, Input},
    state::{Router, Waiting},
};
use crate::{
    feed::HistoryState,
    index::{Index, SessionId},
    replay::{Part, Replay},
};

/// Most steps of a replay that the router does itself, between two batches.
const LAST_STEPS: usize = 16;

impl Router {
    pub(super) fn apply(&mut self, input: Input) {
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

    pub(super) fn change(
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
            // A replay sends the outages itself, once it can begin.
            let sends_them = replays && self.feed.history_state() == HistoryState::Current;
            let notified = subscribe && holds && wants_notices && !sends_them;
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
    pub(super) fn held(&self, session: SessionId) -> usize {
        let waiting = self.waiting.get(&session).map_or(0, |waiting| waiting.channels.len());
        self.index.held(session) + waiting
    }

    /// Adds or removes channels of a session. Those added are routed at once, unless older messages
    /// have yet to come, which are not for them. Returns how many it holds now; `None` if there is
    /// no such session.
    pub(super) fn hold(
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
            // Channels that wait already may have come in an outage before this moment.
            if is_behind || !waiting.replays {
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

    /// Routes nothing to a session from now on: it gets by itself what it holds, and these
    /// channels.
    pub(super) fn begin_replay(&mut self, session: SessionId, asked: &BTreeSet<Channel>) {
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
        let set_aside = self.shared.take_set_aside(session);
        if !set_aside.is_empty() {
            replay.add(set_aside);
        }
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
        let late = self.waiting.get(&session).map(|waiting| waiting.channels.iter());
        let mut frames = newly_unavailable(
            channels.iter().chain(late.into_iter().flatten()),
            |channel| coverage.unavailable(channel),
            |channel| replay.coverage().unavailable(channel),
        );
        if self.notices != NoticePolicy::Off {
            let live = Notice::live(TierName::Filtered, replay.position(), SystemTime::now());
            frames.push(live.frame());
            let outages = self.shared.outages.borrow();
            if outages.go_on() && self.held(session) == 0 {
                // It has the beginning from the history.
                self.awaiting_end.insert(session);
            }
            frames.extend(outages.frames().filter(|_| !channels.is_empty()).cloned());
        }
        outbound.send_frames(frames.iter().map(|frame| (frame, 0)), Instant::now());
        None
    }

    /// Routes to a session what it holds, except for what has yet to begin. Returns these channels.
    pub(super) fn route_again(&mut self, session: SessionId) -> ChannelSet {
        let Waiting { mut channels, late, .. } = self.waiting.remove(&session).unwrap_or_default();
        if !late.is_empty() {
            channels.remove(late.iter());
            let waiting = Waiting { channels: late.clone(), late, replays: false };
            self.waiting.insert(session, waiting);
        }
        self.index.change(session, channels.iter().cloned(), true);
        channels
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
    pub(super) fn remove_closed(&mut self) {
        let closed = std::mem::take(&mut *self.shared.closed());
        for _ in 0..self.inputs.len() {
            if let Ok(input) = self.inputs.try_recv() {
                self.apply(input);
            }
        }
        closed.into_iter().for_each(|session| self.remove(session));
        self.count_subscriptions();
    }

    pub(super) fn remove(&mut self, session: SessionId) {
        self.index.leave(session);
        self.contracts.leave(session);
        self.awaiting_end.remove(&session);
        self.waiting.remove(&session);
        self.shared.take_set_aside(session);
        self.followers.remove(session);
    }

    /// Whether a session gets everything that it holds as it comes.
    fn is_live(&self, session: SessionId) -> bool {
        !self.feed.is_filling() && is_routed(&self.index, &self.waiting, session)
    }

    pub(super) fn count_subscriptions(&self) {
        let waiting: usize = self.waiting.values().map(|waiting| waiting.channels.len()).sum();
        self.sessions.subscriptions.set((self.index.subscriptions() + waiting) as i64);
    }
}

/// Whether a session holds something, and all of it is in the index.
pub(super) fn is_routed<M>(
    index: &Index<M>,
    waiting: &BTreeMap<SessionId, Waiting>,
    session: SessionId,
) -> bool {
    index.held(session) > 0 && !waiting.contains_key(&session)
}
