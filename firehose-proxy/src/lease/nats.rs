//! Contends for leases in NATS: does what the [protocol](super::protocol) says.

use std::time::Duration;

use async_nats::Client;
use proxy_common::{
    link::uptime,
    nats::{NatsConfig, connect},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{Instrument, debug, error_span};

use super::{
    bucket::LeaseEntry,
    hold::{Contender, Hold},
    protocol::{Lease, Step, Timing, Written},
};

/// How long to wait after an attempt to connect that failed, or to make the bucket.
const PAUSE: Duration = Duration::from_millis(250);

/// How long the attempts to release a lease may take.
const RELEASING: Duration = Duration::from_millis(900);

/// Where the leases are.
pub(super) struct StoreConfig {
    pub(super) nats: NatsConfig,
    pub(super) replicas: usize,
    pub(super) timing: Timing,
}

/// How to reach NATS, or why that is not possible. `None` while no attempt has ended.
type Reached = Option<Result<Client, String>>;

/// Contends for the leases of these markets, until each of them is to be released.
pub(super) async fn contend(
    store: StoreConfig,
    name: String,
    address: String,
    contenders: Vec<Contender>,
) {
    let (reached, reaches) = watch::channel(None);
    let mut tasks = JoinSet::new();
    for contender in contenders {
        let span = error_span!("lease", market = contender.market.name());
        let names = store.nats.names(contender.market);
        let lease = Lease::new(name.clone(), address.clone(), store.timing);
        let (reaches, replicas) = (reaches.clone(), store.replicas);
        let contending = async move {
            let Contender { hold, mut stop, released, .. } = contender;
            let mut side = Side { lease, hold, entry: None };
            let entry = |client: &Client| LeaseEntry::new(client, names.clone(), replicas);
            tokio::select! {
                _ = &mut stop => {}
                () = side.contend(reaches, entry) => {}
            }
            side.release().await;
            let _ = released.send(());
        };
        tasks.spawn(contending.instrument(span));
    }
    drop(reaches);
    tokio::select! {
        () = reach(&store.nats, &name, reached) => {}
        () = async { while tasks.join_next().await.is_some() {} } => {}
    }
}

/// Connects, however often it takes, and keeps the connection.
async fn reach(config: &NatsConfig, name: &str, reached: watch::Sender<Reached>) {
    let name = format!("lease {name}");
    loop {
        match connect(config, &name, |_| ()).await {
            Ok(client) => {
                let _ = reached.send(Some(Ok(client)));
                return std::future::pending().await;
            }
            Err(error) => {
                let _ = reached.send(Some(Err(format!("no connection to NATS: {error}"))));
            }
        }
        sleep(PAUSE).await;
    }
}

/// This program's side of one lease.
struct Side {
    lease: Lease,
    hold: Hold,
    entry: Option<LeaseEntry>,
}

impl Side {
    async fn contend(
        &mut self,
        mut reaches: watch::Receiver<Reached>,
        entry: impl Fn(&Client) -> LeaseEntry,
    ) {
        let entry = loop {
            let reached = reaches.borrow_and_update().clone();
            match reached {
                Some(Ok(client)) => break entry(&client),
                Some(Err(reason)) => self.hold.status.fails(&reason),
                None => {}
            }
            if reaches.changed().await.is_err() {
                return;
            }
        };
        while let Err(reason) = entry.make().await {
            self.hold.status.fails(&reason);
            self.hold.stands_by(None);
            sleep(PAUSE).await;
        }
        self.entry = Some(entry.clone());
        let mut now = uptime();
        loop {
            let epoch = self.hold.epoch();
            match self.lease.step(now, epoch) {
                Step::Wait(until) => {
                    sleep(until.saturating_sub(now)).await;
                    now = uptime();
                }
                Step::Read => now = self.read(&entry).await,
                Step::Write { value, revision } => {
                    let began = uptime();
                    let (written, reason) = entry.write(&value, revision).await;
                    now = uptime();
                    match reason {
                        Some(reason) => self.hold.status.fails(&reason),
                        None => self.hold.status.succeeds(),
                    }
                    debug!(%value, revision, ?written, "wrote the lease");
                    self.lease.on_written(began, now, written, fastrand::f64());
                }
            }
            self.follow().await;
        }
    }

    /// Reads the lease. Returns when that ended.
    async fn read(&mut self, entry: &LeaseEntry) -> Duration {
        // Before the read, so that nothing comes between it and a takeover.
        if self.lease.held().is_none() {
            let known = entry.stream_epoch().await;
            self.lease.on_stream_epoch(known);
        }
        let read = entry.read().await;
        let now = uptime();
        match &read {
            Ok(_) => self.hold.status.succeeds(),
            Err(reason) => {
                self.hold.status.fails(reason);
                // If the bucket is gone, it has to be made anew.
                let _ = entry.make().await;
            }
        }
        self.lease.on_read(now, read.ok(), fastrand::f64());
        now
    }

    /// Does what follows from the lease.
    async fn follow(&mut self) {
        match self.lease.held() {
            Some(held) => self.hold.holds(held, self.lease.rights()).await,
            None => {
                if self.lease.is_ready() {
                    self.hold.stands_by(self.lease.others());
                } else {
                    self.hold.loses_sight();
                }
                self.hold.status.is_ready(self.lease.is_ready());
            }
        }
    }

    /// Writes that nobody holds the lease, if this program does.
    async fn release(&mut self) {
        let (Some(entry), Some((value, mut revision))) = (&self.entry, self.lease.release()) else {
            return;
        };
        self.hold.stands_by(None);
        let releasing = async {
            loop {
                match entry.write(&value, revision).await.0 {
                    Written::Stored(_) => return,
                    Written::Unknown => {}
                    // A renewal may have been under way.
                    Written::Refused => {
                        if let Ok(found) = entry.read().await {
                            let own = found
                                .value
                                .filter(|found| found.holder.is_some() && found.term == value.term);
                            if own.is_none() {
                                return;
                            }
                            revision = found.revision;
                            continue;
                        }
                    }
                }
                sleep(PAUSE).await;
            }
        };
        let _ = timeout(RELEASING, releasing).await;
    }
}
