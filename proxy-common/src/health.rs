//! Health: the document of `GET /health`, and the counts in it.

mod event_types;
mod ledger;
mod process;

use self::ledger::BalanceWatch;
pub use self::{
    event_types::{EventTypes, LastEvent},
    ledger::{Deliveries, Intake, IntakeMetrics, Ledger},
    process::ProcessMetrics,
};

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::time::Instant;

use crate::{
    access::Keys,
    history::HistoryHealth,
    link::{ChannelStatus, LastError, LinkMetrics, LinkState, LinkStatus},
    metrics::Level,
    protocol::{Market, summarize_channels},
    session::SessionMetrics,
    version::VERSION,
};

/// The condition of a tier, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Data can flow, and every channel asked for is carried.
    Ok,
    /// Logged in upstream, but a channel is refused or unanswered, or there is another problem.
    Degraded,
    /// Another program may dial upstream, and this one stands by.
    Standby,
    /// Not logged in upstream.
    Down,
}

/// The document of `GET /health`.
#[derive(Debug, Clone, Serialize)]
pub struct Health {
    /// The condition of the tier. The HTTP status is 503 for `standby` and `down`, 200 for the
    /// others.
    pub status: HealthStatus,
    /// The program's version.
    pub version: &'static str,
    /// Seconds since the program began to serve.
    pub uptime_seconds: u64,
    /// The market served.
    pub market: &'static str,
    /// What is wrong, since when, and what to do: one sentence each. Empty if the status is `ok`.
    pub problems: Vec<String>,
    /// The link to the upstream.
    pub upstream: UpstreamHealth,
    /// The channels requested from the upstream.
    pub channels: ChannelStatus,
    /// The contracts on demand, by type. Absent if no type is on demand.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub contracts: BTreeMap<String, ContractsHealth>,
    /// The messages kept for whoever comes back. Absent if none are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<HistoryHealth>,
    /// The lease, which says whether this program may dial. Absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseHealth>,
    /// Sessions now.
    pub sessions: i64,
    /// Sessions of each key, by the key's label.
    pub keys: BTreeMap<String, i64>,
    /// Subscriptions held by all sessions.
    pub subscriptions: i64,
    /// Data frames received a second, over the last second or more.
    pub frames_per_second: f64,
    /// Events received a second, over the last second or more.
    pub events_per_second: f64,
    /// The outcome of every event.
    pub ledger: Ledger,
}

/// The document of `GET /health`: that of the one market, or one that holds each market's.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum HealthDocument {
    /// Of a program that serves one market.
    One(Box<Health>),
    /// Of a program that serves several.
    Several {
        /// That of every market if it is the same, else `degraded`.
        status: HealthStatus,
        /// The program's version.
        version: &'static str,
        /// The problems of all markets. Each begins with the market's name.
        problems: Vec<String>,
        /// Each market's document.
        markets: BTreeMap<&'static str, Health>,
    },
}

impl HealthDocument {
    /// The document of these markets, at least one.
    pub fn of(mut markets: Vec<Health>) -> Self {
        if markets.len() == 1 {
            return Self::One(Box::new(markets.remove(0)));
        }
        let first = markets.first().map_or(HealthStatus::Down, |health| health.status);
        let alike = markets.iter().all(|health| health.status == first);
        let problems = markets.iter().flat_map(|health| {
            health.problems.iter().map(|problem| format!("{}: {problem}", health.market))
        });
        Self::Several {
            status: if alike { first } else { HealthStatus::Degraded },
            version: VERSION,
            problems: problems.collect(),
            markets: markets.into_iter().map(|health| (health.market, health)).collect(),
        }
    }

    /// What is wrong, in sentences.
    pub fn problems(&self) -> &[String] {
        match self {
            Self::One(health) => &health.problems,
            Self::Several { problems, .. } => problems,
        }
    }

    /// Whether other programs may dial, for every market, and this one may not.
    pub fn stands_by(&self) -> bool {
        let stands_by = |health: &Health| health.upstream.state == LinkState::Standby;
        match self {
            Self::One(health) => stands_by(health),
            Self::Several { markets, .. } => markets.values().all(stands_by),
        }
    }

    /// The condition of the program.
    pub fn status(&self) -> HealthStatus {
        match self {
            Self::One(health) => health.status,
            Self::Several { status, .. } => *status,
        }
    }
}

/// The state of the link to the upstream.
#[derive(Debug, Clone, Serialize)]
pub struct UpstreamHealth {
    /// The state.
    pub state: LinkState,
    /// The URL, without the parts that may hold a secret.
    pub url: String,
    /// Since when the link has been up or down, in RFC 3339 form.
    pub since: String,
    /// Why the last connection or attempt ended. Null while the link is up.
    pub last_error: Option<String>,
    /// When it ended, in RFC 3339 form.
    pub last_error_at: Option<String>,
    /// The last outage that ended.
    pub last_outage: Option<EndedOutage>,
    /// Successful logins after the first.
    pub reconnects: u64,
}

/// The contracts on demand of one type.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ContractsHealth {
    /// Contracts asked of the vendor.
    pub held: usize,
    /// Contracts that the vendor serves at a time, as far as is known.
    pub room: usize,
    /// Contracts that wait for room.
    pub waiting: usize,
}

/// The lease of a market, as one program sees it.
#[derive(Debug, Clone, Serialize)]
pub struct LeaseHealth {
    /// Where it is: `file` or `nats`.
    pub kind: &'static str,
    /// `holder` if this program may dial, else `standby`.
    pub role: &'static str,
    /// The name of this run of the program.
    pub name: String,
    /// The name of the run that holds it, as far as is known.
    pub holder: Option<String>,
    /// Where that one listens, by its own settings.
    pub address: Option<String>,
    /// How often it has passed to another program.
    pub term: u64,
    /// The epoch of what its holder publishes.
    pub epoch: u64,
    /// Whether this program holds it, or could take it at once.
    pub ready: bool,
    /// Since when this program has its role, in RFC 3339 form.
    pub since: Option<String>,
}

/// An outage that ended.
#[derive(Debug, Clone, Serialize)]
pub struct EndedOutage {
    /// When it began, in RFC 3339 form.
    pub from: String,
    /// When it ended.
    pub to: String,
    /// Its last known reason.
    pub reason: String,
}

/// Builds the document, and keeps earlier counts for the rates.
#[derive(Debug)]
pub struct HealthReporter {
    started: Instant,
    market: Market,
    keys: Arc<Keys>,
    upstream: Arc<LinkMetrics>,
    intake: IntakeMetrics,
    sessions: Arc<SessionMetrics>,
    rates: Mutex<Rates>,
    balances: Mutex<BalanceWatch>,
}

#[derive(Debug)]
struct Rates {
    at: Instant,
    frames: u64,
    events: u64,
    per_second: (f64, f64),
}

/// Rates are measured over at least this time.
const RATE_WINDOW: Duration = Duration::from_secs(1);

impl HealthReporter {
    /// A reporter for a program that begins to serve now.
    pub fn new(
        market: Market,
        keys: Arc<Keys>,
        upstream: Arc<LinkMetrics>,
        intake: IntakeMetrics,
        sessions: Arc<SessionMetrics>,
    ) -> Self {
        let started = Instant::now();
        let rates = Rates { at: started, frames: 0, events: 0, per_second: (0.0, 0.0) };
        let (rates, balances) = (Mutex::new(rates), Mutex::default());
        Self { started, market, keys, upstream, intake, sessions, rates, balances }
    }

    /// The document of this moment, for the links that carry the market. `unread` counts the events
    /// that sessions have yet to fetch, in a tier where they fetch events. `problems` are those
    /// that the tier itself has found.
    pub fn report(
        &self,
        links: &[LinkStatus],
        unread: Option<&Level>,
        problems: Vec<String>,
    ) -> Health {
        let Self { upstream, intake, sessions, .. } = self;
        let (frames_per_second, events_per_second) = self.sample();
        let problems = links.iter().flat_map(link_problems).chain(problems).collect::<Vec<_>>();
        let stands_by = links.iter().all(|link| link.state == LinkState::Standby);
        let link = LinkStatus::of_all(links);
        Health {
            status: if stands_by && problems.is_empty() {
                HealthStatus::Standby
            } else if !links.iter().any(|link| link.state == LinkState::Up) {
                HealthStatus::Down
            } else if !problems.is_empty() {
                HealthStatus::Degraded
            } else {
                HealthStatus::Ok
            },
            version: VERSION,
            uptime_seconds: self.started.elapsed().as_secs(),
            market: self.market.name(),
            problems,
            upstream: UpstreamHealth {
                state: link.state,
                url: link.url,
                since: rfc3339(link.since),
                last_error: link.last_error.as_ref().map(|last| last.error.to_string()),
                last_error_at: link.last_error.as_ref().map(|last| rfc3339(last.at)),
                last_outage: link.last_outage.map(|(outage, to)| EndedOutage {
                    from: rfc3339(outage.from),
                    to: rfc3339(to),
                    reason: outage.reason,
                }),
                reconnects: link.connects.saturating_sub(1),
            },
            channels: link.channels,
            contracts: BTreeMap::new(),
            history: None,
            lease: None,
            sessions: sessions.sessions.get(),
            keys: self.keys.sessions(),
            subscriptions: sessions.subscriptions.get(),
            frames_per_second,
            events_per_second,
            ledger: Ledger::read(upstream, intake, sessions, unread),
        }
    }

    /// Updates the rates of frames and events and the gauge of the ledger. Call it about once a
    /// second, so that even a rare `/health` shows current rates. `unread` as for
    /// [`report`](Self::report).
    pub fn tick(&self, unread: Option<&Level>) {
        self.sample();
        let ledger = Ledger::read(&self.upstream, &self.intake, &self.sessions, unread);
        let mut balances = self.balances.lock().unwrap_or_else(PoisonError::into_inner);
        balances.add(&ledger, &self.intake);
    }

    /// Updates the rates of frames and events and returns them.
    fn sample(&self) -> (f64, f64) {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = rates.at.elapsed();
        if elapsed >= RATE_WINDOW {
            let (frames, events) = (self.upstream.frames.get(), self.upstream.events.get());
            let rate = |now: u64, before: u64| {
                ((now - before) as f64 / elapsed.as_secs_f64() * 10.0).round() / 10.0
            };
            let per_second = (rate(frames, rates.frames), rate(events, rates.events));
            *rates = Rates { at: Instant::now(), frames, events, per_second };
        }
        rates.per_second
    }
}

/// What is wrong with the link and the channels requested over it, in sentences.
fn link_problems(link: &LinkStatus) -> Vec<String> {
    let LinkStatus { upstream, url, channels, .. } = link;
    if link.state == LinkState::Standby {
        return Vec::new();
    }
    if link.state != LinkState::Up {
        let since = rfc3339(link.since);
        let why = link.last_error.as_ref().map_or_else(
            || "the first attempt has not ended".to_owned(),
            |LastError { error, at, wait }| {
                let (advice, next) = (error.advice(), rfc3339(*at + *wait));
                format!("{error}; {advice}; next attempt at {next}")
            },
        );
        return vec![format!("no connection to {upstream} at {url} since {since}: {why}")];
    }
    let mut problems = Vec::new();
    let mut add = |channels: &[String], what: &str| {
        if !channels.is_empty() {
            problems.push(format!("{upstream} {what} {}", summarize_channels(channels.iter())));
        }
    };
    add(&channels.refused, "refuses");
    add(&channels.pending, "has not answered yet, or not in time, for");
    problems
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
