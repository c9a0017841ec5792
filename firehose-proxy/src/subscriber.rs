//! A session's side of the firehose: the channels it holds, and its cursor in the ring.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use proxy_common::{
    protocol::{
        Channel, ChannelSet, ExtraKinds, Notice, NoticePolicy, Outage, TierName, Unavailable,
        newly_unavailable,
    },
    session::{
        ChangeOutcome, CloseReason, LossReason, Outbound, SessionMetrics, Subscriber,
        SubscriptionChange, Tier,
    },
    websocket::Frame,
};
use tokio::{sync::watch, time::Instant};

use crate::{
    demand::UpstreamDemand,
    entitlements::{Entitlements, Refusals},
    outage_notices::OutageNotices,
    ring::{Content, Next, Published, Reader, Readers},
};

/// Most messages that a session takes out of the ring before it writes them.
const BATCH: usize = 64;
/// The same in bytes. The last message may exceed it.
const MAX_BATCH_BYTES: usize = 8 << 20;

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
}

impl Tier for Shared {
    type Subscriber = FirehoseSubscriber;

    async fn admit(&self, outbound: &Arc<Outbound>) -> FirehoseSubscriber {
        FirehoseSubscriber {
            outbound: Arc::clone(outbound),
            shared: self.clone(),
            refused: self.entitlements.refused(),
            held: ChannelSet::default(),
            reader: None,
            outages: OutageNotices::default(),
            batch: Vec::new(),
            batch_bytes: 0,
        }
    }
}

/// One session's side of the firehose. It reads the ring while it holds any channel.
#[derive(Debug)]
pub struct FirehoseSubscriber {
    outbound: Arc<Outbound>,
    shared: Shared,
    /// The refusals that this session knows of.
    refused: Arc<Refusals>,
    held: ChannelSet,
    reader: Option<Reader>,
    outages: OutageNotices,
    batch: Vec<(Frame, u32)>,
    batch_bytes: usize,
}

impl FirehoseSubscriber {
    /// Adds channels, unless the vendor's refusals have changed since the decision.
    fn subscribe(&mut self, channels: BTreeSet<Channel>, version: u64) -> ChangeOutcome {
        // Take the cursor first: before the upstream is asked, so that no event is missed, and
        // before the refusals are read, so that no change of them is missed.
        let enters = self.reader.is_none();
        if enters {
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
        self.shared.metrics.subscriptions.inc_by(channels.len() as i64);
        self.shared.demand.add(&channels);
        self.held.add(channels);
        ChangeOutcome::Applied
    }

    fn unsubscribe(&mut self, channels: &BTreeSet<Channel>) {
        self.shared.metrics.subscriptions.dec_by(channels.len() as i64);
        self.shared.demand.remove(channels, Instant::now());
        self.held.remove(channels);
        if self.held.is_empty() {
            self.leave_ring();
        }
    }

    /// Gives up the cursor. Events that it has not read are lost for this session.
    fn leave_ring(&mut self) {
        let unread = self.reader.take().map_or(0, Reader::leave);
        self.shared.metrics.lost(LossReason::SessionClosed, unread);
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
        (self.shared.notices == NoticePolicy::Everyone).then(|| notice.frame())
    }

    /// The notice for a session that subscribes while events may be missing; `None` at other times.
    fn outage_notice(&mut self) -> Option<Frame> {
        let end = self.reader.as_ref()?.end();
        let subscribing =
            || (!self.shared.demand.all_answered()).then(|| Outage::now("subscribing"));
        let outage = self.shared.outage.borrow().clone().or_else(subscribing)?;
        let notice = self.outages.down(outage, end);
        self.shared.notices.includes(&self.held).then(|| notice.frame())
    }

    fn enqueue_next(&mut self, next: Next) {
        match next {
            Next::Message(message) => self.enqueue_message(message),
            Next::Gap { frames, events, then } => {
                self.shared.metrics.lost(LossReason::RingOverrun, events);
                let notice = Notice::gap(TierName::Firehose, frames, Some(events));
                self.enqueue_notice(Some(&notice));
                // Control messages may be among the lost ones.
                self.enqueue_entitlements();
                let outage = then.is_in_outage().then(|| {
                    let lasting = self.shared.outage.borrow().clone();
                    lasting.unwrap_or_else(|| Outage::now("announced in a frame that was lost"))
                });
                let (complete, position) = (then.last_complete(), then.position());
                let notice = self.outages.catch_up(outage, complete, position, SystemTime::now());
                self.enqueue_notice(notice.as_ref());
                self.enqueue_message(then);
            }
        }
    }

    fn enqueue_message(&mut self, message: Published) {
        let position = message.position();
        match message.content {
            Content::Data => self.enqueue(message.frame, message.events),
            Content::Notice if self.shared.notices.includes(&self.held) => {
                self.enqueue(message.frame, 0);
            }
            Content::Notice => {}
            Content::Down(outage) => {
                let notice = self.outages.down(outage, position);
                self.enqueue_notice(Some(&notice));
            }
            Content::Complete(since) => {
                let notice = self.outages.up(since, position);
                self.enqueue_notice(notice.as_ref());
            }
            Content::EntitlementsChanged => self.enqueue_entitlements(),
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

    fn unavailable(&self, channel: &Channel) -> Option<Unavailable> {
        let entitlements = &self.shared.entitlements;
        entitlements.unavailable(channel, &entitlements.refused())
    }

    async fn change(&mut self, change: SubscriptionChange) -> Result<ChangeOutcome, CloseReason> {
        let SubscriptionChange { subscribe, channels, mut reply, coverage_version } = change;
        if !channels.is_empty() {
            if subscribe {
                let all = channels.contains(&Channel::All);
                let outcome = self.subscribe(channels, coverage_version);
                if outcome != ChangeOutcome::Applied {
                    return Ok(outcome);
                }
                reply.extend(all.then(|| self.shared.entitlements.coverage_frame()));
            } else {
                self.unsubscribe(&channels);
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

    async fn pull(&mut self) -> Result<(), CloseReason> {
        let Some(reader) = &mut self.reader else {
            self.await_outage_end().await;
            return Ok(());
        };
        let Some(next) = reader.next().await else {
            // The publisher ends only with the program. Every session sees that stop by itself.
            return std::future::pending().await;
        };
        self.enqueue_next(next);
        // One batch must not make a session slow that has kept up.
        let max_bytes = MAX_BATCH_BYTES.min(self.shared.queue_bytes / 2);
        while self.batch.len() < BATCH
            && self.batch_bytes < max_bytes
            && let Some(next) = self.reader.as_mut().and_then(Reader::try_next)
        {
            self.enqueue_next(next);
        }
        let frames = self.batch.iter().map(|(frame, events)| (frame, *events));
        self.outbound.send_frames(frames, Instant::now());
        self.batch.clear();
        self.batch_bytes = 0;
        if let Some(reader) = &mut self.reader {
            reader.report();
        }
        Ok(())
    }
}

impl Drop for FirehoseSubscriber {
    fn drop(&mut self) {
        self.leave_ring();
        self.shared.metrics.subscriptions.dec_by(self.held.len() as i64);
        self.shared.demand.remove(self.held.iter(), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proxy_common::{
        link::SubscriptionOutcome,
        metrics::Level,
        protocol::{Feed, Kind, Market},
        session::SlowLimits,
        transport::Socket,
    };
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::ring::Ring;

    #[tokio::test]
    async fn a_subscription_decided_by_older_refusals_changes_and_answers_nothing() {
        let trades = Channel::Kind(Kind::T);
        let all = BTreeSet::from([trades.clone()]);
        let mut ring = Ring::new(8, 8_000, Level::default());
        let feed = Feed::new(Market::Stocks, "localhost");
        let (demand, _wanted) = UpstreamDemand::new(feed, all.clone(), Duration::ZERO);
        let shared = Shared {
            ring: ring.readers(),
            outage: watch::Sender::new(None).subscribe(),
            demand: Arc::new(demand),
            entitlements: Arc::new(Entitlements::new(feed, all)),
            notices: NoticePolicy::Everyone,
            metrics: Arc::default(),
            queue_bytes: 1_000_000,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let limits = SlowLimits { queue_bytes: 1_000_000, max_lag: Duration::from_secs(1) };
        let outbound = Outbound::new(Socket::from(socket), limits, Arc::clone(&shared.metrics));
        let mut subscriber = shared.admit(&Arc::new(outbound)).await;
        let change = |version| SubscriptionChange {
            subscribe: true,
            channels: BTreeSet::from([trades.clone()]),
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
        assert_eq!(ring.publish(Frame::new(b"[{}]"), 1).readers, 0, "its cursor is gone");
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
