//! The writer's connection to NATS: what it publishes, and the replies.
//!
//! The connection comes back by itself, and then sends what it still held. That does no harm: see
//! [`window`](super::window).

use std::{future, time::Duration};

use async_nats::{
    Client, Event, HeaderMap, StatusCode, Subject as NatsSubject, Subscriber,
    connection::State as ConnectionState,
    header::NATS_EXPECTED_LAST_SEQUENCE,
    jetstream::{ErrorCode, publish::PublishAck, response::Response},
};
use bytes::Bytes;
use futures_util::StreamExt;
use proxy_common::{
    nats::{HEAD, HOLDER, Head, connect},
    protocol::Market,
};
use tokio::{sync::watch, time::timeout};

use super::{
    stream::{MarketStream, NO_ANSWER, connect_failed, refused},
    window::Subject,
};
use crate::config::FeedConfig;

/// How long NATS may take to answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

/// The connection.
pub(super) struct Connection {
    client: Client,
    pub(super) stream: MarketStream,
    servers: String,
    holder: String,
    data: NatsSubject,
    state: NatsSubject,
    inbox: String,
    pass: u64,
    pub(super) replies: Replies,
    /// What the client reported.
    pub(super) events: Events,
}

/// The replies of one pass.
pub(super) struct Replies {
    subscriber: Subscriber,
    subject: NatsSubject,
}

/// What the client reports.
pub(super) struct Events(watch::Receiver<Reported>);

/// What the client has reported.
#[derive(Debug, Default, Clone)]
struct Reported {
    /// The last error.
    error: Option<String>,
}

/// A reply to a message.
#[derive(Debug)]
pub(super) enum Reply {
    /// The message is stored at this place.
    Stored(u64),
    /// Another message stands at its place.
    Moved,
    /// It is not stored, for this reason.
    Refused(String),
}

/// A message to publish.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) subject: Subject,
    pub(super) head: &'a Head,
    pub(super) payload: &'a Bytes,
    /// The sequence before its place. `None`: any place.
    pub(super) expected: Option<u64>,
    /// Whether NATS is to reply.
    pub(super) asks: bool,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Why not, in one line.
    pub(super) async fn open(
        config: &FeedConfig,
        market: Market,
        holder: &str,
    ) -> Result<Self, String> {
        let (reported, events) = watch::channel(Reported::default());
        let on_event = move |event: Event| {
            reported.send_modify(|reported| match event {
                Event::ServerError(error) => reported.error = Some(error.to_string()),
                Event::ClientError(error) => reported.error = Some(error.to_string()),
                _ => {}
            });
        };
        let servers = config.nats.shown();
        let name = format!("firehose-proxy, feed of {market}, {holder}");
        let client = connect(&config.nats, &name, on_event).await;
        let client = client.map_err(|error| connect_failed(&servers, &error))?;
        let names = config.nats.names(market);
        let inbox = client.new_inbox();
        let subscriber = client.subscribe(format!("{inbox}.*")).await;
        let subscriber = subscriber.map_err(|error| error.to_string())?;
        Ok(Self {
            stream: MarketStream::new(&client, &names, config),
            client,
            servers,
            holder: holder.to_owned(),
            data: names.data().into(),
            state: names.state().into(),
            replies: Replies { subscriber, subject: format!("{inbox}.0").into() },
            inbox,
            pass: 0,
            events: Events(events),
        })
    }

    /// Forgets whatever came before: later replies to it do not count.
    ///
    /// # Errors
    ///
    /// There is no connection.
    pub(super) fn begin_pass(&mut self) -> Result<(), String> {
        self.pass += 1;
        self.replies.subject = format!("{}.{}", self.inbox, self.pass).into();
        let reported = self.events.0.borrow_and_update().clone();
        if self.client.connection_state() != ConnectionState::Connected {
            let servers = &self.servers;
            let why = reported.error.map(|error| format!(": {error}")).unwrap_or_default();
            return Err(format!("no connection to {servers}{why}"));
        }
        Ok(())
    }

    /// The same reason, or a better one: a server says on its own that a right is missing.
    pub(super) fn explain(&self, reason: String) -> String {
        let reported = self.events.0.borrow();
        match &reported.error {
            Some(error) if reason == NO_ANSWER && error.contains("ermissions") => {
                format!("our user has not the rights of a firehose: {error}")
            }
            _ => reason,
        }
    }

    /// Publishes a message.
    ///
    /// # Errors
    ///
    /// The client does not take it in time, or has ended.
    pub(super) async fn publish(&self, message: Outgoing<'_>) -> Result<(), String> {
        let Outgoing { subject, head, payload, expected, asks } = message;
        let mut headers = HeaderMap::new();
        headers.insert(HEAD, head.to_string());
        if let Some(expected) = expected {
            headers.insert(NATS_EXPECTED_LAST_SEQUENCE, expected.to_string());
        }
        let subject = match subject {
            Subject::Data => self.data.clone(),
            Subject::State => {
                headers.insert(HOLDER, self.holder.as_str());
                self.state.clone()
            }
        };
        let payload = payload.clone();
        let publishing = async {
            if asks {
                let reply = self.replies.subject.clone();
                let client = &self.client;
                client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            } else {
                self.client.publish_with_headers(subject, headers, payload).await
            }
        };
        match timeout(TIMEOUT, publishing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(NO_ANSWER.to_owned()),
        }
    }
}

impl Events {
    /// Waits until it reports something. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The client ends only with the writer.
            future::pending::<()>().await;
        }
    }
}

impl Replies {
    /// The next reply of this pass. Cancel-safe.
    pub(super) async fn next(&mut self) -> Reply {
        loop {
            let Some(message) = self.subscriber.next().await else {
                // The client ends only with the writer.
                return future::pending().await;
            };
            if message.subject != self.subject {
                continue;
            }
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                return Reply::Refused("the stream is gone".to_owned());
            }
            return match serde_json::from_slice(&message.payload) {
                Ok(Response::<PublishAck>::Ok(ack)) => Reply::Stored(ack.sequence),
                Ok(Response::Err { error }) => match error.error_code() {
                    ErrorCode::STREAM_WRONG_LAST_SEQUENCE => Reply::Moved,
                    _ => Reply::Refused(refused(&error)),
                },
                Err(_) => Reply::Refused("an answer that cannot be read".to_owned()),
            };
        }
    }
}
