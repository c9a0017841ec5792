//! Walks an upstream frame once and finds its events: where each begins and ends, its kind and its symbol.
//!
//! Borders are found with masks of 64 bytes at a time that know strings and nesting, for any JSON. Kind and symbol are read
//! at a glance where an event begins as the feed writes it (`{"ev":"T","sym":"AAPL"`), and by walking its keys otherwise.
//! Nothing is decoded, copied or allocated, but for strings with escapes. Values are not checked: an event goes out as it came.

use std::borrow::Cow;

use proxy_common::market::{Kind, SymbolField};
use wide::u8x16;

/// One event of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// Where its object begins in the frame.
    pub start: usize,
    /// Where its object ends.
    pub end: usize,
    /// Its kind.
    pub kind: EventKind,
    /// Its symbol, from the field that its kind keeps it in; `None` where that field is missing or no string.
    pub symbol: Option<Cow<'a, [u8]>>,
}

/// What the `ev` of an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A kind of the vendor's.
    Known(Kind),
    /// A kind that this program does not know; only `*` brings it.
    Unknown,
    /// There is no `ev`, or it is no string: no event at all. Official clients die of such objects.
    Missing,
}

/// The frame stops being an array of objects here. Events before it are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// The byte at which it was noticed.
    pub at: usize,
}

/// Calls `visit` with each event of a frame, in order.
///
/// Where a key stands twice in an event, the first one counts.
///
/// # Errors
///
/// The frame is not an array of objects with balanced brackets and closed strings, and nothing but blanks around them.
#[inline]
pub fn split<'a>(frame: &'a [u8], mut visit: impl FnMut(Event<'a>)) -> Result<(), Malformed> {
    let mut walk = Walk { frame, depth: 0, start: 0, last: 0, done: false };
    let mut strings = Strings::default();
    let (blocks, rest) = frame.as_chunks::<64>();
    for (i, block) in blocks.iter().enumerate() {
        walk.take(i * 64, strings.outside(&Masks::of(block)), &mut visit)?;
    }
    if !rest.is_empty() {
        let mut block = [b' '; 64];
        block[..rest.len()].copy_from_slice(rest);
        walk.take(blocks.len() * 64, strings.outside(&Masks::of(&block)), &mut visit)?;
    }
    if !walk.done {
        return Err(Malformed { at: frame.len() });
    }
    walk.blank(walk.last, frame.len())
}

/// Follows the brackets outside strings.
struct Walk<'a> {
    frame: &'a [u8],
    depth: u32,
    /// Where the event at hand began.
    start: usize,
    /// Where what was understood last ended.
    last: usize,
    done: bool,
}

impl<'a> Walk<'a> {
    #[inline(always)]
    fn take(
        &mut self,
        base: usize,
        mut brackets: u64,
        visit: &mut impl FnMut(Event<'a>),
    ) -> Result<(), Malformed> {
        while brackets != 0 {
            let at = base + brackets.trailing_zeros() as usize;
            brackets &= brackets - 1;
            let byte = self.frame[at];
            if self.depth > 1 {
                // `{` and `[` differ from `}` and `]` in this bit.
                if byte & 0b100 == 0 {
                    self.depth += 1;
                    continue;
                }
                self.depth -= 1;
                if self.depth == 1 {
                    if byte != b'}' {
                        return Err(Malformed { at });
                    }
                    self.last = at + 1;
                    visit(head(self.frame, self.start, at + 1));
                }
                continue;
            }
            self.outer(at, byte)?;
        }
        Ok(())
    }

    /// A bracket outside events.
    #[inline]
    fn outer(&mut self, at: usize, byte: u8) -> Result<(), Malformed> {
        match (self.depth, byte) {
            (1, b'{') => {
                self.separator(at)?;
                self.start = at;
                self.depth = 2;
            }
            (1, b']') => {
                self.blank(self.last, at)?;
                self.depth = 0;
                self.done = true;
            }
            (0, b'[') if !self.done => {
                self.blank(0, at)?;
                self.depth = 1;
            }
            _ => return Err(Malformed { at }),
        }
        self.last = at + 1;
        Ok(())
    }

    /// Between two events stands one comma, before the first none; blanks may surround it.
    #[inline]
    fn separator(&self, at: usize) -> Result<(), Malformed> {
        let gap = &self.frame[self.last..at];
        if gap == b"," && self.frame[self.last - 1] == b'}' {
            return Ok(());
        }
        let first = self.frame[self.last - 1] == b'[';
        let expected: &[u8] = if first { b"" } else { b"," };
        if trim(gap) == expected { Ok(()) } else { Err(Malformed { at: self.last }) }
    }

    fn blank(&self, from: usize, to: usize) -> Result<(), Malformed> {
        let gap = &self.frame[from..to];
        if trim(gap).is_empty() { Ok(()) } else { Err(Malformed { at: from }) }
    }
}

/// Without the blanks that JSON knows.
fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t' | b'\n' | b'\r'] = text {
        text = rest;
    }
    text
}

/// Which of 64 bytes are quotes, backslashes and brackets; the first byte is the lowest bit.
#[derive(Debug, PartialEq, Eq)]
struct Masks {
    quotes: u64,
    backslashes: u64,
    brackets: u64,
}

impl Masks {
    #[inline(always)]
    fn of(block: &[u8; 64]) -> Self {
        let mut masks = Self { quotes: 0, backslashes: 0, brackets: 0 };
        for (i, lane) in block.as_chunks::<16>().0.iter().enumerate() {
            let bytes = u8x16::new(*lane);
            let bits = |found: u8x16| u64::from(found.to_bitmask()) << (16 * i);
            // `[` and `{`, and `]` and `}`, differ in this bit alone.
            let folded = bytes | u8x16::splat(0x20);
            let brackets = folded.simd_eq(u8x16::splat(b'{')) | folded.simd_eq(u8x16::splat(b'}'));
            masks.quotes |= bits(bytes.simd_eq(u8x16::splat(b'"')));
            masks.backslashes |= bits(bytes.simd_eq(u8x16::splat(b'\\')));
            masks.brackets |= bits(brackets);
        }
        masks
    }
}

/// What is carried from one block to the next about strings.
#[derive(Debug, Default)]
struct Strings {
    /// All ones if the block before ended inside a string.
    inside: u64,
    /// 1 if the block before ended with a backslash that escapes.
    escaping: u64,
}

impl Strings {
    /// The brackets outside strings.
    #[inline(always)]
    fn outside(&mut self, masks: &Masks) -> u64 {
        let mut quotes = masks.quotes;
        if masks.backslashes | self.escaping != 0 {
            quotes &= !self.escaped(masks.backslashes);
        }
        // Bit i of the running xor tells whether an odd number of quotes stands at or before byte i.
        let mut inside = quotes;
        for shift in [1, 2, 4, 8, 16, 32] {
            inside ^= inside << shift;
        }
        inside ^= self.inside;
        self.inside = ((inside as i64) >> 63) as u64;
        masks.brackets & !inside
    }

    /// Which bytes are escaped by a backslash before them that is not escaped itself: those behind an odd run of backslashes.
    fn escaped(&mut self, backslashes: u64) -> u64 {
        const EVEN: u64 = 0x5555_5555_5555_5555;
        let active = backslashes & !self.escaping;
        let follows = (active << 1) | self.escaping;
        let odd_starts = active & !EVEN & !follows;
        // Adding a run's start to the run carries just past its end; whether the end is even or odd tells the run's length.
        let (ends, carry) = odd_starts.overflowing_add(active);
        self.escaping = u64::from(carry);
        (EVEN ^ (ends << 1)) & follows
    }
}

/// Reads kind and symbol of the event at `start..end`.
#[inline(always)]
fn head(frame: &[u8], start: usize, end: usize) -> Event<'_> {
    let text = &frame[start..end];
    let (kind, symbol) = feed_head(text).unwrap_or_else(|| any_head(text));
    Event { start, end, kind, symbol }
}

/// A string of the frame, borrowed unless it had escapes.
type Text<'a> = Cow<'a, [u8]>;
type Head<'a> = (EventKind, Option<Text<'a>>);

/// The head of an event that begins as the feed writes most of them: `ev`, then the symbol. `None` for any other.
#[inline(always)]
fn feed_head(text: &[u8]) -> Option<Head<'_>> {
    let rest = text.strip_prefix(br#"{"ev":""#)?;
    let (kind, rest) = match rest {
        [b'T', b'"', rest @ ..] => (Kind::T, rest),
        [b'Q', b'"', rest @ ..] => (Kind::Q, rest),
        _ => {
            let end = rest.iter().take(5).position(|&byte| byte == b'"')?;
            (Kind::from_code(&rest[..end])?, &rest[end + 1..])
        }
    };
    let rest = match kind.symbol_field() {
        SymbolField::Sym => rest.strip_prefix(br#","sym":""#)?,
        SymbolField::T => rest.strip_prefix(br#","T":""#)?,
        SymbolField::Pair => rest.strip_prefix(br#","pair":""#)?,
        SymbolField::P => rest.strip_prefix(br#","p":""#)?,
    };
    let end = rest.iter().position(|&byte| matches!(byte, b'"' | b'\\'))?;
    (rest[end] == b'"').then(|| (EventKind::Known(kind), Some(Cow::Borrowed(&rest[..end]))))
}

/// The head of an event of any form, by walking its keys.
fn any_head(text: &[u8]) -> Head<'_> {
    let mut fields = Fields { rest: &text[1..] };
    let mut ev = None;
    let mut symbols = [None, None, None, None];
    while let Some((key, value)) = fields.next() {
        let slot = match key.decode().as_deref() {
            Some(b"ev") => &mut ev,
            Some(b"sym") => &mut symbols[SymbolField::Sym as usize],
            Some(b"T") => &mut symbols[SymbolField::T as usize],
            Some(b"pair") => &mut symbols[SymbolField::Pair as usize],
            Some(b"p") => &mut symbols[SymbolField::P as usize],
            _ => continue,
        };
        if slot.is_none() {
            *slot = Some(value.and_then(Quoted::decode));
        }
    }
    let Some(code) = ev.flatten() else { return (EventKind::Missing, None) };
    let Some(kind) = Kind::from_code(&code) else { return (EventKind::Unknown, None) };
    (EventKind::Known(kind), symbols[kind.symbol_field() as usize].take().flatten())
}

/// A string as it stands in the frame, with its quotes.
#[derive(Clone, Copy)]
struct Quoted<'a> {
    text: &'a [u8],
    escapes: bool,
}

impl<'a> Quoted<'a> {
    /// What the string says; `None` if that is no text, as with half of a surrogate pair.
    fn decode(self) -> Option<Text<'a>> {
        if !self.escapes {
            return Some(Cow::Borrowed(&self.text[1..self.text.len() - 1]));
        }
        let decoded: String = serde_json::from_slice(self.text).ok()?;
        Some(Cow::Owned(decoded.into_bytes()))
    }
}

/// The members of an object: keys, and values where they are strings.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The next key and its value. `None` at the end, or where this is no object.
    fn next(&mut self) -> Option<(Quoted<'a>, Option<Quoted<'a>>)> {
        self.rest = trim_start(self.rest);
        if let [b',', rest @ ..] = self.rest {
            self.rest = trim_start(rest);
        }
        let key = self.string()?;
        self.rest = trim_start(self.rest).strip_prefix(b":")?;
        self.rest = trim_start(self.rest);
        if self.rest.first() == Some(&b'"') {
            return Some((key, Some(self.string()?)));
        }
        self.skip_value();
        Some((key, None))
    }

    /// Takes the string at hand.
    fn string(&mut self) -> Option<Quoted<'a>> {
        let text = self.rest;
        if text.first() != Some(&b'"') {
            return None;
        }
        let mut escapes = false;
        let mut i = 1;
        loop {
            match text.get(i)? {
                b'"' => break,
                b'\\' => {
                    escapes = true;
                    i += 2;
                }
                _ => i += 1,
            }
        }
        self.rest = &text[i + 1..];
        Some(Quoted { text: &text[..=i], escapes })
    }

    /// Passes a value that is no string: up to the comma or bracket that ends it on its own level.
    fn skip_value(&mut self) {
        let mut depth = 0_usize;
        while let Some(&byte) = self.rest.first() {
            match byte {
                b'"' => {
                    if self.string().is_none() {
                        self.rest = &[];
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth == 0 => return,
                b'}' | b']' => depth -= 1,
                b',' if depth == 0 => return,
                _ => {}
            }
            self.rest = &self.rest[1..];
        }
    }
}

fn trim_start(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = text {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{EventKind::*, *};

    /// What `split` finds, one line an event: text, kind, symbol.
    fn found(frame: &str) -> (Vec<String>, Result<(), Malformed>) {
        let mut lines = Vec::new();
        let end = split(frame.as_bytes(), |event| {
            let symbol = event.symbol.as_deref().map(String::from_utf8_lossy);
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
            (
                r#"{"ev":"T","x":{"sym":"NO"},"y":[[{"sym":"NO"}]],"sym":"A"}"#,
                Known(Kind::T),
                Some("A"),
            ),
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
    fn what_is_no_array_of_objects_is_noticed_behind_the_good_events() {
        let good = r#"{"ev":"T","sym":"A"}"#;
        for (frame, events) in [
            (String::new(), 0),
            (" ".to_owned(), 0),
            (good.to_owned(), 0),
            (format!("[{good}"), 1),
            (format!("[{good}]]"), 1),
            (format!("[{good}]x"), 1),
            (format!("x[{good}]"), 0),
            (format!("[{good}{good}]"), 1),
            (format!("[{good},,{good}]"), 1),
            (format!("[,{good}]"), 0),
            (format!("[{good},]"), 1),
            (format!("[{good},7]"), 1),
            (format!("[{good},[]]"), 1),
            (format!("[{good},\"x\"]"), 1),
            (format!("[{good}][{good}]"), 1),
            (format!("[{good},{{\"x\":\"]}}"), 1),
            (format!("[{good},{{\"x\":1]"), 1),
        ] {
            let (lines, end) = found(&frame);
            assert_eq!(lines.len(), events, "{frame}");
            assert!(end.is_err(), "{frame}");
        }
    }

    #[test]
    fn masks_show_each_byte_where_it_stands() {
        for shift in 0..=255_u8 {
            let block: [u8; 64] = std::array::from_fn(|i| shift.wrapping_add((i * 37) as u8));
            let find = |wanted: fn(u8) -> bool| {
                (0..64).fold(0, |mask, i| mask | (u64::from(wanted(block[i])) << i))
            };
            let expected = Masks {
                quotes: find(|byte| byte == b'"'),
                backslashes: find(|byte| byte == b'\\'),
                brackets: find(|byte| matches!(byte, b'[' | b']' | b'{' | b'}')),
            };
            assert_eq!(Masks::of(&block), expected);
        }
    }

    #[test]
    fn runs_of_backslashes_are_followed_across_blocks() {
        for padding in 0..130 {
            for run in 0..6 {
                // An even run leaves the quote behind it bare: the string ends there.
                let filler = "x".repeat(padding);
                let slashes = "\\".repeat(run);
                let inner = if run % 2 == 0 { "" } else { "\"]}" };
                let object = format!(r#"{{"ev":"T","x":"{filler}{slashes}{inner}","sym":"A"}}"#);
                check(&format!("[{object}]"), &[(&object, Known(Kind::T), Some("A"))]);
            }
        }
    }
}
