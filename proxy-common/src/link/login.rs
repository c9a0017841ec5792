//! From nothing to a logged-in connection: TCP, TLS, upgrade, greeting, key, verdict.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer};
use secrecy::ExposeSecret;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config,
    tungstenite::{Error, Message, protocol::WebSocketConfig},
};

use super::{LinkConfig, LinkError};
use crate::{
    frame::Separator,
    protocol::{UpstreamStatus, command_text},
};

/// A connection to an upstream.
pub(super) type WebSocket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The longest frame taken. The vendor names no limit; a consumer that lags gets larger ones.
const MAX_FRAME_BYTES: usize = 64 << 20;

/// How long one address of the host may take to answer.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Opens a connection.
pub(super) async fn connect(config: &LinkConfig) -> Result<WebSocket, LinkError> {
    let unreachable = |error: &dyn std::fmt::Display| LinkError::Unreachable(error.to_string());
    let url = &config.url;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(443);
    let open = async {
        let tcp = connect_tcp(host, port).await.map_err(|error| unreachable(&error))?;
        tcp.set_nodelay(true).map_err(|error| unreachable(&error))?;
        let limits = WebSocketConfig::default()
            .max_frame_size(Some(MAX_FRAME_BYTES))
            .max_message_size(Some(MAX_FRAME_BYTES));
        let connector = match url.scheme() {
            "wss" => Connector::Rustls(tls(&config.extra_roots)?),
            _ => Connector::Plain,
        };
        let upgrade =
            client_async_tls_with_config(url.as_str(), tcp, Some(limits), Some(connector));
        match upgrade.await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => {
                let status = response.status();
                Err(LinkError::Unreachable(format!("HTTP {status} instead of an upgrade")))
            }
            Err(error) => Err(unreachable(&error)),
        }
    };
    within(config.login_timeout, "connection", open).await
}

/// Tries each address of a host for a while, so that one that swallows packets does not hide the others.
async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in lookup_host((host, port)).await? {
        match timeout(ADDRESS_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => failure = error,
            Err(_) => {
                let what = format!("no answer from {address}");
                failure = io::Error::new(io::ErrorKind::TimedOut, what);
            }
        }
    }
    Err(failure)
}

fn tls(extra: &[CertificateDer<'static>]) -> Result<Arc<ClientConfig>, LinkError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    roots.add_parsable_certificates(extra.iter().cloned());
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| LinkError::Unreachable(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Waits for the greeting, presents the key and waits for the verdict.
pub(super) async fn authenticate(
    config: &LinkConfig,
    mut socket: WebSocket,
) -> Result<WebSocket, LinkError> {
    let limit = config.login_timeout;
    within(limit, "greeting", expect(&mut socket, "connected")).await?;
    let command = command_text("auth", config.key.expose_secret());
    let sent = socket.send(Message::text(command)).await;
    sent.map_err(|error| LinkError::Closed(error.to_string()))?;
    within(limit, "verdict on the key", expect(&mut socket, "auth_success")).await?;
    Ok(socket)
}

/// Reads until this status comes, or one that ends the login. Other frames and statuses are passed over.
async fn expect(socket: &mut WebSocket, expected: &str) -> Result<(), LinkError> {
    let separator = Separator::default();
    let mut found = false;
    loop {
        let message = match socket.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(LinkError::Closed(error.to_string())),
            None => return Err(LinkError::Closed("end of stream".to_owned())),
        };
        let text = match message {
            Message::Text(text) => Bytes::from(text),
            Message::Close(frame) => return Err(super::connection::closed(frame)),
            Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {
                continue;
            }
        };
        let separated = separator.separate(&text).map_err(|_| {
            LinkError::Protocol(format!("{} bytes that are no JSON array during login", text.len()))
        })?;
        // The whole array is read: an eviction may stand behind the success.
        for frame_status in separated.statuses {
            found |= frame_status.status.status == expected;
            if let Some(error) = login_error(frame_status.status) {
                return Err(error);
            }
        }
        if found {
            return Ok(());
        }
    }
}

/// The status as the end of a connection, if it is one.
pub(super) fn login_error(status: UpstreamStatus) -> Option<LinkError> {
    match status.status.as_str() {
        "auth_failed" => Some(LinkError::AuthFailed(status.message)),
        "max_connections" => Some(LinkError::MaxConnections(status.message)),
        "auth_timeout" => Some(LinkError::Protocol(format!("auth_timeout: {}", status.message))),
        _ => None,
    }
}

async fn within<T>(
    limit: Duration,
    step: &'static str,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    timeout(limit, work).await.unwrap_or(Err(LinkError::Timeout(step)))
}
