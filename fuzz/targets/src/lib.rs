//! The fuzz targets: functions that take any bytes and panic if something is wrong. Each compares
//! the product with a model that was written separately.
//!
//! cargo-fuzz runs them from `fuzz/fuzz_targets`. Without it, `tests/corpus.rs` runs them over the
//! saved corpus.

pub mod channels;
pub mod commands;
pub mod frames;
pub mod handshake;
mod members;
pub mod record;
pub mod split;
pub mod websocket;

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All targets by name. The directory of that name holds the corpus.
pub const TARGETS: [(&str, Target); 7] = [
    ("split", split::as_a_parser_would),
    ("frames", frames::of_an_upstream),
    ("websocket", websocket::in_any_portions),
    ("commands", commands::as_a_parser_would),
    ("handshake", handshake::of_every_port),
    ("channels", channels::of_every_market),
    ("record", record::as_a_parser_would),
];
