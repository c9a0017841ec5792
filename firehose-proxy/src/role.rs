//! What this program may do for a market: dial and publish, or wait for its chance.

use tokio::sync::watch;

/// The role of this program for one market.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Another program may dial, or nobody.
    Standby {
        /// Who holds the lease, as far as is known.
        holder: Option<String>,
    },
    /// This program may dial and publish.
    Holder {
        /// How often the lease has passed from one program to another. Zero without a lease.
        term: u64,
        /// The epoch of what it publishes. The ring is in it.
        epoch: u64,
    },
}

impl Role {
    /// The role for good, if there is no lease.
    pub fn without_lease(epoch: u64) -> watch::Receiver<Self> {
        // A receiver keeps the last value when its sender is gone.
        watch::Sender::new(Self::Holder { term: 0, epoch }).subscribe()
    }

    /// Whether it may dial and publish.
    pub fn is_holder(&self) -> bool {
        matches!(self, Self::Holder { .. })
    }
}
