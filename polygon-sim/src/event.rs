//! Events on their way to connections. A scripted event's kind and symbol are read from its text; a
//! generated one comes with both.

use serde_json::{Map, Value};

use crate::market::Market;

/// The kind and symbol of a scripted event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The position of the kind, and the matching form of the symbol.
    Of(usize, String),
    /// A status, which every connection gets.
    Status,
    /// A kind that the market does not have, so no connection can be subscribed to it.
    Unknown,
}

impl Subject {
    /// Reads the subject of one recorded event. What cannot be read is of an unknown kind.
    pub(crate) fn find(market: Market, event: &str) -> Self {
        let fields: Map<String, Value> = serde_json::from_str(event).unwrap_or_default();
        let text = |field: &str| fields.get(field).and_then(Value::as_str);
        let kind = text("ev").and_then(|ev| market.kind(ev));
        let of = |kind: usize| {
            let symbol = text(market.kinds()[kind].symbol_field)?;
            Some(Self::Of(kind, market.matching_form(symbol)))
        };
        kind.and_then(of).unwrap_or(Self::Unknown)
    }

    /// Reads the subject of one event.
    ///
    /// # Panics
    /// When the text is not one JSON object with a string `ev` and the symbol field of its kind: a
    /// mistake in the script must not look like silence on the wire.
    pub(crate) fn read(market: Market, event: &str) -> Self {
        let fields: Map<String, Value> = serde_json::from_str(event).unwrap_or_else(|error| {
            panic!("scripted event is not a JSON object: {error}: {event}")
        });
        let text = |field: &str| fields.get(field).and_then(Value::as_str);
        let ev = text("ev").unwrap_or_else(|| panic!("scripted event has no ev: {event}"));
        if ev == "status" {
            return Self::Status;
        }
        let Some(kind) = market.kind(ev) else { return Self::Unknown };
        let field = market.kinds()[kind].symbol_field;
        let symbol =
            text(field).unwrap_or_else(|| panic!("scripted {ev} event has no {field}: {event}"));
        Self::Of(kind, market.matching_form(symbol))
    }
}

/// Generated events, rendered once for all connections and concatenated in one text.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) text: String,
    pub(crate) events: Vec<BatchEvent>,
}

/// One event of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchEvent {
    /// Where its text ends. It starts where the text of the event before it ends.
    pub(crate) end: usize,
    /// Position of its kind.
    pub(crate) kind: usize,
    /// Position of its symbol.
    pub(crate) symbol: usize,
}

/// A frame of events.
#[derive(Debug, Default)]
pub(crate) struct EventFrame {
    /// `[a,b]` once closed.
    pub(crate) text: String,
    pub(crate) events: usize,
    /// Where the first event ends.
    first_end: usize,
    /// The tick that generated it. `None` for a scripted frame, which is never packed with others.
    pub(crate) tick: Option<u64>,
}

impl EventFrame {
    /// An empty frame of this tick.
    pub(crate) fn new(tick: Option<u64>) -> Self {
        Self { tick, ..Self::default() }
    }

    pub(crate) fn push(&mut self, event: &str) {
        self.text.push(if self.events == 0 { '[' } else { ',' });
        self.text.push_str(event);
        if self.events == 0 {
            self.first_end = self.text.len();
        }
        self.events += 1;
    }

    /// Ends the array. Nothing may be pushed after that.
    pub(crate) fn close(mut self) -> Self {
        self.text.push(']');
        self
    }

    /// Appends the events of another closed frame.
    pub(crate) fn append(&mut self, next: &Self) {
        self.text.pop();
        self.text.push(',');
        self.text.push_str(&next.text[1..]);
        self.events += next.events;
    }

    /// Inserts an object after the first event of a closed frame, without counting it.
    pub(crate) fn insert(&mut self, object: &str) {
        self.text.insert(self.first_end, ',');
        self.text.insert_str(self.first_end + 1, object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_subject_by_the_kinds_own_field() {
        let stocks = |event| Subject::read(Market::Stocks, event);
        let of =
            |kind, symbol: &str| Subject::Of(Market::Stocks.kind(kind).unwrap(), symbol.to_owned());
        assert_eq!(stocks(r#"{"ev":"LULD","i":[16],"T":"GE","sym":"no"}"#), of("LULD", "GE"));
        assert_eq!(stocks(r#"{ "sym" : "BRK.B", "ev" : "T" }"#), of("T", "BRK.B"));
        assert_eq!(stocks(r#"{"ev":"status","status":"x","message":"y"}"#), Subject::Status);
        assert_eq!(stocks(r#"{"ev":"XT","pair":"BTC-USD"}"#), Subject::Unknown);
        let pair = Subject::read(Market::Forex, r#"{"ev":"C","p":"EUR/USD","a":1}"#);
        assert_eq!(pair, Subject::Of(0, "EURUSD".to_owned()));
    }

    #[test]
    #[should_panic(expected = "not a JSON object")]
    fn a_mistake_in_a_script_is_loud() {
        Subject::read(Market::Stocks, "[1]");
    }

    #[test]
    fn frames_grow_and_take_strangers_in() {
        let mut one = EventFrame::new(None);
        one.push("{1}");
        one.push("{2}");
        let mut one = one.close();
        let mut two = EventFrame::new(None);
        two.push("{3}");
        one.append(&two.close());
        assert_eq!((one.text.as_str(), one.events), ("[{1},{2},{3}]", 3));
        one.insert("{s}");
        assert_eq!(one.text, "[{1},{s},{2},{3}]");
    }
}
