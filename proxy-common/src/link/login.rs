//! Opens a connection and logs in: TCP, TLS, upgrade, greeting, key, answer.

use std::{io, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};
use secrecy::ExposeSecret;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    MaybeTlsStream,
    tungstenite::handshake::{client::generate_key, derive_accept_key},
};
use url::{Position, Url};

use super::{
    config::LinkConfig,
    error::LinkError,
    upstream_socket::{Stream, UpstreamMessage, UpstreamSocket},
};
use crate::protocol::{UpstreamStatus, command_text, demux};

/// How long one address of the host may take to answer.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Opens a WebSocket to the upstream: TCP, TLS if the URL's scheme is `wss`, and the upgrade.
///
/// # Errors
///
/// The upstream cannot be reached in time, or does not upgrade.
pub async fn connect(config: &LinkConfig) -> Result<UpstreamSocket, LinkError> {
    let open = async {
        let url = &config.url;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let port = url.port_or_known_default().unwrap_or(443);
        let tcp = connect_tcp(host, port).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let stream = match url.scheme() {
            "wss" => {
                let name = ServerName::try_from(host.to_owned()).map_err(unreachable)?;
                let connector = TlsConnector::from(tls(&config.extra_roots)?);
                let tls = connector.connect(name, tcp).await.map_err(unreachable)?;
                MaybeTlsStream::Rustls(tls)
            }
            _ => MaybeTlsStream::Plain(tcp),
        };
        upgrade(stream, url).await
    };
    within(config.login_timeout, "connection", open).await
}

/// Requests the upgrade to a WebSocket.
async fn upgrade(stream: Stream, url: &Url) -> Result<UpstreamSocket, LinkError> {
    let key = generate_key();
    let request = Request::get(&url[Position::BeforePath..Position::AfterQuery])
        .header(header::HOST, &url[Position::BeforeHost..Position::AfterPort])
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .body(Empty::<Bytes>::new())
        .map_err(unreachable)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(unreachable)?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let why = format!("HTTP {status} instead of an upgrade");
            return Err(LinkError::Unreachable(why));
        }
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if accept.is_none_or(|accept| *accept != derive_accept_key(key.as_bytes())) {
            let why = "an upgrade to something other than a WebSocket".to_owned();
            return Err(LinkError::Unreachable(why));
        }
        hyper::upgrade::on(response).await.map_err(unreachable)
    };
    let mut asking = pin!(asking);
    // The connection moves the bytes and ends with the upgrade. If anything else ends it, `asking`
    // yields the error.
    let upgraded = tokio::select! {
        upgraded = &mut asking => upgraded?,
        _ = connection.with_upgrades() => asking.await?,
    };
    let parts = upgraded
        .downcast::<TokioIo<Stream>>()
        .map_err(|_| LinkError::Unreachable("HTTP did not hand over the connection".to_owned()))?;
    Ok(UpstreamSocket::new(parts.io.into_inner(), &parts.read_buf))
}

fn unreachable(error: impl std::fmt::Display) -> LinkError {
    LinkError::Unreachable(error.to_string())
}

/// Tries each address of a host for a limited time, so that one that never answers does not block
/// the others.
async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in lookup_host((host, port)).await? {
        match timeout(ADDRESS_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => failure = error,
            Err(_) => {
                let why = format!("no answer from {address}");
                failure = io::Error::new(io::ErrorKind::TimedOut, why);
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
        .map_err(unreachable)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Waits for the greeting, presents the key and waits for the answer.
pub(super) async fn authenticate(
    config: &LinkConfig,
    mut socket: UpstreamSocket,
) -> Result<UpstreamSocket, LinkError> {
    let limit = config.login_timeout;
    within(limit, "greeting", expect(&mut socket, "connected")).await?;
    socket.send_text(&command_text("auth", config.key.expose_secret()));
    within(limit, "verdict on the key", expect(&mut socket, "auth_success")).await?;
    Ok(socket)
}

/// Reads until this status arrives, or one that ends the login. Skips other frames and statuses.
async fn expect(socket: &mut UpstreamSocket, expected: &str) -> Result<(), LinkError> {
    let mut found = false;
    loop {
        let message = socket.next().await.map_err(|error| LinkError::Closed(error.to_string()))?;
        let frame = match message {
            UpstreamMessage::Text(frame) => frame,
            UpstreamMessage::Close(why) => return Err(LinkError::Closed(why)),
            UpstreamMessage::Binary(_) | UpstreamMessage::Control => continue,
        };
        let bytes = frame.text().len();
        let demuxed = demux(frame).map_err(|_| {
            LinkError::Protocol(format!("{bytes} bytes that are no JSON array during login"))
        })?;
        // Reads the whole array: an eviction may follow the success.
        for frame_status in demuxed.statuses {
            found |= frame_status.parsed.status == expected;
            if let Some(error) = login_error(frame_status.parsed) {
                return Err(error);
            }
        }
        if found {
            return Ok(());
        }
    }
}

/// The error for a status that ends the connection. `None` for any other status.
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
