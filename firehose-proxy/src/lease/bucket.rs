//! The bucket of leases in NATS: one entry for each market, read from the leader and written with
//! compare-and-set.

use std::{fmt::Display, time::Duration};

use async_nats::{
    Client, HeaderMap, StatusCode,
    connection::State,
    header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
    jetstream::{
        self, Context,
        context::GetStreamErrorKind,
        stream::{Config, DiscardPolicy, LastRawMessageErrorKind, StorageType},
    },
};
use proxy_common::nats::{HEAD, Head, Names};
use serde_json::Value as Json;
use tokio::time::timeout;

use super::{
    protocol::{Entry, Written},
    value::Value,
};

/// How long NATS may take to answer. As long as the time between renewals: a later answer is of no
/// use.
const TIMEOUT: Duration = Duration::from_millis(500);
/// How long it may take to make a bucket.
const MAKING_TIMEOUT: Duration = Duration::from_secs(2);

/// The numbers of errors by which a server refuses a write behind another one.
const WRONG_SEQUENCE: [u64; 2] = [10_071, 10_164];

/// The entry of one market's lease.
#[derive(Debug, Clone)]
pub(super) struct LeaseEntry {
    client: Client,
    context: Context,
    names: Names,
    subject: String,
    stream: String,
    replicas: usize,
}

impl LeaseEntry {
    pub(super) fn new(client: &Client, names: Names, replicas: usize) -> Self {
        let bucket = names.lease_bucket();
        Self {
            client: client.clone(),
            context: jetstream::new(client.clone()),
            subject: format!("$KV.{bucket}.{}", names.market().name()),
            stream: format!("KV_{bucket}"),
            names,
            replicas,
        }
    }

    /// Makes the bucket if it is missing. One that is there stays as it is.
    ///
    /// # Errors
    ///
    /// Why that is not possible, in one line. Or the bucket forgets its entries.
    pub(super) async fn make(&self) -> Result<(), String> {
        self.connected()?;
        let making = async {
            let found = self.context.get_stream(&self.stream).await;
            let config = match found {
                Ok(stream) => stream.cached_info().config.clone(),
                Err(error) if is_missing(&error) => {
                    let config = Config {
                        name: self.stream.clone(),
                        subjects: vec![format!("$KV.{}.>", self.names.lease_bucket())],
                        description: Some("which firehose may dial the vendor".to_owned()),
                        max_messages_per_subject: 1,
                        discard: DiscardPolicy::New,
                        storage: StorageType::File,
                        num_replicas: self.replicas,
                        allow_rollup: true,
                        deny_delete: true,
                        allow_direct: true,
                        ..Config::default()
                    };
                    let made = self.context.create_stream(config).await;
                    made.map_err(|error| self.explain(error))?.cached_info().config.clone()
                }
                Err(error) => return Err(self.explain(error)),
            };
            match config.max_age {
                Duration::ZERO => Ok(()),
                age => Err(format!(
                    "the bucket {} forgets entries after {}: remove it, and a firehose makes it \
                     anew",
                    self.names.lease_bucket(),
                    humantime::format_duration(age)
                )),
            }
        };
        timeout(MAKING_TIMEOUT, making).await.unwrap_or_else(|_| Err(no_answer()))
    }

    /// Reads the entry from the stream's leader.
    ///
    /// # Errors
    ///
    /// Why that failed, in one line.
    pub(super) async fn read(&self) -> Result<Entry, String> {
        self.connected()?;
        let reading = async {
            let stream = self.context.get_stream_no_info(&self.stream).await;
            let stream = stream.map_err(|error| self.explain(error))?;
            match stream.get_last_raw_message_by_subject(&self.subject).await {
                Ok(message) => {
                    let text = str::from_utf8(&message.payload).unwrap_or_default();
                    Ok(Entry { revision: message.sequence, value: text.parse().ok() })
                }
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    Ok(Entry { revision: 0, value: None })
                }
                Err(error) => Err(self.explain(error)),
            }
        };
        timeout(TIMEOUT, reading).await.unwrap_or_else(|_| Err(no_answer()))
    }

    /// Writes the entry if it still has this revision. With [`Written::Unknown`] comes the reason,
    /// in one line.
    pub(super) async fn write(&self, value: &Value, revision: u64) -> (Written, Option<String>) {
        if let Err(reason) = self.connected() {
            return (Written::Unknown, Some(reason));
        }
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string().as_str());
        let payload = value.to_string().into();
        let request = self.client.request_with_headers(self.subject.clone(), headers, payload);
        let message = match timeout(TIMEOUT, request).await {
            Ok(Ok(message)) if message.status != Some(StatusCode::NO_RESPONDERS) => message,
            Ok(Ok(_)) => return (Written::Unknown, Some(self.explain("the bucket is away"))),
            Ok(Err(error)) => return (Written::Unknown, Some(self.explain(error))),
            Err(_) => return (Written::Unknown, Some(no_answer())),
        };
        let answer: Json = serde_json::from_slice(&message.payload).unwrap_or_default();
        let error = &answer["error"];
        match (answer["seq"].as_u64(), error["err_code"].as_u64()) {
            (Some(revision), None) if revision > 0 => (Written::Stored(revision), None),
            (_, Some(code)) if WRONG_SEQUENCE.contains(&code) => (Written::Refused, None),
            _ => {
                let reason = error["description"].as_str().unwrap_or("an answer of another kind");
                (Written::Unknown, Some(self.explain(reason)))
            }
        }
    }

    /// The epoch of the last state in the market's stream. Zero if there is none, or no answer: it
    /// matters only if the entry of the lease was lost.
    pub(super) async fn stream_epoch(&self) -> u64 {
        let reading = async {
            let stream = self.context.get_stream_no_info(self.names.stream()).await.ok()?;
            let last = stream.get_last_raw_message_by_subject(&self.names.state()).await.ok()?;
            let head: Head = last.headers.get(HEAD)?.as_str().parse().ok()?;
            Some(head.position.epoch)
        };
        timeout(TIMEOUT, reading).await.ok().flatten().unwrap_or(0)
    }

    /// Without a connection the client would keep what is sent, and send it some time later.
    fn connected(&self) -> Result<(), String> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            State::Disconnected | State::Pending => Err("no connection to NATS".to_owned()),
        }
    }

    fn explain(&self, error: impl Display) -> String {
        format!("the bucket {}: {error}", self.names.lease_bucket())
    }
}

fn no_answer() -> String {
    "no answer from NATS in time".to_owned()
}

fn is_missing(error: &jetstream::context::GetStreamError) -> bool {
    match error.kind() {
        GetStreamErrorKind::JetStream(error) => error.code() == 404,
        _ => false,
    }
}
