//! Parses settings from their texts. Nothing here knows a program or its flags.

mod error;
pub mod pem;
pub mod secrets;
pub mod values;

pub use self::error::ConfigError;
