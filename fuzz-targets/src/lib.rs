//! What is fuzzed: functions of any bytes that panic where something is wrong, each against a model
//! written apart from the product.
//!
//! cargo-fuzz runs them from `fuzz/fuzz_targets`; `tests/corpus.rs` here runs them over the saved
//! corpus without it.

pub mod channels;
pub mod commands;
pub mod frames;
pub mod handshake;
mod members;
pub mod split;
pub mod websocket;

/// A function of any bytes.
pub type Target = fn(&[u8]);

/// All of them by name; the corpus of each is the directory of that name.
pub const TARGETS: [(&str, Target); 6] = [
    ("split", split::as_a_parser_would),
    ("frames", frames::of_an_upstream),
    ("websocket", websocket::in_any_portions),
    ("commands", commands::as_a_parser_would),
    ("handshake", handshake::of_every_port),
    ("channels", channels::of_every_market),
];
