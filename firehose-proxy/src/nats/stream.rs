//! The stream of a market: makes it if it is missing, compares it with the settings, and reads its
//! end. It never changes a stream that is there.

use std::time::Duration;

use async_nats::{
    Client, ConnectError, ConnectErrorKind,
    jetstream::{
        self, Context, ErrorCode,
        context::{RequestError, RequestErrorKind},
        message::StreamMessage,
        response::Response,
        stream::{
            self as js, DiscardPolicy, Info, LastRawMessageErrorKind, RetentionPolicy, StorageType,
        },
    },
};
use bytes::Bytes;
use proxy_common::nats::{HEAD, Head, Names, OLDEST_SERVER, is_too_old};

use super::window::{Last, Tail};
use crate::config::{FeedConfig, Storage};

/// The longest message of ours, with its headers.
const MAX_PAYLOAD: usize = 1_000_000;

/// The stream of a market.
#[derive(Debug)]
pub(super) struct MarketStream {
    client: Client,
    context: Context,
    names: Names,
    config: FeedConfig,
}

/// A message as it is stored.
#[derive(Debug)]
pub(super) struct StoredMessage {
    pub(super) seq: u64,
    pub(super) head: Option<Head>,
    pub(super) payload: Bytes,
}

impl MarketStream {
    pub(super) fn new(client: &Client, names: &Names, config: &FeedConfig) -> Self {
        Self {
            client: client.clone(),
            context: jetstream::new(client.clone()),
            names: names.clone(),
            config: config.clone(),
        }
    }

    /// The end of the stream, which is made if it is missing. Returns also in what it differs from
    /// the settings.
    ///
    /// # Errors
    ///
    /// Why it cannot be used, in one line.
    pub(super) async fn tail(&self) -> Result<(Tail, Vec<String>), String> {
        check_server(&self.client)?;
        let info = self.info().await?;
        self.check_usable(&info.config)?;
        let seq = info.state.last_sequence;
        // In this order: whoever opened an epoch before `seq` was read shows in the two.
        let data = self.last(&self.names.data()).await?;
        let state = self.last(&self.names.state()).await?;
        let last = |message: Option<StoredMessage>| {
            message.map(|message| Last { seq: message.seq, head: message.head })
        };
        let tail = Tail { seq, data: last(data), state: last(state) };
        Ok((tail, self.differences(&info.config)))
    }

    /// The message at this place, if it is there.
    pub(super) async fn message(&self, seq: u64) -> Result<Option<StoredMessage>, String> {
        let stream = self.handle().await?;
        found(stream.get_raw_message(seq).await)
    }

    async fn last(&self, subject: &str) -> Result<Option<StoredMessage>, String> {
        let stream = self.handle().await?;
        found(stream.get_last_raw_message_by_subject(subject).await)
    }

    async fn handle(&self) -> Result<js::Stream<()>, String> {
        let stream = self.context.get_stream_no_info(self.names.stream()).await;
        stream.map_err(|error| error.to_string())
    }

    async fn info(&self) -> Result<Info, String> {
        let name = self.names.stream();
        let answer = self.context.request(format!("STREAM.INFO.{name}"), &()).await;
        match answer.map_err(|error| request_failed(&error))? {
            Response::Ok(info) => return Ok(info),
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
            Response::Err { error } => return Err(refused(&error)),
        }
        let answer = self.context.request(format!("STREAM.CREATE.{name}"), &self.wanted()).await;
        match answer.map_err(|error| request_failed(&error))? {
            Response::Ok(info) => {
                tracing::info!(stream = name, "made the stream in NATS");
                Ok(info)
            }
            Response::Err { error } => Err(format!("stream {name}: {}", refused(&error))),
        }
    }

    /// The stream as it is made.
    fn wanted(&self) -> js::Config {
        let FeedConfig { storage, replicas, max_bytes, max_age, .. } = self.config;
        js::Config {
            name: self.names.stream(),
            subjects: vec![self.names.data(), self.names.state()],
            discard: DiscardPolicy::Old,
            retention: RetentionPolicy::Limits,
            storage: match storage {
                Storage::File => StorageType::File,
                Storage::Memory => StorageType::Memory,
            },
            num_replicas: replicas,
            max_bytes: i64::try_from(max_bytes).unwrap_or(i64::MAX),
            max_age,
            allow_direct: true,
            // No message has an ID. At least this much is kept, and no more than the age.
            duplicate_window: Duration::from_secs(1).min(max_age),
            ..js::Config::default()
        }
    }

    /// Whether the feed can be stored in a stream of this configuration at all.
    fn check_usable(&self, found: &js::Config) -> Result<(), String> {
        let (name, wanted) = (self.names.stream(), self.wanted());
        let mend = "change it or remove it";
        let (mut ours, mut theirs) = (wanted.subjects, found.subjects.clone());
        ours.sort();
        theirs.sort();
        if ours != theirs {
            let (ours, theirs) = (ours.join(", "), theirs.join(", "));
            return Err(format!("stream {name} holds {theirs} instead of {ours}: {mend}"));
        }
        if found.discard != DiscardPolicy::Old {
            return Err(format!("stream {name} refuses messages once it is full: {mend}"));
        }
        if found.retention != RetentionPolicy::Limits {
            return Err(format!("stream {name} does not keep messages by its limits: {mend}"));
        }
        let size = found.max_message_size;
        if size > 0 && (size as usize) < MAX_PAYLOAD {
            return Err(format!("stream {name} takes messages of at most {size} bytes: {mend}"));
        }
        if found.no_ack || found.sealed {
            return Err(format!("stream {name} is sealed or acknowledges nothing: {mend}"));
        }
        Ok(())
    }

    /// In what a stream differs from the settings, one sentence each.
    fn differences(&self, found: &js::Config) -> Vec<String> {
        let (name, wanted) = (self.names.stream(), self.wanted());
        let mut differences = Vec::new();
        let mut compare = |variable: &str, is: String, wanted: String| {
            if is != wanted {
                differences.push(format!(
                    "stream {name} in NATS has {is} where {variable} says {wanted}: it is left as \
                     it is"
                ));
            }
        };
        compare("NATS_STORAGE", storage_name(found.storage), storage_name(wanted.storage));
        let (is, say) = (found.num_replicas.max(1), wanted.num_replicas);
        compare("NATS_REPLICAS", format!("{is} replicas"), format!("{say} replicas"));
        let bytes = |bytes: i64| match bytes {
            ..=0 => "no limit of bytes".to_owned(),
            bytes => format!("{bytes} bytes"),
        };
        compare("NATS_MAX_BYTES", bytes(found.max_bytes), bytes(wanted.max_bytes));
        let age = |age: Duration| match age.is_zero() {
            true => "no limit of age".to_owned(),
            false => humantime::format_duration(age).to_string(),
        };
        compare("NATS_MAX_AGE", age(found.max_age), age(wanted.max_age));
        if found.max_messages > 0 || found.max_messages_per_subject > 0 {
            differences.push(format!(
                "stream {name} in NATS keeps a limited number of messages: it is left as it is"
            ));
        }
        differences
    }
}

fn storage_name(storage: StorageType) -> String {
    match storage {
        StorageType::File => "file storage".to_owned(),
        StorageType::Memory => "memory storage".to_owned(),
    }
}

fn found(
    result: Result<StreamMessage, js::LastRawMessageError>,
) -> Result<Option<StoredMessage>, String> {
    match result {
        Ok(message) => {
            let head = message.headers.get(HEAD).and_then(|head| head.as_str().parse().ok());
            Ok(Some(StoredMessage { seq: message.sequence, head, payload: message.payload }))
        }
        Err(error) => match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(None),
            LastRawMessageErrorKind::JetStream(error)
                if error.error_code() == ErrorCode::NO_MESSAGE_FOUND =>
            {
                Ok(None)
            }
            LastRawMessageErrorKind::JetStream(error) => Err(refused(&error)),
            LastRawMessageErrorKind::InvalidSubject | LastRawMessageErrorKind::Other => {
                Err(NO_ANSWER.to_owned())
            }
        },
    }
}

/// What is said if NATS does not answer in time.
pub(super) const NO_ANSWER: &str = "it has not answered for 2 s";

fn check_server(client: &Client) -> Result<(), String> {
    let info = client.server_info();
    if is_too_old(client) {
        let (major, minor, _) = OLDEST_SERVER;
        return Err(format!(
            "the server is of version {}: expected {major}.{minor} or later",
            info.version
        ));
    }
    if info.max_payload < MAX_PAYLOAD {
        return Err(format!(
            "the server takes {} bytes a message: set its max_payload to at least {MAX_PAYLOAD}",
            info.max_payload
        ));
    }
    Ok(())
}

fn request_failed(error: &RequestError) -> String {
    match error.kind() {
        RequestErrorKind::NoResponders => {
            "it has no JetStream: switch it on at the server and for the account".to_owned()
        }
        RequestErrorKind::TimedOut => NO_ANSWER.to_owned(),
        RequestErrorKind::InvalidSubject | RequestErrorKind::Other => error.to_string(),
    }
}

/// What a refusal of JetStream means, and what to do.
pub(super) fn refused(error: &jetstream::Error) -> String {
    match error.error_code() {
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            "it has no JetStream: switch it on at the server and for the account".to_owned()
        }
        ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::STREAM_STORE_FAILED => {
            format!("it has no room ({error}): give it more, or keep less with NATS_MAX_BYTES")
        }
        _ => error.to_string(),
    }
}

/// Why no connection comes about, and what to do.
pub(super) fn connect_failed(servers: &str, error: &ConnectError) -> String {
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            format!("{servers} refuses us: check NATS_CREDS")
        }
        ConnectErrorKind::Tls => {
            format!("no TLS with {servers}: check NATS_CA and the certificate")
        }
        _ => format!("no connection to {servers}: {error}"),
    }
}
