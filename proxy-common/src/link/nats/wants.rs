//! What a filtered proxy wants of the firehose, as it publishes it over NATS, and the answers.
//! Pure.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use serde::Serialize;

use crate::{
    protocol::{Command, Items, Status, channel_items, status_frames},
    websocket::{Frame, frames},
};

/// The most bytes of contracts in one message.
const PART_BYTES: usize = 400_000;

/// What is wanted.
#[derive(Debug, Default)]
pub(super) struct Wants {
    all: bool,
    /// By the label of the key, and how many clients with this key hold each contract.
    contracts: BTreeMap<(Arc<str>, u32), BTreeSet<String>>,
    /// The number of the last version that was published.
    version: u64,
    /// Whether it has changed since.
    changed: bool,
    /// Contracts that were unsubscribed, and the version without them.
    leaving: VecDeque<(u64, Vec<String>)>,
}

/// One message.
#[derive(Serialize)]
struct Part<'a> {
    n: u64,
    all: bool,
    part: usize,
    of: usize,
    contracts: Vec<Claim<'a>>,
}

#[derive(Serialize)]
struct Claim<'a> {
    r#for: &'a str,
    clients: u32,
    items: Vec<&'a str>,
}

impl Wants {
    /// Applies a command of the link.
    pub(super) fn on_command(&mut self, command: Command) {
        let (subscribe, Items { params, on_behalf_of, .. }) = match command {
            Command::Subscribe(items) => (true, items),
            Command::Unsubscribe(items) => (false, items),
            Command::Auth(_) => return,
        };
        self.changed = true;
        let Some(clients) = on_behalf_of else {
            self.all = subscribe;
            return;
        };
        let items: Vec<String> = channel_items(&params).map(str::to_owned).collect();
        for ((key, _), known) in &mut self.contracts {
            if *key == clients.key {
                items.iter().for_each(|item| _ = known.remove(item));
            }
        }
        if subscribe {
            let wanted = self.contracts.entry((clients.key, clients.clients)).or_default();
            wanted.extend(items);
        } else {
            self.leaving.push_back((self.version + 1, items));
        }
        self.contracts.retain(|_, known| !known.is_empty());
    }

    /// The messages that say it.
    pub(super) fn publish(&mut self) -> Vec<Bytes> {
        self.version += u64::from(std::mem::take(&mut self.changed));
        let (mut parts, mut part) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for ((key, clients), items) in &self.contracts {
            let mut claim = Vec::new();
            for item in items {
                if bytes > PART_BYTES {
                    let items = std::mem::take(&mut claim);
                    part.push(Claim { r#for: key, clients: *clients, items });
                    parts.push(std::mem::take(&mut part));
                    bytes = 0;
                }
                bytes += item.len() + 3;
                claim.push(&**item);
            }
            bytes += key.len() + 40;
            part.push(Claim { r#for: key, clients: *clients, items: claim });
        }
        parts.push(part);
        let of = parts.len();
        let parts = parts.into_iter().enumerate().map(|(part, contracts)| {
            let part = Part { n: self.version, all: self.all, part: part + 1, of, contracts };
            serde_json::to_vec(&part).unwrap_or_default().into()
        });
        parts.collect()
    }

    /// Takes answers to this version. Returns them as a session gets them.
    pub(super) fn on_answers(&mut self, version: u64, answers: Bytes) -> Vec<Frame> {
        let mut left = Vec::new();
        while self.leaving.front().is_some_and(|(without, _)| *without <= version) {
            let (_, items) = self.leaving.pop_front().unwrap_or_default();
            left.extend(items.iter().map(|item| Status::unsubscribed(item)));
        }
        status_frames(&left).into_iter().chain(frames(answers).map_while(Result::ok)).collect()
    }

    /// The link is lost. Nobody waits for answers any more, and what is wanted begins anew.
    pub(super) fn begin_anew(&mut self) {
        self.contracts.clear();
        self.leaving.clear();
        self.changed = true;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn command(wants: &mut Wants, text: &str) {
        wants.on_command(Command::parse(text).unwrap());
    }

    fn published(wants: &mut Wants) -> Vec<Value> {
        let parts = wants.publish();
        assert!(parts.iter().all(|part| part.len() < 500_000));
        parts.iter().map(|part| serde_json::from_slice(part).unwrap()).collect()
    }

    #[test]
    fn commands_change_what_is_wanted() {
        let mut wants = Wants::default();
        command(&mut wants, r#"{"action":"subscribe","params":"*","newest":5}"#);
        let two = r#"{"action":"subscribe","params":"Q.O:A,Q.O:B","for":"desk"}"#;
        command(&mut wants, two);
        command(&mut wants, r#"{"action":"subscribe","params":"Q.O:B","for":"desk","clients":2}"#);
        let contracts = json!([
            {"for": "desk", "clients": 1, "items": ["Q.O:A"]},
            {"for": "desk", "clients": 2, "items": ["Q.O:B"]},
        ]);
        let expected = json!([{"n": 1, "all": true, "part": 1, "of": 1, "contracts": contracts}]);
        assert_eq!(json!(published(&mut wants)), expected);
        assert_eq!(json!(published(&mut wants)), expected, "repeated as it is");
        let text = r#"{"action":"unsubscribe","params":"Q.O:A,Q.O:B","for":"desk"}"#;
        command(&mut wants, text);
        assert_eq!(wants.on_answers(1, Bytes::new()), []);
        assert_eq!(published(&mut wants)[0]["n"], 2);
        let answers = wants.on_answers(2, Frame::of_object("{}").bytes().clone());
        assert_eq!(answers.len(), 2);
        let text = String::from_utf8_lossy(answers[0].text()).into_owned();
        assert!(text.contains("unsubscribed to: Q.O:A") && text.contains("to: Q.O:B"), "{text}");
    }

    #[test]
    fn much_is_said_in_parts() {
        let mut wants = Wants::default();
        let items: Vec<_> = (0..40_000).map(|n| format!("Q.O:SPY261218C{n:08}")).collect();
        let params = items.join(",");
        let text = format!(r#"{{"action":"subscribe","params":"{params}","for":"a"}}"#);
        command(&mut wants, &text);
        let parts = published(&mut wants);
        assert!(parts.len() > 1);
        let mut found = Vec::new();
        for (n, part) in parts.iter().enumerate() {
            assert_eq!((&part["part"], &part["of"]), (&json!(n + 1), &json!(parts.len())));
            for claim in part["contracts"].as_array().unwrap() {
                assert_eq!(claim["for"], "a");
                let items = claim["items"].as_array().unwrap();
                found.extend(items.iter().map(|item| item.as_str().unwrap().to_owned()));
            }
        }
        assert_eq!(found, items);
    }
}
