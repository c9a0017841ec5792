//! `split`, behind the link's check, compared with a JSON parser.

use std::{collections::BTreeMap, sync::LazyLock};

use filtered_proxy::split::{event::EventKind, split};
use proxy_common::{
    protocol::{Demuxed, demux},
    websocket::Frame,
};
use serde_json::{Value, value::RawValue};

use crate::{channels::is_kind, members::Members};

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

/// An event as the parser or `split` found it: where it begins and ends, its kind (empty if no
/// channel can name it, `None` if there is none), its symbol.
#[derive(Debug, PartialEq)]
struct Found {
    start: usize,
    end: usize,
    kind: Option<String>,
    symbol: Option<Vec<u8>>,
}

/// Checks that `split` finds what a parser finds in an array of objects, wherever the frame lies
/// relative to the borders of its blocks. The link lets nothing else through.
///
/// # Panics
///
/// If it does not.
pub fn as_a_parser_would(frame: &[u8]) {
    check(frame);
    // What the link makes of any other bytes.
    if let Ok(Demuxed { data: Some(data), .. }) = demux(Frame::new(frame)) {
        check(data.text());
    }
}

fn check(frame: &[u8]) {
    let events = found(frame);
    let Some(expected) = model(frame) else { return };
    assert_eq!(events, expected);
    let shift = 1 + frame.iter().fold(0, |sum, &byte| (sum + usize::from(byte)) % 63);
    let mut shifted = found(&[&vec![b' '; shift][..], frame].concat());
    for event in &mut shifted {
        event.start -= shift;
        event.end -= shift;
    }
    assert_eq!(shifted, expected, "after {shift} blanks");
}

/// The events of an array of objects; `None` for any other bytes.
fn model(frame: &[u8]) -> Option<Vec<Found>> {
    let elements: Vec<&RawValue> = serde_json::from_slice(frame).ok()?;
    let event = |element: &RawValue| {
        let text = element.get();
        let (kind, symbol) = head(&Members::read(text)?);
        let start = text.as_ptr() as usize - frame.as_ptr() as usize;
        Some(Found { start, end: start + text.len(), kind, symbol })
    };
    elements.into_iter().map(event).collect()
}

/// The events that the code under test finds.
fn found(frame: &[u8]) -> Vec<Found> {
    let mut events = Vec::new();
    split(frame, |event| {
        let kind = match event.kind {
            EventKind::Known(kind) => Some(kind.to_string()),
            EventKind::Unknown => Some(String::new()),
            EventKind::Missing => None,
        };
        let symbol = event.symbol.map(<[u8]>::to_owned);
        events.push(Found { start: event.start, end: event.end, kind, symbol });
    });
    events
}

/// Kind and symbol from the parser. Of equal keys the first counts. The symbol of a kind that the
/// vendor does not document is the first of four fields that is a string.
fn head(members: &Members<'_>) -> (Option<String>, Option<Vec<u8>>) {
    match members.first_string("ev") {
        None => (None, None),
        Some(code) => match KINDS.get(&code) {
            None if is_kind(&code) => {
                let symbol = ["sym", "pair", "T", "p"]
                    .into_iter()
                    .find_map(|field| members.first_string(field));
                (Some(code), symbol.map(String::into_bytes))
            }
            None => (Some(String::new()), None),
            Some(field) => (Some(code), members.first_string(field).map(String::into_bytes)),
        },
    }
}
