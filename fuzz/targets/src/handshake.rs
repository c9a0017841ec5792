//! Sends arbitrary bytes to a port, as a connection before its session: PROXY header, HTTP,
//! upgrade.
//!
//! The product's own code serves them, from
//! [`Gate::identify`](proxy_common::access::Gate::identify) to [`serve_http`], over a stream in
//! memory. Every kind of port gets the same bytes, and a model predicts each answer.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, Method, Request, StatusCode};
use hyper::body::{Body, Incoming};
use proxy_common::{
    access::{Abuse, AcceptedConnection},
    server::{Answer, HttpService, serve_http},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    runtime::{Builder, Runtime},
    task::yield_now,
};
use tungstenite::handshake::derive_accept_key;

use self::idle::Idle;

mod idle;
mod model;

/// A client that is no trusted proxy.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
/// A proxy that may name the client it speaks for.
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// A time that no input takes.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes that the stream buffers in each direction.
const ROOM: usize = 1 << 20;
/// How often one side yields, so that the other side reads all bytes sent so far.
const TURNS: usize = 8;

thread_local! {
    static PORTS: Ports = Ports::new();
}

/// Checks that the answers are those of the model, that each refusal is counted once, and that no
/// permit stays taken.
///
/// # Panics
///
/// One of these does not hold.
pub fn of_every_port(input: &[u8]) {
    PORTS.with(|ports| ports.runtime.block_on(ports.check(input)));
}

struct Ports {
    runtime: Runtime,
    /// A data port that has an admin port beside it.
    data: HttpService<Idle>,
    admin: HttpService<Idle>,
    /// A data port whose balancer sends PROXY headers.
    balanced: HttpService<Idle>,
}

impl Ports {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let (data, admin) = (idle::port(true, false), idle::port(false, false));
        Self { runtime, data, admin, balanced: idle::port(true, true) }
    }

    async fn check(&self, input: &[u8]) {
        for port in [&self.data, &self.admin, &self.balanced] {
            port.gate.tick();
        }
        let sum =
            input.iter().fold(0, |sum: usize, &byte| sum.wrapping_mul(31) + usize::from(byte));
        let (whole, cut) = (input.len(), sum % (input.len() + 1));
        let reply = send(&self.data, STRANGER, input, whole).await.expect("anyone may enter");
        let in_two = send(&self.data, STRANGER, input, cut).await.expect("anyone may enter");
        assert!(reply.agrees(&in_two), "cut at {cut}: {in_two:?}, not {reply:?}");
        if let Some(early) = &reply.early {
            let head = input.strip_suffix(&early[..]).expect("the bytes after the head");
            assert!(head.ends_with(b"\n\r\n") || head.ends_with(b"\n\n"), "the end of a head");
        }
        send(&self.data, PROXY, input, whole).await.expect("a proxy may enter");
        send(&self.admin, STRANGER, input, whole).await.expect("the operator may enter");
        let balanced = send(&self.balanced, PROXY, input, cut).await;
        match (model::proxy_header(input), balanced) {
            (None, balanced) => assert_eq!(balanced, None, "without a PROXY header"),
            (Some((client, length)), balanced) => {
                let balanced = balanced.expect("a proxy may enter");
                let client = client.map_or(PROXY, |client| client.ip().to_canonical());
                let reply = send(&self.data, client, &input[length..], whole).await;
                let reply = reply.expect("anyone may enter");
                assert!(reply.agrees(&balanced), "cut at {cut}: {balanced:?}, not {reply:?}");
            }
        }
    }
}

/// The replies of a port on one connection.
#[derive(Debug, PartialEq)]
struct Reply {
    answers: Vec<Exchange>,
    /// The bytes after an upgrade.
    early: Option<Vec<u8>>,
}

impl Reply {
    /// Whether both are the same, as far as hyper allows. After a body that the port does not read,
    /// hyper takes the next request only if the whole body has arrived; otherwise it closes the
    /// connection.
    fn agrees(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.answers, &other.answers);
        let common = ours.len().min(theirs.len());
        let may_end = common > 0 && ours[common - 1].body_unread;
        ours[..common] == theirs[..common] && (may_end || self == other)
    }
}

/// One request, and the parts of its answer that are checked.
#[derive(Debug, PartialEq)]
struct Exchange {
    method: Method,
    path: String,
    status: StatusCode,
    /// Bytes of the answer's body, whether it is sent or not.
    body: u64,
    /// Whether the request asked for a WebSocket and got none.
    refused: bool,
    /// Whether the request had a body.
    body_unread: bool,
}

/// Sends these bytes to a port, in two portions if `cut` is inside them. `None` if the port drops
/// the connection at once.
async fn send(port: &HttpService<Idle>, peer: IpAddr, input: &[u8], cut: usize) -> Option<Reply> {
    let refused = refusals(port);
    let (client, server) = duplex(ROOM);
    let (received, served) = tokio::join!(write(client, input, cut), serve(port, peer, server));
    let (answers, early) = served?;
    let expected = answers.iter().filter(|answer| answer.refused).count() as u64;
    assert_eq!(refusals(port) - refused, expected, "each refusal is counted once");
    assert_eq!(port.session_permits.available_permits(), 1, "the session's permit is free again");
    check_received(&received, &answers);
    Some(Reply { answers, early })
}

/// The client's side. Returns the bytes that it received.
async fn write(mut stream: DuplexStream, input: &[u8], cut: usize) -> Vec<u8> {
    let (first, second) = input.split_at(cut.min(input.len()));
    for portion in [first, second] {
        // The port may have closed the connection already.
        let _ = stream.write_all(portion).await;
        for _ in 0..TURNS {
            yield_now().await;
        }
    }
    let _ = stream.shutdown().await;
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.expect("a stream in memory");
    received
}

/// The port's side.
async fn serve(
    port: &HttpService<Idle>,
    peer: IpAddr,
    mut stream: DuplexStream,
) -> Option<(Vec<Exchange>, Option<Vec<u8>>)> {
    let peer = SocketAddr::new(peer, 4711);
    let accepted = match port.upgrades {
        true => port.gate.identify(&mut stream, peer, LIMIT).await.ok()?,
        false => AcceptedConnection::operator(peer),
    };
    let exchanges = Mutex::new(Vec::new());
    let answer = |request| {
        let (answer, exchange) = exchange(port, request, &accepted);
        exchanges.lock().unwrap_or_else(PoisonError::into_inner).push(exchange);
        answer
    };
    let upgraded = serve_http(stream, answer, LIMIT, &port.stop).await;
    let early = match upgraded {
        None => None,
        Some(mut upgraded) => {
            let mut early = upgraded.early.to_vec();
            let rest = upgraded.socket.read_to_end(&mut early).await;
            rest.expect("a stream in memory");
            Some(early)
        }
    };
    Some((exchanges.into_inner().unwrap_or_else(PoisonError::into_inner), early))
}

/// Lets the port answer a request, and compares the answer with the model's.
fn exchange(
    port: &HttpService<Idle>,
    request: Request<Incoming>,
    accepted: &AcceptedConnection,
) -> (Answer, Exchange) {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let peer = port.gate.client(accepted, &HeaderMap::new());
    let client = port.gate.client(accepted, request.headers());
    assert_eq!(client, model::client(peer, request.headers()), "the client");
    let websocket = port.upgrades && model::asks_for_websocket(request.headers());
    let expected = model::status(&request, port.upgrades, port.probes);
    let accept =
        request.headers().get("sec-websocket-key").map(|key| derive_accept_key(key.as_bytes()));
    let body_unread = !request.body().is_end_stream();
    let answer = port.answer(request, accepted);
    let (Answer::Respond(response) | Answer::Upgrade(response, _)) = &answer;
    let status = response.status();
    assert_eq!(status, expected, "{method} {path}");
    let upgraded = status == StatusCode::SWITCHING_PROTOCOLS;
    assert_eq!(upgraded, matches!(answer, Answer::Upgrade(..)), "the status of an upgrade");
    if upgraded {
        let key = response.headers()["sec-websocket-accept"].to_str();
        assert_eq!(key.ok(), accept.as_deref());
    }
    let body = response.body().size_hint().exact().expect("a body of known length");
    let refused = websocket && !upgraded;
    (answer, Exchange { method, path, status, body, refused, body_unread })
}

/// Checks that the received bytes are these answers in order. After them, hyper itself may have
/// answered bytes that are no request. Whether it does depends on how they arrive.
fn check_received(received: &[u8], answers: &[Exchange]) {
    let mut rest = str::from_utf8(received).expect("answers are text");
    for Exchange { method, status, body, .. } in answers {
        let code = head(&mut rest);
        assert!(code.starts_with(status.as_str()), "{code}: {status}");
        if method != Method::HEAD && *status != StatusCode::SWITCHING_PROTOCOLS {
            rest = rest.get(*body as usize..).expect("a whole body");
        }
    }
    if !rest.is_empty() {
        let code = head(&mut rest);
        assert!(code.starts_with('4') && rest.is_empty(), "{code}: {rest}");
    }
}

/// Takes the head of a response, and returns its status code.
fn head<'a>(rest: &mut &'a str) -> &'a str {
    let (head, after) = rest.split_once("\r\n\r\n").expect("a whole head");
    *rest = after;
    let line = head.lines().next().unwrap_or_default();
    let code = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "));
    code.unwrap_or_else(|| panic!("{line}"))
}

fn refusals(port: &HttpService<Idle>) -> u64 {
    Abuse::REFUSALS.iter().map(|&reason| port.gate.refusals(reason)).sum()
}
