//! The filtered proxy's settings: parses flags and variables, and checks their values.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Parser};
use proxy_common::{
    access::{Keys, LimitsKept},
    config::{
        ConfigError,
        pem::certificates,
        secrets::secret,
        values::{bytes, duration, market_url, path, port, switch, websocket_url},
    },
    link::LinkConfig,
    nats::{NatsConfig, Servers, servers},
    program::{
        args::{AccountArgs, ServerArgs},
        logging::LogArgs,
        nats_args::NatsArgs,
        program_config::{ProgramArgs, ProgramConfig},
        subcommand::Subcommand,
        wiring::ServerConfig,
    },
    protocol::{Market, NoticePolicy, TierName},
    transport::ListenConfig,
    version::FULL,
};
use secrecy::SecretString;

/// Gives each client exactly the events it subscribed to, out of one firehose.
///
/// Every setting is a flag, a variable, or a line of a .env file in the working directory or above
/// it.
#[derive(Debug, Parser)]
#[command(version = FULL, about, long_about = None, disable_help_subcommand = true)]
pub struct Args {
    /// URL of the firehose, or servers of NATS separated by commas: nats://a.example,b.example
    #[arg(long, env = "FIREHOSE_URL", hide_env_values = true, default_value = "ws://localhost:8767", value_parser = firehose_url)]
    firehose_url: Servers,
    /// Certificates (PEM) of authorities to trust at FIREHOSE_URL, beside the public ones [default:
    /// none]
    #[arg(long, env = "FIREHOSE_CA", value_parser = path)]
    firehose_ca: Option<PathBuf>,
    /// Key presented to the firehose [default: the account's key]
    #[arg(long, env = "FIREHOSE_API_KEY", hide_env_values = true)]
    firehose_api_key: Option<SecretString>,
    /// File holding that key
    #[arg(long, env = "FIREHOSE_API_KEY_FILE", value_parser = path)]
    firehose_api_key_file: Option<PathBuf>,
    /// Keys that clients may present, separated by commas [default: the account's key]
    #[arg(long, env = "CLIENT_API_KEYS", hide_env_values = true)]
    client_api_keys: Option<SecretString>,
    /// File holding those keys, separated by commas or lines, or lines of a label and the digest
    /// that hash-key prints
    #[arg(long, env = "CLIENT_API_KEYS_FILE", value_parser = path)]
    client_api_keys_file: Option<PathBuf>,
    #[command(flatten)]
    account: AccountArgs,
    /// Host name or address to listen on; a name stands for all its addresses
    #[arg(long, env = "FILTERED_PROXY_HOST", default_value = "localhost")]
    host: String,
    /// Port to listen on; 0 takes any free one
    #[arg(long, env = "FILTERED_PROXY_PORT", default_value = "8765", value_parser = port)]
    port: u16,
    /// How long what a named session has received is remembered after it has ended
    #[arg(long, env = "SESSION_TTL", default_value = "10m", value_parser = duration)]
    session_ttl: Duration,
    /// Bytes of messages kept for clients that come back, for each market; 0 keeps none
    #[arg(long, env = "HISTORY_BYTES", default_value = "67108864", value_parser = bytes)]
    history_bytes: usize,
    /// Whether the last event of each type and symbol is kept, for clients that ask for a snapshot:
    /// on or off
    #[arg(long, env = "LAST_VALUES", default_value = "off", value_parser = switch, action = ArgAction::Set)]
    last_values: bool,
    #[command(flatten)]
    nats: NatsArgs,
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

/// Parses the URL of a firehose, or the servers of the NATS in which one stores the feed.
fn firehose_url(text: &str) -> Result<Servers, String> {
    match text.split_once("://") {
        Some(("nats" | "tls", _)) => servers(text),
        _ => Ok(vec![websocket_url(text)?]),
    }
}

/// Time between attempts after the firehose refused the key. The firehose is our own, so frequent
/// attempts do no harm, and it may have got the right keys meanwhile.
const REFUSED_INTERVAL: Duration = Duration::from_secs(30);

/// A checked configuration.
pub struct Config {
    /// The link to the firehose of each market.
    pub links: Vec<(Market, LinkConfig)>,
    /// Variables that are set and have no effect.
    pub unused: Vec<&'static str>,
    /// The NATS that the feed comes from, if it comes from one.
    pub nats: Option<NatsConfig>,
    /// How long a session's name is remembered after it has ended.
    pub session_ttl: Duration,
    /// Most bytes of messages kept for clients that come back.
    pub history_bytes: usize,
    /// Whether the last event of each kind and symbol is kept.
    pub last_values: bool,
    /// The settings that both tiers share.
    pub server: ServerConfig,
}

impl ProgramConfig for Config {
    type Args = Args;

    const TIER: TierName = TierName::Filtered;

    fn links(&self) -> impl Iterator<Item = &LinkConfig> {
        self.links.iter().map(|(_, link)| link)
    }

    fn server(&self) -> &ServerConfig {
        &self.server
    }
}

impl TryFrom<&Args> for Config {
    type Error = ConfigError;

    fn try_from(args: &Args) -> Result<Self, ConfigError> {
        let account = args.account.key()?;
        let expected = "the key of your Polygon.io (Massive) account";
        let first = &args.firehose_url[0];
        let over_nats = matches!(first.scheme(), "nats" | "tls");
        let (value, file) = (&args.firehose_api_key, &args.firehose_api_key_file);
        let mut unused = Vec::new();
        let own = match over_nats {
            // Manifests that add to others cannot remove it.
            true => {
                let set = [
                    ("FIREHOSE_API_KEY", value.is_some()),
                    ("FIREHOSE_API_KEY_FILE", file.is_some()),
                ];
                unused.extend(set.iter().filter(|(_, set)| *set).map(|(name, _)| *name));
                None
            }
            false => secret("FIREHOSE_API_KEY", value.as_ref(), file.as_deref())?,
        };
        if args.firehose_ca.is_some() && over_nats {
            let why = "is not for NATS: name the authorities in NATS_CA";
            return Err(ConfigError::other(format!("FIREHOSE_CA {why}")));
        }
        let nats = match over_nats {
            true => Some(args.nats.check("FIREHOSE_URL", &args.firehose_url)?),
            false => args.nats.expect_none("FIREHOSE_URL leads to none")?,
        };
        let key = match own.or_else(|| account.clone()) {
            _ if nats.is_some() => SecretString::default(),
            Some(key) => key,
            None => {
                let expected =
                    format!("{expected}, or FIREHOSE_API_KEY with a key of the firehose");
                return Err(ConfigError::missing("POLYGON_API_KEY", expected));
            }
        };
        let clients = Keys::read(
            "CLIENT_API_KEYS",
            args.client_api_keys.as_ref(),
            args.client_api_keys_file.as_deref(),
            LimitsKept::MarketsAndTypes,
        )?;
        let keys = match (clients, account) {
            (Some(keys), _) => keys,
            (None, Some(key)) => Keys::account("CLIENT_API_KEYS", &key),
            (None, None) => {
                let expected =
                    format!("{expected}, or CLIENT_API_KEYS with the keys of the clients");
                return Err(ConfigError::missing("POLYGON_API_KEY", expected));
            }
        };
        let notices = match args.server.client_notices {
            true => NoticePolicy::Everyone,
            false => NoticePolicy::Off,
        };
        let listen = ListenConfig::new(
            ("FILTERED_PROXY_HOST", &args.host),
            ("FILTERED_PROXY_PORT", args.port),
        );
        let server = args.server.check(listen, keys, notices)?;
        let extra_roots = match &args.firehose_ca {
            Some(path) => certificates("FIREHOSE_CA", path)?,
            None => Vec::new(),
        };
        let several = server.markets.len() > 1;
        let link = |market: &Market| {
            let firehose = match over_nats {
                true => first.clone(),
                // The market in the path lets a firehose of another market refuse the connection.
                false => market_url("FIREHOSE_URL", first, *market, several)?,
            };
            let mut link = LinkConfig::new("firehose", firehose, key.clone());
            link.extra_roots = extra_roots.clone();
            link.refused_interval = REFUSED_INTERVAL;
            link.kept_bytes = args.history_bytes;
            link.history_bytes = (args.history_bytes > 0).then_some(args.history_bytes as u64);
            Ok((*market, link))
        };
        let links = server.markets.iter().map(link).collect::<Result<_, ConfigError>>()?;
        Ok(Self {
            links,
            unused,
            nats,
            session_ttl: args.session_ttl,
            history_bytes: args.history_bytes,
            last_values: args.last_values,
            server,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
