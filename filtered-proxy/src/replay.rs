//! A session's way through the history, from where it stood to the live data. Pure.
//!
//! A replay finds the session's events as the router does, with an index of that session alone. Its
//! steps are short, so that it keeps nobody waiting.

use std::time::Instant;

use proxy_common::{
    history::{Entry, History},
    protocol::{Channel, ChannelSet, Gone, Market, Notice, Position, TierName},
    session::{Chunk, ChunkBuffer},
    websocket::Frame,
};

use crate::{batch::Batch, coverage::KnownCoverage, index::Index, split::split};

/// Most bytes of frames that one step reads.
const STEP_BYTES: usize = 256 << 10;

/// What a step yields, in order.
#[derive(Debug)]
pub enum Output<'a> {
    /// Events.
    Events(&'a [Chunk<'a>]),
    /// A notice.
    Notice(&'a Frame),
}

/// A session's way through the history.
#[derive(Debug)]
pub struct Replay {
    market: Market,
    /// The number of the next entry.
    next: u64,
    /// Where the feed stands before it.
    position: Position,
    /// How many events that match are still left out.
    skip: u64,
    /// Where these events begin.
    skip_behind: Position,
    parts: Vec<Part>,
    /// The channels of the parts that have begun.
    index: Index<()>,
    coverage: KnownCoverage,
    /// When it began.
    began: Instant,
    batch: Batch,
    entries: Vec<Entry>,
}

/// Channels, and where their events begin.
#[derive(Debug)]
struct Part {
    from: u64,
    channels: ChannelSet,
}

impl Replay {
    /// A replay that begins now, without channels, from an entry on that stands behind `position`.
    pub fn new(
        market: Market,
        next: u64,
        position: Position,
        coverage: KnownCoverage,
        now: Instant,
    ) -> Self {
        Self {
            market,
            next,
            position,
            skip: 0,
            skip_behind: Position::default(),
            parts: Vec::new(),
            index: Index::default(),
            coverage,
            began: now,
            batch: Batch::default(),
            entries: Vec::new(),
        }
    }

    /// The number of the next entry.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Where the feed stands before the next entry.
    pub fn position(&self) -> Position {
        self.position
    }

    /// What the firehose carried when it began.
    pub fn coverage(&self) -> &KnownCoverage {
        &self.coverage
    }

    /// Leaves out so many events more, from the next entry on: the client has them, and they came
    /// behind this position. If messages are lost first, they were among those, and nothing more is
    /// left out.
    pub fn skip(&mut self, events: u64, behind: Position) {
        (self.skip, self.skip_behind) = (events, behind);
    }

    /// Whether events are still to be left out. The client has more than came up to the position
    /// here, so that it could not go on from there.
    pub fn is_skipping(&self) -> bool {
        self.skip > 0
    }

    /// Adds channels, whose events begin with this entry. None of them is an earlier one than the
    /// next.
    pub fn add(&mut self, parts: impl IntoIterator<Item = (u64, ChannelSet)>) {
        for (from, channels) in parts {
            match self.parts.iter_mut().find(|part| part.from == from) {
                Some(part) => part.channels.add(channels.iter().cloned()),
                None => self.parts.push(Part { from, channels }),
            }
        }
        self.rebuild();
    }

    /// Adds channels, whose events begin with the next entry.
    pub fn add_next(&mut self, channels: impl IntoIterator<Item = Channel>) {
        // Those of the parts that have begun are one part from here on.
        let channels = channels.into_iter().collect::<Vec<_>>();
        match self.parts.iter_mut().find(|part| part.from <= self.next) {
            Some(part) => part.channels.add(channels),
            None => {
                let channels = channels.into_iter().collect();
                self.parts.push(Part { from: self.next, channels });
            }
        }
        self.rebuild();
    }

    /// The channels of each part, and where its events begin or go on.
    pub fn parts(&self) -> impl Iterator<Item = (u64, &ChannelSet)> {
        self.parts.iter().map(|part| (part.from.max(self.next), &part.channels))
    }

    /// Removes channels.
    pub fn remove(&mut self, channels: &[Channel]) {
        for part in &mut self.parts {
            part.channels.remove(channels);
        }
        self.rebuild();
    }

    /// Puts the channels of all parts that have begun into the index.
    fn rebuild(&mut self) {
        self.index = Index::default();
        self.index.set_on_demand(&self.coverage.on_demand(), &self.coverage.listed());
        self.index.join(0, ());
        let begun = self.parts.iter().filter(|part| part.from <= self.next);
        let channels: Vec<Channel> = begun.flat_map(|part| part.channels.iter()).cloned().collect();
        self.index.change(0, channels, true);
    }

    /// Where another part begins, if one does later.
    fn next_part(&self) -> u64 {
        let later = self.parts.iter().map(|part| part.from).filter(|from| *from > self.next);
        later.min().unwrap_or(u64::MAX)
    }

    /// Goes one step on, and yields what the session gets.
    pub fn step(&mut self, history: &History, mut yields: impl FnMut(Output<'_>)) {
        let mut entries = std::mem::take(&mut self.entries);
        if let Err((first, position)) = history.read(self.next, STEP_BYTES, &mut entries) {
            // The feed was faster. Of one epoch, it is known how much is gone.
            let same = position.epoch == self.position.epoch;
            let lost = same.then(|| position.seq.saturating_sub(self.position.seq));
            let why = Gone::Overtaken(lost);
            let notice = Notice::gone(TierName::Filtered, why, Some(self.position), position);
            yields(Output::Notice(&notice.frame()));
            (self.next, self.position, self.skip) = (first, position, 0);
            self.rebuild();
        }
        let mut next_part = self.next_part();
        for Entry { frame, position, notice, .. } in entries.drain(..) {
            if self.next == next_part {
                self.deliver(&mut yields);
                self.rebuild();
                next_part = self.next_part();
            }
            // A notice does not move the position, unless it stands behind lost messages. The
            // client may have it already.
            let moves = notice && position != self.position;
            if (moves || position.epoch != self.position.epoch) && position > self.skip_behind {
                self.deliver(&mut yields);
                self.skip = 0;
            }
            // The history may have begun anew at an earlier place.
            let is_known = position.epoch == self.position.epoch && position <= self.position;
            if is_known && !notice {
                self.next += 1;
                continue;
            }
            if notice {
                self.deliver(&mut yields);
                yields(Output::Notice(&frame));
            } else {
                self.batch.add(frame.shared_text(), self.began, self.market, &self.index);
                if self.skip > 0 {
                    self.deliver(&mut yields);
                }
            }
            (self.next, self.position) = (self.next + 1, position);
        }
        // A part may begin right behind the last entry.
        if self.next == next_part {
            self.deliver(&mut yields);
            self.rebuild();
        }
        self.deliver(&mut yields);
        self.entries = entries;
    }

    fn deliver(&mut self, yields: &mut impl FnMut(Output<'_>)) {
        let skip = &mut self.skip;
        self.batch.deliver(&self.index, |_, chunks| {
            if *skip == 0 {
                return yields(Output::Events(chunks));
            }
            for chunk in chunks {
                let events = u64::from(chunk.events());
                if *skip >= events {
                    *skip -= events;
                } else if *skip == 0 {
                    yields(Output::Events(std::slice::from_ref(chunk)));
                } else {
                    let mut rest = ChunkBuffer::default();
                    leave_out(chunk, std::mem::take(skip), &mut rest);
                    yields(Output::Events(&[rest.chunk()]));
                }
            }
        });
    }
}

/// Adds all events of a chunk but the first ones to `rest`.
fn leave_out(chunk: &Chunk<'_>, first: u64, rest: &mut ChunkBuffer) {
    let array = [b"[", chunk.text(), b"]"].concat();
    let mut number = 0;
    split(&array, |event| {
        number += 1;
        if number > first {
            rest.push(&array[event.start..event.end], 1);
        }
    });
}
