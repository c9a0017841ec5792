//! The life of one connection: upgrade, commands in, items out.

use std::{
    borrow::Cow,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use serde::Deserialize;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async_with_config,
    tungstenite::{
        Error, Message, Utf8Bytes,
        error::ProtocolError,
        handshake::server::{ErrorResponse, Request, Response},
        http::{HeaderName, HeaderValue, StatusCode},
        protocol::CloseFrame,
    },
};

use crate::{
    connection::{Connection, Item},
    hub::Hub,
    status,
    throttle::ThrottledStream,
};

/// How long a client has for its upgrade request.
const UPGRADE: Duration = Duration::from_secs(10);
/// The pause between two looks at a request line that is not complete.
const PEEK: Duration = Duration::from_millis(1);
/// How long a client has to answer a close frame before its TCP connection is dropped.
const CLOSE_ANSWER: Duration = Duration::from_secs(2);

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// A fault reset it before anything was read.
    Refused,
    /// The upgrade failed or was refused.
    NotUpgraded,
    /// The client closed it or went away.
    ClientLeft,
    /// The simulator closed it with a close frame.
    Closed,
    /// The simulator dropped it without a close frame.
    Dropped,
    /// A fault aborted it, or it was killed as a slow consumer.
    Cut,
}

impl End {
    /// The reason as the log shows it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::NotUpgraded => "not upgraded",
            Self::ClientLeft => "client left",
            Self::Closed => "closed",
            Self::Dropped => "dropped",
            Self::Cut => "cut",
        }
    }
}

/// Serves one TCP connection until it ends.
pub(crate) async fn run(tcp: TcpStream, hubs: &[Arc<Hub>]) -> End {
    let hub = match hubs {
        [hub] => hub,
        hubs => match timeout(UPGRADE, addressed(&tcp, hubs)).await {
            Ok(Ok(hub)) => hub,
            Ok(Err(_)) | Err(_) => return End::NotUpgraded,
        },
    };
    hub.counters.tcp_accepted.one();
    let reset = Arc::new(AtomicBool::new(hub.switches().refuse_tcp));
    let refused = reset.load(Relaxed);
    let stream = ThrottledStream::new(tcp, Arc::clone(&hub.throttle), Arc::clone(&reset));
    if refused {
        hub.counters.tcp_refused.one();
        return End::Refused;
    }
    let upgraded = frozen_while(hub.silence(), timeout(UPGRADE, upgrade(stream, hub))).await;
    let Ok(Ok(socket)) = upgraded else { return End::NotUpgraded };
    let registration = hub.register(reset);
    let (sink, stream) = socket.split();
    let connection = &registration.connection;
    let conversation = async {
        tokio::select! {
            end = read_commands(stream, connection, hub) => end,
            end = write_items(sink, connection, hub) => end,
        }
    };
    tokio::select! {
        biased;
        () = connection.cut() => End::Cut,
        end = frozen_while(hub.silence(), conversation) => end,
    }
}

/// The market whose path the request line names; the first one, which refuses the path, if none is
/// there. Nothing is read, so that a fault of this market sees the connection from its first byte.
async fn addressed<'a>(tcp: &TcpStream, hubs: &'a [Arc<Hub>]) -> io::Result<&'a Arc<Hub>> {
    let mut line = [0; 1_024];
    loop {
        let length = tcp.peek(&mut line).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let seen = String::from_utf8_lossy(&line[..length]);
        if length == line.len() || seen.contains('\n') {
            let path = seen.split(' ').nth(1).unwrap_or_default();
            let path = path.split('?').next().unwrap_or_default();
            let named = hubs.iter().find(|hub| hub.market.serves_path(path));
            return Ok(named.unwrap_or(&hubs[0]));
        }
        // A part of a line: the next peek would return at once with the same bytes.
        sleep(PEEK).await;
    }
}

/// Runs a future, but polls it only while `silent` is false.
async fn frozen_while<F: Future>(mut silent: watch::Receiver<bool>, inner: F) -> F::Output {
    tokio::pin!(inner);
    loop {
        let frozen = *silent.borrow_and_update();
        tokio::select! {
            biased;
            changed = silent.changed() => {
                // The hub outlives its sessions.
                debug_assert!(changed.is_ok(), "silence ended with the hub");
            }
            output = &mut inner, if !frozen => return output,
        }
    }
}

async fn upgrade(
    stream: ThrottledStream,
    hub: &Hub,
) -> Result<WebSocketStream<ThrottledStream>, Error> {
    #[expect(clippy::result_large_err, reason = "the WebSocket library's signature")]
    let check = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        let switches = hub.switches();
        let status = match switches.refuse_upgrade {
            Some(status) => StatusCode::from_u16(status)
                .ok()
                .filter(|status| status.as_u16() >= 300)
                .unwrap_or(StatusCode::FORBIDDEN),
            None if hub.market.serves_path(request.uri().path()) => return Ok(response),
            None => StatusCode::NOT_FOUND,
        };
        hub.counters.upgrades_refused.one();
        let mut refusal = ErrorResponse::new(Some(format!("{status}\n")));
        *refusal.status_mut() = status;
        if let Some((name, value)) = switches.refusal_header
            && let (Ok(name), Ok(value)) =
                (HeaderName::try_from(name), HeaderValue::try_from(value))
        {
            refusal.headers_mut().insert(name, value);
        }
        Err(refusal)
    };
    accept_hdr_async_with_config(stream, check, None).await
}

/// Reads until the client is gone. The WebSocket library answers pings as they are read.
async fn read_commands(
    mut stream: SplitStream<WebSocketStream<ThrottledStream>>,
    connection: &Arc<Connection>,
    hub: &Hub,
) -> End {
    let deadline = Instant::now() + hub.config.auth_timeout;
    let mut auth_seen = false;
    loop {
        let message = tokio::select! {
            () = sleep_until(deadline), if !auth_seen => {
                auth_seen = true;
                hub.counters.auth_timeouts.one();
                let status = Item::Status(status::frame(status::AUTH_TIMEOUT));
                connection.send_last([status, Item::Close(1008, Cow::Borrowed(""))]);
                continue;
            }
            message = stream.next() => message,
        };
        match message {
            Some(Ok(Message::Text(text))) => auth_seen |= execute(&text, connection, hub),
            Some(Ok(Message::Binary(_))) => refuse(connection, hub),
            Some(Ok(Message::Ping(_))) => hub.counters.pings_received.one(),
            Some(Ok(Message::Close(_))) => hub.counters.closes_received.one(),
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(_)) | None => return End::ClientLeft,
        }
    }
}

/// A request. Further fields of the object are ignored.
#[derive(Deserialize)]
struct Command {
    action: String,
    params: String,
}

/// Carries out one request. Returns true if it was an `auth`.
fn execute(text: &str, connection: &Arc<Connection>, hub: &Hub) -> bool {
    hub.journal.command(text, &hub.config.keys);
    let Ok(command) = serde_json::from_str::<Command>(text) else {
        refuse(connection, hub);
        return false;
    };
    match command.action.as_str() {
        "auth" => {
            hub.authenticate(connection, &command.params);
            return true;
        }
        "subscribe" => hub.counters.subscribe_requests.one(),
        "unsubscribe" => hub.counters.unsubscribe_requests.one(),
        _ => {
            refuse(connection, hub);
            return false;
        }
    }
    if !connection.is_authenticated() {
        connection.send_status(status::AUTH_REQUIRED);
    } else if command.action == "subscribe" {
        hub.subscribe(connection, &command.params);
    } else {
        connection.unsubscribe(&command.params);
    }
    false
}

fn refuse(connection: &Connection, hub: &Hub) {
    hub.counters.malformed_requests.one();
    connection.send_status(status::MALFORMED);
}

/// Writes queued items up to the last one.
async fn write_items(
    mut sink: SplitSink<WebSocketStream<ThrottledStream>, Message>,
    connection: &Connection,
    hub: &Hub,
) -> End {
    loop {
        let sent = match connection.next(hub.config.frame_events).await {
            Item::Status(text) => {
                hub.counters.statuses_sent.one();
                sink.send(Message::text(text)).await
            }
            Item::Events(frame) => send_data(&mut sink, frame.text.into(), frame.events, hub).await,
            Item::Raw(text, events) => send_data(&mut sink, (&*text).into(), events, hub).await,
            Item::Garbage(text) => sink.send(Message::text(text)).await,
            Item::Binary(bytes) => sink.send(Message::binary(bytes)).await,
            Item::Close(code, reason) => {
                let close = CloseFrame { code: code.into(), reason: (&*reason).into() };
                // The reading half ends the session earlier, when the client answers.
                if sink.send(Message::Close(Some(close))).await.is_ok() {
                    sleep(CLOSE_ANSWER).await;
                }
                return End::Closed;
            }
            Item::Drop => return End::Dropped,
        };
        match sent {
            Ok(()) => {}
            Err(Error::ConnectionClosed | Error::Protocol(ProtocolError::SendAfterClosing)) => {
                // The client is closing, and the reading half has yet to write the answer.
                sleep(CLOSE_ANSWER).await;
                return End::ClientLeft;
            }
            Err(_) => return End::ClientLeft,
        }
    }
}

async fn send_data(
    sink: &mut SplitSink<WebSocketStream<ThrottledStream>, Message>,
    text: Utf8Bytes,
    events: usize,
    hub: &Hub,
) -> Result<(), Error> {
    let entry = hub.config.record.then(|| hub.journal.frame(&text));
    let bytes = text.len();
    sink.send(Message::Text(text)).await?;
    if let Some(entry) = entry {
        entry.written();
    }
    hub.counters.frames_sent.one();
    hub.counters.events_sent.add(events);
    hub.counters.bytes_sent.add(bytes);
    hub.counters.largest_frame_events.at_least(events);
    Ok(())
}
