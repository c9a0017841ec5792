//! The log: its settings and its setup.

use std::io::{self, IsTerminal};

use crate::version::VERSION;
use clap::{Args, ValueEnum};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Settings of the log, the same for both tiers.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What is logged: error, warn, info, debug or trace, or levels per module such as
    /// info,proxy_common::link=debug
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_parser = log_filter)]
    pub log_level: Targets,
    /// How log lines look [default: text on a terminal, json otherwise]
    #[arg(long, env = "LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
}

impl LogArgs {
    /// Sets up the log of this process, which runs the program of this name.
    pub fn init(&self, program: &str) {
        init(program, self.log_level.clone(), self.log_format);
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// Sends logs to standard error. Without a format, writes text to a terminal and JSON to anything
/// else. JSON lines name the program and its version.
///
/// # Panics
///
/// The log is set up already.
pub fn init(program: &str, filter: Targets, format: Option<LogFormat>) {
    let terminal = io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let registry = tracing_subscriber::registry().with(without_libraries(filter));
    match format {
        LogFormat::Text => {
            registry.with(fmt::layer().with_writer(io::stderr).with_ansi(terminal)).init();
        }
        LogFormat::Json => {
            let mut lines = json_subscriber::fmt::layer()
                .with_writer(io::stderr)
                .flatten_event(true)
                .with_span_list(false);
            lines.inner_layer_mut().add_static_field("program", program.into());
            lines.inner_layer_mut().add_static_field("version", VERSION.into());
            registry.with(lines).init();
        }
    }
}

/// The same filter, without the lines of the NATS client unless they are asked for by name: it
/// reports each attempt, and whoever uses it says once what that means.
fn without_libraries(filter: Targets) -> Targets {
    const CLIENT: &str = "async_nats";
    match filter.iter().any(|(target, _)| target.starts_with(CLIENT)) {
        true => filter,
        false => filter.with_target(CLIENT, LevelFilter::OFF),
    }
}

/// Parses a level, or levels such as `info,proxy_common::link=debug`.
///
/// # Errors
///
/// The text is neither.
pub fn log_filter(text: &str) -> Result<Targets, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let expected =
        "expected error, warn, info, debug, trace, or levels such as info,proxy_common::link=debug";
    // A filter reads a single word as the name of a module, and then logs nothing else.
    let filter = text.contains([',', '=']) || LEVELS.contains(&text.to_ascii_lowercase().as_str());
    if !filter {
        return Err(expected.to_owned());
    }
    text.parse().map_err(|error| format!("{expected} ({error})"))
}
