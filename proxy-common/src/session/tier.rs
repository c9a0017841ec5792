//! What a session needs of its tier.

use std::{collections::BTreeSet, sync::Arc};

use super::{close::CloseReason, outbound::Outbound};
use crate::{
    protocol::{Channel, ChannelSet, Unavailable},
    websocket::Frame,
};

/// A tier, as its sessions see it.
pub trait Tier: Sized + Send + Sync + 'static {
    /// A session's side of the tier's data. Dropping it ends all its subscriptions.
    type Subscriber: Subscriber;

    /// Lets an authenticated session subscribe.
    fn admit(&self, outbound: &Arc<Outbound>) -> impl Future<Output = Self::Subscriber> + Send;
}

/// A session's side of a tier's data.
pub trait Subscriber: Send {
    /// The subscriptions that the session holds.
    fn held(&self) -> &ChannelSet;

    /// The version of the coverage by which [`unavailable`](Self::unavailable) decides.
    fn coverage_version(&self) -> u64;

    /// Why a subscription of this channel would deliver nothing, or only a part.
    fn unavailable(&self, channel: &Channel) -> Option<Unavailable>;

    /// Applies a change and sends its reply, in order with the events around it. A subscription
    /// that was decided by an older version of the coverage is not applied.
    ///
    /// # Errors
    ///
    /// The session has to end.
    fn change(
        &mut self,
        change: SubscriptionChange,
    ) -> impl Future<Output = Result<ChangeOutcome, CloseReason>> + Send;

    /// Waits for data and sends it, if sessions of this tier fetch their data; never returns
    /// otherwise. Called only while nothing is queued. Must be cancel-safe.
    fn pull(&mut self) -> impl Future<Output = Result<(), CloseReason>> + Send;
}

/// A checked change of a session's subscriptions.
#[derive(Debug)]
pub struct SubscriptionChange {
    /// Whether the channels are added or removed.
    pub subscribe: bool,
    /// The channels that the session does not hold yet, or still holds.
    pub channels: BTreeSet<Channel>,
    /// The answer to the command, to be sent before any event that the change enables.
    pub reply: Vec<Frame>,
    /// The version of the coverage by which the channels were found available.
    pub coverage_version: u64,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeOutcome {
    /// It holds, and its reply is sent.
    Applied,
    /// Nothing changed and nothing was sent: the coverage has changed since the decision.
    CoverageChanged,
}
