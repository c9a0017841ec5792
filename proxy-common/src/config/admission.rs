//! Settings of who gets in, from where and how fast, the same for both tiers.

use clap::{Args, ValueEnum};

use super::{ConfigError, count};
use crate::access::{client_address::TrustedProxies, origin::Origins};

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// In force.
    On,
    /// Not in force.
    Off,
}

/// Settings of who gets in, from where and how fast.
#[derive(Debug, Clone, Args)]
pub struct AdmissionArgs {
    /// Most sessions at once from one address (an IPv6 /64 counts as one); loopback is not limited
    #[arg(long, env = "MAX_CONNECTIONS_PER_ADDRESS", default_value = "1000", value_parser = count)]
    pub max_connections_per_address: usize,
    /// HTTP requests a second from one address, handshakes above all, ten times as many at once; loopback is not limited
    #[arg(long, env = "HANDSHAKE_RATE", default_value = "100", value_parser = rate)]
    pub handshake_rate: u32,
    /// Commands a second of one session, ten times as many at once; what comes faster waits
    #[arg(long, env = "COMMAND_RATE", default_value = "1000", value_parser = rate)]
    pub command_rate: u32,
    /// Origins whose web pages may connect, separated by commas; * for all [default: none]
    #[arg(long, env = "ALLOWED_ORIGINS", value_parser = Origins::parse)]
    pub allowed_origins: Option<Origins>,
    /// Addresses and networks of proxies whose X-Forwarded-For is believed, separated by commas [default: none]
    #[arg(long, env = "TRUSTED_PROXIES", value_parser = TrustedProxies::parse)]
    pub trusted_proxies: Option<TrustedProxies>,
    /// Whether each connection of TRUSTED_PROXIES begins with a PROXY header, version 1 or 2: on or off
    #[arg(long, env = "PROXY_PROTOCOL", default_value = "off", hide_possible_values = true)]
    pub proxy_protocol: Switch,
}

impl AdmissionArgs {
    /// Checks what one setting alone cannot tell.
    ///
    /// # Errors
    ///
    /// PROXY headers are expected of nobody.
    pub fn check(&self) -> Result<(), ConfigError> {
        let nobody = self.trusted_proxies.as_ref().is_none_or(TrustedProxies::is_empty);
        if self.proxy_protocol == Switch::On && nobody {
            let expected =
                "expected TRUSTED_PROXIES beside it, with the addresses that send the header";
            return Err(ConfigError::invalid("PROXY_PROTOCOL", "on", expected));
        }
        Ok(())
    }
}

fn rate(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n @ 1..=1_000_000) => Ok(n),
        _ => Err("expected a whole number from 1 to 1000000".to_owned()),
    }
}
