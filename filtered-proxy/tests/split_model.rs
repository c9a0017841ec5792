//! Checks `split` against a model on a real JSON parser, with frames of any shape and with any
//! bytes.

mod cases;

use std::{collections::BTreeMap, fmt, sync::LazyLock};

use filtered_proxy::split::{event::EventKind, split};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value, value::RawValue};

use self::cases::cases;

/// An event of every kind as the vendor sends it, with the field that holds its symbol.
const SAMPLES: &str = include_str!("../../tests/it/events.jsonl");

/// The vendor's kinds and where each keeps its symbol.
static KINDS: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let mut kinds = BTreeMap::new();
    for line in SAMPLES.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of the samples parses");
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        if let (Some(kind), Some(field)) = (text("ev"), text("symbol_field")) {
            let known = kinds.insert(kind, field.clone());
            assert!(known.is_none_or(|known| known == field), "one field for each kind");
        }
    }
    assert_eq!(kinds.len(), 17);
    kinds
});

/// The sample events, their bytes untouched.
static EVENTS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let sample = |line| {
        let Members(members) = serde_json::from_str(line).expect("a line of the samples parses");
        let (_, sample) = members.last().expect("the sample stands last");
        sample.get().to_owned()
    };
    SAMPLES.lines().map(sample).collect()
});

/// An event of a frame, as the model or `split` finds it.
#[derive(Debug, PartialEq)]
struct Found {
    start: usize,
    end: usize,
    kind: Ev,
    symbol: Option<String>,
}

/// The kind that `ev` names.
#[derive(Debug, PartialEq)]
enum Ev {
    Kind(String),
    Unknown,
    Missing,
}

/// The members of an object in their order, repeated keys and all.
struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// The events of a frame, as the parser finds them; `None` if it is no array of objects.
fn model(frame: &[u8]) -> Option<Vec<Found>> {
    let elements: Vec<&RawValue> = serde_json::from_slice(frame).ok()?;
    elements.into_iter().map(|element| model_event(frame, element.get())).collect()
}

fn model_event(frame: &[u8], text: &str) -> Option<Found> {
    let Members(members) = serde_json::from_str(text).ok()?;
    let string = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).ok();
    let first = |name: &str| {
        let (_, value) = members.iter().find(|(key, _)| string(key).as_deref() == Some(name))?;
        string(value)
    };
    let start = text.as_ptr() as usize - frame.as_ptr() as usize;
    let (kind, symbol) = match first("ev") {
        None => (Ev::Missing, None),
        Some(code) => match KINDS.get(&code) {
            None if is_code(&code) => {
                let symbol = ["sym", "pair", "T", "p"].into_iter().find_map(first);
                (Ev::Kind(code), symbol)
            }
            None => (Ev::Unknown, None),
            Some(field) => (Ev::Kind(code), first(field)),
        },
    };
    Some(Found { start, end: start + text.len(), kind, symbol })
}

/// Whether a channel can name a kind that the vendor does not document.
fn is_code(code: &str) -> bool {
    (1..=9).contains(&code.len())
        && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
        && !code.as_bytes()[0].is_ascii_digit()
}

/// The events of a frame, as the code under test finds them.
fn found(frame: &[u8]) -> Vec<Found> {
    let mut events = Vec::new();
    split(frame, |event| {
        let kind = match event.kind {
            EventKind::Known(kind) => Ev::Kind(kind.to_string()),
            EventKind::Unknown => Ev::Unknown,
            EventKind::Missing => Ev::Missing,
        };
        let symbol = event.symbol.map(|symbol| String::from_utf8_lossy(symbol).into_owned());
        events.push(Found { start: event.start, end: event.end, kind, symbol });
    });
    events
}

/// Checks that an array of objects is split as a parser does, and that other bytes do no harm.
fn check(frame: &[u8]) -> Result<(), TestCaseError> {
    let events = found(frame);
    prop_assert!(events.iter().all(|event| event.end <= frame.len()));
    if let Some(expected) = model(frame) {
        prop_assert_eq!(&events, &expected);
    }
    Ok(())
}

/// Blanks where JSON allows them; mostly none.
fn blank() -> impl Strategy<Value = String> {
    prop_oneof![6 => Just(String::new()), 1 => "[ \t\n\r]{1,3}"]
}

/// The inside of a string as JSON text. It may hold anything that looks like structure, and runs
/// that cross blocks of 64 bytes.
fn string_body() -> impl Strategy<Value = String> {
    let traps = [
        r#"\"sym\":\"AAPL\""#,
        r#"},{\"ev\":\"T"#,
        r#"{\"ev\":\"T\",\"sym\":\"A\"}"#,
        "]}",
        "[[{",
        "}",
        "]",
        "{",
        ",",
        ":",
        r#"\""#,
        r"\\",
        r#"\\\""#,
        r"\/",
        r"\n",
        r"\u0022",
        r"\u005c",
        r"\ud83d\ude00",
        r"\uD800",
    ];
    let piece = prop_oneof![
        6 => "[a-zA-Z0-9 .:/_-]{0,8}",
        3 => select(traps.to_vec()).prop_map(str::to_owned),
        1 => (0..70_usize).prop_map(|pairs| r"\\".repeat(pairs)),
        1 => (0..140_usize).prop_map(|length| "x".repeat(length)),
        1 => any::<char>().prop_map(|c| {
            let quoted = Value::from(c.to_string()).to_string();
            quoted[1..quoted.len() - 1].to_owned()
        }),
        1 => any::<u16>().prop_map(|unit| format!("\\u{unit:04x}")),
    ];
    vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

fn string() -> impl Strategy<Value = String> {
    string_body().prop_map(|body| format!("\"{body}\""))
}

/// A name as JSON text, some of its letters escaped.
fn spelled(name: &str, escapes: u8) -> String {
    let letters = name.chars().enumerate().map(|(n, letter)| match escapes >> (n % 8) & 1 {
        1 => format!("\\u{:04X}", u32::from(letter)),
        _ => letter.to_string(),
    });
    format!("\"{}\"", letters.collect::<String>())
}

fn key() -> impl Strategy<Value = String> {
    let names = ["ev", "sym", "T", "pair", "p", "x", "evs", ""];
    prop_oneof![
        4 => select(names.to_vec()).prop_map(|name| spelled(name, 0)),
        1 => (select(names.to_vec()), any::<u8>()).prop_map(|(name, escapes)| spelled(name, escapes)),
        1 => string(),
    ]
}

fn value() -> impl Strategy<Value = String> {
    let plain = ["0", "-0", "1E2", "-12.50e+3", "1790604301733018455", "true", "false", "null"];
    let kinds = ["T", "Q", "LULD", "C", "XT", "ZZ", "NEW9", "9NEW", "LONGESTOF", "status", "t"];
    let leaf = prop_oneof![
        2 => select(plain.to_vec()).prop_map(str::to_owned),
        1 => select(kinds.to_vec()).prop_map(|kind| format!("\"{kind}\"")),
        2 => string(),
    ];
    leaf.prop_recursive(4, 12, 4, |inner| {
        let members = vec((key(), inner.clone()), 0..4);
        prop_oneof![
            (vec(inner, 0..4), vec(blank(), 3)).prop_map(|(items, blanks)| array(&items, &blanks)),
            (members, vec(blank(), 5)).prop_map(|(members, blanks)| object(&members, &blanks)),
        ]
    })
}

/// The text of an array, with these blanks in turn between its tokens.
fn array(items: &[String], blanks: &[String]) -> String {
    let mut tokens = vec!["["];
    for item in items {
        tokens.extend([item, ","]);
    }
    finish(tokens, "]", blanks)
}

/// The text of an object, with blanks in the same way.
fn object(members: &[(String, String)], blanks: &[String]) -> String {
    let mut tokens = vec!["{"];
    for (key, value) in members {
        tokens.extend([key, ":", value, ","]);
    }
    finish(tokens, "}", blanks)
}

fn finish(mut tokens: Vec<&str>, close: &'static str, blanks: &[String]) -> String {
    if tokens.len() > 1 {
        tokens.pop();
    }
    tokens.push(close);
    let blanks = blanks.iter().map(String::as_str).cycle();
    let mut text: Vec<&str> = tokens.into_iter().zip(blanks).flat_map(<[&str; 2]>::from).collect();
    // The surrounding text adds the blanks after it.
    text.pop();
    text.concat()
}

fn members_of(event: &str) -> Vec<(String, String)> {
    let Members(members) = serde_json::from_str(event).expect("a sample parses");
    members.iter().map(|(key, value)| (key.get().to_owned(), value.get().to_owned())).collect()
}

/// An event of any shape.
fn event() -> impl Strategy<Value = String> {
    let blanks = || vec(blank(), 1..8);
    let member = || (key(), value());
    let sample = || select(&EVENTS[..]);
    // A sample among other members, in any order.
    let disguised = (sample(), vec(member(), 0..4)).prop_flat_map(|(event, more)| {
        Just(members_of(&event).into_iter().chain(more).collect::<Vec<_>>()).prop_shuffle()
    });
    // A sample with one value changed: an `ev` or a symbol that is no string, or any other value.
    let changed =
        (sample(), any::<Index>(), 0..3_usize, value()).prop_map(|(event, at, head, value)| {
            let mut members = members_of(&event);
            let at = if head < members.len() && at.index(2) == 0 {
                head
            } else {
                at.index(members.len())
            };
            members[at].1 = value;
            members
        });
    // An event that begins as the feed writes it, and may go on in another way.
    let others = ["ZZ", "NEW9", "LULDX", "LONGESTOF", "TOOLONGFOR", "New9"].map(str::to_owned);
    let codes: Vec<String> = KINDS.keys().cloned().chain(others).collect();
    let like_feed = (select(codes), key(), string_body(), vec(member(), 0..4)).prop_map(
        |(code, key, symbol, more)| {
            let key = match KINDS.get(&code) {
                Some(field) if key != "\"x\"" => format!("\"{field}\""),
                _ => key,
            };
            let mut text = format!("{{\"ev\":\"{code}\",{key}:\"{symbol}\"");
            for (key, value) in more {
                text += &format!(",{key}:{value}");
            }
            text + "}"
        },
    );
    prop_oneof![
        2 => sample(),
        3 => (disguised, blanks()).prop_map(|(members, blanks)| object(&members, &blanks)),
        2 => (changed, blanks()).prop_map(|(members, blanks)| object(&members, &blanks)),
        3 => like_feed,
        1 => (vec(member(), 0..6), blanks()).prop_map(|(members, blanks)| object(&members, &blanks)),
    ]
}

/// A frame of a few events. The blanks before it shift it against the borders of blocks.
fn frame() -> impl Strategy<Value = String> {
    let around = (0..70_usize, blank());
    (around, vec(event(), 0..8), vec(blank(), 1..8)).prop_map(
        |((before, after), events, blanks)| {
            format!("{}{}{after}", " ".repeat(before), array(&events, &blanks))
        },
    )
}

/// A change to bytes, at a position that is a share of their length.
#[derive(Debug, Clone)]
enum Mutation {
    Truncate(Index),
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let byte = || prop_oneof![3 => select(&b"[]{},:\"\\ 0e"[..]), 1 => any::<u8>()];
    prop_oneof![
        1 => any::<Index>().prop_map(Mutation::Truncate),
        3 => (any::<Index>(), byte()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        2 => (any::<Index>(), vec(byte(), 1..70)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        2 => (any::<Index>(), 1..70_usize).prop_map(|(at, length)| Mutation::Remove(at, length)),
    ]
}

impl Mutation {
    fn apply(self, bytes: &mut Vec<u8>) {
        // One position more than there are bytes: the end.
        let positions = bytes.len() + 1;
        match self {
            Self::Truncate(at) => bytes.truncate(at.index(positions)),
            Self::Set(at, byte) => {
                if let Some(changed) = bytes.get_mut(at.index(positions)) {
                    *changed = byte;
                }
            }
            Self::Insert(at, more) => {
                let at = at.index(positions);
                bytes.splice(at..at, more);
            }
            Self::Remove(at, length) => {
                let at = at.index(positions);
                bytes.drain(at..bytes.len().min(at + length));
            }
        }
    }
}

proptest! {
    #![proptest_config(cases("split_model", 400))]

    #[test]
    fn any_array_of_objects_is_split_as_a_parser_does(frame in frame()) {
        prop_assert!(model(frame.as_bytes()).is_some(), "the generator makes arrays of objects");
        check(frame.as_bytes())?;
    }

    #[test]
    fn mutilated_frames_do_no_harm(frame in frame(), mutations in vec(mutation(), 1..6)) {
        let mut bytes = frame.into_bytes();
        for mutation in mutations {
            mutation.apply(&mut bytes);
            check(&bytes)?;
        }
    }

    #[test]
    fn any_json_is_accepted_or_refused_as_a_parser_would(value in value(), blanks in vec(blank(), 3)) {
        check(value.as_bytes())?;
        check(array(&[value.clone(), "{}".to_owned(), value], &blanks).as_bytes())?;
    }

    #[test]
    fn any_bytes_do_no_harm(
        bytes in vec(prop_oneof![4 => select(&b"[]{},:\"\\ T0"[..]), 1 => any::<u8>()], 0..300),
    ) {
        check(&bytes)?;
        check(&[b"[{\"ev\":\"T\",\"sym\":\"", &bytes[..], b"\"}]"].concat())?;
    }

    /// Compares the head that is read directly with the same event in spellings whose keys must be
    /// walked.
    #[test]
    fn every_spelling_of_an_event_is_read_alike(
        (code, field) in select(KINDS.iter().collect::<Vec<_>>()),
        symbol in "[A-Z0-9.:/é-]{0,12}",
        more in vec(("\"x[a-z]{0,3}\"", value()), 0..4),
        escapes in 1..=255_u8,
    ) {
        let head = [("\"ev\"".to_owned(), spelled(code, 0)), (format!("\"{field}\""), spelled(&symbol, 0))];
        let [ev, sym] = &head;
        let escaped = [
            (spelled("ev", escapes), spelled(code, escapes)),
            (spelled(field, escapes), spelled(&symbol, escapes)),
        ];
        let orders: [Vec<_>; 5] = [
            head.iter().chain(&more).collect(),
            [sym, ev].into_iter().chain(&more).collect(),
            more.iter().chain([sym, ev]).collect(),
            [ev].into_iter().chain(&more).chain([sym]).collect(),
            escaped.iter().chain(&more).collect(),
        ];
        for members in orders {
            let members: Vec<_> = members.into_iter().cloned().collect();
            for blank in ["", " ", "\n\t"] {
                let event = object(&members, &[blank.to_owned()]);
                let events = found(format!("[{event}]").as_bytes());
                let [event] = &events[..] else { panic!("one event") };
                prop_assert_eq!(&event.kind, &Ev::Kind(code.clone()));
                prop_assert_eq!(event.symbol.as_ref(), Some(&symbol));
            }
        }
    }
}

proptest! {
    #![proptest_config(cases("split_model", 10))]

    #[test]
    fn long_frames_are_split_as_a_parser_does(
        events in vec(event(), 1..20),
        order in vec(any::<u8>(), 0..=5_000),
        blanks in vec(blank(), 1..8),
    ) {
        let events: Vec<String> = order.iter().map(|&at| events[usize::from(at) % events.len()].clone()).collect();
        check(array(&events, &blanks).as_bytes())?;
    }
}

#[test]
fn every_sample_is_found_with_its_kind_and_symbol() {
    let frame = format!("[{}]", EVENTS.join(","));
    let events = found(frame.as_bytes());
    assert_eq!(Some(&events), model(frame.as_bytes()).as_ref());
    let texts: Vec<_> = events.iter().map(|event| &frame[event.start..event.end]).collect();
    assert_eq!(texts, *EVENTS);
    let known = events.iter().filter(|event| matches!(event.kind, Ev::Kind(_)));
    assert_eq!(
        known.filter(|event| event.symbol.is_some()).count(),
        EVENTS.len() - 1,
        "all but the status"
    );
}

/// The fields in their order, wherever they stand; one that is no string does not count.
#[test]
fn a_kind_without_a_name_has_the_first_symbol_there_is() {
    for (members, symbol) in [
        (r#","sym":"A""#, Some("A")),
        (r#","pair":"A""#, Some("A")),
        (r#","T":"A""#, Some("A")),
        (r#","p":"A""#, Some("A")),
        (r#","p":"NO","T":"NO","pair":"NO","x":1,"sym":"A""#, Some("A")),
        (r#","p":"NO","T":"NO","pair":"A""#, Some("A")),
        (r#","p":"NO","T":"A""#, Some("A")),
        (r#","p":1.5,"T":2,"sym":"A""#, Some("A")),
        (r#","sym":7,"p":"A""#, Some("A")),
        (r#","sym":null,"sym":"NO","T":"A""#, Some("A")),
        (r#","sym":["x"],"pair":{"sym":"NO"},"T":"A""#, Some("A")),
        (r#","sym":"\ud800","p":"A""#, Some("A")),
        (r#","s\u0079m":"\u0041","pair":"NO""#, Some("A")),
        (r#","sym":"","pair":"NO""#, Some("")),
        (r#","p":1.5,"x":"NO""#, None),
        ("", None),
    ] {
        for event in
            [format!(r#"{{"ev":"NEW9"{members}}}"#), format!(r#"{{"x":1{members},"ev":"NEW9"}}"#)]
        {
            let frame = format!("[{event}]");
            let events = found(frame.as_bytes());
            let expected = (Ev::Kind("NEW9".to_owned()), symbol.map(str::to_owned));
            let [Found { kind, symbol, .. }] = &events[..] else { panic!("one event: {frame}") };
            assert_eq!((kind, symbol), (&expected.0, &expected.1), "{frame}");
            assert_eq!(Some(events), model(frame.as_bytes()), "{frame}");
        }
    }
}

/// Half a character of UTF-16 is valid JSON, but no text. It must hide only itself.
#[test]
fn half_a_character_hides_nothing_else() {
    for object in [
        r#"{"x":"\ud800","ev":"T","sym":"A"}"#,
        r#"{"ev":"T","x":["\ud800"],"sym":"A"}"#,
        r#"{"ev":"T","\udc00":1,"sym":"A"}"#,
        r#"{"sym":"\ud800","ev":"T"}"#,
        r#"{"ev":"T","sym":"\ud800","sym":"A"}"#,
    ] {
        let frame = format!("[{object}]");
        assert_eq!(Some(found(frame.as_bytes())), model(frame.as_bytes()), "{frame}");
    }
}

/// Runs of backslashes of every length end at every position of a block. The length decides whether
/// the text after them is inside the string.
#[test]
fn backslashes_at_the_borders_of_blocks() {
    for padding in 0..64 {
        for run in 0..140 {
            let (fill, slashes) = ("x".repeat(padding), r"\\".repeat(run));
            let tail = if run % 2 == 0 { "" } else { r#"\"}]"# };
            let event = format!(r#"{{"x":"{fill}{slashes}{tail}","ev":"T","sym":"A"}}"#);
            let frame = format!("[{event},{event}]");
            assert_eq!(Some(found(frame.as_bytes())), model(frame.as_bytes()), "{frame}");
        }
    }
}
