//! Commands of clients, compared with a model on a JSON parser, and the answers to them.

use proxy_common::protocol::{
    Command, Items, MAX_MESSAGE_BYTES, Position, Start, Status, channel_items, command_text, demux,
    status_frames, subscribe_text,
};
use secrecy::ExposeSecret;
use serde_json::Value;

use crate::members::Members;

/// Compares a command with the model. What was read can be written and read again. The answers are
/// bounded messages of statuses.
///
/// # Panics
///
/// If one of these does not hold.
pub fn as_a_parser_would(text: &[u8]) {
    let Ok(text) = str::from_utf8(text) else { return };
    let command = read(text);
    assert_eq!(command, model(text));
    match command {
        Ok((action, params, start)) => {
            let again = match &start {
                None => command_text(action, &params, None),
                Some(Begin { snapshot: true, .. }) => text.to_owned(),
                Some(Begin { start, .. }) => subscribe_text(&params, *start),
            };
            assert_eq!(read(&again), Ok((action, params.clone(), start)));
            let answers: Vec<_> = channel_items(&params).map(Status::subscribed).collect();
            check_answers(&answers);
        }
        Err(error) => check_answers(&[Status::error(error.clone()), Status::error(error)]),
    }
}

/// Where a subscription begins. `None` of any other command.
#[derive(Debug, PartialEq)]
struct Begin {
    start: Start,
    snapshot: bool,
}

type Read = (&'static str, String, Option<Begin>);

/// Reads the command with the code under test.
fn read(text: &str) -> Result<Read, String> {
    match Command::parse(text) {
        Ok(Command::Auth(key)) => Ok(("auth", key.expose_secret().to_owned(), None)),
        Ok(Command::Subscribe(Items { params, start, snapshot, .. })) => {
            Ok(("subscribe", params, Some(Begin { start, snapshot })))
        }
        Ok(Command::Unsubscribe(items)) => Ok(("unsubscribe", items.params, None)),
        Err(error) => Err(error.to_string()),
    }
}

/// Where a subscription begins, as the documents of the wire say.
fn begin(members: &Members<'_>) -> Result<Begin, String> {
    let member = |name| members.only(name).flatten().filter(|value| *value != Value::Null);
    let invalid = |what: &str| Err(format!("invalid command: {what}"));
    let snapshot = match member("snapshot") {
        None => false,
        Some(Value::Bool(wanted)) => wanted,
        Some(_) => return invalid(r#""snapshot" must be true or false"#),
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten()
    };
    let several = || invalid(r#"expected one of "from", "since" and "snapshot""#);
    let start = match [member("from"), member("since"), member("newest")] {
        [None, None, None] => return Ok(Begin { start: Start::Live, snapshot }),
        [Some(from), None, None] => {
            let parts: Option<Vec<u64>> = match &from {
                Value::String(text) => text.split('-').map(number).collect(),
                _ => None,
            };
            match parts.as_deref() {
                Some(&[epoch, seq]) => Start::From(Position { epoch, seq }, 0),
                Some(&[epoch, seq, skip]) => Start::From(Position { epoch, seq }, skip),
                _ => {
                    let example = r#"such as "1764000000000000-42" or, to skip 3 events behind it, "1764000000000000-42-3""#;
                    return invalid(&format!(r#""from" must be a position {example}"#));
                }
            }
        }
        [None, Some(since), None] => match since.as_u64() {
            Some(time) => Start::Since(time),
            None => return invalid(r#""since" must be a time in milliseconds since 1970"#),
        },
        [None, None, Some(newest)] => match newest.as_u64() {
            Some(bytes) => Start::Newest(bytes),
            None => return invalid(r#""newest" must be a number of bytes"#),
        },
        _ => return several(),
    };
    if snapshot { several() } else { Ok(Begin { start, snapshot }) }
}

fn model(text: &str) -> Result<Read, String> {
    let malformed = || {
        r#"invalid command: expected one JSON object such as {"action":"subscribe","params":"T.AAPL,Q.*"}"#
            .to_owned()
    };
    let members = Members::read(text).ok_or_else(malformed)?;
    // Not part of this comparison, but known keys, each of which may stand once.
    for known in ["for", "clients", "from", "since", "newest", "snapshot"] {
        members.only(known).ok_or_else(malformed)?;
    }
    let (action, params) =
        members.only("action").zip(members.only("params")).ok_or_else(malformed)?;
    let Some(Value::String(action)) = action else { return Err(malformed()) };
    let Some(action) = ["auth", "subscribe", "unsubscribe"].into_iter().find(|&a| a == action)
    else {
        let shown: String = action.chars().take(32).collect();
        return Err(format!("unknown action {shown:?}: expected auth, subscribe or unsubscribe"));
    };
    match params {
        // A key out of a file often ends with a line end.
        Some(Value::String(params)) if action == "auth" => {
            Ok((action, params.trim().to_owned(), None))
        }
        Some(Value::String(params)) if action == "subscribe" => {
            Ok((action, params, Some(begin(&members)?)))
        }
        Some(Value::String(params)) => Ok((action, params, None)),
        _ => Err(format!(r#"invalid command: "params" of {action:?} must be a string"#)),
    }
}

/// Statuses are sent whole and in order, and the other end reads them as statuses.
fn check_answers(statuses: &[Status]) {
    let mut messages = statuses.iter().map(|status| status.message.as_str());
    for frame in status_frames(statuses) {
        assert!(frame.text().len() <= MAX_MESSAGE_BYTES);
        let received = demux(frame).expect("an array of statuses");
        assert_eq!((received.data, received.events), (None, 0));
        for status in received.statuses {
            assert_eq!(Some(status.parsed.message.as_str()), messages.next());
        }
    }
    assert_eq!(messages.next(), None);
}
