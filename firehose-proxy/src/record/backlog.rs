//! Frames on their way from the data's task to the writer. The task only adds to a list; the writer
//! comes for the list several times a second.

use std::{
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use proxy_common::websocket::Frame;

/// Most bytes of frames that wait for the disk. Beyond that the disk is too slow.
const MAX_BYTES: usize = 64 << 20;
/// The disk hangs if the writer has not come back from it for this long. Disks of magnets and of
/// networks may take seconds for what they have gathered.
pub(super) const HANG_LIMIT: Duration = Duration::from_secs(10);

/// A frame and the time at which it came.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) at: SystemTime,
    pub(super) frame: Frame,
}

/// The frames that wait, and whether the recording goes on.
#[derive(Debug)]
pub(super) struct Backlog {
    state: Mutex<State>,
    /// Wakes the writer before its time when the recording ends.
    closed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    frames: Vec<Received>,
    bytes: usize,
    /// Whether a frame has ever come.
    has_begun: bool,
    closing: bool,
    failure: Option<String>,
    /// Since when the writer has been away: it writes what it took, or prepares the directory.
    busy_since: Option<Instant>,
}

/// How the recording gets on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// Frames are written.
    Writes,
    /// The disk hangs. Frames wait.
    Hangs,
    /// The recording has ended, for this reason.
    Failed(String),
}

/// What the writer is to do.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) frames: Vec<Received>,
    /// Nothing follows.
    pub(super) is_last: bool,
}

impl Backlog {
    /// An empty one, whose writer has yet to come for the first time.
    pub(super) fn new() -> Self {
        let state = State { busy_since: Some(Instant::now()), ..State::default() };
        Self { state: Mutex::new(state), closed: Condvar::new() }
    }

    /// Adds a frame, unless the recording has ended.
    pub(super) fn push(&self, frame: &Frame, at: SystemTime) {
        let mut state = self.state();
        if state.failure.is_some() {
            return;
        }
        state.has_begun = true;
        state.bytes += frame.text().len() + size_of::<Received>();
        state.frames.push(Received { at, frame: frame.clone() });
        if state.bytes > MAX_BYTES {
            let mb = MAX_BYTES >> 20;
            state.fail(format!("recording stopped: the disk is too slow, {mb} MiB wait for it"));
        }
    }

    /// Waits for this time, or until the recording is closed, and takes all frames. `Err` with the
    /// reason if the recording has failed.
    pub(super) fn take(&self, time: Duration) -> Result<Work, String> {
        let mut state = self.state();
        state.busy_since = None;
        let waited = self.closed.wait_timeout_while(state, time, |state| !state.closing);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.bytes = 0;
        state.busy_since = Some(Instant::now());
        Ok(Work { frames: mem::take(&mut state.frames), is_last: state.closing })
    }

    /// Ends the recording with this reason.
    pub(super) fn fail(&self, reason: String) {
        self.state().fail(reason);
    }

    /// Lets the writer end once it has written what waits.
    pub(super) fn close(&self) {
        self.state().closing = true;
        self.closed.notify_all();
    }

    /// How the recording gets on.
    pub(super) fn progress(&self) -> Progress {
        let state = self.state();
        match &state.failure {
            Some(reason) => Progress::Failed(reason.clone()),
            None if state.busy_since.is_some_and(|since| since.elapsed() > HANG_LIMIT) => {
                Progress::Hangs
            }
            None => Progress::Writes,
        }
    }

    /// Whether a frame has ever come.
    pub(super) fn has_begun(&self) -> bool {
        self.state().has_begun
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fail(&mut self, reason: String) {
        self.failure.get_or_insert(reason);
        (self.frames, self.bytes) = (Vec::new(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_too_slow_ends_the_recording_and_frees_what_waits() {
        let backlog = Backlog::new();
        let frame = Frame::new(&vec![b' '; (1 << 20) - size_of::<Received>()]);
        for _ in 0..MAX_BYTES >> 20 {
            backlog.push(&frame, SystemTime::now());
        }
        assert_eq!(backlog.progress(), Progress::Writes, "as much as may wait");
        assert_eq!(backlog.take(Duration::ZERO).unwrap().frames.len(), 64);
        for _ in 0..=MAX_BYTES >> 20 {
            backlog.push(&frame, SystemTime::now());
        }
        let Progress::Failed(reason) = backlog.progress() else { panic!("the recording goes on") };
        assert!(reason.contains("too slow, 64 MiB"), "{reason}");
        assert!(backlog.state().frames.is_empty());
        assert!(backlog.take(Duration::ZERO).is_err());
    }

    #[test]
    fn a_close_leaves_what_waits_to_the_writer() {
        let backlog = Backlog::new();
        backlog.push(&Frame::new(b"[]"), SystemTime::now());
        backlog.close();
        let work = backlog.take(Duration::from_secs(60)).unwrap();
        assert!(work.is_last && work.frames.len() == 1);
    }
}
