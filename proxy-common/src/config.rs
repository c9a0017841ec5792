//! Configuration that both tiers share: flags and variables parsed once, secrets that cannot be printed, and errors of
//! one line.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use clap::{ArgAction, Args};
use rustls::pki_types::{CertificateDer, pem, pem::PemObject};
use tracing_subscriber::EnvFilter;

use crate::{
    access::{command_rate::Rate, keys::Keys},
    program::logging::LogFormat,
    protocol::{market::Market, notice::Notices},
    server::Bound,
    session::{SessionConfig, slow_consumer::SlowLimits},
    transport::certificate::Certificate,
};

mod admission;
mod parse;
mod secrets;
mod tool;

pub use self::{
    admission::{AdmissionArgs, Switch},
    parse::{ConfigError, Unparsed, parse, parse_flags},
    secrets::{AccountArgs, secret, secret_text},
    tool::Tool,
};

/// Settings of the log, the same for both tiers.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What is logged: error, warn, info, debug, trace, or a tracing filter such as info,proxy_common::link=debug
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_parser = log_filter)]
    pub log_level: String,
    /// How log lines look [default: text on a terminal, json otherwise]
    #[arg(long, env = "LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
}

impl LogArgs {
    /// Sets up the log of this process.
    pub fn init(&self) {
        crate::program::logging::init(EnvFilter::new(&self.log_level), self.log_format);
    }
}

/// Settings of the port that clients connect to, the same for both tiers. The port and host themselves have names of their own.
#[derive(Debug, Clone, Args)]
pub struct ListenArgs {
    /// Loopback port for /livez, /readyz and /metrics, which then leave the data port [default: none]
    #[arg(long, env = "ADMIN_PORT", value_parser = port)]
    pub admin_port: Option<u16>,
    /// Certificate (PEM, with the chain above it) that the port shows: clients then connect with wss:// [default: none]
    #[arg(long, env = "TLS_CERT", value_parser = path)]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) of that certificate
    #[arg(long, env = "TLS_KEY", value_parser = path)]
    pub tls_key: Option<PathBuf>,
    /// Most sessions at once; more are answered 503 with Retry-After
    #[arg(long, env = "MAX_CONNECTIONS", default_value = "10000", value_parser = count)]
    pub max_connections: usize,
    /// Time for the handshake, and again for the auth command (for example 10s)
    #[arg(long, env = "AUTH_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub auth_timeout: Duration,
    /// Time between pings to clients; a client silent for three of them is closed
    #[arg(long, env = "PING_INTERVAL", default_value = "20s", value_parser = duration)]
    pub ping_interval: Duration,
    /// Most bytes queued for one client before it is closed as a slow consumer
    #[arg(long, env = "CLIENT_QUEUE_BYTES", default_value = "16777216", value_parser = count)]
    pub client_queue_bytes: usize,
    /// Oldest age of data queued for one client before it is closed as a slow consumer
    #[arg(long, env = "CLIENT_MAX_LAG", default_value = "5s", value_parser = duration)]
    pub client_max_lag: Duration,
    /// Most bytes queued for all clients together; past it those with the longest queues are closed as slow consumers
    #[arg(long, env = "TOTAL_QUEUE_BYTES", default_value = "1073741824", value_parser = count)]
    pub total_queue_bytes: usize,
    /// Most subscriptions of one client
    #[arg(long, env = "MAX_SUBSCRIPTIONS", default_value = "50000", value_parser = count)]
    pub max_subscriptions: usize,
    /// Whether clients get the proxy's own notices about outages and losses: on or off
    #[arg(long, env = "CLIENT_NOTICES", default_value = "on", value_parser = switch, action = ArgAction::Set)]
    pub client_notices: bool,
    /// When the program stops, clients are closed spread over this time
    #[arg(long, env = "DRAIN_SPREAD", default_value = "2s", value_parser = duration_or_none)]
    pub drain_spread: Duration,
    /// Time from the signal to stop until the program has ended
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// Market served: stocks, options, forex, crypto, indices or futures
    #[arg(long, env = "MARKET", default_value = "stocks", value_parser = Market::from_str)]
    pub market: Market,
    /// Who gets in, from where and how fast.
    #[command(flatten)]
    pub admission: AdmissionArgs,
}

impl ListenArgs {
    /// Checks what depends on more than one setting.
    ///
    /// # Errors
    ///
    /// The time for closing clients leaves less than half of the time to stop.
    pub fn check(&self) -> Result<(), ConfigError> {
        let half = self.drain_timeout / 2;
        if self.drain_spread <= half {
            return Ok(());
        }
        let (spread, half) = (self.drain_spread, humantime::format_duration(half));
        Err(ConfigError::invalid(
            "DRAIN_SPREAD",
            humantime::format_duration(spread),
            format!("expected at most half of DRAIN_TIMEOUT, {half}"),
        ))
    }

    /// The certificate that the port shows, if it is to speak TLS.
    ///
    /// # Errors
    ///
    /// As of [`Certificate::read`].
    pub fn certificate(&self) -> Result<Option<Certificate>, ConfigError> {
        Certificate::read(self.tls_cert.as_deref(), self.tls_key.as_deref())
    }

    /// How sessions are served, given the keys that open them and which of them get notices.
    pub fn sessions(&self, keys: Arc<Keys>, notices: Notices) -> SessionConfig {
        SessionConfig {
            market: self.market,
            keys,
            command_rate: Rate::per_second(self.admission.command_rate),
            auth_timeout: self.auth_timeout,
            ping_interval: self.ping_interval,
            max_subscriptions: self.max_subscriptions,
            slow: SlowLimits { queue_bytes: self.client_queue_bytes, max_lag: self.client_max_lag },
            drain_spread: self.drain_spread,
            drain_timeout: self.drain_timeout,
            notices,
        }
    }
}

/// Binds the data port and the admin port.
///
/// # Errors
///
/// The host is unknown or a port is taken; or the port would be open to other machines with no keys but the account's, which
/// must not travel there. The variable is named.
pub async fn bind(
    (host_variable, host): (&str, &str),
    (port_variable, port): (&str, u16),
    admin_port: Option<u16>,
    keys: &Keys,
) -> Result<Bound, ConfigError> {
    let addresses = addresses(host_variable, host, port).await?;
    if let Some(open) = addresses.iter().find(|address| !address.ip().is_loopback())
        && keys.is_account()
    {
        let expected = format!(
            "keys for the clients, as {host_variable} opens {} to other machines",
            open.ip()
        );
        return Err(ConfigError::missing(keys.variable(), expected));
    }
    Bound::bind(&addresses, admin_port.map(loopback)).map_err(|(address, error)| {
        let admin = admin_port.is_some_and(|port| address == loopback(port));
        let variable = if admin { "ADMIN_PORT" } else { port_variable };
        ConfigError::invalid(
            variable,
            address.port(),
            format!("expected a port free at {address}: {error}"),
        )
    })
}

/// Finds every address that a host name stands for, 127.0.0.1 before ::1.
///
/// # Errors
///
/// The name stands for none.
pub async fn addresses(
    variable: &str,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, ConfigError> {
    let unknown = |error: String| {
        ConfigError::invalid(
            variable,
            host,
            format!("expected a host name or address of this machine: {error}"),
        )
    };
    let found = tokio::net::lookup_host((host, port)).await.map_err(|e| unknown(e.to_string()))?;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Err(unknown("it has no address".to_owned()));
    }
    Ok(found)
}

/// The loopback address of a port.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port)
}

/// Parses a port; 0 stands for any free one.
///
/// # Errors
///
/// Not a number up to 65,535.
pub fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "expected a port number from 0 (any free one) to 65535".to_owned())
}

/// Parses a number of things, at least one.
///
/// # Errors
///
/// Not a whole number, or zero.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected a whole number of 1 or more".to_owned()),
    }
}

/// Parses a time such as `10s`, `500ms` or `15min`, more than zero.
///
/// # Errors
///
/// Not of that form.
pub fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("expected a time such as 10s, 500ms or 15min".to_owned()),
    }
}

/// Parses a time such as `2s`, or `0s` for none.
///
/// # Errors
///
/// Not of that form.
pub fn duration_or_none(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "expected a time such as 2s, or 0s".to_owned())
}

/// Parses a switch.
///
/// # Errors
///
/// Neither `on` nor `off`.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".to_owned()),
    }
}

/// Parses a path that is not empty.
///
/// # Errors
///
/// The text is empty.
pub fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("expected a path".to_owned()) } else { Ok(text.into()) }
}

/// Parses the address of a WebSocket server.
///
/// # Errors
///
/// Not a URL of the scheme `ws` or `wss` with a host.
pub fn websocket_url(text: &str) -> Result<url::Url, String> {
    let expected =
        "expected a WebSocket URL such as wss://socket.polygon.io/stocks or ws://localhost:8767";
    let url = url::Url::parse(text).map_err(|error| format!("{expected} ({error})"))?;
    if !matches!(url.scheme(), "ws" | "wss") || url.host_str().is_none_or(str::is_empty) {
        return Err(expected.to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("{expected}, without user or password"));
    }
    Ok(url)
}

/// Reads the certificates of authorities from a file in PEM form, if one is named.
///
/// # Errors
///
/// As of [`certificates`].
pub fn authorities(
    variable: &str,
    file: Option<&Path>,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    file.map_or(Ok(Vec::new()), |path| certificates(variable, path))
}

/// Reads certificates from a file in PEM form.
///
/// # Errors
///
/// The file cannot be read or holds none.
pub fn certificates(
    variable: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let invalid = |why: String| {
        let expected = format!("expected a file of certificates in PEM form: {why}");
        ConfigError::invalid(variable, path.display(), expected)
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| invalid(pem_fault(error)))?;
    if certificates.is_empty() {
        return Err(invalid(pem_fault(pem::Error::NoItemsFound)));
    }
    Ok(certificates)
}

/// What is wrong with a file in PEM form, without a word of what it holds: the parser's own errors show lines of it, and they
/// may be those of a private key.
pub fn pem_fault(error: pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "it holds none".to_owned(),
        _ => "it is damaged".to_owned(),
    }
}

/// Checks that a URL does not end in the name of another market.
///
/// # Errors
///
/// It does.
pub fn check_market(
    variable: &str,
    url: &url::Url,
    market: Market,
) -> Result<url::Url, ConfigError> {
    let last = url.path().rsplit('/').find(|segment| !segment.is_empty()).unwrap_or_default();
    match last.parse::<Market>() {
        Ok(other) if other != market => {
            let expected = format!("expected a path ending in /{market}, as MARKET is {market}");
            Err(ConfigError::invalid(variable, url.path(), expected))
        }
        Ok(_) | Err(_) => Ok(url.clone()),
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    // A filter takes a word alone for the name of a module, and then logs nothing else.
    let filter = text.contains([',', '=']) || LEVELS.contains(&text.to_ascii_lowercase().as_str());
    if !filter {
        return Err("expected error, warn, info, debug, trace or a tracing filter".to_owned());
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| {
        format!("expected error, warn, info, debug, trace or a tracing filter ({error})")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked() {
        for good in ["ws://localhost:8767", "wss://socket.polygon.io/stocks", "ws://[::1]:1/x"] {
            assert!(websocket_url(good).is_ok(), "{good}");
        }
        for bad in ["", "localhost:8767", "http://localhost", "ws://", "ws://u:p@h/", "nonsense"] {
            assert!(websocket_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_and_numbers_are_more_than_zero() {
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1_500)));
        for bad in ["", "0s", "10", "-1s", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(count("1"), Ok(1));
        for bad in ["", "0", "-1", "1.5", "many"] {
            assert!(count(bad).is_err(), "{bad}");
        }
    }
}
