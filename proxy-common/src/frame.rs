//! Telling statuses from data in upstream frames, and counting events, without parsing data.

use std::borrow::Cow;

use bytes::Bytes;
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::protocol::{MAX_MESSAGE_BYTES, UpstreamStatus};

/// A frame taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Separated {
    /// The array of the data events, or `None` if there are none. Untouched if the frame was an array without statuses.
    pub data: Option<Bytes>,
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

/// The frame is neither an array nor an object of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Takes frames apart. Holds prepared searches, so that telling data from statuses is one scan of the frame.
#[derive(Debug)]
pub struct Separator {
    ev: Finder<'static>,
}

impl Default for Separator {
    fn default() -> Self {
        Self { ev: Finder::new(br#""ev""#) }
    }
}

impl Separator {
    /// Takes one text frame apart.
    ///
    /// An array in which nothing looks like a status goes through as it is, checked no further. A lone object becomes an
    /// array of one. A status is told by `ev` being `status`, written plainly, anywhere in the array.
    ///
    /// # Errors
    ///
    /// The frame is no array and no object, or seems to hold a status and is not JSON.
    pub fn separate(&self, text: &Bytes) -> Result<Separated, Malformed> {
        let mut events = 0;
        let mut suspicious = false;
        for at in self.ev.find_iter(text) {
            events += 1;
            suspicious |= value_starts_like_status(&text[at + 4..]);
        }
        match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'[') if !suspicious => {
                Ok(Separated { data: Some(text.clone()), events, statuses: Vec::new() })
            }
            Some(b'[') => separate_array(text),
            Some(b'{') => separate_array(&[b"[", &text[..], b"]"].concat().into()),
            _ => Err(Malformed),
        }
    }
}

/// Whether what follows the key `ev` is the value `status`; blanks may stand around the colon.
fn value_starts_like_status(rest: &[u8]) -> bool {
    let rest = rest.trim_ascii_start();
    let Some(rest) = rest.strip_prefix(b":") else { return false };
    rest.trim_ascii_start().starts_with(br#""status""#)
}

fn separate_array(text: &Bytes) -> Result<Separated, Malformed> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow, default)]
        ev: Cow<'a, str>,
    }
    let objects: Vec<&RawValue> = serde_json::from_slice(text).map_err(|_| Malformed)?;
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
        (false, true) => Some(text.clone()),
        (false, false) => Some(format!("[{}]", data.join(",")).into()),
    };
    Ok(Separated { data, events, statuses })
}

/// An array cut into shorter ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The arrays' texts and how many events each holds.
    pub arrays: Vec<(Bytes, u32)>,
    /// How many events were left out because each alone is longer than a message may be.
    pub oversize: u64,
}

/// Cuts an array that is longer than a message may be between its events, into arrays that are not.
///
/// # Errors
///
/// The text is no JSON array.
pub fn cut(text: &Bytes) -> Result<Cut, Malformed> {
    let objects: Vec<&RawValue> = serde_json::from_slice(text).map_err(|_| Malformed)?;
    let mut arrays = Vec::new();
    let mut oversize = 0;
    let mut array = String::new();
    let mut events = 0;
    let mut finish = |array: &mut String, events: &mut u32| {
        if !array.is_empty() {
            array.push(']');
            arrays.push((Bytes::from(std::mem::take(array)), std::mem::take(events)));
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
        let separated =
            Separator::default().separate(&Bytes::from_static(text.as_bytes())).unwrap();
        assert_eq!(separated.data.as_deref(), data.map(str::as_bytes));
        assert_eq!(separated.events, events);
        let names: Vec<&str> =
            separated.statuses.iter().map(|status| status.status.status.as_str()).collect();
        assert_eq!(names, statuses);
    }

    #[test]
    fn data_goes_through_untouched() {
        for text in [
            r#"[{"ev":"T","sym":"A"},{"ev":"Q","sym":"B"}]"#,
            " [ {\"ev\" : \"T\"} ,\n{\"sym\":\"status\",\"ev\":\"Q\"} ] ",
            r#"[{"ev":"T","x":"\"ev\":\"status\""},{"ev":"T"}]"#,
            r#"[{"ev":"T","nested":{"ev":"status"}}]"#,
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
        let Cut { arrays, oversize } =
            cut(&Bytes::from(format!("[{}]", events.join(" , ")))).unwrap();
        assert_eq!(oversize, 1);
        assert!(arrays.iter().all(|(text, _)| text.len() <= MAX_MESSAGE_BYTES));
        assert_eq!(arrays.iter().map(|(_, events)| events).sum::<u32>(), 1_000);
        let inner = |text: &Bytes| String::from_utf8(text[1..text.len() - 1].to_vec()).unwrap();
        let joined: Vec<String> = arrays.iter().map(|(text, _)| inner(text)).collect();
        assert_eq!(joined.join(","), expected);
        assert_eq!(cut(&Bytes::from_static(b"[{]")), Err(Malformed));
    }

    #[test]
    fn what_holds_no_events_is_malformed() {
        for text in ["", "  ", "hello", "7", "null", r#""ev""#, "{", r#"[{"ev":"status"}"#] {
            let text = Bytes::from_static(text.as_bytes());
            assert_eq!(Separator::default().separate(&text), Err(Malformed), "{text:?}");
        }
    }
}
