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
        values::{market_variable, path, websocket_url},
    },
    protocol::{Kind, Market},
};
use secrecy::{ExposeSecret, SecretString};
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
        secret(&market_variable(KEY, market), self.key.as_ref(), self.key_file.as_deref())
    }

    fn has_key(&self) -> bool {
        let is_set = |key: &SecretString| !key.expose_secret().trim().is_empty();
        self.key.as_ref().is_some_and(is_set) || self.key_file.is_some()
    }

    fn variables(&self, market: Market) -> impl Iterator<Item = String> {
        let set = [
            (URL, self.sources.is_some()),
            (CHANNELS, self.channels.is_some()),
            (KEY, self.has_key()),
        ];
        set.into_iter().filter(|(_, set)| *set).map(move |(name, _)| market_variable(name, market))
    }
}

/// Parses a URL, or a list such as `wss://a.example=T,Q,wss://b.example=AM`: each URL with the
/// types that come from it. An empty list counts as none. No error shows a part of
/// the list, which may hold a key.
fn sources(list: &str) -> Result<SourceList, String> {
    const EXPECTED: &str = "expected a WebSocket URL, or several with their types, such as \
                            wss://a.example=T,Q,wss://b.example=AM";
    let mut sources = SourceList::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let mut kind = Kind::from_code(item.as_bytes());
        if item.contains("://") {
            // The query of a URL may hold the sign too.
            let last =
                item.rsplit_once('=').map(|(url, last)| (url, Kind::from_code(last.as_bytes())));
            let (url, first) = match last {
                Some((url, Some(first))) => (url, Some(first)),
                Some((_, None)) | None => (item, None),
            };
            sources.push((websocket_url(url)?, BTreeSet::new()));
            let Some(first) = first else { continue };
            kind = Some(first);
        }
        let (Some(kind), Some((_, kinds))) = (kind, sources.last_mut()) else {
            return Err(EXPECTED.to_owned());
        };
        kinds.insert(kind);
        if sources.iter().filter(|(_, kinds)| kinds.contains(&kind)).count() > 1 {
            return Err(format!("expected each type once, and not {kind} again"));
        }
    }
    match sources.iter().find(|(_, kinds)| kinds.is_empty()) {
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
                hidden(market_variable(URL, market), ValueParser::new(sources)),
                hidden(market_variable(CHANNELS, market), ValueParser::string())
                    .hide_env_values(false),
                hidden(market_variable(KEY, market), secret.clone()),
                hidden(market_variable(KEY, market) + "_FILE", ValueParser::new(path)),
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
                sources: matches
                    .get_one(&market_variable(URL, market))
                    .cloned()
                    .filter(|sources: &SourceList| !sources.is_empty()),
                channels: matches
                    .get_one(&market_variable(CHANNELS, market))
                    .cloned()
                    .filter(|list: &String| !list.trim().is_empty()),
                key: matches.get_one(&market_variable(KEY, market)).cloned(),
                key_file: matches.get_one(&(market_variable(KEY, market) + "_FILE")).cloned(),
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
            ("wss://a.example?x=1", "wss://a.example/?x=1="),
            (" , ", ""),
        ] {
            assert_eq!(shown(list).as_deref(), Ok(expected), "{list}");
        }
        for (list, why) in [
            ("T,Q", "expected a WebSocket URL, or several"),
            ("http://a.example=T", "expected a WebSocket URL such as"),
            ("wss://a.example=T,secret", "expected a WebSocket URL, or several"),
            ("wss://a.example=T,wss://b.example", "expected the types of each URL"),
            ("wss://a.example=T,wss://b.example=Q,T", "expected each type once, and not T again"),
        ] {
            let error = shown(list).unwrap_err();
            assert!(error.starts_with(why) && !error.contains("secret"), "{list}: {error}");
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
