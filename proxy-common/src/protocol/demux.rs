//! Separates the statuses of an upstream's array from its events.
//!
//! Events are not parsed. One pass over the bytes finds whether the array may hold a status, and
//! counts its objects: the first of the ledger's two counts.

use std::borrow::Cow;

use memchr::memmem;
use multiversion::multiversion;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::messages::UpstreamStatus;
use crate::websocket::Frame;

/// An upstream's array, with its statuses separated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demuxed {
    /// The array of events, or `None` if there are none. Unchanged if the frame held no status.
    pub data: Option<Frame>,
    /// How many objects that array holds.
    pub events: u64,
    /// The statuses, in order.
    pub statuses: Vec<FrameStatus>,
}

/// One status object of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameStatus {
    /// Its content.
    pub parsed: UpstreamStatus,
    /// Its text as received.
    pub text: String,
}

/// The frame is not UTF-8, or neither a JSON array nor an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAnArray;

/// Separates the statuses of one text frame from its events.
///
/// An array without anything like a status is returned unchanged. Its text is checked to be UTF-8,
/// but not to be JSON. A lone object becomes an array of one. A status is an object whose `ev` is
/// `status`, or that has no `ev` or an empty one and a string as `status`, anywhere in the array,
/// written without escapes.
///
/// # Errors
///
/// The frame is not UTF-8, is neither an array nor an object, or seems to hold a status and is not
/// JSON.
pub fn demux(frame: Frame) -> Result<Demuxed, NotAnArray> {
    let text = frame.text();
    let scanned = scan(text);
    if !scanned.ascii {
        std::str::from_utf8(text).map_err(|_| NotAnArray)?;
    }
    match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') if !(scanned.may_hold_status && holds_status(text)) => {
            let by_shape = scanned.objects().filter(|_| text.trim_ascii_start().starts_with(b"[{"));
            let events = by_shape.unwrap_or_else(|| count_objects(text));
            Ok(Demuxed { data: Some(frame), events, statuses: Vec::new() })
        }
        Some(b'[') => demux_array(frame),
        Some(b'{') => {
            // Text such as `{},{}` is not an object, but would be an array in brackets.
            serde_json::from_slice::<&RawValue>(text).map_err(|_| NotAnArray)?;
            demux_array(Frame::new(&[b"[", text, b"]"].concat()))
        }
        _ => Err(NotAnArray),
    }
}

/// The findings of one pass over a frame's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scan {
    /// Opening braces, in any position.
    braces: u64,
    /// Of these, the ones in `},{"e`.
    siblings: u64,
    /// Whether `"st` occurs. Every status contains it.
    may_hold_status: bool,
    ascii: bool,
}

impl Scan {
    /// How many objects an array holds that begins with an object. `None` if they are not written
    /// as the feed writes them: each further object directly follows another and begins with `"e`.
    ///
    /// This is exact for JSON. A brace in a string is not followed by `"e`: the quote would end the
    /// string. The first object inside another object or array does not follow a `}`.
    fn objects(self) -> Option<u64> {
        (self.braces == self.siblings + 1).then_some(self.braces)
    }
}

/// Bytes compared together. Fewer than 256, so that a byte can count them.
const STRIDE: usize = 224;

/// Compiled twice: for processors with AVX2 and for all others. Comparing all bytes of a stride is
/// faster than searching for the next match, because matches are close together.
#[multiversion(targets("x86_64+avx2"))]
fn scan(text: &[u8]) -> Scan {
    let (mut braces, mut siblings, mut status, mut bits) = (0, 0, 0, 0_u8);
    let mut rest = text;
    while let Some(window) = rest.first_chunk::<{ STRIDE + 4 }>() {
        let shifted = |by: usize| -> &[u8; STRIDE] {
            window[by..].first_chunk().expect("the window is longer by four")
        };
        let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(shifted);
        let [mut stride_braces, mut stride_siblings, mut stride_status, mut stride_bits] = [0; 4];
        for i in 0..STRIDE {
            stride_braces += u8::from(a[i] == b'{');
            stride_siblings += u8::from(
                (a[i] == b'}') & (b[i] == b',') & (c[i] == b'{') & (d[i] == b'"') & (e[i] == b'e'),
            );
            stride_status |= u8::from((a[i] == b'"') & (b[i] == b's') & (c[i] == b't'));
            stride_bits |= a[i];
        }
        braces += u64::from(stride_braces);
        siblings += u64::from(stride_siblings);
        status |= stride_status;
        bits |= stride_bits;
        rest = &rest[STRIDE..];
    }
    for at in 0..rest.len() {
        let here = &rest[at..];
        braces += u64::from(here[0] == b'{');
        siblings += u64::from(here.starts_with(br#"},{"e"#));
        status |= u8::from(here.starts_with(br#""st"#));
        bits |= here[0];
    }
    Scan { braces, siblings, may_hold_status: status != 0, ascii: bits < 0x80 }
}

/// Whether the text contains `"status"`, as a key or a value. Every status does.
fn holds_status(text: &[u8]) -> bool {
    memmem::find(text, br#""status""#).is_some()
}

/// Counts the objects of an array of any shape. Follows its brackets byte by byte.
fn count_objects(text: &[u8]) -> u64 {
    let (mut depth, mut objects) = (0_u32, 0);
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {
                while let Some(byte) = bytes.next().filter(|byte| **byte != b'"') {
                    if *byte == b'\\' {
                        bytes.next();
                    }
                }
            }
            b'{' | b'[' => {
                objects += u64::from(depth == 1 && *byte == b'{');
                depth += 1;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    objects
}

/// Whether an object without a type has a string as `status`. The vendor leaves `ev` out of some
/// statuses (reported by users).
fn names_a_status(object: &str) -> bool {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        status: Cow<'a, str>,
    }
    serde_json::from_str::<Named<'_>>(object).is_ok_and(|named| !named.status.is_empty())
}

fn demux_array(frame: Frame) -> Result<Demuxed, NotAnArray> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow, default)]
        ev: Cow<'a, str>,
    }
    let objects: Vec<&RawValue> = serde_json::from_slice(frame.text()).map_err(|_| NotAnArray)?;
    let mut statuses = Vec::new();
    let mut data = Vec::new();
    for object in &objects {
        let head: Option<Head<'_>> = serde_json::from_str(object.get()).ok();
        match head {
            Some(head)
                if head.ev == "status" || head.ev.is_empty() && names_a_status(object.get()) =>
            {
                let parsed = serde_json::from_str(object.get()).unwrap_or_else(|_| {
                    UpstreamStatus { status: String::new(), message: String::new() }
                });
                statuses.push(FrameStatus { parsed, text: object.get().to_owned() });
            }
            _ => data.push(object.get()),
        }
    }
    let events = data.iter().filter(|element| element.starts_with('{')).count() as u64;
    let data = match (data.is_empty(), statuses.is_empty()) {
        (true, _) => None,
        (false, true) => Some(frame),
        (false, false) => Some(Frame::new(format!("[{}]", data.join(",")).as_bytes())),
    };
    Ok(Demuxed { data, events, statuses })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &'static str, data: Option<&str>, events: u64, statuses: &[&str]) {
        let demuxed = demux(Frame::new(text.as_bytes())).unwrap();
        assert_eq!(demuxed.data.as_ref().map(Frame::text), data.map(str::as_bytes));
        assert_eq!(demuxed.events, events);
        let names: Vec<&str> =
            demuxed.statuses.iter().map(|status| status.parsed.status.as_str()).collect();
        assert_eq!(names, statuses);
    }

    #[test]
    fn data_goes_through_untouched() {
        for text in [
            r#"[{"ev":"T","sym":"A"},{"ev":"Q","sym":"B"}]"#,
            " [ {\"ev\" : \"T\"} ,\n{\"sym\":\"status\",\"ev\":\"Q\"} ] ",
            r#"[{"ev":"T","x":"\"ev\":\"status\""},{"ev":"T"}]"#,
            r#"[{"ev":"T","nested":{"ev":"status"}}]"#,
            // Damaged after the point where it is known to hold no status.
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
        check(r#"[7,{"ev":"status"}]"#, Some("[7]"), 0, &[""]);
        check(r#"[{"status":"disconnected","message":"m"}]"#, None, 0, &["disconnected"]);
        let mixed = r#"[{"ev":"","status":"x"},{"ev":"T","status":"halt"},{"sym":"A","status":1}]"#;
        let data = r#"[{"ev":"T","status":"halt"},{"sym":"A","status":1}]"#;
        check(mixed, Some(data), 2, &["x"]);
    }

    #[test]
    fn a_lone_object_becomes_an_array() {
        check(r#"{"ev":"T","sym":"A"}"#, Some(r#"[{"ev":"T","sym":"A"}]"#), 1, &[]);
        check(r#" {"ev":"status","status":"success"}"#, None, 0, &["success"]);
    }

    #[test]
    fn a_frame_without_an_array_or_object_is_malformed() {
        for text in ["", "  ", "hello", "7", "null", r#""ev""#, "{", "{},{}", r#"[{"ev":"status"}"#]
        {
            assert_eq!(demux(Frame::new(text.as_bytes())), Err(NotAnArray), "{text:?}");
        }
        assert_eq!(demux(Frame::new(b"[{\"ev\":\"T\",\"x\":\"\xff\"}]")), Err(NotAnArray));
    }

    #[test]
    fn objects_are_counted_whatever_their_shape() {
        for (text, objects) in [
            ("[]", 0),
            (r#"[{"ev":"T"}]"#, 1),
            (r#"[{"ev":"T"},{"ev":"Q"}]"#, 2),
            (r#"[{"ev":"T"}, {"ev":"Q"}]"#, 2),
            (r#"[{"sym":"A","ev":"T"},{"sym":"A","ev":"Q"}]"#, 2),
            (r#"[{"ev":"T","in":{"ev":"Q"}},{"ev":"T"}]"#, 2),
            (r#"[{"ev":"T","in":[{"ev":"Q"},{"ev":"Q"}]}]"#, 1),
            (r#"[{"ev":"T","x":"},{"},{"ev":"T","y":"{"}]"#, 2),
            (r#"[{"ev":"T","x":"},{\"ev\":1"},{"ev":"T","x":"\\"}]"#, 2),
            (r#"[{},{"\u0065v":"T"},{"ev":"T","c":[[],[12]]}]"#, 3),
            (r#"[{"\u0065v":"T"},{"ev":"Q"}]"#, 2),
            (r#"[7,null,"{",[],{"ev":"T"}]"#, 1),
            (r#"[[{"ev":"T"},{"ev":"Q"}]]"#, 0),
            (r#"[{"ev":"T"},[{"ev":"T"},{"ev":"Q"}]]"#, 1),
        ] {
            let elements: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            let parsed = elements.iter().filter(|element| element.get().starts_with('{'));
            assert_eq!(parsed.count() as u64, objects, "{text}");
            assert_eq!(demux(Frame::new(text.as_bytes())).unwrap().events, objects, "{text}");
            assert_eq!(count_objects(text.as_bytes()), objects, "{text}");
        }
    }

    #[test]
    fn a_scan_covers_every_position() {
        for length in [0, 1, 3, 4, 130, 220, 223, 224, 225, 228, 229, 300, 460] {
            for at in 0..=length {
                let text = |part: &[u8]| [&vec![b'x'; at], part, &vec![b' '; length - at]].concat();
                let expected = |braces, siblings, may_hold_status, ascii| Scan {
                    braces,
                    siblings,
                    may_hold_status,
                    ascii,
                };
                assert_eq!(scan(&text(b"")), expected(0, 0, false, true));
                assert_eq!(scan(&text(br#"{"e},{"ev},{"e"#)), expected(3, 2, false, true));
                assert_eq!(scan(&text(br#""status"#)), expected(0, 0, true, true));
                assert_eq!(scan(&text("é".as_bytes())), expected(0, 0, false, false));
            }
        }
    }

    #[test]
    fn a_scan_takes_nothing_else_for_a_sibling_or_a_status() {
        for near in ["x,{\"e", "}x{\"e", "},x\"e", "},{xe", "},{\"x", "\"sx", "\"xt", "xst"] {
            // Once for the strides, once for the rest.
            let text = [near, &" ".repeat(2 * STRIDE), near].concat();
            let found = scan(text.as_bytes());
            assert_eq!((found.siblings, found.may_hold_status), (0, false), "{near}");
        }
        assert!(!scan(b"\x80").ascii);
    }
}
