//! A session's way through the history, from where it stood to the live data. Pure.
//!
//! A replay finds the session's events as the router does, with an index of that session alone. Its
//! steps are short, so that it keeps nobody waiting.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proxy_common::{
    history::{Entry, History},
    protocol::{Channel, ChannelSet, Gone, Market, Notice, Position, TierName},
    session::Chunk,
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

/// Channels, and where their events begin.
#[derive(Debug)]
pub struct Part {
    /// With this entry.
    pub from: u64,
    /// The channels.
    pub channels: ChannelSet,
    /// What the client has of them already.
    pub has: Option<Has>,
    /// What to say where they begin.
    pub notice: Option<Frame>,
    /// Whether they begin only once nothing is left out any more.
    waits: bool,
}

/// Events that a client has already.
#[derive(Debug)]
pub struct Has {
    /// How many.
    events: u64,
    /// They came behind this position. If messages are lost first, they were among those.
    behind: Position,
    /// The channels that they are counted with. The part may have fewer by now.
    channels: ChannelSet,
}

impl Part {
    /// Channels whose events begin with this entry.
    pub fn new(from: u64, channels: ChannelSet) -> Self {
        Self { from, channels, has: None, notice: None, waits: false }
    }

    /// Leaves out the first events of these channels: the client has that number of them, and they
    /// came behind this position.
    #[must_use]
    pub fn without(self, events: u64, behind: Position, channels: ChannelSet) -> Self {
        let has = (events > 0).then_some(Has { events, behind, channels });
        Self { has, ..self }
    }

    /// Says this where the events begin.
    #[must_use]
    pub fn saying(self, notice: Option<Frame>) -> Self {
        Self { notice, ..self }
    }
}

/// A session's way through the history.
#[derive(Debug)]
pub struct Replay {
    market: Market,
    /// The number of the next entry.
    next: u64,
    /// Where the feed stands before it.
    position: Position,
    parts: Vec<Part>,
    /// The channels of the parts that have begun, without those of which events are left out.
    index: Index<()>,
    /// The parts that have begun and of which events are left out, each with its index.
    left_out: Vec<(usize, Index<()>)>,
    coverage: KnownCoverage,
    /// When it began.
    began: Instant,
    /// Since when all entries were read, while events were still to be left out.
    ahead_since: Option<Instant>,
    batch: Batch,
    entries: Vec<Entry>,
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
            parts: Vec::new(),
            index: Index::default(),
            left_out: Vec::new(),
            coverage,
            began: now,
            ahead_since: None,
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

    /// How long events are still to be left out, although all entries are read. `is_ahead` says
    /// whether that is so now.
    pub fn ahead_for(&mut self, is_ahead: bool, now: Instant) -> Duration {
        match is_ahead {
            true => now - *self.ahead_since.get_or_insert(now),
            false => {
                self.ahead_since = None;
                Duration::ZERO
            }
        }
    }

    /// Whether events are still to be left out. The client has more than came up to the position
    /// here, so that it could not go on from there.
    pub fn is_skipping(&self) -> bool {
        self.parts.iter().any(|part| part.has.is_some())
    }

    /// Adds parts. None of them begins before the next entry.
    pub fn add(&mut self, parts: impl IntoIterator<Item = Part>) {
        self.parts.extend(parts);
        self.rebuild();
    }

    /// Adds channels whose events begin with the next entry, or behind those that are left out.
    pub fn add_next(&mut self, channels: impl IntoIterator<Item = Channel>) {
        let part = Part::new(self.next, channels.into_iter().collect());
        self.add([Part { waits: true, ..part }]);
    }

    /// The parts, and where each of them begins or goes on.
    pub fn into_parts(self) -> impl Iterator<Item = Part> {
        let (next, is_skipping) = (self.next, self.is_skipping());
        self.parts.into_iter().map(move |part| Part {
            from: part.from.max(next),
            waits: part.waits && is_skipping,
            ..part
        })
    }

    /// Leaves nothing more out: fewer events came than the client says it has.
    pub fn leave_nothing_out(&mut self) {
        self.parts.iter_mut().for_each(|part| part.has = None);
        self.rebuild();
    }

    /// Whether the client has been sent everything up to the position, and nothing after it.
    pub fn is_at_its_position(&self) -> bool {
        !self.is_skipping() && self.parts.iter().all(|part| part.from <= self.next)
    }

    /// Removes channels.
    pub fn remove(&mut self, channels: &[Channel]) {
        for part in &mut self.parts {
            part.channels.remove(channels);
        }
        self.parts.retain(|part| !part.channels.is_empty() || part.notice.is_some());
        self.rebuild();
    }

    /// Puts the channels of all parts that have begun into an index.
    fn rebuild(&mut self) {
        let is_skipping = self.is_skipping();
        let index_of = |channels: &mut dyn Iterator<Item = &Channel>| {
            let mut index = Index::default();
            index.set_on_demand(&self.coverage.on_demand(), &self.coverage.listed());
            index.join(0, ());
            index.change(0, channels.cloned(), true);
            index
        };
        let begun = || self.parts.iter().enumerate().filter(|(_, part)| part.from <= self.next);
        let whole = begun().filter(|(_, part)| part.has.is_none() && !(part.waits && is_skipping));
        let index = index_of(&mut whole.flat_map(|(_, part)| part.channels.iter()));
        let left_out = begun()
            .filter_map(|(n, part)| Some((n, index_of(&mut part.has.as_ref()?.channels.iter()))));
        (self.left_out, self.index) = (left_out.collect(), index);
    }

    /// Begins the parts that begin with the next entry.
    fn begin_parts(&mut self, yields: &mut impl FnMut(Output<'_>)) {
        self.deliver(yields);
        self.rebuild();
        self.say_notices(yields);
    }

    /// Sends the notice of each part that has begun.
    fn say_notices(&mut self, yields: &mut impl FnMut(Output<'_>)) {
        for part in self.parts.iter_mut().filter(|part| part.from <= self.next) {
            if let Some(notice) = part.notice.take() {
                yields(Output::Notice(&notice));
            }
        }
    }

    /// Where another part begins, if one does later.
    fn next_part(&self) -> u64 {
        let later = self.parts.iter().map(|part| part.from).filter(|from| *from > self.next);
        later.min().unwrap_or(u64::MAX)
    }

    /// Messages up to this position are lost. Leaves nothing more out that was among them.
    fn lose(&mut self, position: Position) {
        let begun = self.parts.iter_mut().filter(|part| part.from <= self.next);
        for part in begun {
            part.has.take_if(|has| has.behind < position);
        }
        self.rebuild();
    }

    /// Goes one step on, at most up to entry `end`, and yields what the session gets.
    pub fn step(&mut self, history: &History, end: u64, mut yields: impl FnMut(Output<'_>)) {
        let mut entries = std::mem::take(&mut self.entries);
        if let Err((first, position)) = history.read(self.next, STEP_BYTES, &mut entries) {
            // The feed was faster. Of one epoch, it is known how much is gone.
            let same = position.epoch == self.position.epoch;
            let lost = same.then(|| position.seq.saturating_sub(self.position.seq));
            let why = Gone::Overtaken(lost);
            let notice = Notice::gone(TierName::Filtered, why, Some(self.position), position);
            yields(Output::Notice(&notice.frame()));
            (self.next, self.position) = (first, position);
            self.lose(position);
        }
        entries.truncate(usize::try_from(end.saturating_sub(self.next)).unwrap_or(usize::MAX));
        self.say_notices(&mut yields);
        let mut next_part = self.next_part();
        for Entry { frame, position, notice, .. } in entries.drain(..) {
            if self.next == next_part {
                self.begin_parts(&mut yields);
                next_part = self.next_part();
            }
            // A notice does not move the position, unless it stands behind lost messages. The
            // client may have it already.
            let moves = notice && position != self.position;
            if moves || position.epoch != self.position.epoch {
                self.deliver(&mut yields);
                self.lose(position);
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
            } else if self.left_out.is_empty() {
                self.batch.add(frame.shared_text(), self.began, self.market, &self.index);
            } else {
                self.deliver_one_by_one(&frame.shared_text(), &mut yields);
            }
            (self.next, self.position) = (self.next + 1, position);
        }
        // A part may begin right behind the last entry.
        if self.next == next_part {
            self.begin_parts(&mut yields);
        }
        self.deliver(&mut yields);
        self.entries = entries;
    }

    fn deliver(&mut self, yields: &mut impl FnMut(Output<'_>)) {
        self.batch.deliver(&self.index, |_, chunks| yields(Output::Events(chunks)));
    }

    /// Delivers the events of a frame, of which the client may have some.
    fn deliver_one_by_one(&mut self, frame: &Bytes, yields: &mut impl FnMut(Output<'_>)) {
        self.deliver(yields);
        let mut events = Vec::new();
        split(frame, |event| events.push(event.start..event.end));
        for event in events {
            let array = Bytes::from([b"[", &frame[event.clone()], b"]"].concat());
            let mut matches = |index: &Index<()>| {
                let mut any = false;
                self.batch.add(array.clone(), self.began, self.market, index);
                self.batch.deliver(index, |_, _| any = true);
                any
            };
            let is_wanted = matches(&self.index);
            let mut has_all = false;
            for (part, index) in &self.left_out {
                let has = &mut self.parts[*part].has;
                if matches(index)
                    && let Some(known) = has
                {
                    known.events -= 1;
                    has_all |= has.take_if(|has| has.events == 0).is_some();
                }
            }
            if is_wanted {
                let text = frame.slice(event);
                yields(Output::Events(&[Chunk::shared(&text, 1)]));
            }
            if has_all {
                self.rebuild();
            }
        }
    }
}
