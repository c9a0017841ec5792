//! What follows from a lease, in this order. Taken: the epoch, the role, the right to dial. Lost:
//! the role, the right and with it the connections.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use proxy_common::{link::DialGrant, protocol::Market};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use tracing::{info, warn};

use super::{status::LeaseStatus, value::Value};
use crate::{epochs::Epochs, ring::Readers, role::Role};

/// How long the publisher may take to begin an epoch. Renewals wait meanwhile.
const EPOCH_TIMEOUT: Duration = Duration::from_millis(500);

/// What the right's holders report once it is over and the lease is not lost.
const NOT_RENEWED: &str = "standby: the lease cannot be renewed";

/// What contends for the lease of one market.
pub(super) struct Contender {
    pub(super) market: Market,
    pub(super) hold: Hold,
    /// Ends with a message, or with its sender.
    pub(super) stop: oneshot::Receiver<()>,
    /// To be sent once the lease is released.
    pub(super) released: oneshot::Sender<()>,
}

/// What follows from the lease of one market.
pub(super) struct Hold {
    grant: DialGrant,
    ring: Readers,
    epochs: Epochs,
    role: watch::Sender<Role>,
    pub(super) status: Arc<LeaseStatus>,
    /// Whether the ring's epoch may have been published in: a further term needs another.
    epoch_used: bool,
}

impl Hold {
    pub(super) fn new(
        grant: DialGrant,
        ring: Readers,
        epochs: Epochs,
        status: Arc<LeaseStatus>,
    ) -> (Self, watch::Receiver<Role>) {
        let (role, receiver) = watch::channel(Role::Standby { holder: None });
        (Self { grant, ring, epochs, role, status, epoch_used: false }, receiver)
    }

    /// The epoch in which this program would publish if it took the lease now.
    pub(super) fn epoch(&self) -> u64 {
        let (current, _) = self.ring.epoch();
        if !self.epoch_used {
            return current;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        now.max(current.saturating_add(1))
    }

    /// The lease is held: links may dial until the one time, and keep connections until the other,
    /// both by [`uptime`](proxy_common::link::uptime).
    pub(super) async fn holds(&mut self, held: &Value, (dial, keep): (Duration, Duration)) {
        let (term, epoch) = (held.term, held.epoch);
        let known =
            matches!(*self.role.borrow(), Role::Holder { term: known, .. } if known == term);
        if !known {
            self.epoch_used = true;
            match timeout(EPOCH_TIMEOUT, self.epochs.begin(epoch)).await {
                Ok(Some(in_force)) if in_force == epoch => {}
                // Tried again with the next renewal.
                Ok(Some(_) | None) | Err(_) => {
                    warn!(term, epoch, "the lease is held, but its epoch could not begin yet");
                    return;
                }
            }
            self.role.send_replace(Role::Holder { term, epoch });
            info!(term, epoch, "this program holds the lease, and may dial");
        }
        self.status.holds(held);
        self.grant.give(dial, keep, NOT_RENEWED);
    }

    /// The lease is not held, and who holds it cannot be seen.
    pub(super) fn loses_sight(&mut self) {
        if self.role.borrow().is_holder() || !self.status.is_known() {
            self.stands_by(None);
        }
    }

    /// The lease is not held. `others` is the value that stands there, as far as is known.
    pub(super) fn stands_by(&mut self, others: Option<&Value>) {
        let holder = others.and_then(|value| value.holder.clone());
        let why = match &holder {
            Some(holder) => format!("standby: {holder} holds the lease"),
            None => "standby: nobody is known to hold the lease".to_owned(),
        };
        let role = Role::Standby { holder };
        let before = self.role.send_replace(role.clone());
        if before == role && self.status.is_known() {
            return;
        }
        if before.is_holder() {
            warn!(why, "this program has lost the lease: its connection is closed");
        } else {
            info!(why, "this program stands by");
        }
        self.status.stands_by(others);
        self.grant.take(why);
    }
}
