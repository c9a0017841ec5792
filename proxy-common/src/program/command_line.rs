//! Reads settings from the command line, the environment and `.env`. Reports a bad setting in one
//! line.

use std::{fmt::Display, path::PathBuf};

use clap::{
    CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{
    dotenv,
    ignored::{self, Ignored},
    settings::{self, Setting},
};
use crate::config::ConfigError;

/// Why a program ends before it serves.
#[derive(Debug)]
pub enum StartupExit {
    /// A requested text, such as that of `--help`. It goes to standard output, and the program
    /// succeeds.
    Output(String),
    /// A bad setting, or a refusal of the system.
    Error(ConfigError),
    /// A check has found a problem, and has printed it.
    CheckFailed,
}

impl StartupExit {
    /// The system refused something that every program needs.
    pub fn system(error: impl Display) -> Self {
        Self::Error(ConfigError::other(format!("failed to start: {error}")))
    }
}

/// The settings of a program, and where they came from.
#[derive(Debug)]
pub struct CommandLine<T> {
    /// Flags, variables and lines of the `.env`.
    pub args: T,
    /// The `.env` that was read, if any.
    pub dotenv: Option<PathBuf>,
    /// The settings in force, as they may be shown.
    pub settings: Vec<Setting>,
    ignored: Vec<Ignored>,
}

impl<T> CommandLine<T> {
    /// Warns of settings that have no effect.
    pub fn log_ignored(&self) {
        self.ignored.iter().for_each(Ignored::log);
    }

    /// The settings that have no effect.
    pub(super) fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }

    /// Adds the settings without effect to an error, because one of them may be its cause.
    pub fn explain(&self, error: ConfigError) -> ConfigError {
        with_ignored(error, &self.ignored)
    }
}

fn with_ignored(error: ConfigError, ignored: &[Ignored]) -> ConfigError {
    if ignored.is_empty() {
        return error;
    }
    let parts = std::iter::once(error.to_string()).chain(ignored.iter().map(ToString::to_string));
    ConfigError::other(parts.collect::<Vec<_>>().join("; "))
}

/// Reads flags, then environment variables, then the nearest `.env` in the working directory or
/// above it. The first of them that has a value wins.
///
/// # Errors
///
/// A value is not of its type, a flag is unknown, or the `.env` cannot be read. Several bad values
/// are reported one at a time.
pub fn parse<T: CommandFactory + FromArgMatches>() -> Result<CommandLine<T>, StartupExit> {
    let mut ignored = ignored::in_environment();
    let dotenv = dotenv::load().map_err(StartupExit::Error)?;
    if let Some(dotenv) = &dotenv {
        ignored.extend(ignored::in_dotenv(dotenv));
    }
    let command = T::command();
    let (matches, args) = command
        .clone()
        .try_get_matches()
        .and_then(|matches| T::from_arg_matches(&matches).map(|args| (matches, args)))
        .map_err(|error| match explain(&command, &error) {
            StartupExit::Error(error) => StartupExit::Error(with_ignored(error, &ignored)),
            other => other,
        })?;
    let settings = settings::in_force(&command, &matches, dotenv.as_ref());
    Ok(CommandLine { args, dotenv: dotenv.map(|dotenv| dotenv.path), settings, ignored })
}

/// Reads flags alone, and ignores the environment and any `.env`. For programs that start a tier
/// inside themselves.
///
/// # Errors
///
/// As for [`parse`].
pub fn parse_flags<T: CommandFactory + FromArgMatches>(flags: &[&str]) -> Result<T, StartupExit> {
    let name = T::command().get_name().to_owned();
    T::command()
        .mut_args(|arg| arg.env(None::<&str>))
        .try_get_matches_from(std::iter::once(name.as_str()).chain(flags.iter().copied()))
        .and_then(|matches| T::from_arg_matches(&matches))
        .map_err(|error| explain(&T::command(), &error))
}

fn explain(command: &clap::Command, error: &clap::Error) -> StartupExit {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let flag = text(ContextKind::InvalidArg).unwrap_or_default();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            StartupExit::Output(error.render().to_string())
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let name = setting_name(command, flag);
            let value = text(ContextKind::InvalidValue).unwrap_or_default();
            // The value of a URL may hold a password or a key.
            let value = if value.contains(['@', '?']) { "(not shown)" } else { value };
            let source = std::error::Error::source(error).map(ToString::to_string);
            let expected = source.unwrap_or_else(|| match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(values)) => {
                    format!("expected one of {}", values.join(", "))
                }
                _ => "expected a value".to_owned(),
            });
            StartupExit::Error(ConfigError::invalid(&name, value, expected))
        }
        _ => {
            let rendered = error.render().to_string();
            let line = rendered.lines().next().unwrap_or_default();
            let line = line.strip_prefix("error: ").unwrap_or(line);
            let hint = match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(flag)) => format!("did you mean {flag}?"),
                _ => "--help lists every setting".to_owned(),
            };
            StartupExit::Error(ConfigError::other(format!("{line}: {hint}")))
        }
    }
}

/// The variable of a flag such as `--port <FIREHOSE_PORT>`, or `--port` if it has none.
fn setting_name(command: &clap::Command, flag: &str) -> String {
    let flag = flag.split([' ', '=']).next().unwrap_or_default();
    let long = flag.trim_start_matches('-');
    command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(long))
        .and_then(|arg| arg.get_env())
        .map_or_else(|| flag.to_owned(), |name| name.to_string_lossy().into_owned())
}
