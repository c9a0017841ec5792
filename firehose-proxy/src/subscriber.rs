//! A session's place at the firehose: what it holds, and its cursor in the ring.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use proxy_common::{
    link::Outage,
    metrics::{LossReason, SessionMetrics},
    protocol::{
        channel::Channel,
        channel_set::ChannelSet,
        coverage::{Shortfall, news},
        notice::{Notice, Notices},
    },
    session::{Change, Seat, close::CloseReason, outbound::Outbound},
    websocket::frame::Frame,
};
use tokio::{sync::watch, time::Instant};

use crate::{
    FirehoseTier, TIER,
    demand::Aggregate,
    entitlements::{Offer, Refusals},
    outage_notices::Told,
    ring::{Content, FanoutHandle, Next, Published, Reader},
};

/// Most messages fetched before they are written, and most bytes, but for one message more: what a session holds outside the ring.
const BATCH: usize = 64;
const MAX_BATCH_BYTES: usize = 8 << 20;

/// A session's place. It reads the ring while it holds anything.
#[derive(Debug)]
pub struct FirehoseSeat {
    outbound: Arc<Outbound>,
    fanout: FanoutHandle,
    /// The outage that lasts.
    down: watch::Receiver<Option<Outage>>,
    aggregate: Arc<Aggregate>,
    offer: Arc<Offer>,
    notices: Notices,
    /// The refusals that this session knows of.
    refused: Arc<Refusals>,
    metrics: Arc<SessionMetrics>,
    held: ChannelSet,
    reader: Option<Reader>,
    told: Told,
    batch: Vec<(Frame, u32)>,
    batch_bytes: usize,
    max_batch_bytes: usize,
}

impl FirehoseSeat {
    pub(crate) fn new(tier: &FirehoseTier, outbound: &Arc<Outbound>) -> Self {
        Self {
            outbound: Arc::clone(outbound),
            fanout: tier.fanout.clone(),
            down: tier.down.clone(),
            aggregate: Arc::clone(&tier.aggregate),
            offer: Arc::clone(&tier.offer),
            notices: tier.notices,
            refused: tier.offer.refused(),
            metrics: Arc::clone(&tier.sessions),
            held: ChannelSet::default(),
            reader: None,
            told: Told::default(),
            batch: Vec::new(),
            batch_bytes: 0,
            // One batch must not be what makes a session slow that was not behind.
            max_batch_bytes: MAX_BATCH_BYTES.min(tier.queue_bytes / 2),
        }
    }

    /// Puts the cursor into the ring: before the upstream is asked, so that nothing is missed in between.
    fn begin(&mut self) {
        if self.reader.is_none() {
            self.reader = Some(self.fanout.reader());
            self.refused = self.offer.refused();
            self.told = Told::default();
        }
    }

    fn subscribe(&mut self, channels: BTreeSet<Channel>) {
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
            Next::Message(message) => self.stow_message(message),
            Next::Gap { frames, events, then } => {
                self.metrics.lost(LossReason::RingOverrun, events);
                self.put_notice(Some(Notice::gap(TIER, frames, Some(events))));
                // Signs may be among what is lost.
                self.stow_offer();
                let lost = || Outage::now("told by a frame that was lost");
                let lasting = || self.down.borrow().clone().unwrap_or_else(lost);
                let amid = then.is_amid_outage().then(lasting);
                let (complete, place) = (then.last_complete(), then.place());
                let told = self.told.catch_up(amid, complete, place, SystemTime::now());
                self.put_notice(told);
                self.stow_message(then);
            }
        }
    }

    fn stow_message(&mut self, message: Published) {
        let place = message.place();
        match message.content {
            Content::Data => self.put(message.frame, message.events),
            Content::Notice if self.notices.reach(&self.held) => self.put(message.frame, 0),
            Content::Notice => {}
            Content::Down(outage) => {
                let told = self.told.down(outage, place);
                self.put_notice(Some(told));
            }
            Content::Complete(since) => {
                let told = self.told.up(since, place);
                self.put_notice(told);
            }
            Content::OfferChanged => self.stow_offer(),
        }
    }

    /// Why not everything comes at this moment, if so.
    fn missing(&self) -> Option<Outage> {
        let subscribing = || (!self.aggregate.is_settled()).then(|| Outage::now("subscribing"));
        self.down.borrow().clone().or_else(subscribing)
    }

    fn put_notice(&mut self, notice: Option<Notice>) {
        if let Some(notice) = notice
            && self.notices.reach(&self.held)
        {
            self.put(notice.frame(), 0);
        }
    }

    /// Tells what is refused of the subscriptions held, unless it was told before, and to filtered proxies the whole.
    fn stow_offer(&mut self) {
        let refused = self.offer.refused();
        if Arc::ptr_eq(&refused, &self.refused) {
            return;
        }
        let known = std::mem::replace(&mut self.refused, refused);
        let told = self.lacking(self.held.iter(), Some(&known));
        for frame in told {
            self.put(frame, 0);
        }
        if self.held.contains(&Channel::All) {
            self.put(self.offer.frame(), 0);
        }
    }

    fn put(&mut self, frame: Frame, events: u32) {
        self.batch_bytes += frame.bytes().len();
        self.batch.push((frame, events));
    }

    /// The frames about these channels as far as they are refused, and were not `before`.
    fn lacking<'a>(
        &self,
        channels: impl IntoIterator<Item = &'a Channel>,
        before: Option<&Refusals>,
    ) -> Vec<Frame> {
        if self.refused.is_empty() {
            return Vec::new();
        }
        let now = |channel: &Channel| self.offer.shortfall(channel, &self.refused);
        news(channels, now, |channel| self.offer.shortfall(channel, before?))
    }
}

impl Seat for FirehoseSeat {
    async fn change(&mut self, change: Change) -> Result<(), CloseReason> {
        let mut replies = change.reply;
        match (change.subscribe, change.channels.is_empty()) {
            (_, true) => {}
            (true, false) => {
                self.begin();
                // What was refused since the session was asked about it.
                replies.extend(self.lacking(&change.channels, None));
                let all = change.channels.contains(&Channel::All);
                self.subscribe(change.channels);
                if all {
                    replies.push(self.offer.frame());
                }
            }
            (false, false) => self.unsubscribe(&change.channels),
        }
        // Who subscribes while something is missing is told, as those were who were there when it began.
        if change.subscribe
            && let Some(end) = self.reader.as_ref().map(Reader::end)
            && let Some(outage) = self.missing()
        {
            let notice = self.told.down(outage, end);
            replies.extend(self.notices.reach(&self.held).then(|| notice.frame()));
        }
        self.outbound.send_frames(replies.iter().map(|frame| (frame, 0)), Instant::now());
        Ok(())
    }

    fn held(&self) -> &ChannelSet {
        &self.held
    }

    fn shortfall(&self, channel: &Channel) -> Option<Shortfall> {
        self.offer.shortfall(channel, &self.offer.refused())
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
            && self.batch_bytes < self.max_batch_bytes
            && let Some(next) = self.reader.as_mut().and_then(Reader::try_next)
        {
            self.stow(next);
        }
        let frames = self.batch.iter().map(|(frame, events)| (frame, *events));
        self.outbound.send_frames(frames, Instant::now());
        self.batch.clear();
        self.batch_bytes = 0;
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
