//! `split`, compared with two readers that share no line with it: a walk over the bytes for any
//! input, and a JSON parser for JSON.

use std::{collections::BTreeMap, sync::LazyLock};

use filtered_proxy::split::{
    event::{EventKind, Malformed},
    split,
};
use serde_json::{Value, value::RawValue};

use crate::members::Members;

/// An event of every kind as the vendor sends it, with the field that holds its symbol.
const SAMPLES: &str = include_str!("../../../tests/it/events.jsonl");

/// The vendor's kinds, and the symbol field of each.
static KINDS: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let lines = SAMPLES.lines().map(|line| serde_json::from_str(line).expect("a line parses"));
    let field = |line: Value| {
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        Some((text("ev")?, text("symbol_field")?))
    };
    lines.filter_map(field).collect()
});

/// An event as one of the readers found it: where it begins and ends, its kind (empty if unknown,
/// `None` if there is none), its symbol.
#[derive(Debug, PartialEq)]
struct Found {
    start: usize,
    end: usize,
    kind: Option<String>,
    symbol: Option<Vec<u8>>,
}

/// Checks that `split` finds what both readers find, wherever the frame lies relative to the
/// borders of its blocks.
///
/// # Panics
///
/// If it does not.
pub fn as_a_parser_would(frame: &[u8]) {
    let (events, end) = found(frame);
    let (borders, whole) = walk(frame);
    let places: Vec<_> = events.iter().map(|event| (event.start, event.end)).collect();
    assert_eq!((places, end.is_ok()), (borders, whole), "events by a walk through the bytes");
    if let Err(Malformed { at }) = end {
        let last = events.last().map_or(0, |event| event.end);
        assert!(
            last <= at && at <= frame.len(),
            "{at} is not between the last good event and the end"
        );
    }
    let parsed = serde_json::from_slice::<Vec<&RawValue>>(frame).ok();
    if let Some(elements) = &parsed {
        let objects = elements.iter().all(|element| element.get().starts_with('{'));
        assert_eq!(whole, objects, "an array of objects or not");
    }
    // A frame that is not JSON may hold events that are.
    for event in &events {
        let Ok(text) = str::from_utf8(&frame[event.start..event.end]) else { continue };
        if let Some(members) = Members::read(text) {
            let (kind, symbol) = head(&members);
            assert_eq!((&event.kind, &event.symbol), (&kind, &symbol), "{text}");
        } else {
            assert!(parsed.is_none(), "an event of a JSON array is JSON: {text}");
        }
    }
    let shift = 1 + frame.iter().fold(0, |sum, &byte| (sum + usize::from(byte)) % 63);
    let (mut shifted, shifted_end) = found(&[&vec![b' '; shift][..], frame].concat());
    for event in &mut shifted {
        event.start -= shift;
        event.end -= shift;
    }
    assert_eq!((shifted, shifted_end.is_ok()), (events, whole), "after {shift} blanks");
}

/// The events that the code under test finds.
fn found(frame: &[u8]) -> (Vec<Found>, Result<(), Malformed>) {
    let mut events = Vec::new();
    let end = split(frame, |event| {
        let kind = match event.kind {
            EventKind::Known(kind) => Some(kind.name().to_owned()),
            EventKind::Unknown => Some(String::new()),
            EventKind::Missing => None,
        };
        let symbol = event.symbol.map(<[u8]>::to_owned);
        events.push(Found { start: event.start, end: event.end, kind, symbol });
    });
    (events, end)
}

/// Where the events begin and end, and whether the frame is an array of events and nothing else.
///
/// Inside an event, either kind of bracket may close the other, as long as the event ends at the
/// same byte.
fn walk(frame: &[u8]) -> (Vec<(usize, usize)>, bool) {
    /// What may stand next outside events.
    #[derive(PartialEq)]
    enum Next {
        Array,
        EventOrEnd,
        CommaOrEnd,
        Event,
        Nothing,
    }
    let mut events = Vec::new();
    let mut next = Next::Array;
    let (mut start, mut depth, mut string, mut escaped) = (0, 0, false, false);
    for (at, &byte) in frame.iter().enumerate() {
        // Outside strings a backslash is not valid, but it still takes away the meaning of a quote.
        let bare = !escaped;
        escaped = bare && byte == b'\\';
        if string {
            string = !(bare && byte == b'"');
        } else if depth > 0 {
            match byte {
                b'"' => string = bare,
                b'{' | b'[' => depth += 1,
                b']' if depth == 1 => return (events, false),
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                events.push((start, at + 1));
            }
        } else {
            next = match (next, byte) {
                (next, b' ' | b'\t' | b'\n' | b'\r') => next,
                (Next::Array, b'[') => Next::EventOrEnd,
                (Next::EventOrEnd | Next::CommaOrEnd, b']') => Next::Nothing,
                (Next::CommaOrEnd, b',') => Next::Event,
                (Next::EventOrEnd | Next::Event, b'{') => {
                    (start, depth) = (at, 1);
                    Next::CommaOrEnd
                }
                _ => return (events, false),
            };
        }
    }
    (events, depth == 0 && next == Next::Nothing)
}

/// Kind and symbol from the parser. Of equal keys the first counts.
fn head(members: &Members<'_>) -> (Option<String>, Option<Vec<u8>>) {
    match members.first_string("ev") {
        None => (None, None),
        Some(code) => match KINDS.get(&code) {
            None => (Some(String::new()), None),
            Some(field) => (Some(code), members.first_string(field).map(String::into_bytes)),
        },
    }
}
