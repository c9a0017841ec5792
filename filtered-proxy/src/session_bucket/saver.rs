//! Saves once a second what has changed of a market's names, and ends the sessions whose names
//! other proxies have taken.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::jetstream::context::PublishAckFuture;
use proxy_common::{
    nats::instance,
    session::{CloseReason, Outbound},
};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use super::bucket::{BucketError, MarketBucket};
use crate::named_sessions::{SessionNames, Unsaved};

/// How often names are saved.
const INTERVAL: Duration = Duration::from_secs(1);
/// Most names saved at a time, which is a quarter of a megabyte. The others wait for the next.
const BATCH: usize = 2_000;
/// How long the last names may take when the program stops.
const LAST: Duration = Duration::from_secs(1);
/// How often within SESSION_TTL the name of an open session is saved without a change.
const REFRESHES: u32 = 4;

/// The names of a market. Locked for a moment, or for a look at all names.
type SharedNames = Arc<Mutex<SessionNames<Arc<Outbound>>>>;

/// Saves the names of a market as long as this work goes on, and once more behind it.
pub(crate) async fn save_while(
    bucket: MarketBucket,
    names: SharedNames,
    work: impl Future<Output = ()>,
) {
    let saver = Saver { bucket, names };
    tokio::select! {
        () = work => {}
        never = saver.save_for_ever() => match never {},
    }
    let _ = timeout(LAST, saver.save_all()).await;
}

struct Saver {
    bucket: MarketBucket,
    names: SharedNames,
}

/// The first step of saving a name.
enum Sent {
    /// It is under way.
    Stored(PublishAckFuture),
    /// Another proxy has it.
    TakenElsewhere,
}

/// The result of saving a name.
enum Outcome {
    /// It has this revision.
    Saved(u64),
    /// What this proxy saved before has this revision. To be saved again.
    Again(u64),
    /// Another proxy has it.
    TakenElsewhere,
}

impl Saver {
    async fn save_for_ever(&self) -> Infallible {
        let mut is_failing = false;
        loop {
            let error = match self.bucket.make_if_missing().await {
                Ok(()) => {
                    // What an earlier bucket held is gone with it.
                    self.names().save_again(true);
                    self.save_until_it_fails(&mut is_failing).await
                }
                Err(error) => error,
            };
            if !std::mem::replace(&mut is_failing, true) {
                warn!(
                    %error,
                    "named sessions are not saved: their clients can come back to this proxy only"
                );
            }
            sleep(INTERVAL).await;
        }
    }

    async fn save_until_it_fails(&self, is_failing: &mut bool) -> BucketError {
        let mut seconds = interval(INTERVAL);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refreshes = interval(self.bucket.ttl() / REFRESHES + INTERVAL / 1_000);
        refreshes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = seconds.tick() => {}
                _ = refreshes.tick() => self.names().save_again(false),
            }
            match self.save_some().await {
                Ok(saved) => {
                    if std::mem::replace(is_failing, false) {
                        info!("named sessions are saved again");
                    }
                    debug!(saved, "named sessions saved");
                }
                Err(error) => return error,
            }
        }
    }

    async fn save_all(&self) {
        while self.save_some().await.is_ok_and(|saved| saved > 0) {}
    }

    /// Saves what has changed, up to the limit. Returns how many names that were.
    async fn save_some(&self) -> Result<usize, BucketError> {
        let unsaved = self.names().take_unsaved(BATCH);
        let (mut waiting, mut first_error) = (Vec::with_capacity(unsaved.len()), None);
        // All are under way before the first answer is awaited.
        for name in unsaved {
            match self.unless(&first_error, self.send(&name)).await {
                Some(Ok(sent)) => waiting.push((name, sent)),
                failed => self.fail(&name, failed, &mut first_error),
            }
        }
        let mut saved = 0;
        for (name, sent) in waiting {
            match self.unless(&first_error, self.outcome(&name, sent)).await {
                Some(Ok(Outcome::Saved(revision))) => {
                    saved += 1;
                    self.names().saved(&name, revision);
                }
                Some(Ok(Outcome::Again(revision))) => {
                    let mut names = self.names();
                    names.saved(&name, revision);
                    names.not_saved(&name);
                }
                Some(Ok(Outcome::TakenElsewhere)) => {
                    let holder = self.names().taken_elsewhere(&name);
                    if let Some(holder) = holder {
                        holder.evict(CloseReason::TakenOver);
                    }
                }
                failed => self.fail(&name, failed, &mut first_error),
            }
        }
        first_error.map_or(Ok(saved), Err)
    }

    fn names(&self) -> MutexGuard<'_, SessionNames<Arc<Outbound>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, name: &Unsaved) -> Result<Sent, BucketError> {
        let Unsaved { key, name, session, confirmed, revision } = name;
        let revision = match revision {
            Some(revision) => *revision,
            None => match self.bucket.read(key, name).await? {
                None => 0,
                // A session that is open takes its name from any other.
                Some((saved, revision)) if session.is_some() || saved.proxy == instance().id => {
                    revision
                }
                Some(_) => return Ok(Sent::TakenElsewhere),
            },
        };
        self.bucket.store(key, name, *confirmed, revision).await.map(Sent::Stored)
    }

    async fn outcome(&self, name: &Unsaved, sent: Sent) -> Result<Outcome, BucketError> {
        let Sent::Stored(stored) = sent else { return Ok(Outcome::TakenElsewhere) };
        match self.bucket.stored(stored).await {
            Ok(revision) => Ok(Outcome::Saved(revision)),
            Err(BucketError::Overtaken) => {
                Ok(match self.bucket.read(&name.key, &name.name).await? {
                    None => Outcome::Again(0),
                    Some((saved, revision)) if saved.proxy == instance().id => {
                        Outcome::Again(revision)
                    }
                    Some(_) => Outcome::TakenElsewhere,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Does a step, unless one has failed: each of them might wait as long.
    async fn unless<T>(
        &self,
        error: &Option<BucketError>,
        step: impl Future<Output = Result<T, BucketError>>,
    ) -> Option<Result<T, BucketError>> {
        match error {
            Some(_) => None,
            None => Some(step.await),
        }
    }

    fn fail<T>(
        &self,
        name: &Unsaved,
        failed: Option<Result<T, BucketError>>,
        first_error: &mut Option<BucketError>,
    ) {
        self.names().not_saved(name);
        if let Some(Err(error)) = failed {
            *first_error = Some(error);
        }
    }
}
