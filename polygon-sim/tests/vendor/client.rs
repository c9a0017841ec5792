//! A running simulator and a plain WebSocket client. Every wait has a deadline.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use polygon_sim::{SimConfig, SimHandle, Simulator};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message},
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) const GREETING: &str =
    r#"[{"ev":"status","status":"connected","message":"Connected Successfully"}]"#;
pub(crate) const AUTHENTICATED: &str =
    r#"[{"ev":"status","status":"auth_success","message":"authenticated"}]"#;
pub(crate) const EVICTED: &str = concat!(
    r#"[{"ev":"status","status":"max_connections","message":"Maximum number of websocket "#,
    "connections exceeded. You have reached the connection limit for your account. Please contact ",
    r#"support at https://polygon.io/contact to increase your limit."}]"#
);

/// Waits for a future until the deadline.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

/// A simulator that serves on a free port until it is dropped.
pub(crate) struct Sim {
    /// Of the first market.
    pub(crate) handle: SimHandle,
    pub(crate) handles: Vec<SimHandle>,
    pub(crate) addr: SocketAddr,
    /// Of the first market.
    pub(crate) url: String,
    _task: JoinSet<()>,
}

impl Sim {
    pub(crate) async fn start(config: SimConfig) -> Self {
        let simulator = Simulator::bind("127.0.0.1:0", config).await.unwrap();
        let (handle, handles) = (simulator.handle(), simulator.handles());
        let (addr, url) = (simulator.addr(), simulator.url());
        let mut task = JoinSet::new();
        task.spawn(async move { simulator.serve(CancellationToken::new()).await.unwrap() });
        Self { handle, handles, addr, url, _task: task }
    }

    /// Starts one with the default settings.
    pub(crate) async fn plain() -> Self {
        Self::start(SimConfig::default()).await
    }

    pub(crate) async fn connect(&self) -> Client {
        Client::open(&self.url).await.unwrap()
    }

    /// A client that is authenticated and subscribed to these channels.
    pub(crate) async fn subscriber(&self, channels: &str) -> Client {
        let mut client = self.connect().await;
        client.log_in().await;
        client.subscribe(channels).await;
        client
    }

    /// Waits until the condition on the handle holds.
    pub(crate) async fn until(&self, what: &str, mut holds: impl FnMut(&SimHandle) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(&self.handle) {
            assert!(Instant::now() < deadline, "timed out: {what}: {:?}", self.handle.stats());
            sleep(Duration::from_millis(2)).await;
        }
    }
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By a close frame with this code.
    Closed(u16),
    /// Without a close frame.
    Dropped,
}

#[derive(Debug)]
pub(crate) struct Client(pub(crate) WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    pub(crate) async fn open(url: &str) -> Result<Self, Error> {
        let (socket, _) = within("connecting", connect_async(url)).await?;
        Ok(Self(socket))
    }

    pub(crate) async fn send(&mut self, text: &str) {
        within("sending", self.0.send(Message::text(text))).await.unwrap();
    }

    /// The next message of any kind, or how the connection ended.
    pub(crate) async fn message(&mut self) -> Result<Message, Ended> {
        match within("a message", self.0.next()).await {
            Some(Ok(Message::Close(Some(frame)))) => Err(Ended::Closed(frame.code.into())),
            Some(Ok(Message::Close(None))) => Err(Ended::Closed(1005)),
            Some(Ok(message)) => Ok(message),
            Some(Err(_)) | None => Err(Ended::Dropped),
        }
    }

    /// The next text frame.
    #[track_caller]
    pub(crate) fn text(&mut self) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        async move {
            match self.message().await {
                Ok(Message::Text(text)) => text.as_str().to_owned(),
                other => panic!("expected a text frame at {caller}, got {other:?}"),
            }
        }
    }

    /// Reads and drops messages until the connection ends, and answers a close frame.
    pub(crate) async fn end(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.message().await {
                let _gone = within("the answer to the close", self.0.next()).await;
                return ended;
            }
        }
    }

    /// Asserts that nothing is on its way: the answer to an unknown action comes next.
    pub(crate) async fn is_quiet(&mut self) {
        self.send(r#"{"action":"nothing","params":""}"#).await;
        assert_eq!(self.text().await, status("error", "invalid request"));
    }

    pub(crate) async fn log_in(&mut self) {
        assert_eq!(self.text().await, GREETING);
        self.send(r#"{"action":"auth","params":"sim-key"}"#).await;
        assert_eq!(self.text().await, AUTHENTICATED);
    }

    /// Subscribes and reads the acknowledgement.
    pub(crate) async fn subscribe(&mut self, channels: &str) {
        self.send(&format!(r#"{{"action":"subscribe","params":"{channels}"}}"#)).await;
        let acks = self.text().await;
        assert!(acks.contains("subscribed to: "), "{acks}");
    }
}

pub(crate) fn status(status: &str, message: &str) -> String {
    format!(r#"[{{"ev":"status","status":"{status}","message":"{message}"}}]"#)
}

pub(crate) fn events(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
