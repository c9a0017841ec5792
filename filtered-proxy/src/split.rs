//! Walks an upstream frame once and finds its events: the start and end of each, its kind and its
//! symbol.
//!
//! Bit masks over 64 bytes at a time find the borders of events in any JSON, with its strings and
//! nesting. If an event begins as the feed writes it (`{"ev":"T","sym":"AAPL"`), its kind and
//! symbol are read directly; otherwise its keys are walked. Only strings with escapes are decoded,
//! copied or allocated. Values are not checked: an event goes out as it came.

mod brackets;
pub mod event;
mod head;

use self::{
    brackets::{BLOCK, Brackets, GROUP, QuotePositions},
    event::{Event, Malformed},
    head::{any_head, feed_head, flat_head, trim_start},
};

/// Calls `visit` with each event of a frame, in order.
///
/// If an event has a key twice, the first one counts.
///
/// # Errors
///
/// The frame is not an array of objects with balanced brackets and closed strings, or bytes other
/// than blanks stand around it; or it has 4 GiB or more.
#[inline]
pub fn split(frame: &[u8], mut visit: impl FnMut(Event<'_>)) -> Result<(), Malformed> {
    if u32::try_from(frame.len()).is_err() {
        return Err(Malformed { at: 0 });
    }
    let mut walk =
        Walk { frame, depth: 0, start: 0, nested: false, last: 0, done: false, quotes: [0; _] };
    let mut brackets = Brackets::new();
    let (blocks, rest) = frame.as_chunks();
    let mut base = 0;
    for group in blocks.chunks(GROUP) {
        walk.follow(brackets.find(group, base), &mut visit)?;
        base += (BLOCK * group.len()) as u32;
    }
    if !rest.is_empty() {
        let mut block = [b' '; BLOCK];
        block[..rest.len()].copy_from_slice(rest);
        walk.follow(brackets.find(&[block], base), &mut visit)?;
    }
    if !walk.done {
        return Err(Malformed { at: frame.len() });
    }
    walk.check_blank(walk.last, frame.len())
}

/// Follows the brackets outside strings.
struct Walk<'a> {
    frame: &'a [u8],
    depth: u32,
    /// The start of the current event.
    start: usize,
    /// Whether the current event holds another object.
    nested: bool,
    /// The end of the last event or bracket that was accepted.
    last: usize,
    done: bool,
    /// Room for the quotes that [`flat_head`] finds.
    quotes: QuotePositions,
}

impl Walk<'_> {
    #[inline(always)]
    fn follow(
        &mut self,
        mut positions: &[u32],
        visit: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Malformed> {
        while let Some((&position, rest)) = positions.split_first() {
            let at = position as usize;
            if self.depth != 1 || self.frame[at] != b'{' {
                self.step(at, visit)?;
                positions = rest;
                continue;
            }
            self.check_separator(at)?;
            // Most events hold no bracket, or one array without a bracket inside.
            let byte = |i: usize| rest.get(i).map(|&position| self.frame[position as usize]);
            let (end, rest) = match byte(0) {
                Some(b'}') => (rest[0], &rest[1..]),
                Some(b'[') if (byte(1), byte(2)) == (Some(b']'), Some(b'}')) => {
                    (rest[2], &rest[3..])
                }
                _ => {
                    self.start = at;
                    self.nested = false;
                    self.depth = 2;
                    positions = rest;
                    continue;
                }
            };
            self.last = end as usize + 1;
            positions = rest;
            match feed_head(&self.frame[at..self.last]) {
                Some((kind, symbol)) => visit(Event { start: at, end: self.last, kind, symbol }),
                None => self.visit_other(at, false, visit),
            }
        }
        Ok(())
    }

    /// Follows any bracket, except one that begins an event.
    #[inline]
    fn step(&mut self, at: usize, visit: &mut impl FnMut(Event<'_>)) -> Result<(), Malformed> {
        match (self.depth, self.frame[at]) {
            (2.., byte @ (b'{' | b'[')) => {
                self.nested |= byte == b'{';
                self.depth += 1;
            }
            (2, b'}') => {
                self.depth = 1;
                self.last = at + 1;
                self.visit_any(self.start, self.nested, visit);
            }
            (3.., _) => self.depth -= 1,
            (1, b']') => {
                self.check_blank(self.last, at)?;
                self.depth = 0;
                self.done = true;
                self.last = at + 1;
            }
            (0, b'[') if !self.done => {
                self.check_blank(0, at)?;
                self.depth = 1;
                self.last = at + 1;
            }
            _ => return Err(Malformed { at }),
        }
        Ok(())
    }

    /// Visits the event from `start` to `last`.
    fn visit_any(&mut self, start: usize, nested: bool, visit: &mut impl FnMut(Event<'_>)) {
        match feed_head(&self.frame[start..self.last]) {
            Some((kind, symbol)) => visit(Event { start, end: self.last, kind, symbol }),
            None => self.visit_other(start, nested, visit),
        }
    }

    /// Visits an event that does not begin as the feed writes it.
    fn visit_other(&mut self, start: usize, nested: bool, visit: &mut impl FnMut(Event<'_>)) {
        let (text, end) = (&self.frame[start..self.last], self.last);
        if !nested && let Some((kind, symbol)) = flat_head(text, &mut self.quotes) {
            return visit(Event { start, end, kind, symbol });
        }
        let (kind, symbol) = any_head(text);
        visit(Event { start, end, kind, symbol: symbol.as_deref() });
    }

    /// Checks that one comma stands between two events, and none before the first. Blanks may
    /// surround it.
    #[inline]
    fn check_separator(&self, at: usize) -> Result<(), Malformed> {
        if at == self.last + 1 && self.frame[self.last] == b',' && self.frame[self.last - 1] == b'}'
        {
            return Ok(());
        }
        let first = self.frame[self.last - 1] == b'[';
        let expected: &[u8] = if first { b"" } else { b"," };
        let gap = &self.frame[self.last..at];
        if trim(gap) == expected { Ok(()) } else { Err(Malformed { at: self.last }) }
    }

    fn check_blank(&self, from: usize, to: usize) -> Result<(), Malformed> {
        let gap = &self.frame[from..to];
        if trim(gap).is_empty() { Ok(()) } else { Err(Malformed { at: from }) }
    }
}

/// The text without the blanks that JSON allows around it.
fn trim(text: &[u8]) -> &[u8] {
    let mut text = trim_start(text);
    while let [rest @ .., b' ' | b'\t' | b'\n' | b'\r'] = text {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{
        event::EventKind::{self, *},
        *,
    };
    use proxy_common::protocol::Kind;

    /// The events that `split` finds, one line for each: text, kind, symbol.
    fn found(frame: &str) -> (Vec<String>, Result<(), Malformed>) {
        let mut lines = Vec::new();
        let end = split(frame.as_bytes(), |event| {
            let symbol = event.symbol.map(String::from_utf8_lossy);
            lines.push(format!("{} {:?} {symbol:?}", &frame[event.start..event.end], event.kind));
        });
        (lines, end)
    }

    #[track_caller]
    fn check(frame: &str, expected: &[(&str, EventKind, Option<&str>)]) {
        let expected: Vec<String> = expected
            .iter()
            .map(|(text, kind, symbol)| format!("{text} {kind:?} {symbol:?}"))
            .collect();
        assert_eq!(found(frame), (expected, Ok(())));
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
            (r#"{"ev":"ZZ","sym":"A"}"#, Unknown, None),
            (r#"{"ev":7,"sym":"A"}"#, Missing, None),
            (r#"{"sym":"A"}"#, Missing, None),
            ("{}", Missing, None),
        ] {
            let frame = format!("[{object} ,{object}]");
            check(&frame, &[(object, kind, symbol), (object, kind, symbol)]);
        }
    }

    #[test]
    fn a_fault_is_found_after_the_good_events() {
        let good = r#"{"ev":"T","sym":"A"}"#;
        // The frame, in which `_` is a good event; the number of events found; and the rest from
        // the fault on.
        for (frame, events, rest) in [
            ("", 0, ""),
            (" ", 0, ""),
            ("_", 0, "_"),
            ("[_", 1, ""),
            ("[_]]", 1, "]"),
            ("[_]x", 1, "x"),
            ("x[_]", 0, "x[_]"),
            ("[__]", 1, "_]"),
            ("[_ _]", 1, " _]"),
            ("[_;_]", 1, ";_]"),
            ("[_,,_]", 1, ",,_]"),
            ("[,_]", 0, ",_]"),
            ("[_,]", 1, ",]"),
            ("[_,7]", 1, ",7]"),
            ("[_,[]]", 1, "[]]"),
            ("[_,\"x\"]", 1, ",\"x\"]"),
            ("[_][_]", 1, "[_]"),
            ("[_,{\"x\":\"]}", 1, ""),
            ("[_,{\"x\":1]", 1, "]"),
        ] {
            let (frame, rest) = (frame.replace('_', good), rest.replace('_', good));
            let (lines, end) = found(&frame);
            assert_eq!(lines.len(), events, "{frame}");
            assert_eq!(end.map_err(|fault| &frame[fault.at..]), Err(&*rest), "{frame}");
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
