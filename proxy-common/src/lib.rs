//! What both tiers of the proxy share, and nothing that only one of them uses.
//!
//! | layer | modules | may use |
//! | --- | --- | --- |
//! | pure: no tokio, no clock, no log | [`market`], [`channel`], [`channel_set`], [`protocol`], [`frame`], [`websocket`], [`upstream_channels`], [`carried`], [`close`], [`slow`], [`backoff`], [`pace`], [`origin`] | each other, downwards |
//! | one side effect each | [`config`], [`keys`], [`certificate`], [`telemetry`], [`process`], [`reload`], [`metrics`], [`ledger`], [`health`], [`notice`], [`address`], [`admission`], [`abuse`] | the pure layer |
//! | sockets and tasks | [`proxy_protocol`], [`doors`], [`socket`], [`outbound`], [`budget`], [`session`], [`http_face`], [`server`], [`link`] | everything above |
//!
//! `docs/ARCHITECTURE.md` shows how the modules work together.

pub mod access;
pub mod config;
pub mod health;
pub mod link;
pub mod metrics;
mod named_enum;
pub mod program;
pub mod protocol;
pub mod server;
pub mod session;
pub mod transport;
pub mod websocket;
