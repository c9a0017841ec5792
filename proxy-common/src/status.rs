//! Status: what the page of a program, `GET /status.json` and `GET /sessions` show.
//!
//! Sessions and limits are for the operator. The rest is for whoever may see `/health`.

mod history;
mod sessions;
mod verdict;

pub use self::{
    history::{DelaySummary, Incident, Rates},
    sessions::SessionStatus,
    verdict::{Action, Problem, Verdict},
};

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde::Serialize;

use self::{
    history::{Counts, History},
    verdict::{Facts, nearly_full, problems, slow, verdict},
};
use crate::{
    health::{
        ContractsHealth, Health, HealthDocument, HealthStatus, IntakeMetrics, Lag, LastEvent,
        LeaseHealth, Peer, UpstreamHealth,
    },
    link::{ChannelStatus, LinkMetrics, LinkState, LinkStatus},
    protocol::TierName,
    session::{LossReason, OpenSessions, SessionMetrics, SlowLimits},
    version::VERSION,
};

/// The page that shows the document.
pub const PAGE: &str = include_str!("status/page.html");

/// Most sessions in the document. `/sessions` has all.
const SESSIONS_SHOWN: usize = 100;

/// The document of `GET /status.json`.
#[derive(Debug, Clone, Serialize)]
pub struct StatusDocument {
    /// `firehose` or `filtered`.
    pub tier: &'static str,
    /// The program's version.
    pub version: &'static str,
    /// The condition of the program, as in `/health`.
    pub status: HealthStatus,
    /// What the operator should do.
    pub verdict: Verdict,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// When the document was written, in RFC 3339 form.
    #[serde(serialize_with = "history::rfc3339")]
    pub now: SystemTime,
    /// Seconds since the program began to serve.
    pub uptime_seconds: u64,
    /// Sessions now.
    pub sessions: usize,
    /// Each market, in the order of the settings.
    pub markets: Vec<MarketStatus>,
    /// What only the operator sees. Absent for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<OperatorStatus>,
}

/// One market.
#[derive(Debug, Clone, Serialize)]
pub struct MarketStatus {
    /// Its name.
    pub market: &'static str,
    /// Its condition, as in `/health`.
    pub status: HealthStatus,
    /// Whether it is in its regular session. Null at the filtered proxy, which does not know.
    pub open: Option<bool>,
    /// The link to the upstream.
    pub upstream: UpstreamHealth,
    /// The channels requested from the upstream.
    pub channels: ChannelStatus,
    /// At the filtered proxy: outages of the firehose's own upstream that go on.
    pub reported_outages: Vec<String>,
    /// Events received a second.
    pub events_per_second: f64,
    /// Events a second in the last five minutes.
    pub rates: Rates,
    /// Types of events: when the last of each came.
    pub types: Vec<TypeStatus>,
    /// From the read of a frame to the write of its last byte to a session, in the last minute.
    /// Null if none was measured.
    pub added_delay: Option<DelaySummary>,
    /// From the read of a frame until it was handed out, in the last minute.
    pub forward_latency: Option<DelaySummary>,
    /// How much of the ring the slowest session has yet to read, from 0 to 1. Null at the filtered
    /// proxy, which has none.
    pub ring_used: Option<f64>,
    /// The contracts on demand, by type.
    pub contracts: BTreeMap<String, ContractsHealth>,
    /// The lease. Null without one.
    pub lease: Option<LeaseHealth>,
    /// How far it is from the end of the stream in NATS. Null if it does not read one.
    pub lag: Option<Lag>,
    /// The other programs of the market. Null without NATS.
    pub peers: Option<Vec<Peer>>,
    /// Sessions now.
    pub sessions: i64,
    /// Subscriptions held by all sessions.
    pub subscriptions: i64,
    /// Bytes queued for all sessions.
    pub queue_bytes: i64,
    /// Outages and gaps, the latest first.
    pub incidents: Vec<Incident>,
}

/// One type of events.
#[derive(Debug, Clone, Serialize)]
pub struct TypeStatus {
    /// The type, or `other` for all that this program does not know.
    #[serde(rename = "type")]
    pub name: String,
    /// When its last event came, in RFC 3339 form.
    #[serde(serialize_with = "history::rfc3339")]
    pub last_event: SystemTime,
    /// How long ago that was.
    pub age_seconds: f64,
    /// How many came since the start of the program. Null at the firehose, which does not count
    /// them.
    pub events: Option<u64>,
}

/// What only the operator sees.
#[derive(Debug, Clone, Serialize)]
pub struct OperatorStatus {
    /// The sessions that lag the most, the first hundred.
    pub sessions: Vec<SessionStatus>,
    /// The limits in force, by name of their setting.
    pub limits: BTreeMap<&'static str, String>,
}

/// The document of `GET /sessions`.
#[derive(Debug, Clone, Serialize)]
pub struct SessionsDocument {
    /// Every session, those that lag the most first.
    pub sessions: Vec<SessionStatus>,
}

/// What a tier knows of a market beside its health.
#[derive(Debug, Clone, Default)]
pub struct TierView {
    /// What the tier reports to be wrong upstream, in sentences.
    pub reported: Vec<String>,
    /// What the program itself has failed to do beside the stream, in sentences.
    pub failures: Vec<String>,
    /// Whether the market is in its regular session, if the tier knows.
    pub open: Option<bool>,
    /// The last event of each type.
    pub types: Vec<LastEvent>,
    /// How much of the ring the slowest session has yet to read, if the tier has one.
    pub ring_used: Option<f64>,
}

/// Keeps the last minutes of a market.
#[derive(Debug)]
pub struct MarketReporter {
    tier: TierName,
    upstream: Arc<LinkMetrics>,
    intake: IntakeMetrics,
    sessions: Arc<SessionMetrics>,
    history: Mutex<History>,
}

impl MarketReporter {
    /// A reporter of a market that begins to be served now.
    pub fn new(
        tier: TierName,
        upstream: Arc<LinkMetrics>,
        intake: IntakeMetrics,
        sessions: Arc<SessionMetrics>,
    ) -> Self {
        Self { tier, upstream, intake, sessions, history: Mutex::default() }
    }

    /// Records what has happened since the last call, which was about a second ago. `reported` are
    /// the problems that the tier itself reports, `gaps` the gaps that the upstream has reported.
    pub fn tick(&self, links: &[LinkStatus], reported: &[String], gaps: &[String]) {
        use LossReason::{Malformed, Oversize, RingOverrun, SlowConsumer};
        let (mut history, now) = (self.history(), SystemTime::now());
        let lost = [RingOverrun, SlowConsumer, Oversize, Malformed];
        history.add(Counts {
            at: now,
            received: self.upstream.events.get(),
            delivered: self.sessions.events_delivered.get(),
            added_delay: self.sessions.added_delay.counts(),
            forward_latency: self.intake.forward_latency.counts(),
            lost: lost.map(|reason| (reason.label(), self.sessions.total_lost(reason))),
        });
        if self.tier == TierName::Filtered {
            history.set_reported(reported.first(), now);
        }
        for gap in gaps {
            history.add_gap(now, now, gap, None);
        }
        for (outage, to) in links.iter().filter_map(|link| link.last_outage.as_ref()) {
            history.add_outage(outage, *to);
        }
    }

    /// The market now, and its problems.
    pub fn report(
        &self,
        health: Health,
        links: &[LinkStatus],
        view: TierView,
    ) -> (MarketStatus, Vec<Problem>) {
        let (history, now) = (self.history(), SystemTime::now());
        let unaccounted = self.intake.unaccounted();
        let since = history.reported().map_or(now, |one| one.from);
        let reported_for = now.duration_since(since).unwrap_or_default();
        let TierView { reported, failures, open, types, ring_used } = view;
        let (reported, failures) = (&reported, &failures);
        let tier = self.tier;
        let facts = Facts { tier, links, reported, failures, reported_for, unaccounted, now };
        let problems = problems(&facts);
        let goes_on = links.iter().filter(|link| link.state != LinkState::Up);
        let goes_on = goes_on.map(|link| Incident {
            kind: "outage",
            from: link.since,
            to: None,
            reason: link
                .last_error
                .as_ref()
                .map_or("starting".to_owned(), |one| one.error.to_string()),
            events: None,
        });
        let types = types.into_iter().map(|LastEvent { name, at, events }| {
            let age_seconds = now.duration_since(at).unwrap_or_default().as_secs_f64();
            TypeStatus { name, last_event: at, age_seconds, events }
        });
        let status = MarketStatus {
            market: health.market,
            status: health.status,
            open,
            upstream: health.upstream,
            channels: health.channels,
            reported_outages: match self.tier {
                TierName::Firehose => Vec::new(),
                TierName::Filtered => reported.to_vec(),
            },
            events_per_second: health.events_per_second,
            rates: history.rates(),
            types: types.collect(),
            added_delay: history.added_delay(),
            forward_latency: history.forward_latency(),
            ring_used,
            contracts: health.contracts,
            lease: health.lease,
            lag: health.lag,
            peers: health.peers,
            sessions: health.sessions,
            subscriptions: health.subscriptions,
            queue_bytes: self.sessions.queue_bytes.get(),
            incidents: goes_on
                .chain(history.reported().filter(|_| !reported.is_empty()).cloned())
                .chain(history.incidents().cloned())
                .collect(),
        };
        (status, problems)
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The limits that the status compares with, and all those in force.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most sessions.
    pub sessions: usize,
    /// How far a session may fall behind.
    pub slow: SlowLimits,
    /// All limits, by name of their setting.
    pub named: BTreeMap<&'static str, String>,
}

/// Builds the documents of a program.
#[derive(Debug)]
pub struct ProgramReporter {
    /// The program's tier.
    pub tier: TierName,
    /// Its sessions.
    pub open: Arc<OpenSessions>,
    /// Its limits.
    pub limits: Limits,
}

impl ProgramReporter {
    /// The document of these markets, for the operator or for others.
    pub fn status(
        &self,
        health: &HealthDocument,
        markets: Vec<(MarketStatus, Vec<Problem>)>,
        uptime_seconds: u64,
        for_operator: bool,
    ) -> StatusDocument {
        let sessions = sessions::list(&self.open);
        let several = markets.len() > 1;
        let (markets, found): (Vec<_>, Vec<_>) = markets.into_iter().unzip();
        let mut problems = Vec::new();
        for (market, found) in markets.iter().zip(found) {
            problems.extend(found.into_iter().map(|problem| match several {
                true => Problem { what: format!("{}: {}", market.market, problem.what), ..problem },
                false => problem,
            }));
        }
        let SlowLimits { queue_bytes, max_lag } = self.limits.slow;
        let is_slow = |session: &&SessionStatus| {
            session.lag_seconds * 2.0 >= max_lag.as_secs_f64()
                || session.queued_bytes * 2 >= queue_bytes
        };
        let slow_sessions = sessions.iter().filter(is_slow).count();
        let slowest = sessions.iter().find(is_slow).filter(|_| for_operator);
        problems.extend(slow(slow_sessions, slowest.map(SessionStatus::name).as_deref()));
        problems.extend(nearly_full(sessions.len(), self.limits.sessions));
        let is_quiet =
            |market: &MarketStatus| market.open == Some(false) && market.events_per_second == 0.0;
        let closed = markets.iter().all(is_quiet);
        StatusDocument {
            tier: self.tier.name(),
            version: VERSION,
            status: health.status(),
            verdict: verdict(&problems, closed),
            problems,
            now: SystemTime::now(),
            uptime_seconds,
            sessions: sessions.len(),
            markets,
            operator: for_operator.then(|| OperatorStatus {
                sessions: sessions.into_iter().take(SESSIONS_SHOWN).collect(),
                limits: self.limits.named.clone(),
            }),
        }
    }

    /// All sessions.
    pub fn sessions(&self) -> SessionsDocument {
        SessionsDocument { sessions: sessions::list(&self.open) }
    }
}
