//! Real NATS servers and clusters of them, which tests kill, stop, cut off and restart.
//!
//! [`stream`] looks into a stream with an independent client.

mod cluster;
mod server;
pub mod stream;

pub use cluster::NatsCluster;
pub use server::{NatsServer, Version};
