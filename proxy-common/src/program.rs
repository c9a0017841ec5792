//! Makes a tier a program: flags, log, runtime, signals, and the wiring that both tiers share.

pub mod access_args;
pub mod args;
mod check;
pub mod command_line;
mod dotenv;
mod hash_key;
mod healthcheck;
mod ignored;
pub mod logging;
pub mod nats_args;
pub mod program_config;
mod program_metrics;
pub mod reload;
pub mod runtime;
pub mod service_manager;
pub mod settings;
pub mod subcommand;
pub mod wiring;
