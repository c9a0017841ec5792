//! What a program's flags and checked settings offer to the code that both tiers share.

use clap::{CommandFactory, FromArgMatches};

use super::{logging::LogArgs, subcommand::Subcommand, wiring::ServerConfig};
use crate::{config::ConfigError, link::LinkConfig, protocol::TierName};

/// The flags that every program has.
pub trait ProgramArgs: CommandFactory + FromArgMatches {
    /// Settings of the log.
    fn log(&self) -> &LogArgs;

    /// The task to run instead of serving, if any.
    fn subcommand(&self) -> Option<&Subcommand>;
}

/// The checked settings that every program has.
pub trait ProgramConfig: for<'a> TryFrom<&'a Self::Args, Error = ConfigError> {
    /// The flags that they are read from.
    type Args: ProgramArgs;

    /// The tier that they are for.
    const TIER: TierName;

    /// Where the data of each market comes from.
    fn links(&self) -> impl Iterator<Item = &LinkConfig>;

    /// The settings that both tiers share.
    fn server(&self) -> &ServerConfig;
}
