//! A replay that has not begun: what a client asked for, and where that is in the history.

use std::time::Duration;

use proxy_common::{
    history::{History, Lookup, TIME_STEP},
    protocol::{Channel, ChannelSet, Gone, Notice, Position, Start, TierName},
};
use tokio::time::Instant;

use crate::{feed::HistoryState, replay::Part};

/// How long a position may be ahead of the feed here. Another proxy may be a little faster.
pub(crate) const MAX_AHEAD: Duration = Duration::from_secs(5);

/// A replay that has not begun.
#[derive(Debug)]
pub(crate) struct Starting {
    /// Channels that begin where the client said.
    asked: Vec<Asked>,
    /// Channels whose first entry is known.
    pub(crate) parts: Vec<Part>,
    /// Channels that begin where the replay begins.
    pub(crate) next: ChannelSet,
    /// Other subscriptions may follow until then.
    pub(crate) collects_until: Instant,
    /// Since when the feed here is known to be behind a position.
    ahead_since: Option<Instant>,
    /// Whether it is within the limit of its key.
    pub(crate) has_turn: bool,
    pub(crate) may_repeat: &'static str,
}

/// Channels that begin where the client said.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) start: Start,
    pub(crate) channels: ChannelSet,
    /// All channels of the command: the client counts the events of these.
    pub(crate) counted: ChannelSet,
}

impl Asked {
    /// Whether the client has events that are to be left out.
    fn has_some(&self) -> bool {
        matches!(self.start, Start::From(_, 1..))
    }
}

impl Starting {
    /// A replay of these parts. `named` says whether the client comes back by its name.
    pub(crate) fn new(parts: Vec<Part>, named: bool, collects: Duration) -> Self {
        Self {
            asked: Vec::new(),
            parts,
            next: ChannelSet::default(),
            collects_until: Instant::now() + collects,
            ahead_since: None,
            has_turn: false,
            may_repeat: match named {
                true => "up to 250 ms or 256 KiB of it may repeat what came before",
                false => "nothing repeats",
            },
        }
    }

    /// Adds what a client asked for.
    pub(crate) fn ask(&mut self, new: Asked) {
        // With events to leave out, each command counts its own.
        let same = |known: &&mut Asked| known.start == new.start && !new.has_some();
        match self.asked.iter_mut().find(same) {
            Some(known) => known.channels.add(new.channels.iter().cloned()),
            None => self.asked.push(new),
        }
    }

    /// How many commands leave events out.
    pub(crate) fn counts(&self) -> usize {
        let asked = self.asked.iter().filter(|asked| asked.has_some()).count();
        asked + self.parts.iter().filter(|part| part.has.is_some()).count()
    }

    /// Adds channels that begin where the replay begins, unless their first entry is known.
    pub(crate) fn add_next(&mut self, channels: Vec<Channel>) {
        let is_known =
            |channel: &Channel| self.parts.iter().any(|part| part.channels.contains(channel));
        let next: Vec<Channel> =
            channels.into_iter().filter(|channel| !is_known(channel)).collect();
        self.next.add(next);
    }

    pub(crate) fn remove(&mut self, channels: &[Channel]) {
        self.asked.iter_mut().for_each(|asked| asked.channels.remove(channels));
        self.parts.iter_mut().for_each(|part| part.channels.remove(channels));
        self.next.remove(channels);
    }

    /// Finds where the channels begin that the client asked for, which are not asked for any more.
    /// `None` if the feed has to come further first.
    pub(crate) fn look_up(&mut self, history: &History, state: HistoryState) -> Option<Vec<Found>> {
        let mut found = Vec::new();
        for Asked { start, .. } in &self.asked {
            let (at, gone) = match find(history, *start) {
                Lookup::At(at) => (at, None),
                Lookup::Gone(at, why) => (at, Some(why)),
                Lookup::Ahead if state != HistoryState::Current => {
                    self.ahead_since = None;
                    return None;
                }
                Lookup::Ahead => {
                    let since = self.ahead_since.get_or_insert_with(Instant::now);
                    if since.elapsed() < MAX_AHEAD {
                        return None;
                    }
                    let head = history.head();
                    let of_this_run = start.position().is_some_and(|at| at.epoch == head.epoch);
                    let at = if of_this_run { history.end() } else { history.newest(usize::MAX) };
                    (at, Some(Gone::OtherEpoch))
                }
            };
            found.push((at, gone));
        }
        let asked = std::mem::take(&mut self.asked).into_iter();
        Some(asked.zip(found).map(|(asked, (at, gone))| Found { at, gone, asked }).collect())
    }
}

/// Where channels begin that a client asked for.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) at: u64,
    gone: Option<Gone>,
    asked: Asked,
}

impl Found {
    /// The channels' part of a replay whose first entry is this one. `None` if none is left, so
    /// that it does not matter which events the client has.
    pub(crate) fn into_part(self, first: u64) -> Option<Part> {
        let Asked { start, channels, counted } = self.asked;
        if channels.is_empty() {
            return None;
        }
        let part = Part::new(self.at, channels);
        Some(match (self.gone, start) {
            // What was dropped since the look-up is lost as well.
            (None, Start::From(behind, has)) if self.at >= first => {
                part.without(has, behind, counted)
            }
            _ => part,
        })
    }

    /// Where the client stands, if a replay with this first entry begins there.
    pub(crate) fn stands_at(&self, first: u64) -> Option<Position> {
        self.asked.start.position().filter(|_| self.gone.is_none() && self.at == first)
    }

    /// Says what cannot be given any more.
    pub(crate) fn gap(&self, history: &History) -> Option<Notice> {
        let (_, position, _) = history.place(self.at);
        let after = self.asked.start.position();
        let why = match (self.gone?, after) {
            (Gone::TooOld(Some(_)), Some(after)) => {
                Gone::TooOld(Some(position.seq.saturating_sub(after.seq)))
            }
            (why, _) => why,
        };
        Some(Notice::gone(TierName::Filtered, why, after, position))
    }
}

/// The entry with which a subscription begins. The times of entries that came from the firehose's
/// history are too early by less than a step.
fn find(history: &History, start: Start) -> Lookup {
    match start {
        Start::Since(time) => history.since(time.saturating_sub(TIME_STEP)),
        start => history.find_start(start),
    }
}
