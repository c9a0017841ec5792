//! Positions: places in a market's feed, which a client can name to go on from there.

use std::{fmt, num::ParseIntError, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};

/// A place in a market's feed: behind a message, which is a frame of events.
///
/// Written `EPOCH-SEQ`. Positions grow with the feed, also from one epoch to the next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// One run of a firehose: when it began, in microseconds since 1970.
    pub epoch: u64,
    /// How many messages the firehose has published in this run.
    pub seq: u64,
}

impl Position {
    /// The position behind the next message.
    pub fn next(self) -> Self {
        Self { seq: self.seq + 1, ..self }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
    }
}

impl FromStr for Position {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (epoch, seq) = text.split_once('-').unwrap_or((text, ""));
        Ok(Self { epoch: number(epoch)?, seq: number(seq)? })
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Reads digits alone: `u64` also takes a sign.
fn number(text: &str) -> Result<u64, ParseIntError> {
    match text.starts_with('+') {
        true => "".parse(),
        false => text.parse(),
    }
}

/// Where a subscription begins.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the next message.
    #[default]
    Live,
    /// Behind this position, after so many more of the events that match.
    From(Position, u64),
    /// With the first message that the firehose received at this time or later, in milliseconds
    /// since 1970.
    Since(u64),
    /// For a filtered proxy: with the newest messages, as many as fit this many bytes.
    Newest(u64),
}

impl Start {
    /// Reads the text of `from`: `EPOCH-SEQ` or `EPOCH-SEQ-K`.
    ///
    /// # Errors
    ///
    /// It is neither.
    pub fn parse_from(text: &str) -> Result<Self, ParseIntError> {
        match text.match_indices('-').nth(1) {
            Some((at, _)) => Ok(Self::From(text[..at].parse()?, number(&text[at + 1..])?)),
            None => Ok(Self::From(text.parse()?, 0)),
        }
    }

    /// The position that it names, if it names one.
    pub fn position(self) -> Option<Position> {
        match self {
            Self::From(position, _) => Some(position),
            Self::Live | Self::Since(_) | Self::Newest(_) => None,
        }
    }
}

/// What a firehose says about positions, in a status to a filtered proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionMark {
    /// What it says.
    pub kind: MarkKind,
    /// Where the feed stands.
    pub position: Position,
    /// When the last message before it was received, in milliseconds since 1970. Zero if unknown.
    pub time: u64,
}

/// The statuses that hold a [`PositionMark`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkKind {
    /// `position`: so much of the feed came before.
    At,
    /// `resumed`: what follows begins here.
    Resumed,
    /// `live`: old messages end here.
    Live,
    /// `gap`: messages up to here are lost.
    Gap,
}

/// Where lost messages begin, by the text of a `gap`. `None` if it does not say that.
pub fn gap_begins(text: &str) -> Option<Position> {
    #[derive(Deserialize)]
    struct Fields {
        after: String,
    }
    serde_json::from_str::<Fields>(text).ok()?.after.parse().ok()
}

impl PositionMark {
    /// Reads a status. `None` if it holds no position, as none of the vendor's does.
    pub fn read(status: &str, text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Fields {
            position: String,
            #[serde(default)]
            time: u64,
        }
        let kind = match status {
            "position" => MarkKind::At,
            "resumed" => MarkKind::Resumed,
            "live" => MarkKind::Live,
            "gap" => MarkKind::Gap,
            _ => return None,
        };
        let fields: Fields = serde_json::from_str(text).ok()?;
        Some(Self { kind, position: fields.position.parse().ok()?, time: fields.time })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written() {
        let position = Position { epoch: 1_764_000_000_000_000, seq: 42 };
        assert_eq!(position.to_string(), "1764000000000000-42");
        assert_eq!(position.to_string().parse(), Ok(position));
        for text in ["", "1", "-", "1-", "-1", "1--2", "1-2-3", "+1-2", "1-+2", "1 -2", "a-b"] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_start_may_skip_events() {
        let position = Position { epoch: 1, seq: 2 };
        assert_eq!(Start::parse_from("1-2"), Ok(Start::From(position, 0)));
        assert_eq!(Start::parse_from("1-2-3"), Ok(Start::From(position, 3)));
        for text in ["", "1", "1-2-", "1-2-x", "1-2-3-4", "1--3", "1-2--3", "1-2-+3"] {
            assert!(Start::parse_from(text).is_err(), "{text}");
        }
    }

    #[test]
    fn marks_are_read_out_of_statuses_with_a_position() {
        let text = r#"{"ev":"status","status":"live","message":"m","position":"1-2","time":7}"#;
        let mark = PositionMark::read("live", text).unwrap();
        let position = Position { epoch: 1, seq: 2 };
        assert_eq!(mark, PositionMark { kind: MarkKind::Live, position, time: 7 });
        assert_eq!(gap_begins(r#"{"after":"1-2","position":"3-0"}"#), Some(position));
        assert_eq!(gap_begins(text), None);
        for (status, text) in [
            ("live", r#"{"position":7}"#),
            ("live", r#"{"position":"x"}"#),
            ("live", r#"{"ev":"status"}"#),
            ("success", text),
        ] {
            assert_eq!(PositionMark::read(status, text), None);
        }
    }
}
