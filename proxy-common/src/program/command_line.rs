//! Reads settings from the command line, the environment and `.env`. Reports a bad setting in one
//! line.

use std::fmt::Display;

use clap::{
    CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
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
}

impl StartupExit {
    /// The system refused something that every program needs.
    pub fn system(error: impl Display) -> Self {
        Self::Error(ConfigError::other(format!("failed to start: {error}")))
    }
}

/// Reads flags, then environment variables, then the nearest `.env` in the working directory or
/// above it. The first of them that has a value wins.
///
/// # Errors
///
/// A value is not of its type, a flag is unknown, or the `.env` cannot be read. Several bad values
/// are reported one at a time.
pub fn parse<T: CommandFactory + FromArgMatches>() -> Result<T, StartupExit> {
    match dotenvy::dotenv() {
        Ok(_) => {}
        Err(error) if error.not_found() => {}
        // The text of a line may hold a key.
        Err(dotenvy::Error::LineParse(_, at)) => {
            return Err(StartupExit::Error(ConfigError::other(format!(
                ".env: a line cannot be read at its character {at}: expected NAME=value, with quotes around a value that \
                 holds blanks"
            ))));
        }
        Err(error) => return Err(StartupExit::Error(ConfigError::other(format!(".env: {error}")))),
    }
    T::command()
        .try_get_matches()
        .and_then(|matches| T::from_arg_matches(&matches))
        .map_err(|error| explain(&T::command(), &error))
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
            StartupExit::Error(ConfigError::other(format!("{line}: --help lists every setting")))
        }
    }
}

/// The variable of a flag such as `--port <FIREHOSE_PORT>`, or the flag itself if it has none.
fn setting_name(command: &clap::Command, flag: &str) -> String {
    let long = flag.trim_start_matches('-').split([' ', '=']).next().unwrap_or_default();
    command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(long))
        .and_then(|arg| arg.get_env())
        .map_or_else(|| flag.to_owned(), |name| name.to_string_lossy().into_owned())
}
