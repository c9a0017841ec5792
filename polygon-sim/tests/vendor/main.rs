//! The simulator as a client sees it, and its events compared with samples of the vendor's.

#![expect(clippy::unwrap_used, reason = "a test ends where its expectation fails")]

mod client;
mod control;
mod faults;
mod generator;
mod markets;
mod program;
mod rules;
mod stream;
