//! Recognizes arrays as the feed writes them, which are strict JSON, without a parser.
//!
//! Recognized is an array of objects whose values are strings, numbers, or arrays of these. It has
//! no blank, escape, sign, exponent or literal, and nothing in it is empty but strings. Other texts
//! may be JSON as well.
//!
//! Works on 64 bytes at a time, by masks with one bit for each byte; the lowest bit stands for the
//! first byte. Nothing branches on the bytes. A fault is kept until the end.

use multiversion::multiversion;
use wide::u8x16;

/// Bytes inspected together.
const BLOCK: usize = 64;

/// An array that was recognized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flat {
    /// How many objects it holds.
    pub(super) objects: u64,
    /// Whether `st` occurs in it. Every status contains that.
    pub(super) may_hold_status: bool,
}

/// Recognizes an array. `None` says nothing about the text.
pub(super) fn flat(text: &[u8]) -> Option<Flat> {
    let encloses_objects = text.starts_with(b"[{") && text.ends_with(b"}]");
    if encloses_objects { scan(&text[1..]) } else { None }
}

/// Recognizes what follows the first bracket. Compiled three times: for processors with AVX-512,
/// with AVX2, and for all others.
#[multiversion(targets(
    "x86_64+avx512bw+avx512vl+avx2+bmi1+bmi2+lzcnt+popcnt",
    "x86_64+avx2+bmi1+bmi2+lzcnt+popcnt"
))]
fn scan(text: &[u8]) -> Option<Flat> {
    let (mut grammar, mut bytes) = (Grammar::new(), Bytes::default());
    let (mut faults, mut objects) = (0, 0);
    let mut rest = text;
    while let Some(window) = rest.first_chunk() {
        let (fault, begun) = grammar.follow(&Classes::of(window, &mut bytes), u64::MAX);
        faults |= fault;
        objects += u64::from(begun.count_ones());
        rest = &rest[BLOCK..];
    }
    // The last bracket is left out, and filled up with a byte that is of no class.
    let length = rest.len() - 1;
    let mut window = [b'x'; BLOCK + 1];
    window[..length].copy_from_slice(&rest[..length]);
    let (fault, begun) = grammar.follow(&Classes::of(&window, &mut bytes), !(u64::MAX << length));
    faults |= fault;
    objects += u64::from(begun.count_ones());
    let recognized = faults == 0 && grammar.is_complete() && bytes.are_plain();
    recognized.then(|| Flat { objects, may_hold_status: bytes.status.any() })
}

/// What is asked of all bytes, whatever stands beside them.
struct Bytes {
    lowest: u8x16,
    any: u8x16,
    backslashes: u8x16,
    /// Where `st` was.
    status: u8x16,
}

impl Default for Bytes {
    fn default() -> Self {
        let none = u8x16::ZERO;
        Self { lowest: u8x16::MAX, any: none, backslashes: none, status: none }
    }
}

impl Bytes {
    /// Whether there was no control character, nothing beyond ASCII and no backslash.
    fn are_plain(&self) -> bool {
        let ascii = self.any.to_bitmask() == 0;
        ascii && self.lowest.reduce_min() >= b' ' && !self.backslashes.any()
    }
}

/// Which of 64 bytes are of which class.
#[derive(Debug, PartialEq, Eq)]
struct Classes {
    quotes: u64,
    /// `[` and `{`.
    opening: u64,
    /// `]` and `}`.
    closing: u64,
    /// Tells `{` from `[`, and `}` from `]`. Means nothing for other bytes.
    curly: u64,
    colons: u64,
    commas: u64,
    digits: u64,
    zeros: u64,
    dots: u64,
}

impl Classes {
    /// The classes of a window's bytes but the last.
    #[inline(always)]
    fn of(window: &[u8; BLOCK + 1], bytes: &mut Bytes) -> Self {
        let lanes = |bytes: &[u8]| {
            [0, 16, 32, 48]
                .map(|at| u8x16::new(*bytes[at..].first_chunk().expect("a window has four lanes")))
        };
        let (here, next) = (lanes(&window[..BLOCK]), lanes(&window[1..]));
        // Joined in two halves, which the compiler then keeps in registers of 32 bytes.
        let bits = |found: [u8x16; 4]| {
            let [a, b, c, d] = found.map(u8x16::to_bitmask);
            u64::from(a | (b << 16)) | (u64::from(c | (d << 16)) << 32)
        };
        let any = |[a, b, c, d]: [u8x16; 4]| (a | b) | (c | d);
        let is = |byte| here.map(|lane| lane.simd_eq(u8x16::splat(byte)));
        let (s, t) = (is(b's'), next.map(|lane| lane.simd_eq(u8x16::splat(b't'))));
        bytes.lowest = here.iter().fold(bytes.lowest, |lowest, lane| lowest.min(*lane));
        bytes.any |= any(here);
        bytes.backslashes |= any(is(b'\\'));
        bytes.status |= any([0, 1, 2, 3].map(|i| s[i] & t[i]));
        // `[` and `{`, and `]` and `}`, differ in this bit alone.
        const CURLY: u8 = 0x20;
        let folded = here.map(|lane| lane | u8x16::splat(CURLY));
        let digit = |lane: u8x16| {
            let value = lane - u8x16::splat(b'0');
            value.min(u8x16::splat(9)).simd_eq(value)
        };
        Self {
            quotes: bits(is(b'"')),
            opening: bits(folded.map(|lane| lane.simd_eq(u8x16::splat(b'{')))),
            closing: bits(folded.map(|lane| lane.simd_eq(u8x16::splat(b'}')))),
            // The mask takes the highest bit of a byte, and twice the double moves this one there.
            curly: bits(here.map(|lane| lane + lane).map(|double| double + double)),
            colons: bits(is(b':')),
            commas: bits(is(b',')),
            digits: bits(here.map(digit)),
            zeros: bits(is(b'0')),
            dots: bits(is(b'.')),
        }
    }
}

/// The grammar, from one block to the next.
#[derive(Default)]
struct Grammar {
    strings: Spans,
    arrays: Spans,
    values: Spans,
    /// 1 if the block ends among digits after a dot.
    fraction: u64,
    starters: Last,
    closed: Last,
    numbers: Last,
    dots: Last,
    zeros: Last,
    ends: Last,
    separators: Last,
}

impl Grammar {
    /// The grammar where an array begins. An object must follow, as after a comma between two.
    fn new() -> Self {
        Self { separators: Last(1), ..Self::default() }
    }

    /// Whether nothing is open but the last value.
    fn is_complete(&self) -> bool {
        (self.strings.open, self.arrays.open, self.values.open) == (0, 0, 1)
    }

    /// Follows a block, of which only the bytes in `used` count. Returns its faults, and the bytes
    /// that begin an object. Any fault says that the text is not recognized.
    #[inline(always)]
    fn follow(&mut self, classes: &Classes, used: u64) -> (u64, u64) {
        // A quote opens a string if it follows one of these, and else it closes one. If that is
        // wrong, because a string ends with such a byte, the spans show it.
        let starters = classes.opening | classes.colons | classes.commas;
        let after_starter = self.starters.then(starters);
        let opened = classes.quotes & after_starter;
        let closed = classes.quotes ^ opened;
        let (inside, mut faults) = self.strings.of(opened, closed);

        let outside = !(inside | closed);
        let (opening, closing) = (outside & classes.opening, outside & classes.closing);
        let (objects, ends) = (opening & classes.curly, closing & classes.curly);
        let (squares, unsquares) = (opening ^ objects, closing ^ ends);
        let (colons, commas) = (outside & classes.colons, outside & classes.commas);
        let (digits, dots) = (outside & classes.digits, outside & classes.dots);
        let (numbers, stops) = (digits | dots, closing | commas);
        faults |= outside & used & !(numbers | opening | stops | colons);

        // Objects stand at the beginning and after each comma between two, and nowhere else.
        let after_end = self.ends.then(ends);
        faults |= objects ^ self.separators.then(commas & after_end);
        let (array, fault) = self.arrays.of(squares, unsquares);
        faults |= fault | (array & (ends | colons)) | (ends & after_end);
        // A value goes from a colon to the next comma outside arrays. So names and values
        // alternate, and every object has a value before its end.
        faults |= self.values.of(colons, commas & !array).1;

        // What may stand before each byte. What these rules let pass, such as an array for a name,
        // leaves a value out and shows above.
        let after_number = self.numbers.then(numbers);
        faults |= (stops & after_starter) | (squares & !after_starter);
        faults |= colons & !self.closed.then(closed);
        faults |= (digits & !(after_starter | after_number)) | (dots & !after_number);

        // Digits follow a dot, and a number has one dot. A first zero has no digit after it.
        let after_dot = self.dots.then(dots);
        faults |= after_dot & !digits;
        faults |= digits & self.zeros.then(classes.zeros & after_starter);
        // Adding a bit to a run of digits carries just past its end.
        let (sum, carry) = digits.overflowing_add(after_dot);
        let (sum, more) = sum.overflowing_add(self.fraction);
        self.fraction = u64::from(carry | more);
        faults |= dots & sum;

        (faults, objects)
    }
}

/// 1 if the last byte of the block before was of a class.
#[derive(Default)]
struct Last(u64);

impl Last {
    /// The bytes that follow those of the class.
    #[inline(always)]
    fn then(&mut self, class: u64) -> u64 {
        let then = (class << 1) | self.0;
        self.0 = class >> 63;
        then
    }
}

/// What stands between bytes that open and bytes that close.
#[derive(Default)]
struct Spans {
    /// 1 if the block ends inside.
    open: u64,
}

impl Spans {
    /// The bytes from each opening one until before the closing one, and a fault unless they
    /// alternate.
    #[inline(always)]
    fn of(&mut self, opening: u64, closing: u64) -> (u64, u64) {
        // Taking a bit from a higher one leaves the bits between. That is the difference of the two
        // masks only if runs of ones begin where something opens; so these alone need a check.
        let inside = closing.wrapping_sub(opening).wrapping_sub(self.open);
        let begun = inside & !((inside << 1) | self.open);
        self.open = inside >> 63;
        (inside, begun ^ opening)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    /// An event of every kind as the vendor sends it.
    const SAMPLES: &str = include_str!("../../../../tests/it/events.jsonl");

    /// Checks that what is recognized is an array of objects for a JSON parser too. Returns whether
    /// it is recognized.
    #[track_caller]
    fn check(text: &[u8]) -> bool {
        let Some(flat) = flat(text) else { return false };
        let shown = String::from_utf8_lossy(text);
        let elements: Result<Vec<&RawValue>, _> = serde_json::from_slice(text);
        let elements = elements.unwrap_or_else(|error| panic!("{error}: {shown}"));
        assert!(elements.iter().all(|element| element.get().starts_with('{')), "{shown}");
        assert_eq!(flat.objects, elements.len() as u64, "{shown}");
        assert_eq!(flat.may_hold_status, shown.contains("st"), "{shown}");
        true
    }

    /// The text after an event that moves it by this many bytes.
    fn moved(text: &str, by: usize) -> String {
        format!("[{{\"ev\":\"{}\"}},{text}]", "T".repeat(by))
    }

    fn samples() -> Vec<&'static str> {
        let samples = SAMPLES.lines().map(|line| line.split_once("\"sample\":").unwrap().1);
        samples.map(|sample| sample.strip_suffix('}').unwrap()).collect()
    }

    #[test]
    fn the_feeds_own_arrays_are_recognized_wherever_they_stand() {
        let samples: Vec<_> = samples()
            .into_iter()
            // Nested arrays, an exponent and a literal go to the parser.
            .filter(|sample| !["[[", "e-", "true"].iter().any(|rare| sample.contains(rare)))
            .collect();
        assert!(samples.len() > 25, "{}", samples.len());
        for by in 0..BLOCK {
            for sample in &samples {
                assert!(check(moved(sample, by).as_bytes()), "{sample}");
            }
            assert!(check(moved(&samples.join(","), by).as_bytes()));
        }
        for text in [
            r#"[{"":""}]"#,
            r#"[{"a":"{[}]:,0.-","b":["c","d"],"e":[0,0.5,10.25,7]}]"#,
            r#"[{"a":0.10,"b":100,"sta":1}]"#,
        ] {
            assert!(check(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn every_short_text_that_is_recognized_is_json() {
        const PIECES: [&str; 11] = ["{", "}", "[", "]", "\"", ":", ",", "\"a\":", "0", "1", "."];
        let mut recognized = 0;
        // Within a block, and where two meet.
        for by in [0, 45] {
            let mut digits = [0; 5];
            loop {
                let text: String = digits.iter().map(|&digit| PIECES[digit]).collect();
                let text = moved(&format!("{{\"k\":{text}}}"), by);
                recognized += u32::from(check(text.as_bytes()));
                let Some(at) = digits.iter().rposition(|&digit| digit + 1 < PIECES.len()) else {
                    break;
                };
                digits[at] += 1;
                digits[at + 1..].fill(0);
            }
        }
        assert!(recognized > 500, "{recognized}");
    }

    #[test]
    fn a_changed_array_is_recognized_only_if_it_is_json() {
        let mut random = fastrand::Rng::with_seed(11);
        let samples = samples();
        let (mut recognized, mut refused) = (0, 0);
        for _ in 0..60_000 {
            let events: Vec<_> =
                (0..random.usize(1..4)).map(|_| *random.choice(&samples).unwrap()).collect();
            let mut text = moved(&events.join(","), random.usize(..BLOCK)).into_bytes();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..text.len());
                let byte = match random.u8(..8) {
                    0 => random.u8(..),
                    1 => text[random.usize(..text.len())],
                    _ => *random.choice(br#"[]{}:,"0019.-e\ st"#).unwrap(),
                };
                match random.u8(..4) {
                    0 => text[at] = byte,
                    1 => text.insert(at, byte),
                    2 => _ = text.remove(at),
                    _ => {
                        let other = random.usize(..text.len());
                        text.swap(at, other);
                    }
                }
            }
            if check(&text) { recognized += 1 } else { refused += 1 }
        }
        assert!(recognized > 3_000 && refused > 3_000, "{recognized} {refused}");
    }

    #[test]
    fn no_fault_hides_at_the_border_of_two_blocks() {
        for by in 0..2 * BLOCK {
            for bad in [
                r#"{"a":01}"#,
                r#"{"a":00.5}"#,
                r#"{"a":1.2.3}"#,
                r#"{"a":1.}"#,
                r#"{"a":.1}"#,
                r#"{"a":1..2}"#,
                r#"{"a":[1,02]}"#,
                r#"{"a":[1,]}"#,
                r#"{"a":[,1]}"#,
                r#"{"a":[1 }"#,
                r#"{"a":[1}]"#,
                r#"{"a":[1],"b"}"#,
                r#"{"a":["b":1]}"#,
                r#"{"a":[1,"b":1]}"#,
                r#"{"a":1,["b":2]}"#,
                r#"{"a":1,}"#,
                r#"{"a":1,,"b":2}"#,
                r#"{"a":1,2}"#,
                r#"{"a":1,2:3}"#,
                r#"{"a":"b":"c"}"#,
                r#"{"a":"b""c":1}"#,
                r#"{"a":1"b":2}"#,
                r#"{"a":"b"1}"#,
                r#"{"a"}"#,
                r#"{"a",1}"#,
                r#"{"a":}"#,
                r#"{a:1}"#,
                r#"{"a":NaN}"#,
                r#"{"a":1}{"b":2}"#,
                r#"{"a":1},"b":2}"#,
                r#"{"a":1},,{"b":2}"#,
                r#"{"a":1},7"#,
                r#"{"a":1},{"b",2]}"#,
                r#"{"a":[1},{"b",2]}"#,
                r#"{"a":[1},{"b":2]}"#,
                r#"{"a":1}},{"b":2}"#,
                r#"{{"a":1}}"#,
                r#"{"a":"b}"#,
                r#"{"a":b"}"#,
                r#"{"a":"b,"c":1}"#,
                "{\"a\":\"\n\"}",
                "{\"a\":\"\x7f\u{80}\"}",
            ] {
                let text = moved(bad, by);
                assert_eq!(flat(text.as_bytes()), None, "{text}");
                let text = moved(&format!("{bad},{{\"z\":1}}"), by);
                assert_eq!(flat(text.as_bytes()), None, "{text}");
            }
        }
    }

    #[test]
    fn texts_of_any_length_end_where_they_end() {
        for length in 0..3 * BLOCK {
            let text = format!("[{{\"a\":\"{}\"}}]", "x".repeat(length));
            assert!(check(text.as_bytes()), "{text}");
            for end in 0..text.len() {
                assert_eq!(flat(&text.as_bytes()[..end]), None, "{text}");
            }
        }
        for text in ["[{", "}]", "[}]", "[{]", "[{}]", "[]", "[{\"a\":\"}]"] {
            assert_eq!(flat(text.as_bytes()), None, "{text}");
        }
    }
}
