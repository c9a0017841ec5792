//! The events that a link yields.

use tokio::time::Instant;

use super::subscriptions::SubscriptionOutcome;
use crate::{
    protocol::{Outage, Position, PositionMark, UpstreamStatus},
    websocket::Frame,
};

/// An event of a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// Logged in, and the upstream has answered for everything wanted. Holds the outage that
    /// ended; the first one begins with the program.
    Up(Outage),
    /// The connection is lost. The link reconnects by itself.
    Down(Outage),
    /// The upstream has answered for every channel wanted by now, and no outage was going on.
    /// Contracts may still be asked for.
    AllAnswered,
    /// An array of objects, which every JSON parser accepts. Byte for byte as the upstream sent it,
    /// unless it held statuses or something that was dropped.
    Frame {
        /// The frame.
        frame: Frame,
        /// How many objects the array holds.
        events: u64,
        /// When its last bytes were read.
        read_at: Instant,
        /// Where the feed stands behind it, if a firehose has said where it begins.
        position: Option<Position>,
    },
    /// A firehose says where the feed stands, and that old messages begin or end there.
    Mark(PositionMark),
    /// Something damaged arrived and was dropped; events may be missing. Follows the rest of its
    /// frame.
    Malformed {
        /// How many events were found in it.
        events: u64,
    },
    /// A notice of the upstream for the clients: a frame that holds it alone, and its status.
    Notice(Frame, UpstreamStatus),
    /// A firehose reports its coverage: the status object, for
    /// [`Coverage::read`](crate::protocol::Coverage::read).
    Coverage(String),
    /// A firehose answered for a contract that was asked for with
    /// [`Link::send`](super::Link::send).
    Contract {
        /// The contract.
        item: String,
        /// The answer.
        answer: ContractAnswer,
    },
    /// The upstream answered subscriptions.
    Subscriptions(Vec<SubscriptionOutcome>),
}

/// What a firehose answered for a contract.
#[derive(Debug)]
pub enum ContractAnswer {
    /// It is subscribed.
    Subscribed,
    /// It is unsubscribed. Answers before this one belong to earlier requests.
    Unsubscribed,
    /// It waits or is refused: the `error`, as an object.
    Refused(String),
}
