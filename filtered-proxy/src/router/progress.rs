//! How far the feed has come: the router's part in marks, the ends of outages, old messages and the
//! positions that sessions get.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use bytes::Bytes;
use proxy_common::{
    protocol::{ChannelSet, Notice, NoticePolicy, PositionMark, TierName},
    session::Outbound,
    websocket::Frame,
};
use tokio::time::Instant;

use super::{state::Router, subscriptions::is_routed};
use crate::{feed::CaughtUp, followers::Mark, index::SessionId, replay::Part};

/// Most bytes of frames that the router takes at once while they are messages that were missed.
const OLD_BATCH_BYTES: usize = 1 << 20;
/// How many bytes may wait for a session before it gets the rest of these messages by itself.
const OLD_QUEUE_BYTES: usize = 1 << 20;

impl Router {
    pub(super) fn on_mark(&mut self, mark: PositionMark) {
        self.deliver();
        let came = self.received.of(Instant::now());
        let caught_up = self.feed.on_mark(mark, came);
        self.publish_history_state();
        if let Some(CaughtUp { missed_nothing }) = caught_up {
            self.on_caught_up(missed_nothing);
        }
    }

    /// The firehose has not said where the feed begins: it is older than this proxy.
    pub(super) fn expect_no_marks(&mut self) {
        self.feed.on_no_marks();
        self.publish_history_state();
        self.on_caught_up(false);
    }

    /// When the firehose is not expected any more to say where the feed begins.
    pub(super) fn marks_due(&self) -> Option<Instant> {
        self.outage_end.start_due().filter(|_| self.feed.is_waiting())
    }

    /// Everything has come that was missed. Ends the outage, and routes the channels that sessions
    /// subscribed to during it.
    pub(super) fn on_caught_up(&mut self, missed_nothing: bool) {
        let outage = self.outage_end.on_caught_up(missed_nothing, Instant::now());
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
        if outage.is_some() {
            self.end_outage_if_answered();
        }
    }

    /// Begins channels of a session that waited. The session gets the notice before their events.
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

    /// Ends an outage once the firehose has answered for all contracts.
    pub(super) fn end_outage_if_answered(&mut self) {
        if !self.contracts.awaits_answers() {
            self.end_outage();
        }
    }

    /// Notifies the clients that everything arrives again, if only answers were missing.
    pub(super) fn end_outage(&mut self) {
        let Some((outage, missed_nothing)) = self.outage_end.end() else { return };
        self.refuse_unanswered();
        self.contracts.on_up();
        let now = SystemTime::now();
        let notice = match missed_nothing {
            true => Notice::upstream_resumed(TierName::Filtered, &outage, now),
            false => Notice::upstream_up(TierName::Filtered, &outage, now),
        };
        let frame = self.notice(notice);
        match self.feed.was_down() {
            true => _ = self.notify(&frame),
            false => self.announce(&frame),
        }
        self.shared.outages.send_modify(|o| o.ours = None);
        self.notify_awaiting(&frame);
        let firehoses = self.shared.outages.borrow().firehoses.clone();
        if let Some((frame, _)) = firehoses {
            self.announce(&frame);
            self.notify_awaiting(&frame);
        }
    }

    pub(super) fn publish_history_state(&self) {
        let state = self.feed.history_state();
        self.shared
            .history_state
            .send_if_modified(|known| std::mem::replace(known, state) != state);
    }

    /// Takes a frame from before this program began. Its events are counted, and may be the last of
    /// their symbols.
    pub(super) fn take_old(&mut self, frame: Bytes, received: std::time::Instant) {
        let found = self.batch.add(frame, received, self.market, &self.nobody);
        let tally = self.batch.deliver(&self.nobody, |_, _| {});
        self.batch.kinds.take(|_, _| {});
        self.account(found);
        self.intake.not_subscribed.inc_by(tally.not_subscribed);
    }

    /// Most bytes of the next batch.
    pub(super) fn batch_limit(&self) -> usize {
        match self.feed.is_catching_up() {
            true => OLD_BATCH_BYTES.min(self.batch_bytes),
            false => self.batch_bytes,
        }
    }

    /// Lets sessions that have much to read get the rest by themselves: messages that were missed
    /// come as fast as the firehose can send them, which must make no client slow.
    pub(super) fn let_lagging_replay(&mut self) {
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
    pub(super) fn mark_followers(&mut self, now: Instant) {
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
            is_routed(index, waiting, session).then(|| outbound.sent_bytes())
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
}
