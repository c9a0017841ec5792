//! Other programs of the same market, as they describe themselves over NATS.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// How far a filtered proxy is from the end of the stream in NATS.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// Messages that it has yet to read.
    pub messages: u64,
    /// Age of the last message that it has read, in milliseconds, if it has some yet to read.
    pub milliseconds: u64,
}

/// Another program of the market.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Its tier.
    pub tier: String,
    /// Its run, by the number that it made up when it began.
    pub instance: String,
    /// Its host.
    pub host: String,
    /// Its version.
    pub version: String,
    /// Its condition: `ok`, `degraded` or `down`.
    pub status: String,
    /// Its part in the lease, if it has one: `holder` or `standby`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// How far it is from the end of the stream, if it reads one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<Lag>,
}

/// The other programs of a market, for `/health`. Locked for a moment.
#[derive(Debug, Default)]
pub struct PeerList(Mutex<Vec<Peer>>);

impl PeerList {
    /// The programs, as they were last heard.
    pub fn get(&self) -> Vec<Peer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over a new list.
    pub fn set(&self, peers: Vec<Peer>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = peers;
    }
}
