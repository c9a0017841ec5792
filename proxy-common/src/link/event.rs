//! The events that a link yields.

use super::subscriptions::SubscriptionOutcome;
use crate::{
    protocol::{Outage, UpstreamStatus},
    websocket::Frame,
};

/// An event of a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// Logged in, and the upstream has answered for every channel wanted. Holds the outage that
    /// ended; the first one begins with the program.
    Up(Outage),
    /// The connection is lost. The link reconnects by itself.
    Down(Outage),
    /// The upstream has answered for every channel wanted by now, and no outage was going on.
    AllAnswered,
    /// An array of events. Unless it held statuses, byte for byte as the upstream sent it.
    Frame {
        /// The frame.
        frame: Frame,
        /// How many objects the array holds.
        events: u64,
    },
    /// A message without events arrived and was dropped; events may be missing.
    Malformed,
    /// A notice of the upstream for the clients: a frame that holds it alone, and its status.
    Notice(Frame, UpstreamStatus),
    /// A firehose reports its coverage: the status object, for
    /// [`Coverage::read`](crate::protocol::Coverage::read).
    Coverage(String),
    /// The upstream answered subscriptions.
    Subscriptions(Vec<SubscriptionOutcome>),
}
