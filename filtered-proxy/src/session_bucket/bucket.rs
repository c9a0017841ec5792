//! The bucket: claims, reads and stores names, each request with a deadline.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_nats::jetstream::{
    self, Context,
    context::{
        ContextBuilder, CreateKeyValueErrorKind, GetStreamErrorKind, PublishAckFuture,
        PublishErrorKind,
    },
    kv,
    message::PublishMessage,
    stream::{Info, LastRawMessageErrorKind},
};
use proxy_common::{
    nats::{Names, NatsConfig, SteadyConnection, instance},
    protocol::{Market, Position},
};
use tokio::time::timeout;
use tracing::warn;

use super::saved::{Saved, bucket_key};
use crate::named_sessions::{Claimed, SavedBy};

/// How long a session may wait for its claim before it begins without it.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How often a claim is tried when others save the name meanwhile.
const CLAIM_ATTEMPTS: usize = 5;

/// The bucket of all markets.
#[derive(Debug, Clone)]
pub struct Bucket(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    connection: SteadyConnection,
    config: NatsConfig,
    ttl: Duration,
    /// What makes requests, once there has been a connection.
    context: OnceLock<Context>,
}

/// The names of one market in the bucket.
#[derive(Debug, Clone)]
pub struct MarketBucket {
    bucket: Bucket,
    names: Names,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BucketError {
    #[error("there is no connection to NATS")]
    NotConnected,
    #[error("no answer in time")]
    TimedOut,
    /// Somebody else has saved the name meanwhile.
    #[error("the name was saved by another")]
    Overtaken,
    /// The bucket is not there.
    #[error("NATS has no such bucket")]
    Missing,
    /// Nobody has made the market's stream yet.
    #[error("NATS has no stream {0}")]
    NoStream(String),
    #[error("{0}")]
    Other(String),
}

impl Bucket {
    /// The bucket at these servers, whose names are remembered for `ttl`. Begins to connect.
    pub fn start(config: &NatsConfig, ttl: Duration) -> Self {
        let connection =
            SteadyConnection::start(config.clone(), "filtered-proxy sessions".to_owned());
        let (config, context) = (config.clone(), OnceLock::new());
        Self(Arc::new(Shared { connection, config, ttl, context }))
    }

    /// The names of a market in it.
    pub fn of(&self, market: Market) -> MarketBucket {
        MarketBucket { bucket: self.clone(), names: self.0.config.names(market) }
    }

    fn context(&self) -> Result<Context, BucketError> {
        let client = self.0.connection.client().ok_or(BucketError::NotConnected)?;
        let build = || ContextBuilder::new().timeout(TIMEOUT).ack_timeout(TIMEOUT).build(client);
        Ok(self.0.context.get_or_init(build).clone())
    }
}

impl MarketBucket {
    /// How long a name is remembered after it was saved.
    pub(crate) fn ttl(&self) -> Duration {
        self.bucket.0.ttl
    }

    /// Claims a name for a session that enters.
    ///
    /// # Errors
    ///
    /// NATS does not answer within a second, or refuses.
    pub(crate) async fn claim(&self, key: &str, name: &str) -> Result<Claimed, BucketError> {
        timeout(CLAIM_TIMEOUT, self.try_claim(key, name))
            .await
            .unwrap_or(Err(BucketError::TimedOut))
    }

    async fn try_claim(&self, key: &str, name: &str) -> Result<Claimed, BucketError> {
        for _ in 0..CLAIM_ATTEMPTS {
            let (found, revision) = match self.read(key, name).await? {
                Some((saved, revision)) => (Some(saved), revision),
                None => (None, 0),
            };
            let confirmed = found.as_ref().and_then(|saved| saved.confirmed);
            let stored = self.store(key, name, confirmed, revision).await?;
            let before = match found {
                Some(saved) if saved.proxy != instance().id => SavedBy::Another(saved.confirmed),
                Some(_) | None => SavedBy::Us,
            };
            match self.stored(stored).await {
                Ok(revision) => return Ok(Claimed { revision, before }),
                Err(BucketError::Overtaken) => {}
                Err(error) => return Err(error),
            }
        }
        Err(BucketError::Overtaken)
    }

    /// What the bucket holds of a name, with its revision. Asks the leader: another server may
    /// answer with an earlier value.
    pub(crate) async fn read(
        &self,
        key: &str,
        name: &str,
    ) -> Result<Option<(Saved, u64)>, BucketError> {
        let context = self.bucket.context()?;
        let bucket = self.names.session_bucket();
        let stream = context.get_stream_no_info(format!("KV_{bucket}")).await;
        let stream = stream.map_err(|error| BucketError::Other(error.to_string()))?;
        let message = match stream.get_last_raw_message_by_subject(&self.subject(key, name)).await {
            Ok(message) => message,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Ok(None);
            }
            Err(error) => {
                return Err(match error.kind() {
                    LastRawMessageErrorKind::JetStream(error) if error.code() == 404 => {
                        BucketError::Missing
                    }
                    _ => BucketError::Other(error.to_string()),
                });
            }
        };
        let saved = str::from_utf8(&message.payload).ok().and_then(|text| text.parse().ok());
        // What is no entry of ours counts as another proxy's, without a position.
        let unknown = || Saved { proxy: String::new(), confirmed: None };
        Ok(Some((saved.unwrap_or_else(unknown), message.sequence)))
    }

    /// Sends what a name's client has confirmed, to be stored in place of this revision.
    pub(crate) async fn store(
        &self,
        key: &str,
        name: &str,
        confirmed: Option<Position>,
        revision: u64,
    ) -> Result<PublishAckFuture, BucketError> {
        let value = Saved { proxy: instance().id.clone(), confirmed }.to_string();
        let message =
            PublishMessage::build().payload(value.into()).expected_last_subject_sequence(revision);
        let context = self.bucket.context()?;
        context
            .send_publish(self.subject(key, name), message)
            .await
            .map_err(|error| explain(&error))
    }

    /// Waits until it is stored. Returns the new revision.
    pub(crate) async fn stored(&self, stored: PublishAckFuture) -> Result<u64, BucketError> {
        stored.await.map(|stored| stored.sequence).map_err(|error| explain(&error))
    }

    /// Makes the bucket if it is missing, in as many copies as the market's stream. Logs if it
    /// forgets too early.
    pub(crate) async fn make_if_missing(&self) -> Result<(), BucketError> {
        self.bucket.0.connection.connected().await;
        let (context, bucket) = (self.bucket.context()?, self.names.session_bucket());
        let ttl = self.ttl();
        if let Some(found) = info(&context, &format!("KV_{bucket}")).await? {
            let age = found.config.max_age;
            if !age.is_zero() && age < ttl {
                warn!(
                    bucket,
                    max_age = ?age,
                    session_ttl = ?ttl,
                    "the bucket forgets named sessions before SESSION_TTL is over: set the same on \
                     all proxies, or change the bucket's max_age"
                );
            }
            return Ok(());
        }
        let stream = self.names.stream();
        let stream = info(&context, &stream).await?.ok_or(BucketError::NoStream(stream))?;
        let made = context.create_key_value(kv::Config {
            bucket,
            description: "What named sessions have received".to_owned(),
            history: 1,
            max_age: ttl,
            storage: stream.config.storage,
            num_replicas: stream.config.num_replicas,
            ..kv::Config::default()
        });
        match made.await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == CreateKeyValueErrorKind::TimedOut => {
                Err(BucketError::TimedOut)
            }
            Err(error) => Err(BucketError::Other(error.to_string())),
        }
    }

    fn subject(&self, key: &str, name: &str) -> String {
        format!("$KV.{}.{}", self.names.session_bucket(), bucket_key(&self.names, key, name))
    }
}

/// A stream's settings and state. `None` if there is no such stream.
async fn info(context: &Context, stream: &str) -> Result<Option<Info>, BucketError> {
    match context.get_stream(stream).await {
        Ok(stream) => Ok(Some(stream.cached_info().clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.code() == 404 => Ok(None),
            _ => Err(BucketError::Other(error.to_string())),
        },
    }
}

fn explain(error: &jetstream::context::PublishError) -> BucketError {
    match error.kind() {
        PublishErrorKind::WrongLastSequence => BucketError::Overtaken,
        PublishErrorKind::StreamNotFound => BucketError::Missing,
        PublishErrorKind::TimedOut => BucketError::TimedOut,
        _ => BucketError::Other(error.to_string()),
    }
}
