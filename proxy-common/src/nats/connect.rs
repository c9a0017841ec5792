//! Connects to NATS.

use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectOptions, Event, ServerAddr};
use secrecy::ExposeSecret;

use super::config::{Credentials, NatsConfig};

/// The oldest server that is supported: major, minor and patch version.
pub const OLDEST_SERVER: (i64, i64, i64) = (2, 10, 0);

/// How long an attempt to connect may take, and any request.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often a silent server is asked whether it is there. Two without an answer end the
/// connection.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// The most messages that wait in a subscription. A consumer with flow control is sent at most
/// 32 MiB ahead, and no message is shorter than 128 bytes with its headers. Memory is taken only as
/// messages wait.
const SUBSCRIPTION: usize = 256 << 10;
/// The longest wait between attempts to come back.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Whether the server that we are connected to is older than [`OLDEST_SERVER`].
pub fn is_too_old(client: &Client) -> bool {
    let (major, minor, patch) = OLDEST_SERVER;
    !client.is_server_compatible(major, minor, patch)
}

/// Connects, with `name` shown to the server's operator. The connection comes back by itself after
/// each loss; `on_event` learns of both.
///
/// # Errors
///
/// No server answers within 2 s, or it refuses us.
pub async fn connect(
    config: &NatsConfig,
    name: &str,
    on_event: impl Fn(Event) + Send + Sync + 'static,
) -> Result<Client, ConnectError> {
    let on_event = std::sync::Arc::new(on_event);
    let mut options = ConnectOptions::new()
        .name(name)
        .connection_timeout(TIMEOUT)
        .request_timeout(Some(TIMEOUT))
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(SUBSCRIPTION)
        .reconnect_delay_callback(|attempts| {
            let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
            let wait = Duration::from_millis(50).saturating_mul(attempts);
            wait.min(LONGEST_WAIT).mul_f64(0.5 + fastrand::f64() / 2.0)
        })
        .event_callback(move |event| {
            on_event(event);
            std::future::ready(())
        });
    if let Some(ca) = &config.ca {
        options = options.add_root_certificates(ca.clone());
    }
    options = match &config.credentials {
        Some(Credentials::File(content)) => {
            options.credentials(content.expose_secret()).map_err(|error| {
                // The error must not show the file.
                ConnectError::with_source(
                    async_nats::ConnectErrorKind::Authentication,
                    std::io::Error::from(error.kind()),
                )
            })?
        }
        Some(Credentials::User(user, password)) => {
            options.user_and_password(user.clone(), password.expose_secret().to_owned())
        }
        None => options,
    };
    let servers = config.servers.iter().cloned().map(ServerAddr::from_url);
    let servers = servers.collect::<Result<Vec<_>, _>>().map_err(|error| {
        ConnectError::with_source(async_nats::ConnectErrorKind::ServerParse, error)
    })?;
    options.connect(servers).await
}
