//! How many replays may work at a time, and how often those of a key may begin.

use std::{num::NonZero, sync::Arc};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, MonotonicClock},
    middleware::NoOpMiddleware,
    state::keyed::HashMapStateStore,
};
use proxy_common::program::runtime::cores;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::sleep,
};

/// How many replays of a key may begin at once: those of all its clients after an outage.
const BURST: NonZero<u32> = NonZero::new(2_000).expect("more than zero");
/// How many more may begin each second.
const RATE: NonZero<u32> = NonZero::new(100).expect("more than zero");

/// The replays of a market. Clones share the limits.
#[derive(Debug, Clone)]
pub(crate) struct Replays {
    work: Arc<Semaphore>,
    /// Labels of keys come from the operator's file, so it is bounded.
    starts: Arc<Starts>,
}

type Starts = RateLimiter<
    Arc<str>,
    HashMapStateStore<Arc<str>>,
    MonotonicClock,
    NoOpMiddleware<<MonotonicClock as Clock>::Instant>,
>;

impl Default for Replays {
    fn default() -> Self {
        let quota = Quota::per_second(RATE).allow_burst(BURST);
        Self {
            work: Arc::new(Semaphore::new(cores())),
            starts: Arc::new(RateLimiter::hashmap_with_clock(quota, MonotonicClock)),
        }
    }
}

impl Replays {
    /// Waits until a replay of the key with this label may begin.
    pub(crate) async fn wait_for_turn(&self, key: &Arc<str>) {
        while let Err(early) = self.starts.check_key(key) {
            sleep(early.wait_time_from(MonotonicClock.now())).await;
        }
    }

    /// Waits until one step may be made. Others wait until the permit is dropped.
    pub(crate) async fn work(&self) -> Option<SemaphorePermit<'_>> {
        self.work.acquire().await.ok()
    }
}
