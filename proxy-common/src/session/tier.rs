//! The traits that a tier implements for its sessions.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    client::{ClientInfo, NamedSessions},
    close::CloseReason,
    outbound::Outbound,
};
use crate::{
    protocol::{Channel, ChannelSet, ExtraKinds, OnBehalfOf, Position, Start, Unavailable},
    websocket::Frame,
};

/// A tier, as its sessions see it.
pub trait Tier: Sized + Send + Sync + 'static {
    /// A session's side of the tier's data. Dropping it ends all its subscriptions.
    type Subscriber: Subscriber;

    /// Whether it remembers sessions by their names. Default: no.
    const NAMED_SESSIONS: NamedSessions = NamedSessions::Refused;

    /// Lets a session subscribe that has authenticated with the key of this label.
    fn admit(
        &self,
        outbound: &Arc<Outbound>,
        client: &ClientInfo,
        key: Arc<str>,
    ) -> impl Future<Output = Self::Subscriber> + Send;
}

/// A session's side of a tier's data.
pub trait Subscriber: Send {
    /// The subscriptions that the session holds.
    fn held(&self) -> &ChannelSet;

    /// The version of the coverage that [`extra_kinds`](Self::extra_kinds) and
    /// [`unavailable`](Self::unavailable) use.
    fn coverage_version(&self) -> u64;

    /// The kinds that can be subscribed to beside those of the market.
    fn extra_kinds(&self) -> ExtraKinds;

    /// Why a subscription to this channel would deliver nothing, or only a part. `None` if it would
    /// deliver everything.
    fn unavailable(&self, channel: &Channel) -> Option<Unavailable>;

    /// Whether this is a contract that upstream serves on demand. The tier itself answers its
    /// subscription: there may be no room for it.
    fn is_on_demand(&self, channel: &Channel) -> bool;

    /// Applies a change and sends its reply, in order with the events around it. Does not apply a
    /// subscription that was decided with an older version of the coverage.
    ///
    /// # Errors
    ///
    /// The session has to end.
    fn change(
        &mut self,
        change: SubscriptionChange,
    ) -> impl Future<Output = Result<ChangeOutcome, CloseReason>> + Send;

    /// Adds nothing more to what the session is sent. Returns the position after everything that it
    /// was sent; `None` if that is not known.
    fn leave(&mut self) -> impl Future<Output = Option<Position>> + Send {
        std::future::ready(None)
    }

    /// Takes the payload of a pong: what a ping of the tier's own asked back, nothing for a pong to
    /// a keep-alive ping, or what the client made up. Default: ignores it.
    fn on_pong(&mut self, _payload: &[u8]) {}

    /// Waits for data and sends it, if sessions of this tier fetch their data. Otherwise never
    /// returns. The session calls it only while nothing is queued. Must be cancel-safe.
    fn pull(&mut self) -> impl Future<Output = Result<(), CloseReason>> + Send;
}

/// A checked change of a session's subscriptions.
#[derive(Debug)]
pub struct SubscriptionChange {
    /// Whether the channels are added or removed.
    pub subscribe: bool,
    /// The channels to add, which the session does not hold, or to remove, which it holds.
    /// Contracts on demand may be held already, and so may all if the subscription does not begin
    /// with live data.
    pub channels: BTreeSet<Channel>,
    /// Where the subscription begins.
    pub start: Start,
    /// Whether the last value of each channel is wanted first.
    pub snapshot: bool,
    /// For whom a filtered proxy asks for contracts.
    pub on_behalf_of: Option<OnBehalfOf>,
    /// The answer to the command, to be sent before any event that the change enables.
    pub reply: Vec<Frame>,
    /// The version of the coverage that the decision used.
    pub coverage_version: u64,
}

/// The result of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeOutcome {
    /// The change is applied, and its reply is sent.
    Applied,
    /// The coverage has changed since the decision. Nothing was applied or sent.
    CoverageChanged,
}
