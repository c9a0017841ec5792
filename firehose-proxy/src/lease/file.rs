//! The lease as a locked file, for several firehoses on one machine.
//!
//! The kernel frees the lock with its process, at once. But a process that stands still keeps it,
//! and a file system of the network may give it to two: such a path must not be used.

use std::{
    fs::{File, OpenOptions, TryLockError, metadata},
    io::{Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use proxy_common::{config::ConfigError, protocol::Market};
use tokio::{sync::oneshot, time::sleep};
use tracing::debug;

use super::{hold::Contender, status::LeaseStatus, value::Value};

/// How often the lock is tried, and whether the file is still the same.
const LOOKING: Duration = Duration::from_millis(50);

/// A right without an end.
const FOREVER: Duration = Duration::MAX;

/// The file of a market's lease.
pub(super) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Opens the file, and makes it if it is missing.
    ///
    /// # Errors
    ///
    /// It cannot be opened for writing.
    pub(super) fn open(path: &Path, market: Market) -> Result<Self, ConfigError> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", market.name()));
        let path = PathBuf::from(name);
        let file = open(&path).map_err(|error| {
            let expected = format!("expected a path at which a file can be written: {error}");
            ConfigError::invalid("LEASE", format!("file:{}", path.display()), expected)
        })?;
        Ok(Self { path, file })
    }

    /// Whether the path still leads to the file that is locked.
    fn is_in_place(&self) -> bool {
        match (self.file.metadata(), metadata(&self.path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    fn read(&mut self) -> Option<Value> {
        let mut text = String::new();
        self.file.rewind().ok()?;
        self.file.read_to_string(&mut text).ok()?;
        text.parse().ok()
    }

    /// Writes who holds the lease, for those who stand by. The lock counts, whatever becomes of it.
    fn write(&mut self, value: &Value) {
        let written = self
            .file
            .rewind()
            .and_then(|()| self.file.set_len(0))
            .and_then(|()| writeln!(self.file, "{value}"));
        if let Err(error) = written {
            debug!(%error, "failed to write the holder into the file of the lease");
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Contends for the lock until it is to be released.
pub(super) async fn contend(mut lock: Lock, name: String, address: String, contender: Contender) {
    let Contender { mut hold, mut stop, released, .. } = contender;
    let mut held: Option<Value> = None;
    loop {
        match &held {
            Some(value) if lock.is_in_place() => {
                hold.status.succeeds();
                hold.holds(value, (FOREVER, FOREVER)).await;
            }
            Some(_) => {
                held = None;
                let _ = lock.file.unlock();
                hold.stands_by(None);
                reopen(&mut lock, &hold.status);
            }
            None => match lock.file.try_lock() {
                Ok(()) if lock.is_in_place() => {
                    let last = lock.read();
                    let (term, epoch) = last.map_or((0, 0), |last| (last.term, last.epoch));
                    let value = Value {
                        holder: Some(name.clone()),
                        term: term + 1,
                        n: 1,
                        epoch: hold.epoch().max(epoch + 1),
                        address: address.clone(),
                    };
                    lock.write(&value);
                    held = Some(value);
                    // What follows from it, without a pause.
                    continue;
                }
                Ok(()) => reopen(&mut lock, &hold.status),
                Err(TryLockError::WouldBlock) => {
                    hold.status.succeeds();
                    let others = lock.read();
                    hold.stands_by(others.as_ref());
                    hold.status.is_ready(true);
                }
                Err(TryLockError::Error(error)) => {
                    hold.status.fails(&error.to_string());
                    hold.loses_sight();
                }
            },
        }
        if is_over(&mut stop, LOOKING).await {
            break;
        }
    }
    if let Some(value) = held {
        lock.write(&value.released());
        let _ = lock.file.unlock();
    }
    let _ = released.send(());
}

fn reopen(lock: &mut Lock, status: &LeaseStatus) {
    match open(&lock.path) {
        Ok(file) => lock.file = file,
        Err(error) => status.fails(&error.to_string()),
    }
}

/// Waits for this long. Returns whether the contention is over.
async fn is_over(stop: &mut oneshot::Receiver<()>, time: Duration) -> bool {
    tokio::select! {
        _ = stop => true,
        () = sleep(time) => false,
    }
}
