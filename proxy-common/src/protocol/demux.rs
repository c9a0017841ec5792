//! Separates the statuses of an upstream's array from its events, and drops what is no JSON.
//!
//! A client reads a message with a strict JSON parser, which takes all of it or nothing. So only
//! arrays of objects that a parser accepts leave this module. Most arrays are as the feed writes
//! them, and [`flat`](mod@flat) recognizes them. The elements of all others are parsed one by one.
//!
//! Both count the objects: the first of the ledger's two counts.

mod elements;
mod flat;

use std::borrow::Cow;

use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::elements::elements;
use self::{
    elements::{Element, trim},
    flat::flat,
};
use super::messages::UpstreamStatus;
use crate::websocket::Frame;

/// The most brackets that may be open at once, with the array's own. Parsers limit the depth:
/// `serde_json` to 127, Python's to about 1,000.
const MAX_DEPTH: usize = 127;

/// An upstream's array, with its statuses separated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demuxed {
    /// The array of events, or `None` if there are none. Unchanged if nothing was taken out.
    pub data: Option<Frame>,
    /// How many objects that array holds.
    pub events: u64,
    /// The statuses, in order.
    pub statuses: Vec<FrameStatus>,
    /// Elements left out that cannot have been events: they hold no object.
    pub not_objects: u64,
    /// Events left out, because not every JSON parser accepts them.
    pub malformed: u64,
    /// Whether the array has no end, or something follows it. More events may be missing.
    pub broken_off: bool,
}

/// One status object of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameStatus {
    /// Its content.
    pub parsed: UpstreamStatus,
    /// Its text as received.
    pub text: String,
}

/// The frame is neither an array nor an object of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAnArray;

/// Separates the statuses of one text frame from its events, and leaves out what no client could
/// read.
///
/// An array of objects without a status is returned unchanged. A lone object becomes an array of
/// one. A status is an object whose `ev` is `status`, or that has no `ev` or an empty one and a
/// string as `status`, anywhere in the array, written without escapes.
///
/// # Errors
///
/// The frame is neither an array nor an object.
pub fn demux(frame: Frame) -> Result<Demuxed, NotAnArray> {
    if let Some(flat) = flat(frame.text())
        && !(flat.may_hold_status && holds_status(frame.text()))
    {
        return Ok(Demuxed {
            data: Some(frame),
            events: flat.objects,
            statuses: Vec::new(),
            not_objects: 0,
            malformed: 0,
            broken_off: false,
        });
    }
    let text = trim(frame.text());
    match text.first() {
        Some(b'[') => Ok(demux_array(frame)),
        Some(b'{') => {
            // Text such as `{},{}` is not an object, but would be an array in brackets.
            let object = serde_json::from_slice::<&RawValue>(text).map_err(|_| NotAnArray)?;
            let demuxed = demux_array(Frame::of_object(object.get()));
            if demuxed.malformed > 0 { Err(NotAnArray) } else { Ok(demuxed) }
        }
        _ => Err(NotAnArray),
    }
}

/// Whether the text contains `"status"`, as a key or a value. Every status does.
fn holds_status(text: &[u8]) -> bool {
    memmem::find(text, br#""status""#).is_some()
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

/// Parses an array element by element.
fn demux_array(frame: Frame) -> Demuxed {
    let text = frame.text();
    let may_hold_status = holds_status(text);
    let mut events = Vec::new();
    let mut statuses = Vec::new();
    let (mut not_objects, mut malformed) = (0, 0);
    let whole = elements(text, |element| match object(element) {
        Some(object) if may_hold_status && is_status(object) => {
            let parsed = serde_json::from_str(object).unwrap_or_default();
            statuses.push(FrameStatus { parsed, text: object.to_owned() });
        }
        Some(object) => events.push(object),
        None if element.text.contains(&b'{') => malformed += 1,
        None => not_objects += 1,
    });
    let unchanged = whole && statuses.is_empty() && (not_objects, malformed) == (0, 0);
    let count = events.len() as u64;
    let data = match unchanged {
        true => Some(frame),
        false if events.is_empty() => None,
        false => Some(Frame::new(format!("[{}]", events.join(",")).as_bytes())),
    };
    Demuxed { data, events: count, statuses, not_objects, malformed, broken_off: !whole }
}

/// The text of an element that is an object which every JSON parser accepts.
fn object(Element { text, depth }: Element<'_>) -> Option<&str> {
    if depth > MAX_DEPTH || !text.starts_with(b"{") {
        return None;
    }
    serde_json::from_slice::<&RawValue>(text).ok().map(RawValue::get)
}

fn is_status(object: &str) -> bool {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow, default)]
        ev: Cow<'a, str>,
    }
    serde_json::from_str::<Head<'_>>(object)
        .is_ok_and(|head| head.ev == "status" || head.ev.is_empty() && names_a_status(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `demux` makes of a text: the data, and how many elements it left out.
    fn demuxed(text: impl AsRef<[u8]>) -> (Option<String>, u64, u64, bool) {
        let Demuxed { data, events, not_objects, malformed, broken_off, .. } =
            demux(Frame::new(text.as_ref())).unwrap();
        let data = data.map(|data| String::from_utf8(data.text().to_vec()).unwrap());
        let parsed = data.as_ref().map_or(0, |data| {
            let elements: Vec<&RawValue> = serde_json::from_str(data).unwrap();
            assert!(elements.iter().all(|element| element.get().starts_with('{')), "{data}");
            elements.len()
        });
        assert_eq!(parsed as u64, events, "{data:?}");
        (data, not_objects, malformed, broken_off)
    }

    #[track_caller]
    fn check(text: &'static str, data: Option<&str>, statuses: &[&str]) {
        let data = data.map(str::to_owned);
        assert_eq!(demuxed(text), (data, 0, 0, false));
        let found = demux(Frame::new(text.as_bytes())).unwrap().statuses;
        let names: Vec<&str> = found.iter().map(|status| status.parsed.status.as_str()).collect();
        assert_eq!(names, statuses);
    }

    #[test]
    fn data_goes_through_untouched() {
        for text in [
            "[]",
            " [ ]\n",
            r#"[{"ev":"T","sym":"A"},{"ev":"Q","sym":"B"}]"#,
            " [ {\"ev\" : \"T\"} ,\n{\"sym\":\"status\",\"ev\":\"Q\"} ] ",
            r#"[{"ev":"T","x":"\"ev\":\"status\""},{"ev":"T"}]"#,
            r#"[{"ev":"T","nested":{"ev":"status"}}]"#,
            r#"[{"ev":"T","in":[{"ev":"Q"},{"ev":"Q"}]},{"ev":"T","c":[[],[12]]}]"#,
            r#"[{"ev":"T","x":"},{\"ev\":1"},{"ev":"T","x":"\\"},{"\u0065v":"T"},{}]"#,
            r#"[{"ev":"T","x":[true,false,null,-1.5e-7,0,"é\ud800"]}]"#,
        ] {
            check(text, Some(text), &[]);
        }
    }

    #[test]
    fn statuses_are_taken_out_wherever_they_stand() {
        check(r#"[{"ev":"status","status":"connected","message":"m"}]"#, None, &["connected"]);
        check(
            r#"[{"ev":"T","p":1.50},{"message":"m","status":"success","ev" : "status"}, {"ev":"Q","e":4e-5}]"#,
            Some(r#"[{"ev":"T","p":1.50},{"ev":"Q","e":4e-5}]"#),
            &["success"],
        );
        check(r#"[{"ev":"status"},{"ev":"status","status":7}]"#, None, &["", ""]);
        check(r#"[{"status":"disconnected","message":"m"}]"#, None, &["disconnected"]);
        let mixed = r#"[{"ev":"","status":"x"},{"ev":"T","status":"halt"},{"sym":"A","status":1}]"#;
        let data = r#"[{"ev":"T","status":"halt"},{"sym":"A","status":1}]"#;
        check(mixed, Some(data), &["x"]);
    }

    #[test]
    fn a_lone_object_becomes_an_array() {
        check(r#"{"ev":"T","sym":"A"}"#, Some(r#"[{"ev":"T","sym":"A"}]"#), &[]);
        check(r#" {"ev":"status","status":"success"}"#, None, &["success"]);
    }

    #[test]
    fn a_frame_without_an_array_or_object_is_malformed() {
        for text in ["", "  ", "hello", "7", "null", r#""ev""#, "{", "{},{}", "\x0c[]", "{}\x0c"] {
            assert_eq!(demux(Frame::new(text.as_bytes())), Err(NotAnArray), "{text:?}");
        }
        let deep = format!(r#"{{"ev":"T","x":{}{}}}"#, "[".repeat(126), "]".repeat(126));
        assert_eq!(demux(Frame::new(deep.as_bytes())), Err(NotAnArray));
    }

    #[test]
    fn an_element_that_is_no_object_costs_no_other() {
        let good = r#"{"ev":"T","sym":"A"}"#;
        let two = Some(format!("[{good},{good}]"));
        for odd in ["null", "5", "\"x\"", "[]", "[[7,\"]\"]]", "true", "NaN", "nul", "", "\\", "}"]
        {
            assert_eq!(
                demuxed(format!("[{good},{odd},{good}]")),
                (two.clone(), 1, 0, false),
                "{odd}"
            );
            assert_eq!(
                demuxed(format!("[{odd},{good},{good}]")),
                (two.clone(), 1, 0, false),
                "{odd}"
            );
            assert_eq!(
                demuxed(format!("[{good},{good},{odd}]")),
                (two.clone(), 1, 0, false),
                "{odd}"
            );
            if !odd.is_empty() {
                assert_eq!(demuxed(format!("[{odd}]")), (None, 1, 0, false), "{odd}");
            }
        }
        assert_eq!(demuxed(r#"[7,{"ev":"status"}]"#), (None, 1, 0, false));
    }

    #[test]
    fn an_event_that_a_strict_parser_refuses_costs_no_other() {
        let good = r#"{"ev":"T","sym":"A"}"#;
        let (one, two) = (Some(format!("[{good}]")), Some(format!("[{good},{good}]")));
        let nested =
            |levels| format!(r#"{{"ev":"T","x":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
        let bad = [
            b"{\"ev\":\"T\",\"x\":\"\x00\"}".to_vec(),
            b"{\"ev\":\"T\",\"x\":\"\n\"}".to_vec(),
            b"{\"ev\":\"T\",\"x\":\"\xff\"}".to_vec(),
            b"{\"ev\":\"T\",\"x\":\"\xed\xa0\x80\"}".to_vec(),
            b"{\"ev\":\"T\",\x0c\"x\":1}".to_vec(),
            br#"{"ev":"T","x":NaN}"#.to_vec(),
            br#"{"ev":"T","x":-Infinity}"#.to_vec(),
            br#"{"ev":"T","x":01}"#.to_vec(),
            br#"{"ev":"T","x":+1}"#.to_vec(),
            br#"{"ev":"T","x":.5}"#.to_vec(),
            br#"{"ev":"T","x":5.}"#.to_vec(),
            br#"{"ev":"T","x":1.2.3}"#.to_vec(),
            br#"{"ev":"T","x":0x1F}"#.to_vec(),
            br#"{"ev":"T","x":True}"#.to_vec(),
            br#"{"ev":"T","x":'y'}"#.to_vec(),
            br#"{"ev":"T","x":"\x"}"#.to_vec(),
            br#"{"ev":"T","x":"\u12"}"#.to_vec(),
            br#"{"ev":"T","x":[1,]}"#.to_vec(),
            br#"{"ev":"T","x":1,}"#.to_vec(),
            br#"{"ev":"T",,"x":1}"#.to_vec(),
            br#"{"ev":"T","x"}"#.to_vec(),
            br#"{"ev":"T","x":}"#.to_vec(),
            br#"{"ev":"T" "x":1}"#.to_vec(),
            br#"{"ev":"T",x:1}"#.to_vec(),
            br#"{"ev":"T","x":[1}]"#.to_vec(),
            br#"{"ev":"T"}}"#.to_vec(),
            br#"{"ev":"T"} {"ev":"T"}"#.to_vec(),
            br#"{"ev":"T"}/*x*/"#.to_vec(),
            br#"x{"ev":"T"}"#.to_vec(),
            br#"[{"ev":"T"}]"#.to_vec(),
            nested(126).into_bytes(),
            nested(10_000).into_bytes(),
        ];
        for bad in &bad {
            let text = [b"[", good.as_bytes(), b",", bad, b",", good.as_bytes(), b"]"].concat();
            assert_eq!(demuxed(&text), (two.clone(), 0, 1, false), "{text:?}");
            assert_eq!(demuxed([b"[", &bad[..], b"]"].concat()), (None, 0, 1, false));
        }
        let deep = format!("[{}]", nested(125));
        assert_eq!(demuxed(&deep), (Some(deep), 0, 0, false));
        // From here on, what follows is lost as well: nobody knows where the bad event ends.
        for open in [r#"{"ev":"T","x":"y}"#, r#"{"ev":"T","x":[}"#, r#"{"ev":"T""#] {
            let text = format!("[{good},{open},{good}]");
            assert_eq!(demuxed(&text), (one.clone(), 0, 1, true), "{text}");
        }
    }

    #[test]
    fn a_text_that_stops_being_an_array_keeps_the_events_before() {
        let good = r#"{"ev":"T","sym":"A"}"#;
        let one = Some(format!("[{good}]"));
        for (after, not_objects, malformed) in [
            ("", 0, 0),
            (",", 0, 0),
            (",nul", 1, 0),
            (",{", 0, 1),
            ("][]", 0, 0),
            ("]x", 0, 0),
            ("]\x0c", 0, 0),
            ("]]", 0, 0),
        ] {
            let text = format!("[{good}{after}");
            assert_eq!(demuxed(&text), (one.clone(), not_objects, malformed, true), "{text}");
        }
        for text in ["[", "[ ,"] {
            assert!(demuxed(text).3);
        }
        let text = r#"[{"ev":"status","status":"success"},{"ev":"T""#;
        let demuxed = demux(Frame::new(text.as_bytes())).unwrap();
        assert_eq!((demuxed.statuses.len(), demuxed.malformed), (1, 1));
    }
}
