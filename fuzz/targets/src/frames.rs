//! Frames of an upstream, separated and split, compared with a model on a JSON parser.

use firehose_proxy::oversized::{Fitting, split_oversized};
use proxy_common::{
    protocol::{Demuxed, MAX_MESSAGE_BYTES, demux},
    websocket::Frame,
};
use serde_json::{Value, value::RawValue};

use crate::members::Members;

/// Checks that a frame is separated into data and statuses as in the model, byte for byte, and
/// split without loss.
///
/// # Panics
///
/// If it is not.
pub fn of_an_upstream(text: &[u8]) {
    check_demux(text);
    // Blanks move the frame against the strides of the scan.
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
    } else {
        assert!(split_oversized(text).is_err(), "something other than an array was split");
    }
}

fn check_demux(text: &[u8]) {
    let demuxed = demux(Frame::new(text));
    let start = text.trim_ascii_start();
    let lone = start.starts_with(b"{");
    let Some(utf8) = str::from_utf8(text).ok().filter(|_| lone || start.starts_with(b"[")) else {
        assert!(demuxed.is_err(), "a frame was accepted that is neither array nor object");
        return;
    };
    let elements = if lone {
        serde_json::from_str(utf8).map(|object: &RawValue| vec![object])
    } else {
        serde_json::from_str::<Vec<&RawValue>>(utf8)
    };
    let whole = if lone { format!("[{utf8}]") } else { utf8.to_owned() };
    let Ok(Demuxed { data, events, statuses }) = demuxed else {
        assert!(elements.is_err(), "JSON was refused");
        return;
    };
    // A frame that contains no status in plain spelling is passed on unread.
    if !lone && !may_hold_status(utf8) {
        assert_eq!(data.map(|data| data.text().to_owned()).as_deref(), Some(text));
        assert_eq!(statuses.len(), 0);
        if let Ok(elements) = elements {
            let objects = elements.iter().filter(|element| element.get().starts_with('{'));
            assert_eq!(events as usize, objects.count());
        }
        return;
    }
    let elements = elements.expect("an accepted frame is JSON");
    let (expected, rest): (Vec<_>, Vec<_>) =
        elements.into_iter().map(RawValue::get).partition(|element| is_status(element));
    let texts: Vec<&str> = statuses.iter().map(|status| status.text.as_str()).collect();
    assert_eq!(texts, expected);
    for status in &statuses {
        let (name, message) = name_and_message(&status.text);
        assert_eq!((&status.parsed.status, &status.parsed.message), (&name, &message));
    }
    assert_eq!(events as usize, rest.iter().filter(|text| text.starts_with('{')).count());
    let left = if expected.is_empty() { whole } else { format!("[{}]", rest.join(",")) };
    let left = (!rest.is_empty()).then_some(left);
    assert_eq!(data.map(|data| data.text().to_owned()), left.map(String::into_bytes));
}

/// Whether `status` stands anywhere in quotes, as in every status.
fn may_hold_status(text: &str) -> bool {
    text.contains(r#""status""#)
}

/// Whether an element is an object whose only `ev` is `status`, or one without a type whose only
/// `status` is a string that is not empty.
fn is_status(element: &str) -> bool {
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
    let Fitting { arrays, oversize } = split_oversized(text).expect("an array can be split");
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
