//! The thread that writes a market's files. Only it waits for the disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use proxy_common::protocol::Market;
use tracing::{info, warn};

use super::{
    backlog::{Backlog, Work},
    file::{ENDING, HourFile},
    keep::{Keep, Stored},
    metrics::RecordMetrics,
};

/// How often the writer takes what waits.
const INTERVAL: Duration = Duration::from_millis(100);
/// How often everything is brought to the disk. What comes meanwhile waits in the backlog: it has
/// room for 9 s of 50,000 events a second, so a slow disk may take that long.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Writes the frames of a market.
pub(super) struct Writer {
    market: Market,
    dir: PathBuf,
    keep: Keep,
    backlog: Arc<Backlog>,
    metrics: RecordMetrics,
    file: Option<HourFile>,
    /// The removal of older files that began last.
    removal: Option<JoinHandle<()>>,
    /// How many bytes of the file have been counted.
    counted: u64,
    synced: Instant,
}

impl Writer {
    pub(super) fn new(
        market: Market,
        dir: PathBuf,
        keep: Keep,
        backlog: Arc<Backlog>,
        metrics: RecordMetrics,
    ) -> Self {
        let synced = Instant::now();
        Self { market, dir, keep, backlog, metrics, file: None, removal: None, counted: 0, synced }
    }

    /// Writes until the recording is closed or fails.
    pub(super) fn run(mut self) {
        let Self { market, .. } = self;
        // Waited for here, so that a disk that was full has room before the first frame comes.
        remove_superfluous(&self.dir, None, self.keep);
        info!(%market, dir = %self.dir.display(), "recording");
        let failure = self.write_all().err();
        if let Some(reason) = failure {
            self.backlog.fail(reason);
            // What has been written stays readable, if the disk allows it.
            if let Some(file) = self.file.take() {
                let _: io::Result<u64> = file.finish();
            }
        }
    }

    fn write_all(&mut self) -> Result<(), String> {
        loop {
            let Work { frames, is_last } = self.backlog.take(INTERVAL)?;
            let failed = |error: io::Error| format!("recording stopped: {error}");
            for received in &frames {
                let file = self.file_of(received.at).map_err(failed)?;
                file.add(received.at, received.frame.text()).map_err(failed)?;
            }
            self.metrics.frames.inc_by(frames.len() as u64);
            let hour_is_over = |file: &HourFile| !file.is_of(SystemTime::now());
            if is_last || self.file.as_ref().is_some_and(hour_is_over) {
                self.finish().map_err(failed)?;
            } else if self.synced.elapsed() >= SYNC_INTERVAL {
                self.sync().map_err(failed)?;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// The file of this time.
    fn file_of(&mut self, at: SystemTime) -> io::Result<&mut HourFile> {
        if self.file.as_ref().is_some_and(|file| !file.is_of(at)) {
            self.finish()?;
        }
        match self.file.take() {
            Some(file) => Ok(self.file.insert(file)),
            None => {
                let file = HourFile::create(&self.dir, at)?;
                self.remove_meanwhile(file.path());
                Ok(self.file.insert(file))
            }
        }
    }

    /// Removes the files that do not stay, on a thread of its own. To delete a large file can take
    /// a disk so long that the frames that wait meanwhile would end the recording.
    fn remove_meanwhile(&mut self, open: &Path) {
        // While the last one goes on, this one waits for the next hour.
        if self.removal.as_ref().is_none_or(JoinHandle::is_finished) {
            let (dir, open, keep) = (self.dir.clone(), open.to_owned(), self.keep);
            let remove = move || remove_superfluous(&dir, Some(&open), keep);
            let name = format!("remove-{}", self.market);
            let thread = thread::Builder::new().name(name).spawn(remove);
            let failed = |error: &io::Error| warn!(%error, "failed to remove recorded files");
            self.removal = thread.inspect_err(failed).ok();
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.synced = Instant::now();
        if let Some(file) = &mut self.file {
            let bytes = file.sync()?;
            self.count(bytes);
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.take() {
            let bytes = file.finish()?;
            self.count(bytes);
            self.counted = 0;
        }
        Ok(())
    }

    fn count(&mut self, bytes: u64) {
        self.metrics.bytes.inc_by(bytes - std::mem::replace(&mut self.counted, bytes));
    }
}

/// Removes the files that do not stay. The open one always stays.
fn remove_superfluous(dir: &Path, open: Option<&Path>, keep: Keep) {
    let stored = match stored(dir, open) {
        Ok(stored) => stored,
        Err(error) => return warn!(dir = %dir.display(), %error, "failed to list recorded files"),
    };
    for path in keep.superfluous(stored) {
        match fs::remove_file(&path) {
            Ok(()) => info!(file = %path.display(), "recorded file removed"),
            Err(error) => warn!(file = %path.display(), %error, "failed to remove a recorded file"),
        }
    }
}

/// All recorded files of a directory but the open one, oldest first.
fn stored(dir: &Path, open: Option<&Path>) -> io::Result<Vec<Stored>> {
    let mut stored = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is_recorded = path.to_str().is_some_and(|path| path.ends_with(ENDING));
        if !is_recorded || Some(&*path) == open {
            continue;
        }
        let about = fs::metadata(&path)?;
        let age = about.modified()?.elapsed().unwrap_or_default();
        stored.push(Stored { path, bytes: about.len(), age });
    }
    // Names begin with their times.
    stored.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(stored)
}
