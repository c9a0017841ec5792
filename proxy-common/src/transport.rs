//! Sockets of clients: PROXY headers, TLS, reading and writing without waiting.

pub mod certificate;
pub mod listener;
pub mod proxy_protocol;
pub mod socket;
