//! Access: who may connect, from where, how many and how fast.

pub mod abuse;
pub mod address_limits;
pub mod client_address;
pub mod command_rate;
pub mod gate;
pub mod keys;
pub mod origin;
