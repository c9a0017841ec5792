//! Makes a tier a program: flags, log, runtime, signals, and the wiring that both tiers share.

pub mod access_args;
pub mod args;
pub mod command_line;
mod dotenv;
pub mod hash_key;
mod healthcheck;
mod ignored;
pub mod logging;
mod program_metrics;
pub mod reload;
pub mod runtime;
pub mod service_manager;
pub mod wiring;
