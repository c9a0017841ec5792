//! A stand-in for the vendor's market-data WebSocket.
//!
//! It greets, authenticates, acknowledges, evicts, times out and closes the way the vendor's
//! service has been observed to; carries every event kind of its [`Market`] in the key orders seen
//! on the wire, at a realistic mix and rate; and goes wrong on request ([`Fault`]). The demo uses
//! it as its market and the tests as their upstream, so there is one fake, independent of the code
//! it tests.
//!
//! [`Simulator::bind`] and [`Simulator::serve`] run it, a [`SimHandle`] steers it, [`generate`]
//! makes events without a socket, [`control`] and [`plan`] let other processes and scripts steer.
//!
//! Where the vendor's behaviour is unknown, this is the simulator's: malformed requests get a
//! status `error` and the connection lives on; blanks around items are trimmed and empty items
//! ignored; a second `auth` is judged again; wildcards are accepted on every kind, also where the
//! documentation names concrete contracts only, and without a cap on their number.

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
pub use server::{SimHandle, Simulator};
pub use stats::SimStats;
