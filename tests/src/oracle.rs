//! An independent model of subscriptions: which of the events sent a client must have received.
//!
//! It was written from the vendor's documents on a real JSON parser. It shares no line with the
//! product and none of its optimizations.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// The symbol field of this kind in this market. `None` for kinds that the vendor does not document
/// for the market.
#[must_use]
pub fn symbol_field(market: &str, kind: &str) -> Option<&'static str> {
    Some(match (market, kind) {
        ("stocks", "LULD" | "NOI") | ("indices", "V") => "T",
        ("stocks", "T" | "Q" | "A" | "AM" | "FMV" | "LV")
        | ("options", "T" | "Q" | "A" | "AM" | "FMV" | "LV")
        | ("indices", "A" | "AM")
        | ("futures", "T" | "Q" | "A" | "AM")
        | ("forex" | "crypto", "FMV" | "AM" | "LV") => "sym",
        ("forex", "CA" | "CAS") | ("crypto", "XT" | "XQ" | "XA" | "XAS" | "XL2") => "pair",
        ("forex", "C") => "p",
        _ => return None,
    })
}

/// The end of a published sequence: a channel of this market and an event of it, with a symbol that
/// no other event has.
#[must_use]
pub fn end_of(market: &str) -> (String, String) {
    let (kind, field, symbol) = match market {
        "forex" => ("C", "p", "END/OFF"),
        "crypto" => ("XT", "pair", "END-OFF"),
        _ => ("AM", "sym", "END"),
    };
    (format!("{kind}.{symbol}"), format!(r#"{{"ev":"{kind}","{field}":"{symbol}"}}"#))
}

/// Whether a client with this channel alone gets this event.
///
/// # Panics
///
/// If the event has no `ev`.
#[must_use]
pub fn matches(market: &str, channel: &str, event: &Value) -> bool {
    let held = HashSet::from([entry(market, channel)]);
    Sent::new(market, event).is_wanted(&held)
}

/// A channel in the form in which subscriptions and events are compared. Only pairs have several
/// spellings. The separator of a prefix counts: `BTC-*` is not `BTC*`.
fn entry(market: &str, channel: &str) -> String {
    match channel.split_once('.') {
        Some((kind, symbol)) if symbol.ends_with('*') => match of_pairs(market) {
            Some(mark) => format!("{kind}.{}", bare(mark, symbol).replace('/', "-")),
            None => channel.to_owned(),
        },
        Some((kind, symbol)) => format!("{kind}.{}", symbol_form(market, symbol)),
        None => channel.to_owned(),
    }
}

/// What the symbols of a market of pairs may begin with.
fn of_pairs(market: &str) -> Option<&'static str> {
    match market {
        "forex" => Some("C:"),
        "crypto" => Some("X:"),
        _ => None,
    }
}

fn bare<'a>(mark: &str, symbol: &'a str) -> &'a str {
    symbol.strip_prefix(mark).unwrap_or(symbol)
}

fn symbol_form(market: &str, symbol: &str) -> String {
    match of_pairs(market) {
        Some(mark) => bare(mark, symbol).replace(['/', '-'], ""),
        None => symbol.to_owned(),
    }
}

/// The spellings of a symbol with which a prefix may begin. A pair that has no separator is split
/// before its last three letters.
fn spellings(market: &str, symbol: &str) -> Vec<String> {
    let Some(mark) = of_pairs(market) else { return vec![symbol.to_owned()] };
    let pair = bare(mark, symbol);
    let (base, quote) =
        pair.split_once(['/', '-']).unwrap_or_else(|| pair.split_at(pair.len().saturating_sub(3)));
    vec![format!("{base}-{quote}"), format!("{base}{quote}")]
}

/// The channels that match an event.
#[derive(Debug)]
struct Sent {
    /// `T.*` and `T.AAPL`. `None` for a kind that no channel can name, which only `*` matches.
    entries: Option<(String, String)>,
    /// `T.AAPL` in each spelling with which a prefix may begin.
    spellings: Vec<String>,
    /// Whether `*` matches it: it does unless the kind is served by contract only.
    in_all: bool,
}

impl Sent {
    fn new(market: &str, event: &Value) -> Self {
        let kind = event["ev"].as_str().expect("every event has ev");
        let symbol = match symbol_field(market, kind) {
            Some(field) => Some(event[field].as_str()),
            None => is_code(kind)
                .then(|| ["sym", "pair", "T", "p"].iter().find_map(|field| event[field].as_str())),
        };
        let spellings = symbol.flatten().map(|symbol| spellings(market, symbol));
        let entries = symbol.map(|symbol| {
            let symbol = symbol_form(market, symbol.unwrap_or_default());
            (format!("{kind}.*"), format!("{kind}.{symbol}"))
        });
        let of_kind = |spelling| format!("{kind}.{spelling}");
        let spellings = spellings.into_iter().flatten().map(of_kind).collect();
        Self { entries, spellings, in_all: true }
    }

    fn is_wanted(&self, held: &HashSet<String>) -> bool {
        let named =
            |(kind, symbol): &(String, String)| held.contains(kind) || held.contains(symbol);
        let others = || held.iter().filter(|entry| *entry != "*");
        let prefixes = || others().filter_map(|entry| entry.strip_suffix('*'));
        let begins = |prefix| self.spellings.iter().any(|spelling| spelling.starts_with(prefix));
        let is_in_all = self.in_all && held.contains("*");
        is_in_all || self.entries.as_ref().is_some_and(named) || prefixes().any(begins)
    }
}

/// Whether a channel can name this kind: up to nine capital letters and digits, the first a letter.
fn is_code(kind: &str) -> bool {
    kind.len() <= 9
        && kind.starts_with(|c: char| c.is_ascii_uppercase())
        && kind.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
}

/// What one client saw, in order.
#[derive(Debug, Clone)]
pub enum Step {
    /// The bytes of an event.
    Event(String),
    /// A notice that events are missing here: an outage, or a gap.
    Gap,
    /// The acknowledgement of a subscription change.
    Changed {
        /// Items acknowledged as subscribed.
        added: Vec<String>,
        /// Items acknowledged as unsubscribed.
        removed: Vec<String>,
        /// How many events had been given to the simulator when the acknowledgement was read. The
        /// change took effect before any later event.
        sent_before: usize,
    },
}

/// Knows all events sent, in order, and checks what clients received of them.
#[derive(Debug)]
pub struct Oracle {
    market: String,
    sent: Vec<Sent>,
    positions: HashMap<String, usize>,
}

/// The positions in the sequence of events before which a subscription change may have taken
/// effect. They always form an interval, because they grow one event at a time.
#[derive(Debug, Clone, Copy)]
struct Window {
    earliest: usize,
    latest: usize,
}

impl Oracle {
    /// An oracle of all events sent, byte for byte and in order.
    ///
    /// # Panics
    ///
    /// If two events have the same bytes, because a received one would be ambiguous.
    #[must_use]
    pub fn new(market: &str, events: &[String]) -> Self {
        let sent = events.iter().map(|event| {
            let value = serde_json::from_str(event).expect("an event that was sent parses");
            Sent::new(market, &value)
        });
        let sent = sent.collect();
        let mut positions = HashMap::with_capacity(events.len());
        for (position, event) in events.iter().enumerate() {
            let earlier = positions.insert(event.clone(), position);
            assert_eq!(earlier, None, "sent twice: {event}");
        }
        Self { market: market.to_owned(), sent, positions }
    }

    /// The same oracle of a market that serves these kinds by contract only, so that `*` does not
    /// include them.
    #[must_use]
    pub fn with_contracts(mut self, kinds: &[&str]) -> Self {
        for sent in &mut self.sent {
            let of_kind = |(all, _): &(String, String)| {
                kinds.iter().any(|kind| all.strip_suffix(".*") == Some(*kind))
            };
            sent.in_all = !sent.entries.as_ref().is_some_and(of_kind);
        }
        self
    }

    /// Checks all that a client saw, from its login to the last event sent, which it must have
    /// received.
    ///
    /// Between two changes the client must have received exactly the matching events, in order. The
    /// product may choose the event at which a change takes effect. But one position must explain
    /// both sides of the change, and it must lie before all events sent after the acknowledgement.
    ///
    /// # Errors
    ///
    /// Says which event is foreign, missing, repeated or out of order.
    pub fn check(&self, steps: &[Step]) -> Result<(), String> {
        let last = self.check_begun(steps)?;
        if last.is_none_or(|last| last + 1 < self.sent.len()) {
            return Err(format!("ends at {last:?} of {} events", self.sent.len()));
        }
        Ok(())
    }

    /// Checks all that a client saw on a connection that ended early: as [`check`](Self::check),
    /// but not up to the last event sent. Returns the position of the last event after the last
    /// change.
    ///
    /// # Errors
    ///
    /// Says which event is foreign, missing, repeated or out of order.
    pub fn check_begun(&self, steps: &[Step]) -> Result<Option<usize>, String> {
        let mut held = HashSet::new();
        let mut window = Window { earliest: 0, latest: 0 };
        let mut last: Option<usize> = None;
        let mut gap = false;
        for (at, step) in steps.iter().enumerate() {
            match step {
                Step::Event(event) => {
                    let position = self.positions.get(event);
                    let position = *position.ok_or(format!("step {at}: never sent: {event}"))?;
                    self.check_event(position, last, window, std::mem::take(&mut gap), &held)
                        .map_err(|wrong| format!("step {at}: {wrong}: {event}"))?;
                    last = Some(position);
                }
                Step::Gap => gap = true,
                Step::Changed { added, removed, sent_before } => {
                    let gap = std::mem::take(&mut gap);
                    let next = self.next_window(last, window, gap, &held, *sent_before);
                    window = next.ok_or(format!(
                        "step {at}: the change +{added:?} -{removed:?} fits nowhere: \
                         {window:?}, {last:?}"
                    ))?;
                    last = None;
                    held.extend(added.iter().map(|item| entry(&self.market, item)));
                    for item in removed {
                        held.remove(&entry(&self.market, item));
                    }
                }
            }
        }
        Ok(last)
    }

    fn check_event(
        &self,
        position: usize,
        last: Option<usize>,
        window: Window,
        gap: bool,
        held: &HashSet<String>,
    ) -> Result<(), String> {
        if !self.sent[position].is_wanted(held) {
            return Err(format!("event {position} matches nothing of {held:?}"));
        }
        // Before the first event after a change, the change may not have taken effect yet.
        let expected_from = match last {
            Some(last) if position <= last => return Err(format!("event {position} after {last}")),
            Some(last) => last + 1,
            None if position < window.earliest => {
                return Err(format!("event {position} after a change at {window:?}"));
            }
            None => window.latest.min(position),
        };
        if gap {
            return Ok(());
        }
        match self.first_wanted(expected_from, held) {
            missing if missing < position => {
                Err(format!("event {missing} is missing before event {position}, held: {held:?}"))
            }
            _ => Ok(()),
        }
    }

    /// The window of the next change: after the last event received, before the first one missed.
    fn next_window(
        &self,
        last: Option<usize>,
        window: Window,
        gap: bool,
        held: &HashSet<String>,
        sent_before: usize,
    ) -> Option<Window> {
        let (earliest, expected_from) = match last {
            Some(last) => (last + 1, last + 1),
            None => (window.earliest, window.latest),
        };
        let first_missed = if gap { sent_before } else { self.first_wanted(expected_from, held) };
        let latest = first_missed.min(sent_before);
        (earliest <= latest).then_some(Window { earliest, latest })
    }

    /// The first matching event from here on. The number of all events if there is none.
    fn first_wanted(&self, from: usize, held: &HashSet<String>) -> usize {
        let wanted = (from..self.sent.len()).find(|&position| self.sent[position].is_wanted(held));
        wanted.unwrap_or(self.sent.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trade(symbol: &str, n: usize) -> String {
        format!(r#"{{"ev":"T","sym":"{symbol}","q":{n}}}"#)
    }

    /// Events 0 to 7 alternate between A and B. The last one, event 8, is of C.
    fn events() -> Vec<String> {
        let alternate = (0..8).map(|n| trade(if n % 2 == 0 { "A" } else { "B" }, n));
        alternate.chain([trade("C", 8)]).collect()
    }

    fn add(item: &str, sent_before: usize) -> Step {
        Step::Changed { added: vec![item.to_owned()], removed: Vec::new(), sent_before }
    }

    fn remove(item: &str, sent_before: usize) -> Step {
        Step::Changed { added: Vec::new(), removed: vec![item.to_owned()], sent_before }
    }

    #[track_caller]
    fn check(steps: &[Step], received: &[usize], expected: Result<(), &str>) {
        let events = events();
        let mut received = received.iter().map(|&n| Step::Event(events[n].clone()));
        let mut all = Vec::new();
        for step in steps {
            match step {
                // A placeholder for this many of the received events.
                Step::Event(count) => {
                    all.extend(received.by_ref().take(count.parse().unwrap()));
                }
                other @ (Step::Gap | Step::Changed { .. }) => all.push(other.clone()),
            }
        }
        all.extend(received);
        match (Oracle::new("stocks", &events).check(&all), expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (result, _) => panic!("{result:?} instead of {expected:?}"),
        }
    }

    fn then(count: usize) -> Step {
        Step::Event(count.to_string())
    }

    #[test]
    fn what_is_complete_passes() {
        let start = [add("C.C", 0), add("T.A", 0), add("T.C", 0)];
        check(&start, &[0, 2, 4, 6, 8], Ok(()));
        check(&[add("*", 3)], &[3, 4, 5, 6, 7, 8], Ok(()));
        check(&[add("*", 3)], &[0, 1, 2, 3, 4, 5, 6, 7, 8], Ok(()));
        // One position explains both sides: B is gone before event 5, C is there before event 8.
        check(
            &[add("T.*", 0), then(5), remove("T.*", 9), add("T.A", 9), add("T.C", 9)],
            &[0, 1, 2, 3, 4, 6, 8],
            Ok(()),
        );
    }

    #[test]
    fn what_is_missing_is_found() {
        check(&[add("*", 0)], &[0, 1, 3, 4, 5, 6, 7, 8], Err("event 2 is missing"));
        check(&[add("*", 3)], &[4, 5, 6, 7, 8], Err("event 3 is missing"));
        check(&[add("*", 0)], &[0, 1, 2, 3, 4, 5, 6, 7], Err("ends at"));
        check(&[add("*", 0), remove("*", 9)], &[], Err("ends at"));
        // Held from before event 1 until after event 8 at the earliest, so events of both were due.
        let steps = [add("T.*", 1), then(2), remove("T.*", 9), add("T.C", 9)];
        check(&steps, &[1, 4, 8], Err("missing"));
        let steps = [add("T.*", 1), then(1), remove("T.A", 9), then(1)];
        check(&steps, &[1, 3, 4, 5, 6, 7, 8], Err("missing"));
    }

    #[test]
    fn what_is_declared_may_be_missing_and_nothing_else() {
        check(&[add("*", 0), then(2), Step::Gap], &[0, 1, 5, 6, 7, 8], Ok(()));
        check(&[add("*", 0), Step::Gap, then(2)], &[3, 4, 5, 6, 7, 8], Ok(()));
        check(&[add("T.A", 0), then(2), Step::Gap, add("T.C", 9)], &[0, 2, 8], Ok(()));
        let missed = [add("*", 0), then(2), Step::Gap];
        check(&missed, &[0, 1, 5, 7, 8], Err("event 6 is missing"));
        check(&missed, &[0, 1, 1, 8], Err("event 1 after 1"));
        check(&missed, &[0, 1, 5, 6], Err("ends at"));
        let oracle = Oracle::new("stocks", &events());
        let begun: Vec<_> = events()[3..5].iter().cloned().map(Step::Event).collect();
        let steps = [&[add("*", 3)][..], &begun].concat();
        assert_eq!(oracle.check_begun(&steps), Ok(Some(4)));
    }

    #[test]
    fn all_leaves_out_what_is_served_by_contract_only() {
        let quote = |symbol: &str, n| trade(symbol, n).replacen("T", "Q", 1);
        let events = [quote("A", 0), trade("A", 1), quote("B", 2), trade("B", 3)];
        let oracle = Oracle::new("options", &events).with_contracts(&["Q"]);
        let check = |items: &[&str], received: &[usize]| {
            let received = received.iter().map(|&n| Step::Event(events[n].clone()));
            oracle.check(&items.iter().map(|item| add(item, 0)).chain(received).collect::<Vec<_>>())
        };
        assert_eq!(check(&["*"], &[1, 3]), Ok(()));
        assert_eq!(check(&["*", "Q.A"], &[0, 1, 3]), Ok(()));
        let error = check(&["*"], &[0, 1, 3]).unwrap_err();
        assert!(error.contains("matches nothing"), "{error}");
    }

    #[test]
    fn what_is_foreign_or_out_of_order_is_found() {
        check(&[add("T.A", 0)], &[0, 1], Err("matches nothing"));
        check(&[add("T.A", 0)], &[2], Err("event 0 is missing"));
        check(&[add("*", 0)], &[0, 0], Err("event 0 after 0"));
        check(&[add("*", 0), then(2), add("T.A", 9)], &[0, 1, 0], Err("after a change"));
        check(&[], &[0], Err("matches nothing"));
        let foreign = [add("*", 0), Step::Event("1".into())];
        let mut steps = foreign[..1].to_vec();
        steps.push(Step::Event(trade("A", 99)));
        let error = Oracle::new("stocks", &events()).check(&steps).unwrap_err();
        assert!(error.contains("never sent"), "{error}");
    }

    #[test]
    fn channels_match_by_the_vendors_table() {
        let check = |market, channel: &str, event: &str, expected| {
            let event: Value = serde_json::from_str(event).unwrap();
            assert_eq!(matches(market, channel, &event), expected, "{channel} {event}");
        };
        check("stocks", "T.BRK.B", r#"{"ev":"T","sym":"BRK.B"}"#, true);
        check("stocks", "T.BRK", r#"{"ev":"T","sym":"BRK.B"}"#, false);
        check("stocks", "LULD.X", r#"{"ev":"LULD","i":[16],"T":"X"}"#, true);
        check("stocks", "LULD.X", r#"{"ev":"LULD","sym":"X"}"#, false);
        check("stocks", "ZZ.*", r#"{"ev":"ZZ","sym":"X"}"#, true);
        check("stocks", "ZZ.X", r#"{"ev":"ZZ","p":"NO","T":"X"}"#, true);
        check("stocks", "ZZ.X", r#"{"ev":"ZZ","p":"X","pair":"NO"}"#, false);
        check("stocks", "zz.*", r#"{"ev":"zz","sym":"X"}"#, false);
        check("stocks", "*", r#"{"ev":"ZZ","sym":"X"}"#, true);
        check("stocks", "A.*", r#"{"ev":"AM","sym":"X"}"#, false);
        check("forex", "C.C:EUR-USD", r#"{"ev":"C","p":"EUR/USD"}"#, true);
        check("crypto", "XT.X:BTC-USD", r#"{"ev":"XT","pair":"BTC-USD"}"#, true);
        check("crypto", "FMV.BTC-USD", r#"{"ev":"FMV","sym":"X:BTC-USD"}"#, true);
        check("indices", "V.I:SPX", r#"{"ev":"V","val":1,"T":"I:SPX"}"#, true);
        check("stocks", "T.BRK*", r#"{"ev":"T","sym":"BRK.B"}"#, true);
        check("stocks", "T.BRK.B*", r#"{"ev":"T","sym":"BRK.B"}"#, true);
        check("stocks", "T.BRK-*", r#"{"ev":"T","sym":"BRK.B"}"#, false);
        check("stocks", "T.A*", r#"{"ev":"Q","sym":"AAPL"}"#, false);
        check("options", "T.O:SPY*", r#"{"ev":"T","sym":"O:SPY251219C00650000"}"#, true);
        check("options", "T.SPY*", r#"{"ev":"T","sym":"O:SPY251219C00650000"}"#, false);
        for prefix in ["EUR*", "EUR/*", "C:EUR-U*", "EURU*", "C:EURUSD*", "C:*", "E*"] {
            let event = r#"{"ev":"C","p":"EUR/USD"}"#;
            check("forex", &format!("C.{prefix}"), event, true);
        }
        check("forex", "C.C*", r#"{"ev":"C","p":"EUR/USD"}"#, false);
        check("crypto", "XT.BTC-*", r#"{"ev":"XT","pair":"BTCB-USD"}"#, false);
        check("crypto", "FMV.BTC-*", r#"{"ev":"FMV","sym":"X:BTCUSD"}"#, true);
    }
}
