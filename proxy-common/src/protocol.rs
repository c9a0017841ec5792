//! The vendor's protocol: markets, channels, commands, statuses, and the notices of our own beside them.

pub mod channel;
pub mod channel_set;
pub mod coverage;
pub mod demux;
pub mod market;
pub mod messages;
pub mod notice;
