//! Parsers of settings. Each error names the form expected.

use std::{path::PathBuf, time::Duration};

use url::Url;

use super::error::ConfigError;
use crate::protocol::Market;

/// Parses a port; 0 stands for any free one.
///
/// # Errors
///
/// Not a number up to 65,535.
pub fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "expected a port number from 0 (any free one) to 65535".to_owned())
}

/// Parses a count of 1 or more.
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

/// Parses a number of bytes; 0 stands for none.
///
/// # Errors
///
/// Not a whole number.
pub fn bytes(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a whole number of bytes, or 0 for none".to_owned())
}

/// Parses a time such as `10s`, `500ms` or `15min`, longer than zero.
///
/// # Errors
///
/// The text has another form.
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
/// The text has another form.
pub fn duration_or_none(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "expected a time such as 2s, or 0s".to_owned())
}

/// Parses `on` or `off`.
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
/// Not a URL with the scheme `ws` or `wss` and a host, or one with a user or password.
pub fn websocket_url(text: &str) -> Result<Url, String> {
    let expected =
        "expected a WebSocket URL such as wss://socket.massive.com/stocks or ws://localhost:8767";
    let url = Url::parse(text).map_err(|error| format!("{expected} ({error})"))?;
    if !matches!(url.scheme(), "ws" | "wss") || url.host_str().is_none_or(str::is_empty) {
        return Err(expected.to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("{expected}, without user or password"));
    }
    Ok(url)
}

/// Parses a rate per second.
///
/// # Errors
///
/// Not a whole number from 1 to 1,000,000.
pub fn rate(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n @ 1..=1_000_000) => Ok(n),
        _ => Err("expected a whole number from 1 to 1000000".to_owned()),
    }
}

/// The variable of a setting for one market alone: `POLYGON_WS_URL_OPTIONS`.
pub fn market_variable(setting: &str, market: Market) -> String {
    format!("{setting}_{}", market.name().to_uppercase())
}

/// The URL of a market, for a URL that may lead to any. A path that names a market must name this
/// one. A URL without a path gets the market's, and so does any other path if `several` markets
/// share the URL.
///
/// # Errors
///
/// The URL leads to another market.
pub fn market_url(
    variable: &str,
    url: &Url,
    market: Market,
    several: bool,
) -> Result<Url, ConfigError> {
    match url.path().split('/').find_map(|segment| segment.parse::<Market>().ok()) {
        Some(other) if other != market => {
            let expected = match several {
                true => format!("expected a URL without a path, as {market} is served too"),
                false => format!("expected the path /{market}, as MARKET is {market}"),
            };
            Err(ConfigError::invalid(variable, url.path(), expected))
        }
        None if several || url.path() == "/" => {
            let mut url = url.clone();
            url.set_path(&format!("{}/{market}", url.path().trim_end_matches('/')));
            Ok(url)
        }
        Some(_) | None => Ok(url.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked() {
        for good in ["ws://localhost:8767", "wss://socket.massive.com/stocks", "ws://[::1]:1/x"] {
            assert!(websocket_url(good).is_ok(), "{good}");
        }
        for bad in ["", "localhost:8767", "http://localhost", "ws://", "ws://u:p@h/", "nonsense"] {
            assert!(websocket_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_url_may_not_lead_to_another_market() {
        let check = |path: &str, market| {
            let url = Url::parse(&format!("wss://feed.example{path}")).unwrap();
            market_url("POLYGON_WS_URL", &url, market, false).is_ok()
        };
        for path in ["", "/", "/futures", "/futures/cme", "/at/futures/nymex", "/feed"] {
            assert!(check(path, Market::Futures), "{path}");
        }
        for path in ["/futures", "/futures/cme", "/at/options", "/options/stocks"] {
            assert!(!check(path, Market::Stocks), "{path}");
        }
    }

    #[test]
    fn a_url_gets_the_path_of_its_market() {
        let url = |path: &str, several| {
            let url = Url::parse(&format!("wss://feed.example{path}")).unwrap();
            market_url("POLYGON_WS_URL", &url, Market::Crypto, several).map(|url| url.to_string())
        };
        for (path, one, several) in [
            ("", "/crypto", "/crypto"),
            ("/", "/crypto", "/crypto"),
            ("/crypto/", "/crypto/", "/crypto/"),
            ("/feed/", "/feed/", "/feed/crypto"),
        ] {
            assert_eq!(url(path, false), Ok(format!("wss://feed.example{one}")), "{path}");
            assert_eq!(url(path, true), Ok(format!("wss://feed.example{several}")), "{path}");
        }
        let error = url("/stocks", true).unwrap_err().to_string();
        assert!(
            error.ends_with("expected a URL without a path, as crypto is served too"),
            "{error}"
        );
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
