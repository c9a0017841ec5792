//! Sorts the events of a batch of frames by cohort, and renders chunks once for each cohort.
//!
//! Pure: frames in, chunks out. A batch holds the frames that the link had ready at once. Nothing
//! but empty buffers is kept from one batch to the next.

use std::time::Instant;

use bytes::Bytes;
use proxy_common::{
    protocol::{Kind, MAX_MESSAGE_BYTES, Market},
    session::{Chunk, ChunkBuffer},
};

use crate::{
    index::{Index, table::CohortId},
    kind_counts::KindCounts,
    last_values::LastValues,
    split::{
        event::{Event, EventKind},
        split,
    },
};

/// Most bytes of one chunk: a message less its brackets.
const MAX_CHUNK_BYTES: usize = MAX_MESSAGE_BYTES - 2;

/// Room for spans that a cohort keeps from one batch to the next. Room that a burst took beyond it
/// is freed.
const KEPT_SPANS: usize = 256;

/// The position of events in a batch: of one, or of several that follow each other in a frame.
#[derive(Debug, Clone, Copy)]
struct Span {
    frame: u32,
    start: u32,
    end: u32,
    events: u32,
}

/// The frame of an event.
#[derive(Debug, Clone, Copy)]
struct Source<'a> {
    /// Its number in the batch.
    number: u32,
    text: &'a [u8],
    read_at: Instant,
}

/// The events of a batch for one cohort.
#[derive(Debug, Default)]
struct Pending {
    spans: Vec<Span>,
    /// The number of the last event added, so that no event is added twice.
    last: u64,
}

/// The counts of a batch's events.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Events found in the frames.
    pub events: u64,
    /// Events that no session wanted.
    pub not_subscribed: u64,
    /// Events longer than a message may be, delivered to no session.
    pub oversize: u64,
    /// Objects without an `ev`, delivered to no session.
    pub missing_ev: u64,
}

/// The counts of one frame.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Events.
    pub events: u64,
    /// Objects without an `ev`.
    pub missing_ev: u64,
}

/// The frames of one batch, and which cohort gets which of their events.
#[derive(Debug, Default)]
pub struct Batch {
    frames: Vec<Bytes>,
    bytes: usize,
    /// By cohort. Buffers are kept for the cohort's next batch.
    pending: Vec<Pending>,
    /// Cohorts with pending events.
    touched: Vec<CohortId>,
    /// All events, for cohorts that hold `*`.
    all: Vec<Span>,
    /// Whether an event was left out after the last span, so that the next event cannot extend it.
    skipped: bool,
    event_number: u64,
    tally: Tally,
    /// The events by kind. The owner takes them after each delivery.
    pub kinds: KindCounts,
    /// The last event of each kind and symbol, if they are kept.
    pub last_values: Option<LastValues>,
    chunk: ChunkBuffer,
}

impl Batch {
    /// An empty batch that keeps last values here, if at all.
    pub fn new(last_values: Option<LastValues>) -> Self {
        Self { last_values, ..Self::default() }
    }

    /// Adds a frame that was read from upstream at this time: finds its events, and records which
    /// cohorts want them. Returns the frame's counts.
    pub fn add<M>(
        &mut self,
        frame: Bytes,
        read_at: Instant,
        market: Market,
        index: &Index<M>,
    ) -> Found {
        let number = self.frames.len() as u32;
        let (events, missing_ev) = (self.tally.events, self.tally.missing_ev);
        self.bytes += frame.len();
        let source = Source { number, text: &frame, read_at };
        split(&frame, |event| self.sort(source, &event, market, index));
        self.frames.push(frame);
        Found { events: self.tally.events - events, missing_ev: self.tally.missing_ev - missing_ev }
    }

    /// Bytes of the frames added since the last delivery.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline(always)]
    fn sort<M>(&mut self, frame: Source<'_>, event: &Event<'_>, market: Market, index: &Index<M>) {
        if event.kind == EventKind::Missing {
            self.tally.missing_ev += 1;
            self.skipped = true;
            return;
        }
        self.tally.events += 1;
        self.kinds.add(event.kind);
        self.event_number += 1;
        let (start, end) = (event.start as u32, event.end as u32);
        let span = Span { frame: frame.number, start, end, events: 1 };
        if event.end - event.start > MAX_CHUNK_BYTES {
            self.tally.oversize += 1;
            self.skipped = true;
            return;
        }
        let kind = match event.kind {
            EventKind::Known(kind) => Some(kind),
            EventKind::Unknown | EventKind::Missing => None,
        };
        match event.symbol {
            Some(symbol) if market.has_symbol_forms() => {
                let symbol = String::from_utf8_lossy(symbol);
                let key = market.symbol_key(&symbol);
                self.assign(kind, Some(key.as_bytes()), span, market, index);
                self.keep(kind, Some(key.as_bytes()), frame, event);
            }
            symbol => {
                self.assign(kind, symbol, span, market, index);
                self.keep(kind, symbol, frame, event);
            }
        }
    }

    /// Keeps an event as a last value, if they are kept.
    #[inline(always)]
    fn keep(
        &mut self,
        kind: Option<Kind>,
        key: Option<&[u8]>,
        frame: Source<'_>,
        event: &Event<'_>,
    ) {
        if let Some(last_values) = &mut self.last_values
            && let (Some(kind), Some(key)) = (kind, key)
        {
            let text = &frame.text[event.start..event.end];
            last_values.keep(kind, key, text, frame.read_at);
        }
    }

    /// Records which cohorts want an event.
    #[inline(always)]
    fn assign<M>(
        &mut self,
        kind: Option<Kind>,
        key: Option<&[u8]>,
        span: Span,
        market: Market,
        index: &Index<M>,
    ) {
        let mut wanted = false;
        let for_all = index.recipients(kind, key, market, |cohort| {
            wanted = true;
            self.pending_of(cohort, span);
        });
        self.skipped |= !for_all;
        if for_all && !index.all().is_empty() {
            wanted = true;
            let extended = !std::mem::take(&mut self.skipped) && extend(&mut self.all, span);
            if !extended {
                self.all.push(span);
            }
        }
        self.tally.not_subscribed += u64::from(!wanted);
    }

    #[inline]
    fn pending_of(&mut self, cohort: CohortId, span: Span) {
        if cohort >= self.pending.len() {
            self.pending.resize_with(cohort + 1, Pending::default);
        }
        let pending = &mut self.pending[cohort];
        if pending.last == self.event_number {
            return;
        }
        pending.last = self.event_number;
        if pending.spans.is_empty() {
            self.touched.push(cohort);
        }
        pending.spans.push(span);
    }

    /// Calls `send` with the chunks of each cohort that gets events, in the order of the events. No
    /// chunk is longer than a message may be. Then clears the batch, and returns the counts of its
    /// events.
    pub fn deliver<M>(
        &mut self,
        index: &Index<M>,
        mut send: impl FnMut(CohortId, &[Chunk<'_>]),
    ) -> Tally {
        self.deliver_all(index, &mut send);
        for cohort in self.touched.drain(..) {
            let pending = &mut self.pending[cohort];
            for span in pending.spans.drain(..) {
                let event =
                    &self.frames[span.frame as usize][span.start as usize..span.end as usize];
                let longer = self.chunk.len() + 1 + event.len();
                if longer > MAX_CHUNK_BYTES && !self.chunk.is_empty() {
                    send(cohort, &[self.chunk.chunk()]);
                    self.chunk.clear();
                }
                self.chunk.push(event, span.events);
            }
            send(cohort, &[self.chunk.chunk()]);
            self.chunk.clear();
            pending.spans.shrink_to(KEPT_SPANS);
        }
        self.chunk.shrink();
        self.frames.clear();
        self.bytes = 0;
        std::mem::take(&mut self.tally)
    }

    /// Sends the frames' own bytes to cohorts that hold `*`.
    fn deliver_all<M>(&mut self, index: &Index<M>, send: &mut impl FnMut(CohortId, &[Chunk<'_>])) {
        if self.all.is_empty() {
            return;
        }
        let slices: Vec<(Bytes, u32)> = self
            .all
            .drain(..)
            .map(|span| {
                let text =
                    self.frames[span.frame as usize].slice(span.start as usize..span.end as usize);
                (text, span.events)
            })
            .collect();
        let chunks: Vec<Chunk<'_>> =
            slices.iter().map(|(text, events)| Chunk::shared(text, *events)).collect();
        for &cohort in index.all() {
            send(cohort, &chunks);
        }
    }
}

/// Extends the last span by the next event of the same frame, unless the chunk would get too long.
/// Returns whether it did.
#[inline]
fn extend(spans: &mut [Span], span: Span) -> bool {
    match spans.last_mut() {
        Some(last)
            if last.frame == span.frame && (span.end - last.start) as usize <= MAX_CHUNK_BYTES =>
        {
            last.end = span.end;
            last.events += 1;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_common::protocol::{Channel, channel_items};

    fn index(market: Market, sets: &[&str]) -> Index<usize> {
        let mut index = Index::default();
        for (session, list) in sets.iter().enumerate() {
            index.join(session as u64, session);
            let channels = channel_items(list).map(|item| Channel::parse(item, market).unwrap());
            index.change(session as u64, channels, true);
        }
        index
    }

    /// The texts that each session gets of these frames.
    fn delivered(market: Market, sets: &[&str], frames: &[&str]) -> (Vec<Vec<String>>, Tally) {
        let index = index(market, sets);
        let mut batch = Batch::default();
        for frame in frames {
            let frame = Bytes::copy_from_slice(frame.as_bytes());
            batch.add(frame, Instant::now(), market, &index);
        }
        let mut got = vec![Vec::new(); sets.len()];
        let tally = batch.deliver(&index, |cohort, chunks| {
            for &session in index.members(cohort) {
                let texts =
                    chunks.iter().map(|chunk| String::from_utf8(chunk.text().to_vec()).unwrap());
                got[session].extend(texts);
            }
        });
        assert_eq!(batch.bytes(), 0);
        (got, tally)
    }

    #[test]
    fn each_session_gets_its_events_once_in_order_and_as_they_came() {
        let frames = [
            r#"[{"ev":"T","sym":"A","p":1.50}, {"ev":"Q","sym":"A"},{"ev":"ZZ","sym":"A"}]"#,
            r#"[{"ev":"LULD","h":1,"T":"A"},{"ev":"T","sym":"B"},{"ev":"Q","sym":"C"}]"#,
        ];
        let sets = ["T.A", "T.*,T.A", "*,T.A", "Q.A,LULD.A", "", "*"];
        let (got, tally) = delivered(Market::Stocks, &sets, &frames);
        assert_eq!(got[0], [r#"{"ev":"T","sym":"A","p":1.50}"#]);
        assert_eq!(got[1], [r#"{"ev":"T","sym":"A","p":1.50},{"ev":"T","sym":"B"}"#]);
        let whole: Vec<String> = frames.iter().map(|f| f[1..f.len() - 1].to_owned()).collect();
        assert_eq!(got[2], whole);
        assert_eq!(got[3], [r#"{"ev":"Q","sym":"A"},{"ev":"LULD","h":1,"T":"A"}"#]);
        assert_eq!(got[4], [""; 0]);
        assert_eq!(got[5], whole);
        assert_eq!(tally, Tally { events: 6, ..Tally::default() });
        let (_, tally) = delivered(Market::Stocks, &sets[..2], &frames);
        assert_eq!(tally, Tally { events: 6, not_subscribed: 4, ..Tally::default() });
    }

    #[test]
    fn pairs_meet_in_any_spelling() {
        let frame = r#"[{"ev":"C","p":"EUR/USD"},{"ev":"FMV","fmv":1,"sym":"C:EURUSD"}]"#;
        let (got, _) = delivered(Market::Forex, &["C.C:EUR-USD", "FMV.EUR/USD"], &[frame]);
        assert_eq!(got[0], [r#"{"ev":"C","p":"EUR/USD"}"#]);
        assert_eq!(got[1], [r#"{"ev":"FMV","fmv":1,"sym":"C:EURUSD"}"#]);
    }

    #[test]
    fn an_event_comes_once_whatever_matches_it() {
        let frame = r#"[{"ev":"T","sym":"AAPL"},{"ev":"T","sym":"AB"},{"ev":"T","sym":"B"}]"#;
        let sets = ["T.A*,T.AA*,T.AAP*,T.AAPL,T.AAPL*", "T.*,T.A*", "*,T.A*", "T.AAPLX*"];
        let (got, tally) = delivered(Market::Stocks, &sets, &[frame]);
        assert_eq!(got[0], [r#"{"ev":"T","sym":"AAPL"},{"ev":"T","sym":"AB"}"#]);
        assert_eq!(got[1], [&frame[1..frame.len() - 1]]);
        assert_eq!(got[2], got[1]);
        assert_eq!(got[3], [""; 0]);
        assert_eq!(tally, Tally { events: 3, ..Tally::default() });
    }

    #[test]
    fn a_prefix_meets_each_pair_that_has_a_spelling_with_it() {
        let frame = r#"[{"ev":"XT","pair":"BTC-USD"},{"ev":"XT","pair":"BTCB-USD"}]"#;
        let (one, both) = ([r#"{"ev":"XT","pair":"BTC-USD"}"#], [&frame[1..frame.len() - 1]]);
        for item in ["XT.BTC-*", "XT.BTC/U*", "XT.X:BTC-*", "XT.BTCU*", "XT.X:BTCUSD*"] {
            let (got, _) = delivered(Market::Crypto, &[item], &[frame]);
            assert_eq!(got[0], one, "{item}");
        }
        for item in ["XT.BTC*", "XT.X:BTC*", "XT.B*", "XT.X:*", "XT.BTC*,XT.BTC-*"] {
            let (got, _) = delivered(Market::Crypto, &[item], &[frame]);
            assert_eq!(got[0], both, "{item}");
        }
        for item in ["XT.X*", "XT.BT-*", "XT.BTC-E*", "XT.BTC-USDT*", "XQ.BTC*"] {
            let (got, _) = delivered(Market::Crypto, &[item], &[frame]);
            assert_eq!(got[0], [""; 0], "{item}");
        }
    }

    #[test]
    fn chunks_stay_below_the_limit_and_longer_events_are_counted() {
        let event = |size: usize| format!(r#"{{"ev":"T","sym":"A","x":"{}"}}"#, "x".repeat(size));
        let (small, huge) = (event(400_000), event(900_000));
        let frame = format!("[{small},{huge},{small},{small}]");
        let (got, tally) = delivered(Market::Stocks, &["T.A", "*"], &[&frame]);
        for texts in &got {
            assert!(texts.iter().all(|text| text.len() <= MAX_CHUNK_BYTES));
            let together = texts.join(",");
            assert_eq!(together, format!("{small},{small},{small}"));
        }
        assert_eq!(tally, Tally { events: 4, oversize: 1, ..Tally::default() });
    }

    #[test]
    fn an_event_may_fill_a_message_alone() {
        let around = r#"{"ev":"T","sym":"A","x":""}"#.len();
        for (length, oversize) in [(MAX_CHUNK_BYTES, 0), (MAX_CHUNK_BYTES + 1, 1)] {
            let x = "x".repeat(length - around);
            let frame = format!(r#"[{{"ev":"T","sym":"A","x":"{x}"}}]"#);
            let (got, tally) = delivered(Market::Stocks, &["T.A", "*"], &[&frame]);
            assert_eq!(tally, Tally { events: 1, oversize, ..Tally::default() });
            for texts in got {
                assert_eq!(texts.len() as u64, 1 - oversize);
            }
        }
    }

    #[test]
    fn objects_without_a_kind_reach_no_session() {
        let frame = r#"[{"ev":"T","sym":"A"},{"sym":"A"},{},{"ev":"T","sym":"B"},{"ev":"ZZ"}]"#;
        let (got, tally) = delivered(Market::Stocks, &["T.*", "*"], &[frame]);
        assert_eq!(got[0], [r#"{"ev":"T","sym":"A"},{"ev":"T","sym":"B"}"#]);
        assert_eq!(got[1], [r#"{"ev":"T","sym":"A"}"#, r#"{"ev":"T","sym":"B"},{"ev":"ZZ"}"#]);
        assert_eq!(tally, Tally { events: 3, missing_ev: 2, ..Tally::default() });
    }
}
