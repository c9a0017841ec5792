//! What both tiers of the proxy share, with both halves of each protocol.
//!
//! Rooms, from the ground up. A room imports only rooms above it in this table, and a test holds
//! which ones (`tests/it/tidy.rs`). The door of a room, the file that bears its name, lists what
//! the room offers.
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`version`] | number, commit and build date |
//! | [`metrics`] | counters and gauges, and how an owner registers them |
//! | [`websocket`] | WebSocket frames, and taking them out of bytes |
//! | [`protocol`] | markets, channels, commands, statuses, notices, coverage |
//! | [`history`] | the last messages of a feed, for whoever comes back |
//! | [`config`] | what parses the value of a setting |
//! | [`nats`] | names, heads and servers of NATS, which can carry the feed |
//! | [`link`] | the one managed connection to an upstream |
//! | [`transport`] | listeners, sockets, certificates, PROXY headers |
//! | [`access`] | who may connect, from where and how fast |
//! | [`session`] | one accepted WebSocket: commands in, events out, its end |
//! | [`health`] | the `/health` document and the ledger |
//! | `peers` | asking the other programs on NATS how they are |
//! | [`status`] | the page, `/status.json` and `/sessions` |
//! | [`server`] | accepting connections, HTTP, the upgrade |
//! | [`program`] | flags, log, runtime, signals, and the wiring of a tier |
//!
//! `docs/ARCHITECTURE.md` shows how the rooms work together.

pub mod access;
pub mod config;
pub mod health;
pub mod history;
pub mod link;
pub mod metrics;
mod named_enum;
pub mod nats;
#[cfg(feature = "nats")]
pub mod peers;
pub mod program;
pub mod protocol;
pub mod server;
pub mod session;
pub mod status;
pub mod transport;
pub mod version;
pub mod websocket;
