//! Plays recorded frames again: the same bytes with the same spacing, on the same wire.

pub mod clock;
pub mod record;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::join_all;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    clock::{Speed, Window},
    record::{Recorded, files, read},
};
use crate::{market::Market, server::SimHandle};

/// How many frames are read ahead.
const AHEAD: usize = 1_024;
/// The playing waits while more bytes than this wait for a connection.
const MAX_WAITING: usize = 4 << 20;
/// The pause before a recording is played once more.
const PAUSE: Duration = Duration::from_secs(1);
/// A new file that begins later than this after the one before is another recording.
const BREAK_NS: u64 = 10_000_000_000;
/// How often a condition is checked.
const POLL: Duration = Duration::from_millis(1);

/// What is played, and how.
#[derive(Debug, Clone)]
pub struct Replay {
    /// The directory in which the firehose recorded (`RECORD_DIR`).
    pub dir: PathBuf,
    /// How fast.
    pub speed: Speed,
    /// Which part of each day.
    pub window: Window,
    /// Whether it starts again after the end.
    pub repeat: bool,
}

impl Replay {
    /// A replay of everything in a directory, once, as fast as it was recorded.
    #[must_use]
    pub fn of(dir: PathBuf) -> Self {
        Self { dir, speed: Speed::Times(1.0), window: Window::default(), repeat: false }
    }

    /// Finds the recording of each market.
    ///
    /// # Errors
    /// There is none of a market.
    pub fn prepare(self, markets: Vec<SimHandle>) -> Result<Playback> {
        let of = |market: SimHandle| Ok((recording(&self.dir, market.market())?, market));
        let recordings = markets.into_iter().map(of).collect::<Result<_>>()?;
        Ok(Playback { replay: self, recordings })
    }

    async fn play_market(&self, market: &SimHandle, files: &[PathBuf]) {
        let name = market.market().name();
        while !market.has_audience() {
            sleep(POLL).await;
        }
        loop {
            info!(market = name, files = files.len(), "replay begins");
            let (frames, received) = mpsc::channel(AHEAD);
            let (files, window) = (files.to_vec(), self.window);
            let reading = tokio::task::spawn_blocking(move || read_all(&files, window, &frames));
            let played = self.play(market, received).await;
            if let Err(error) = reading.await {
                warn!(market = name, %error, "the reader of the recording failed");
            }
            info!(market = name, frames = played, "replay ends");
            if !self.repeat {
                return;
            }
            sleep(PAUSE).await;
        }
    }

    async fn play(&self, market: &SimHandle, mut frames: mpsc::Receiver<Due>) -> u64 {
        let mut played = 0;
        // When the frame of which time was played.
        let mut base: Option<(Instant, u64)> = None;
        while let Some(Due { recorded, follows }) = frames.recv().await {
            let (start, first) = match base {
                Some(base) if follows => base,
                _ => *base.insert((Instant::now(), recorded.t)),
            };
            let since = Duration::from_nanos(recorded.t.saturating_sub(first));
            if let Some(since) = self.speed.apply(since) {
                sleep_until(start + since).await;
            }
            while market.waiting_bytes() > MAX_WAITING {
                sleep(POLL).await;
            }
            market.replay(&recorded.text);
            played += 1;
        }
        played
    }
}

/// The recordings of all markets, ready to be played.
#[derive(Debug)]
pub struct Playback {
    replay: Replay,
    recordings: Vec<(Vec<PathBuf>, SimHandle)>,
}

impl Playback {
    /// Plays the recording of each market until `stop`. A market starts when a client has
    /// subscribed to anything of it. Time outside the window takes no time, and neither does
    /// the time between two recordings.
    pub async fn run(self, stop: CancellationToken) {
        let Self { replay, recordings } = &self;
        let playing = recordings.iter().map(|(files, market)| replay.play_market(market, files));
        stop.run_until_cancelled(join_all(playing)).await;
    }
}

/// A frame to play.
#[derive(Debug)]
struct Due {
    recorded: Recorded,
    /// Whether it keeps its distance from the frame before it.
    follows: bool,
}

/// Reads all files in turn, until nobody takes the frames any more.
fn read_all(files: &[PathBuf], window: Window, frames: &mpsc::Sender<Due>) {
    // The time of the frame before, if it is played.
    let mut last: Option<u64> = None;
    for file in files {
        let mut is_first = true;
        let result = read(file, |recorded| {
            let is_new_recording = std::mem::take(&mut is_first)
                && last.is_some_and(|last| recorded.t.saturating_sub(last) > BREAK_NS);
            if !window.holds(recorded.t) {
                last = None;
                return !frames.is_closed();
            }
            let follows = !is_new_recording && last.is_some();
            last = Some(recorded.t);
            frames.blocking_send(Due { recorded, follows }).is_ok()
        });
        if let Err(error) = result {
            warn!(file = %file.display(), "{error:#}: the rest of the file is left out");
            last = None;
        }
        if frames.is_closed() {
            return;
        }
    }
}

/// The files of a market, oldest first.
fn recording(dir: &Path, market: Market) -> Result<Vec<PathBuf>> {
    let of_market = dir.join(market.segment());
    ensure!(dir.is_dir(), "replay: {} is no directory", dir.display());
    if !of_market.is_dir() {
        let names = std::fs::read_dir(dir).context("failed to read the recording")?;
        let names = names.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        bail!("replay: {} has no {market}: it has {}", dir.display(), names.join(", "));
    }
    let files = files(&of_market)?;
    ensure!(!files.is_empty(), "replay: {} has no recorded file", of_market.display());
    Ok(files)
}
