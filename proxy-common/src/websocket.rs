//! The WebSocket protocol (RFC 6455): whole frames, and taking them out of bytes.

pub mod decoder;
pub mod frame;
