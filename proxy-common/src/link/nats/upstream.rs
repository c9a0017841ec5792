//! Where a session over NATS finds its stream, and what outlives the session.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::{Client, ConnectError, ConnectErrorKind, Event};
use bytes::Bytes;

use super::{follow::Message, metrics::ReaderMetrics, stream::Stream, wants::Wants};
use crate::{
    link::error::LinkError,
    nats::{Names, NatsConfig, OLDEST_SERVER, connect, instance, is_too_old},
    protocol::Market,
};

/// How to take a market's feed out of NATS.
#[derive(Debug)]
pub struct NatsUpstream {
    pub(super) config: NatsConfig,
    pub(super) names: Names,
    pub(super) metrics: ReaderMetrics,
    memory: Mutex<Memory>,
}

/// What outlives a session. Locked for a read or a change.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The last message that was taken.
    pub(super) last: Option<Message>,
    /// What was wanted last.
    pub(super) demand: Vec<Bytes>,
    pub(super) wants: Wants,
    /// Whether the last attempt found no firehose.
    pub(super) silent: bool,
}

impl NatsUpstream {
    /// The feed of a market. `metrics` counts for it alone.
    pub fn new(config: NatsConfig, market: Market, metrics: ReaderMetrics) -> Self {
        let names = config.names(market);
        Self { config, names, metrics, memory: Mutex::default() }
    }

    /// This run of the program, as the firehose knows it.
    pub(super) fn id(&self) -> &'static str {
        &instance().id
    }

    /// The servers, for a log.
    pub fn shown(&self) -> String {
        self.config.shown()
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, and finds the stream.
    ///
    /// # Errors
    ///
    /// No server answers or takes us, or it has no stream.
    pub(super) async fn find(&self) -> Result<(Stream, Complaint), LinkError> {
        let complaint = Complaint::default();
        let heard = complaint.clone();
        let name = format!("filtered-proxy {}", self.names.market());
        let client = connect(&self.config, &name, move |event| heard.hear(event)).await;
        let client = client.map_err(|error| refused(&error))?;
        check_version(&client)?;
        let found = Stream::find(client, &self.names).await;
        let stream = found.map_err(|why| LinkError::Unreachable(complaint.explain(why)))?;
        Ok((stream, complaint))
    }

    /// Tries whether the stream can be reached. Returns what was found, for people.
    ///
    /// # Errors
    ///
    /// No server answers or takes us, or it has no stream.
    pub async fn try_it(&self) -> Result<String, LinkError> {
        let (stream, complaint) = self.find().await?;
        let info = stream.info().await;
        let info = info.map_err(|why| LinkError::Unreachable(complaint.explain(why)))?;
        let messages = info.state.messages;
        Ok(format!("{} holds {messages} messages", self.names.stream()))
    }
}

/// The last words of the server that answer no request, such as a missing right.
#[derive(Debug, Default, Clone)]
pub(super) struct Complaint(Arc<Mutex<Option<String>>>);

impl Complaint {
    fn hear(&self, event: Event) {
        if let Event::ServerError(error) = event {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }
    }

    /// Adds it to the reason of a failure.
    pub(super) fn explain(&self, why: String) -> String {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(complaint) => format!("{why} ({complaint})"),
            None => why,
        }
    }
}

fn refused(error: &ConnectError) -> LinkError {
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            LinkError::AuthFailed("NATS refuses what NATS_CREDS holds".to_owned())
        }
        _ => {
            let mut cause: &dyn std::error::Error = error;
            while let Some(earlier) = cause.source() {
                cause = earlier;
            }
            LinkError::Unreachable(format!("NATS: {cause}"))
        }
    }
}

fn check_version(client: &Client) -> Result<(), LinkError> {
    if !is_too_old(client) {
        return Ok(());
    }
    let (version, (major, minor, patch)) = (client.server_info().version, OLDEST_SERVER);
    let needed = format!("{major}.{minor}.{patch} or later is needed");
    Err(LinkError::Protocol(format!("NATS has version {version}, and {needed}")))
}
