//! Walks an upstream frame once and finds its events: the start and end of each, its kind and its
//! symbol.
//!
//! Bit masks over 64 bytes at a time find the borders of events in any JSON, with its strings and
//! nesting. If an event begins as the feed writes it (`{"ev":"T","sym":"AAPL"}`), its kind and
//! symbol are read directly; otherwise its keys are walked. Only strings with escapes are decoded,
//! copied or allocated. Nothing is checked, because `demux` has done so: an event goes out as it
//! came.

mod brackets;
pub mod event;
mod head;

use self::{
    brackets::{BLOCK, Brackets, GROUP, QuotePositions},
    event::Event,
    head::{any_head, feed_head, flat_head},
};

/// Calls `visit` with each event of a frame, in order. The frame is an array of objects, as the
/// link passes it on, and has less than 4 GiB.
///
/// If an event has a key twice, the first one counts.
#[inline]
pub fn split(frame: &[u8], mut visit: impl FnMut(Event<'_>)) {
    let mut walk = Walk { frame, depth: 0, start: 0, nested: false, quotes: [0; _] };
    let mut brackets = Brackets::new();
    let (blocks, rest) = frame.as_chunks();
    let mut base = 0;
    for group in blocks.chunks(GROUP) {
        walk.follow(brackets.find(group, base), &mut visit);
        base += (BLOCK * group.len()) as u32;
    }
    if !rest.is_empty() {
        let mut block = [b' '; BLOCK];
        block[..rest.len()].copy_from_slice(rest);
        walk.follow(brackets.find(&[block], base), &mut visit);
    }
}

/// Follows the brackets outside strings.
struct Walk<'a> {
    frame: &'a [u8],
    depth: u32,
    /// The start of the current event.
    start: usize,
    /// Whether the current event holds another object.
    nested: bool,
    /// Room for the quotes that [`flat_head`] finds.
    quotes: QuotePositions,
}

impl Walk<'_> {
    #[inline(always)]
    fn follow(&mut self, mut positions: &[u32], visit: &mut impl FnMut(Event<'_>)) {
        while let Some((&position, rest)) = positions.split_first() {
            let at = position as usize;
            if self.depth != 1 || self.frame[at] != b'{' {
                self.step(at, visit);
                positions = rest;
                continue;
            }
            self.start = at;
            self.nested = false;
            // Most events hold no bracket, or one array without a bracket inside.
            let byte = |i: usize| rest.get(i).map(|&position| self.frame[position as usize]);
            let (end, rest) = match byte(0) {
                Some(b'}') => (rest[0], &rest[1..]),
                Some(b'[') if (byte(1), byte(2)) == (Some(b']'), Some(b'}')) => {
                    (rest[2], &rest[3..])
                }
                _ => {
                    self.depth = 2;
                    positions = rest;
                    continue;
                }
            };
            positions = rest;
            self.visit(end as usize, visit);
        }
    }

    /// Follows any bracket, except one that begins an event.
    #[inline]
    fn step(&mut self, at: usize, visit: &mut impl FnMut(Event<'_>)) {
        match self.frame[at] {
            byte @ (b'{' | b'[') => {
                self.nested |= byte == b'{';
                self.depth += 1;
            }
            _ => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 1 {
                    self.visit(at, visit);
                }
            }
        }
    }

    /// Visits the event that the bracket at `last` ends.
    #[inline(always)]
    fn visit(&mut self, last: usize, visit: &mut impl FnMut(Event<'_>)) {
        let (start, end) = (self.start, last + 1);
        match feed_head(&self.frame[start..end]) {
            Some((kind, symbol)) => visit(Event { start, end, kind, symbol }),
            None => self.visit_other(end, visit),
        }
    }

    /// Visits an event that does not begin as the feed writes it.
    fn visit_other(&mut self, end: usize, visit: &mut impl FnMut(Event<'_>)) {
        let start = self.start;
        let text = &self.frame[start..end];
        if !self.nested
            && let Some((kind, symbol)) = flat_head(text, &mut self.quotes)
        {
            return visit(Event { start, end, kind, symbol });
        }
        let (kind, symbol) = any_head(text);
        visit(Event { start, end, kind, symbol: symbol.as_deref() });
    }
}

#[cfg(test)]
mod tests {
    use super::{
        event::EventKind::{self, *},
        *,
    };
    use proxy_common::protocol::Kind;

    /// The events that `split` finds, one line for each: text, kind, symbol.
    fn found(frame: &str) -> Vec<String> {
        let mut lines = Vec::new();
        split(frame.as_bytes(), |event| {
            let symbol = event.symbol.map(String::from_utf8_lossy);
            lines.push(format!("{} {:?} {symbol:?}", &frame[event.start..event.end], event.kind));
        });
        lines
    }

    #[track_caller]
    fn check(frame: &str, expected: &[(&str, EventKind, Option<&str>)]) {
        let expected: Vec<String> = expected
            .iter()
            .map(|(text, kind, symbol)| format!("{text} {kind:?} {symbol:?}"))
            .collect();
        assert_eq!(found(frame), expected);
    }

    #[test]
    fn the_feeds_own_shapes() {
        let trade = r#"{"ev":"T","sym":"AAPL","i":"1","c":[12,37],"p":1.5}"#;
        let luld = r#"{"ev":"LULD","h":1,"l":2,"i":[16],"z":3,"T":"ABCX","t":1}"#;
        let fmv = r#"{"ev":"FMV","fmv":231.4,"sym":"AAPL","t":1}"#;
        check(
            &format!("[{trade},{luld},{fmv}]"),
            &[
                (trade, Known(Kind::T), Some("AAPL")),
                (luld, Known(Kind::LULD), Some("ABCX")),
                (fmv, Known(Kind::FMV), Some("AAPL")),
            ],
        );
        check("[]", &[]);
        check(" [ ] ", &[]);
    }

    #[test]
    fn any_shape_that_json_allows() {
        for (object, kind, symbol) in [
            (r#"{"sym":"A","ev":"T"}"#, Known(Kind::T), Some("A")),
            ("{ \"ev\" :\n\"T\" , \"sym\" : \"A\" }", Known(Kind::T), Some("A")),
            (r#"{"ev":"T","sym":"A\u0041\"B"}"#, Known(Kind::T), Some("AA\"B")),
            (r#"{"\u0065v":"T","x":"]}","sym":"A"}"#, Known(Kind::T), Some("A")),
            (r#"{"ev":"T","x":"\"sym\":\"NO\"","sym":"A"}"#, Known(Kind::T), Some("A")),
            (r#"{"ev":"T","x":"é\"","sym":"É"}"#, Known(Kind::T), Some("É")),
            (
                r#"{"ev":"T","x":{"sym":"NO"},"y":[[{"sym":"NO"}]],"sym":"A"}"#,
                Known(Kind::T),
                Some("A"),
            ),
            (r#"{"ev":"T","x":[[7],[8]],"sym":"A"}"#, Known(Kind::T), Some("A")),
            (r#"{"ev":"T","x":{"sym":"NO"},"sym":"A"}"#, Known(Kind::T), Some("A")),
            (r#"{"ev":"T","sym":"A","sym":"B","ev":"Q"}"#, Known(Kind::T), Some("A")),
            (r#"{"ev":"T","sym":7,"sym":"A"}"#, Known(Kind::T), None),
            (r#"{"ev":"C","p":"EUR/USD","a":1}"#, Known(Kind::C), Some("EUR/USD")),
            (r#"{"ev":"NOI","sym":"NO","T":"GE"}"#, Known(Kind::NOI), Some("GE")),
            (r#"{"ev":"T","p":"NO","T":"NO"}"#, Known(Kind::T), None),
            (r#"{"ev":"zz","sym":"A"}"#, Unknown, None),
            (r#"{"ev":7,"sym":"A"}"#, Missing, None),
            (r#"{"sym":"A"}"#, Missing, None),
            ("{}", Missing, None),
        ] {
            let frame = format!("[{object} ,{object}]");
            check(&frame, &[(object, kind, symbol), (object, kind, symbol)]);
        }
    }

    #[test]
    fn runs_of_backslashes_are_followed_across_blocks() {
        for padding in 0..130 {
            for run in 0..6 {
                // The quote after an even run is not escaped, so the string ends there.
                let filler = "x".repeat(padding);
                let slashes = "\\".repeat(run);
                let inner = if run % 2 == 0 { "" } else { "\"]}" };
                let object = format!(r#"{{"ev":"T","x":"{filler}{slashes}{inner}","sym":"A"}}"#);
                check(&format!("[{object}]"), &[(&object, Known(Kind::T), Some("A"))]);
            }
        }
    }
}
