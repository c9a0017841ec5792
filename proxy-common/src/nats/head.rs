//! The head of a message in a market's stream: where the feed stands before it.

use std::{fmt, str::FromStr};

use crate::protocol::Position;

/// The name of the header that holds the [`Head`].
pub const HEAD: &str = "P";
/// The name of the header of a state that holds the name of its firehose.
pub const HOLDER: &str = "H";
/// The name of the header of answers that holds the version of the demand that they answer.
pub const ANSWERED: &str = "D";

/// Where the feed stands before a message.
///
/// Written `EPOCH-SEQ EVENTS LOST TIME`. The counts begin with the epoch. A reader that misses
/// messages learns from the next head exactly how much they held.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The position before the first frame of the message. Frames of events count, notices do not.
    pub position: Position,
    /// How many events came before it in this epoch. Lost ones are not among them.
    pub events: u64,
    /// How many events the firehose had to leave out before it in this epoch, each announced by a `gap`.
    pub lost: u64,
    /// When the firehose received the last frame of events in the message, or else the last one
    /// before it, in milliseconds since 1970. Zero if there was none.
    pub time: u64,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.position, self.events, self.lost, self.time)
    }
}

/// A header that is no [`Head`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no head of this version: expected EPOCH-SEQ EVENTS LOST TIME")]
pub struct NoHead;

impl FromStr for Head {
    type Err = NoHead;

    /// Reads the four fields. A later version may add more behind them.
    fn from_str(text: &str) -> Result<Self, NoHead> {
        let mut fields = text.split(' ');
        let mut next = || fields.next().ok_or(NoHead);
        let position = next()?.parse().map_err(|_| NoHead)?;
        let mut number = || next()?.parse().map_err(|_| NoHead);
        Ok(Self { position, events: number()?, lost: number()?, time: number()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_written() {
        let position = Position { epoch: 1_764_000_000_000_000, seq: 42 };
        let head = Head { position, events: 2_100, lost: 3, time: 1_764_000_000_123 };
        assert_eq!(head.to_string(), "1764000000000000-42 2100 3 1764000000123");
        assert_eq!(head.to_string().parse(), Ok(head));
        assert_eq!(format!("{head} later").parse(), Ok(head));
        for text in ["", "1-2", "1-2 3 4", "1 2 3 4", "1-2 3 4 x", "1-2 3 4 -5"] {
            assert_eq!(text.parse::<Head>(), Err(NoHead), "{text:?}");
        }
    }
}
