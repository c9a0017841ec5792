//! The faults that the simulator can produce.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A fault of the service or of the network. Inject it with
/// [`SimHandle::inject`](crate::SimHandle::inject).
///
/// In JSON its name stands under `fault`: `{"fault":"evict"}`, `{"fault":"refuse_auth","on":true}`.
/// A fault with `on` lasts until it is turned off. Any other happens once, to the connections open
/// at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Fault {
    /// Every `auth` gets `auth_failed` with `authentication failed`. The TCP connection is then
    /// dropped without a close frame.
    RefuseAuth {
        /// On or off.
        on: bool,
    },
    /// Every `auth` gets `auth_failed` with the text about the plan. The TCP connection is then
    /// dropped.
    PlanLacksMarket {
        /// On or off.
        on: bool,
    },
    /// Authenticated connections get the `max_connections` status and close 1008, as if another
    /// program had taken the account's connection.
    Evict,
    /// Every `auth` gets `auth_success`, then `max_connections`, then close 1008: the account is at
    /// its limit and the vendor refuses the new connection. Connections authenticated before stay.
    EvictOnAuth {
        /// On or off.
        on: bool,
    },
    /// Every TCP connection ends now, without a close frame. Queued items are not sent.
    Abort,
    /// Every connection gets its queued items, then a close frame with this code.
    CloseWith {
        /// The close code.
        code: u16,
        /// The reason in the close frame. Default: none.
        #[serde(default)]
        reason: String,
    },
    /// Half-open connections: the simulator neither reads nor writes on any connection, old or new,
    /// and answers no ping. Whatever is published or injected meanwhile is lost, except
    /// [`Fault::Abort`]. Once it is turned off, the simulator sends what was queued before and
    /// reads what clients sent meanwhile.
    Silence {
        /// On or off.
        on: bool,
    },
    /// New connections get no greeting.
    NoGreeting {
        /// On or off.
        on: bool,
    },
    /// New connections get this text frame instead of the greeting.
    GreetWith {
        /// The text. `None` turns the fault off.
        text: Option<String>,
    },
    /// `auth` requests get no answer.
    NoVerdict {
        /// On or off.
        on: bool,
    },
    /// New TCP connections are reset at once.
    RefuseTcp {
        /// On or off.
        on: bool,
    },
    /// Upgrades are answered with this HTTP status instead of 101.
    RefuseUpgrade {
        /// The status; 403 if it is not between 300 and 599. `None` turns the fault off.
        status: Option<u16>,
        /// A header of the answer, as name and value. Default: none.
        #[serde(default)]
        header: Option<(String, String)>,
    },
    /// Every authenticated connection gets one text frame that ends inside its JSON.
    Garbage,
    /// Every authenticated connection gets one binary frame that holds a status array.
    Binary,
    /// Every authenticated connection gets this text frame, unaltered: a heartbeat, an array with
    /// elements that are no objects, an event that is not JSON.
    RawText {
        /// The text.
        text: String,
    },
    /// Every authenticated connection gets a binary frame of these bytes.
    RawBinary {
        /// The bytes, in JSON an array of numbers.
        bytes: Vec<u8>,
    },
    /// One frame of this many generated events, without those that the connection is not subscribed
    /// to.
    HugeFrame {
        /// The number of events generated, at most 1,000,000.
        events: usize,
    },
    /// Bytes leave at this rate on every connection, so frames arrive in pieces. Bytes that wait
    /// count against the buffer.
    Slow {
        /// Bytes per second and connection, at least 1. `None` turns the fault off.
        bytes_per_second: Option<u64>,
    },
    /// From now on, a connection may hold this many contracts of each kind that is served by
    /// contract only. What it holds stays.
    Contracts {
        /// The number. `None` restores the configured one.
        most: Option<usize>,
    },
    /// The next data frame of each authenticated connection carries a status object after its first
    /// event.
    StatusInData,
}

impl fmt::Display for Fault {
    /// Its JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}
