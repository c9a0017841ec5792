//! Opens a connection and logs in: TCP, TLS, upgrade, greeting, key, answer.

use std::{
    error::Error,
    io,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, StatusCode, header};
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
use tungstenite::protocol::CloseFrame;
use url::{Position, Url};

use super::{
    config::LinkConfig,
    dial_right::DialRight,
    error::LinkError,
    upstream_socket::{Stream, UpstreamMessage, UpstreamSocket},
};
use crate::protocol::{UpstreamStatus, command_text, demux};

/// How long one address of the host may take to answer.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// An upstream may ask for a longer pause. More than a day is a mistake.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// A connection that has become a WebSocket.
pub struct Opened {
    /// The socket.
    pub socket: UpstreamSocket,
    /// The version of TLS, such as `TLS 1.3`, if the connection is encrypted.
    pub tls: Option<String>,
    /// The upstream's time, if its response to the upgrade names it.
    pub date: Option<SystemTime>,
}

/// Opens a WebSocket to the upstream: TCP, TLS if the URL's scheme is `wss`, and the upgrade.
///
/// # Errors
///
/// The upstream cannot be reached in time, or does not upgrade.
pub async fn connect(config: &LinkConfig) -> Result<UpstreamSocket, LinkError> {
    open(config).await.map(|opened| opened.socket)
}

/// Does the same as [`connect`], and returns also what it learned about the upstream.
///
/// # Errors
///
/// As for [`connect`].
pub async fn open(config: &LinkConfig) -> Result<Opened, LinkError> {
    let open = async {
        let url = &config.url;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let port = url.port_or_known_default().unwrap_or(443);
        let right = config.dial_right.as_ref();
        let may_dial = || right.map_or(Ok(()), DialRight::check);
        may_dial()?;
        let mut tcp = connect_tcp(host, port, may_dial).await?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let mut guarded = None;
        if let Some(right) = right {
            let guard;
            (tcp, guard) = right.guard(tcp)?;
            guarded = Some(guard);
        }
        let stream = match url.scheme() {
            "wss" => {
                let name = ServerName::try_from(host.to_owned()).map_err(unreachable)?;
                let connector = TlsConnector::from(tls(&config.extra_roots)?);
                let tls = connector.connect(name, tcp).await.map_err(unreachable)?;
                MaybeTlsStream::Rustls(tls)
            }
            _ => MaybeTlsStream::Plain(tcp),
        };
        may_dial()?;
        let mut opened = upgrade(stream, url).await?;
        if let Some(guarded) = guarded {
            opened.socket.guarded_by(guarded);
        }
        opened.socket.frames_are_kept(config.kept_bytes);
        Ok(opened)
    };
    within(config.login_timeout, "connection", open).await
}

/// Requests the upgrade to a WebSocket.
async fn upgrade(stream: Stream, url: &Url) -> Result<Opened, LinkError> {
    let tls = match &stream {
        MaybeTlsStream::Rustls(tls) => tls.get_ref().1.protocol_version(),
        _ => None,
    };
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
            return Err(no_upgrade(status, response.headers(), SystemTime::now()));
        }
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if accept.is_none_or(|accept| *accept != derive_accept_key(key.as_bytes())) {
            let why = "an upgrade to something other than a WebSocket".to_owned();
            return Err(LinkError::Unreachable(why));
        }
        let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        Ok((hyper::upgrade::on(response).await.map_err(unreachable)?, date))
    };
    let mut asking = pin!(asking);
    // The connection moves the bytes and ends with the upgrade. If anything else ends it, `asking`
    // yields the error.
    let (upgraded, date) = tokio::select! {
        upgraded = &mut asking => upgraded?,
        _ = connection.with_upgrades() => asking.await?,
    };
    let parts = upgraded
        .downcast::<TokioIo<Stream>>()
        .map_err(|_| LinkError::Unreachable("HTTP did not hand over the connection".to_owned()))?;
    Ok(Opened {
        socket: UpstreamSocket::new(parts.io.into_inner(), &parts.read_buf),
        tls: tls.map(|version| format!("{version:?}").replace("TLSv1_", "TLS 1.")),
        date,
    })
}

/// The error for a response that is no upgrade. A redirect is named and never followed, because the
/// key would go to another host.
fn no_upgrade(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> LinkError {
    let value = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let mut why = format!("HTTP {status} instead of an upgrade");
    if let Some(place) = value(header::LOCATION) {
        let end = place.find(['?', '#']).unwrap_or(place.len());
        let shown: String = place[..end].chars().take(200).collect();
        why += &format!(", moved to {shown:?}: correct the URL if you trust that place");
    }
    let time = value(header::RETRY_AFTER).and_then(|value| match value.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).ok(),
    });
    match time {
        Some(time) => LinkError::TryLater(why, time.min(MAX_RETRY_AFTER)),
        None => LinkError::Unreachable(why),
    }
}

/// The first cause of an error. What HTTP makes of the same cause differs from time to time.
fn unreachable(error: impl Error + 'static) -> LinkError {
    let mut cause: &dyn Error = &error;
    while let Some(earlier) = cause.source() {
        cause = earlier;
    }
    LinkError::Unreachable(cause.to_string())
}

/// Tries each address of a host for a limited time, so that one that never answers does not block
/// the others.
async fn connect_tcp(
    host: &str,
    port: u16,
    may_dial: impl Fn() -> Result<(), LinkError>,
) -> Result<TcpStream, LinkError> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in lookup_host((host, port)).await.map_err(unreachable)? {
        may_dial()?;
        match timeout(ADDRESS_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => failure = error,
            Err(_) => {
                let why = format!("no answer from {address}");
                failure = io::Error::new(io::ErrorKind::TimedOut, why);
            }
        }
    }
    Err(unreachable(failure))
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
///
/// # Errors
///
/// The upstream refuses the key, or gives no answer in time or another one.
pub async fn authenticate(
    config: &LinkConfig,
    mut socket: UpstreamSocket,
) -> Result<UpstreamSocket, LinkError> {
    let limit = config.login_timeout;
    // The official clients take the first frame for the greeting, whatever it says.
    within(limit, "greeting", expect(&mut socket, None)).await?;
    config.dial_right.as_ref().map_or(Ok(()), DialRight::check)?;
    socket.send_text(&command_text("auth", config.key.expose_secret(), None));
    within(limit, "verdict on the key", expect(&mut socket, Some("auth_success"))).await?;
    Ok(socket)
}

/// Reads until this status arrives, or one that ends the login. Skips other frames and statuses.
/// Without a status, reads one frame.
async fn expect(socket: &mut UpstreamSocket, expected: Option<&str>) -> Result<(), LinkError> {
    let mut found = expected.is_none();
    loop {
        let message = socket.next().await.map_err(|error| LinkError::Closed(error.to_string()))?;
        let frame = match message {
            UpstreamMessage::Text(frame) => frame,
            UpstreamMessage::Close(frame) => return Err(closed(close_text(frame.as_ref()), None)),
            UpstreamMessage::Binary(_) | UpstreamMessage::Control => continue,
        };
        let bytes = frame.text().len();
        let demuxed = match demux(frame) {
            Ok(demuxed) => demuxed,
            Err(_) if found => return Ok(()),
            Err(_) => {
                let why = format!("{bytes} bytes that are no JSON array during login");
                return Err(LinkError::Protocol(why));
            }
        };
        // Reads the whole array: an eviction may follow the success.
        for frame_status in demuxed.statuses {
            found |= Some(frame_status.parsed.status.as_str()) == expected;
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
        "max_connections" | "force_disconnect" => Some(LinkError::MaxConnections(status.message)),
        _ if is_eviction(&status.message) => Some(LinkError::MaxConnections(status.message)),
        "auth_timeout" => Some(LinkError::Protocol(format!("auth_timeout: {}", status.message))),
        _ => None,
    }
}

/// What a close frame says.
pub(super) fn close_text(frame: Option<&CloseFrame>) -> String {
    match frame {
        Some(CloseFrame { code, reason }) if reason.is_empty() => {
            format!("closed with code {}", u16::from(*code))
        }
        Some(CloseFrame { code, reason }) => {
            format!("closed with code {} {:?}", u16::from(*code), reason.as_str())
        }
        None => "closed without a code".to_owned(),
    }
}

/// The error for a connection that its upstream ended, perhaps after a status.
pub(super) fn closed(why: String, last_status: Option<&str>) -> LinkError {
    let why = match last_status {
        Some(status) => format!("{why} (after {status})"),
        None => why,
    };
    if is_eviction(&why) { LinkError::MaxConnections(why) } else { LinkError::Closed(why) }
}

/// Whether a text says that the account has too many connections. The vendor has used two wordings:
/// one of its specification, and one that users measured.
pub(super) fn is_eviction(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("maximum number of") && text.contains("connections exceeded")
}

async fn within<T>(
    limit: Duration,
    step: &'static str,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    timeout(limit, work).await.unwrap_or(Err(LinkError::Timeout(step)))
}
