//! Frames of an upstream, separated and split, compared with a model on a JSON parser.

use firehose_proxy::oversized::{Fitting, split_oversized};
use proxy_common::{
    protocol::{Demuxed, MAX_MESSAGE_BYTES, NotAnArray, demux},
    websocket::Frame,
};
use serde_json::{Value, value::RawValue};

use crate::members::Members;

/// Checks that a frame is separated into data, statuses and what no client could read as in the
/// model, byte for byte, and split without loss.
///
/// # Panics
///
/// If it is not.
pub fn of_an_upstream(text: &[u8]) {
    check_demux(text);
    // Blanks move the frame against the blocks of the check.
    let blanks = 1 + text.iter().fold(0, |sum, &byte| (sum + usize::from(byte)) % 255);
    check_demux(&[&vec![b' '; blanks][..], text].concat());
    if let Ok(elements) = serde_json::from_slice::<Vec<&RawValue>>(text) {
        let elements: Vec<&str> = elements.iter().map(|element| element.get()).collect();
        split_without_loss(text, &elements);
        // Long messages are slow, so only some inputs make one.
        if !elements.is_empty() && text.len().is_multiple_of(512) {
            let times = 2 * MAX_MESSAGE_BYTES / text.len();
            let elements = elements.repeat(times);
            split_without_loss(format!("[{}]", elements.join(" ,\n")).as_bytes(), &elements);
        }
    }
}

fn check_demux(text: &[u8]) {
    let demuxed = demux(Frame::new(text));
    if let Ok(Demuxed { data: Some(data), events, .. }) = &demuxed {
        // Whatever goes on is an array of objects, and a strict parser accepts it.
        let objects: Vec<&RawValue> =
            serde_json::from_slice(data.text()).expect("what goes on is JSON");
        let objects: Vec<&str> = objects.into_iter().map(RawValue::get).collect();
        assert!(objects.iter().all(|object| object.starts_with('{') && is_shallow(object)));
        assert_eq!(objects.len() as u64, *events);
    }
    let elements = match text.trim_ascii_start().first() {
        Some(b'[') => serde_json::from_slice::<Vec<&RawValue>>(text),
        Some(b'{') => serde_json::from_slice(text).map(|object: &RawValue| vec![object]),
        _ => return assert!(demuxed.is_err(), "neither an array nor an object"),
    };
    match elements {
        Ok(elements) => check_json(text, &elements, demuxed),
        Err(_) => check_damaged(text, demuxed),
    }
}

/// Checks what is made of JSON.
fn check_json(text: &[u8], elements: &[&RawValue], demuxed: Result<Demuxed, NotAnArray>) {
    let lone = text.trim_ascii_start().starts_with(b"{");
    let is_good = |element: &&str| element.starts_with('{') && is_shallow(element);
    let Ok(demuxed) = demuxed else {
        assert!(lone && !is_shallow(elements[0].get()), "JSON was refused");
        return;
    };
    let (good, bad): (Vec<&str>, Vec<&str>) =
        elements.iter().map(|element| element.get()).partition(is_good);
    let (statuses, rest): (Vec<_>, Vec<_>) =
        good.into_iter().partition(|element| is_status(element));
    let texts: Vec<&str> = demuxed.statuses.iter().map(|status| status.text.as_str()).collect();
    assert_eq!(texts, statuses);
    for status in &demuxed.statuses {
        let (name, message) = name_and_message(&status.text);
        assert_eq!((&status.parsed.status, &status.parsed.message), (&name, &message));
    }
    let (malformed, odd): (Vec<&str>, Vec<&str>) =
        bad.iter().partition(|element| element.contains('{'));
    assert_eq!(demuxed.malformed, malformed.len() as u64);
    assert_eq!(demuxed.not_objects, odd.len() as u64);
    assert!(!demuxed.broken_off);
    let data = demuxed.data.map(|data| data.text().to_vec());
    if rest.len() == elements.len() && !lone {
        assert_eq!(data.as_deref(), Some(text), "nothing was taken out");
    } else {
        let left = format!("[{}]", rest.join(","));
        assert_eq!(data, (!rest.is_empty()).then(|| left.into_bytes()));
    }
}

/// Checks what is made of bytes that are not JSON: nothing goes on unchanged, and whatever goes on
/// stands in the frame, in order.
fn check_damaged(text: &[u8], demuxed: Result<Demuxed, NotAnArray>) {
    let Ok(Demuxed { data, not_objects, malformed, broken_off, .. }) = demuxed else { return };
    assert!(broken_off || not_objects + malformed > 0, "damage went unnoticed");
    let Some(data) = data else { return };
    let objects: Vec<&RawValue> =
        serde_json::from_slice(data.text()).expect("what goes on is JSON");
    let mut rest = text;
    for object in objects {
        let object = object.get().as_bytes();
        let at = rest.windows(object.len()).position(|window| window == object);
        rest = &rest[at.expect("an event has the bytes that came") + object.len()..];
    }
}

/// Whether an element of an array is nested no deeper than `serde_json` reads it by default, with
/// the array around it.
fn is_shallow(element: &str) -> bool {
    let (mut depth, mut deepest, mut string, mut escaped) = (1, 1, false, false);
    for byte in element.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => string = !string,
            b'[' | b'{' if !string => depth += 1,
            b']' | b'}' if !string => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest < 128
}

/// Whether an element is an object whose only `ev` is `status`, or one without a type whose only
/// `status` is a string that is not empty. The word stands in it without escapes.
fn is_status(element: &str) -> bool {
    if !element.contains(r#""status""#) {
        return false;
    }
    let Some(members) = Members::read(element) else { return false };
    match members.only("ev") {
        Some(Some(Value::String(ev))) if ev == "status" => true,
        Some(Some(Value::String(ev))) if !ev.is_empty() => false,
        Some(None | Some(Value::String(_))) => {
            matches!(members.only("status"), Some(Some(Value::String(name))) if !name.is_empty())
        }
        Some(Some(_)) | None => false,
    }
}

/// The name and the message of a status. Both are empty if one of them is not valid.
fn name_and_message(status: &str) -> (String, String) {
    let members = Members::read(status).expect("a status is an object");
    let field = |name| match members.only(name)? {
        None => Some(String::new()),
        Some(value) => value.as_str().map(str::to_owned),
    };
    field("status").zip(field("message")).unwrap_or_default()
}

/// The pieces hold all elements that fit a message, and no piece could have been longer.
fn split_without_loss(text: &[u8], elements: &[&str]) {
    let Fitting { arrays, oversize } = split_oversized(text);
    let mut expected = elements.iter().filter(|element| element.len() + 2 <= MAX_MESSAGE_BYTES);
    let mut fitting = 0;
    let mut last = None;
    for (array, events) in &arrays {
        let array = array.text();
        assert!(array.len() <= MAX_MESSAGE_BYTES);
        let pieces: Vec<&RawValue> = serde_json::from_slice(array).expect("a piece is an array");
        assert_eq!(pieces.len(), *events as usize);
        for piece in &pieces {
            assert_eq!(Some(&piece.get()), expected.next());
        }
        let first = pieces.first().expect("no piece is empty").get();
        assert!(last.is_none_or(|last| last + 1 + first.len() > MAX_MESSAGE_BYTES));
        last = Some(array.len());
        fitting += pieces.len();
    }
    assert_eq!((expected.next(), fitting + oversize as usize), (None, elements.len()));
}
