//! Settings that have no effect: misspelled names, and lines of a `.env` that repeat a name.

use std::{collections::HashSet, env, fmt};

use strsim::{normalized_damerau_levenshtein, sorensen_dice};
use tracing::warn;

use super::dotenv::Dotenv;
use crate::{config::values::market_variable, protocol::Market};

/// The settings of all programs that share a `.env`: both tiers and the simulated market. A test
/// compares them with the programs' `--help`.
const SETTINGS: &[&str] = &[
    "ADMIN_HOST",
    "ADMIN_PORT",
    "ALLOWED_ORIGINS",
    "AUTH_TIMEOUT",
    "CLIENT_API_KEYS",
    "CLIENT_API_KEYS_FILE",
    "CLIENT_MAX_LAG",
    "CLIENT_NOTICES",
    "CLIENT_QUEUE_BYTES",
    "COMMAND_RATE",
    "DRAIN_SPREAD",
    "DRAIN_TIMEOUT",
    "FILTERED_PROXY_HOST",
    "FILTERED_PROXY_PORT",
    "FIREHOSE_API_KEY",
    "FIREHOSE_API_KEYS",
    "FIREHOSE_API_KEYS_FILE",
    "FIREHOSE_API_KEY_FILE",
    "FIREHOSE_CA",
    "FIREHOSE_HOST",
    "FIREHOSE_PORT",
    "FIREHOSE_URL",
    "HANDSHAKE_RATE",
    "HISTORY_BYTES",
    "LAST_VALUES",
    "LEASE",
    "LEASE_KEEP",
    "LEASE_TAKEOVER",
    "LOG_FORMAT",
    "LOG_LEVEL",
    "MARKET",
    "MARKETS",
    "MASSIVE_API_KEY",
    "MASSIVE_API_KEY_FILE",
    "MAX_CONNECTIONS",
    "MAX_CONNECTIONS_PER_ADDRESS",
    "MAX_SUBSCRIPTIONS",
    "NATS_CA",
    "NATS_CREDS",
    "NATS_MAX_AGE",
    "NATS_MAX_BYTES",
    "NATS_REPLICAS",
    "NATS_STORAGE",
    "NATS_STREAM",
    "NATS_URL",
    "PING_INTERVAL",
    "POLYGON_API_KEY",
    "POLYGON_API_KEY_FILE",
    "POLYGON_CA",
    "POLYGON_WS_URL",
    "PROXY_PROTOCOL",
    "RECORD_DIR",
    "RECORD_KEEP",
    "RING_BYTES",
    "RING_FRAMES",
    "SESSION_TTL",
    "SILENCE_ALARM",
    "SIM_CONTRACTS",
    "SIM_CONTROL_PORT",
    "SIM_FRAME_EVENTS",
    "SIM_FROM",
    "SIM_HOST",
    "SIM_KEY",
    "SIM_LOOP",
    "SIM_MARKET",
    "SIM_MAX_CONNECTIONS",
    "SIM_PLAN",
    "SIM_PORT",
    "SIM_PROFILE",
    "SIM_RATE",
    "SIM_REFUSE",
    "SIM_REPLAY",
    "SIM_SEED",
    "SIM_SPEED",
    "SIM_SYMBOLS",
    "SIM_TICK",
    "SIM_UNTIL",
    "TLS_CERT",
    "TLS_KEY",
    "TOTAL_QUEUE_BYTES",
    "TRUSTED_PROXIES",
    "UPSTREAM_CHANNELS",
    "UPSTREAM_CONNECTIONS_OPTIONS",
    "UPSTREAM_CONTRACTS",
    "UPSTREAM_LINGER",
];

/// The settings that a market may have for itself alone, such as `POLYGON_WS_URL_OPTIONS`.
const SETTINGS_OF_ONE_MARKET: [&str; 3] =
    ["POLYGON_API_KEY", "POLYGON_WS_URL", "UPSTREAM_CHANNELS"];

/// The beginnings of names that are this project's own. In the environment a name that begins so is
/// reported, however it goes on. `LOG_` and `MAX_`, for example, begin names of many programs.
const OWN_PREFIXES: [&str; 10] = [
    "CLIENT_",
    "DRAIN_",
    "FILTERED_",
    "FIREHOSE_",
    "HANDSHAKE_",
    "MASSIVE_",
    "POLYGON_",
    "RING_",
    "SILENCE_",
    "UPSTREAM_",
];

/// From this likeness to a setting on, a name counts as misspelled. Two wrong letters of eight are
/// just as like; what systems and other programs set is less so.
const LIKENESS: f64 = 0.75;

/// A setting that has no effect.
#[derive(Debug)]
pub(super) struct Ignored {
    setting: String,
    /// The path of the `.env`, or `the environment`.
    place: String,
    why: Why,
}

#[derive(Debug)]
enum Why {
    /// No program of the project reads it.
    Unknown { nearest: &'static str },
    /// An earlier line has the same name.
    Repeated,
}

/// Finds the ignored settings of the environment. To be asked before the `.env` is loaded into it.
pub(super) fn in_environment() -> Vec<Ignored> {
    let variables = env::vars_os().filter_map(|(name, value)| {
        let setting = name.into_string().ok()?;
        if is_service_link(&setting, &value.to_string_lossy()) {
            return None;
        }
        let nearest = misspelled(&setting)?;
        let place = "the environment".to_owned();
        Some(Ignored { setting, place, why: Why::Unknown { nearest } })
    });
    variables.collect()
}

/// Finds the ignored lines of a `.env`.
pub(super) fn in_dotenv(dotenv: &Dotenv) -> Vec<Ignored> {
    let mut seen = HashSet::new();
    let lines = dotenv.names.iter().filter_map(|name| {
        let why = match misspelled(name).or_else(|| begins_like_a_setting(name)) {
            Some(nearest) => Why::Unknown { nearest },
            None if is_known(name) && !seen.insert(name) => Why::Repeated,
            None => return None,
        };
        let place = dotenv.path.display().to_string();
        Some(Ignored { setting: name.clone(), place, why })
    });
    lines.collect()
}

impl Ignored {
    /// Warns of it.
    pub(super) fn log(&self) {
        let Self { setting, place, why } = self;
        match why {
            Why::Unknown { nearest } => warn!(setting, nearest, place, "unknown setting ignored"),
            Why::Repeated => warn!(setting, place, "setting given twice: the first line counts"),
        }
    }
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, place, why } = self;
        match why {
            Why::Unknown { nearest } => {
                write!(f, "{setting:?} in {place} is unknown: did you mean {nearest}?")
            }
            Why::Repeated => {
                write!(f, "{setting} is given twice in {place}: the first line counts")
            }
        }
    }
}

/// The setting that was most likely meant by a name which is none.
fn misspelled(name: &str) -> Option<&'static str> {
    if is_known(name) {
        return None;
    }
    let upper = name.to_ascii_uppercase();
    let (nearest, likeness) = nearest(&upper);
    let own = OWN_PREFIXES.iter().any(|prefix| upper.starts_with(prefix));
    (own || likeness >= LIKENESS).then_some(nearest)
}

/// The nearest setting of a name whose first word stands in some setting, such as `MAX_CLIENTS`.
/// Other names in a `.env` belong to other programs.
fn begins_like_a_setting(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    let first = upper.split('_').next()?;
    let begins = SETTINGS.iter().any(|setting| setting.split('_').any(|word| word == first));
    (begins && !is_known(name)).then(|| nearest(&upper).0)
}

fn is_known(name: &str) -> bool {
    SETTINGS.contains(&name) || is_of_one_market(name)
}

fn is_of_one_market(name: &str) -> bool {
    let setting = name.strip_suffix("_FILE").unwrap_or(name);
    Market::ALL.iter().any(|&market| {
        let mut settings = SETTINGS_OF_ONE_MARKET.iter();
        settings.any(|of_all| market_variable(of_all, market) == setting)
    }) && (setting == name || setting.starts_with("POLYGON_API_KEY_"))
}

/// The setting that a name is most like, and how like it is: 1 for equal.
fn nearest(name: &str) -> (&'static str, f64) {
    // One measure forgives words that are missing, the other wrong letters.
    let measures =
        |setting| (sorensen_dice(name, setting), normalized_damerau_levenshtein(name, setting));
    let rated = SETTINGS.iter().map(|&setting| (setting, measures(setting)));
    let (setting, (words, letters)) = rated
        .max_by(|(_, (a, b)), (_, (c, d))| (a + b).total_cmp(&(c + d)))
        .expect("there are settings");
    (setting, words.max(letters))
}

/// Whether Kubernetes or Docker sets such a variable for a service with the name of one of our
/// programs.
fn is_service_link(name: &str, value: &str) -> bool {
    let ports = name
        .split_once("_PORT_")
        .is_some_and(|(_, rest)| rest.starts_with(|first: char| first.is_ascii_digit()));
    ports
        || name.contains("_SERVICE_")
        || value.starts_with("tcp://")
        || value.starts_with("udp://")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_name_leads_to_its_setting() {
        for (name, setting) in [
            ("FILTERED_PORT", "FILTERED_PROXY_PORT"),
            ("FILTERED_PROXY_PROT", "FILTERED_PROXY_PORT"),
            ("filtered_proxy_port", "FILTERED_PROXY_PORT"),
            ("FILTERED-PROXY-PORT", "FILTERED_PROXY_PORT"),
            ("FIREHOSE_PROXY_PORT", "FIREHOSE_PORT"),
            ("FIREHOSE_KEY", "FIREHOSE_API_KEY"),
            ("FIREHOSE_KEYS", "FIREHOSE_API_KEYS"),
            ("FIRHOSE_URL", "FIREHOSE_URL"),
            ("POLYGON_KEY", "POLYGON_API_KEY"),
            ("POLYGON_APIKEY", "POLYGON_API_KEY"),
            ("POLYGON_URL", "POLYGON_WS_URL"),
            ("POLGYON_API_KEY", "POLYGON_API_KEY"),
            ("MASSIVE_KEY", "MASSIVE_API_KEY"),
            ("CLIENT_API_KEY", "CLIENT_API_KEYS"),
            ("CLIENT_KEYS", "CLIENT_API_KEYS"),
            ("UPSTREAM_CHANNEL", "UPSTREAM_CHANNELS"),
            ("LOGLEVEL", "LOG_LEVEL"),
            ("LOG_LEVLE", "LOG_LEVEL"),
            ("MAKRET", "MARKET"),
            ("MAX_CONNECTION", "MAX_CONNECTIONS"),
            ("ALLOWED_ORIGIN", "ALLOWED_ORIGINS"),
            ("TRUSTED_PROXY", "TRUSTED_PROXIES"),
            ("TLS_CERTS", "TLS_CERT"),
            ("POLYGON_WS_URL_OPTION", "POLYGON_WS_URL"),
            ("MARKTES", "MARKETS"),
        ] {
            assert_eq!(misspelled(name), Some(setting), "{name}");
        }
        for setting in SETTINGS.iter().copied().chain([
            "POLYGON_WS_URL_OPTIONS",
            "UPSTREAM_CHANNELS_STOCKS",
            "POLYGON_API_KEY_CRYPTO",
            "POLYGON_API_KEY_CRYPTO_FILE",
        ]) {
            assert_eq!(misspelled(setting), None, "{setting}");
            assert_eq!(begins_like_a_setting(setting), None, "{setting}");
        }
    }

    #[test]
    fn names_of_systems_and_other_programs_are_no_settings() {
        for name in "PATH HOME HOST HOSTNAME USER LOGNAME SHELL TERM PWD OLDPWD LANG LC_ALL TZ TMPDIR EDITOR PAGER \
            MAIL PORT URL KEY API_KEY TOKEN DEBUG LEVEL RUST_LOG RUST_BACKTRACE CARGO CARGO_HOME CARGO_TARGET_DIR \
            CARGO_PKG_NAME CARGO_PKG_VERSION CARGO_MANIFEST_DIR CARGO_TERM_COLOR RUSTFLAGS RUSTUP_HOME RUSTC_WRAPPER \
            CI GITHUB_TOKEN GITHUB_API_URL GITHUB_ACTIONS RUNNER_OS HTTP_PROXY https_proxy NO_PROXY ALL_PROXY \
            SSL_CERT_FILE SSL_CERT_DIR SSH_CLIENT SSH_AUTH_SOCK SSH_CONNECTION XDG_RUNTIME_DIR LD_LIBRARY_PATH \
            INVOCATION_ID JOURNAL_STREAM NOTIFY_SOCKET LISTEN_FDS LISTEN_PID SYSTEMD_EXEC_PID KUBERNETES_PORT \
            KUBERNETES_SERVICE_HOST NODE_ENV PYTHONPATH VIRTUAL_ENV CONDA_PREFIX PS1 LS_COLORS LINES COLUMNS SHLVL _ \
            AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY DATABASE_URL REDIS_URL REDIS_HOST ALPACA_API_KEY OPENAI_API_KEY \
            TIINGO_API_KEY IEX_API_KEY FINNHUB_API_KEY LOG_DIR MAX_WORKERS TLS_VERSION AUTH_TOKEN TEST_SEED TEST_FAULTS \
            SESSION_ID SESSION_KEY SESSION_MANAGER DESKTOP_SESSION XDG_SESSION_TYPE"
            .split_whitespace()
        {
            assert_eq!(misspelled(name), None, "{name}");
        }
        for (name, value) in [
            ("FIREHOSE_SERVICE_HOST", "10.0.0.1"),
            ("FIREHOSE_SERVICE_PORT_WS", "8767"),
            ("FIREHOSE_PROXY_PORT", "tcp://10.0.0.1:8767"),
            ("FIREHOSE_PORT_8767_TCP_ADDR", "10.0.0.1"),
        ] {
            assert!(is_service_link(name, value), "{name}");
        }
        assert!(!is_service_link("FIREHOSE_PROXY_PORT", "8767"));
    }

    #[test]
    fn a_dotenv_may_hold_settings_of_other_programs() {
        for (name, setting) in
            [("MAX_CLIENTS", Some("MAX_CONNECTIONS")), ("LOG_LVL", Some("LOG_LEVEL"))]
        {
            assert_eq!(begins_like_a_setting(name), setting, "{name}");
        }
        assert!(begins_like_a_setting("API_KEY").is_some());
        for name in ["DATABASE_URL", "REDIS_HOST", "AWS_SECRET_ACCESS_KEY", "ALPACA_API_KEY"] {
            assert_eq!(begins_like_a_setting(name), None, "{name}");
        }
    }
}
