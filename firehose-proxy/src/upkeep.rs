//! The firehose's work of every second, and the problems that `/health` shows.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::SystemTime,
};

use proxy_common::{
    health::{ContractsHealth, LeaseHealth},
    link::LinkMetrics,
    metrics::{ByType, Level, Metrics, Value},
    program::wiring::Upkeep,
    protocol::Kind,
    status::TierView,
};
use tokio::time::Instant;

#[cfg(feature = "nats")]
use crate::nats::WriterStatus;
use crate::{
    contracts::Occupancy,
    lease::LeaseStatus,
    record::RecordStatus,
    silence::monitor::{SilenceMonitor, UpstreamSnapshot},
    subscriber::Shared,
};

/// How many frames a second the publisher counts again with a JSON parser, as evidence for the
/// ledger. A frame of 50 events takes about 20 us.
const RECOUNTS: u32 = 32;

/// The gauges of contracts on demand.
#[derive(Debug)]
pub(crate) struct ContractLevels {
    held: ByType<Level>,
    room: ByType<Level>,
    waiting: ByType<Level>,
}

impl ContractLevels {
    /// Shows these numbers from the start.
    pub(crate) fn register(metrics: &mut Metrics, occupancy: Vec<(Kind, Occupancy)>) -> Self {
        let levels = Self {
            held: metrics.register_by_type("contracts_held", "Contracts asked of the vendor"),
            room: metrics
                .register_by_type("contracts_room", "Contracts that the vendor serves at a time"),
            waiting: metrics.register_by_type("contracts_waiting", "Contracts that wait for room"),
        };
        for (kind, occupancy) in occupancy {
            levels.set(kind, occupancy);
        }
        levels
    }

    fn set(&self, kind: Kind, Occupancy { held, room, waiting }: Occupancy) {
        for (levels, number) in [(&self.held, held), (&self.room, room), (&self.waiting, waiting)] {
            levels.of(kind).set(number as i64);
        }
    }
}

/// Does the firehose's work of every second, and reports its problems.
#[derive(Debug)]
pub struct FirehoseUpkeep {
    pub(crate) shared: Shared,
    pub(crate) upstream: Arc<LinkMetrics>,
    /// How many connections the market has.
    pub(crate) connections: i64,
    pub(crate) silence: SilenceMonitor,
    pub(crate) unread: Level,
    pub(crate) ring_used: Value,
    pub(crate) contracts: ContractLevels,
    /// How many frames the publisher may still recount in this second.
    pub(crate) recounts: Arc<AtomicU32>,
    /// Whether the recording goes on, if there is one.
    pub(crate) record: Option<RecordStatus>,
    /// How the lease stands, if there is one.
    pub(crate) lease: Option<Arc<LeaseStatus>>,
    /// Whether NATS takes the feed, if it is to.
    #[cfg(feature = "nats")]
    pub(crate) nats: Option<Arc<WriterStatus>>,
}

impl Upkeep for FirehoseUpkeep {
    fn problems(&self) -> Vec<String> {
        self.silence.problems()
    }

    fn failures(&self) -> Vec<String> {
        let record = self.record.iter().filter_map(RecordStatus::problem);
        #[cfg(feature = "nats")]
        let record = record.chain(self.nats.iter().flat_map(|writer| writer.problems()));
        let lease = self.lease.iter().filter_map(|lease| lease.problem());
        record.chain(lease).collect()
    }

    fn lease(&self) -> Option<LeaseHealth> {
        self.lease.as_ref().map(|lease| lease.health())
    }

    fn contracts(&self) -> BTreeMap<String, ContractsHealth> {
        let occupancy = self.shared.demand.occupancy().into_iter();
        let by_kind = occupancy.map(|(kind, Occupancy { held, room, waiting })| {
            (kind.to_string(), ContractsHealth { held, room, waiting })
        });
        by_kind.collect()
    }

    fn view(&self) -> TierView {
        let (open, types) = self.silence.view();
        let ring_used = Some(self.ring_used.get());
        TierView { open: Some(open), types, ring_used, ..TierView::default() }
    }

    fn unread(&self) -> Option<&Level> {
        Some(&self.unread)
    }

    fn tick(&self) {
        self.record.iter().for_each(RecordStatus::tick);
        let Shared { demand, entitlements, .. } = &self.shared;
        demand.expire(Instant::now());
        for (kind, occupancy) in demand.occupancy() {
            self.contracts.set(kind, occupancy);
        }
        self.ring_used.set(self.shared.ring.used());
        let wanted = demand.wanted();
        entitlements.retain(&wanted);
        let snapshot = UpstreamSnapshot {
            up: self.upstream.up.get() == self.connections,
            wanted: &wanted,
            refused: &entitlements.refused(),
            frames: self.upstream.frames.get(),
        };
        self.silence.tick(Instant::now().into_std(), SystemTime::now(), &snapshot);
        self.recounts.store(RECOUNTS, Ordering::Relaxed);
    }
}
