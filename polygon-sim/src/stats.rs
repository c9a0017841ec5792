//! What a simulator counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counters while they count.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: Counter,)+ }

        /// A simulator's counters at one moment, all from its start.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        #[non_exhaustive]
        pub struct SimStats {
            /// WebSocket connections open now, authenticated or not.
            pub connections_now: u64,
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            pub(crate) fn snapshot(&self, connections_now: u64) -> SimStats {
                SimStats { connections_now, $($name: self.$name.0.load(Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// TCP connections accepted, whatever came of them.
    tcp_accepted,
    /// TCP connections cut at once, by fault.
    tcp_refused,
    /// Upgrades answered with another HTTP status than 101: a wrong path, or by fault.
    upgrades_refused,
    /// WebSocket connections opened.
    connections_accepted,
    /// `auth` requests answered `auth_success`.
    auths,
    /// `auth` requests answered `auth_failed`.
    auth_failures,
    /// Connections ended for never sending `auth`.
    auth_timeouts,
    /// Connections ended with `max_connections`.
    evictions,
    /// Connections killed because more than the buffer's bytes waited for them.
    slow_kills,
    /// `subscribe` requests received, whatever came of them.
    subscribe_requests,
    /// `unsubscribe` requests received, whatever came of them.
    unsubscribe_requests,
    /// Requests that were no JSON object with a known `action`, or not text.
    malformed_requests,
    /// Data frames sent; statuses and garbage do not count.
    frames_sent,
    /// Events in them.
    events_sent,
    /// Bytes of payload in them.
    bytes_sent,
    /// The most events in one data frame.
    largest_frame_events,
    /// Status frames sent.
    statuses_sent,
    /// Pings received (and, but for silence, answered).
    pings_received,
    /// Events generated, wanted by a connection or not.
    events_generated,
    /// Events due by the rate that were given up because the machine could not keep up.
    events_skipped,
}

/// A count that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn one(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(crate) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Relaxed);
    }

    pub(crate) fn at_least(&self, value: usize) {
        self.0.fetch_max(value as u64, Relaxed);
    }
}
