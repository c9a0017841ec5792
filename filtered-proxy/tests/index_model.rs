//! Checks `Index` and `Batch` against models that hold only strings: which sessions want an event,
//! and which bytes each session gets.

mod cases;

use std::{collections::BTreeSet, time::Instant};

use bytes::Bytes;
use filtered_proxy::{
    batch::{Batch, Found, Tally},
    index::{Index, SessionId},
};
use proptest::{
    collection::vec,
    option::of,
    prelude::*,
    sample::{Index as Position, select},
};
use proxy_common::protocol::{Channel, Kind, MAX_MESSAGE_BYTES, Market};
use serde_json::{Value, value::RawValue};

use self::cases::cases;

/// Few sessions, so that they often hold the same channels.
const SESSIONS: u64 = 7;
const KINDS: [&str; 5] = ["T", "Q", "LULD", "FMV", "NEW9"];
/// Short and long symbols, the longest that counts as short, and one that is a byte longer.
const SYMBOLS: [&str; 8] =
    ["A", "B", "BRK.B", "X:Y", "S3", "ABCDEFG", "ABCDEFGH", "O:SPY251219C00650000"];

/// Prefixes of one symbol or several, of a whole symbol, and of none.
const PREFIXES: [&str; 10] =
    ["A", "AB", "BRK.", "S", "S5", "ABCDEFG", "ABCDEFGH", "O:SPY25", "O:SPY251219C00650000", "NON"];

/// A call of the caller.
#[derive(Debug, Clone)]
enum Step {
    Join(SessionId),
    Change(SessionId, Vec<String>, bool),
    Leave(SessionId),
}

fn step() -> impl Strategy<Value = Step> {
    let session = || 0..SESSIONS;
    prop_oneof![
        3 => session().prop_map(Step::Join),
        8 => (session(), channels(), any::<bool>()).prop_map(|(s, c, on)| Step::Change(s, c, on)),
        2 => session().prop_map(Step::Leave),
    ]
}

/// A few channels, or more than a cohort of several sessions may hold.
fn channels() -> impl Strategy<Value = Vec<String>> {
    let channel = prop_oneof![
        1 => Just("*".to_owned()),
        2 => select(KINDS.to_vec()).prop_map(|kind| format!("{kind}.*")),
        5 => (select(KINDS.to_vec()), select(SYMBOLS.to_vec())).prop_map(|(k, s)| format!("{k}.{s}")),
        4 => (select(KINDS.to_vec()), select(PREFIXES.to_vec())).prop_map(|(k, p)| format!("{k}.{p}*")),
    ];
    prop_oneof![
        6 => vec(channel, 0..5),
        1 => (0..3_usize, 50..80_usize, select(vec!["", "*"])).prop_map(|(from, count, end)| {
            (from..from + count).map(|n| format!("T.S{n}{end}")).collect()
        }),
    ]
}

fn parse(channels: &[String], market: Market) -> Vec<Channel> {
    let parse = |item: &String| Channel::parse(item, market).expect("a channel of the market");
    channels.iter().map(parse).collect()
}

/// The channels of each session, as text.
#[derive(Debug, Default)]
struct Model(Vec<(SessionId, BTreeSet<String>)>);

impl Model {
    fn get(&mut self, session: SessionId) -> Option<&mut BTreeSet<String>> {
        self.0.iter_mut().find(|(other, _)| *other == session).map(|(_, held)| held)
    }

    /// How many of these channels match an event.
    fn matching(held: &BTreeSet<String>, kind: &str, symbol: Option<&str>) -> usize {
        let matches = |channel: &&String| match channel.split_once('.') {
            None => true,
            Some((of, _)) if of != kind => false,
            Some((_, "*")) => true,
            Some((_, name)) => symbol.is_some_and(|symbol| match name.strip_suffix('*') {
                Some(prefix) => symbol.starts_with(prefix),
                None => symbol == name,
            }),
        };
        held.iter().filter(matches).count()
    }

    /// The sessions that want an event, in order of their ids.
    fn wanting(&self, kind: &str, symbol: Option<&str>) -> Vec<SessionId> {
        let wants = |held| Self::matching(held, kind, symbol) > 0;
        let mut sessions: Vec<_> =
            self.0.iter().filter(|(_, held)| wants(held)).map(|(session, _)| *session).collect();
        sessions.sort_unstable();
        sessions
    }

    fn subscriptions(&self) -> usize {
        self.0.iter().map(|(_, held)| held.len()).sum()
    }
}

/// The index and its model. The value kept for a session is its id.
#[derive(Debug, Default)]
struct Pair {
    index: Index<SessionId>,
    model: Model,
}

impl Pair {
    /// Applies a step to both, and checks that the answers agree.
    fn apply(&mut self, step: &Step, market: Market) -> Result<(), TestCaseError> {
        match step {
            Step::Join(session) => {
                if self.model.get(*session).is_none() {
                    self.index.join(*session, *session);
                    self.model.0.push((*session, BTreeSet::new()));
                }
            }
            Step::Change(session, channels, subscribe) => {
                let count = self.index.change(*session, parse(channels, market), *subscribe);
                let held = self.model.get(*session).map(|held| {
                    for channel in channels {
                        match subscribe {
                            true => drop(held.insert(channel.clone())),
                            false => drop(held.remove(channel)),
                        }
                    }
                    held.len()
                });
                prop_assert_eq!(count, held);
            }
            Step::Leave(session) => {
                let left = self.index.leave(*session);
                let held = self.model.get(*session).is_some();
                prop_assert_eq!(left, held.then_some(*session));
                self.model.0.retain(|(other, _)| other != session);
            }
        }
        Ok(())
    }

    fn agree(&self) -> Result<(), TestCaseError> {
        let symbols = SYMBOLS.iter().chain(&["S60", "NONE", "*", ""]).copied().map(Some);
        for symbol in symbols.chain([None]) {
            let others = ["NEW9", "ZZ"].map(|code| Kind::from_code(code.as_bytes()));
            for kind in Kind::NAMED.into_iter().chain(others.into_iter().flatten()) {
                let expected = self.model.wanting(&kind.to_string(), symbol);
                prop_assert_eq!(self.wanting(kind, symbol)?, expected, "{} {:?}", kind, symbol);
            }
        }
        prop_assert_eq!(self.index.subscriptions(), self.model.subscriptions());
        let mut holders: Vec<_> = self.index.holders().copied().collect();
        holders.sort_unstable();
        let holding = self.model.0.iter().filter(|(_, held)| !held.is_empty());
        let mut expected: Vec<_> = holding.map(|(session, _)| *session).collect();
        expected.sort_unstable();
        prop_assert_eq!(&holders, &expected);
        let joined: Vec<_> = self.model.0.iter().map(|(session, _)| *session).collect();
        for session in 0..SESSIONS {
            let member = joined.contains(&session).then_some(&session);
            prop_assert_eq!(self.index.member(session), member);
        }
        Ok(())
    }

    /// The sessions that get an event, each once. `all` lists the cohorts with `*`, and `lookup`
    /// finds the others.
    fn wanting(&self, kind: Kind, symbol: Option<&str>) -> Result<Vec<SessionId>, TestCaseError> {
        let mut found = Vec::new();
        self.index.lookup(kind, symbol.map(str::as_bytes), |cohort| found.push(cohort));
        for cohort in &found {
            prop_assert!(!self.index.all().contains(cohort), "a cohort with * is in no other list");
            let visits = found.iter().filter(|other| *other == cohort).count();
            for session in self.index.members(*cohort) {
                let held = self.model.0.iter().find(|(other, _)| other == session);
                let (_, held) = held.expect("a session that has joined");
                prop_assert_eq!(visits, Model::matching(held, &kind.to_string(), symbol));
            }
        }
        found.sort_unstable();
        found.dedup();
        found.extend(self.index.all());
        let members = found.iter().flat_map(|&cohort| self.index.members(cohort)).copied();
        let mut sessions: Vec<_> = members.collect();
        sessions.sort_unstable();
        Ok(sessions)
    }
}

/// An event's text, and the kind and symbol that a JSON parser reads in it, if any.
#[derive(Debug, Clone)]
struct Event {
    text: String,
    kind: Option<String>,
    symbol: Option<String>,
}

impl Event {
    fn parse(text: &str) -> Self {
        let object: Value = serde_json::from_str(text).expect("an event parses");
        let string = |key: &str| object[key].as_str().map(str::to_owned);
        let kind = string("ev");
        let field = match kind.as_deref() {
            Some("LULD") => "T",
            Some("C") => "p",
            Some("CA" | "XT" | "XQ") => "pair",
            _ => "sym",
        };
        Self { text: text.to_owned(), kind, symbol: string(field) }
    }
}

fn stock_event() -> impl Strategy<Value = Event> {
    let kind = select(vec!["T", "T", "Q", "LULD", "FMV", "A", "ZZ", "NEW9"]);
    let symbol = select([&SYMBOLS[..], &["S60", "NONE"]].concat());
    let shape = 0..8_usize;
    (kind, symbol, shape, 0..1_000_u32).prop_map(|(kind, symbol, shape, n)| {
        let field = if kind == "LULD" { "T" } else { "sym" };
        Event::parse(&match shape {
            0 => format!(r#"{{ "n" : {n}, "{field}": "{symbol}" ,"ev": "{kind}" }}"#),
            1 => format!(
                r#"{{"x":["]}}",{{"{field}":"NO"}}],"{field}":"{symbol}","ev":"{kind}","n":{n}}}"#
            ),
            2 => format!(r#"{{"ev":"{kind}","n":{n}}}"#),
            3 => format!(r#"{{"{field}":"{symbol}","n":{n}}}"#),
            4 => format!(r#"{{"ev":7,"{field}":"{symbol}","n":{n}}}"#),
            _ => format!(r#"{{"ev":"{kind}","{field}":"{symbol}","n":{n},"p":1.50,"c":[12,37]}}"#),
        })
    })
}

/// The frames of a batch, each with or without blanks between its events.
fn frames(
    event: impl Strategy<Value = Event>,
    most: usize,
) -> impl Strategy<Value = Vec<(Vec<Event>, bool)>> {
    vec((vec(event, 0..most), any::<bool>()), 0..6)
}

fn frame_text(events: &[Event], blanks: bool) -> String {
    let texts: Vec<_> = events.iter().map(|event| event.text.as_str()).collect();
    if blanks { format!(" [ {} ]\n", texts.join(" ,\n")) } else { format!("[{}]", texts.join(",")) }
}

/// Delivers a batch of frames, and checks the events of each session and the counts. `name` turns
/// an event's symbol into the text that the model's channels use for it.
fn deliver(
    batch: &mut Batch,
    pair: &Pair,
    frames: &[(Vec<Event>, bool)],
    market: Market,
    name: impl Fn(&str) -> String,
) -> Result<(), TestCaseError> {
    let mut tally = Tally::default();
    let mut expected = vec![Vec::new(); SESSIONS as usize];
    let mut bytes = 0;
    for (events, blanks) in frames {
        let text = frame_text(events, *blanks);
        bytes += text.len();
        let typed = events.iter().filter(|event| event.kind.is_some()).count() as u64;
        let found = Found { events: typed, missing_ev: events.len() as u64 - typed };
        prop_assert_eq!(batch.add(Bytes::from(text), Instant::now(), market, &pair.index), found);
        prop_assert_eq!(batch.bytes(), bytes);
        for event in events {
            let Some(kind) = &event.kind else {
                tally.missing_ev += 1;
                continue;
            };
            tally.events += 1;
            if event.text.len() + 2 > MAX_MESSAGE_BYTES {
                tally.oversize += 1;
                continue;
            }
            let symbol = event.symbol.as_deref().map(&name);
            let sessions = pair.model.wanting(kind, symbol.as_deref());
            tally.not_subscribed += u64::from(sessions.is_empty());
            for session in sessions {
                expected[session as usize].push(event.text.clone());
            }
        }
    }
    let mut got = vec![Vec::new(); SESSIONS as usize];
    let mut longest = 0;
    let counted = batch.deliver(&pair.index, |cohort, chunks| {
        for chunk in chunks {
            longest = longest.max(chunk.text().len());
            let array = [b"[", chunk.text(), b"]"].concat();
            let events: Vec<&RawValue> =
                serde_json::from_slice(&array).expect("a chunk is the inside of an array");
            assert!(!events.is_empty(), "an empty chunk");
            assert_eq!(chunk.events() as usize, events.len(), "the count for the ledger");
            for &session in pair.index.members(cohort) {
                got[session as usize].extend(events.iter().map(|event| event.get().to_owned()));
            }
        }
    });
    prop_assert_eq!(counted, tally);
    prop_assert!(longest + 2 <= MAX_MESSAGE_BYTES, "a chunk of {} bytes", longest);
    for (session, (got, expected)) in got.iter().zip(&expected).enumerate() {
        prop_assert!(
            got == expected,
            "session {} got {:?} instead of {:?}",
            session,
            short(got),
            short(expected)
        );
    }
    prop_assert_eq!(batch.bytes(), 0);
    Ok(())
}

fn short(events: &[String]) -> Vec<String> {
    events.iter().map(|event| event.chars().take(80).collect()).collect()
}

proptest! {
    #![proptest_config(cases("index_model", 300))]

    #[test]
    fn the_index_agrees_with_a_list_of_texts(steps in vec(step(), 0..50)) {
        let mut pair = Pair::default();
        for step in &steps {
            pair.apply(step, Market::Stocks)?;
            pair.agree()?;
        }
        for session in 0..SESSIONS {
            pair.apply(&Step::Leave(session), Market::Stocks)?;
        }
        prop_assert_eq!((pair.index.subscriptions(), pair.index.entries()), (0, 0));
    }

    #[test]
    fn each_session_gets_its_events_once_in_order_and_as_they_came(
        rounds in vec((vec(step(), 0..20), frames(stock_event(), 12)), 1..5),
    ) {
        let (mut pair, mut batch) = (Pair::default(), Batch::default());
        for session in 0..SESSIONS {
            pair.apply(&Step::Join(session), Market::Stocks)?;
        }
        for (steps, frames) in &rounds {
            for step in steps {
                pair.apply(step, Market::Stocks)?;
            }
            deliver(&mut batch, &pair, frames, Market::Stocks, str::to_owned)?;
        }
    }

    /// A subscription and an event of the same pair match, however each is written.
    #[test]
    fn pairs_meet_in_every_spelling(
        requests in vec((
            0..SESSIONS,
            select(vec!["C", "CA", "FMV"]),
            (0..PAIRS.len(), 0..6_usize),
            of(0..12_usize),
        ), 0..12),
        frames in frames(pair_event(), 8),
    ) {
        let (mut pair, mut batch) = (Pair::default(), Batch::default());
        for session in 0..SESSIONS {
            pair.apply(&Step::Join(session), Market::Forex)?;
        }
        for (session, kind, (symbol, spelling), prefix) in requests {
            let text = spell(symbol, spelling);
            let (item, meant) = match prefix {
                None => (text.clone(), vec![symbol]),
                Some(bytes) => {
                    let prefix = &text[..bytes.min(text.len())];
                    (format!("{prefix}*"), pairs_with(prefix))
                }
            };
            let channel = format!("{kind}.{item}");
            pair.index.change(session, parse(&[channel], Market::Forex), true);
            let held = pair.model.get(session).expect("it has joined");
            held.extend(meant.iter().map(|pair| format!("{kind}.{}", PAIRS[*pair].concat())));
        }
        deliver(&mut batch, &pair, &frames, Market::Forex, letters)?;
    }
}

proptest! {
    #![proptest_config(cases("index_model", 8))]

    /// Events so long that a message holds few of them, or not even one.
    #[test]
    fn no_chunk_is_longer_than_a_message_may_be(
        sizes in vec((select(KINDS.to_vec()), prop_oneof![
            6 => 1..400_000_usize,
            1 => MAX_MESSAGE_BYTES - 60..MAX_MESSAGE_BYTES + 60,
        ]), 1..8),
        split_at in any::<Position>(),
        blanks in any::<bool>(),
    ) {
        let mut pair = Pair::default();
        for (session, list) in (0..).zip(["*", "T.*", "T.A,Q.A", "LULD.*,T.A"]) {
            pair.apply(&Step::Join(session), Market::Stocks)?;
            let channels = list.split(',').map(str::to_owned).collect();
            pair.apply(&Step::Change(session, channels, true), Market::Stocks)?;
        }
        let mut events: Vec<Event> = sizes
            .iter()
            .map(|(kind, size)| {
                let field = if *kind == "LULD" { "T" } else { "sym" };
                Event::parse(&format!(
                    r#"{{"ev":"{kind}","{field}":"A","x":"{}"}}"#, "x".repeat(*size)
                ))
            })
            .collect();
        let second = events.split_off(split_at.index(events.len()));
        let frames = [(events, blanks), (second, false)];
        deliver(&mut Batch::default(), &pair, &frames, Market::Stocks, str::to_owned)?;
    }
}

const PAIRS: [[&str; 2]; 6] = [
    ["EUR", "USD"],
    ["USD", "EUR"],
    ["GBP", "JPY"],
    ["USDT", "EUR"],
    ["CAD", "JPY"],
    ["USD", "CAD"],
];

/// A pair in one of the spellings that clients and events use.
fn spell(pair: usize, spelling: usize) -> String {
    let [base, quote] = PAIRS[pair];
    match spelling {
        0 => format!("{base}/{quote}"),
        1 => format!("{base}-{quote}"),
        2 => format!("C:{base}-{quote}"),
        3 => format!("C:{base}{quote}"),
        4 => format!("C:{base}/{quote}"),
        _ => format!("{base}{quote}"),
    }
}

/// The pairs that have a spelling with this prefix, apart from the market's `C:`.
fn pairs_with(prefix: &str) -> Vec<usize> {
    let prefix = prefix.trim_start_matches("C:");
    let begins = |[base, quote]: [&str; 2]| {
        ["/", "-", ""].iter().any(|mark| format!("{base}{mark}{quote}").starts_with(prefix))
    };
    (0..PAIRS.len()).filter(|pair| begins(PAIRS[*pair])).collect()
}

/// Only the letters of a pair: all its spellings share them, and no two of [`PAIRS`] do.
fn letters(symbol: &str) -> String {
    symbol.trim_start_matches("C:").replace(['/', '-'], "")
}

fn pair_event() -> impl Strategy<Value = Event> {
    let kind = select(vec!["C", "CA", "FMV"]);
    (kind, 0..PAIRS.len(), 0..6_usize, 0..1_000_u32).prop_map(|(kind, pair, spelling, n)| {
        let (field, symbol) = (if kind == "C" { "p" } else { "pair" }, spell(pair, spelling));
        let field = if kind == "FMV" { "sym" } else { field };
        Event::parse(&format!(r#"{{"ev":"{kind}","{field}":"{symbol}","n":{n}}}"#))
    })
}

/// Two events that just fill a message together, and two that are one byte too long for that.
#[test]
fn a_message_is_filled_to_the_last_byte() {
    let event = |length: usize| {
        let frame = r#"{"ev":"T","sym":"A","x":""}"#;
        Event::parse(&frame.replace(r#""""#, &format!("\"{}\"", "x".repeat(length - frame.len()))))
    };
    for (more, chunks) in [(0, 1), (1, 2)] {
        let mut pair = Pair::default();
        for (session, channel) in (0..).zip(["*", "T.A"]) {
            pair.index.join(session, session);
            pair.index.change(session, parse(&[channel.to_owned()], Market::Stocks), true);
        }
        // The brackets and the comma take three bytes.
        let events = [event(500_000), event(MAX_MESSAGE_BYTES - 500_000 - 3 + more)];
        let mut batch = Batch::default();
        let frame = Bytes::from(frame_text(&events, false));
        batch.add(frame, Instant::now(), Market::Stocks, &pair.index);
        let mut counts = Vec::new();
        batch.deliver(&pair.index, |cohort, chunks| {
            counts.extend(vec![cohort; chunks.len()]);
        });
        for cohort in 0..2 {
            let count = counts.iter().filter(|other| **other == cohort).count();
            assert_eq!(count, chunks, "chunks of cohort {cohort}");
        }
    }
}
