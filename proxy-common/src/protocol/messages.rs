//! The vendor's session protocol: the commands that clients send, and the statuses that answer
//! them.
//!
//! The texts are the vendor's own, captured from the live service or taken from its documentation,
//! unless they are marked as ours.

use std::sync::Arc;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::{
    protocol::{
        channel::Channel,
        market::Market,
        position::{Position, Start},
    },
    websocket::Frame,
};

/// The most bytes in one message to a client. The vendor's Go client fails at 1,000,000 bytes, its
/// Python client at 1 MiB.
pub const MAX_MESSAGE_BYTES: usize = 900_000;

/// A client's command.
#[derive(Debug)]
pub enum Command {
    /// `{"action":"auth","params":KEY}`.
    Auth(SecretString),
    /// `{"action":"subscribe","params":"T.AAPL,Q.*"}`.
    Subscribe(Items),
    /// `{"action":"unsubscribe","params":"T.AAPL,Q.*"}`.
    Unsubscribe(Items),
}

/// The items of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct Items {
    /// The params as received.
    pub params: String,
    /// Ours: for whom a filtered proxy asks its firehose for contracts.
    pub on_behalf_of: Option<OnBehalfOf>,
    /// Ours: where a subscription begins.
    pub start: Start,
    /// Ours: whether the last value of each item is wanted first.
    pub snapshot: bool,
}

impl Items {
    /// Items to subscribe from now on, or to unsubscribe.
    pub fn live(params: impl Into<String>) -> Self {
        Self { params: params.into(), on_behalf_of: None, start: Start::Live, snapshot: false }
    }
}

/// Clients for which a filtered proxy asks its firehose for contracts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnBehalfOf {
    /// The label of their key.
    pub key: Arc<str>,
    /// How many clients with this key hold the contracts. At least 1, which is also the default.
    pub clients: u32,
}

/// Why a text is not a command. The error text is the message to the client. It never repeats the
/// params, which may hold a key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommandError {
    /// Not JSON, or not an object with a string `action`.
    #[error(
        r#"invalid command: expected one JSON object such as {{"action":"subscribe","params":"T.AAPL,Q.*"}}"#
    )]
    Malformed,
    /// `params` is missing or not a string.
    #[error(r#"invalid command: "params" of {action:?} must be a string"#)]
    Params {
        /// The action that lacks them.
        action: &'static str,
    },
    /// `from` is no position.
    #[error(r#"invalid command: "from" must be a position such as "1764000000000000-42" or, to skip 3 events behind it, "1764000000000000-42-3""#)]
    From,
    /// `since` is no time.
    #[error(r#"invalid command: "since" must be a time in milliseconds since 1970"#)]
    Since,
    /// `newest` is no number.
    #[error(r#"invalid command: "newest" must be a number of bytes"#)]
    Newest,
    /// `snapshot` is neither true nor false.
    #[error(r#"invalid command: "snapshot" must be true or false"#)]
    Snapshot,
    /// More than one start.
    #[error(r#"invalid command: expected one of "from", "since" and "snapshot""#)]
    Starts,
    /// The action is unknown.
    #[error("unknown action {action:?}: expected auth, subscribe or unsubscribe")]
    UnknownAction {
        /// The action as the client wrote it, cut at 32 characters.
        action: String,
    },
}

impl Command {
    /// Reads one text frame of a client.
    ///
    /// Official clients differ in their blanks and may add keys. So this parses JSON and ignores
    /// unknown keys.
    ///
    /// # Errors
    ///
    /// The text is not a JSON object, lacks `action` or `params`, or names an unknown action.
    pub fn parse(text: &str) -> Result<Self, CommandError> {
        #[derive(Deserialize)]
        struct Raw {
            action: String,
            params: Option<Value>,
            #[serde(rename = "for")]
            key: Option<Value>,
            clients: Option<Value>,
            from: Option<Value>,
            since: Option<Value>,
            newest: Option<Value>,
            snapshot: Option<Value>,
        }
        // A JSON array would fill the struct by position.
        if !text.trim_start().starts_with('{') {
            return Err(CommandError::Malformed);
        }
        let raw: Raw = serde_json::from_str(text).map_err(|_| CommandError::Malformed)?;
        let params = |action| match raw.params {
            Some(Value::String(params)) => Ok(params),
            _ => Err(CommandError::Params { action }),
        };
        let clients = raw.clients.as_ref().and_then(Value::as_u64).unwrap_or(1);
        let clients = u32::try_from(clients).unwrap_or(u32::MAX).max(1);
        let on_behalf_of = match raw.key {
            Some(Value::String(key)) => Some(OnBehalfOf { key: key.into(), clients }),
            _ => None,
        };
        match raw.action.as_str() {
            // A key out of a file often ends with a line end.
            "auth" => params("auth").map(|key| Self::Auth(key.trim().into())),
            "subscribe" => {
                let params = params("subscribe")?;
                let (start, snapshot) = start(raw.from, raw.since, raw.newest, raw.snapshot)?;
                Ok(Self::Subscribe(Items { params, on_behalf_of, start, snapshot }))
            }
            "unsubscribe" => params("unsubscribe")
                .map(|params| Self::Unsubscribe(Items { on_behalf_of, ..Items::live(params) })),
            _ => Err(CommandError::UnknownAction { action: raw.action.chars().take(32).collect() }),
        }
    }
}

/// Where a subscription with these members begins, and whether it wants the last values first.
fn start(
    from: Option<Value>,
    since: Option<Value>,
    newest: Option<Value>,
    snapshot: Option<Value>,
) -> Result<(Start, bool), CommandError> {
    let snapshot = match snapshot {
        None => false,
        Some(wanted) => wanted.as_bool().ok_or(CommandError::Snapshot)?,
    };
    let start = match (from, since, newest) {
        (None, None, None) => return Ok((Start::Live, snapshot)),
        (Some(Value::String(from)), None, None) => {
            Start::parse_from(&from).map_err(|_| CommandError::From)?
        }
        (Some(_), None, None) => return Err(CommandError::From),
        (None, Some(since), None) => Start::Since(since.as_u64().ok_or(CommandError::Since)?),
        (None, None, Some(bytes)) => Start::Newest(bytes.as_u64().ok_or(CommandError::Newest)?),
        _ => return Err(CommandError::Starts),
    };
    if snapshot { Err(CommandError::Starts) } else { Ok((start, false)) }
}

/// The text of a subscription to a firehose that begins here.
pub fn subscribe_text(params: &str, start: Start) -> String {
    #[derive(Serialize)]
    struct Out<'a> {
        action: &'a str,
        params: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        since: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        newest: Option<u64>,
    }
    let mut out = Out { action: "subscribe", params, from: None, since: None, newest: None };
    match start {
        Start::Live => {}
        Start::From(position, 0) => out.from = Some(position.to_string()),
        Start::From(position, skip) => out.from = Some(format!("{position}-{skip}")),
        Start::Since(time) => out.since = Some(time),
        Start::Newest(bytes) => out.newest = Some(bytes),
    }
    json(&out)
}

/// The text of a command to an upstream. Only a firehose knows on whose behalf it comes.
pub fn command_text(
    action: &'static str,
    params: &str,
    on_behalf_of: Option<&OnBehalfOf>,
) -> String {
    #[derive(Serialize)]
    struct Out<'a> {
        action: &'a str,
        params: &'a str,
        #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
        key: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        clients: Option<u32>,
    }
    let key = on_behalf_of.map(|clients| &*clients.key);
    let clients = on_behalf_of.map(|of| of.clients).filter(|clients| *clients != 1);
    json(&Out { action, params, key, clients })
}

/// One status object, keys in the order that every capture shows: `ev`, `status`, `message`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    ev: &'static str,
    /// The machine-readable name, for example `success`.
    pub status: &'static str,
    /// The text for people. Always present, because the vendor's Python client reads it without
    /// checking.
    pub message: String,
    /// Ours: the contract that an `error` is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    contract: Option<String>,
    /// Its place in the queue, if it waits for room.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<usize>,
    /// How many contracts of its type there is room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<usize>,
    /// Ours: whether a snapshot begins or ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    /// How many events of it follow in the next message.
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<usize>,
    /// How long ago each of them was received, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    ages: Option<Vec<u64>>,
    /// Ours: where the feed stands behind everything that the client was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<Position>,
}

impl Status {
    /// A status with this name and message.
    pub fn new(status: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            ev: "status",
            status,
            message,
            contract: None,
            place: None,
            room: None,
            state: None,
            events: None,
            ages: None,
            position: None,
        }
    }

    /// Says where the feed stands behind everything that the client was sent.
    #[must_use]
    pub fn at(self, position: Option<Position>) -> Self {
        Self { position, ..self }
    }

    /// The answer to a subscription of a contract for which there is no room.
    pub fn waiting(contract: &Channel, place: usize, room: usize) -> Self {
        let kind = contract.kind().map(|kind| kind.to_string()).unwrap_or_default();
        let item = contract.to_string();
        let message = format!(
            "{item:?} waits for room: upstream serves {room} contracts of {kind} at a time; place \
             {place} in the queue"
        );
        Self { place: Some(place), room: Some(room), ..Self::error(message) }.about(item)
    }

    /// Its object.
    pub fn object(&self) -> String {
        json(self)
    }

    /// Names the contract that this status is about.
    pub fn about(self, contract: String) -> Self {
        Self { contract: Some(contract), ..self }
    }

    /// The next message holds last values, of these ages in milliseconds; none follows if there are
    /// no ages.
    pub fn snapshot_begin(ages: Vec<u64>) -> Self {
        let message = format!("last values follow: {} events", ages.len());
        let events = Some(ages.len());
        let status = Self::new("snapshot", message);
        Self { state: Some("begin"), events, ages: Some(ages), ..status }
    }

    /// The last values end here.
    pub fn snapshot_end() -> Self {
        Self { state: Some("end"), ..Self::new("snapshot", "live data follows") }
    }

    /// The greeting, sent unprompted in a message of its own.
    pub fn connected() -> Self {
        Self::new("connected", "Connected Successfully")
    }

    /// The answer to a valid key.
    pub fn auth_success() -> Self {
        Self::new("auth_success", "authenticated")
    }

    /// The answer to an invalid key.
    pub fn auth_failed() -> Self {
        Self::new("auth_failed", "authentication failed")
    }

    /// The answer to a valid key that is for these markets and not for the session's.
    pub fn market_refused(markets: &str, market: Market) -> Self {
        Self::new("auth_failed", format!("the key is for {markets}, not for {market}"))
    }

    /// The answer to a subscription before authentication (the vendor's name; the text is ours).
    pub fn auth_required() -> Self {
        Self::new("auth_required", "authentication required: send auth before subscribing")
    }

    /// Sent before the close to a client that did not authenticate in time.
    pub fn auth_timeout() -> Self {
        Self::new("auth_timeout", "No authentication request received.")
    }

    /// The acknowledgement of one subscribed item.
    pub fn subscribed(item: &str) -> Self {
        Self::new("success", format!("subscribed to: {item}"))
    }

    /// The acknowledgement of one unsubscribed item (the vendor's own wording).
    pub fn unsubscribed(item: &str) -> Self {
        Self::new("success", format!("unsubscribed to: {item}"))
    }

    /// A refusal. The texts are ours: the vendor sends nothing, or `not authorized`.
    pub fn error(message: impl Into<String>) -> Self {
        Self::new("error", message)
    }
}

/// Frames that hold these statuses: one array, or several if one would exceed
/// [`MAX_MESSAGE_BYTES`].
pub fn status_frames(statuses: &[Status]) -> Vec<Frame> {
    object_frames(statuses.iter().map(json))
}

/// Frames that hold these objects, as [`status_frames`] makes them of statuses.
pub fn object_frames(objects: impl IntoIterator<Item = String>) -> Vec<Frame> {
    let mut frames = Vec::with_capacity(1);
    let mut text = String::new();
    for object in objects {
        if !text.is_empty() && text.len() + object.len() + 2 > MAX_MESSAGE_BYTES {
            text.push(']');
            frames.push(Frame::new(text.as_bytes()));
            text.clear();
        }
        text.push(if text.is_empty() { '[' } else { ',' });
        text.push_str(&object);
    }
    if !text.is_empty() {
        text.push(']');
        frames.push(Frame::new(text.as_bytes()));
    }
    frames
}

/// A frame that holds this status alone.
pub fn status_frame(status: &Status) -> Frame {
    Frame::of_object(&json(status))
}

/// A status received from an upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct UpstreamStatus {
    /// The machine-readable name; empty if absent.
    #[serde(default)]
    pub status: String,
    /// The text for people; empty if absent.
    #[serde(default)]
    pub message: String,
}

/// The contract that an `error` of a firehose is about. `None` for any other status.
pub fn refused_contract(status: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct About {
        contract: String,
    }
    serde_json::from_str::<About>(status).ok().map(|about| about.contract)
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings always serialise")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Market, Position};

    #[track_caller]
    fn check_status(status: &Status, text: &str) {
        assert_eq!(status_frame(status).text(), text.as_bytes());
    }

    #[test]
    fn statuses_have_the_vendors_texts() {
        check_status(
            &Status::connected(),
            r#"[{"ev":"status","status":"connected","message":"Connected Successfully"}]"#,
        );
        check_status(
            &Status::auth_success(),
            r#"[{"ev":"status","status":"auth_success","message":"authenticated"}]"#,
        );
        check_status(
            &Status::auth_failed(),
            r#"[{"ev":"status","status":"auth_failed","message":"authentication failed"}]"#,
        );
        check_status(
            &Status::market_refused("options, crypto", Market::Stocks),
            r#"[{"ev":"status","status":"auth_failed","message":"the key is for options, crypto, not for stocks"}]"#,
        );
        check_status(
            &Status::auth_timeout(),
            r#"[{"ev":"status","status":"auth_timeout","message":"No authentication request received."}]"#,
        );
        check_status(
            &Status::subscribed("T.BRK.B"),
            r#"[{"ev":"status","status":"success","message":"subscribed to: T.BRK.B"}]"#,
        );
        check_status(
            &Status::unsubscribed("T.\"x"),
            r#"[{"ev":"status","status":"success","message":"unsubscribed to: T.\"x"}]"#,
        );
    }

    #[test]
    fn many_statuses_are_split_into_messages_below_the_limit() {
        let statuses = vec![Status::subscribed(&"A".repeat(1_000)); 2_000];
        let frames = status_frames(&statuses);
        assert!(frames.len() > 1);
        let mut seen = 0;
        for frame in &frames {
            assert!(frame.text().len() <= MAX_MESSAGE_BYTES);
            let objects: Vec<Value> = serde_json::from_slice(frame.text()).unwrap();
            seen += objects.len();
        }
        assert_eq!(seen, statuses.len());
        assert!(status_frames(&[]).is_empty());
    }

    #[test]
    fn a_message_of_statuses_may_be_exactly_as_long_as_the_limit() {
        let alone = status_frame(&Status::error("")).text().len();
        // Two statuses share one pair of brackets and need a comma.
        let room = MAX_MESSAGE_BYTES - (2 * alone - 1);
        let of = |bytes: usize| {
            let statuses = [1_000, bytes - 1_000].map(|bytes| Status::error("x".repeat(bytes)));
            status_frames(&statuses).iter().map(|frame| frame.text().len()).collect::<Vec<_>>()
        };
        assert_eq!(of(room), [MAX_MESSAGE_BYTES]);
        assert_eq!(of(room + 1), [alone + 1_000, alone + room - 999]);
    }

    #[test]
    fn commands_are_written_as_they_are_read() {
        let text = command_text("unsubscribe", "T.\"A,Q.*", None);
        assert_eq!(text, r#"{"action":"unsubscribe","params":"T.\"A,Q.*"}"#);
        let command = Command::parse(&text);
        assert!(
            matches!(&command, Ok(Command::Unsubscribe(items)) if items.params == "T.\"A,Q.*"),
            "{command:?}"
        );
    }

    #[test]
    fn a_subscription_may_say_where_it_begins() {
        let position = Position { epoch: 1, seq: 2 };
        for (start, rest) in [
            (Start::Live, ""),
            (Start::From(position, 0), r#","from":"1-2""#),
            (Start::From(position, 3), r#","from":"1-2-3""#),
            (Start::Since(1_764_000_000_000), r#","since":1764000000000"#),
            (Start::Newest(7), r#","newest":7"#),
        ] {
            let text = subscribe_text("T.A", start);
            assert_eq!(text, format!(r#"{{"action":"subscribe","params":"T.A"{rest}}}"#));
            let Ok(Command::Subscribe(items)) = Command::parse(&text) else { panic!("{text}") };
            assert_eq!((items.start, items.snapshot), (start, false));
        }
        for (rest, error) in [
            (r#""from":7"#, CommandError::From),
            (r#""from":"7""#, CommandError::From),
            (r#""since":"7""#, CommandError::Since),
            (r#""since":-7"#, CommandError::Since),
            (r#""from":"1-2","since":7"#, CommandError::Starts),
            (r#""from":"1-2","snapshot":true"#, CommandError::Starts),
            (r#""snapshot":1"#, CommandError::Snapshot),
            (r#""newest":"all""#, CommandError::Newest),
        ] {
            let text = format!(r#"{{"action":"subscribe","params":"T.A",{rest}}}"#);
            assert_eq!(Command::parse(&text).unwrap_err(), error);
        }
        let text = r#"{"action":"subscribe","params":"T.A","snapshot":true}"#;
        assert!(matches!(Command::parse(text), Ok(Command::Subscribe(items)) if items.snapshot));
    }

    #[test]
    fn commands_are_read_as_json() {
        for text in [
            r#"{"action":"subscribe","params":"T.A,T.B"}"#,
            r#"{"action": "subscribe", "params": "T.A,T.B"}"#,
            r#" {"params":"T.A,T.B","extra":[1],"action":"\u0073ubscribe"} "#,
        ] {
            let command = Command::parse(text);
            assert!(
                matches!(&command, Ok(Command::Subscribe(items)) if items.params == "T.A,T.B"),
                "{command:?}"
            );
        }
    }

    #[test]
    fn a_command_may_name_the_key_that_it_is_for_and_the_number_of_its_clients() {
        let of = |clients| Some(OnBehalfOf { key: "desk-a".into(), clients });
        for (clients, rest) in [(1, ""), (3, r#","clients":3"#)] {
            let text = command_text("subscribe", "Q.O:A", of(clients).as_ref());
            let expected =
                format!(r#"{{"action":"subscribe","params":"Q.O:A","for":"desk-a"{rest}}}"#);
            assert_eq!(text, expected);
        }
        for (members, expected) in [
            (r#""for":"desk-a""#, of(1)),
            (r#""for":"desk-a","clients":3"#, of(3)),
            (r#""for":"desk-a","clients":0"#, of(1)),
            (r#""for":"desk-a","clients":-7"#, of(1)),
            (r#""for":"desk-a","clients":"3""#, of(1)),
            (r#""for":"desk-a","clients":5000000000"#, of(u32::MAX)),
            (r#""for":7,"clients":3"#, None),
            (r#""for":null"#, None),
            (r#""clients":3"#, None),
        ] {
            let text = format!(r#"{{"action":"subscribe","params":"Q.O:A",{members}}}"#);
            let Ok(Command::Subscribe(items)) = Command::parse(&text) else { panic!("{text}") };
            assert_eq!(items.on_behalf_of, expected);
        }
    }

    #[test]
    fn a_contract_that_waits_is_named_with_its_place() {
        let contract = Channel::parse("Q.O:SPY", Market::Options).unwrap();
        check_status(
            &Status::waiting(&contract, 12, 1_000),
            r#"[{"ev":"status","status":"error","message":"\"Q.O:SPY\" waits for room: upstream serves 1000 contracts of Q at a time; place 12 in the queue","contract":"Q.O:SPY","place":12,"room":1000}]"#,
        );
    }

    #[test]
    fn a_snapshot_stands_between_two_statuses() {
        check_status(
            &Status::snapshot_begin(vec![1_500, 0]),
            r#"[{"ev":"status","status":"snapshot","message":"last values follow: 2 events","state":"begin","events":2,"ages":[1500,0]}]"#,
        );
        check_status(
            &Status::snapshot_begin(Vec::new()),
            r#"[{"ev":"status","status":"snapshot","message":"last values follow: 0 events","state":"begin","events":0,"ages":[]}]"#,
        );
        check_status(
            &Status::snapshot_end(),
            r#"[{"ev":"status","status":"snapshot","message":"live data follows","state":"end"}]"#,
        );
    }

    #[test]
    fn each_invalid_command_is_named() {
        let error = |text: &str| Command::parse(text).unwrap_err();
        for text in ["", "hello", "[]", "7", "{}", r#"{"action":7}"#, r#"["subscribe","T.A"]"#] {
            assert_eq!(error(text), CommandError::Malformed, "{text}");
        }
        for params in ["", r#","params":7"#, r#","params":["T.A"]"#, r#","params":null"#] {
            let text = format!(r#"{{"action":"subscribe"{params}}}"#);
            assert_eq!(error(&text), CommandError::Params { action: "subscribe" }, "{text}");
        }
        assert_eq!(
            error(r#"{"action":"listen","params":"x"}"#).to_string(),
            r#"unknown action "listen": expected auth, subscribe or unsubscribe"#
        );
    }

    #[test]
    fn a_key_is_not_printed() {
        let command = Command::parse(r#"{"action":"auth","params":"very-secret"}"#).unwrap();
        assert!(!format!("{command:?}").contains("very-secret"));
    }
}
