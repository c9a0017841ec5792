//! The state of a link, as `/health` shows it.

use std::time::SystemTime;

use serde::Serialize;

/// What a link is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// Opening a connection.
    Connecting,
    /// Connected, waiting for the answer to the key.
    Authenticating,
    /// Logged in.
    Up,
    /// Waiting before the next attempt.
    Waiting,
    /// The upstream refused the key; waiting long before the next attempt.
    Refused,
}

/// The state of a link.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// What it is doing.
    pub state: LinkState,
    /// Since when it has been up, or down.
    pub since: SystemTime,
    /// Why the last connection or attempt ended.
    pub last_error: Option<String>,
    /// Successful logins.
    pub connects: u64,
    /// The channels requested from the upstream.
    pub channels: ChannelStatus,
}

impl Default for LinkStatus {
    /// The state of a link that has not connected yet.
    fn default() -> Self {
        Self {
            state: LinkState::Connecting,
            since: SystemTime::now(),
            last_error: None,
            connects: 0,
            channels: ChannelStatus::default(),
        }
    }
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
