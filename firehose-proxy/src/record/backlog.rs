//! Frames on their way from the data's task to the writer. The task only adds to a list; the writer
//! comes for the list several times a second.

use std::{
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use proxy_common::websocket::Frame;

/// Most bytes of frames that wait for the disk. Beyond that the disk is too slow.
const MAX_BYTES: usize = 64 << 20;

/// A frame and the time at which it came.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) at: SystemTime,
    pub(super) frame: Frame,
}

/// The frames that wait, and whether the recording goes on.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    state: Mutex<State>,
    /// Wakes the writer before its time when the recording ends.
    closed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    frames: Vec<Received>,
    bytes: usize,
    closing: bool,
    failure: Option<String>,
}

/// What the writer is to do.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) frames: Vec<Received>,
    /// Nothing follows.
    pub(super) is_last: bool,
}

impl Backlog {
    /// Adds a frame, unless the recording has ended.
    pub(super) fn push(&self, frame: &Frame, at: SystemTime) {
        let mut state = self.state();
        if state.failure.is_some() {
            return;
        }
        state.bytes += frame.text().len();
        state.frames.push(Received { at, frame: frame.clone() });
        if state.bytes > MAX_BYTES {
            let mb = MAX_BYTES >> 20;
            state.fail(format!("recording stopped: the disk is too slow, {mb} MiB wait for it"));
        }
    }

    /// Waits for this time, or until the recording is closed, and takes all frames. `Err` with the
    /// reason if the recording has failed.
    pub(super) fn take(&self, time: Duration) -> Result<Work, String> {
        let state = self.state();
        let waited = self.closed.wait_timeout_while(state, time, |state| !state.closing);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.bytes = 0;
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

    /// Why the recording has ended, if it has failed.
    pub(super) fn failure(&self) -> Option<String> {
        self.state().failure.clone()
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
        let backlog = Backlog::default();
        let frame = Frame::new(&vec![b' '; 1 << 20]);
        for _ in 0..MAX_BYTES >> 20 {
            backlog.push(&frame, SystemTime::now());
        }
        assert_eq!(backlog.failure(), None, "as much as may wait");
        assert_eq!(backlog.take(Duration::ZERO).unwrap().frames.len(), 64);
        for _ in 0..=MAX_BYTES >> 20 {
            backlog.push(&frame, SystemTime::now());
        }
        assert!(backlog.failure().is_some_and(|why| why.contains("too slow, 64 MiB")));
        assert!(backlog.state().frames.is_empty());
        assert!(backlog.take(Duration::ZERO).is_err());
    }

    #[test]
    fn a_close_leaves_what_waits_to_the_writer() {
        let backlog = Backlog::default();
        backlog.push(&Frame::new(b"[]"), SystemTime::now());
        backlog.close();
        let work = backlog.take(Duration::from_secs(60)).unwrap();
        assert!(work.is_last && work.frames.len() == 1);
    }
}
