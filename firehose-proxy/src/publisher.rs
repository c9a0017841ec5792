//! The publisher: moves the link's events into the ring. It never waits for a session, so the link
//! reads as fast as the upstream sends.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use proxy_common::{
    health::IntakeMetrics,
    link::LinkEvent,
    program::service_manager::Heartbeat,
    protocol::{MAX_MESSAGE_BYTES, Notice, Outage, TierName},
    session::LossReason,
    websocket::Frame,
};
use serde_json::value::RawValue;
use tokio::{sync::watch, task::coop::consume_budget, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    epochs::{EpochRequest, EpochRequests},
    links::Links,
    oversized::{Fitting, split_oversized},
    record::Recorder,
    ring::{Content, Ring},
    silence::monitor::Sampler,
    subscriber::Shared,
};

/// Writes into the ring, and counts the events that go in.
#[derive(Debug)]
pub(crate) struct Publisher {
    pub(crate) ring: Ring,
    pub(crate) sampler: Sampler,
    pub(crate) shared: Shared,
    /// The current outage, for sessions that subscribe during it.
    pub(crate) outage: watch::Sender<Option<Outage>>,
    pub(crate) intake: IntakeMetrics,
    /// How many frames may still be recounted in this second.
    pub(crate) recounts: Arc<AtomicU32>,
    /// Records frames, if that is set.
    pub(crate) recorder: Option<Recorder>,
    /// Who may ask for a new epoch, if anybody may.
    pub(crate) epochs: Option<EpochRequests>,
}

impl Publisher {
    /// Publishes until `stop`, then closes the links.
    pub(crate) async fn run(
        mut self,
        mut links: Links,
        stop: CancellationToken,
        mut heartbeat: Heartbeat,
    ) {
        let publishing = async {
            loop {
                let awaits_epochs = self.epochs.is_some();
                tokio::select! {
                    biased; // In a flood an event is always there.
                    () = heartbeat.beat(), if heartbeat.is_on() => {}
                    request = next_epoch(&mut self.epochs), if awaits_epochs => {
                        let epoch = self.ring.begin_anew(request.epoch);
                        request.answer(epoch);
                    }
                    (connection, event) = links.next() => {
                        self.publish(connection, event, &links);
                    }
                }
                // One read can hold thousands of frames.
                consume_budget().await;
            }
        };
        let _: Option<()> = stop.run_until_cancelled(publishing).await;
        links.close().await;
        if let Some(recorder) = self.recorder {
            recorder.close().await;
        }
    }

    fn publish(&mut self, connection: usize, event: LinkEvent, links: &Links) {
        match event {
            LinkEvent::Frame { frame, events, read_at, .. } => {
                if let Some(recorder) = &self.recorder {
                    recorder.frame(&frame);
                }
                let sampled = self.sampler.frame(frame.text());
                if frame.text().len() > MAX_MESSAGE_BYTES {
                    self.publish_oversized(frame.text(), read_at);
                } else {
                    let events = self.recount(frame.text()).unwrap_or(events);
                    let events = u32::try_from(events).unwrap_or(u32::MAX);
                    self.publish_events(frame, events, read_at);
                }
                if sampled {
                    self.intake.forward_latency.observe(read_at.elapsed());
                }
            }
            LinkEvent::Notice(frame, _) => self.ring.forward(frame),
            LinkEvent::Malformed { events } => {
                self.shared.metrics.lost(LossReason::Malformed, events);
                self.ring.notify(Notice::malformed(TierName::Firehose));
            }
            LinkEvent::Down(_) => {
                self.shared.demand.on_down(connection, self.ring.after_next());
                self.publish_outage(links);
            }
            LinkEvent::AllAnswered if self.shared.demand.all_answered() => {}
            LinkEvent::Up(_) | LinkEvent::AllAnswered => {
                let Some(answered) = links.answered() else {
                    return self.publish_outage(links);
                };
                self.shared.demand.on_up();
                // If sessions want more by now, `AllAnswered` follows once more.
                self.shared.demand.set_answered(&answered, || {
                    let outage = self.outage.send_replace(None);
                    self.ring.complete(outage);
                });
            }
            LinkEvent::Subscriptions(outcomes) => {
                let demand = &self.shared.demand;
                let news = demand.on_outcomes(connection, &outcomes, self.ring.after_next());
                if !news.is_empty() {
                    self.ring.control(Content::Contracts(news.into()));
                }
                if self.shared.entitlements.update(&outcomes) {
                    self.ring.control(Content::EntitlementsChanged);
                }
            }
            // Only another firehose sends these, to a link that asks for `*`. This link never does.
            LinkEvent::Coverage(_) | LinkEvent::Contract { .. } | LinkEvent::Mark(_) => {}
        }
    }

    /// Publishes that the market has an outage, or that its reason has changed.
    fn publish_outage(&mut self, links: &Links) {
        let outage = links.outage();
        if *self.outage.borrow() != outage {
            self.outage.send_replace(outage.clone());
            if let Some(outage) = outage {
                self.ring.down(outage);
            }
        }
    }

    /// Counts the events of a frame again, if it is one of the first of this second. A JSON parser
    /// must find as many as the link.
    fn recount(&self, text: &[u8]) -> Option<u64> {
        if self.recounts.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.recounts.fetch_sub(1, Ordering::Relaxed);
        let elements: Vec<&RawValue> = serde_json::from_slice(text).ok()?;
        Some(elements.len() as u64)
    }

    /// Publishes one frame of events, and counts them as the ring counts them.
    fn publish_events(&mut self, frame: Frame, events: u32, read_at: Instant) {
        let receipt = self.ring.publish(frame, events, read_at);
        self.intake.routed.inc_by(receipt.events);
        if receipt.readers == 0 {
            self.intake.not_subscribed.inc_by(receipt.events);
        }
        self.shared.metrics.events_owed.inc_by(receipt.events * receipt.readers);
    }

    /// Publishes a frame that is longer than a message to clients may be, in parts. Such frames are
    /// rare enough to be followed byte by byte.
    fn publish_oversized(&mut self, text: &[u8], read_at: Instant) {
        let Fitting { arrays, oversize } = split_oversized(text);
        for (array, events) in arrays {
            self.publish_events(array, events, read_at);
        }
        if oversize > 0 {
            warn!(oversize, "dropped events that are too long for a message");
            self.intake.routed.inc_by(oversize);
            self.shared.metrics.lost(LossReason::Oversize, oversize);
            self.ring.notify(Notice::oversize(TierName::Firehose, oversize));
        }
    }
}

/// The next request for a new epoch; never if nobody asks any more.
async fn next_epoch(requests: &mut Option<EpochRequests>) -> EpochRequest {
    if let Some(receiver) = requests {
        if let Some(request) = receiver.recv().await {
            return request;
        }
        *requests = None;
    }
    std::future::pending().await
}
