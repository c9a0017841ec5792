//! Settings that both tiers have: their flags, and the check of all together.

use std::{path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use clap::{ArgAction, Args};
use secrecy::SecretString;

use super::{access_args::AccessArgs, wiring::ServerConfig};
use crate::{
    access::{CommandRate, Keys},
    config::{
        ConfigError,
        secrets::secret,
        values::{count, duration, duration_or_none, path, port, switch},
    },
    protocol::{Market, NoticePolicy},
    session::{SessionConfig, SlowLimits},
    transport::{Certificate, ListenConfig},
};

/// The account's key, under the vendor's old and new name.
#[derive(Debug, Clone, Args)]
pub struct AccountArgs {
    /// Key of the Polygon.io account
    #[arg(long, env = "POLYGON_API_KEY", hide_env_values = true)]
    pub polygon_api_key: Option<SecretString>,
    /// File holding the key
    #[arg(long, env = "POLYGON_API_KEY_FILE", value_parser = path)]
    pub polygon_api_key_file: Option<PathBuf>,
    /// The same under the vendor's new name; POLYGON_API_KEY takes precedence
    #[arg(long, env = "MASSIVE_API_KEY", hide_env_values = true)]
    pub massive_api_key: Option<SecretString>,
    /// File holding the key, under the vendor's new name
    #[arg(long, env = "MASSIVE_API_KEY_FILE", value_parser = path)]
    pub massive_api_key_file: Option<PathBuf>,
}

impl AccountArgs {
    /// The account's key. `None` if none is set.
    ///
    /// # Errors
    ///
    /// As for [`secret`].
    pub fn key(&self) -> Result<Option<SecretString>, ConfigError> {
        let key = |name, value: &Option<SecretString>, file: &Option<PathBuf>| {
            secret(name, value.as_ref(), file.as_deref())
        };
        match key("POLYGON_API_KEY", &self.polygon_api_key, &self.polygon_api_key_file)? {
            Some(found) => Ok(Some(found)),
            None => key("MASSIVE_API_KEY", &self.massive_api_key, &self.massive_api_key_file),
        }
    }
}

/// Settings of the port that clients connect to. Host and port have names of their own in each
/// tier.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Port for /livez, /readyz and /metrics, which then leave the data port [default: none]
    #[arg(long, env = "ADMIN_PORT", value_parser = port)]
    admin_port: Option<u16>,
    /// Host name or address on which ADMIN_PORT listens [default: 127.0.0.1]
    #[arg(long, env = "ADMIN_HOST")]
    admin_host: Option<String>,
    /// Certificate of the port (PEM, with the chain above it): clients then connect with wss://
    /// [default: none]
    #[arg(long, env = "TLS_CERT", value_parser = path)]
    tls_cert: Option<PathBuf>,
    /// Private key (PEM) of that certificate
    #[arg(long, env = "TLS_KEY", value_parser = path)]
    tls_key: Option<PathBuf>,
    /// Most sessions at once; more are answered 503 with Retry-After
    #[arg(long, env = "MAX_CONNECTIONS", default_value = "10000", value_parser = count)]
    max_connections: usize,
    /// Time for each step of a login: PROXY header, TLS, request, auth command (for example 10s)
    #[arg(long, env = "AUTH_TIMEOUT", default_value = "10s", value_parser = duration)]
    auth_timeout: Duration,
    /// Time between pings to clients; a client silent for three of them is closed
    #[arg(long, env = "PING_INTERVAL", default_value = "20s", value_parser = duration)]
    ping_interval: Duration,
    /// Most bytes queued for one client before it is closed as a slow consumer
    #[arg(long, env = "CLIENT_QUEUE_BYTES", default_value = "16777216", value_parser = count)]
    client_queue_bytes: usize,
    /// Oldest age of data queued for one client before it is closed as a slow consumer
    #[arg(long, env = "CLIENT_MAX_LAG", default_value = "5s", value_parser = duration)]
    client_max_lag: Duration,
    /// Most bytes queued for all clients together; past it those with the longest queues are closed
    /// as slow consumers
    #[arg(long, env = "TOTAL_QUEUE_BYTES", default_value = "1073741824", value_parser = count)]
    total_queue_bytes: usize,
    /// Most subscriptions of one client
    #[arg(long, env = "MAX_SUBSCRIPTIONS", default_value = "50000", value_parser = count)]
    max_subscriptions: usize,
    /// Whether clients get the proxy's own notices about outages and losses: on or off
    #[arg(long, env = "CLIENT_NOTICES", default_value = "on", value_parser = switch, action = ArgAction::Set)]
    pub client_notices: bool,
    /// When the program stops, clients are closed spread over this time
    #[arg(long, env = "DRAIN_SPREAD", default_value = "2s", value_parser = duration_or_none)]
    drain_spread: Duration,
    /// Time from the signal to stop until the program has ended
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "10s", value_parser = duration)]
    drain_timeout: Duration,
    /// Market served: stocks, options, forex, crypto, indices or futures [default: stocks]
    #[arg(long, env = "MARKET", value_parser = Market::from_str)]
    market: Option<Market>,
    /// Markets served, separated by commas; the first also answers at / [default: MARKET]
    #[arg(long, env = "MARKETS", value_parser = markets)]
    markets: Option<Markets>,
    /// Which clients may connect, from where and how fast.
    #[command(flatten)]
    access: AccessArgs,
}

/// Different markets, at least one.
pub type Markets = Vec<Market>;

/// Reads markets separated by commas.
///
/// # Errors
///
/// What is expected instead.
pub fn markets(list: &str) -> Result<Markets, String> {
    let mut markets = Vec::new();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let market = Market::from_str(name)?;
        if markets.contains(&market) {
            return Err(format!("expected each market once, and not {market} again"));
        }
        markets.push(market);
    }
    if markets.is_empty() {
        return Err("expected markets separated by commas, for example stocks,options".to_owned());
    }
    Ok(markets)
}

impl ServerArgs {
    /// The markets served, at least one.
    ///
    /// # Errors
    ///
    /// `MARKET` is none of `MARKETS`' or not the only one.
    pub fn markets(&self) -> Result<Vec<Market>, ConfigError> {
        match (self.market, &self.markets) {
            (None, None) => Ok(vec![Market::Stocks]),
            (Some(market), None) => Ok(vec![market]),
            (None, Some(markets)) => Ok(markets.clone()),
            (Some(market), Some(markets)) if *markets == [market] => Ok(vec![market]),
            (Some(market), Some(_)) => Err(ConfigError::invalid(
                "MARKET",
                market,
                "expected MARKET or MARKETS alone, or the same in both",
            )),
        }
    }

    fn admin(&self) -> Result<Option<ListenConfig>, ConfigError> {
        let host = self.admin_host.as_deref();
        match (self.admin_port, host) {
            (Some(port), _) => {
                let host = host.unwrap_or("127.0.0.1");
                Ok(Some(ListenConfig::new(("ADMIN_HOST", host), ("ADMIN_PORT", port))))
            }
            (None, Some(host)) => {
                Err(ConfigError::invalid("ADMIN_HOST", host, "expected ADMIN_PORT as well"))
            }
            (None, None) => Ok(None),
        }
    }

    /// Checks the settings together. The tier adds the address to listen on, the keys that open
    /// sessions, and which sessions get notices.
    ///
    /// # Errors
    ///
    /// Two settings contradict each other, or a file cannot be read.
    pub fn check(
        &self,
        listen: ListenConfig,
        keys: Keys,
        notices: NoticePolicy,
    ) -> Result<ServerConfig, ConfigError> {
        let half = self.drain_timeout / 2;
        if self.drain_spread > half {
            let half = humantime::format_duration(half);
            return Err(ConfigError::invalid(
                "DRAIN_SPREAD",
                humantime::format_duration(self.drain_spread),
                format!("expected at most half of DRAIN_TIMEOUT, {half}"),
            ));
        }
        let markets = self.markets()?;
        Ok(ServerConfig {
            listen,
            admin: self.admin()?,
            gate: self.access.check()?,
            certificate: Certificate::read(self.tls_cert.as_deref(), self.tls_key.as_deref())?,
            sessions: SessionConfig {
                market: markets[0],
                keys: Arc::new(keys),
                command_rate: CommandRate::per_second(self.access.command_rate),
                auth_timeout: self.auth_timeout,
                ping_interval: self.ping_interval,
                max_subscriptions: self.max_subscriptions,
                slow: SlowLimits {
                    queue_bytes: self.client_queue_bytes,
                    max_lag: self.client_max_lag,
                },
                drain_spread: self.drain_spread,
                drain_timeout: self.drain_timeout,
                notices,
            },
            markets,
            max_sessions: self.max_connections,
            total_queue_bytes: self.total_queue_bytes,
        })
    }
}
