//! An event as it is found in a frame.

use proxy_common::protocol::Kind;

/// One event of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Where its object begins in the frame.
    pub start: usize,
    /// Where its object ends.
    pub end: usize,
    /// Its kind.
    pub kind: EventKind,
    /// Its symbol, from the field that its kind keeps it in; `None` where that field is missing or no string.
    pub symbol: Option<&'a [u8]>,
}

/// What the `ev` of an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A kind of the vendor's.
    Known(Kind),
    /// A kind that this program does not know; only `*` brings it.
    Unknown,
    /// There is no `ev`, or it is no string: no event at all. Official clients die of such objects.
    Missing,
}

/// The frame stops being an array of objects here. Events before it are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// The byte at which it was noticed.
    pub at: usize,
}
