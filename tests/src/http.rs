//! Plain HTTP/1.1 requests, small enough to control every byte that is sent.

use std::{collections::HashMap, net::SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::wait::{SOON, within};

/// The answer to a request.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers, with names in lower case. The last one counts if a header is repeated.
    pub headers: HashMap<String, String>,
    /// The body as text.
    pub body: String,
}

impl Response {
    /// A header by its lower-case name. Empty if absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// If the body is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("the body is not JSON ({error}): {:?}", self.body))
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        // After a 101 the bytes are not text.
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        let headers: HashMap<_, _> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        if let Some(length) = headers.get("content-length") {
            assert_eq!(length, &body.len().to_string(), "content-length of {text:?}");
        }
        Some(Self { status, headers, body: body.to_owned() })
    }
}

/// `GET path`, without an upgrade.
///
/// # Panics
///
/// If there is no answer in HTTP/1.1 in time.
pub async fn get(addr: SocketAddr, path: &str) -> Response {
    request(addr, &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"))
        .await
}

/// What a document of `/health` says of each market: the document itself if there is one market.
#[must_use]
pub fn markets(health: &Value) -> Vec<&Value> {
    match health.get("markets").and_then(Value::as_object) {
        Some(markets) => markets.values().collect(),
        None => vec![health],
    }
}

/// `GET path` asking for a WebSocket, for upgrades that are refused.
///
/// # Panics
///
/// If the upgrade is not refused, or there is no answer in time.
pub async fn refused_upgrade(addr: SocketAddr, path: &str) -> Response {
    let response = request(addr, &upgrade_head(addr, path, "")).await;
    assert_ne!(response.status, 101, "the upgrade of {path} was not refused");
    response
}

/// `GET /stocks` asking for a WebSocket, with these header lines beside the usual ones. An upgraded
/// connection is dropped.
///
/// # Panics
///
/// If there is no answer in time.
pub async fn upgrade(addr: SocketAddr, headers: &str) -> Response {
    request(addr, &upgrade_head(addr, "/stocks", headers)).await
}

/// A request for a WebSocket, with these header lines beside the usual ones.
#[must_use]
pub fn upgrade_head(addr: SocketAddr, path: &str, headers: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    )
}

/// Sends the bytes of one request and reads its answer, up to the declared length or the end of the
/// connection.
///
/// # Panics
///
/// If there is no answer in HTTP/1.1 in time.
pub async fn request(addr: SocketAddr, head: &str) -> Response {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await.expect("connect for an HTTP request");
        stream.write_all(head.as_bytes()).await.expect("send an HTTP request");
        let mut bytes = Vec::new();
        while !is_complete(&bytes) {
            if stream.read_buf(&mut bytes).await.expect("read an HTTP answer") == 0 {
                break;
            }
        }
        bytes
    };
    let line = head.lines().next().unwrap_or_default();
    let bytes = within(SOON, line, exchange).await;
    Response::parse(&bytes).unwrap_or_else(|| {
        panic!("{line}: no HTTP/1.1 answer: {:?}", String::from_utf8_lossy(&bytes))
    })
}

/// Whether the head and the declared length of the body are there. A body without a declared length
/// ends with the connection; a 101 has none.
fn is_complete(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length:"));
    match length.and_then(|length| length.trim().parse::<usize>().ok()) {
        Some(length) => body.len() >= length,
        None => head.starts_with("http/1.1 101"),
    }
}

/// Sends these bytes and returns everything that comes until the connection ends.
///
/// # Panics
///
/// If the connection is still open after the time limit.
pub async fn raw(addr: SocketAddr, bytes: &str) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await.expect("connect for an HTTP request");
        stream.write_all(bytes.as_bytes()).await.expect("send an HTTP request");
        let mut answer = Vec::new();
        while stream.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {}
        answer
    };
    let answer = within(SOON, "the end of a connection", exchange).await;
    String::from_utf8_lossy(&answer).into_owned()
}
