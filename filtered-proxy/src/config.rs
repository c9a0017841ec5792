//! The filtered proxy's settings: what can be typed, and what it means.

use std::path::PathBuf;

use clap::Parser;
use proxy_common::{
    access::keys::Keys,
    config::{
        AccountArgs, ConfigError, ListenArgs, LogArgs, Tool, authorities, check_market, path, port,
        secret, secret_text, websocket_url,
    },
    program::runtime::ProgramArgs,
    protocol::notice::Notices,
    transport::certificate::Certificate,
};
use rustls::pki_types::CertificateDer;
use secrecy::SecretString;
use url::Url;

/// Gives each client exactly the events it subscribed to, out of one firehose.
///
/// Every setting is a flag, a variable, or a line of a .env file in the working directory or above it.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Args {
    /// Where the firehose is
    #[arg(long, env = "FIREHOSE_URL", hide_env_values = true, default_value = "ws://localhost:8767", value_parser = websocket_url)]
    firehose_url: Url,
    /// Certificates (PEM) of authorities to trust at FIREHOSE_URL, beside the public ones [default: none]
    #[arg(long, env = "FIREHOSE_CA", value_parser = path)]
    firehose_ca: Option<PathBuf>,
    /// Key presented to the firehose [default: the account's key]
    #[arg(long, env = "FIREHOSE_API_KEY", hide_env_values = true, value_parser = secret_text)]
    firehose_api_key: Option<SecretString>,
    /// File holding that key
    #[arg(long, env = "FIREHOSE_API_KEY_FILE", value_parser = path)]
    firehose_api_key_file: Option<PathBuf>,
    /// Keys that clients may present, separated by commas [default: the account's key]
    #[arg(long, env = "CLIENT_API_KEYS", hide_env_values = true, value_parser = secret_text)]
    client_api_keys: Option<SecretString>,
    /// File holding those keys, separated by commas or lines, or lines of a label and the digest that hash-key prints
    #[arg(long, env = "CLIENT_API_KEYS_FILE", value_parser = path)]
    client_api_keys_file: Option<PathBuf>,
    #[command(flatten)]
    account: AccountArgs,
    /// Host name or address to listen on, at every address that it stands for
    #[arg(long, env = "FILTERED_PROXY_HOST", default_value = "localhost")]
    host: String,
    /// Port to listen on; 0 takes any free one
    #[arg(long, env = "FILTERED_PROXY_PORT", default_value = "8765", value_parser = port)]
    port: u16,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    tool: Option<Tool>,
}

impl ProgramArgs for Args {
    fn log(&self) -> &LogArgs {
        &self.log
    }

    fn tool(&self) -> Option<&Tool> {
        self.tool.as_ref()
    }
}

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// Where the firehose is.
    pub firehose: Url,
    /// The key presented there.
    pub key: SecretString,
    /// Certificate authorities trusted there, beside the public ones.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// Keys that clients may present.
    pub keys: Keys,
    /// Host name to listen on.
    pub host: String,
    /// Port to listen on.
    pub port: u16,
    /// Which sessions get notices.
    pub notices: Notices,
    /// What the port shows, if it speaks TLS.
    pub certificate: Option<Certificate>,
    /// Settings of the port that both tiers share.
    pub listen: ListenArgs,
}

impl TryFrom<&Args> for Config {
    type Error = ConfigError;

    fn try_from(args: &Args) -> Result<Self, ConfigError> {
        args.listen.check()?;
        let account = args.account.key()?;
        let expected = "the key of your Polygon.io (Massive) account";
        let own = secret(
            "FIREHOSE_API_KEY",
            args.firehose_api_key.as_ref(),
            args.firehose_api_key_file.as_deref(),
        )?;
        let key = match own.or_else(|| account.clone()) {
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
        args.listen.admission.check()?;
        let market = args.listen.market;
        let mut firehose = check_market("FIREHOSE_URL", &args.firehose_url, market)?;
        if firehose.path() == "/" {
            // A firehose of another market then refuses the connection.
            firehose.set_path(market.name());
        }
        Ok(Self {
            firehose,
            key,
            extra_roots: authorities("FIREHOSE_CA", args.firehose_ca.as_deref())?,
            keys,
            host: args.host.clone(),
            port: args.port,
            notices: if args.listen.client_notices { Notices::ToAll } else { Notices::Off },
            certificate: args.listen.certificate()?,
            listen: args.listen.clone(),
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
