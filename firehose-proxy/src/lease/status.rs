//! What is known of a lease: for `/health`, and as metrics.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use proxy_common::{
    health::LeaseHealth,
    metrics::{Count, Level, Metrics},
};
use tracing::{info, warn};

use super::value::Value;

/// How this program stands with the lease of a market.
#[derive(Debug)]
pub(crate) struct LeaseStatus {
    kind: &'static str,
    name: String,
    held: Level,
    ready: Level,
    term: Level,
    failures: Count,
    takeovers: Count,
    /// Locked for a moment.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Whether it was looked at.
    looked: bool,
    holds: bool,
    holder: Option<String>,
    address: String,
    epoch: u64,
    since: Option<SystemTime>,
    /// Why it cannot be looked at or renewed.
    trouble: Option<String>,
}

impl LeaseStatus {
    pub(super) fn register(kind: &'static str, name: &str, metrics: &mut Metrics) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            held: metrics.register("lease_held", "1 while this program holds the lease"),
            ready: metrics
                .register("lease_ready", "1 while it stands by and could take the lease at once"),
            term: metrics
                .register("lease_term", "How often the lease has passed to another program"),
            failures: metrics
                .register("lease_failures", "Times that the lease could not be read or renewed"),
            takeovers: metrics.register("lease_takeovers", "Times that it took the lease"),
            known: Mutex::default(),
        }
    }

    /// Whether the lease was looked at.
    pub(super) fn is_known(&self) -> bool {
        self.lock().looked
    }

    pub(super) fn holds(&self, held: &Value) {
        let mut known = self.lock();
        if !known.holds {
            self.takeovers.inc();
            known.since = Some(SystemTime::now());
        }
        (known.looked, known.holds, known.epoch) = (true, true, held.epoch);
        (known.holder, known.address) = (held.holder.clone(), held.address.clone());
        self.show(held.term, true, false);
    }

    pub(super) fn stands_by(&self, others: Option<&Value>) {
        let mut known = self.lock();
        if known.holds || !known.looked {
            known.since = Some(SystemTime::now());
        }
        (known.looked, known.holds) = (true, false);
        if let Some(others) = others {
            (known.holder, known.address) = (others.holder.clone(), others.address.clone());
            known.epoch = others.epoch;
            self.term.set(i64::try_from(others.term).unwrap_or(i64::MAX));
        }
        self.held.set(0);
    }

    /// Whether it would take the lease if its holder were gone.
    pub(super) fn is_ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    /// The lease cannot be read or renewed. Says so once for each reason.
    pub(super) fn fails(&self, reason: &str) {
        self.failures.inc();
        self.ready.set(0);
        let mut known = self.lock();
        if known.trouble.as_deref() != Some(reason) {
            warn!(reason, holds = known.holds, "the lease can be neither read nor renewed");
            known.trouble = Some(reason.to_owned());
        }
    }

    /// The lease was read or renewed.
    pub(super) fn succeeds(&self) {
        let mut known = self.lock();
        if known.trouble.take().is_some() {
            info!("the lease can be read again");
        }
    }

    fn show(&self, term: u64, holds: bool, ready: bool) {
        self.term.set(i64::try_from(term).unwrap_or(i64::MAX));
        self.held.set(i64::from(holds));
        self.ready.set(i64::from(ready));
    }

    /// What `/health` shows.
    pub(crate) fn health(&self) -> LeaseHealth {
        let known = self.lock();
        LeaseHealth {
            kind: self.kind,
            role: if known.holds { "holder" } else { "standby" },
            name: self.name.clone(),
            holder: known.holder.clone(),
            address: Some(known.address.clone()).filter(|address| !address.is_empty()),
            term: u64::try_from(self.term.get()).unwrap_or(0),
            epoch: known.epoch,
            ready: known.holds || self.ready.get() == 1,
            since: known.since.map(|since| humantime::format_rfc3339_millis(since).to_string()),
        }
    }

    /// What is wrong, in a sentence.
    pub(crate) fn problem(&self) -> Option<String> {
        let known = self.lock();
        let reason = known.trouble.as_ref()?;
        Some(match known.holds {
            true => format!(
                "the lease cannot be renewed: {reason}; the connection to the vendor is kept for \
                 LEASE_KEEP, and no other firehose can take over: check NATS"
            ),
            false => format!(
                "the lease cannot be read: {reason}; this standby cannot take over: check where \
                 LEASE leads"
            ),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
