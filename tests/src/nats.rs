//! Real NATS servers and clusters of them, which tests kill, stop, cut off and restart.
//!
//! [`stream`] looks into a stream with an independent client. [`tiers`] puts the programs around
//! NATS, with a relay wherever two of them meet.

mod cluster;
mod server;
pub mod stream;
pub mod tiers;

pub use cluster::NatsCluster;
pub use server::{NatsServer, Version};
