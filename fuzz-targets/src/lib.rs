//! What is fuzzed, each a function of any bytes that panics where something is wrong.
//!
//! cargo-fuzz runs them from `fuzz/fuzz_targets`; `tests/corpus.rs` here runs them over the saved corpus without it.

use std::collections::BTreeSet;

use filtered_proxy::split::{EventKind, split};
use proxy_common::{
    channel::{Channel, items},
    frame::{Frame, cut, separate},
    market::Market,
    protocol::{Command, MAX_MESSAGE_BYTES, Status, command_text, status_frames},
};
use serde_json::{Value, value::RawValue};

/// A function of any bytes.
pub type Target = fn(&[u8]);

/// All of them by name; the corpus of each is the directory of that name.
pub const TARGETS: [(&str, Target); 4] = [
    ("split", split_as_a_parser_would),
    ("channels", channels_of_every_market),
    ("commands", commands),
    ("frames", frames_of_an_upstream),
];

/// `split` finds what a real JSON parser finds, and for what that refuses nothing outside the frame.
///
/// # Panics
///
/// It does not.
pub fn split_as_a_parser_would(frame: &[u8]) {
    let mut found = Vec::new();
    let end = split(frame, |event| {
        assert!(event.start < event.end && event.end <= frame.len());
        assert_eq!((frame[event.start], frame[event.end - 1]), (b'{', b'}'));
        assert!(found.last().is_none_or(|(_, last, _)| *last <= event.start));
        found.push((event.start, event.end, event.kind));
    });
    let Ok(elements) = serde_json::from_slice::<Vec<&RawValue>>(frame) else { return };
    let objects = elements.iter().all(|element| element.get().starts_with('{'));
    assert_eq!(end.is_ok(), objects, "an array of objects or not");
    if !objects {
        return;
    }
    assert_eq!(found.len(), elements.len());
    for (element, (start, end, kind)) in elements.iter().zip(found) {
        assert_eq!(element.get().as_bytes(), &frame[start..end]);
        let Ok(value) = serde_json::from_str::<Value>(element.get()) else { continue };
        // Where a key stands twice this parser keeps the last one: only what is told by each is compared.
        let twice = element.get().matches("ev").count() > 1 || element.get().contains('\\');
        if !twice {
            let named = value.get("ev").is_some_and(Value::is_string);
            assert_eq!(kind != EventKind::Missing, named, "{}", element.get());
        }
    }
}

/// A channel that is taken is shown, to an upstream as well, as one that would be taken.
///
/// # Panics
///
/// It is not.
pub fn channels_of_every_market(list: &[u8]) {
    let Ok(list) = std::str::from_utf8(list) else { return };
    for market in [Market::Stocks, Market::Forex, Market::Crypto] {
        for item in items(list) {
            assert!(!item.is_empty() && item.trim() == item);
            match Channel::parse(item, market) {
                Ok(channel) => {
                    let shown = channel.to_string();
                    let again = Channel::parse(&shown, market);
                    assert!(again.is_ok(), "{item:?} is shown as {shown:?}: {again:?}");
                }
                Err(error) => assert!(error.to_string().len() < 1_000, "{error}"),
            }
        }
    }
}

/// A command is what a real JSON parser says, and its answer is JSON of bounded messages.
///
/// # Panics
///
/// It is not.
pub fn commands(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    match Command::parse(text) {
        Ok(command) => {
            let value: Value = serde_json::from_str(text).expect("a command is JSON");
            let params = value["params"].as_str().expect("params are a string");
            let action = match command {
                Command::Auth(_) => "auth",
                Command::Subscribe(_) => "subscribe",
                Command::Unsubscribe(_) => "unsubscribe",
            };
            assert_eq!(value["action"], action);
            let again: Value =
                serde_json::from_str(&command_text(action, params)).expect("what we write is JSON");
            assert_eq!(again["params"], params);
        }
        Err(error) => {
            let statuses = vec![Status::error(error.to_string()); 2];
            for frame in status_frames(&statuses) {
                assert!(frame.text().len() <= MAX_MESSAGE_BYTES);
                serde_json::from_slice::<Vec<Value>>(frame.text()).expect("an array of statuses");
            }
        }
    }
}

/// What an upstream sends is taken apart without loss: what a real parser finds is data or status.
///
/// # Panics
///
/// Something is lost, or comes from nowhere.
pub fn frames_of_an_upstream(text: &[u8]) {
    let parsed = serde_json::from_slice::<Vec<&RawValue>>(text);
    if let Ok(pieces) = cut(text) {
        let parsed = parsed.as_ref().expect("what is cut is an array");
        let events: u32 = pieces.arrays.iter().map(|(_, events)| events).sum();
        assert_eq!(u64::from(events) + pieces.oversize, parsed.len() as u64);
    }
    let Ok(separated) = separate(Frame::new(text)) else {
        assert!(parsed.is_err(), "an array of JSON was refused");
        return;
    };
    let Ok(parsed) = parsed else { return };
    let data = separated.data.as_ref().map_or(0, |frame| {
        let left: Vec<&RawValue> =
            serde_json::from_slice(frame.text()).expect("data of an array is an array");
        let came: BTreeSet<&str> = parsed.iter().map(|object| object.get()).collect();
        assert!(left.iter().all(|object| came.contains(object.get())));
        left.len()
    });
    assert_eq!(data + separated.statuses.len(), parsed.len());
}
