//! The sessions as the operator sees them, the slowest first.

use std::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use serde::Serialize;

use super::history::rfc3339;
use crate::session::OpenSessions;

/// One session.
#[derive(Debug, Clone, Serialize)]
pub struct SessionStatus {
    /// Its number among all sessions since the start of the program.
    pub number: u64,
    /// The market of its path.
    pub market: &'static str,
    /// Its name. Null if it has none.
    pub session: Option<String>,
    /// The label of its key. Null until it has authenticated.
    pub key: Option<String>,
    /// The address of its client.
    pub address: IpAddr,
    /// The port of its client. Null if only a proxy's is known.
    pub port: Option<u16>,
    /// What the client calls itself.
    pub user_agent: String,
    /// Since when it is open, in RFC 3339 form.
    #[serde(serialize_with = "rfc3339")]
    pub since: SystemTime,
    /// How many subscriptions it holds.
    pub subscriptions: usize,
    /// Events written to its socket.
    pub events: u64,
    /// The same in a second, over the last second or more.
    pub events_per_second: f64,
    /// Bytes that wait for its socket.
    pub queued_bytes: usize,
    /// How long ago the oldest of them was read from upstream; 0 if none waits.
    pub lag_seconds: f64,
}

impl SessionStatus {
    /// The key and the address, as a sentence names a client.
    pub(super) fn name(&self) -> String {
        let key = self.key.as_deref().unwrap_or("without a key");
        match self.port {
            Some(port) => format!("{key} at {}", SocketAddr::new(self.address, port)),
            None => format!("{key} at {}", self.address),
        }
    }
}

/// All sessions: those that lag the most first, then those that queue the most, then the oldest.
pub(super) fn list(open: &OpenSessions) -> Vec<SessionStatus> {
    let mut sessions: Vec<SessionStatus> = open
        .list()
        .iter()
        .filter_map(|session| {
            let snapshot = session.snapshot()?;
            Some(SessionStatus {
                number: session.number,
                market: session.client.market.name(),
                session: session.client.session_name().map(|name| name.to_string()),
                key: snapshot.key.map(|key| key.to_string()),
                address: session.client.address,
                port: session.client.port,
                user_agent: session.client.user_agent.to_string(),
                since: session.since,
                subscriptions: snapshot.subscriptions,
                events: snapshot.events,
                events_per_second: snapshot.events_per_second,
                queued_bytes: snapshot.queued_bytes,
                lag_seconds: (snapshot.lag.as_secs_f64() * 1e3).round() / 1e3,
            })
        })
        .collect();
    sessions.sort_by(|a, b| {
        let lag = b.lag_seconds.total_cmp(&a.lag_seconds);
        lag.then_with(|| {
            (Reverse(a.queued_bytes), a.number).cmp(&(Reverse(b.queued_bytes), b.number))
        })
    });
    sessions
}
