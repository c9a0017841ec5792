//! A look into a market's stream with an independent client, which knows the format of messages
//! from its description alone.

use std::time::Duration;

use async_nats::{
    Client, HeaderMap,
    jetstream::{
        self,
        consumer::{AckPolicy, pull},
    },
};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::wait::{SOON, within};

/// The stream of the stock market.
pub const STREAM: &str = "POLYGON_STOCKS";
/// The subject of its frames.
pub const DATA: &str = "polygon.stocks.data";
/// The subject of its state.
pub const STATE: &str = "polygon.stocks.state";
/// The header that says where the feed stands before a message.
pub const HEAD: &str = "P";
/// The header that chains a message to its predecessor.
pub const EXPECTED: &str = "Nats-Expected-Last-Sequence";

/// A message as it is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its payload.
    pub payload: Bytes,
}

/// What the header `P` says: the position before the message, and what came before it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Head {
    /// The run of the feed.
    pub epoch: u64,
    /// Frames of events before it.
    pub seq: u64,
    /// Events before it.
    pub events: u64,
    /// Events that were left out before it.
    pub lost: u64,
    /// Milliseconds since 1970.
    pub time: u64,
}

impl Stored {
    /// What its header `P` says.
    ///
    /// # Panics
    ///
    /// If it has none, or another form.
    #[must_use]
    pub fn head(&self) -> Head {
        let text = self.headers.get(HEAD).expect("a message has a head").as_str();
        let mut numbers = text.split([' ', '-']).map(|number| number.parse().expect("a number"));
        let mut next = || numbers.next().expect("a head has five numbers");
        Head { epoch: next(), seq: next(), events: next(), lost: next(), time: next() }
    }

    /// The texts of its frames.
    ///
    /// # Panics
    ///
    /// If the payload is no run of whole, unmasked text frames.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        texts(&self.payload)
    }

    /// Whether it is a state message.
    #[must_use]
    pub fn is_state(&self) -> bool {
        self.subject.ends_with(".state")
    }
}

/// Every message of a stream, from the oldest to the newest at the time of the call.
///
/// # Panics
///
/// If there is no such stream, or it cannot be read in time.
pub async fn messages(client: &Client, stream: &str) -> Vec<Stored> {
    within(SOON, "a stream is read", async {
        let stream = jetstream::new(client.clone()).get_stream(stream).await.expect("a stream");
        let last = stream.cached_info().state.last_sequence;
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            inactive_threshold: SOON,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.expect("make a consumer");
        let mut found: Vec<Stored> = Vec::new();
        // Retention may have removed everything up to the last one.
        while stream.cached_info().state.messages > 0
            && found.last().is_none_or(|newest| newest.sequence < last)
        {
            let batch = consumer.fetch().max_messages(1_000).expires(Duration::from_secs(1));
            let mut batch = batch.messages().await.expect("read a stream");
            while let Some(message) = batch.next().await {
                let message = message.expect("read a message");
                let sequence = message.info().expect("a message of a stream").stream_sequence;
                found.push(Stored {
                    sequence,
                    subject: message.subject.to_string(),
                    headers: message.headers.clone().unwrap_or_default(),
                    payload: message.payload.clone(),
                });
            }
        }
        found
    })
    .await
}

/// Checks that each message of an epoch begins exactly where the one before it ends. Where a later
/// epoch has begun, what follows of an earlier one does not count.
///
/// # Errors
///
/// Says which message does not.
pub fn check_chain(messages: &[Stored]) -> Result<(), String> {
    let mut last: Option<(u64, Head)> = None;
    for message in messages {
        let head = message.head();
        if let Some((sequence, end)) = last {
            if head.epoch < end.epoch {
                continue;
            }
            let fits = (head.seq, head.events, head.lost) == (end.seq, end.events, end.lost);
            if head.epoch == end.epoch && !fits {
                let texts = message.texts();
                return Err(format!(
                    "message {} ({}) begins at {head:?}, message {sequence} ended at {end:?}: \
                     {texts:?}",
                    message.sequence, message.subject
                ));
            }
        }
        let mut end = head;
        for text in message.texts().iter().filter(|_| !message.is_state()) {
            let objects: Vec<serde_json::Value> =
                serde_json::from_str(text).map_err(|error| format!("{error}: {text}"))?;
            // What was lost counts from the notice on that tells it.
            let of_events = objects.iter().filter(|object| object["ev"] != "status").count() as u64;
            end.seq += u64::from(of_events > 0);
            end.events += of_events;
        }
        last = Some((message.sequence, end));
    }
    Ok(())
}

/// The texts of all frames of data, in order, each with the epoch of its message. State is left out.
#[must_use]
pub fn data(messages: &[Stored]) -> Vec<(u64, String)> {
    let data = messages.iter().filter(|message| !message.is_state());
    let texts = data.flat_map(|message| {
        let epoch = message.head().epoch;
        message.texts().into_iter().map(move |text| (epoch, text))
    });
    texts.collect()
}

/// Stores a message, behind this one if it is given, and returns its sequence.
///
/// # Errors
///
/// The stream refuses it, with the reason.
pub async fn publish(
    client: &Client,
    subject: &str,
    head: Option<&str>,
    after: Option<u64>,
    payload: impl Into<Bytes>,
) -> Result<u64, String> {
    let mut headers = HeaderMap::new();
    if let Some(head) = head {
        headers.insert(HEAD, head);
    }
    if let Some(after) = after {
        headers.insert(EXPECTED, after.to_string());
    }
    let context = jetstream::new(client.clone());
    let sent = context.publish_with_headers(subject.to_owned(), headers, payload.into()).await;
    match sent.map_err(|error| error.to_string())?.await {
        Ok(stored) => Ok(stored.sequence),
        Err(error) => Err(error.to_string()),
    }
}

/// An unmasked WebSocket text frame.
///
/// # Panics
///
/// If the text is longer than 4 GiB.
#[must_use]
pub fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        length @ ..126 => frame.push(u8::try_from(length).expect("less than 126")),
        length @ ..=0xffff => {
            frame.push(126);
            frame.extend(u16::try_from(length).expect("fits").to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend(u64::try_from(length).expect("fits").to_be_bytes());
        }
    }
    frame.extend(text.as_bytes());
    frame
}

/// The texts of whole, unmasked text frames that follow each other.
///
/// # Panics
///
/// If the bytes are something else.
#[must_use]
pub fn texts(mut bytes: &[u8]) -> Vec<String> {
    let mut texts = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[0], 0x81, "a final text frame");
        let wide = |length: usize| {
            let digits = bytes[2..2 + length].iter();
            digits.fold(0_usize, |sum, digit| sum << 8 | usize::from(*digit))
        };
        let (head, length) = match bytes[1] {
            length @ ..126 => (2, usize::from(length)),
            126 => (4, wide(2)),
            127 => (10, wide(8)),
            _ => panic!("a masked frame"),
        };
        let text = bytes[head..head + length].to_vec();
        texts.push(String::from_utf8(text).expect("a text frame holds UTF-8"));
        bytes = &bytes[head + length..];
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::NatsServer;

    #[test]
    fn frames_are_read_as_they_are_written() {
        let long = "x".repeat(70_000);
        let written = ["", "a", &long[..200], &long];
        let bytes: Vec<u8> = written.iter().flat_map(|text| frame(text)).collect();
        assert_eq!(texts(&bytes), written);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_keeps_its_stream_until_it_is_wiped() {
        let mut server = NatsServer::start().await;
        let client = server.client().await;
        let config = jetstream::stream::Config {
            name: STREAM.to_owned(),
            subjects: vec![DATA.to_owned(), STATE.to_owned()],
            ..Default::default()
        };
        jetstream::new(client.clone()).create_stream(config).await.unwrap();
        let first = publish(&client, DATA, Some("7-0 0 0 5"), None, frame("one")).await;
        assert_eq!(first, Ok(1));
        publish(&client, STATE, Some("7-1 1 0 5"), Some(9), frame("no")).await.unwrap_err();
        assert_eq!(publish(&client, STATE, None, Some(1), frame("state")).await, Ok(2));
        server.restart().await;
        let client = server.client().await;
        let stored = messages(&client, STREAM).await;
        assert_eq!(stored.len(), 2);
        assert_eq!(stored[0].head(), Head { epoch: 7, seq: 0, events: 0, lost: 0, time: 5 });
        assert_eq!(data(&stored), [(7, "one".to_owned())]);
        assert!(stored[1].is_state());
        server.kill();
        server.wipe();
        server.restart().await;
        let context = jetstream::new(server.client().await);
        context.get_stream(STREAM).await.unwrap_err();
    }
}
