//! The router: one task that owns the index, takes frames off the link and writes each session's
//! events.
//!
//! It applies changes of subscriptions one at a time, and answers them between batches. So a
//! session's events and acknowledgements have one order. No event of a new subscription comes
//! before its acknowledgement, and none of a removed subscription comes after its acknowledgement.

mod answers;
mod handle;
mod outage_end;
mod progress;
mod route;
mod state;
mod subscriptions;

pub use self::{handle::RouterHandle, state::Router};
pub(crate) use self::{
    handle::{Follow, Input, LagLevels},
    state::Memory,
};
