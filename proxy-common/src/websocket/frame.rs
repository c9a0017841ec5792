//! Frames: as they go over a WebSocket, and telling statuses from data in them without parsing data.

use std::borrow::Cow;

use bytes::Bytes;
use memchr::memmem;
use multiversion::multiversion;
use serde::Deserialize;
use serde_json::value::RawValue;
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
};

use crate::protocol::messages::{MAX_MESSAGE_BYTES, UpstreamStatus};

/// The longest header of a frame.
pub(crate) const MAX_HEADER_BYTES: usize = 14;

/// One whole text frame as a server sends it: header and text in one piece, so that it can be sent on as it came.
///
/// Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Bytes,
    head: usize,
}

impl Frame {
    /// A frame with this text.
    pub fn new(text: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(MAX_HEADER_BYTES + text.len());
        append_header(&mut bytes, OpCode::Data(Data::Text), text.len());
        let head = bytes.len();
        bytes.extend_from_slice(text);
        Self { bytes: bytes.into(), head }
    }

    /// A frame with an array of this object alone.
    pub fn of_object(object: &str) -> Self {
        Self::new(format!("[{object}]").as_bytes())
    }

    /// The frame that these bytes are, of which the first `head` are its header.
    pub(crate) fn received(bytes: Bytes, head: usize) -> Self {
        Self { bytes, head }
    }

    /// The text.
    pub fn text(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// The text, shared.
    pub fn shared_text(&self) -> Bytes {
        self.bytes.slice(self.head..)
    }

    /// Header and text.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Appends the header of an unmasked frame whose payload has this many bytes.
pub(crate) fn append_header(out: &mut Vec<u8>, opcode: OpCode, len: usize) {
    FrameHeader { opcode, ..FrameHeader::default() }
        .format(len as u64, out)
        .expect("writing to memory does not fail");
}

/// A frame taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Separated {
    /// The array of the data events, or `None` if there are none. Untouched if the frame was an array without statuses.
    pub data: Option<Frame>,
    /// How many events the data holds, told by their key `ev`.
    pub events: u64,
    /// The statuses, in order.
    pub statuses: Vec<FrameStatus>,
}

/// One status object of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameStatus {
    /// What it says.
    pub status: UpstreamStatus,
    /// Its text as it came.
    pub text: String,
}

/// The frame is neither an array nor an object of JSON, or no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Takes one text frame apart.
///
/// An array in which nothing looks like a status goes through as it is, checked for being text (UTF-8) and no further. A lone
/// object becomes an array of one. A status is told by `ev` being `status`, written plainly, anywhere in the array.
///
/// # Errors
///
/// The frame is no text, no array and no object, or seems to hold a status and is not JSON.
pub fn separate(frame: Frame) -> Result<Separated, Malformed> {
    let text = frame.text();
    let seen = survey(text);
    if !seen.ascii {
        std::str::from_utf8(text).map_err(|_| Malformed)?;
    }
    match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') if !(seen.suspicious && holds_status(text)) => {
            Ok(Separated { data: Some(frame), events: seen.events, statuses: Vec::new() })
        }
        Some(b'[') => separate_array(frame),
        Some(b'{') => {
            // What would be an array in brackets need not be one object.
            serde_json::from_slice::<&RawValue>(text).map_err(|_| Malformed)?;
            separate_array(Frame::new(&[b"[", text, b"]"].concat()))
        }
        _ => Err(Malformed),
    }
}

/// What one look at a frame's bytes tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Survey {
    /// How often `"ev"` stands in it.
    events: u64,
    /// Whether `"sta` does, as it does wherever there is a status.
    suspicious: bool,
    ascii: bool,
}

/// Bytes looked at together; fewer than 256, so that they can be counted in a byte.
const STRIDE: usize = 224;

/// Compiled twice, for processors with wide registers and for any. Each byte is compared as one of many in a register, which
/// a search for the next match could not do where matches stand close together.
#[multiversion(targets("x86_64+avx2"))]
fn survey(text: &[u8]) -> Survey {
    let (mut events, mut suspicious, mut bits) = (0, 0, 0);
    let mut rest = text;
    while let Some(window) = rest.first_chunk::<{ STRIDE + 3 }>() {
        let shifted = |by: usize| -> &[u8; STRIDE] {
            window[by..].first_chunk().expect("the window is longer by three")
        };
        let (a, b, c, d) = (shifted(0), shifted(1), shifted(2), shifted(3));
        let (mut found, mut stride_suspicious, mut stride_bits) = (0, 0, 0);
        for i in 0..STRIDE {
            let quote = a[i] == b'"';
            found += u8::from(quote & (b[i] == b'e') & (c[i] == b'v') & (d[i] == b'"'));
            stride_suspicious |= u8::from(quote & (b[i] == b's') & (c[i] == b't') & (d[i] == b'a'));
            stride_bits |= a[i];
        }
        events += u64::from(found);
        suspicious |= stride_suspicious;
        bits |= stride_bits;
        rest = &rest[STRIDE..];
    }
    for window in rest.windows(4) {
        events += u64::from(window == br#""ev""#);
        suspicious |= u8::from(window == br#""sta"#);
    }
    for byte in rest {
        bits |= byte;
    }
    Survey { events, suspicious: suspicious != 0, ascii: bits < 0x80 }
}

/// Whether `"ev":"status"` stands in the text, plainly written; blanks may stand around the colon.
fn holds_status(text: &[u8]) -> bool {
    memmem::find_iter(text, br#""ev""#).any(|at| value_starts_like_status(&text[at + 4..]))
}

/// Whether what follows the key `ev` is the value `status`; blanks may stand around the colon.
fn value_starts_like_status(rest: &[u8]) -> bool {
    let rest = rest.trim_ascii_start();
    let Some(rest) = rest.strip_prefix(b":") else { return false };
    rest.trim_ascii_start().starts_with(br#""status""#)
}

fn separate_array(frame: Frame) -> Result<Separated, Malformed> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow, default)]
        ev: Cow<'a, str>,
    }
    let objects: Vec<&RawValue> = serde_json::from_slice(frame.text()).map_err(|_| Malformed)?;
    let mut statuses = Vec::new();
    let mut data = Vec::new();
    for object in &objects {
        let head: Option<Head<'_>> = serde_json::from_str(object.get()).ok();
        match head {
            Some(head) if head.ev == "status" => {
                let status = serde_json::from_str(object.get()).unwrap_or_else(|_| {
                    UpstreamStatus { status: String::new(), message: String::new() }
                });
                statuses.push(FrameStatus { status, text: object.get().to_owned() });
            }
            _ => data.push(object.get()),
        }
    }
    let events = data.len() as u64;
    let data = match (data.is_empty(), statuses.is_empty()) {
        (true, _) => None,
        (false, true) => Some(frame),
        (false, false) => Some(Frame::new(format!("[{}]", data.join(",")).as_bytes())),
    };
    Ok(Separated { data, events, statuses })
}

/// An array cut into shorter ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The arrays and how many events each holds.
    pub arrays: Vec<(Frame, u32)>,
    /// How many events were left out because each alone is longer than a message may be.
    pub oversize: u64,
}

/// Cuts an array that is longer than a message may be between its events, into arrays that are not.
///
/// # Errors
///
/// The text is no JSON array.
pub fn cut(text: &[u8]) -> Result<Cut, Malformed> {
    let objects: Vec<&RawValue> = serde_json::from_slice(text).map_err(|_| Malformed)?;
    let mut arrays = Vec::new();
    let mut oversize = 0;
    let mut array = String::new();
    let mut events = 0;
    let mut finish = |array: &mut String, events: &mut u32| {
        if !array.is_empty() {
            array.push(']');
            arrays.push((Frame::new(array.as_bytes()), std::mem::take(events)));
            array.clear();
        }
    };
    for object in objects.iter().map(|object| object.get()) {
        if object.len() + 2 > MAX_MESSAGE_BYTES {
            oversize += 1;
            continue;
        }
        if array.len() + object.len() + 2 > MAX_MESSAGE_BYTES {
            finish(&mut array, &mut events);
        }
        array.push(if array.is_empty() { '[' } else { ',' });
        array.push_str(object);
        events += 1;
    }
    finish(&mut array, &mut events);
    Ok(Cut { arrays, oversize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &'static str, data: Option<&str>, events: u64, statuses: &[&str]) {
        let separated = separate(Frame::new(text.as_bytes())).unwrap();
        assert_eq!(separated.data.as_ref().map(Frame::text), data.map(str::as_bytes));
        assert_eq!(separated.events, events);
        let names: Vec<&str> =
            separated.statuses.iter().map(|status| status.status.status.as_str()).collect();
        assert_eq!(names, statuses);
    }

    #[test]
    fn a_frame_is_header_and_text_in_one_piece() {
        for (length, header) in [
            (3, &[0x81, 3][..]),
            (126, &[0x81, 126, 0, 126]),
            (70_000, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]),
        ] {
            let text = vec![b'x'; length];
            let frame = Frame::new(&text);
            assert_eq!(frame.bytes()[..], [header, &text].concat());
            assert_eq!(frame.text(), text);
            assert_eq!(frame.shared_text(), text);
            let again = Frame::received(frame.bytes().clone(), header.len());
            assert_eq!(again, frame);
        }
    }

    #[test]
    fn data_goes_through_untouched() {
        for text in [
            r#"[{"ev":"T","sym":"A"},{"ev":"Q","sym":"B"}]"#,
            " [ {\"ev\" : \"T\"} ,\n{\"sym\":\"status\",\"ev\":\"Q\"} ] ",
            r#"[{"ev":"T","x":"\"ev\":\"status\""},{"ev":"T"}]"#,
            r#"[{"ev":"T","nested":{"ev":"status"}}]"#,
            // Read no further than needed to see that it holds no status.
            r#"[{"ev":"T","stage":1},{"ev":"Q""#,
        ] {
            let ev = text.matches(r#""ev""#).count() as u64;
            let nested = u64::from(text.contains("nested"));
            check(text, Some(text), ev - nested, &[]);
        }
    }

    #[test]
    fn statuses_are_taken_out_wherever_they_stand() {
        check(r#"[{"ev":"status","status":"connected","message":"m"}]"#, None, 0, &["connected"]);
        check(
            r#"[{"ev":"T","p":1.50},{"message":"m","status":"success","ev" : "status"}, {"ev":"Q","e":4e-5}]"#,
            Some(r#"[{"ev":"T","p":1.50},{"ev":"Q","e":4e-5}]"#),
            2,
            &["success"],
        );
        check(r#"[{"ev":"status"},{"ev":"status","status":7}]"#, None, 0, &["", ""]);
    }

    #[test]
    fn a_lone_object_becomes_an_array() {
        check(r#"{"ev":"T","sym":"A"}"#, Some(r#"[{"ev":"T","sym":"A"}]"#), 1, &[]);
        check(r#" {"ev":"status","status":"success"}"#, None, 0, &["success"]);
    }

    #[test]
    fn long_arrays_are_cut_between_events() {
        let event =
            |n: usize| format!("{{\"ev\":\"T\",\"n\":{n},\"x\":\"{}\"}}", "],".repeat(1_000));
        let mut events: Vec<String> = (0..1_000).map(event).collect();
        let expected = events.join(",");
        events.insert(7, format!("{{\"ev\":\"{}\"}}", "x".repeat(MAX_MESSAGE_BYTES)));
        let Cut { arrays, oversize } = cut(format!("[{}]", events.join(" , ")).as_bytes()).unwrap();
        assert_eq!(oversize, 1);
        assert!(arrays.iter().all(|(frame, _)| frame.text().len() <= MAX_MESSAGE_BYTES));
        assert_eq!(arrays.iter().map(|(_, events)| events).sum::<u32>(), 1_000);
        let inner = |text: &[u8]| String::from_utf8(text[1..text.len() - 1].to_vec()).unwrap();
        let joined: Vec<String> = arrays.iter().map(|(frame, _)| inner(frame.text())).collect();
        assert_eq!(joined.join(","), expected);
        assert_eq!(cut(b"[{]"), Err(Malformed));
    }

    #[test]
    fn an_array_may_be_exactly_as_long_as_the_limit() {
        let cut_of = |lengths: &[usize]| {
            let object = |length: &usize| format!("{{\"ev\":\"{}\"}}", "x".repeat(length - 9));
            let objects: Vec<String> = lengths.iter().map(object).collect();
            let Cut { arrays, oversize } =
                cut(format!("[{}]", objects.join(",")).as_bytes()).unwrap();
            let lengths = arrays.iter().map(|(frame, events)| (frame.text().len(), *events));
            (lengths.collect::<Vec<_>>(), oversize)
        };
        // Brackets, and a comma between two.
        let most = MAX_MESSAGE_BYTES - 2;
        assert_eq!(cut_of(&[most]), (vec![(MAX_MESSAGE_BYTES, 1)], 0));
        assert_eq!(cut_of(&[most + 1]), (vec![], 1));
        assert_eq!(cut_of(&[1_000, most - 1_001]), (vec![(MAX_MESSAGE_BYTES, 2)], 0));
        assert_eq!(cut_of(&[1_000, most - 1_000]), (vec![(1_002, 1), (most - 998, 1)], 0));
    }

    #[test]
    fn what_holds_no_events_is_malformed() {
        for text in ["", "  ", "hello", "7", "null", r#""ev""#, "{", "{},{}", r#"[{"ev":"status"}"#]
        {
            assert_eq!(separate(Frame::new(text.as_bytes())), Err(Malformed), "{text:?}");
        }
        assert_eq!(separate(Frame::new(b"[{\"ev\":\"T\",\"x\":\"\xff\"}]")), Err(Malformed));
    }

    #[test]
    fn a_survey_sees_every_place() {
        for length in [0, 1, 3, 4, 130, 131, 132, 300] {
            for at in 0..=length {
                let text = |what: &[u8]| [&vec![b'x'; at], what, &vec![b' '; length - at]].concat();
                let expected = |events, suspicious, ascii| Survey { events, suspicious, ascii };
                assert_eq!(survey(&text(b"")), expected(0, false, true));
                assert_eq!(survey(&text(br#""ev""ev""#)), expected(2, false, true));
                assert_eq!(survey(&text(br#""status"#)), expected(0, true, true));
                assert_eq!(survey(&text("é".as_bytes())), expected(0, false, false));
            }
        }
    }

    #[test]
    fn a_survey_takes_nothing_else_for_a_key() {
        let none = Survey { events: 0, suspicious: false, ascii: true };
        for near in ["\"ex\"", "\"xv\"", "xev\"", "\"evx", "\"stx", "\"sxa", "\"xta", "xsta"] {
            // Far from the end, and near it.
            let text = [near, &" ".repeat(2 * STRIDE), near].concat();
            assert_eq!(survey(text.as_bytes()), none, "{near}");
        }
        assert!(!survey(b"\x80").ascii);
    }
}
