//! Checks the last values against a model that a JSON parser fills from the frames.

mod cases;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;
use filtered_proxy::{
    batch::Batch, coverage::KnownCoverage, index::Index, last_values::LastValues,
};
use proptest::{collection::vec, prelude::*, sample::select};
use proxy_common::{
    metrics::Metrics,
    protocol::{Channel, Coverage, MAX_MESSAGE_BYTES, Market},
};
use serde_json::{Value, value::RawValue};

use self::cases::cases;

/// A market, with the symbols of its events and the items that a client may ask for.
#[derive(Debug, Clone, Copy)]
struct Scene {
    market: Market,
    kinds: &'static [&'static str],
    symbols: &'static [&'static str],
    items: &'static [&'static str],
    /// The types on demand, and their contracts that `*` includes all the same.
    on_demand: (&'static str, &'static str),
}

const SCENES: [Scene; 3] = [
    Scene {
        market: Market::Stocks,
        kinds: &["T", "Q", "LULD", "NEW9", "zz"],
        symbols: &["A", "AA", "B", "BRK.B", "ABCDEFGH"],
        items: &[
            "*",
            "T.*",
            "LULD.*",
            "NEW9.*",
            "T.A*",
            "Q.BRK.*",
            "T.A",
            "Q.B",
            "LULD.AA",
            "NEW9.A",
            "T.ABCDEFGH",
            "T.NONE",
        ],
        on_demand: ("", ""),
    },
    Scene {
        market: Market::Crypto,
        kinds: &["XT", "XQ", "FMV"],
        symbols: &["BTC-USD", "BTC/USD", "X:BTC-USD", "X:BTCUSD", "BTCB-USD", "X:X-EUR"],
        items: &[
            "*",
            "XT.*",
            "XT.BTC*",
            "XT.BTC-*",
            "FMV.X:BTCU*",
            "XT.X:BTC-USD",
            "FMV.BTC/USD",
            "XQ.X-EUR",
        ],
        on_demand: ("", ""),
    },
    Scene {
        market: Market::Options,
        kinds: &["T", "Q"],
        symbols: &["O:A1", "O:A2", "O:B1"],
        items: &["*", "T.*", "Q.O:A*", "T.O:A*", "Q.O:A1", "Q.O:A2", "Q.O:B1", "T.O:A1"],
        on_demand: (r#""Q""#, r#","Q.O:A2""#),
    },
];

impl Scene {
    fn coverage(&self) -> KnownCoverage {
        let (types, listed) = self.on_demand;
        let object = format!(
            r#"{{"ev":"status","status":"carried","message":"m","carried":["T.*"{listed}],"pending":[],"refused":[],"on_demand":[{types}]}}"#
        );
        KnownCoverage::default().after(Coverage::read(&object, self.market))
    }

    /// The symbol of an event, and the same without what may differ between spellings.
    fn symbol(&self, event: &Value) -> Option<[String; 2]> {
        let field = match (self.market, event["ev"].as_str()?) {
            (_, "LULD") => "T",
            (Market::Crypto, "XT" | "XQ") => "pair",
            _ => "sym",
        };
        let symbol = event[field].as_str()?;
        let bare = symbol.trim_start_matches("X:").replace('/', "-");
        Some(match self.market {
            Market::Crypto => {
                let joined = bare.replace('-', "");
                let (base, quote) = joined.split_at(joined.len() - 3);
                [format!("{base}-{quote}"), joined.clone()]
            }
            _ => [symbol.to_owned(), symbol.to_owned()],
        })
    }

    /// Whether live data of this item holds events of this type and symbol.
    fn matches(&self, item: &str, kind: &str, forms: &[String; 2]) -> bool {
        let on_demand = self.on_demand.0.contains(&format!("\"{kind}\""))
            && !self.on_demand.1.contains(&format!("{kind}.{}", forms[0]));
        let Some((of, name)) = item.split_once('.') else { return !on_demand };
        if of != kind {
            return false;
        }
        let bare = match self.market {
            Market::Crypto => name.trim_start_matches("X:").replace('/', "-"),
            _ => name.to_owned(),
        };
        match bare.strip_suffix('*') {
            Some("") => !on_demand,
            Some(start) => !on_demand && forms.iter().any(|form| form.starts_with(start)),
            None => forms.contains(&bare),
        }
    }
}

/// One event: its type and symbol by number, and how it is written.
fn event() -> impl Strategy<Value = (usize, usize, usize)> {
    (0..10_usize, 0..10_usize, 0..40_usize)
}

fn text(scene: &Scene, (kind, symbol, shape): (usize, usize, usize), n: usize) -> String {
    let kind = scene.kinds[kind % scene.kinds.len()];
    let symbol = scene.symbols[symbol % scene.symbols.len()];
    let field = match (scene.market, kind) {
        (_, "LULD") => "T",
        (Market::Crypto, "XT" | "XQ") => "pair",
        _ => "sym",
    };
    let longer = "x".repeat(match shape {
        0 => 900_000,
        1 => 400_000,
        shape => shape,
    });
    match shape % 6 {
        2 => format!(r#"{{ "n" : {n}, "{field}": "{symbol}" ,"ev": "{kind}" }}"#),
        3 => format!(r#"{{"ev":"{kind}","n":{n}}}"#),
        4 => format!(r#"{{"{field}":"{symbol}","n":{n}}}"#),
        _ => format!(r#"{{"ev":"{kind}","{field}":"{symbol}","n":{n},"x":"{longer}"}}"#),
    }
}

/// The last event of each type and symbol, with its number and when it came.
type Model = BTreeMap<(String, [String; 2]), (usize, u64, String)>;

/// The events and ages of a snapshot, whose form is checked.
fn read(frames: &[(Vec<u8>, u32)]) -> (Vec<String>, Vec<u64>) {
    let (mut events, mut ages) = (Vec::new(), Vec::new());
    let (end, parts) = frames.split_last().expect("an end");
    let end: Value = serde_json::from_slice(&end.0).expect("JSON");
    assert_eq!(end[0]["state"], "end");
    let mut parts = parts.iter();
    while let Some((begin, counted)) = parts.next() {
        assert_eq!(*counted, 0);
        let begin: Value = serde_json::from_slice(begin).expect("JSON");
        assert_eq!(
            (&begin[0]["status"], &begin[0]["state"]),
            (&"snapshot".into(), &"begin".into())
        );
        let of_part = begin[0]["ages"].as_array().expect("ages");
        let before = ages.len();
        ages.extend(of_part.iter().map(|age| age.as_u64().expect("an age")));
        assert_eq!(begin[0]["events"], ages.len() - before);
        if ages.len() > before {
            let (text, counted) = parts.next().expect("the events");
            let of_part: Vec<&RawValue> = serde_json::from_slice(text).expect("JSON");
            assert_eq!(*counted as usize, of_part.len());
            events.extend(of_part.iter().map(|event| event.get().to_owned()));
        }
        assert_eq!(ages.len(), events.len());
    }
    (events, ages)
}

proptest! {
    #![proptest_config(cases("last_values_model", 400))]

    #[test]
    fn a_snapshot_holds_what_live_data_held_last(
        scene in select(SCENES.to_vec()),
        frames in vec((vec(event(), 0..12), 0..5_000_u64), 0..12),
        items in vec(0..12_usize, 0..4),
    ) {
        let start = Instant::now();
        let mut batch = Batch::new(Some(LastValues::new(&mut Metrics::default())));
        let index = Index::<()>::default();
        let (mut model, mut now, mut number) = (Model::new(), 0, 0);
        for (events, pause) in frames {
            now += pause;
            let texts: Vec<String> = events
                .into_iter()
                .map(|event| {
                    number += 1;
                    text(&scene, event, number)
                })
                .collect();
            for (n, text) in texts.iter().enumerate() {
                let event: Value = serde_json::from_str(text).unwrap();
                let known = event["ev"].as_str().filter(|kind| *kind != "zz");
                if let (Some(kind), Some(symbol)) = (known, scene.symbol(&event))
                    && text.len() + 2 <= MAX_MESSAGE_BYTES
                {
                    let number = number - texts.len() + n;
                    model.insert((kind.to_owned(), symbol), (number, now, text.clone()));
                }
            }
            let frame = Bytes::from(format!("[{}]", texts.join(",")));
            let read_at = start + Duration::from_millis(now);
            batch.add(frame, read_at, scene.market, &index);
            batch.deliver(&index, |_, _| {});
        }
        let items: Vec<&str> = items.iter().map(|n| scene.items[n % scene.items.len()]).collect();
        let wanted = model.iter().filter(|((kind, symbol), _)| {
            items.iter().any(|item| scene.matches(item, kind, symbol))
        });
        let mut wanted: Vec<_> = wanted.map(|(_, value)| value).collect();
        wanted.sort();
        let channels: BTreeSet<Channel> =
            items.iter().map(|item| Channel::parse(item, scene.market).unwrap()).collect();
        let last_values = batch.last_values.as_ref().unwrap();
        let later = start + Duration::from_millis(now + 7);
        let coverage = scene.coverage();
        let snapshot =
            |limit| last_values.snapshot(&channels, scene.market, &coverage, later, limit);
        let bytes = wanted.iter().map(|(_, _, text)| text.len()).sum();
        let frames: Vec<_> = snapshot(bytes)
            .unwrap()
            .into_iter()
            .map(|(frame, events)| (frame.text().to_vec(), events))
            .collect();
        prop_assert!(frames.iter().all(|(text, _)| text.len() <= MAX_MESSAGE_BYTES));
        let (events, ages) = read(&frames);
        prop_assert!(events.iter().eq(wanted.iter().map(|(_, _, text)| text)));
        prop_assert!(ages.iter().copied().eq(wanted.iter().map(|(_, at, _)| now + 7 - at)));
        if bytes > 0 {
            prop_assert_eq!(snapshot(bytes - 1).map(|_| ()), Err(bytes));
        }
    }
}
