//! From the command line, the environment and `.env` to typed settings, or to one line that says what is wrong.

use std::fmt::Display;

use clap::{
    CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};
use thiserror::Error;

/// A setting that is missing or wrong: one line that names the variable, the value unless secret, and what is expected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ConfigError(pub(super) String);

impl ConfigError {
    /// The variable lacks a value.
    pub fn missing(variable: &str, expected: impl Display) -> Self {
        Self(format!("{variable}: not set: expected {expected}"))
    }

    /// The variable has a value of no use.
    pub fn invalid(variable: &str, value: impl Display, expected: impl Display) -> Self {
        Self(format!("{variable}: invalid value \"{value}\": {expected}"))
    }

    /// A secret is given both as a value and as a file.
    pub fn both(variable: &str) -> Self {
        Self(format!("{variable}: set beside {variable}_FILE: expected one of them"))
    }

    /// The variable has a secret value of no use.
    pub fn invalid_secret(variable: &str, expected: impl Display) -> Self {
        Self(format!("{variable}: invalid value (not shown): {expected}"))
    }
}

/// Why the command line gave no configuration.
#[derive(Debug)]
pub enum Unparsed {
    /// `--help` or `--version`: a text for standard output, and success.
    Display(String),
    /// A bad setting.
    Error(ConfigError),
}

impl Unparsed {
    /// The system refused what every program needs.
    pub fn system(error: impl Display) -> Self {
        Self::Error(ConfigError(format!("failed to start: {error}")))
    }
}

/// Reads flags, then variables of the environment, then of the nearest `.env` in the working directory or above it.
///
/// # Errors
///
/// A value is not of its type, a flag is unknown, or the `.env` cannot be read. Several bad values are reported one at a time.
pub fn parse<T: CommandFactory + FromArgMatches>() -> Result<T, Unparsed> {
    match dotenvy::dotenv() {
        Ok(_) => {}
        Err(error) if error.not_found() => {}
        // The text of a line may hold a key.
        Err(dotenvy::Error::LineParse(_, at)) => {
            return Err(Unparsed::Error(ConfigError(format!(
                ".env: a line cannot be read at its character {at}: expected NAME=value, with quotes around a value that \
                 holds blanks"
            ))));
        }
        Err(error) => return Err(Unparsed::Error(ConfigError(format!(".env: {error}")))),
    }
    T::command()
        .try_get_matches()
        .and_then(|matches| T::from_arg_matches(&matches))
        .map_err(|error| explain(&T::command(), &error))
}

/// Reads flags alone, passing over the environment and any `.env`: for programs that start a tier inside themselves.
///
/// # Errors
///
/// As of [`parse`].
pub fn parse_flags<T: CommandFactory + FromArgMatches>(flags: &[&str]) -> Result<T, Unparsed> {
    let name = T::command().get_name().to_owned();
    T::command()
        .mut_args(|arg| arg.env(None::<&str>))
        .try_get_matches_from(std::iter::once(name.as_str()).chain(flags.iter().copied()))
        .and_then(|matches| T::from_arg_matches(&matches))
        .map_err(|error| explain(&T::command(), &error))
}

fn explain(command: &clap::Command, error: &clap::Error) -> Unparsed {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let flag = text(ContextKind::InvalidArg).unwrap_or_default();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            Unparsed::Display(error.render().to_string())
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
            Unparsed::Error(ConfigError::invalid(&name, value, expected))
        }
        _ => {
            let rendered = error.render().to_string();
            let line = rendered.lines().next().unwrap_or_default();
            let line = line.strip_prefix("error: ").unwrap_or(line);
            Unparsed::Error(ConfigError(format!("{line}: --help lists every setting")))
        }
    }
}

/// The variable behind a flag such as `--port <FIREHOSE_PORT>`, or the flag where there is none.
fn setting_name(command: &clap::Command, flag: &str) -> String {
    let long = flag.trim_start_matches('-').split([' ', '=']).next().unwrap_or_default();
    command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(long))
        .and_then(|arg| arg.get_env())
        .map_or_else(|| flag.to_owned(), |name| name.to_string_lossy().into_owned())
}
