//! What a port does with the bytes of a stranger before a session begins: PROXY header, HTTP, upgrade.
//!
//! It is the product's own code, from [`Doors::enter`](proxy_common::access::gate::Doors::enter) to [`HttpFace::respond`], on hyper set up
//! as the server does it, over a stream in memory. The same bytes come to every kind of port; the model tells each answer.

use std::{
    convert::Infallible,
    future::ready,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{
    body::{Body, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use proxy_common::{
    access::gate::Entered,
    metrics::Reason,
    server::http::{Accepted, AcceptedSlot, HttpFace, REFUSALS},
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
    data: HttpFace<Idle>,
    admin: HttpFace<Idle>,
    /// A data port behind a balancer that sends PROXY headers.
    balanced: HttpFace<Idle>,
}

impl Stage {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let (data, admin) = (idle::port(true, false), idle::port(false, false));
        Self { runtime, data, admin, balanced: idle::port(true, true) }
    }

    async fn check(&self, input: &[u8]) {
        for face in [&self.data, &self.admin, &self.balanced] {
            face.doors.tick();
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
    answers: Vec<Answer>,
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

/// One request and its answer.
#[derive(Debug, PartialEq)]
struct Answer {
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
async fn hear(face: &HttpFace<Idle>, peer: IpAddr, input: &[u8], cut: usize) -> Option<Heard> {
    let refused = refusals(face);
    let (client, server) = duplex(ROOM);
    let (said, served) = tokio::join!(speak(client, input, cut), serve(face, peer, server));
    let (answers, early) = served?;
    let expected = answers.iter().filter(|answer| answer.refused).count() as u64;
    assert_eq!(refusals(face) - refused, expected, "each refusal is counted once");
    assert_eq!(face.room.available_permits(), 1, "the session's place is free again");
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

/// The port's side, as in `server.rs`.
async fn serve(
    face: &HttpFace<Idle>,
    peer: IpAddr,
    mut stream: DuplexStream,
) -> Option<(Vec<Answer>, Option<Vec<u8>>)> {
    let peer = SocketAddr::new(peer, 4711);
    let entered = match face.upgrades {
        true => face.doors.enter(&mut stream, peer, LIMIT).await.ok()?,
        false => Entered::operator(peer),
    };
    let slot = AcceptedSlot::default();
    let answers = Mutex::new(Vec::new());
    let service = service_fn(|request| {
        let (response, answer) = answer(face, request, &entered, &slot);
        answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        ready(Ok::<_, Infallible>(response))
    });
    // How it ended is told by what was said.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LIMIT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    let accepted = slot.into_inner().unwrap_or_else(PoisonError::into_inner);
    let early = match accepted {
        None => None,
        Some(Accepted { upgrade, .. }) => match upgrade.await {
            Err(_) => None,
            Ok(upgraded) => {
                let parts = upgraded.downcast::<TokioIo<DuplexStream>>().expect("our own stream");
                let mut early = parts.read_buf.to_vec();
                let rest = parts.io.into_inner().read_to_end(&mut early).await;
                rest.expect("a stream in memory");
                Some(early)
            }
        },
    };
    Some((answers.into_inner().unwrap_or_else(PoisonError::into_inner), early))
}

/// Has a request answered, and compares the answer with the model's.
fn answer(
    face: &HttpFace<Idle>,
    request: Request<Incoming>,
    entered: &Entered,
    slot: &AcceptedSlot,
) -> (Response<Full<Bytes>>, Answer) {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let peer = face.doors.client(entered, &HeaderMap::new());
    let client = face.doors.client(entered, request.headers());
    assert_eq!(client, model::client(peer, request.headers()), "the client");
    let websocket = face.upgrades && model::asks_for_websocket(request.headers());
    let expected = model::status(&request, face.upgrades, face.probes);
    let accept =
        request.headers().get("sec-websocket-key").map(|key| derive_accept_key(key.as_bytes()));
    let body_unread = !request.body().is_end_stream();
    let response = face.respond(request, entered, slot);
    let status = response.status();
    assert_eq!(status, expected, "{method} {path}");
    let upgraded = status == StatusCode::SWITCHING_PROTOCOLS;
    let taken = slot.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    assert_eq!(upgraded, taken, "an upgrade is answered if it is taken");
    if upgraded {
        let told = response.headers()["sec-websocket-accept"].to_str();
        assert_eq!(told.ok(), accept.as_deref());
    }
    let body = response.body().size_hint().exact().expect("a body of known length");
    (response, Answer { method, path, status, body, refused: websocket && !upgraded, body_unread })
}

/// Looks for the answers in what was said, one behind the other, and at the end perhaps what hyper itself objects to bytes that
/// are no request. When it does depends on how they come.
fn read(said: &[u8], answers: &[Answer]) {
    let mut rest = str::from_utf8(said).expect("answers are text");
    for Answer { method, status, body, .. } in answers {
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

fn refusals(face: &HttpFace<Idle>) -> u64 {
    REFUSALS
        .iter()
        .map(|reason| face.metrics.refused.get_or_create(&Reason::new(reason)).get())
        .sum()
}
