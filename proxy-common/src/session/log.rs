//! The log lines of sessions: their starts, commands and ends. A storm of clients does not flood
//! the log.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use super::{client::ClientInfo, close::CloseReason, open_sessions::OpenSession, outbound::Totals};

/// At most this many starts, and as many ends, have a line of their own in a period.
const MAX_LINES: u32 = 100;
/// The period.
const PERIOD: Duration = Duration::from_secs(10);

/// The log of all sessions of a program. Starts and ends of sessions that have logged in are logged
/// up to a limit, and the rest is counted. Others are logged at the level debug: what they did
/// wrong is logged as abuse.
#[derive(Debug, Default)]
pub struct SessionLog {
    /// The lock is held for a few instructions.
    limits: Mutex<Limits>,
}

#[derive(Debug, Default)]
struct Limits {
    starts: Limit,
    ends: Limit,
}

impl SessionLog {
    /// A session begins, and has yet to log in.
    pub(super) fn opened(session: &OpenSession) {
        let OpenSession { number, client, .. } = session;
        let session_name = session_name(client);
        debug!(session = number, session_name, %client, "session waits for its key");
    }

    /// A session has logged in.
    pub(super) fn started(&self, session: &OpenSession, key: &str) {
        if !self.lock().starts.take(Instant::now()) {
            return;
        }
        let OpenSession { number, client, .. } = session;
        let (session_name, user_agent) = (session_name(client), &*client.user_agent);
        info!(session = number, session_name, %client, user_agent, key, "session started");
    }

    /// A session has sent a command that was carried out. `subject` names no key.
    pub(super) fn command(session: &OpenSession, key: &str, command: &str, subject: &str) {
        let OpenSession { number, client, .. } = session;
        let session_name = session_name(client);
        debug!(session = number, session_name, %client, key, command, subject, "command");
    }

    /// A session has ended.
    pub(super) fn ended(&self, end: &End<'_>) {
        let End { session, started, key, lived, totals, reason } = *end;
        let OpenSession { number, client, .. } = session;
        let (session_name, user_agent) = (session_name(client), &*client.user_agent);
        let (seconds, lag_ms) = (lived.as_secs(), totals.lag.as_millis() as u64);
        let Totals { events, bytes, .. } = totals;
        let label = reason.label();
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    session = number, session_name, %client, user_agent, key, seconds, events,
                    bytes, lag_ms, reason = label, "session ended"
                )
            };
        }
        if reason.is_notable() {
            line!(warn);
        } else if !started || !self.lock().ends.take(Instant::now()) {
            line!(debug);
        } else {
            line!(info);
        }
    }

    /// Logs how many lines were left out, once their period is over. Call it about once a second.
    pub fn tick(&self) {
        let now = Instant::now();
        let (starts, ends) = {
            let mut limits = self.lock();
            (limits.starts.report(now), limits.ends.report(now))
        };
        if starts + ends > 0 {
            info!(starts, ends, "sessions started and ended without a line: too many at once");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a client's session. A line about a session without a name does not have the field.
fn session_name(client: &ClientInfo) -> Option<&str> {
    client.session_name().map(|name| &**name)
}

/// The end of a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct End<'a> {
    pub(super) session: &'a OpenSession,
    /// Whether it had logged in.
    pub(super) started: bool,
    /// The label of its last key.
    pub(super) key: Option<&'a str>,
    /// How long it was open.
    pub(super) lived: Duration,
    pub(super) totals: Totals,
    pub(super) reason: CloseReason,
}

/// Counts lines of one kind.
#[derive(Debug, Default)]
struct Limit {
    /// When the period began.
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
    /// Left out in periods that are over.
    due: u64,
}

impl Limit {
    /// Whether to write a line now.
    fn take(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now >= since + PERIOD) {
            (self.since, self.lines) = (Some(now), 0);
            self.due += std::mem::take(&mut self.suppressed);
        }
        self.lines += 1;
        let write = self.lines <= MAX_LINES;
        self.suppressed += u64::from(!write);
        write
    }

    /// How many lines were left out and not reported yet, once the period is over.
    fn report(&mut self, now: Instant) -> u64 {
        if self.since.is_some_and(|since| now >= since + PERIOD) {
            self.due += std::mem::take(&mut self.suppressed);
        }
        std::mem::take(&mut self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted_and_reported_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut limit = Limit::default();
        let written = (0..250).filter(|_| limit.take(at(1))).count();
        assert_eq!((written, limit.report(at(10))), (100, 0));
        assert_eq!((limit.report(at(11)), limit.report(at(12))), (150, 0));
        assert!(limit.take(at(13)));
        assert_eq!(limit.report(at(30)), 0);
        // What was left out is not forgotten if the next period has begun.
        assert_eq!((0..101).filter(|_| limit.take(at(40))).count(), 100);
        assert!(limit.take(at(50)));
        assert_eq!((limit.report(at(51)), limit.report(at(60))), (1, 0));
    }
}
