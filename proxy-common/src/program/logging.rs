//! Setting up logs.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// The filter that a setting such as `info` or `info,proxy_common::link=debug` means; what is no filter means `info`.
pub fn filter(setting: &str) -> EnvFilter {
    EnvFilter::try_new(setting).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Sends logs to standard error; without a format, text to a terminal and JSON to anything else.
///
/// # Panics
///
/// Logs were set up before.
pub fn init(filter: EnvFilter, format: Option<LogFormat>) {
    let terminal = io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => {
            registry.with(fmt::layer().with_writer(io::stderr).with_ansi(terminal)).init();
        }
        LogFormat::Json => registry.with(fmt::layer().json().with_writer(io::stderr)).init(),
    }
}
