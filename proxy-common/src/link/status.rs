//! The state of a link, as `/health` shows it.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::error::LinkError;
use crate::protocol::Outage;

/// What a link is doing, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// Logged in.
    Up,
    /// Connected, waiting for the answer to the key.
    Authenticating,
    /// Opening a connection.
    Connecting,
    /// Waiting before the next attempt.
    Waiting,
    /// Waiting until this program may dial; another one may.
    Standby,
    /// The upstream refused the key; waiting long before the next attempt.
    Refused,
}

/// The state of a link.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// What it is doing.
    pub state: LinkState,
    /// The upstream's name, for people.
    pub upstream: &'static str,
    /// Its URL, without the parts that may hold a secret.
    pub url: String,
    /// Since when it has been up, or down.
    pub since: SystemTime,
    /// Why the last connection or attempt ended. `None` while the link is up, and before the first
    /// attempt has ended.
    pub last_error: Option<LastError>,
    /// The last outage that ended, and when. The first one begins with the program.
    pub last_outage: Option<(Outage, SystemTime)>,
    /// Successful logins.
    pub connects: u64,
    /// The channels requested from the upstream.
    pub channels: ChannelStatus,
}

impl LinkStatus {
    /// The state of a link that has not connected yet.
    pub fn new(upstream: &'static str, url: String) -> Self {
        Self {
            state: LinkState::Connecting,
            upstream,
            url,
            since: SystemTime::now(),
            last_error: None,
            last_outage: None,
            connects: 0,
            channels: ChannelStatus::default(),
        }
    }
}

impl LinkStatus {
    /// The state of several links that together carry one market: down as long as any of them is.
    pub fn of_all(links: &[Self]) -> Self {
        let worst = links.iter().max_by_key(|link| (link.state, link.last_error.is_some()));
        let worst = worst.expect("a market has a link");
        let is_down = |link: &&Self| link.state != LinkState::Up;
        let down_since = links.iter().filter(is_down).map(|link| link.since).min();
        let up_since = links.iter().map(|link| link.since).max();
        let with = |channels: fn(&ChannelStatus) -> &Vec<String>| {
            links.iter().flat_map(|link| channels(&link.channels)).cloned().collect()
        };
        let mut urls: Vec<&str> = links.iter().map(|link| &*link.url).collect();
        urls.dedup();
        Self {
            url: urls.join(", "),
            since: down_since.or(up_since).unwrap_or(worst.since),
            last_outage: links
                .iter()
                .filter_map(|link| link.last_outage.clone())
                .max_by_key(|(_, ended)| *ended),
            // Reconnects are those after the first login of each.
            connects: links.iter().map(|link| link.connects.saturating_sub(1)).sum::<u64>()
                + u64::from(links.iter().any(|link| link.connects > 0)),
            channels: ChannelStatus {
                carried: with(|channels| &channels.carried),
                refused: with(|channels| &channels.refused),
                pending: with(|channels| &channels.pending),
            },
            ..worst.clone()
        }
    }
}

/// Why a connection or an attempt ended.
#[derive(Debug, Clone)]
pub struct LastError {
    /// The reason.
    pub error: LinkError,
    /// When it ended.
    pub at: SystemTime,
    /// How long after that the next attempt comes.
    pub wait: Duration,
}

/// The channels requested from an upstream, grouped by its answer.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ChannelStatus {
    /// Acknowledged.
    pub carried: Vec<String>,
    /// Refused, most likely because the plan does not include them.
    pub refused: Vec<String>,
    /// Not answered yet, or not in time.
    pub pending: Vec<String>,
}
