//! The firehose's settings: parses flags and variables, and checks their values.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use clap::{Parser, ValueEnum};
use humantime::format_duration;
use proxy_common::{
    access::{Keys, LimitsKept},
    config::{
        ConfigError,
        pem::certificates,
        values::{bytes, count, duration, market_url, market_variable, path, port, websocket_url},
    },
    link::{LinkConfig, Spacing},
    nats::{NatsConfig, Servers, servers},
    program::{
        args::{AccountArgs, ServerArgs},
        logging::LogArgs,
        nats_args::NatsArgs,
        program_config::{ProgramArgs, ProgramConfig},
        subcommand::Subcommand,
        wiring::ServerConfig,
    },
    protocol::{Channel, ChannelError, Feed, Kind, Market, NoticePolicy, TierName, channel_items},
    transport::ListenConfig,
    version::FULL,
};
use rustls::pki_types::CertificateDer;
use secrecy::SecretString;
use url::Url;

use crate::{
    lease::{LeaseConfig, LeaseKind, protocol::Timing},
    market_args::{CHANNELS, KEY, MarketArgs, MarketSettings, SourceList, URL},
    record::{RecordConfig, keep::Keep},
    sources::{Source, Sources},
};

/// Holds the one WebSocket connection that a Polygon.io (Massive) account may have, and broadcasts
/// its raw frames.
///
/// Every setting is a flag, a variable, or a line of a .env file in the working directory or above
/// it.
#[derive(Debug, Parser)]
#[command(version = FULL, about, long_about = None, disable_help_subcommand = true)]
pub struct Args {
    #[command(flatten)]
    account: AccountArgs,
    #[command(flatten)]
    markets: MarketArgs,
    /// Where the market data comes from [default: wss://socket.massive.com/MARKET]. POLYGON_WS_URL,
    /// UPSTREAM_CHANNELS and POLYGON_API_KEY may be set for one market alone, such as
    /// POLYGON_WS_URL_OPTIONS, which goes before POLYGON_WS_URL
    #[arg(long, env = "POLYGON_WS_URL", hide_env_values = true, value_parser = websocket_url)]
    polygon_ws_url: Option<Url>,
    /// Certificates (PEM) of authorities to trust at POLYGON_WS_URL, beside the public ones
    /// [default: none]
    #[arg(long, env = "POLYGON_CA", value_parser = path)]
    polygon_ca: Option<PathBuf>,
    /// Event types or channels that * stands for upstream, separated by commas. A type that this
    /// version does not know is requested as well [default: the types that the host serves by
    /// wildcard]
    #[arg(long, env = "UPSTREAM_CHANNELS")]
    upstream_channels: Option<String>,
    /// How long a channel stays subscribed upstream after its last subscriber has left
    #[arg(long, env = "UPSTREAM_LINGER", default_value = "30s", value_parser = duration)]
    upstream_linger: Duration,
    /// Contracts of each type without a wildcard, such as option quotes, that the vendor serves at
    /// a time
    #[arg(long, env = "UPSTREAM_CONTRACTS", default_value = "1000", value_parser = count)]
    upstream_contracts: usize,
    /// Connections for options, if the account has several: they share the contracts
    #[arg(long, env = "UPSTREAM_CONNECTIONS_OPTIONS", default_value = "1", value_parser = count)]
    upstream_connections_options: usize,
    /// How long a busy type may send no event, while its market is open, before /health reports it;
    /// or off
    #[arg(long, env = "SILENCE_ALARM", default_value = "60s", value_parser = silence_alarm)]
    silence_alarm: Alarm,
    /// Host name or address to listen on; a name stands for all its addresses
    #[arg(long, env = "FIREHOSE_HOST", default_value = "localhost")]
    host: String,
    /// Port to listen on; 0 takes any free one
    #[arg(long, env = "FIREHOSE_PORT", default_value = "8767", value_parser = port)]
    port: u16,
    /// Keys that downstreams may present, separated by commas [default: the account's key]
    #[arg(long, env = "FIREHOSE_API_KEYS", hide_env_values = true)]
    firehose_api_keys: Option<SecretString>,
    /// File holding those keys, separated by commas or lines, or lines of a label and the digest
    /// that hash-key prints
    #[arg(long, env = "FIREHOSE_API_KEYS_FILE", value_parser = path)]
    firehose_api_keys_file: Option<PathBuf>,
    /// Frames that a downstream may lag before it loses some; a notice reports the loss
    #[arg(long, env = "RING_FRAMES", default_value = "16384", value_parser = count)]
    ring_frames: usize,
    /// Bytes that a downstream may lag before it loses some; a notice reports the loss
    #[arg(long, env = "RING_BYTES", default_value = "268435456", value_parser = count)]
    ring_bytes: usize,
    /// Bytes of messages kept for downstreams that come back, for each market; 0 keeps none
    #[arg(long, env = "HISTORY_BYTES", default_value = "268435456", value_parser = bytes)]
    history_bytes: usize,
    /// Directory in which raw frames are recorded, a file for each market and hour [default: none]
    #[arg(long, env = "RECORD_DIR", value_parser = path)]
    record_dir: Option<PathBuf>,
    /// How long recorded files stay, how many bytes of them for each market, or both:
    /// 30d,200000000000 [default: none]
    #[arg(long, env = "RECORD_KEEP", value_parser = Keep::parse)]
    record_keep: Option<Keep>,
    /// NATS servers that get the feed as well, for filtered proxies on other machines:
    /// nats://a:4222,b:4222 or tls://... [default: none]
    #[arg(long, env = "NATS_URL", value_parser = servers)]
    nats_url: Option<Servers>,
    #[command(flatten)]
    nats: NatsArgs,
    /// Where NATS keeps a stream that is made
    #[arg(long, env = "NATS_STORAGE", default_value = "file")]
    nats_storage: Storage,
    /// How many servers of NATS keep a stream that is made
    #[arg(long, env = "NATS_REPLICAS", default_value = "1", value_parser = replicas)]
    nats_replicas: usize,
    /// Most bytes of a stream that is made; the oldest messages go
    #[arg(long, env = "NATS_MAX_BYTES", default_value = "8589934592", value_parser = count)]
    nats_max_bytes: usize,
    /// How long a stream that is made keeps messages
    #[arg(long, env = "NATS_MAX_AGE", default_value = "1h", value_parser = duration)]
    nats_max_age: Duration,
    /// Which of several firehoses may dial the vendor: none asks nobody; file:PATH locks a file, for
    /// one machine; nats uses the NATS of NATS_URL
    #[arg(long, env = "LEASE", default_value = "none", value_parser = LeaseKind::parse)]
    lease: LeaseKind,
    /// How long a standby waits for a renewal in NATS before it takes over, at least 2s
    #[arg(long, env = "LEASE_TAKEOVER", default_value = "2s", value_parser = duration)]
    lease_takeover: Duration,
    /// How long a firehose keeps its connection while NATS takes no renewal, at least 1200ms
    #[arg(long, env = "LEASE_KEEP", default_value = "10s", value_parser = duration)]
    lease_keep: Duration,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    subcommand: Option<Subcommand>,
}

impl ProgramArgs for Args {
    fn log(&self) -> &LogArgs {
        &self.log
    }

    fn subcommand(&self) -> Option<&Subcommand> {
        self.subcommand.as_ref()
    }
}

/// A checked configuration.
pub struct Config {
    /// What each market has of its own, in the order of the settings.
    pub markets: Vec<MarketConfig>,
    /// Variables that are set for markets that are not served.
    pub unused: Vec<String>,
    /// How long a channel stays subscribed upstream after its last subscriber has left.
    pub upstream_linger: Duration,
    /// How many contracts the vendor serves at a time over one connection, of each kind that is on
    /// demand.
    pub upstream_contracts: usize,
    /// How long a busy type may send no event before it counts as silent; `None` turns the alarm
    /// off.
    pub silence_alarm: Option<Duration>,
    /// Most messages that a downstream may lag.
    pub ring_frames: usize,
    /// Most bytes that these messages may hold together.
    pub ring_bytes: usize,
    /// Most bytes of messages kept for downstreams that come back.
    pub history_bytes: usize,
    /// Where frames are recorded; `None` if they are not.
    pub record: Option<RecordConfig>,
    /// The NATS that gets the feed as well, if one does.
    pub nats: Option<FeedConfig>,
    /// Which of several firehoses may dial; `None` if this one always may.
    pub lease: Option<LeaseConfig>,
    /// The settings that both tiers share.
    pub server: ServerConfig,
}

/// Where NATS keeps a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Storage {
    /// On disk: it outlives the server's process.
    File,
    /// In memory: it ends with the server's process.
    Memory,
}

/// The NATS that gets the feed, and the streams that are made there if they are missing.
#[derive(Debug, Clone)]
pub struct FeedConfig {
    /// How to reach it.
    pub nats: NatsConfig,
    /// Where it keeps a stream.
    pub storage: Storage,
    /// How many servers keep a stream.
    pub replicas: usize,
    /// Most bytes of a stream.
    pub max_bytes: usize,
    /// How long a stream keeps messages.
    pub max_age: Duration,
}

/// What a market has of its own.
pub struct MarketConfig {
    /// The market.
    pub market: Market,
    /// The links to the vendor, one for each connection.
    pub links: Vec<LinkConfig>,
    /// What each connection carries.
    pub sources: Arc<Sources>,
    /// The channels that `*` stands for upstream.
    pub channels: BTreeSet<Channel>,
    /// The kinds that are requested by contract only: the host serves no wildcard of them, and the
    /// operator lists none.
    pub on_demand: BTreeSet<Kind>,
}

impl ProgramConfig for Config {
    type Args = Args;

    const TIER: TierName = TierName::Firehose;

    fn links(&self) -> impl Iterator<Item = &LinkConfig> {
        self.markets.iter().flat_map(|market| &market.links)
    }

    fn server(&self) -> &ServerConfig {
        &self.server
    }
}

impl TryFrom<&Args> for Config {
    type Error = ConfigError;

    fn try_from(args: &Args) -> Result<Self, ConfigError> {
        let account = args.account.key()?;
        let keys = Keys::read(
            "FIREHOSE_API_KEYS",
            args.firehose_api_keys.as_ref(),
            args.firehose_api_keys_file.as_deref(),
            // Frames go out as they came, whatever is in them.
            LimitsKept::Markets,
        )?;
        let keys = match (keys, &account) {
            (Some(keys), _) => keys,
            (None, Some(key)) => Keys::account("FIREHOSE_API_KEYS", key),
            (None, None) => return Err(ConfigError::missing(KEY, ACCOUNT_KEY)),
        };
        // Filtered proxies hold `*` and pass notices on, so they get them in any case.
        let notices = match args.server.client_notices {
            true => NoticePolicy::Everyone,
            false => NoticePolicy::HoldersOfAll,
        };
        let listen = ListenConfig::new(("FIREHOSE_HOST", &args.host), ("FIREHOSE_PORT", args.port));
        let server = args.server.check(listen, keys, notices)?;
        let extra_roots = match &args.polygon_ca {
            Some(path) => certificates("POLYGON_CA", path)?,
            None => Vec::new(),
        };
        let shared = SharedSource {
            several: server.markets.len() > 1,
            account: account.as_ref(),
            extra_roots: &extra_roots,
            history_bytes: args.history_bytes,
        };
        let market = |market: &Market| args.market(*market, &shared);
        let mut markets: Vec<_> =
            server.markets.iter().map(market).collect::<Result<_, ConfigError>>()?;
        space_attempts(&mut markets);
        check_ring(args.ring_frames, args.ring_bytes)?;
        let nats = args.feed()?;
        Ok(Self {
            markets,
            unused: args.unused(&server.markets),
            upstream_linger: args.upstream_linger,
            upstream_contracts: args.upstream_contracts,
            silence_alarm: args.silence_alarm,
            ring_frames: args.ring_frames,
            ring_bytes: args.ring_bytes,
            history_bytes: args.history_bytes,
            record: args
                .record_dir
                .clone()
                .map(|dir| RecordConfig { dir, keep: args.record_keep.unwrap_or_default() }),
            lease: args.lease(nats.as_ref())?,
            nats,
            server,
        })
    }
}

/// What the markets share of their sources.
struct SharedSource<'a> {
    /// Whether several markets are served.
    several: bool,
    /// The key of markets that have none of their own.
    account: Option<&'a SecretString>,
    extra_roots: &'a [CertificateDer<'static>],
    /// Most bytes of messages that each market keeps.
    history_bytes: usize,
}

impl Args {
    /// Variables that are set for markets other than those served.
    fn unused(&self, served: &[Market]) -> Vec<String> {
        let mut unused = self.markets.unused(served);
        if self.upstream_connections_options > 1 && !served.contains(&Market::Options) {
            unused.push("UPSTREAM_CONNECTIONS_OPTIONS".to_owned());
        }
        unused
    }

    /// The settings of the lease.
    fn lease(&self, feed: Option<&FeedConfig>) -> Result<Option<LeaseConfig>, ConfigError> {
        let (takeover, keep) = (self.lease_takeover, self.lease_keep);
        let least = |variable, given: Duration, least| match given < least {
            true => {
                let (given, least) = (format_duration(given), format_duration(least));
                Err(ConfigError::invalid(variable, given, format!("expected at least {least}")))
            }
            false => Ok(()),
        };
        least("LEASE_TAKEOVER", takeover, Timing::LEAST_TAKEOVER)?;
        let timing = Timing::new(takeover, keep);
        least("LEASE_KEEP", keep, timing.dial)?;
        match (&self.lease, feed) {
            (LeaseKind::None, _) => Ok(None),
            (LeaseKind::File(path), _) => Ok(Some(LeaseConfig::File(path.clone()))),
            (LeaseKind::Nats, Some(feed)) => Ok(Some(LeaseConfig::Nats {
                nats: Box::new(feed.nats.clone()),
                replicas: feed.replicas,
                timing,
            })),
            (LeaseKind::Nats, None) => {
                Err(ConfigError::missing("NATS_URL", "the servers of NATS, as LEASE is nats"))
            }
        }
    }

    /// The settings of NATS.
    fn feed(&self) -> Result<Option<FeedConfig>, ConfigError> {
        let Some(servers) = &self.nats_url else { return Ok(None) };
        let nats = self.nats.check("NATS_URL", servers)?;
        if self.history_bytes < MIN_HISTORY_BYTES {
            let expected = format!(
                "expected at least {MIN_HISTORY_BYTES}, as NATS_URL is set: NATS gets what the \
                 history holds"
            );
            return Err(ConfigError::invalid("HISTORY_BYTES", self.history_bytes, expected));
        }
        Ok(Some(FeedConfig {
            nats,
            storage: self.nats_storage,
            replicas: self.nats_replicas,
            max_bytes: self.nats_max_bytes,
            max_age: self.nats_max_age,
        }))
    }

    fn market(
        &self,
        market: Market,
        shared: &SharedSource<'_>,
    ) -> Result<MarketConfig, ConfigError> {
        let own = self.markets.of(market);
        let key = own.key(market)?.or_else(|| shared.account.cloned()).ok_or_else(|| {
            let expected = format!("{ACCOUNT_KEY}, or {} too", market_variable(KEY, market));
            ConfigError::missing(KEY, expected)
        })?;
        let hosts = self.hosts(market, &own, shared.several)?;
        let source = |(url, kinds): &(Url, BTreeSet<Kind>)| Source {
            feed: Feed::new(market, url.host_str().unwrap_or_default()),
            kinds: kinds.clone(),
        };
        let connections = match market {
            Market::Options => self.upstream_connections_options,
            _ => 1,
        };
        let sources = Sources::new(hosts.iter().map(source).collect(), connections);
        let channels = match (&own.channels, &self.upstream_channels) {
            (Some(list), _) => parse_channels(&market_variable(CHANNELS, market), list, market)?,
            (None, Some(list)) if shared.several => channels_among_several(list, market)?,
            (None, Some(list)) => parse_channels(CHANNELS, list, market)?,
            (None, None) => sources.default_kinds().map(Channel::Kind).collect(),
        };
        let mut kinds = channels.iter().filter_map(Channel::kind);
        if let Some(kind) = kinds.find(|&kind| !sources.carries(kind)) {
            let expected = format!("a URL with the type {kind}, which {CHANNELS} lists");
            return Err(ConfigError::missing(&market_variable(URL, market), expected));
        }
        let links = sources.iter().zip(&hosts).flat_map(|((_, connections), (url, _))| {
            let mut link = LinkConfig::new("Polygon", url.clone(), key.clone());
            link.extra_roots = shared.extra_roots.to_vec();
            link.kept_bytes = shared.history_bytes;
            vec![link; connections.len()]
        });
        let is_listed = |kind: &Kind| channels.contains(&Channel::Kind(*kind));
        let on_demand = sources.on_demand_kinds().filter(|kind| !is_listed(kind)).collect();
        let links = links.collect();
        Ok(MarketConfig { market, links, sources: Arc::new(sources), channels, on_demand })
    }

    /// Where the data of a market comes from.
    fn hosts(
        &self,
        market: Market,
        own: &MarketSettings,
        several: bool,
    ) -> Result<SourceList, ConfigError> {
        if let Some(list) = &own.sources {
            let name = market_variable(URL, market);
            let host = |(url, kinds): &(Url, BTreeSet<Kind>)| {
                Ok((market_url(&name, url, market, false)?, kinds.clone()))
            };
            return list.iter().map(host).collect();
        }
        let url = match &self.polygon_ws_url {
            Some(url) => market_url(URL, url, market, several)?,
            None => websocket_url(&format!("wss://socket.massive.com/{market}"))
                .map_err(|why| ConfigError::invalid(URL, "", why))?,
        };
        Ok(vec![(url, BTreeSet::new())])
    }
}

/// Keeps the attempts of all links apart, if there are several.
fn space_attempts(markets: &mut [MarketConfig]) {
    let links = || markets.iter().map(|market| market.links.len());
    if links().sum::<usize>() > 1 {
        let spacing = Arc::new(Spacing::default());
        for link in markets.iter_mut().flat_map(|market| &mut market.links) {
            link.spacing = Some(Arc::clone(&spacing));
        }
    }
}

fn check_ring(frames: usize, bytes: usize) -> Result<(), ConfigError> {
    if frames > MAX_RING_FRAMES {
        let expected = format!("expected at most {MAX_RING_FRAMES}");
        return Err(ConfigError::invalid("RING_FRAMES", frames, expected));
    }
    let least = frames.next_power_of_two() * MIN_BYTES_PER_FRAME;
    if bytes < least {
        let expected = format!(
            "expected at least {least}, which is {MIN_BYTES_PER_FRAME} for each of RING_FRAMES"
        );
        return Err(ConfigError::invalid("RING_BYTES", bytes, expected));
    }
    Ok(())
}

/// A time, or `None` for never. If a field's type reads `Option`, clap takes the setting for one
/// that may be absent; the alias prevents that.
type Alarm = Option<Duration>;

fn silence_alarm(text: &str) -> Result<Alarm, String> {
    match text {
        "off" => Ok(None),
        _ => match duration(text) {
            Ok(time) => Ok(Some(time)),
            Err(expected) => Err(format!("{expected}, or off")),
        },
    }
}

/// Parses how many servers keep a stream: NATS takes 1 to 5.
fn replicas(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=5).contains(number));
    number.ok_or_else(|| "expected a number of servers from 1 to 5".to_owned())
}

/// With less, a short loss of NATS would cost messages.
const MIN_HISTORY_BYTES: usize = 1 << 20;

const ACCOUNT_KEY: &str = "the key of your Polygon.io (Massive) account";

/// The slots for a million frames take a hundred megabytes even while they are empty.
const MAX_RING_FRAMES: usize = 1 << 20;
/// With fewer bytes, a frame of usual size would take many slots of the ring.
const MIN_BYTES_PER_FRAME: usize = 1 << 10;

/// Reads `T,Q.*,AM.SPY`: a bare type stands for all its symbols. The operator may know types that
/// this version does not, so the vendor decides about them.
fn parse_channels(
    variable: &str,
    list: &str,
    market: Market,
) -> Result<BTreeSet<Channel>, ConfigError> {
    let invalid = |why: String| ConfigError::invalid(variable, list, why);
    let parse = |item: &str| {
        let channel = match Kind::from_code(item.as_bytes()) {
            Some(kind) => Ok(Channel::Kind(kind)),
            None => Channel::parse(item, market),
        };
        match channel {
            Ok(Channel::All) => {
                Err(invalid("expected event types such as T,Q,AM: * stands for them".into()))
            }
            Ok(Channel::Prefix(prefix)) => {
                let kind = prefix.kind;
                Err(invalid(format!(
                    "expected types or symbols: Polygon serves no prefix, so list {kind} for {item}"
                )))
            }
            Ok(channel @ (Channel::Kind(_) | Channel::Symbol(..))) => Ok(channel),
            Err(error @ ChannelError::Symbol { .. }) => Err(invalid(error.to_string())),
            Err(ChannelError::Form { item, .. } | ChannelError::UnknownKind { item, .. }) => {
                Err(invalid(format!(
                    "expected types of up to nine capital letters and digits, or channels, such as \
                     T,Q.*,AM.SPY, and not {item:?}"
                )))
            }
        }
    };
    let channels: BTreeSet<_> = channel_items(list).map(parse).collect::<Result<_, _>>()?;
    if channels.is_empty() {
        return Err(invalid("expected event types such as T,Q,AM".into()));
    }
    Ok(channels)
}

/// Reads the channels of a list for several markets that are of this one. Types that this version
/// does not know are of all markets.
fn channels_among_several(list: &str, market: Market) -> Result<BTreeSet<Channel>, ConfigError> {
    let mut channels = parse_channels(CHANNELS, list, market)?;
    channels.retain(|channel| {
        let is_of =
            |market: &Market| channel.kind().is_some_and(|kind| market.kinds().contains(&kind));
        is_of(&market) || !Market::ALL.iter().any(is_of)
    });
    if channels.is_empty() {
        let own = market_variable(CHANNELS, market);
        let expected = format!("expected a type of {market} too, or {own}");
        return Err(ConfigError::invalid(CHANNELS, list, expected));
    }
    Ok(channels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn bare_types_stand_for_all_their_symbols() {
        let channels = parse_channels(CHANNELS, "T, Q.* ,AM.SPY", Market::Stocks).unwrap();
        let shown: Vec<String> = channels.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["T.*", "Q.*", "AM.SPY"]);
    }

    #[test]
    fn any_type_of_capitals_and_digits_may_be_listed() {
        // Another market's type, too: the vendor may serve it here some day.
        for list in ["NEW9", "T,NEW9.*", "NEW9.AAPL", "XT", "ZZZZZZZZZ"] {
            assert!(parse_channels(CHANNELS, list, Market::Stocks).is_ok(), "{list}");
        }
        let shown: Vec<String> = parse_channels(CHANNELS, "NEW9,T,NEW9.A.B,NEW8", Market::Stocks)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(shown, ["T.*", "NEW8.*", "NEW9.*", "NEW9.A.B"]);
    }

    #[test]
    fn a_list_for_several_markets_gives_each_its_own_types() {
        let shown = |market| {
            let channels = channels_among_several("T,AM,XT,NEW9", market)?;
            Ok::<_, ConfigError>(channels.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(shown(Market::Stocks).unwrap(), ["T.*", "AM.*", "NEW9.*"]);
        assert_eq!(shown(Market::Crypto).unwrap(), ["AM.*", "XT.*", "NEW9.*"]);
        let error = channels_among_several("T,XT", Market::Forex).unwrap_err().to_string();
        assert_eq!(
            error,
            r#"UPSTREAM_CHANNELS: invalid value "T,XT": expected a type of forex too, or UPSTREAM_CHANNELS_FOREX"#
        );
    }

    #[test]
    fn channels_that_cannot_be_asked_upstream_are_refused() {
        let items = ["", " , ", "*", "T,*", "T.", "zz", "t", "Am", "new9", "T,zz.AAPL", "9NEW"];
        for list in
            items.into_iter().chain(["NEW-9", "NÉW", "ZZZZZZZZZZ", "NEW9.A*", "T.*A", ".A", "T;Q"])
        {
            let error = parse_channels(CHANNELS, list, Market::Stocks).unwrap_err().to_string();
            assert!(error.starts_with("UPSTREAM_CHANNELS: invalid value "), "{error}");
        }
        let error = parse_channels(CHANNELS, "T,Q.AA*", Market::Stocks).unwrap_err().to_string();
        let expected = "expected types or symbols: Polygon serves no prefix, so list Q for Q.AA*";
        assert!(error.ends_with(expected), "{error}");
    }
}
