//! A WebSocket client that keeps the bytes of what it receives.

use std::{borrow::Cow, collections::VecDeque, net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Error, Message, client::IntoClientRequest, error::ProtocolError, http::HeaderValue,
    },
};

use crate::wait::{SOON, within};

/// The greeting, alone in its frame.
pub const GREETING: &str =
    r#"[{"ev":"status","status":"connected","message":"Connected Successfully"}]"#;
/// The answer to an accepted key, alone in its frame.
pub const AUTHENTICATED: &str =
    r#"[{"ev":"status","status":"auth_success","message":"authenticated"}]"#;

/// One connection. It never re-serialises what arrives: objects are returned as the bytes that
/// came.
#[derive(Debug)]
pub struct TestClient {
    ws: WebSocketStream<TcpStream>,
    /// Objects of the last frame that have not been returned yet.
    objects: VecDeque<String>,
    /// Pings received.
    pings: usize,
}

/// A received message, or the end of the connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A text message.
    Text(String),
    /// The peer closed with this code. `None` if its close frame had no code.
    Closed(Option<u16>),
    /// The connection ended without a close frame.
    Dropped,
}

impl TestClient {
    /// Connects to `/stocks` and reads nothing yet.
    ///
    /// # Panics
    ///
    /// If the connection or the upgrade fails.
    pub async fn connect(addr: SocketAddr) -> Self {
        Self::connect_to(addr, "/stocks").await
    }

    /// Connects to `/stocks` as [`TestClient::connect`] does. `None` if the server refuses the
    /// connection or the upgrade, or drops the connection before.
    ///
    /// # Panics
    ///
    /// If there is no answer in time.
    pub async fn try_connect(addr: SocketAddr) -> Option<Self> {
        let stream = within(SOON, "connecting", TcpStream::connect(addr)).await.ok()?;
        Self::try_upgrade(stream, addr, "/stocks", &[]).await.ok()
    }

    /// Connects to this path and reads nothing yet.
    ///
    /// # Panics
    ///
    /// If the connection or the upgrade fails.
    pub async fn connect_to(addr: SocketAddr, path: &str) -> Self {
        let stream = within(SOON, "connecting", TcpStream::connect(addr)).await;
        Self::upgrade(stream.expect("connect"), addr, path).await
    }

    /// Connects to `/stocks` with a receive buffer of about this many bytes. If the client does not
    /// read, the sender soon has to wait.
    ///
    /// # Panics
    ///
    /// If the connection or the upgrade fails.
    pub async fn connect_narrow(addr: SocketAddr, buffer_bytes: u32) -> Self {
        let socket = TcpSocket::new_v4().expect("make a socket");
        socket.set_recv_buffer_size(buffer_bytes).expect("set the receive buffer");
        let stream = within(SOON, "connecting", socket.connect(addr)).await;
        Self::upgrade(stream.expect("connect"), addr, "/stocks").await
    }

    /// Upgrades this connection at `/stocks`, with these headers beside the usual ones. Reads
    /// nothing yet.
    ///
    /// # Panics
    ///
    /// If the upgrade fails.
    pub async fn over(stream: TcpStream, headers: &[(&'static str, &str)]) -> Self {
        let addr = stream.peer_addr().expect("a connection has a peer");
        Self::upgrade_with(stream, addr, "/stocks", headers).await
    }

    async fn upgrade(stream: TcpStream, addr: SocketAddr, path: &str) -> Self {
        Self::upgrade_with(stream, addr, path, &[]).await
    }

    async fn upgrade_with(
        stream: TcpStream,
        addr: SocketAddr,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Self {
        let upgrade = Self::try_upgrade(stream, addr, path, headers).await;
        upgrade.unwrap_or_else(|error| panic!("upgrade of {path}: {error}"))
    }

    async fn try_upgrade(
        stream: TcpStream,
        addr: SocketAddr,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        stream.set_nodelay(true).expect("set TCP_NODELAY");
        let request = format!("ws://{addr}{path}").into_client_request();
        let mut request = request.expect("a request");
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).expect("a header's value");
            request.headers_mut().append(*name, value);
        }
        let (ws, response) = within(SOON, "upgrading", client_async(request, stream)).await?;
        let extensions = response.headers().get("sec-websocket-extensions");
        assert_eq!(extensions, None, "extensions that the client did not offer");
        Ok(Self { ws, objects: VecDeque::new(), pings: 0 })
    }

    /// The port of its end of the connection.
    ///
    /// # Panics
    ///
    /// If the connection has none.
    #[must_use]
    pub fn local_port(&self) -> u16 {
        self.ws.get_ref().local_addr().expect("the address of a connection").port()
    }

    /// Connects to `/stocks` and logs in, checking each step.
    ///
    /// # Panics
    ///
    /// If a step fails.
    pub async fn login(addr: SocketAddr, key: &str) -> Self {
        let mut client = Self::connect(addr).await;
        client.log_in(key).await;
        client
    }

    /// Logs in on a fresh connection, checking each step.
    ///
    /// # Panics
    ///
    /// If a step fails.
    pub async fn log_in(&mut self, key: &str) {
        self.expect(GREETING).await;
        self.command("auth", key).await;
        self.expect(AUTHENTICATED).await;
    }

    /// Sends this text as one message.
    ///
    /// # Panics
    ///
    /// If the connection does not accept it.
    pub async fn send_raw(&mut self, text: &str) {
        self.send(Message::text(text)).await;
    }

    /// Sends any message.
    ///
    /// # Panics
    ///
    /// If the connection does not accept it.
    pub async fn send(&mut self, message: Message) {
        within(SOON, "sending", self.ws.send(message)).await.expect("send a message");
    }

    /// Sends a command in the compact form of the official clients.
    ///
    /// # Panics
    ///
    /// If the connection does not accept it.
    pub async fn command(&mut self, action: &str, params: &str) {
        let params = Value::from(params);
        self.send_raw(&format!(r#"{{"action":"{action}","params":{params}}}"#)).await;
    }

    /// Subscribes on a silent connection. The next frame must acknowledge these items and hold
    /// nothing else.
    ///
    /// # Panics
    ///
    /// If the next frame differs.
    pub async fn subscribe(&mut self, params: &str) {
        self.command("subscribe", params).await;
        self.expect(&acks("subscribed", params)).await;
    }

    /// Takes the next frame, in which the firehose lists the channels of `*` for its subscribers.
    ///
    /// # Panics
    ///
    /// If the next frame is another.
    pub async fn expect_coverage(&mut self) {
        let text = self.next_text().await;
        assert!(text.starts_with(r#"[{"ev":"status","status":"carried","#), "{text}");
    }

    /// Unsubscribes on a silent connection. The next frame must acknowledge these items and hold
    /// nothing else.
    ///
    /// # Panics
    ///
    /// If the next frame differs.
    pub async fn unsubscribe(&mut self, params: &str) {
        self.command("unsubscribe", params).await;
        self.expect(&acks("unsubscribed", params)).await;
    }

    /// The next message or the end, without control frames.
    ///
    /// # Panics
    ///
    /// If nothing comes within the limit, or if a binary message comes.
    pub async fn next(&mut self, limit: Duration) -> Received {
        within(limit, "receiving", self.receive()).await
    }

    async fn receive(&mut self) -> Received {
        loop {
            match self.ws.next().await {
                Some(Ok(Message::Text(text))) => return Received::Text(text.as_str().to_owned()),
                Some(Ok(Message::Binary(bytes))) => panic!("a binary message: {bytes:?}"),
                Some(Ok(Message::Ping(_))) => self.pings += 1,
                Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(frame))) => {
                    // The answer is in the library's buffer. A peer that has left does not need it.
                    let _answered = self.ws.flush().await;
                    return Received::Closed(frame.map(|frame| u16::from(frame.code)));
                }
                Some(Err(Error::Io(_) | Error::ConnectionClosed))
                | Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)))
                | None => return Received::Dropped,
                Some(Err(error)) => panic!("the peer broke the WebSocket protocol: {error}"),
            }
        }
    }

    /// The next text message.
    ///
    /// # Panics
    ///
    /// If none comes in time.
    pub async fn next_text(&mut self) -> String {
        match self.next(SOON).await {
            Received::Text(text) => text,
            end => panic!("{end:?} instead of a message"),
        }
    }

    /// Takes the next message and checks that it is this one, byte for byte.
    ///
    /// # Panics
    ///
    /// If it differs.
    pub async fn expect(&mut self, text: &str) {
        assert!(self.objects.is_empty(), "objects that the test has not taken: {:?}", self.objects);
        assert_eq!(self.next_text().await, text);
    }

    /// The next frame as the bytes of its objects.
    ///
    /// # Panics
    ///
    /// If none comes in time, or if it is not an array of objects that official clients can read.
    pub async fn next_frame(&mut self) -> Vec<String> {
        objects(&self.next_text().await)
    }

    /// The bytes of the next object, in any frame.
    ///
    /// # Panics
    ///
    /// If none comes in time.
    pub async fn next_object(&mut self) -> String {
        while self.objects.is_empty() {
            self.objects = self.next_frame().await.into();
        }
        self.objects.pop_front().expect("there is an object")
    }

    /// Takes the next objects, in any frames, and checks that they are these, byte for byte.
    ///
    /// To check that nothing else comes, end with an event that the client is known to get.
    ///
    /// # Panics
    ///
    /// If they differ.
    pub async fn expect_objects<T: AsRef<str>>(&mut self, expected: &[T]) {
        for (n, expected) in expected.iter().enumerate() {
            assert_eq!(self.next_object().await, expected.as_ref(), "object {n}");
        }
    }

    /// The bytes of the next object that is not a notice about an upstream.
    ///
    /// # Panics
    ///
    /// If none comes in time.
    pub async fn next_but_notices(&mut self) -> String {
        loop {
            let object = self.next_object().await;
            if !is_notice(&object) {
                return object;
            }
        }
    }

    /// The next frame, which must hold one notice about an upstream: its status, tier and reason.
    ///
    /// # Panics
    ///
    /// If the next frame is another, or if none comes in time.
    pub async fn next_notice(&mut self) -> [String; 3] {
        assert!(self.objects.is_empty(), "objects that the test has not taken: {:?}", self.objects);
        let frame: Value = serde_json::from_str(&self.next_text().await).expect("a frame is JSON");
        assert_eq!(frame.as_array().map(Vec::len), Some(1), "{frame}");
        let (from, to) = (frame[0]["from"].as_u64(), frame[0]["to"].as_u64());
        match frame[0]["status"].as_str() {
            Some("upstream_down") => assert!(from.is_some() && to.is_none(), "{frame}"),
            Some("upstream_up") => assert!(from.is_some() && from <= to, "{frame}"),
            _ => panic!("not a notice about an upstream: {frame}"),
        }
        ["status", "tier", "reason"].map(|name| frame[0][name].as_str().unwrap_or_default().into())
    }

    /// Takes the next object and checks that it is this event. Notices about an upstream may come
    /// before it.
    ///
    /// # Panics
    ///
    /// If another object comes.
    pub async fn expect_event(&mut self, event: &str) {
        assert_eq!(self.next_but_notices().await, event);
    }

    /// Takes the next object and checks that it is this status. Notices about an upstream may come
    /// before it.
    ///
    /// # Panics
    ///
    /// If another object comes.
    pub async fn expect_status(&mut self, status: &str, message: &str) {
        let message = Value::from(message);
        let expected = format!(r#"{{"ev":"status","status":"{status}","message":{message}}}"#);
        assert_eq!(self.next_but_notices().await, expected);
    }

    /// Reads until the connection ends and returns how. Skips messages.
    ///
    /// # Panics
    ///
    /// If it does not end within the limit.
    pub async fn end(&mut self, limit: Duration) -> Received {
        let end = async {
            loop {
                match self.receive().await {
                    Received::Text(_) => {}
                    end => return end,
                }
            }
        };
        within(limit, "the end of a connection", end).await
    }

    /// The objects received but not returned yet.
    pub fn take_objects(&mut self) -> Vec<String> {
        self.objects.drain(..).collect()
    }

    /// Pings received so far.
    #[must_use]
    pub fn pings(&self) -> usize {
        self.pings
    }

    /// Sends a ping and waits for its pong. Returns the number of frames that came before the pong,
    /// and keeps their objects.
    ///
    /// # Panics
    ///
    /// If no pong with the same payload comes in time.
    pub async fn ping(&mut self, payload: &'static [u8]) -> usize {
        self.send(Message::Ping(payload.into())).await;
        let pong = async {
            let mut before = 0;
            loop {
                match self.ws.next().await {
                    Some(Ok(Message::Pong(answer))) => {
                        assert_eq!(answer, payload, "payload of a pong");
                        return before;
                    }
                    Some(Ok(Message::Text(text))) => {
                        before += 1;
                        self.objects.extend(objects(text.as_str()));
                    }
                    Some(Ok(Message::Ping(_))) => self.pings += 1,
                    other => panic!("{other:?} instead of a pong"),
                }
            }
        };
        within(SOON, "a pong", pong).await
    }

    /// The underlying connection.
    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        self.ws.into_inner()
    }

    /// Closes as official clients do and waits for the answer.
    ///
    /// # Panics
    ///
    /// If the close is not answered in time.
    pub async fn close(mut self) {
        within(SOON, "closing", self.ws.close(None)).await.expect("close");
        self.end(SOON).await;
    }
}

/// Whether an object is a notice about an upstream.
fn is_notice(object: &str) -> bool {
    let value: Value = serde_json::from_str(object).expect("an object parses");
    let notices = ["gap", "upstream_down", "upstream_up"];
    value["ev"] == "status" && notices.iter().any(|notice| value["status"] == *notice)
}

/// The command of a client that comes back to this position.
#[must_use]
pub fn coming_back(params: &str, position: &str) -> String {
    format!(r#"{{"action":"subscribe","params":"{params}","from":"{position}"}}"#)
}

/// The frame that acknowledges these items: one compact object per item, in their order.
#[must_use]
pub fn acks(verb: &str, params: &str) -> String {
    let items = params.split(',').map(|item| {
        let message = Value::from(format!("{verb} to: {item}"));
        format!(r#"{{"ev":"status","status":"success","message":{message}}}"#)
    });
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

/// Splits a frame into the bytes of its objects with a real JSON parser.
///
/// # Panics
///
/// If it is not an array of objects, if an object lacks `ev`, or if a status lacks `status` or
/// `message`: each of these crashes an official client.
#[must_use]
pub fn objects(frame: &str) -> Vec<String> {
    let raw: Vec<&RawValue> = serde_json::from_str(frame)
        .unwrap_or_else(|error| panic!("a frame that is not a JSON array ({error}): {frame}"));
    assert!(frame.len() < 900_000, "a message of {} bytes", frame.len());
    raw.into_iter().map(|raw| checked(raw.get()).to_owned()).collect()
}

/// The members that official clients read of every object.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    ev: Cow<'a, str>,
    status: Option<Value>,
    message: Option<Value>,
}

fn checked(object: &str) -> &str {
    let head: Head<'_> = serde_json::from_str(object).unwrap_or_else(|error| {
        panic!("an object that official clients cannot read ({error}): {object}")
    });
    if head.ev == "status" {
        let texts = [&head.status, &head.message];
        let complete = texts.iter().all(|text| text.as_ref().is_some_and(Value::is_string));
        assert!(complete, "a status that official clients cannot read: {object}");
    }
    object
}
