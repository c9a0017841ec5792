//! The settings of sessions.

use std::{sync::Arc, time::Duration};

use super::slow_consumer::SlowLimits;
use crate::{
    access::{CommandRate, Keys},
    protocol::{Market, NoticePolicy},
};

/// How sessions are served.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The market served.
    pub market: Market,
    /// The keys that open a session.
    pub keys: Arc<Keys>,
    /// How fast a session may send commands. Default: 1,000 a second.
    pub command_rate: CommandRate,
    /// Most time from the greeting to the auth command. Default: 10 s.
    pub auth_timeout: Duration,
    /// Time between our pings. Default: 20 s.
    pub ping_interval: Duration,
    /// Most subscriptions held. Default: 50,000.
    pub max_subscriptions: usize,
    /// How far a session may fall behind. Default: 16 MiB and 5 s.
    pub slow: SlowLimits,
    /// When the program stops, it closes sessions spread over this time. Default: 2 s.
    pub drain_spread: Duration,
    /// Most time from the stop to the end of the last session. Default: 10 s.
    pub drain_timeout: Duration,
    /// Which sessions get notices.
    pub notices: NoticePolicy,
}

#[cfg(test)]
impl SessionConfig {
    /// Stocks for these keys, ten subscriptions, and times that no test reaches.
    pub(super) fn for_tests(keys: Keys) -> Self {
        let minute = Duration::from_secs(60);
        Self {
            market: Market::Stocks,
            keys: Arc::new(keys),
            command_rate: CommandRate::per_second(100),
            auth_timeout: minute,
            ping_interval: minute,
            max_subscriptions: 10,
            slow: SlowLimits { queue_bytes: 1_000_000, max_lag: minute },
            drain_spread: minute,
            drain_timeout: minute,
            notices: NoticePolicy::Everyone,
        }
    }
}
