//! The simulator seen through a socket, and its events held against samples of the vendor's.

#![expect(clippy::unwrap_used, reason = "a test ends where its expectation fails")]

mod client;
mod control;
mod faults;
mod generator;
mod program;
mod rules;
mod stream;
