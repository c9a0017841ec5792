//! What the router does with what comes from the link: it finds and writes each session's events,
//! and passes on notices and coverage between them.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use proxy_common::{
    link::{Link, LinkEvent},
    metrics::count_and_sample,
    program::service_manager::Heartbeat,
    protocol::{
        ChannelSet, Coverage, ExtraKinds, Notice, NoticePolicy, Status, TierName, command_text,
        newly_unavailable,
    },
    session::LossReason,
    websocket::Frame,
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{handle::Outages, outage_end::OutageEnd, state::Router};
use crate::{
    batch::Found, contracts::Request, feed::Use, index::SessionId, last_values::LastValues,
};

/// Latencies are measured of batches that were read at least this far apart.
const MEASURING_INTERVAL: Duration = Duration::from_millis(1);

/// How often sessions learn where the feed stands if nothing comes.
const MARKING: Duration = Duration::from_millis(50);

/// How often the firehose may be sent how many clients hold a contract.
const RECOUNT: Duration = Duration::from_secs(1);

impl Router {
    /// Routes until `stop`, or until no handle is left. Then closes the link.
    pub async fn run(mut self, mut link: Link, stop: CancellationToken, heartbeat: Heartbeat) {
        stop.run_until_cancelled(self.route_all(&mut link, heartbeat)).await;
        // Sessions that ask for something now must not wait until the link is closed.
        drop(self);
        link.close().await;
    }

    async fn route_all(&mut self, link: &mut Link, mut heartbeat: Heartbeat) {
        let mut events = Vec::new();
        let mut recount = interval(RECOUNT);
        recount.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut marking = interval(MARKING);
        marking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let starting =
            link.outage().map(|outage| Notice::upstream_down(TierName::Filtered, outage));
        self.shared.outages.send_modify(|o| o.ours = starting.map(|notice| notice.frame()));
        loop {
            let (bytes, marks_due) = (self.batch_limit(), self.marks_due());
            // Unbiased: neither changes nor data may keep the other waiting.
            tokio::select! {
                () = self.shared.some_closed.notified() => self.remove_closed(),
                input = self.inputs.recv() => match input {
                    Some(input) => self.apply(input),
                    None => return,
                },
                () = link.next_batch(&mut events, bytes) => {
                    for event in events.drain(..) {
                        self.route(event);
                    }
                    self.tell_answers();
                    self.deliver();
                    self.mark_followers(Instant::now());
                    if self.feed.is_catching_up() {
                        self.let_lagging_replay();
                    }
                }
                _ = marking.tick(), if !self.followers.is_empty() => {
                    self.mark_followers(Instant::now());
                }
                _ = recount.tick(), if self.contracts.has_recounts() => {
                    self.contracts.request_recounts();
                }
                () = due(self.outage_end.answers_due()) => self.end_outage(),
                () = due(marks_due) => self.on_caught_up(false),
                () = heartbeat.beat(), if heartbeat.is_on() => {}
            }
            self.end_outage_if_answered();
            for Request { subscribe, on_behalf_of, contracts } in self.contracts.take_requests() {
                let action = if subscribe { "subscribe" } else { "unsubscribe" };
                let items: Vec<String> = contracts.iter().map(ToString::to_string).collect();
                link.send(&command_text(action, &items.join(","), Some(&on_behalf_of)));
            }
        }
    }

    fn route(&mut self, event: LinkEvent) {
        if !matches!(event, LinkEvent::Contract { .. }) {
            self.tell_answers();
        }
        match event {
            LinkEvent::Frame { frame, events, read_at, position } => {
                if position.is_none() && self.feed.is_waiting() {
                    self.expect_no_marks();
                }
                let came = self.received.of(read_at);
                let whose = self.feed.message(&frame, events, position, came);
                let received = self.feed.age(came).map_or(read_at, |age| read_at - age).into_std();
                match whose {
                    Use::Sessions => {
                        self.batch_read_at.get_or_insert(read_at);
                        let text = frame.shared_text();
                        let found = self.batch.add(text, received, self.market, &self.index);
                        self.account(found);
                    }
                    Use::HistoryOnly => self.take_old(frame.shared_text(), received),
                }
            }
            LinkEvent::Mark(mark) => self.on_mark(mark),
            LinkEvent::Malformed { events } => {
                self.sessions.lost(LossReason::Malformed, events);
                self.notify(&self.notice(Notice::malformed(TierName::Filtered)));
            }
            LinkEvent::Notice(frame, status) => {
                // The end of our own outage is announced before one of the firehose.
                let first = self.outage_end.waits_for_missed() && self.feed.is_waiting();
                match first && status.status == "upstream_down" {
                    true => _ = self.keep(&frame),
                    // The firehose repeats an outage that goes on.
                    false if self.notify(&frame) == Use::HistoryOnly => return,
                    false => {}
                }
                match status.status.as_str() {
                    "upstream_down" => {
                        let firehoses = Some((frame, status.message));
                        self.shared.outages.send_modify(|o| o.firehoses = firehoses);
                    }
                    "upstream_up" => {
                        self.shared.outages.send_modify(|o| o.firehoses = None);
                        self.notify_awaiting(&frame);
                    }
                    "gap" => self.shared.add_gap(status.message),
                    _ => {}
                }
            }
            LinkEvent::Down(outage) => {
                self.contracts.on_down();
                self.outage_end = OutageEnd::None;
                self.deliver();
                self.feed.on_down();
                self.publish_history_state();
                let frame = self.notice(Notice::upstream_down(TierName::Filtered, &outage));
                self.notify(&frame);
                // The firehose repeats its outage once we are back.
                let outages = Outages { ours: Some(frame), firehoses: None };
                self.shared.outages.send_replace(outages);
            }
            LinkEvent::Up(outage) => {
                self.outage_end.on_up(outage, self.feed.is_waiting(), Instant::now());
                self.end_outage_if_answered();
            }
            LinkEvent::Coverage(object) => self.on_coverage(&object),
            LinkEvent::Contract { item, answer } => self.on_contract(&item, answer),
            LinkEvent::AllAnswered | LinkEvent::Subscriptions(_) => {}
        }
    }

    /// Records the counts of a frame. An event that `split` loses stays missing in the ledger.
    pub(super) fn account(&self, found: Found) {
        self.intake.routed.inc_by(found.events);
        self.sessions.lost(LossReason::Malformed, found.missing_ev);
    }

    /// Counts objects that were dropped because they have no type, and notifies the clients.
    fn report_missing_ev(&mut self, objects: u64) {
        if count_and_sample(&self.malformed, objects) {
            warn!(objects, "objects without a type from upstream dropped");
        }
        self.notify(&self.notice(Notice::malformed(TierName::Filtered)));
    }

    /// Stores the coverage that the firehose reports, and sends each session the statuses of its
    /// channels that have become unavailable.
    fn on_coverage(&mut self, object: &str) {
        self.deliver();
        let before = self.shared.coverage.borrow().clone();
        let coverage = before.after(Coverage::read(object, self.market));
        self.shared.coverage.send_replace(coverage.clone());
        if let ExtraKinds::These(kinds) = coverage.kinds() {
            self.batch.kinds.list(&kinds);
        }
        self.index.set_on_demand(&coverage.on_demand(), &coverage.listed());
        let mut by_session = BTreeMap::<SessionId, Vec<String>>::new();
        for (session, contract) in self.contracts.on_coverage(&coverage.on_demand()) {
            let object = Status::subscribed(&contract.to_string()).object();
            by_session.entry(session).or_default().push(object);
            self.hold_contract(session, &contract, true);
        }
        self.send_objects(by_session);
        let now = Instant::now();
        let newly_unavailable = |channels: &ChannelSet| {
            newly_unavailable(
                channels.iter(),
                |channel| coverage.unavailable(channel),
                |channel| before.unavailable(channel),
            )
        };
        for (channels, members) in self.index.cohorts() {
            let frames = newly_unavailable(channels);
            if frames.is_empty() {
                continue;
            }
            for outbound in members {
                outbound.send_frames(frames.iter().map(|frame| (frame, 0)), now);
            }
        }
        // A replay compares at its end.
        for (session, waiting) in self.waiting.iter().filter(|(_, waiting)| !waiting.replays) {
            let frames = newly_unavailable(&waiting.channels);
            if let Some(outbound) = self.index.member(*session) {
                outbound.send_frames(frames.iter().map(|frame| (frame, 0)), now);
            }
        }
    }

    /// Adds a notice to the history, and announces it unless it is for the history only. Returns
    /// which.
    pub(super) fn notify(&mut self, frame: &Frame) -> Use {
        let whose = self.keep(frame);
        if whose == Use::Sessions {
            self.announce(frame);
        }
        whose
    }

    /// Adds a notice to the history. Returns what it is for.
    fn keep(&mut self, frame: &Frame) -> Use {
        self.deliver();
        self.feed.notice(frame)
    }

    /// Sends a notice to every session that gets notices and holds a channel, in order with the
    /// events before and after it.
    pub(super) fn announce(&mut self, frame: &Frame) {
        self.deliver();
        if self.notices != NoticePolicy::Off {
            let now = Instant::now();
            self.index.holders().for_each(|outbound| outbound.send_frame(frame, now));
        }
    }

    /// The frame of a notice that stands where the feed stands.
    pub(super) fn notice(&self, notice: Notice) -> Frame {
        notice.at(self.feed.head()).frame()
    }

    /// Sends a notice to the sessions that hold nothing and await the end of an outage. If no
    /// outage goes on, they await no more.
    pub(super) fn notify_awaiting(&mut self, frame: &Frame) {
        let now = Instant::now();
        for outbound in self.awaiting_end.iter().filter_map(|session| self.index.member(*session)) {
            outbound.send_frame(frame, now);
        }
        if !self.shared.outages.borrow().go_on() {
            self.awaiting_end.clear();
        }
    }

    pub(super) fn deliver(&mut self) {
        if self.batch.bytes() == 0 {
            return;
        }
        let (index, now) = (&self.index, Instant::now());
        let read_at = self.batch_read_at.take().unwrap_or(now);
        let mut owed = 0;
        let tally = self.batch.deliver(index, |cohort, chunks| {
            let events: u64 = chunks.iter().map(|chunk| u64::from(chunk.events())).sum();
            for outbound in index.members(cohort) {
                owed += events;
                outbound.deliver(chunks, now, read_at);
            }
        });
        if read_at >= self.next_measured {
            self.intake.forward_latency.observe(read_at.elapsed());
            self.next_measured = read_at + MEASURING_INTERVAL;
        }
        let came = SystemTime::now();
        let types = &self.shared.event_types;
        self.batch.kinds.take(|kind, events| types.record(kind, events, came));
        self.sessions.events_owed.inc_by(owed);
        self.intake.not_subscribed.inc_by(tally.not_subscribed);
        if self.batch.last_values.as_mut().is_some_and(LastValues::take_skipped) {
            warn!("no room for more last values: snapshots are incomplete from now on");
        }
        if tally.missing_ev > 0 {
            self.report_missing_ev(tally.missing_ev);
        }
        if tally.oversize > 0 {
            warn!(events = tally.oversize, "dropped events that are too long for a message");
            self.sessions.lost(LossReason::Oversize, tally.oversize);
            self.notify(&self.notice(Notice::oversize(TierName::Filtered, tally.oversize)));
        }
    }
}

/// Completes at this time; never if there is none.
async fn due(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use proxy_common::{
        access::{CommandRate, Keys},
        health::{EventTypes, IntakeMetrics, Ledger},
        history::History,
        link::LinkMetrics,
        metrics::{Count, Metrics},
        protocol::{Channel, Kind, Market, Start, demux},
        session::{
            ChangeOutcome, Outbound, SessionConfig, SessionMetrics, SlowLimits, SubscriptionChange,
        },
        transport::Socket,
    };
    use tokio::net::{TcpListener, TcpStream};

    use super::{
        super::{
            handle::{Follow, Input, RouterHandle},
            state::Memory,
        },
        *,
    };
    use crate::{
        named_sessions::SessionNames,
        split::{event::EventKind, split},
    };

    fn config() -> SessionConfig {
        let second = Duration::from_secs(1);
        SessionConfig {
            market: Market::Stocks,
            keys: Arc::new(Keys::account("KEYS", &"key".into())),
            command_rate: CommandRate::per_second(1),
            auth_timeout: second,
            ping_interval: second,
            max_subscriptions: 10,
            slow: SlowLimits { queue_bytes: 1_000_000, max_lag: second },
            drain_spread: second,
            drain_timeout: second,
            notices: NoticePolicy::Everyone,
        }
    }

    fn router() -> (Router, RouterHandle) {
        let mut metrics = Metrics::default();
        let intake = IntakeMetrics::register(&mut metrics);
        let event_types = EventTypes::register(&mut metrics, true);
        let sessions = SessionMetrics::register(&mut metrics);
        let names = SessionNames::new(Duration::from_secs(1));
        let history = History::new(1_000_000);
        let memory = Memory {
            history,
            names,
            #[cfg(feature = "nats")]
            bucket: None,
            last_values: None,
            lag: None,
        };
        Router::new(&config(), memory, intake, Count::default(), event_types, sessions)
    }

    /// The ledger after a frame, if `split` loses the events at these positions.
    fn ledger_after_losing(frame: &str, lost: &[usize]) -> Ledger {
        let (router, _) = router();
        let link = LinkMetrics::default();
        link.events.inc_by(demux(Frame::new(frame.as_bytes())).unwrap().events);
        let (mut found, mut position) = (Found::default(), 0);
        split(frame.as_bytes(), |event| {
            if !lost.contains(&position) {
                match event.kind {
                    EventKind::Missing => found.missing_ev += 1,
                    EventKind::Known(_) | EventKind::Unknown => found.events += 1,
                }
            }
            position += 1;
        });
        router.account(found);
        Ledger::read(&link, &router.intake, &router.sessions, None)
    }

    #[test]
    fn a_sound_frame_that_loses_an_event_unbalances_the_ledger() {
        let frame = r#"[{"ev":"T","sym":"A"},{"ev":"T","in":{"ev":"Q"}},{"sym":"A"},{"ev":"Q"}]"#;
        let sound = ledger_after_losing(frame, &[]);
        assert!(sound.balanced, "{sound:?}");
        assert_eq!((sound.intake.received, sound.intake.routed, sound.intake.malformed), (4, 3, 1));
        for lost in 0..4 {
            let ledger = ledger_after_losing(frame, &[lost]);
            assert_eq!((ledger.balanced, ledger.intake.unaccounted), (false, 1), "{ledger:?}");
        }
    }

    #[tokio::test]
    async fn a_subscription_decided_by_an_older_coverage_changes_and_answers_nothing() {
        let (mut router, _handle) = router();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let limits = config().slow;
        let outbound = Outbound::new(Socket::from(socket), limits, Arc::clone(&router.sessions));
        let follow = Follow { named: false, interval: None };
        router.apply(Input::Join(1, Arc::new(outbound), follow));
        let change = |version, subscribe| SubscriptionChange {
            subscribe,
            channels: BTreeSet::from([Channel::Kind(Kind::T)]),
            on_behalf_of: None,
            start: Start::Live,
            snapshot: false,
            reply: vec![Frame::new(b"[]")],
            coverage_version: version,
        };
        let decided_by = router.shared.coverage.borrow().version();
        router.on_coverage(r#"{"ev":"status","status":"gap"}"#);
        let outcome = router.change(1, &"key".into(), change(decided_by, true));
        assert_eq!(outcome.0, ChangeOutcome::CoverageChanged);
        assert_eq!(router.index.subscriptions(), 0);
        assert!(client.try_read(&mut [0]).is_err(), "nothing is sent");
        assert_eq!(
            router.change(1, &"key".into(), change(decided_by + 1, true)).0,
            ChangeOutcome::Applied
        );
        assert_eq!(router.index.subscriptions(), 1);
        client.readable().await.unwrap();
        // An unsubscription depends on no coverage.
        assert_eq!(
            router.change(1, &"key".into(), change(decided_by, false)).0,
            ChangeOutcome::Applied
        );
        assert_eq!(router.index.subscriptions(), 0);
    }
}
