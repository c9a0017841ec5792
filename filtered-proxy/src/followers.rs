//! Which sessions have to learn where the feed stands, and when. Pure.
//!
//! A session may ask for positions, to go on from one of them later. A session with a name
//! gets them in pings, because its client answers these by itself.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proxy_common::protocol::Position;

use crate::index::SessionId;

/// How long data may go to a session with a name before a ping follows it.
const PING_INTERVAL: Duration = Duration::from_millis(250);
/// How many bytes may go to it before a ping follows them.
const PING_BYTES: u64 = 256 << 10;
/// How long the sessions are left alone after a look at them.
const PAUSE: Duration = Duration::from_millis(10);

/// What a session has to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A `position` status.
    Status,
    /// A ping that holds the position.
    Ping,
}

/// The sessions that have to learn where the feed stands. `M` is the caller's value for each.
#[derive(Debug)]
pub struct Followers<M> {
    statuses: BTreeMap<SessionId, Follower<M>>,
    pings: BTreeMap<SessionId, Follower<M>>,
    next_look: Option<Instant>,
}

#[derive(Debug)]
struct Follower<M> {
    member: M,
    interval: Duration,
    due: Instant,
    /// What it has been told.
    marked: Position,
    /// Bytes sent to it when it was told.
    sent: u64,
}

impl<M> Follower<M> {
    fn new(member: M, interval: Duration, now: Instant) -> Self {
        Self { member, interval, due: now, marked: Position::default(), sent: 0 }
    }

    fn mark(&mut self, position: Position, sent: u64, now: Instant) {
        (self.marked, self.sent, self.due) = (position, sent, now + self.interval);
    }
}

impl<M> Default for Followers<M> {
    fn default() -> Self {
        Self { statuses: BTreeMap::new(), pings: BTreeMap::new(), next_look: None }
    }
}

impl<M: Clone> Followers<M> {
    /// Adds a session: with a name, or with an interval at which it wants statuses at most.
    pub fn add(
        &mut self,
        session: SessionId,
        member: &M,
        named: bool,
        interval: Option<Duration>,
        now: Instant,
    ) {
        let of = |interval| Follower::new(member.clone(), interval, now);
        self.statuses.extend(interval.map(|interval| (session, of(interval))));
        self.pings.extend(named.then(|| (session, of(PING_INTERVAL))));
    }

    /// Removes a session.
    pub fn remove(&mut self, session: SessionId) {
        self.statuses.remove(&session);
        self.pings.remove(&session);
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.statuses.is_empty() && self.pings.is_empty()
    }

    /// Whether it is time to look at the sessions.
    pub fn is_time(&self, now: Instant) -> bool {
        self.next_look.is_none_or(|next| now >= next)
    }

    /// The sessions that have to learn now that the feed stands here. `sent` says how many bytes
    /// were sent to a session; `None` if it gets no live data now.
    pub fn due(
        &mut self,
        position: Position,
        now: Instant,
        sent: impl Fn(SessionId, &M) -> Option<u64>,
    ) -> Vec<(M, Mark)> {
        self.next_look = Some(now + PAUSE);
        let mut due = Vec::new();
        for (&session, follower) in &mut self.statuses {
            if follower.marked != position
                && now >= follower.due
                && let Some(sent) = sent(session, &follower.member)
            {
                follower.mark(position, sent, now);
                due.push((follower.member.clone(), Mark::Status));
            }
        }
        for (&session, follower) in &mut self.pings {
            if follower.marked != position
                && let Some(sent) = sent(session, &follower.member)
                && (now >= follower.due || sent.saturating_sub(follower.sent) >= PING_BYTES)
            {
                follower.mark(position, sent, now);
                due.push((follower.member.clone(), Mark::Ping));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64) -> Position {
        Position { epoch: 1, seq }
    }

    #[test]
    fn a_session_is_told_at_its_interval_if_the_feed_went_on() {
        let (mut followers, start) = (Followers::<&str>::default(), Instant::now());
        assert!(followers.is_empty());
        followers.add(7, &"a", false, Some(Duration::from_secs(1)), start);
        let mut due = |seq, millis| {
            followers.due(at(seq), start + Duration::from_millis(millis), |_, _| Some(0))
        };
        assert_eq!(due(1, 0), [("a", Mark::Status)]);
        assert_eq!(due(2, 999), []);
        assert_eq!(due(2, 1_000), [("a", Mark::Status)]);
        assert_eq!(due(2, 5_000), []);
        assert_eq!(due(3, 5_001), [("a", Mark::Status)]);
    }

    #[test]
    fn a_session_with_a_name_is_pinged_by_time_and_by_bytes() {
        let (mut followers, start) = (Followers::<&str>::default(), Instant::now());
        followers.add(7, &"a", true, None, start);
        let mut due = |seq, millis, sent| {
            followers.due(at(seq), start + Duration::from_millis(millis), |_, _| sent)
        };
        assert_eq!(due(1, 0, Some(0)), [("a", Mark::Ping)]);
        assert_eq!(due(2, 249, Some(PING_BYTES - 1)), []);
        assert_eq!(due(2, 249, None), [], "it replays");
        assert_eq!(due(2, 249, Some(PING_BYTES)), [("a", Mark::Ping)]);
        assert_eq!(due(3, 300, Some(PING_BYTES)), []);
        assert_eq!(due(3, 499, Some(PING_BYTES)), [("a", Mark::Ping)]);
        assert_eq!(due(3, 999, Some(PING_BYTES)), []);
    }

    #[test]
    fn sessions_are_looked_at_now_and_then() {
        let (mut followers, start) = (Followers::<&str>::default(), Instant::now());
        assert!(followers.is_time(start));
        followers.due(at(1), start, |_, _| None);
        assert!(!followers.is_time(start + Duration::from_millis(9)));
        assert!(followers.is_time(start + PAUSE));
        followers.add(7, &"a", true, Some(PAUSE), start);
        followers.remove(7);
        assert!(followers.is_empty());
    }
}
