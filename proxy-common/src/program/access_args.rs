//! Access settings, the same for both tiers: which clients may connect, from where and how fast.

use clap::{ArgAction, Args};

use crate::{
    access::{GateConfig, Origins, TrustedProxies},
    config::{
        ConfigError,
        values::{count, rate, switch},
    },
};

/// Settings for which clients may connect, from where and how fast.
#[derive(Debug, Clone, Args)]
pub struct AccessArgs {
    /// Most connections at once from one address (an IPv6 /64 counts as one), or sessions behind a
    /// trusted proxy; loopback is not limited
    #[arg(long, env = "MAX_CONNECTIONS_PER_ADDRESS", default_value = "1000", value_parser = count)]
    pub max_connections_per_address: usize,
    /// HTTP requests a second from one address, mostly handshakes, and ten times as many at once;
    /// loopback is not limited
    #[arg(long, env = "HANDSHAKE_RATE", default_value = "100", value_parser = rate)]
    pub handshake_rate: u32,
    /// Commands a second of one session, and ten times as many at once; faster ones wait
    #[arg(long, env = "COMMAND_RATE", default_value = "1000", value_parser = rate)]
    pub command_rate: u32,
    /// Origins whose web pages may connect, separated by commas; * for all [default: none]
    #[arg(long, env = "ALLOWED_ORIGINS", value_parser = Origins::parse)]
    pub allowed_origins: Option<Origins>,
    /// Addresses and networks of proxies whose X-Forwarded-For is trusted, separated by commas
    /// [default: none]
    #[arg(long, env = "TRUSTED_PROXIES", value_parser = TrustedProxies::parse)]
    pub trusted_proxies: Option<TrustedProxies>,
    /// Whether each connection of TRUSTED_PROXIES begins with a PROXY header, version 1 or 2:
    /// on or off
    #[arg(long, env = "PROXY_PROTOCOL", default_value = "off", value_parser = switch, action = ArgAction::Set)]
    pub proxy_protocol: bool,
}

impl AccessArgs {
    /// Checks the settings together.
    ///
    /// # Errors
    ///
    /// PROXY headers are expected, but no proxy is trusted to send them.
    pub fn check(&self) -> Result<GateConfig, ConfigError> {
        let trusted_proxies = self.trusted_proxies.clone().unwrap_or_default();
        if self.proxy_protocol && trusted_proxies.is_empty() {
            let expected =
                "expected TRUSTED_PROXIES as well, with the addresses that send the header";
            return Err(ConfigError::invalid("PROXY_PROTOCOL", "on", expected));
        }
        Ok(GateConfig {
            origins: self.allowed_origins.clone().unwrap_or_default(),
            trusted_proxies,
            proxy_headers: self.proxy_protocol,
            max_per_address: self.max_connections_per_address,
            request_rate: self.handshake_rate,
        })
    }
}
