//! Abuse by hostile or faulty clients. Counts every case, and logs each kind once a minute.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::warn;

use crate::{
    metrics::{CountByReason, Metrics},
    named_enum::named_enum,
};

/// Each kind is logged at most once in this time.
const QUIET: Duration = Duration::from_secs(60);

named_enum! {
    /// A rule that a client broke, or a limit that all clients together reached.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Abuse by
    /// The value of the metric label `reason`.
    label {
        /// More sessions at once than `MAX_CONNECTIONS`.
        Full = "full",
        /// More connections at once than the server keeps, sessions and others together.
        Connections = "connections",
        /// More connections at once than `MAX_CONNECTIONS_PER_ADDRESS`.
        AddressFull = "address_full",
        /// Requests faster than `HANDSHAKE_RATE`.
        HandshakeRate = "handshake_rate",
        /// A web page whose origin `ALLOWED_ORIGINS` does not list.
        Origin = "origin",
        /// A connection of a trusted proxy without a readable PROXY header.
        ProxyHeader = "proxy_header",
        /// No TLS on a port that speaks only TLS, or a failed TLS handshake.
        Tls = "tls",
        /// TLS on a port that does not speak it.
        TlsOnPlainPort = "tls_on_plain_port",
        /// A path that leads to no market.
        Path = "path",
        /// An invalid WebSocket handshake.
        Handshake = "handshake",
        /// No key within `AUTH_TIMEOUT`.
        AuthTimeout = "auth_timeout",
        /// A wrong key.
        AuthFailed = "auth_failed",
        /// A key that is for other markets.
        MarketRefused = "market_refused",
        /// Commands faster than `COMMAND_RATE`: the session is read more slowly.
        CommandRate = "command_rate",
        /// A violation of the WebSocket protocol.
        Protocol = "protocol",
        /// A message longer than the limit.
        TooBig = "too_big",
        /// Pings from a client that does not read the pongs.
        ControlFlood = "control_flood",
    }
}

impl Abuse {
    /// The kinds that turn a connection or request away before it becomes a session. They stand
    /// first in the enum.
    pub const REFUSALS: &[Self] = Self::ALL.split_at(Self::AuthTimeout as usize).0;

    /// The log message.
    const fn sentence(self) -> &'static str {
        match self {
            Self::Full => "turned away: MAX_CONNECTIONS sessions are open",
            Self::Connections => "dropped: too many connections even to answer",
            Self::AddressFull => "turned away: more than MAX_CONNECTIONS_PER_ADDRESS connections",
            Self::HandshakeRate => "turned away: requests faster than HANDSHAKE_RATE",
            Self::Origin => "turned away: a web page that ALLOWED_ORIGINS does not list",
            Self::ProxyHeader => "dropped: a trusted proxy sent no readable PROXY header",
            Self::Tls => "turned away: no TLS, or none that both sides accept",
            Self::TlsOnPlainPort => "dropped: a client speaks TLS, this port does not",
            Self::Path => "turned away: no market at that path",
            Self::Handshake => "turned away: no WebSocket handshake",
            Self::AuthTimeout => "closed: no key in time",
            Self::AuthFailed => "closed: wrong key",
            Self::MarketRefused => "closed: the key is for other markets",
            Self::CommandRate => "slowed down: commands faster than COMMAND_RATE",
            Self::Protocol => "closed: broke the WebSocket protocol",
            Self::TooBig => "closed: message too big",
            Self::ControlFlood => "closed: does not read the answers it asks for",
        }
    }
}

/// Counts and logs abuse.
#[derive(Debug)]
pub struct AbuseLog {
    counts: CountByReason,
    /// One for each kind. The lock is held for a few instructions.
    quiet: [Mutex<Quiet>; Abuse::ALL.len()],
}

impl AbuseLog {
    /// Registers the counter .
    pub fn register(metrics: &mut Metrics) -> Self {
        let counts = metrics.register_by_reason(
            "abuse",
            "Cases of abuse by clients",
            Abuse::ALL.iter().map(|abuse| abuse.label()),
        );
        Self { counts, quiet: std::array::from_fn(|_| Mutex::default()) }
    }

    /// Counts one case. Logs it, with a detail if there is one, unless its kind was logged less
    /// than a minute ago.
    pub fn note(&self, abuse: Abuse, client: IpAddr, detail: Option<&str>) {
        self.counts.of(abuse.label()).inc();
        let line = self.lock(abuse).note(client, Instant::now());
        if let Some(line) = line {
            line.write(abuse, detail);
        }
    }

    /// Logs the cases that were not logged yet, once their minute is over. Call it about once a
    /// second.
    pub fn tick(&self, now: Instant) {
        for &abuse in Abuse::ALL {
            let line = self.lock(abuse).tick(now);
            if let Some(line) = line {
                line.write(abuse, None);
            }
        }
    }

    fn lock(&self, abuse: Abuse) -> std::sync::MutexGuard<'_, Quiet> {
        self.quiet[abuse as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A log line: the last client, and how many cases before it were not logged.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    client: IpAddr,
    suppressed: u64,
}

impl Line {
    fn write(&self, abuse: Abuse, detail: Option<&str>) {
        let Self { client, suppressed } = self;
        warn!(abuse = abuse.label(), %client, suppressed, detail, "{}", abuse.sentence());
    }
}

/// Decides which cases of one kind are logged.
#[derive(Debug, Default)]
struct Quiet {
    until: Option<Instant>,
    /// The client of the last case not logged yet, and the number of such cases.
    kept: Option<(IpAddr, u64)>,
}

impl Quiet {
    fn note(&mut self, client: IpAddr, now: Instant) -> Option<Line> {
        if self.until.is_some_and(|until| now < until) {
            let count = self.kept.map_or(0, |(_, count)| count);
            self.kept = Some((client, count + 1));
            return None;
        }
        self.until = Some(now + QUIET);
        let suppressed = self.kept.take().map_or(0, |(_, count)| count);
        Some(Line { client, suppressed })
    }

    /// The line for the cases not logged yet, once the next line is due.
    fn tick(&mut self, now: Instant) -> Option<Line> {
        if self.until.is_none_or(|until| now < until) {
            return None;
        }
        let (client, count) = self.kept.take()?;
        self.until = Some(now + QUIET);
        Some(Line { client, suppressed: count - 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_index_and_label() {
        let labels: std::collections::BTreeSet<_> =
            Abuse::ALL.iter().map(|abuse| abuse.label()).collect();
        assert_eq!(labels.len(), Abuse::ALL.len());
        for (index, &abuse) in Abuse::ALL.iter().enumerate() {
            assert_eq!(abuse as usize, index);
        }
    }

    #[test]
    fn one_line_a_minute_counts_the_cases_that_were_not_logged() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let [one, two] = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])];
        let mut quiet = Quiet::default();
        assert_eq!(quiet.tick(at(0)), None);
        assert_eq!(quiet.note(one, at(0)), Some(Line { client: one, suppressed: 0 }));
        for second in 1..60 {
            assert_eq!(quiet.note(two, at(second)), None);
            assert_eq!(quiet.tick(at(second)), None);
        }
        assert_eq!(quiet.tick(at(60)), Some(Line { client: two, suppressed: 58 }));
        assert_eq!(quiet.note(one, at(61)), None);
        assert_eq!(quiet.note(one, at(121)), Some(Line { client: one, suppressed: 1 }));
        assert_eq!(quiet.tick(at(400)), None);
        assert_eq!(quiet.note(two, at(401)), Some(Line { client: two, suppressed: 0 }));
    }
}
