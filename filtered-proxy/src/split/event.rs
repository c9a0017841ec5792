//! An event in a frame, as `split` finds it.

use proxy_common::protocol::Kind;

/// One event of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// The start of its object in the frame.
    pub start: usize,
    /// The end of its object.
    pub end: usize,
    /// Its kind.
    pub kind: EventKind,
    /// Its symbol, from the field that holds the symbol for its kind; `None` if that field is
    /// missing or no string.
    pub symbol: Option<&'a [u8]>,
}

/// The kind that the `ev` of an event names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A kind that a channel can name.
    Known(Kind),
    /// A code that no channel can name. Only sessions with `*` get such an event.
    Unknown,
    /// There is no `ev`, or it is no string. Such an object is no event, and official clients crash
    /// on it.
    Missing,
}
