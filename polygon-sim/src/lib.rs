//! A stand-in for the vendor's market-data WebSocket.
//!
//! It greets, authenticates, acknowledges, evicts, times out and closes as the vendor's service has
//! been observed to. It serves one [`Market`] or several, each at its own path. It sends every
//! event kind of a market with the keys in the order seen on the wire, at a realistic mix and rate.
//! On request it fails ([`Fault`]). The demo uses it as its market and the tests use it as their
//! upstream, so there is one fake, and it is independent of the code that it tests.
//!
//! [`Simulator::bind`] and [`Simulator::serve`] run it, and a [`SimHandle`] steers one market of
//! it. [`replay`] plays what a firehose recorded. [`generate`] makes events without a socket.
//! [`control`] and [`plan`] let other processes and scripts steer it.
//!
//! Where the vendor's behaviour is unknown, the simulator does this:
//!
//! - A malformed request gets a status `error`, and the connection stays open.
//! - Blanks around items are trimmed, and empty items are ignored.
//! - A second `auth` is checked again.
//! - Wildcards are accepted for every kind, in any number, even where the documentation names
//!   concrete contracts only.

pub mod config;
mod connection;
pub mod control;
mod event;
pub mod fault;
mod feed;
pub mod generate;
mod hub;
mod instrument;
mod interest;
mod journal;
mod lock;
pub mod market;
pub mod plan;
mod render;
pub mod replay;
pub mod server;
mod session;
pub mod stats;
mod status;
mod throttle;
mod universe;

pub use config::{Profile, SimConfig};
pub use fault::Fault;
pub use generate::Generator;
pub use market::Market;
pub use replay::Replay;
pub use server::{SimHandle, Simulator};
pub use stats::SimStats;
