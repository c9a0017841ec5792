//! Commands of clients, compared with a model on a JSON parser, and the answers to them.

use proxy_common::protocol::{
    Command, MAX_MESSAGE_BYTES, Status, channel_items, command_text, demux, status_frames,
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
        Ok((action, params)) => {
            let again = read(&command_text(action, &params, None));
            assert_eq!(again, Ok((action, params.clone())));
            let answers: Vec<_> = channel_items(&params).map(Status::subscribed).collect();
            check_answers(&answers);
        }
        Err(error) => check_answers(&[Status::error(error.clone()), Status::error(error)]),
    }
}

/// Reads the command with the code under test.
fn read(text: &str) -> Result<(&'static str, String), String> {
    match Command::parse(text) {
        Ok(Command::Auth(key)) => Ok(("auth", key.expose_secret().to_owned())),
        Ok(Command::Subscribe(items)) => Ok(("subscribe", items.params)),
        Ok(Command::Unsubscribe(items)) => Ok(("unsubscribe", items.params)),
        Err(error) => Err(error.to_string()),
    }
}

fn model(text: &str) -> Result<(&'static str, String), String> {
    let malformed = || {
        r#"invalid command: expected one JSON object such as {"action":"subscribe","params":"T.AAPL,Q.*"}"#
            .to_owned()
    };
    let members = Members::read(text).ok_or_else(malformed)?;
    // Not part of this comparison, but known keys, each of which may stand once.
    members.only("for").zip(members.only("clients")).ok_or_else(malformed)?;
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
        Some(Value::String(params)) if action == "auth" => Ok((action, params.trim().to_owned())),
        Some(Value::String(params)) => Ok((action, params)),
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
