//! A session's place at the firehose: what it holds, and its cursor in the ring.

use std::{collections::BTreeSet, sync::Arc};

use proxy_common::{
    channel::Channel,
    channel_set::ChannelSet,
    close::CloseReason,
    frame::Frame,
    metrics::{LossReason, SessionMetrics},
    notice::Notice,
    outbound::Outbound,
    session::{Change, Seat},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    TIER,
    aggregate::Aggregate,
    fanout::{FanoutHandle, Next, Reader},
};

/// Most messages fetched before they are written: what a session holds outside the ring.
const BATCH: usize = 64;

/// A session's place. It reads the ring while it holds anything.
#[derive(Debug)]
pub struct FirehoseSeat {
    outbound: Arc<Outbound>,
    fanout: FanoutHandle,
    /// The notice of the outage that lasts.
    down: watch::Receiver<Option<Frame>>,
    aggregate: Arc<Aggregate>,
    metrics: Arc<SessionMetrics>,
    held: ChannelSet,
    reader: Option<Reader>,
    batch: Vec<(Frame, u32)>,
}

impl FirehoseSeat {
    pub(crate) fn new(
        outbound: Arc<Outbound>,
        fanout: FanoutHandle,
        down: watch::Receiver<Option<Frame>>,
        aggregate: Arc<Aggregate>,
        metrics: Arc<SessionMetrics>,
    ) -> Self {
        let held = ChannelSet::default();
        Self { outbound, fanout, down, aggregate, metrics, held, reader: None, batch: Vec::new() }
    }

    fn subscribe(&mut self, channels: BTreeSet<Channel>) {
        // The cursor stands before the upstream is asked, so that nothing is missed in between.
        self.reader.get_or_insert_with(|| self.fanout.reader());
        self.metrics.subscriptions.inc_by(channels.len() as i64);
        self.aggregate.add(&channels);
        self.held.add(channels);
    }

    fn unsubscribe(&mut self, channels: &BTreeSet<Channel>) {
        self.metrics.subscriptions.dec_by(channels.len() as i64);
        self.aggregate.remove(channels, Instant::now());
        self.held.remove(channels);
        if self.held.is_empty() {
            self.leave_ring();
        }
    }

    /// What it has not read by now, it will not get.
    fn leave_ring(&mut self) {
        let unread = self.reader.take().map_or(0, Reader::leave);
        self.metrics.queue_events.dec_by(unread as i64);
        self.metrics.lost(LossReason::SessionClosed, unread);
    }

    fn stow(&mut self, next: Next) {
        match next {
            Next::Message(message) => self.batch.push((message.frame, message.events)),
            Next::Gap { frames, events, then } => {
                self.metrics.lost(LossReason::RingOverrun, events);
                self.batch.push((Notice::gap(TIER, frames, Some(events)).frame(), 0));
                self.batch.push((then.frame, then.events));
            }
        }
    }
}

impl Seat for FirehoseSeat {
    async fn change(&mut self, change: Change) -> Result<(), CloseReason> {
        match (change.subscribe, change.channels.is_empty()) {
            (_, true) => {}
            (true, false) => self.subscribe(change.channels),
            (false, false) => self.unsubscribe(&change.channels),
        }
        // Who subscribes while something is missing is told, as those were who were there when it began.
        let down = change.subscribe.then(|| self.down.borrow().clone()).flatten();
        let frames = change.reply.iter().chain(&down);
        self.outbound.send_frames(frames.map(|frame| (frame, 0)), Instant::now());
        Ok(())
    }

    fn held(&self) -> &ChannelSet {
        &self.held
    }

    async fn pull(&mut self) -> Result<(), CloseReason> {
        let Some(reader) = &mut self.reader else { return std::future::pending().await };
        let seen = reader.seen();
        let Some(next) = reader.next().await else {
            // The pump ends only when the program stops; the session is told by its own signal.
            return std::future::pending().await;
        };
        self.stow(next);
        while self.batch.len() < BATCH
            && let Some(next) = self.reader.as_mut().and_then(Reader::try_next)
        {
            self.stow(next);
        }
        let frames = self.batch.iter().map(|(frame, events)| (frame, *events));
        self.outbound.send_frames(frames, Instant::now());
        self.batch.clear();
        let now_seen = self.reader.as_ref().map_or(seen, Reader::seen);
        self.metrics.queue_events.dec_by((now_seen - seen) as i64);
        Ok(())
    }
}

impl Drop for FirehoseSeat {
    fn drop(&mut self) {
        self.leave_ring();
        self.metrics.subscriptions.dec_by(self.held.len() as i64);
        self.aggregate.remove(self.held.iter(), Instant::now());
    }
}
