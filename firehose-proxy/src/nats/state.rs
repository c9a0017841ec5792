//! The state of a feed: what a session would be sent that subscribes to `*` now.

use std::{sync::atomic::Ordering, time::SystemTime};

use bytes::{Bytes, BytesMut};
use proxy_common::{
    history::Entry,
    protocol::{Notice, Outage, Position, TierName},
};

use crate::{ring::Wake, subscriber::Shared};

/// A state, and the entry of the history before which it was.
#[derive(Debug)]
pub(super) struct State {
    pub(super) before: u64,
    pub(super) frames: Bytes,
    outage: Option<Outage>,
}

/// Takes states, and knows which outage readers of the stream are in.
#[derive(Debug, Default)]
pub(super) struct States {
    /// How many messages other than data there were with the last state.
    seen: u64,
    /// The outage that a state named and nothing in the stream has ended.
    open: Option<Outage>,
}

impl States {
    /// The state of now.
    pub(super) fn take(&mut self, shared: &Shared, wake: &Wake) -> State {
        self.seen = wake.others.load(Ordering::Relaxed);
        let outage = shared.outage.borrow().clone();
        let coverage = shared.entitlements.coverage_frame();
        let position = Some(shared.ring.feed_position());
        let down = outage
            .as_ref()
            .map(|outage| Notice::upstream_down(TierName::Firehose, outage).at(position).frame());
        let mut frames = BytesMut::from(&coverage.bytes()[..]);
        frames.extend(down.iter().flat_map(|frame| frame.bytes().iter()));
        State { before: shared.ring.history().end(), frames: frames.freeze(), outage }
    }

    /// Whether the state may have changed since the last one.
    pub(super) fn may_differ(&self, wake: &Wake) -> bool {
        self.seen != wake.others.load(Ordering::Relaxed)
    }

    /// A frame that must come before this state, which is to be written at this position: the end
    /// of an outage that earlier states named, and of which the history holds no end.
    pub(super) fn before(&mut self, state: &State, position: Position) -> Option<Bytes> {
        match (&state.outage, self.open.take()) {
            (Some(outage), _) => {
                self.open = Some(outage.clone());
                None
            }
            (None, Some(ended)) => {
                let up = Notice::upstream_up(TierName::Firehose, &ended, SystemTime::now());
                Some(up.at(Some(position)).frame().bytes().clone())
            }
            (None, None) => None,
        }
    }

    /// Notes that the epoch is opened with this state. An outage that it does not name any more
    /// ends with the next state.
    pub(super) fn on_opening(&mut self, state: &State) {
        if state.outage.is_some() {
            self.open.clone_from(&state.outage);
        }
    }

    /// Notes what these entries say of outages, which are to be written.
    pub(super) fn on_entries(&mut self, entries: &[Entry]) {
        if self.open.is_some() && entries.iter().any(is_end_of_outage) {
            self.open = None;
        }
    }
}

fn is_end_of_outage(entry: &Entry) -> bool {
    const UP: &[u8] = br#"[{"ev":"status","status":"upstream_up""#;
    entry.notice && entry.frame.text().starts_with(UP)
}
