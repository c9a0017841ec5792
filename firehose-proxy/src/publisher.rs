//! The publisher: moves what the link yields into the ring. It never waits for a session, so
//! upstream is read as fast as it sends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::SystemTime,
};

use proxy_common::{
    health::IntakeMetrics,
    link::{Link, LinkEvent},
    protocol::{
        Fitting, MAX_MESSAGE_BYTES, Notice, Outage, TierName, parse_count, split_oversized,
    },
    session::LossReason,
    websocket::Frame,
};
use tokio::sync::watch;
use tracing::warn;

use crate::{
    ring::{Content, Ring},
    silence::monitor::Sampler,
    subscriber::Feed,
};

/// The writing side of the ring, and the counts of what goes in.
#[derive(Debug)]
pub(crate) struct Publisher {
    pub(crate) ring: Ring,
    pub(crate) sampler: Sampler,
    pub(crate) feed: Feed,
    /// The outage that lasts, for sessions that subscribe meanwhile.
    pub(crate) outage: watch::Sender<Option<Outage>>,
    pub(crate) intake: IntakeMetrics,
    /// How many frames may still be recounted in this second.
    pub(crate) recounts: Arc<AtomicU32>,
}

impl Publisher {
    /// Publishes until dropped.
    pub(crate) async fn run(mut self, mut link: Link) {
        loop {
            let event = link.next().await;
            self.publish(event);
        }
    }

    fn publish(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Frame { frame, events } => {
                self.sampler.frame(frame.text());
                if frame.text().len() > MAX_MESSAGE_BYTES {
                    self.publish_oversized(frame.text(), events);
                } else {
                    let events = self.recounted(frame.text()).unwrap_or(events);
                    self.publish_events(frame, u32::try_from(events).unwrap_or(u32::MAX));
                }
            }
            LinkEvent::Notice(frame, _) => self.ring.notify(frame),
            LinkEvent::Malformed => self.notify(&Notice::malformed(TierName::Firehose)),
            LinkEvent::Down(outage) => {
                self.outage.send_replace(Some(outage.clone()));
                self.ring.control(Content::Down(outage));
            }
            LinkEvent::Up(_) | LinkEvent::AllAnswered => {
                self.outage.send_replace(None);
                self.feed.demand.set_all_answered();
                self.ring.control(Content::Complete(SystemTime::now()));
            }
            LinkEvent::Subscriptions(outcomes) => {
                if self.feed.entitlements.update(&outcomes) {
                    self.ring.control(Content::EntitlementsChanged);
                }
            }
            // Another firehose says so of its `*`, which a firehose never asks for.
            LinkEvent::Coverage(_) => {}
        }
    }

    /// Counts the events of a frame again, if it is one of the first of this second: the link's count
    /// must hold against a JSON parser.
    fn recounted(&self, text: &[u8]) -> Option<u64> {
        if self.recounts.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.recounts.fetch_sub(1, Ordering::Relaxed);
        parse_count(text)
    }

    /// Publishes one frame of events, counted where the ring takes it.
    fn publish_events(&mut self, frame: Frame, events: u32) {
        let taken = self.ring.publish(frame, events);
        self.intake.routed.inc_by(taken.events);
        if taken.readers == 0 {
            self.intake.unwanted.inc_by(taken.events);
        }
        self.feed.metrics.events_owed.inc_by(taken.events * taken.readers);
    }

    /// Publishes a frame that is longer than a message to clients may be: rare enough to be parsed.
    /// `received` is how many events the link counted in it.
    fn publish_oversized(&mut self, text: &[u8], received: u64) {
        match split_oversized(text) {
            Ok(Fitting { arrays, oversize }) => {
                for (array, events) in arrays {
                    self.publish_events(array, events);
                }
                if oversize > 0 {
                    warn!(oversize, "events longer than a message may be dropped");
                    self.intake.routed.inc_by(oversize);
                    self.feed.metrics.lost(LossReason::Oversize, oversize);
                    self.notify(&Notice::oversize(TierName::Firehose, oversize));
                }
            }
            Err(_) => {
                warn!(bytes = text.len(), "malformed frame dropped");
                self.feed.metrics.lost(LossReason::Malformed, received);
                self.notify(&Notice::malformed(TierName::Firehose));
            }
        }
    }

    fn notify(&mut self, notice: &Notice) {
        self.ring.notify(notice.frame());
    }
}
