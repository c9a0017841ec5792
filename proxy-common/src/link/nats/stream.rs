//! The requests to NATS about a market's stream. Each has the deadline of the connection.

use std::time::{Duration, SystemTime};

use async_nats::{
    Client, Message as Received, Subscriber,
    jetstream::{
        self, ErrorCode,
        consumer::{AckPolicy, DeliverPolicy, push},
        response::Response,
        stream::{RawMessageErrorKind, Stream as Handle},
    },
};
use serde::Deserialize;

use super::follow::Message;
use crate::nats::{HEAD, Head, Names};

/// How often the server says that it has nothing to send.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long a consumer lives that nobody listens to.
const INACTIVE: Duration = Duration::from_secs(30);

/// The stream of a market.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    pub(super) client: Client,
    context: jetstream::Context,
    handle: Handle<()>,
    name: String,
    data: String,
    state: String,
}

/// What the server says about the stream.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    pub(super) state: State,
    /// The server's time.
    #[serde(default)]
    ts: String,
}

/// The extent of the stream.
#[derive(Debug, Deserialize)]
pub(super) struct State {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    #[serde(default)]
    last_ts: String,
}

impl Info {
    /// How old the last message is, by the server's clock.
    pub(super) fn age(&self) -> Option<Duration> {
        let time = |text: &str| -> Option<SystemTime> { humantime::parse_rfc3339(text).ok() };
        let (now, last) = (time(&self.ts)?, time(&self.state.last_ts)?);
        Some(now.duration_since(last).unwrap_or_default())
    }
}

/// A consumer, and what it delivers.
pub(super) struct Reading {
    pub(super) messages: Subscriber,
    pub(super) consumer: String,
}

/// Why a request failed, for people.
pub(super) type Failure = String;

impl Stream {
    /// The stream, if there is one.
    pub(super) async fn find(client: Client, names: &Names) -> Result<Self, Failure> {
        let context = jetstream::new(client.clone());
        let name = names.stream();
        let handle = context.get_stream_no_info(&name).await.map_err(|error| error.to_string())?;
        let (data, state) = (names.data(), names.state());
        let stream = Self { client, context, handle, name, data, state };
        stream.info().await?;
        Ok(stream)
    }

    /// What the server says about it.
    pub(super) async fn info(&self) -> Result<Info, Failure> {
        let name = &self.name;
        let answer = self.context.request(format!("STREAM.INFO.{name}"), &()).await;
        match answer.map_err(|error| format!("no answer about the stream {name}: {error}"))? {
            Response::Ok(info) => Ok(info),
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Err(format!("NATS has no stream {name}: a firehose with NATS_URL makes it"))
            }
            Response::Err { error } => Err(format!("the stream {name}: {error}")),
        }
    }

    /// The newest state.
    pub(super) async fn last_state(&self) -> Result<Option<Message>, Failure> {
        let request = self.handle.raw_message_builder().last_by_subject(&self.state);
        self.message(request.send().await)
    }

    /// The message of this number, or the first one behind.
    pub(super) async fn at_or_after(&self, seq: u64) -> Result<Option<Message>, Failure> {
        let request = self.handle.raw_message_builder().sequence(seq).next_by_subject(">");
        self.message(request.send().await)
    }

    fn message(
        &self,
        answer: Result<
            jetstream::message::StreamMessage,
            async_nats::error::Error<RawMessageErrorKind>,
        >,
    ) -> Result<Option<Message>, Failure> {
        match answer {
            Ok(found) => {
                let head = found.headers.get(HEAD).and_then(|head| head.as_str().parse().ok());
                let Some(head) = head else {
                    return Err(format!("{} holds a message of another program", self.name));
                };
                let is_state = found.subject.as_str() == self.state;
                Ok(Some(Message { seq: found.sequence, head, is_state, payload: found.payload }))
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(format!("no message of the stream {}: {error}", self.name)),
        }
    }

    /// A message that a consumer delivered. `None` if it is of no firehose.
    pub(super) fn delivered(&self, seq: u64, received: Received) -> Option<Message> {
        let head: Head = received.headers.as_ref()?.get(HEAD)?.as_str().parse().ok()?;
        let subject = received.subject.as_str();
        let is_state = subject == self.state;
        (is_state || subject == self.data).then_some(Message {
            seq,
            head,
            is_state,
            payload: received.payload,
        })
    }

    /// Makes a consumer that begins with this message.
    pub(super) async fn read(&self, next: u64) -> Result<Reading, Failure> {
        let inbox = self.client.new_inbox();
        let failed = |error: &dyn std::fmt::Display| format!("no consumer: {error}");
        let messages = self.client.subscribe(inbox.clone()).await.map_err(|e| failed(&e))?;
        let config = push::Config {
            deliver_subject: inbox,
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: next.max(1) },
            ack_policy: AckPolicy::None,
            max_deliver: 1,
            flow_control: true,
            idle_heartbeat: HEARTBEAT,
            num_replicas: 1,
            memory_storage: true,
            inactive_threshold: INACTIVE,
            ..push::Config::default()
        };
        let consumer = self.handle.create_consumer(config).await.map_err(|e| failed(&e))?;
        Ok(Reading { messages, consumer: consumer.cached_info().name.clone() })
    }

    /// Removes a consumer. Its server would remove it by itself later.
    pub(super) async fn end(&self, consumer: &str) {
        let _ = self.handle.delete_consumer(consumer).await;
    }
}

/// What the reply subject of a delivered message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivery {
    /// The message's number in the stream.
    pub(super) seq: u64,
    /// Its number at the consumer.
    pub(super) of_consumer: u64,
    /// When it was stored, in milliseconds since 1970.
    pub(super) stored: u64,
    /// How many messages of the stream follow.
    pub(super) pending: u64,
}

impl Delivery {
    /// Reads `$JS.ACK.STREAM.CONSUMER.DELIVERED.SEQ.OF_CONSUMER.TIME.PENDING`. Later servers put
    /// domain and account before the stream, and more behind.
    pub(super) fn read(reply: &str) -> Option<Self> {
        let fields = reply.strip_prefix("$JS.ACK.")?;
        let skipped = if fields.matches('.').count() > 6 { 5 } else { 3 };
        let mut numbers = fields.split('.').skip(skipped).map_while(|field| field.parse().ok());
        let (seq, of_consumer) = (numbers.next()?, numbers.next()?);
        let (stored, pending): (u64, u64) = (numbers.next()?, numbers.next()?);
        Some(Self { seq, of_consumer, stored: stored / 1_000_000, pending })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_read_out_of_either_reply() {
        let expected = Delivery { seq: 7, of_consumer: 3, stored: 1_764_000_000_123, pending: 5 };
        for reply in [
            "$JS.ACK.POLYGON_STOCKS.abc.1.7.3.1764000000123456789.5",
            "$JS.ACK._.hash.POLYGON_STOCKS.abc.1.7.3.1764000000123456789.5.token",
        ] {
            assert_eq!(Delivery::read(reply), Some(expected), "{reply}");
        }
        for reply in ["", "$JS.ACK.a.b.1.7", "$JS.FC.a.b.c", "$JS.ACK.a.b.1.x.3.4.5"] {
            assert_eq!(Delivery::read(reply), None, "{reply}");
        }
    }
}
