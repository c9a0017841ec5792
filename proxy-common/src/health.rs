//! What `/health` says.

pub mod ledger;

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::time::Instant;

use crate::{
    health::ledger::Ledger,
    link::{LinkState, LinkStatus},
    metrics::{IntakeMetrics, LinkMetrics, SessionMetrics},
    protocol::market::Market,
};

/// How a tier is doing, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Data can flow and every channel asked for is carried.
    Ok,
    /// Logged in upstream, but some channel is refused or unanswered, or there is another problem.
    Degraded,
    /// Not logged in upstream.
    Down,
}

/// The document behind `GET /health`.
#[derive(Debug, Clone, Serialize)]
pub struct Health {
    /// The whole in one word; `down` is answered with HTTP 503, everything else with 200.
    pub status: Verdict,
    /// The program's version.
    pub version: &'static str,
    /// Seconds since the program began to serve.
    pub uptime_seconds: u64,
    /// The market served.
    pub market: &'static str,
    /// What else is wrong, in sentences.
    pub problems: Vec<String>,
    /// The link to the upstream.
    pub upstream: UpstreamHealth,
    /// What is asked of the upstream.
    pub channels: ChannelHealth,
    /// Sessions now.
    pub sessions: i64,
    /// Sessions of each key, by its label; filled in where the keys are known.
    pub keys: BTreeMap<String, i64>,
    /// Subscriptions held by all sessions.
    pub subscriptions: i64,
    /// Data frames received a second, over the last second or more.
    pub frames_per_second: f64,
    /// Events received a second, over the last second or more.
    pub events_per_second: f64,
    /// What became of every event.
    pub ledger: Ledger,
}

/// The state of the link to the upstream.
#[derive(Debug, Clone, Serialize)]
pub struct UpstreamHealth {
    /// What the link is doing.
    pub state: LinkState,
    /// Since when, RFC 3339.
    pub since: String,
    /// Why the last connection or try ended, if any did.
    pub last_error: Option<String>,
    /// Successful logins after the first.
    pub reconnects: u64,
}

/// Channels asked of the upstream.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ChannelHealth {
    /// Acknowledged by the upstream.
    pub carried: Vec<String>,
    /// Refused by the upstream, most likely because the plan does not include them.
    pub refused: Vec<String>,
    /// Asked, but not yet or never answered.
    pub pending: Vec<String>,
}

/// Puts the document together; remembers the counters of a moment ago for the rates.
#[derive(Debug)]
pub struct HealthReporter {
    started: Instant,
    market: Market,
    rates: Mutex<Rates>,
}

#[derive(Debug)]
struct Rates {
    at: Instant,
    frames: u64,
    events: u64,
    frames_per_second: f64,
    events_per_second: f64,
}

/// Rates are taken over at least this time.
const RATE_WINDOW: Duration = Duration::from_secs(1);

impl HealthReporter {
    /// A reporter for a program that begins to serve now.
    pub fn new(market: Market) -> Self {
        let now = Instant::now();
        let rates =
            Rates { at: now, frames: 0, events: 0, frames_per_second: 0.0, events_per_second: 0.0 };
        Self { started: now, market, rates: Mutex::new(rates) }
    }

    /// The document of this moment. `problems` are what the tier itself finds wrong.
    pub fn report(
        &self,
        link: &LinkStatus,
        upstream: &LinkMetrics,
        intake: &IntakeMetrics,
        sessions: &SessionMetrics,
        problems: Vec<String>,
    ) -> Health {
        let (frames_per_second, events_per_second) = self.sample(upstream);
        let incomplete = !link.channels.refused.is_empty()
            || !link.channels.pending.is_empty()
            || !problems.is_empty();
        Health {
            status: match link.state {
                LinkState::Up if incomplete => Verdict::Degraded,
                LinkState::Up => Verdict::Ok,
                LinkState::Connecting
                | LinkState::Authenticating
                | LinkState::Waiting
                | LinkState::Refused => Verdict::Down,
            },
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            market: self.market.name(),
            problems,
            upstream: UpstreamHealth {
                state: link.state,
                since: rfc3339(link.since),
                last_error: link.last_error.clone(),
                reconnects: link.connects.saturating_sub(1),
            },
            channels: link.channels.clone(),
            sessions: sessions.sessions.get(),
            keys: BTreeMap::new(),
            subscriptions: sessions.subscriptions.get(),
            frames_per_second,
            events_per_second,
            ledger: Ledger::read(upstream, intake, sessions),
        }
    }

    /// Brings the rates up to date; to be called about once a second, so that a rare `/health` shows the present.
    pub fn sample(&self, upstream: &LinkMetrics) -> (f64, f64) {
        let mut rates = self.rates.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let elapsed = rates.at.elapsed();
        if elapsed >= RATE_WINDOW {
            let (frames, events) = (upstream.frames.get(), upstream.events.get());
            let rate = |now: u64, before: u64| {
                ((now - before) as f64 / elapsed.as_secs_f64() * 10.0).round() / 10.0
            };
            *rates = Rates {
                at: Instant::now(),
                frames,
                events,
                frames_per_second: rate(frames, rates.frames),
                events_per_second: rate(events, rates.events),
            };
        }
        (rates.frames_per_second, rates.events_per_second)
    }
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
