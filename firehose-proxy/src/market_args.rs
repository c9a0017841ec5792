//! Settings of one market, which go before those of all: `POLYGON_WS_URL_OPTIONS` before
//! `POLYGON_WS_URL`, for example.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::PathBuf,
};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, builder::ValueParser};
use proxy_common::{
    config::{
        ConfigError,
        secrets::secret,
        values::{path, websocket_url},
    },
    protocol::{Kind, Market},
};
use secrecy::SecretString;
use url::Url;

/// The settings that a market may have of its own.
pub(crate) const URL: &str = "POLYGON_WS_URL";
pub(crate) const CHANNELS: &str = "UPSTREAM_CHANNELS";
pub(crate) const KEY: &str = "POLYGON_API_KEY";

/// URLs, each with the types that come from it. A URL on its own needs none.
pub(crate) type SourceList = Vec<(Url, BTreeSet<Kind>)>;

/// The settings of each market that has any.
#[derive(Debug, Clone, Default)]
pub(crate) struct MarketArgs(BTreeMap<Market, MarketSettings>);

/// A market's own settings.
#[derive(Debug, Clone, Default)]
pub(crate) struct MarketSettings {
    /// Where its data comes from, at least one.
    pub sources: Option<SourceList>,
    /// What `*` stands for upstream.
    pub channels: Option<String>,
    key: Option<SecretString>,
    key_file: Option<PathBuf>,
}

impl MarketArgs {
    /// The settings of a market.
    pub(crate) fn of(&self, market: Market) -> MarketSettings {
        self.0.get(&market).cloned().unwrap_or_default()
    }

    /// Variables that are set for markets other than those served.
    pub(crate) fn unused(&self, served: &[Market]) -> Vec<String> {
        let others = self.0.iter().filter(|(market, _)| !served.contains(market));
        others.flat_map(|(market, settings)| settings.variables(*market)).collect()
    }
}

impl MarketSettings {
    /// The key of this market's account, if it has one of its own.
    ///
    /// # Errors
    ///
    /// As for [`secret`].
    pub(crate) fn key(&self, market: Market) -> Result<Option<SecretString>, ConfigError> {
        secret(&variable(KEY, market), self.key.as_ref(), self.key_file.as_deref())
    }

    fn variables(&self, market: Market) -> impl Iterator<Item = String> {
        let set = [
            (URL, self.sources.is_some()),
            (CHANNELS, self.channels.is_some()),
            (KEY, self.key.is_some() || self.key_file.is_some()),
        ];
        set.into_iter().filter(|(_, set)| *set).map(move |(name, _)| variable(name, market))
    }
}

/// The variable of a market's own setting.
pub(crate) fn variable(name: &str, market: Market) -> String {
    format!("{name}_{}", market.name().to_uppercase())
}

/// Parses a URL, or a list such as `wss://a.example=T,Q,wss://b.example=AM`: each URL with the types
/// that come from it.
fn sources(list: &str) -> Result<SourceList, String> {
    let mut sources = SourceList::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let mut kind = item;
        if item.contains("://") {
            let (url, first) = item.rsplit_once('=').unwrap_or((item, ""));
            sources.push((websocket_url(url)?, BTreeSet::new()));
            kind = first.trim();
            if !item.contains('=') {
                continue;
            }
        }
        let expected = || {
            format!("expected URL=types, such as wss://socket.massive.com=T,Q, and not {item:?}")
        };
        let kind = Kind::from_code(kind.as_bytes()).ok_or_else(expected)?;
        if sources.iter().any(|(_, kinds)| kinds.contains(&kind)) {
            return Err(format!("expected each type once, and not {kind} again"));
        }
        sources.last_mut().ok_or_else(expected)?.1.insert(kind);
    }
    match sources.iter().find(|(_, kinds)| kinds.is_empty()) {
        _ if sources.is_empty() => Err("expected a WebSocket URL".to_owned()),
        Some(_) if sources.len() > 1 => {
            Err("expected the types of each URL, such as wss://socket.massive.com=T,Q".to_owned())
        }
        _ => Ok(sources),
    }
}

/// A flag and variable that the help leaves out: it names the setting of all markets.
fn hidden(variable: String, parser: impl Into<ValueParser>) -> Arg {
    let flag = variable.to_lowercase().replace('_', "-");
    Arg::new(variable.clone())
        .long(flag)
        .env(variable)
        .hide(true)
        .hide_env_values(true)
        .value_parser(parser.into())
}

impl Args for MarketArgs {
    fn augment_args(command: Command) -> Command {
        let secret = ValueParser::new(|key: &str| Ok::<_, Infallible>(SecretString::from(key)));
        let of = |&market: &Market| {
            [
                hidden(variable(URL, market), ValueParser::new(sources)),
                hidden(variable(CHANNELS, market), ValueParser::string()),
                hidden(variable(KEY, market), secret.clone()),
                hidden(variable(KEY, market) + "_FILE", ValueParser::new(path)),
            ]
        };
        command.args(Market::ALL.iter().flat_map(of))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for MarketArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for &market in Market::ALL {
            let settings = MarketSettings {
                sources: matches.get_one(&variable(URL, market)).cloned(),
                channels: matches.get_one(&variable(CHANNELS, market)).cloned(),
                key: matches.get_one(&variable(KEY, market)).cloned(),
                key_file: matches.get_one(&(variable(KEY, market) + "_FILE")).cloned(),
            };
            if settings.variables(market).next().is_some() {
                self.0.insert(market, settings);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(list: &str) -> Result<String, String> {
        let shown = |(url, kinds): (Url, BTreeSet<Kind>)| {
            let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
            format!("{url}={}", kinds.join(","))
        };
        Ok(sources(list)?.into_iter().map(shown).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_market_may_have_one_url_or_several_with_types() {
        for (list, expected) in [
            ("wss://a.example/stocks", "wss://a.example/stocks="),
            ("wss://a.example=T", "wss://a.example/=T"),
            (
                "wss://a.example=T,Q, wss://b.example/x=FMV,NEW9",
                "wss://a.example/=T,Q wss://b.example/x=FMV,NEW9",
            ),
            ("wss://a.example?x=1=T", "wss://a.example/?x=1=T"),
        ] {
            assert_eq!(shown(list).as_deref(), Ok(expected), "{list}");
        }
        for (list, why) in [
            ("", "expected a WebSocket URL"),
            ("T,Q", "expected URL=types"),
            ("http://a.example=T", "expected a WebSocket URL such as"),
            ("wss://a.example=", "expected URL=types"),
            ("wss://a.example=T.*", "expected URL=types"),
            ("wss://a.example=T,wss://b.example", "expected the types of each URL"),
            ("wss://a.example=T,wss://b.example=Q,T", "expected each type once, and not T again"),
        ] {
            let error = shown(list).unwrap_err();
            assert!(error.starts_with(why), "{list}: {error}");
        }
    }

    #[test]
    fn settings_of_markets_that_are_not_served_are_named() {
        let command = MarketArgs::augment_args(Command::new("test"));
        let flags =
            ["test", "--polygon-ws-url-crypto=wss://a.example", "--polygon-api-key-stocks=k"];
        let matches = command.mut_args(|arg| arg.env(None::<&str>)).get_matches_from(flags);
        let args = MarketArgs::from_arg_matches(&matches).unwrap();
        assert_eq!(args.unused(&[Market::Stocks]), ["POLYGON_WS_URL_CRYPTO"]);
        assert!(args.of(Market::Stocks).key(Market::Stocks).unwrap().is_some());
        assert!(args.of(Market::Options).sources.is_none());
        assert!(!format!("{args:?}").contains("\"k\""));
    }
}
