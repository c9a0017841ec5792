//! Generated events, compared with the samples and with the key orders seen on the wire.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use polygon_sim::{Generator, generate::sample_kinds};
use serde_json::{Map, Value};

const NOW_NS: u64 = 1_790_604_301_417_204_112;
const MARKETS: [&str; 10] = [
    "stocks",
    "options",
    "forex",
    "crypto",
    "indices",
    "futures",
    "launchpad-stocks",
    "launchpad-options",
    "launchpad-forex",
    "launchpad-crypto",
];

/// A sample event of every kind of every market: the market, the kind, its symbol field, its keys.
fn samples() -> Vec<(String, String, String, BTreeSet<String>)> {
    let lines = include_str!("data/events.jsonl").lines();
    let rows = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rows.filter(|row| row["ev"] != "status")
        .map(|row| {
            let keys = row["sample"].as_object().unwrap().keys().cloned().collect();
            (text(&row["cluster"]), text(&row["ev"]), text(&row["symbol_field"]), keys)
        })
        .collect()
}

/// The keys of a compact object without nested objects, in their order.
fn keys(event: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut rest = event;
    while let Some(at) = rest.find("\":") {
        let start = rest[..at].rfind('"').unwrap() + 1;
        keys.push(rest[start..at].to_owned());
        rest = &rest[at + 2..];
    }
    keys
}

fn generate(market: &str, count: usize) -> Vec<String> {
    let mut generator = Generator::new(market, 300, 7).unwrap();
    let one = |_| {
        let mut event = String::new();
        generator.next(NOW_NS, &mut event);
        event
    };
    (0..count).map(one).collect()
}

/// Whether a generated event is of this kind.
fn is(event: &str, kind: &str) -> bool {
    event.starts_with(&format!("{{\"ev\":\"{kind}\","))
}

#[test]
fn every_sampled_kind_of_every_market_is_generated_with_its_fields() {
    let samples = samples();
    let markets: BTreeSet<_> = samples.iter().map(|sample| sample.0.as_str()).collect();
    assert_eq!(markets, BTreeSet::from(MARKETS));
    for market in MARKETS {
        let kinds: BTreeSet<&str> = sample_kinds(market).iter().copied().collect();
        let of_market = samples.iter().filter(|sample| sample.0 == market);
        assert_eq!(kinds, of_market.map(|sample| sample.1.as_str()).collect(), "{market}");

        let events = generate(market, 25_000);
        let known: BTreeSet<_> =
            Generator::new(market, 300, 7).unwrap().symbols().map(plain).collect();
        for (_, kind, field, keys) in samples.iter().filter(|sample| sample.0 == market) {
            let of_kind: Vec<_> = events.iter().filter(|event| is(event, kind)).collect();
            assert!(of_kind.len() > 5, "{market} {kind}: {}", of_kind.len());
            let mut seen = BTreeSet::new();
            for event in of_kind {
                let fields: Map<String, Value> = serde_json::from_str(event).unwrap();
                let symbol = fields[field].as_str().unwrap();
                assert!(known.contains(&plain(symbol)), "{market}: {event}");
                seen.extend(fields.keys().cloned());
            }
            // Not every event has these, so some samples lack them.
            let optional = ["lp", "ls", "otc", "c", "i", "op", "trfi", "trft"].map(str::to_owned);
            let always = |keys: &BTreeSet<String>| -> BTreeSet<String> {
                keys.iter().filter(|key| !optional.contains(key)).cloned().collect()
            };
            assert_eq!(always(&seen), always(keys), "{market} {kind}");
        }
    }
}

/// A symbol without the prefix and separators, which differ between its spellings.
fn plain(symbol: &str) -> String {
    symbol.trim_start_matches("C:").trim_start_matches("X:").replace(['/', '-'], "")
}

#[test]
fn keys_stand_in_the_order_seen_on_the_wire() {
    let bar = "ev sym v av [op] vw o c h l a z s e [otc] dv dav";
    let orders = [
        ("stocks", "T", "ev sym i x p s [c] t pt q z [trfi] [trft] [ds]"),
        ("stocks", "Q", "ev sym [c] [i] bx ax bp ap bs as t pt q z"),
        ("stocks", "A", bar),
        ("stocks", "AM", bar),
        ("stocks", "LULD", "ev h l i z T t q"),
        ("stocks", "FMV", "ev fmv sym t"),
        ("options", "FMV", "ev fmv sym t"),
        ("crypto", "XT", "ev pair p t s c [i] x r"),
        ("crypto", "XQ", "ev pair [lp] [ls] bp bs ap as t x r"),
    ];
    let markets = ["stocks", "options", "crypto"];
    let generated: HashMap<_, _> =
        markets.into_iter().map(|market| (market, generate(market, 25_000))).collect();
    for (market, kind, order) in orders {
        let mut variants: HashMap<Vec<String>, usize> = HashMap::new();
        for event in generated[market].iter().filter(|event| is(event, kind)) {
            *variants.entry(keys(event)).or_default() += 1;
        }
        for found in variants.keys() {
            let mut left = found.iter();
            let mut next = left.next();
            for key in order.split(' ') {
                let optional = key.trim_matches(['[', ']']);
                if next.is_some_and(|found| found == optional) {
                    next = left.next();
                } else {
                    assert!(key.starts_with('['), "{market} {kind}: {found:?} against {order}");
                }
            }
            assert_eq!(next, None, "{market} {kind}: {found:?} against {order}");
        }
        let forms = if order.contains('[') { 2 } else { 1 };
        assert!(variants.len() >= forms, "{market} {kind}: optional keys never vary");
    }
}

#[test]
fn the_same_seed_and_times_give_the_same_bytes() {
    let text = |seed, start: u64| {
        let mut generator = Generator::new("stocks", 500, seed).unwrap();
        let mut out = String::new();
        for n in 0..2_000 {
            generator.next(start + n * 1_000_000, &mut out);
        }
        out
    };
    assert_eq!(text(3, NOW_NS), text(3, NOW_NS));
    assert_ne!(text(3, NOW_NS), text(4, NOW_NS));
    assert_ne!(text(3, NOW_NS), text(3, NOW_NS + 1_000_000_000));
}

#[test]
fn stocks_come_in_the_usual_mix_with_the_well_known_most_active() {
    let (mut kinds, mut symbols) = (BTreeMap::new(), BTreeMap::new());
    let events = generate("stocks", 20_000);
    for event in &events {
        let fields: Value = serde_json::from_str(event).unwrap();
        *kinds.entry(fields["ev"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        let symbol = fields["sym"].as_str().or(fields["T"].as_str()).unwrap().to_owned();
        *symbols.entry(symbol).or_insert(0) += 1;
    }
    assert!((5_600..6_400).contains(&kinds["T"]), "{kinds:?}");
    assert!((13_000..14_200).contains(&kinds["Q"]), "{kinds:?}");
    let busiest = symbols.iter().max_by_key(|(_, count)| **count).unwrap();
    assert_eq!(busiest.0, "AAPL");
    assert!(symbols["AAPL"] > 3 * symbols["MSFT"], "by Zipf four times as much");
    for odd in ["BRK.B", "BACpL", "XYZr"] {
        assert!(symbols.contains_key(odd), "{odd}");
    }
    let bytes: usize = events.iter().map(String::len).sum();
    assert!((120..170).contains(&(bytes / events.len())), "{}", bytes / events.len());
}

#[test]
fn times_have_their_units() {
    for market in MARKETS {
        for event in generate(market, 3_000) {
            let fields: Value = serde_json::from_str(&event).unwrap();
            let Some(time) = fields["t"].as_u64() else { continue };
            let nanoseconds =
                ["FMV", "LV", "LULD", "NOI"].contains(&fields["ev"].as_str().unwrap());
            assert_eq!(time, if nanoseconds { NOW_NS } else { NOW_NS / 1_000_000 }, "{event}");
        }
    }
    let mut out = String::new();
    Generator::new("stocks", 10, 1).unwrap().next(0, &mut out);
    assert!(serde_json::from_str::<Value>(&out).is_ok(), "the epoch itself is fine: {out}");
}

#[test]
fn unknown_markets_and_no_symbols_are_errors() {
    assert!(sample_kinds("bonds").is_empty());
    assert!(Generator::new("bonds", 10, 1).is_err());
    assert!(Generator::new("stocks", 0, 1).is_err());
}
