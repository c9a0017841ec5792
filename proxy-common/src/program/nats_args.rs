//! Settings of NATS that both tiers have.

use std::path::PathBuf;

use clap::Args;

use crate::{
    config::{ConfigError, values::path},
    nats::{NatsConfig, Servers},
};

/// How to reach NATS, and its names.
#[derive(Debug, Clone, Args)]
pub struct NatsArgs {
    /// File of credentials for NATS, or of one line USER:PASSWORD [default: none]
    #[arg(long, env = "NATS_CREDS", value_parser = path)]
    nats_creds: Option<PathBuf>,
    /// Certificates (PEM) of authorities to trust at NATS, beside those of the system [default:
    /// none]
    #[arg(long, env = "NATS_CA", value_parser = path)]
    nats_ca: Option<PathBuf>,
    /// Beginning of the names of streams, subjects and buckets in NATS
    #[arg(long, env = "NATS_STREAM", default_value = "POLYGON")]
    nats_stream: String,
}

impl NatsArgs {
    /// No settings, because there are no servers.
    ///
    /// # Errors
    ///
    /// A setting is there all the same. `why` says why there is no NATS.
    pub fn expect_none(&self, why: &str) -> Result<Option<NatsConfig>, ConfigError> {
        for (variable, file) in [("NATS_CREDS", &self.nats_creds), ("NATS_CA", &self.nats_ca)] {
            if file.is_some() {
                return Err(ConfigError::other(format!("{variable} is for NATS, and {why}")));
            }
        }
        Ok(None)
    }

    /// The checked settings, for these servers. `variable` names the setting that lists them.
    ///
    /// # Errors
    ///
    /// As for [`NatsConfig::check`]. Or this build cannot speak to NATS.
    pub fn check(&self, variable: &str, servers: &Servers) -> Result<NatsConfig, ConfigError> {
        if !cfg!(feature = "nats") {
            let why = "this build has no NATS: expected one with the cargo feature nats";
            return Err(ConfigError::other(format!("{variable}: {why}")));
        }
        let (creds, ca) = (self.nats_creds.as_deref(), self.nats_ca.as_deref());
        NatsConfig::check(servers, creds, ca, &self.nats_stream)
    }
}
