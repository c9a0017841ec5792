//! A client that reconnects after every loss and keeps what it saw, connection by connection.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use crate::{
    oracle::Step,
    ws_client::{AUTHENTICATED, GREETING, acks, objects},
};

/// How long a step of the login may take on a working connection.
const STEP: Duration = Duration::from_secs(5);
/// The pause before the next try.
const PAUSE: Duration = Duration::from_millis(50);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What a watcher subscribes to, and until when.
#[derive(Debug, Clone)]
pub struct Watcher {
    /// The address to connect to.
    pub addr: SocketAddr,
    /// The key to present.
    pub key: &'static str,
    /// The channels to subscribe to.
    pub channels: String,
    /// How many events have been given to the simulator.
    pub sent: Arc<AtomicUsize>,
    /// The text with which a marker begins. Its number follows and is 0 where the watch ends.
    pub marker: &'static str,
    /// The number of the last marker that came.
    pub heard: Arc<AtomicUsize>,
    /// The watcher gives up a connection that is silent for this long, even without pings.
    pub silence_limit: Duration,
    /// Counts the connections of all watchers that are subscribed now.
    pub live: Arc<AtomicUsize>,
}

/// What a watcher saw on one connection.
#[derive(Debug, Default)]
pub struct Watched {
    /// From the subscription to the end of the connection.
    pub steps: Vec<Step>,
    /// Statuses of notices, in order.
    pub notices: Vec<String>,
    /// The code with which the proxy closed, if any.
    pub closed: Option<u16>,
    /// How it ended, as text for people.
    pub end: String,
}

impl Watched {
    /// Whether the subscription was acknowledged.
    #[must_use]
    pub fn is_subscribed(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Changed { .. }))
    }

    fn note(&mut self, notice: &str, down: &mut BTreeSet<String>) {
        let notice: Value = serde_json::from_str(notice).expect("a notice is JSON");
        let text = |name: &str| notice[name].as_str().unwrap_or_default().to_owned();
        let status = text("status");
        match status.as_str() {
            "upstream_down" => {
                down.insert(text("tier"));
            }
            // After the filtered proxy's notice, an outage of the firehose that still lasts is
            // reported again.
            "upstream_up" if text("tier") == "filtered" => down.clear(),
            "upstream_up" => {
                down.remove(&text("tier"));
            }
            _ => {}
        }
        if ["upstream_down", "upstream_up", "gap"].contains(&status.as_str()) {
            self.steps.push(Step::Gap);
        }
        self.notices.push(status);
    }

    /// How many notices of this status came.
    #[must_use]
    pub fn notice_count(&self, status: &str) -> usize {
        self.notices.iter().filter(|notice| *notice == status).count()
    }
}

impl Watcher {
    /// Watches until the last event comes. It came on the last connection of the result.
    pub async fn watch(self) -> Vec<Watched> {
        let mut all = Vec::new();
        loop {
            if let Some(socket) = self.log_in().await {
                let mut watched = Watched::default();
                let is_over = self.follow(socket, &mut watched).await;
                if watched.is_subscribed() {
                    self.live.fetch_sub(1, SeqCst);
                }
                all.push(watched);
                if is_over {
                    return all;
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Connects, logs in and requests the channels. `None` if a step fails.
    async fn log_in(&self) -> Option<Socket> {
        let request = format!("ws://{}/", self.addr);
        let (mut socket, _) = timeout(STEP, connect_async(request)).await.ok()?.ok()?;
        expect(&mut socket, GREETING).await?;
        let auth = format!(r#"{{"action":"auth","params":"{}"}}"#, self.key);
        timeout(STEP, socket.send(Message::text(auth))).await.ok()?.ok()?;
        expect(&mut socket, AUTHENTICATED).await?;
        let subscribe = format!(r#"{{"action":"subscribe","params":"{}"}}"#, self.channels);
        timeout(STEP, socket.send(Message::text(subscribe))).await.ok()?.ok()?;
        Some(socket)
    }

    /// Reads until the connection ends or the last event comes. Returns whether the last event
    /// came.
    async fn follow(&self, mut socket: Socket, watched: &mut Watched) -> bool {
        let ack = acks("subscribed", &self.channels);
        // Tiers whose upstream is down. Events may be missing until it is up again.
        let mut down = BTreeSet::new();
        loop {
            let message = match timeout(self.silence_limit, socket.next()).await {
                Ok(Some(Ok(message))) => message,
                end => {
                    watched.end = format!("{end:?}");
                    return false;
                }
            };
            match message {
                Message::Text(text) if text.as_str() == ack => {
                    let added = self.channels.split(',').map(str::to_owned).collect();
                    let sent_before = self.sent.load(SeqCst);
                    watched.steps.push(Step::Changed { added, removed: Vec::new(), sent_before });
                    self.live.fetch_add(1, SeqCst);
                }
                Message::Text(text) => {
                    for object in objects(text.as_str()) {
                        if object.starts_with(r#"{"ev":"status","#) {
                            watched.note(&object, &mut down);
                        } else {
                            if !down.is_empty() {
                                watched.steps.push(Step::Gap);
                            }
                            let marker = object.strip_prefix(self.marker);
                            let number = marker
                                .and_then(|rest| rest.trim_end_matches([' ', '}']).parse().ok());
                            watched.steps.push(Step::Event(object));
                            match number {
                                Some(0) => return true,
                                Some(number) => self.heard.store(number, SeqCst),
                                None => {}
                            }
                        }
                    }
                }
                Message::Close(frame) => watched.closed = frame.map(|frame| frame.code.into()),
                Message::Ping(_) => {
                    // The library has the pong ready. A connection that does not take it will end.
                    let _ = timeout(STEP, socket.flush()).await;
                }
                Message::Binary(bytes) => panic!("a binary message: {bytes:?}"),
                Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

/// Takes the next message and checks that it is this one. `None` if none comes.
async fn expect(socket: &mut Socket, text: &str) -> Option<()> {
    loop {
        match timeout(STEP, socket.next()).await.ok()??.ok()? {
            Message::Text(came) => {
                assert_eq!(came.as_str(), text);
                return Some(());
            }
            Message::Close(_) => return None,
            _ => {}
        }
    }
}
