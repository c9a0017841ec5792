//! The sessions that are open now, for whoever looks at all of them.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use slab::Slab;
use tokio::time::Instant;

use super::{client::ClientInfo, outbound::Outbound};

/// All sessions of a program.
#[derive(Debug, Default)]
pub struct OpenSessions {
    /// Locked when a session begins or ends, and to copy the list.
    sessions: Mutex<Slab<Arc<OpenSession>>>,
    opened: AtomicU64,
}

/// What others may know of a session.
#[derive(Debug)]
pub struct OpenSession {
    /// Its number among all sessions since the start of the program, from 1.
    pub number: u64,
    /// Its client.
    pub client: ClientInfo,
    /// Since when it is open.
    pub since: SystemTime,
    /// The label of its key, once it has authenticated.
    key: RwLock<Option<Arc<str>>>,
    subscriptions: AtomicUsize,
    rate: Mutex<Rate>,
    outbound: Weak<Outbound>,
}

#[derive(Debug)]
struct Rate {
    at: Instant,
    events: u64,
    per_second: f64,
}

/// The state of a session at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionSnapshot {
    /// The label of its key, once it has authenticated.
    pub key: Option<Arc<str>>,
    /// How many subscriptions it holds.
    pub subscriptions: usize,
    /// Events written to its socket.
    pub events: u64,
    /// The same in a second, over the last second or more.
    pub events_per_second: f64,
    /// Bytes that wait for its socket.
    pub queued_bytes: usize,
    /// How long ago the oldest of them was read from upstream. Zero if none waits.
    pub lag: Duration,
}

/// A session's entry. Dropping it takes the session off the list.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    sessions: &'a OpenSessions,
    key: usize,
}

impl OpenSessions {
    /// Lists a session until the entry is dropped.
    pub(super) fn enter(
        &self,
        outbound: &Arc<Outbound>,
        client: ClientInfo,
    ) -> (Entry<'_>, Arc<OpenSession>) {
        let session = Arc::new(OpenSession {
            number: self.opened.fetch_add(1, Ordering::Relaxed) + 1,
            client,
            since: SystemTime::now(),
            key: RwLock::default(),
            subscriptions: AtomicUsize::new(0),
            rate: Mutex::new(Rate { at: Instant::now(), events: 0, per_second: 0.0 }),
            outbound: Arc::downgrade(outbound),
        });
        let key = self.lock().insert(Arc::clone(&session));
        (Entry { sessions: self, key }, session)
    }

    /// The sessions, in no order.
    pub fn list(&self) -> Vec<Arc<OpenSession>> {
        self.lock().iter().map(|(_, session)| Arc::clone(session)).collect()
    }

    /// Measures the rates of all sessions. Call it about once a second.
    pub fn tick(&self) {
        for session in self.list() {
            session.measure_rate();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Arc<OpenSession>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.sessions.lock().remove(self.key);
    }
}

impl OpenSession {
    /// Its write half. `None` if it is ending.
    pub(super) fn outbound(&self) -> Option<Arc<Outbound>> {
        self.outbound.upgrade()
    }

    /// It has authenticated with the key of this label.
    pub(super) fn set_key(&self, label: Arc<str>) {
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = Some(label);
    }

    /// It holds this many subscriptions now.
    pub(super) fn set_subscriptions(&self, subscriptions: usize) {
        self.subscriptions.store(subscriptions, Ordering::Relaxed);
    }

    /// Its state now. `None` if it is ending.
    pub fn snapshot(&self) -> Option<SessionSnapshot> {
        let backlog = self.outbound()?.backlog();
        let rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        Some(SessionSnapshot {
            key: self.key.read().unwrap_or_else(PoisonError::into_inner).clone(),
            subscriptions: self.subscriptions.load(Ordering::Relaxed),
            events: backlog.delivered,
            events_per_second: rate.per_second,
            queued_bytes: backlog.bytes,
            lag: backlog.lag(),
        })
    }

    fn measure_rate(&self) {
        let Some(outbound) = self.outbound() else { return };
        let events = outbound.backlog().delivered;
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = rate.at.elapsed().as_secs_f64();
        let per_second = (events - rate.events) as f64 / elapsed.max(0.001);
        *rate = Rate { at: Instant::now(), events, per_second: (per_second * 10.0).round() / 10.0 };
    }
}
