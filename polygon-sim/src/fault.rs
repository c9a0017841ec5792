//! What can be made to go wrong.

use serde::{Deserialize, Serialize};

/// A fault of the service or of the way to it, injected with
/// [`SimHandle::inject`](crate::SimHandle::inject).
///
/// In JSON its name stands under `fault`: `{"fault":"evict"}`,
/// `{"fault":"refuse_auth","on":true}`. Those with `on` last until turned off; the others happen
/// once, to the connections open at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Fault {
    /// Every `auth` gets `auth_failed` / `authentication failed` and the TCP connection is dropped
    /// without a close frame.
    RefuseAuth {
        /// On or off.
        on: bool,
    },
    /// Every `auth` gets `auth_failed` with the text about the plan, and the drop.
    PlanLacksMarket {
        /// On or off.
        on: bool,
    },
    /// Authenticated connections get the `max_connections` status and close 1008, as if another
    /// program had taken the account's slot.
    Evict,
    /// Every connection gets `auth_success`, then `max_connections`, then close 1008: an account
    /// at its cap that refuses the newcomer. Connections authenticated before stay.
    EvictOnAuth {
        /// On or off.
        on: bool,
    },
    /// Every connection's TCP ends now: no close frame, what was queued is not sent.
    Abort,
    /// Every connection gets what is queued, then a close frame with this code.
    CloseWith {
        /// The close code.
        code: u16,
    },
    /// Half-open: the simulator neither reads nor writes on any connection, new ones included, and
    /// answers no ping. What is published or injected meanwhile is lost ([`Fault::Abort`] alone
    /// still works); what was queued before, and what the clients sent meanwhile, is taken up when
    /// it is turned off.
    Silence {
        /// On or off.
        on: bool,
    },
    /// New connections get no greeting.
    NoGreeting {
        /// On or off.
        on: bool,
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
        /// The status, 403 if not from 400 to 599; none turns it off.
        status: Option<u16>,
    },
    /// One text frame that is cut off inside its JSON, to every authenticated connection.
    Garbage,
    /// One binary frame holding a status array, to every authenticated connection.
    Binary,
    /// One frame of this many generated events, less those not subscribed to.
    HugeFrame {
        /// Events generated, at most 1,000,000.
        events: usize,
    },
    /// Bytes leave at this rate on every connection, so frames arrive in pieces. What piles up
    /// counts against the buffer.
    Slow {
        /// Bytes per second and connection, at least 1; none turns it off.
        bytes_per_second: Option<u64>,
    },
    /// The next data frame of each authenticated connection carries a status object behind its
    /// first event.
    StatusInData,
}
