//! Settings of one market, which go before those of all: `POLYGON_WS_URL_OPTIONS` before
//! `POLYGON_WS_URL`, for example.

use std::{collections::BTreeMap, convert::Infallible, path::PathBuf};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, builder::ValueParser};
use proxy_common::{
    config::{
        ConfigError,
        secrets::secret,
        values::{path, websocket_url},
    },
    protocol::Market,
};
use secrecy::SecretString;
use url::Url;

/// The settings that a market may have of its own.
const URL: &str = "POLYGON_WS_URL";
const CHANNELS: &str = "UPSTREAM_CHANNELS";
const KEY: &str = "POLYGON_API_KEY";

/// The settings of each market that has any.
#[derive(Debug, Clone, Default)]
pub(crate) struct MarketArgs(BTreeMap<Market, MarketSettings>);

/// A market's own settings.
#[derive(Debug, Clone, Default)]
pub(crate) struct MarketSettings {
    /// Where its data comes from.
    pub url: Option<Url>,
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
            (URL, self.url.is_some()),
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
                hidden(variable(URL, market), ValueParser::new(websocket_url)),
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
                url: matches.get_one(&variable(URL, market)).cloned(),
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
