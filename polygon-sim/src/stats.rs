//! The simulator's counters.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The live counters.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: Counter,)+ }

        /// A simulator's counters at one moment, counted from its start.
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
    /// TCP connections accepted, with any outcome.
    tcp_accepted,
    /// TCP connections reset at once by a fault.
    tcp_refused,
    /// Upgrades answered with an HTTP status other than 101: for a wrong path, or by a fault.
    upgrades_refused,
    /// WebSocket connections opened.
    connections_accepted,
    /// `auth` requests answered `auth_success`.
    auths,
    /// `auth` requests answered `auth_failed`.
    auth_failures,
    /// Connections ended because they sent no `auth` in time.
    auth_timeouts,
    /// Connections ended with `max_connections`.
    evictions,
    /// Connections killed because more bytes waited for them than the buffer holds.
    slow_kills,
    /// `subscribe` requests received, with any outcome.
    subscribe_requests,
    /// `unsubscribe` requests received, with any outcome.
    unsubscribe_requests,
    /// Requests that were not text, or not a JSON object with a known `action`.
    malformed_requests,
    /// Data frames sent; statuses and garbage do not count.
    frames_sent,
    /// Events in these frames.
    events_sent,
    /// Payload bytes of these frames.
    bytes_sent,
    /// The most events in one data frame.
    largest_frame_events,
    /// Status frames sent.
    statuses_sent,
    /// Pings received. Each is answered, except during silence.
    pings_received,
    /// Close frames received, from clients that close or that answer a close.
    closes_received,
    /// Events generated, with or without a subscriber.
    events_generated,
    /// Events that were due by the rate but left out because the machine could not keep up.
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
