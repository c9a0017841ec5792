//! What the target of an upgrade asks for: a market, a named session, positions, last values.

use std::{sync::Arc, time::Duration};

use crate::{
    access::shorten,
    protocol::Market,
    session::{NamedSessions, SessionOptions},
};

/// The longest time between two positions.
const MAX_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Most characters of a session's name.
const MAX_NAME: usize = 64;

/// Why a target leads to no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TargetError {
    /// Nothing is served at this path. The sentence is for the client.
    NoSuchPath(String),
    /// The query asks for something that cannot be.
    BadQuery(String),
}

/// Reads the path and query of an upgrade. The path is that of a market, or `/session/NAME` before
/// it.
///
/// Unknown parameters are ignored: the vendor does the same, and clients add some of their own.
pub(super) fn read(
    path: &str,
    query: Option<&str>,
    markets: &[Market],
    named: NamedSessions,
) -> Result<(Market, Option<Arc<SessionOptions>>), TargetError> {
    let (name, market_path) = session_name(path, named)?;
    let Some(&market) = markets.iter().find(|market| match market_path {
        "" | "/" => true,
        path => market.is_at(path),
    }) else {
        let first = markets[0];
        let paths: Vec<_> = markets.iter().map(|market| format!("/{market}")).collect();
        return Err(TargetError::NoSuchPath(format!(
            "no market at {:?}: this proxy serves {first} at / and {}\n",
            shorten(path),
            paths.join(", ")
        )));
    };
    let mut options = SessionOptions { name, ..SessionOptions::default() };
    for (key, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*key {
            "positions" => options.positions = Some(interval(&value)?),
            "snapshot" => options.snapshot = flag(&value)?,
            _ => {}
        }
    }
    let options = (options != SessionOptions::default()).then(|| Arc::new(options));
    Ok((market, options))
}

/// The name of the session in a path, and the rest of the path.
fn session_name(path: &str, named: NamedSessions) -> Result<(Option<Arc<str>>, &str), TargetError> {
    let Some(rest) = path.trim_start_matches('/').strip_prefix("session/") else {
        return Ok((None, path));
    };
    let rest = rest.trim_start_matches('/');
    let (name, market) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let is_sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let sentence = if named == NamedSessions::Refused {
        "named sessions are at the filtered proxy, not at the firehose\n".to_owned()
    } else if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_sound) {
        format!(
            "no session name {:?}: expected 1 to {MAX_NAME} letters, digits, dots, hyphens or \
             underscores, such as /session/alpha/stocks\n",
            shorten(name)
        )
    } else {
        return Ok((Some(name.into()), market));
    };
    Err(TargetError::NoSuchPath(sentence))
}

fn interval(value: &str) -> Result<Duration, TargetError> {
    match humantime::parse_duration(value) {
        Ok(interval) if !interval.is_zero() && interval <= MAX_INTERVAL => Ok(interval),
        _ => Err(TargetError::BadQuery(format!(
            "no interval {:?}: expected positions=1s, 500ms or the like, 1h at most\n",
            shorten(value)
        ))),
    }
}

fn flag(value: &str) -> Result<bool, TargetError> {
    match value {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(TargetError::BadQuery(format!(
            "no choice {:?}: expected snapshot=1 or snapshot=0\n",
            shorten(value)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKETS: [Market; 2] = [Market::Stocks, Market::Futures];

    fn of(path: &str, query: &str) -> Result<(Market, SessionOptions), TargetError> {
        let (market, options) = read(path, Some(query), &MARKETS, NamedSessions::Accepted)?;
        Ok((market, options.map(|options| (*options).clone()).unwrap_or_default()))
    }

    #[test]
    fn a_name_stands_before_the_market() {
        for (path, name, market) in [
            ("/", None, Market::Stocks),
            ("/futures/cme", None, Market::Futures),
            ("/session/a", Some("a"), Market::Stocks),
            ("/session/a/", Some("a"), Market::Stocks),
            ("//session//a.b-c_D9//stocks/", Some("a.b-c_D9"), Market::Stocks),
            ("/session/stocks/futures/cme", Some("stocks"), Market::Futures),
        ] {
            let (found, options) = of(path, "").unwrap();
            assert_eq!((options.name.as_deref(), found), (name, market), "{path}");
        }
        let long = format!("/session/{}", "x".repeat(MAX_NAME + 1));
        for path in ["/session", "/session/", "/session/a/crypto", "/session/a%20b", &*long, "/x"] {
            assert!(matches!(of(path, ""), Err(TargetError::NoSuchPath(_))), "{path}");
        }
        let at_firehose = read("/session/a", None, &MARKETS, NamedSessions::Refused);
        assert!(
            matches!(at_firehose, Err(TargetError::NoSuchPath(text)) if text.contains("filtered"))
        );
    }

    #[test]
    fn the_query_asks_for_positions_and_last_values() {
        let (_, options) = of("/", "apiKey=x&positions=250ms&snapshot=1&y").unwrap();
        let positions = Some(Duration::from_millis(250));
        assert_eq!(options, SessionOptions { name: None, positions, snapshot: true });
        assert_eq!(of("/", "snapshot=0&other=1").unwrap().1, SessionOptions::default());
        for query in [
            "positions",
            "positions=0s",
            "positions=1",
            "positions=61m",
            "positions=10000000000000000000s",
            "snapshot",
            "snapshot=2",
        ] {
            assert!(matches!(of("/", query), Err(TargetError::BadQuery(_))), "{query}");
        }
    }
}
