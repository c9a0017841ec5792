//! Configuration that both tiers share: flags and variables parsed once, secrets that cannot be printed, and errors of
//! one line.

use std::{
    fmt::Display,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{
    Args, CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretString};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;
use tracing_subscriber::EnvFilter;

use crate::{
    market::Market, server::Bound, session::SessionConfig, slow::SlowLimits, telemetry::LogFormat,
};

/// A setting that is missing or wrong: one line that names the variable, the value unless secret, and what is expected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// The variable lacks a value.
    pub fn missing(variable: &str, expected: impl Display) -> Self {
        Self(format!("{variable}: not set: expected {expected}"))
    }

    /// The variable has a value of no use.
    pub fn invalid(variable: &str, value: impl Display, expected: impl Display) -> Self {
        Self(format!("{variable}: invalid value \"{value}\": {expected}"))
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
        crate::telemetry::init(EnvFilter::new(&self.log_level), self.log_format);
    }
}

/// Settings of the port that clients connect to, the same for both tiers. The port and host themselves have names of their own.
#[derive(Debug, Clone, Args)]
pub struct ListenArgs {
    /// Loopback port for /livez, /readyz and /metrics, which then leave the data port [default: none]
    #[arg(long, env = "ADMIN_PORT", value_parser = port)]
    pub admin_port: Option<u16>,
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
    /// Most subscriptions of one client
    #[arg(long, env = "MAX_SUBSCRIPTIONS", default_value = "50000", value_parser = count)]
    pub max_subscriptions: usize,
    /// Time for clients to take what is queued for them when the program stops
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "7s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// Market served: stocks, options, forex, crypto, indices or futures
    #[arg(long, env = "MARKET", default_value = "stocks", value_parser = Market::from_str)]
    pub market: Market,
}

impl ListenArgs {
    /// How sessions are served, given the keys that open them.
    pub fn sessions(&self, keys: Keys) -> SessionConfig {
        SessionConfig {
            market: self.market,
            keys,
            auth_timeout: self.auth_timeout,
            ping_interval: self.ping_interval,
            max_subscriptions: self.max_subscriptions,
            slow: SlowLimits { queue_bytes: self.client_queue_bytes, max_lag: self.client_max_lag },
            drain_timeout: self.drain_timeout,
        }
    }
}

/// The account's key, under the vendor's old and new name.
#[derive(Debug, Clone, Args)]
pub struct AccountArgs {
    /// Key of the Polygon.io account
    #[arg(long, env = "POLYGON_API_KEY", hide_env_values = true, value_parser = secret_text)]
    pub polygon_api_key: Option<SecretString>,
    /// File holding the key
    #[arg(long, env = "POLYGON_API_KEY_FILE", value_parser = path)]
    pub polygon_api_key_file: Option<PathBuf>,
    /// The same under the vendor's new name; POLYGON_API_KEY goes first
    #[arg(long, env = "MASSIVE_API_KEY", hide_env_values = true, value_parser = secret_text)]
    pub massive_api_key: Option<SecretString>,
    /// File holding the key, under the vendor's new name
    #[arg(long, env = "MASSIVE_API_KEY_FILE", value_parser = path)]
    pub massive_api_key_file: Option<PathBuf>,
}

impl AccountArgs {
    /// The account's key, if any is set.
    ///
    /// # Errors
    ///
    /// As of [`secret`].
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

/// Parses a secret: any text.
///
/// # Errors
///
/// None; the signature is what the command line wants.
pub fn secret_text(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}

/// Binds the data port and the admin port.
///
/// # Errors
///
/// The host is unknown or a port is taken; the variable is named.
pub async fn bind(
    (host_variable, host): (&str, &str),
    (port_variable, port): (&str, u16),
    admin_port: Option<u16>,
) -> Result<Bound, ConfigError> {
    let addresses = addresses(host_variable, host, port).await?;
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

/// Reads a secret given as a value or as a file, without blanks around it. An empty value counts as none.
///
/// # Errors
///
/// Both are set, or the file cannot be read or is empty.
pub fn secret(
    variable: &str,
    value: Option<&SecretString>,
    file: Option<&Path>,
) -> Result<Option<SecretString>, ConfigError> {
    let file_variable = format!("{variable}_FILE");
    // A variable that is there but empty, as in a copied example, is not set.
    let value = value.filter(|value| !value.expose_secret().trim().is_empty());
    let secret = match (value, file) {
        (Some(_), Some(_)) => {
            return Err(ConfigError(format!(
                "{variable}: set beside {file_variable}: expected one of them"
            )));
        }
        (None, None) => return Ok(None),
        (Some(value), None) => value.clone(),
        (None, Some(path)) => {
            let text = fs::read_to_string(path).map_err(|error| {
                ConfigError::invalid(
                    &file_variable,
                    path.display(),
                    format!("expected a readable file: {error}"),
                )
            })?;
            SecretString::from(text)
        }
    };
    let trimmed = secret.expose_secret().trim();
    if trimmed.is_empty() {
        return Err(ConfigError::missing(&file_variable, "a file that holds a key"));
    }
    Ok(Some(SecretString::from(trimmed)))
}

/// The keys that clients may present.
#[derive(Debug, Clone)]
pub struct Keys(Vec<SecretString>);

impl Keys {
    /// Reads keys separated by commas or line breaks.
    ///
    /// # Errors
    ///
    /// There is no key among them.
    pub fn parse(variable: &str, list: &SecretString) -> Result<Self, ConfigError> {
        let keys: Vec<SecretString> = list
            .expose_secret()
            .split([',', '\n'])
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .map(SecretString::from)
            .collect();
        if keys.is_empty() {
            return Err(ConfigError::missing(variable, "keys separated by commas"));
        }
        Ok(Self(keys))
    }

    /// Whether this is one of the keys. The time it takes tells nothing but the length of the keys.
    pub fn contains(&self, key: &SecretString) -> bool {
        let presented = key.expose_secret().as_bytes();
        self.0
            .iter()
            .fold(Choice::from(0), |found, key| {
                found | key.expose_secret().as_bytes().ct_eq(presented)
            })
            .into()
    }
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

/// Reads the certificates of authorities from a file in PEM form.
///
/// # Errors
///
/// The file cannot be read or holds none.
pub fn authorities(
    variable: &str,
    file: Option<&Path>,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let Some(path) = file else { return Ok(Vec::new()) };
    let invalid = |why: String| {
        let expected = format!("expected a file of certificates in PEM form: {why}");
        ConfigError::invalid(variable, path.display(), expected)
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| invalid(error.to_string()))?;
    if certificates.is_empty() {
        return Err(invalid("it holds none".to_owned()));
    }
    Ok(certificates)
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
    use std::io::Write;

    use super::*;

    #[test]
    fn any_of_the_keys_opens_and_nothing_else() {
        let keys = Keys::parse("KEYS", &" one, two\nthree ,".into()).unwrap();
        for key in ["one", "two", "three"] {
            assert!(keys.contains(&key.into()), "{key}");
        }
        for key in ["", "on", "one ", "onee", "one,two", "ONE"] {
            assert!(!keys.contains(&key.into()), "{key}");
        }
        assert!(!format!("{keys:?}").contains("one"));
    }

    #[test]
    fn a_list_without_keys_is_refused() {
        let error = Keys::parse("KEYS", &" , ,\n".into()).unwrap_err();
        assert_eq!(error.to_string(), "KEYS: not set: expected keys separated by commas");
    }

    #[test]
    fn a_secret_comes_as_a_value_or_as_a_file() {
        let value: SecretString = "k".into();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "from-file").unwrap();
        let read = |value, file| {
            secret("KEY", value, file).map(|s| s.map(|s| s.expose_secret().to_owned()))
        };
        assert_eq!(read(None, None), Ok(None));
        assert_eq!(read(Some(&value), None), Ok(Some("k".to_owned())));
        assert_eq!(read(None, Some(file.path())), Ok(Some("from-file".to_owned())));
        let both = read(Some(&value), Some(file.path())).unwrap_err();
        assert_eq!(both.to_string(), "KEY: set beside KEY_FILE: expected one of them");
        let nothing = SecretString::from(" ");
        assert_eq!(read(Some(&nothing), None), Ok(None));
        assert_eq!(read(Some(&nothing), Some(file.path())), Ok(Some("from-file".to_owned())));
        let padded = SecretString::from(" k\t");
        assert_eq!(read(Some(&padded), None), Ok(Some("k".to_owned())));
        assert!(
            read(None, Some(Path::new("/no/such/file"))).unwrap_err().to_string().starts_with(
                "KEY_FILE: invalid value \"/no/such/file\": expected a readable file: "
            )
        );
    }

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
