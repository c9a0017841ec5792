//! The WebSocket protocol (RFC 6455): whole frames, and a decoder that takes them out of bytes.

mod decoder;
mod frame;

pub(crate) use self::{
    decoder::apply_mask,
    frame::{MAX_HEADER_BYTES, append_header},
};
pub use self::{
    decoder::{Decoded, Decoder, Violation},
    frame::{Frame, NoFrames, frames},
};
