//! The programs of a market show each other over NATS how they are, so that `/health` of any of
//! them lists the others.
//!
//! Each asks all every few seconds, in the background, and keeps the answers. No HTTP request
//! waits for one.

mod answer;
mod ask;

pub use self::ask::{AskedMarket, ask_and_answer};
