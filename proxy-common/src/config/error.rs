//! The error of a setting: one line for the operator, who has to correct it.

use std::fmt::Display;

use thiserror::Error;

/// A setting is missing or wrong. One line names the variable, the value unless it is secret, and
/// the values expected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// An error in a sentence of its own.
    pub fn other(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }

    /// The variable lacks a value.
    pub fn missing(variable: &str, expected: impl Display) -> Self {
        Self(format!("{variable}: not set: expected {expected}"))
    }

    /// The variable has a wrong value.
    pub fn invalid(variable: &str, value: impl Display, expected: impl Display) -> Self {
        Self(format!("{variable}: invalid value \"{value}\": {expected}"))
    }

    /// The secret is set both as a value and as a file.
    pub fn both(variable: &str) -> Self {
        Self(format!("{variable}: set beside {variable}_FILE: expected one of them"))
    }

    /// The variable has a wrong value that must not be shown.
    pub fn invalid_secret(variable: &str, expected: impl Display) -> Self {
        Self(format!("{variable}: invalid value (not shown): {expected}"))
    }
}
