//! What both tiers of the proxy share, and nothing that only one of them uses.
//!
//! | layer | modules | may use |
//! | --- | --- | --- |
//! | pure: no tokio, no clock, no log | [`market`], [`channel`], [`protocol`], [`frame`], [`upstream_channels`], [`carried`], [`close`], [`slow`], [`backoff`] | each other, downwards |
//! | one side effect each | [`config`], [`telemetry`], [`process`], [`metrics`], [`health`], [`notice`] | the pure layer |
//! | sockets and tasks | [`outbound`], [`session`], [`http_face`], [`server`], [`link`] | everything above |
//!
//! `docs/ARCHITECTURE.md` shows how the modules work together.

pub mod backoff;
pub mod carried;
pub mod channel;
pub mod close;
pub mod config;
pub mod frame;
pub mod health;
pub mod http_face;
pub mod link;
pub mod market;
pub mod metrics;
pub mod notice;
pub mod outbound;
pub mod process;
pub mod protocol;
pub mod server;
pub mod session;
pub mod slow;
pub mod telemetry;
pub mod upstream_channels;
