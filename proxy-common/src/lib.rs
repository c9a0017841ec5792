//! What both tiers of the proxy share, and nothing that only one of them uses.
//!
//! | layer | modules | may use |
//! | --- | --- | --- |
//! | pure: no tokio, no clock, no log | [`market`], [`channel`], [`channel_set`], [`protocol`], [`frame`], [`websocket`], [`upstream_channels`], [`carried`], [`close`], [`slow`], [`backoff`], [`pace`], [`origin`] | each other, downwards |
//! | one side effect each | [`config`], [`keys`], [`certificate`], [`telemetry`], [`process`], [`reload`], [`metrics`], [`ledger`], [`health`], [`notice`], [`address`], [`admission`], [`abuse`] | the pure layer |
//! | sockets and tasks | [`proxy_protocol`], [`doors`], [`socket`], [`outbound`], [`budget`], [`session`], [`http_face`], [`server`], [`link`] | everything above |
//!
//! `docs/ARCHITECTURE.md` shows how the modules work together.

pub mod abuse;
pub mod address;
pub mod admission;
pub mod backoff;
pub mod budget;
pub mod carried;
pub mod certificate;
pub mod channel;
pub mod channel_set;
pub mod close;
pub mod config;
pub mod doors;
pub mod frame;
pub mod health;
pub mod http_face;
pub mod keys;
pub mod ledger;
pub mod link;
pub mod market;
pub mod metrics;
pub mod notice;
pub mod origin;
pub mod outbound;
pub mod pace;
pub mod process;
pub mod protocol;
pub mod proxy_protocol;
pub mod reload;
pub mod server;
pub mod session;
pub mod slow;
pub mod socket;
pub mod telemetry;
pub mod upstream_channels;
pub mod websocket;
