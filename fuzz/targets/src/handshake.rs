//! What a port does with a stranger's bytes before a session begins: PROXY header, HTTP, upgrade.
//!
//! It is the product's own code, from [`Gate::identify`](proxy_common::access::Gate::identify)
//! to [`serve_http`], over a stream in memory. Every kind of port gets the same bytes, and a model
//! says what each answer has to be.

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

/// Whose connections are nobody's but their own.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
/// Who may speak for others.
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// No input takes as long.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes that may be on the way in one direction.
const ROOM: usize = 1 << 20;
/// Turns in which the other side comes to what was said last.
const TURNS: usize = 8;

thread_local! {
    static STAGE: Stage = Stage::new();
}

/// Answers are those of the model, each refusal is counted once, and nothing is left over of a connection.
///
/// # Panics
///
/// They are not, or it is not.
pub fn of_every_port(input: &[u8]) {
    STAGE.with(|stage| stage.runtime.block_on(stage.check(input)));
}

struct Stage {
    runtime: Runtime,
    /// A data port, with the admin port beside it.
    data: HttpService<Idle>,
    admin: HttpService<Idle>,
    /// A data port behind a balancer that sends PROXY headers.
    balanced: HttpService<Idle>,
}

impl Stage {
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
        let heard = hear(&self.data, STRANGER, input, whole).await.expect("anyone may enter");
        let in_two = hear(&self.data, STRANGER, input, cut).await.expect("anyone may enter");
        assert!(heard.agrees(&in_two), "cut at {cut}: {in_two:?} in place of {heard:?}");
        if let Some(early) = &heard.early {
            let head = input.strip_suffix(&early[..]).expect("what was said behind the head");
            assert!(head.ends_with(b"\n\r\n") || head.ends_with(b"\n\n"), "the end of a head");
        }
        hear(&self.data, PROXY, input, whole).await.expect("a proxy may enter");
        hear(&self.admin, STRANGER, input, whole).await.expect("the operator may enter");
        let behind = hear(&self.balanced, PROXY, input, cut).await;
        match (model::proxy_header(input), behind) {
            (None, behind) => assert_eq!(behind, None, "without a PROXY header"),
            (Some((client, length)), behind) => {
                let behind = behind.expect("a PROXY header lets enter");
                let client = client.map_or(PROXY, |client| client.ip().to_canonical());
                let heard = hear(&self.data, client, &input[length..], whole).await;
                let heard = heard.expect("anyone may enter");
                assert!(heard.agrees(&behind), "cut at {cut}: {behind:?} in place of {heard:?}");
            }
        }
    }
}

/// What came of a connection.
#[derive(Debug, PartialEq)]
struct Heard {
    answers: Vec<Exchange>,
    /// What was said behind an upgrade.
    early: Option<Vec<u8>>,
}

impl Heard {
    /// Whether both are the same, as far as hyper goes: behind a body that nobody reads it takes the next request only if the body is
    /// there already, and closes the connection otherwise.
    fn agrees(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.answers, &other.answers);
        let common = ours.len().min(theirs.len());
        let broken_off = common > 0 && ours[common - 1].body_unread;
        ours[..common] == theirs[..common] && (broken_off || self == other)
    }
}

/// One request, and what matters of its answer.
#[derive(Debug, PartialEq)]
struct Exchange {
    method: Method,
    path: String,
    status: StatusCode,
    /// Bytes of the body, whether it goes out or not.
    body: u64,
    /// Whether a WebSocket was asked for and not given.
    refused: bool,
    /// Whether the request had a body.
    body_unread: bool,
}

/// Lets a port hear these bytes, in two portions if `cut` is inside them. `None` if it drops the connection at once.
async fn hear(port: &HttpService<Idle>, peer: IpAddr, input: &[u8], cut: usize) -> Option<Heard> {
    let refused = refusals(port);
    let (client, server) = duplex(ROOM);
    let (said, served) = tokio::join!(speak(client, input, cut), serve(port, peer, server));
    let (answers, early) = served?;
    let expected = answers.iter().filter(|answer| answer.refused).count() as u64;
    assert_eq!(refusals(port) - refused, expected, "each refusal is counted once");
    assert_eq!(port.session_permits.available_permits(), 1, "the session's place is free again");
    read(&said, &answers);
    Some(Heard { answers, early })
}

/// The client's side: gives what was said to it.
async fn speak(mut stream: DuplexStream, input: &[u8], cut: usize) -> Vec<u8> {
    let (first, second) = input.split_at(cut.min(input.len()));
    for portion in [first, second] {
        // The port may have heard enough.
        let _ = stream.write_all(portion).await;
        for _ in 0..TURNS {
            yield_now().await;
        }
    }
    let _ = stream.shutdown().await;
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.expect("a stream in memory");
    said
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

/// Has the port answer a request, and compares the answer with the model's.
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
    assert_eq!(upgraded, matches!(answer, Answer::Upgrade(..)), "an upgrade says so");
    if upgraded {
        let key = response.headers()["sec-websocket-accept"].to_str();
        assert_eq!(key.ok(), accept.as_deref());
    }
    let body = response.body().size_hint().exact().expect("a body of known length");
    let refused = websocket && !upgraded;
    (answer, Exchange { method, path, status, body, refused, body_unread })
}

/// Looks for the answers in what was said, one behind the other, and at the end perhaps what hyper itself objects to bytes that
/// are no request. When it does depends on how they come.
fn read(said: &[u8], answers: &[Exchange]) {
    let mut rest = str::from_utf8(said).expect("answers are text");
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

/// Takes the head of a response and gives its status.
fn head<'a>(rest: &mut &'a str) -> &'a str {
    let (head, behind) = rest.split_once("\r\n\r\n").expect("a whole head");
    *rest = behind;
    let line = head.lines().next().unwrap_or_default();
    let code = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "));
    code.unwrap_or_else(|| panic!("{line}"))
}

fn refusals(port: &HttpService<Idle>) -> u64 {
    Abuse::REFUSALS.iter().map(|&reason| port.gate.refusals(reason)).sum()
}
