//! What the simulator records for tests: commands received and frames sent.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::lock::lock;

/// The most commands kept. The oldest goes first.
const COMMANDS: usize = 10_000;
/// The most bytes of commands kept. The oldest goes first.
const COMMAND_BYTES: usize = 32 << 20;
/// The most bytes of frames kept. Past that the record is given up, and reading it panics.
const FRAME_BYTES: usize = 1 << 30;

#[derive(Debug, Default)]
pub(crate) struct Journal {
    commands: Mutex<Commands>,
    frames: Mutex<Frames>,
}

#[derive(Debug, Default)]
struct Commands {
    texts: VecDeque<String>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Frames {
    texts: BTreeMap<u64, Utf8Bytes>,
    next: u64,
    bytes: usize,
    overflowed: bool,
}

impl Journal {
    /// Keeps a command, without its key.
    pub(crate) fn command(&self, text: &str, keys: &[String]) {
        let text = redact(text, keys);
        let mut commands = lock(&self.commands);
        commands.bytes += text.len();
        commands.texts.push_back(text);
        while commands.texts.len() > COMMANDS || commands.bytes > COMMAND_BYTES {
            let Some(oldest) = commands.texts.pop_front() else { break };
            commands.bytes -= oldest.len();
        }
    }

    pub(crate) fn commands(&self) -> Vec<String> {
        lock(&self.commands).texts.iter().cloned().collect()
    }

    /// Records a frame that is about to be written. The entry removes it again if it is dropped
    /// before [`FrameEntry::written`], so the record holds every frame that a client may have read,
    /// and no other.
    pub(crate) fn frame(&self, text: &Utf8Bytes) -> FrameEntry<'_> {
        let mut frames = lock(&self.frames);
        let id = frames.next;
        frames.next += 1;
        frames.bytes += text.len();
        if frames.bytes > FRAME_BYTES {
            frames.overflowed = true;
            frames.texts.clear();
        } else {
            frames.texts.insert(id, text.clone());
        }
        FrameEntry { journal: self, id, written: false }
    }

    /// The recorded frames.
    ///
    /// # Panics
    /// When more than [`FRAME_BYTES`] were sent: an incomplete record must not look complete.
    pub(crate) fn frames(&self) -> Vec<String> {
        let frames = lock(&self.frames);
        assert!(!frames.overflowed, "more than {FRAME_BYTES} bytes of frames were sent");
        frames.texts.values().map(|text| text.as_str().to_owned()).collect()
    }
}

/// A recorded frame that is being written.
#[must_use]
pub(crate) struct FrameEntry<'a> {
    journal: &'a Journal,
    id: u64,
    written: bool,
}

impl FrameEntry<'_> {
    pub(crate) fn written(mut self) {
        self.written = true;
    }
}

impl Drop for FrameEntry<'_> {
    fn drop(&mut self) {
        if !self.written {
            lock(&self.journal.frames).texts.remove(&self.id);
        }
    }
}

/// The command with `***` in place of the key of an `auth`, and of any accepted key elsewhere.
fn redact(text: &str, keys: &[String]) -> String {
    let is_auth = |command: &Value| command.get("action") == Some(&json!("auth"));
    if serde_json::from_str(text).is_ok_and(|command| is_auth(&command)) {
        return r#"{"action":"auth","params":"***"}"#.to_owned();
    }
    let named = keys.iter().filter(|key| !key.is_empty());
    named.fold(text.to_owned(), |text, key| text.replace(key.as_str(), "***"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_kept() {
        let journal = Journal::default();
        let keys = ["good".to_owned()];
        journal.command(r#"{"params": "wrong", "action": "auth"}"#, &keys);
        journal.command(r#"{"action":"auth","params":"good""#, &keys);
        journal.command(r#"{"action":"subscribe","params":"T.*"}"#, &keys);
        let kept = journal.commands();
        assert_eq!(kept[0], r#"{"action":"auth","params":"***"}"#);
        assert_eq!(kept[1], r#"{"action":"auth","params":"***""#);
        assert_eq!(kept[2], r#"{"action":"subscribe","params":"T.*"}"#);
    }

    #[test]
    fn the_oldest_command_goes_first() {
        let journal = Journal::default();
        for n in 0..=COMMANDS {
            journal.command(&n.to_string(), &[]);
        }
        let kept = journal.commands();
        assert_eq!((kept.len(), kept[0].as_str()), (COMMANDS, "1"));
    }

    #[test]
    fn a_frame_that_was_not_written_is_not_kept() {
        let journal = Journal::default();
        journal.frame(&"[1]".into()).written();
        drop(journal.frame(&"[2]".into()));
        journal.frame(&"[3]".into()).written();
        assert_eq!(journal.frames(), ["[1]", "[3]"]);
    }
}
