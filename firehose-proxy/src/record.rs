//! Records the raw frames of a market in compressed files, one for each hour. The stream never
//! waits for the disk: a disk that is full or too slow ends the recording, loudly, and nothing
//! else.

mod backlog;
mod file;
pub mod keep;
mod metrics;
mod writer;

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use proxy_common::{config::ConfigError, metrics::Metrics, protocol::Market, websocket::Frame};
use tokio::{sync::oneshot, time::timeout};
use tracing::{error, info};

use self::{
    backlog::{Backlog, HANG_LIMIT, Progress},
    keep::Keep,
    metrics::RecordMetrics,
    writer::Writer,
};

/// How long a stopping program waits for the disk.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where frames are recorded, and for how long.
#[derive(Debug, Clone)]
pub struct RecordConfig {
    /// The directory. Each market has one of its own in it.
    pub dir: PathBuf,
    /// Which of the older files stay.
    pub keep: Keep,
}

/// The recording of one market.
#[derive(Debug)]
pub(crate) struct Recorder {
    market: Market,
    backlog: Arc<Backlog>,
    /// Comes when the writer has ended. `None` once it has.
    ended: Option<oneshot::Receiver<()>>,
}

/// Whether the recording of a market goes on. A writer that hangs cannot say so itself.
#[derive(Debug)]
pub(crate) struct RecordStatus {
    market: Market,
    backlog: Arc<Backlog>,
    metrics: RecordMetrics,
    /// What the log says so far.
    logged: Mutex<Progress>,
}

impl Recorder {
    /// Starts the recording of a market.
    ///
    /// # Errors
    ///
    /// The directory is not there and cannot be made, or no file can be made in it.
    pub(crate) fn start(
        market: Market,
        config: &RecordConfig,
        metrics: &mut Metrics,
    ) -> Result<(Self, RecordStatus), ConfigError> {
        let dir = config.dir.join(market.to_string());
        let refused = |error: io::Error| {
            let expected = format!("expected a directory to write to: {error}");
            ConfigError::invalid("RECORD_DIR", config.dir.display(), expected)
        };
        fs::create_dir_all(&dir).map_err(refused)?;
        let probe = dir.join(".writable");
        fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).map_err(refused)?;
        let (backlog, (end, ended)) = (Arc::new(Backlog::new()), oneshot::channel());
        let (keep, metrics) = (config.keep, RecordMetrics::register(metrics));
        metrics.active.set(1);
        let status = RecordStatus {
            market,
            backlog: Arc::clone(&backlog),
            metrics: metrics.clone(),
            logged: Mutex::new(Progress::Writes),
        };
        let writer = Writer::new(market, dir, keep, Arc::clone(&backlog), metrics);
        let run = move || {
            writer.run();
            // Nobody waits if the program has given up waiting.
            let _: Result<(), ()> = end.send(());
        };
        let name = format!("record-{market}");
        thread::Builder::new().name(name).spawn(run).map_err(refused)?;
        Ok((Self { market, backlog, ended: Some(ended) }, status))
    }

    /// Records a frame that has just come. Never waits for the disk.
    pub(crate) fn frame(&self, frame: &Frame) {
        self.backlog.push(frame, SystemTime::now());
    }

    /// Ends the recording once everything is on the disk, or after 2 s.
    pub(crate) async fn close(mut self) {
        self.backlog.close();
        if let Some(ended) = &mut self.ended
            && let Ok(Ok(())) = timeout(CLOSE_TIMEOUT, ended).await
        {
            self.ended = None;
        }
    }
}

impl Drop for Recorder {
    /// Says what is missing. This is not left to `close`, because a program whose `DRAIN_TIMEOUT`
    /// is over, or that gets a second signal, does not wait for it.
    fn drop(&mut self) {
        if self.ended.is_some() && self.backlog.has_begun() {
            error!(market = %self.market, "the end of the recording is not on the disk");
        }
    }
}

impl RecordStatus {
    /// Says once that the recording has stopped, waits for the disk, or goes on. Call it about once
    /// a second.
    pub(crate) fn tick(&self) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = self.backlog.progress();
        if *logged == progress {
            return;
        }
        let market = self.market;
        self.metrics.active.set(i64::from(progress == Progress::Writes));
        match &progress {
            Progress::Writes => info!(%market, "the recording goes on"),
            Progress::Hangs => {
                error!(%market, "the recording waits for the disk; the stream goes on");
            }
            Progress::Failed(reason) => {
                error!(%market, reason, "the recording has stopped; the stream goes on");
            }
        }
        *logged = progress;
    }

    /// What is wrong with the recording.
    pub(crate) fn problem(&self) -> Option<String> {
        match self.backlog.progress() {
            Progress::Writes => None,
            Progress::Hangs => Some(format!(
                "recording waits: the disk has not answered for {} s",
                HANG_LIMIT.as_secs()
            )),
            Progress::Failed(reason) => Some(reason),
        }
    }
}
