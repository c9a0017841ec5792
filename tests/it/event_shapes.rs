//! The shapes of frames and events: every kind, and JSON that is unusual but valid.

use std::collections::BTreeMap;

use polygon_sim::{Fault, SimConfig};
use serde_json::Value;
use tests::{
    oracle::{self, end_of},
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, Sim, Stack, StackConfig},
    wait::{SOON, eventually},
    ws_client::TestClient,
};

use crate::{
    damage::without_position,
    events::{quote, trade},
};

/// One line for each kind of event of each market: `cluster`, `ev`, `symbol_field` and a `sample`.
const SAMPLES: &str = include_str!("events.jsonl");
/// Ends a published sequence. Every client of a test is subscribed to it.
const END: &str = r#"{"ev":"AM","sym":"END"}"#;

/// The samples of each of the vendor's markets as (kind, symbol, bytes).
fn samples() -> BTreeMap<String, Vec<(String, String, String)>> {
    let mut markets = BTreeMap::<_, Vec<_>>::new();
    for line in SAMPLES.lines() {
        let row: Value = serde_json::from_str(line).expect("a row of the samples");
        let cluster = row["cluster"].as_str().expect("a cluster");
        let Some(field) = row["symbol_field"].as_str() else { continue };
        // Launchpad events come on the path of the plain market.
        let market = cluster.strip_prefix("launchpad-").unwrap_or(cluster).to_owned();
        let kind = row["ev"].as_str().expect("a kind").to_owned();
        let symbol = row["sample"][field].as_str().expect("a symbol").to_owned();
        let (_, sample) = line.split_once(r#""sample":"#).expect("a sample");
        let sample = sample.strip_suffix('}').expect("a row is an object").to_owned();
        markets.entry(market).or_default().push((kind, symbol, sample));
    }
    markets
}

#[tokio::test]
async fn every_kind_of_every_market_reaches_the_subscribers_of_its_symbol() {
    for (market, events) in samples() {
        let (end_channel, end) = end_of(&market);
        let sim = Sim::with(SimConfig { market: market.clone(), ..SimConfig::default() }).await;
        // Kinds of the Launchpad product are not requested unless they are named.
        let mut kinds: Vec<_> = events.iter().map(|(kind, ..)| kind.as_str()).collect();
        kinds.push(&end_channel);
        let firehose = stack::firehose(&sim.url(&market)).env("MARKET", &market);
        let firehose = firehose.env("UPSTREAM_CHANNELS", kinds.join(",")).start().await;
        let filtered = stack::filtered(firehose.addr()).env("MARKET", &market).start().await;
        eventually(SOON, "something is carried", async || !sim.handle.subscriptions().is_empty())
            .await;
        stack::is_complete(&filtered).await;
        let subscriber = async |params: String| {
            let mut client = TestClient::connect_to(filtered.addr(), "/").await;
            client.log_in(CLIENT_KEY).await;
            client.subscribe(&params).await;
            client
        };
        let mut clients = Vec::new();
        for (kind, symbol, sample) in &events {
            let event: Value = serde_json::from_str(sample).expect("a sample");
            for channel in [format!("{kind}.{symbol}"), format!("{kind}.*"), "*".to_owned()] {
                assert!(oracle::matches(&market, &channel, &event), "{market} {channel} {sample}");
                let client = subscriber(format!("{channel},{end_channel}")).await;
                clients.push((channel, client));
            }
            let other = format!("{kind}.{symbol}X");
            assert!(!oracle::matches(&market, &other, &event), "{market} {other} {sample}");
            let client = subscriber(format!("{other},{end_channel}")).await;
            clients.push((other, client));
        }
        let samples: Vec<_> =
            events.iter().map(|(_, _, sample)| sample.as_str()).chain([end.as_str()]).collect();
        sim.handle.publish_raw(&format!("[{}]", samples.join(",")));
        for (channel, client) in &mut clients {
            let is_wanted = |sample: &&&str| {
                let event = serde_json::from_str(sample).expect("a sample");
                **sample == end || oracle::matches(&market, channel, &event)
            };
            let expected: Vec<_> = samples.iter().filter(is_wanted).collect();
            for expected in expected {
                assert_eq!(&client.next_object().await, expected, "{market} {channel}");
            }
        }
    }
}

#[tokio::test]
async fn spellings_of_a_pair_are_one_channel_each_acknowledged_as_written() {
    let cases = [
        ("forex", ["C.EUR/USD", "C.EUR-USD", "C.C:EUR-USD"], r#"{"ev":"C","p":"EUR/USD","x":48}"#),
        ("crypto", ["XT.BTC-USD", "XT.X:BTC-USD", "XT.BTC/USD"], r#"{"ev":"XT","pair":"BTC-USD"}"#),
    ];
    for (market, spellings, event) in cases {
        let sim = SimConfig { market: market.to_owned(), ..SimConfig::default() };
        let stack = Stack::with(StackConfig { sim, ..StackConfig::default() }).await;
        for spelling in spellings {
            let mut client = stack.subscriber_at(&format!("/{market}"), spelling).await;
            stack.publish(&[event]);
            client.expect_objects(&[event]).await;
        }
    }
}

/// Publishes this frame unchanged and expects exactly these objects on the channel.
fn frame_case<'a>(frame: &'a str, channel: &'a str, expected: &'a [&'a str]) -> Case<'a> {
    Case { frame, channel, expected }
}

struct Case<'a> {
    frame: &'a str,
    channel: &'a str,
    expected: &'a [&'a str],
}

async fn check(stack: &Stack, cases: &[Case<'_>]) {
    for Case { frame, channel, expected } in cases {
        let mut client = stack.subscriber(&format!("{channel},AM.END")).await;
        stack.sim.handle.publish_raw(frame);
        stack.sim.handle.publish_raw(&format!("[{END}]"));
        for object in expected.iter().chain(&[END]) {
            assert_eq!(&client.next_object().await, object, "{channel} of {frame}");
        }
    }
}

#[tokio::test]
async fn symbols_are_found_wherever_they_stand() {
    let stack = Stack::start().await;
    let luld = r#"{"ev":"LULD","h":14.28,"l":12.92,"i":[16],"z":3,"T":"ABCX","t":1790604301733018455,"q":2219034}"#;
    let noi = r#"{"ev":"NOI","T":"GE","t":1790625000114203904,"at":1600,"a":"C","i":5127,"x":10,"o":41200,"p":388100,"b":287.35}"#;
    let fmv = r#"{"ev":"FMV","fmv":231.416,"sym":"AAPL","t":1790604301418204112}"#;
    let brk = trade("BRK.B", 1);
    let frame = format!("[{luld},{noi},{fmv},{brk}]");
    let far = format!(
        r#"{{"ev":"T","x":"{}","deep":[[[{{"sym":"MSFT"}}]]],"sym":"AAPL"}}"#,
        "long ".repeat(2_000)
    );
    let far_frame = format!("[{far}]");
    check(
        &stack,
        &[
            frame_case(&frame, "LULD.ABCX", &[luld]),
            frame_case(&frame, "NOI.GE", &[noi]),
            frame_case(&frame, "FMV.AAPL", &[fmv]),
            frame_case(&frame, "T.BRK.B", &[&brk]),
            frame_case(&frame, "T.BRK", &[]),
            frame_case(&frame, "LULD.*,NOI.*", &[luld, noi]),
            frame_case(&far_frame, "T.AAPL", &[&far]),
            frame_case(&far_frame, "T.MSFT", &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn keys_may_stand_in_any_order_and_between_any_blanks() {
    let stack = Stack::start().await;
    let last = r#"{"p":1.5,"c":[12,37],"sym":"AAPL","t":1,"ev":"T"}"#;
    let airy = "{ \"ev\"\t:\r\n\"T\" ,\n \"p\" : 1.5 , \"sym\" : \"AAPL\" }";
    let first = r#"{"sym":"AAPL","ev":"T"}"#;
    let frame = format!(" \n[ {last}\t,\r\n{airy} , {first}\n] ");
    check(
        &stack,
        &[
            frame_case(&frame, "T.AAPL", &[last, airy, first]),
            frame_case(&frame, "*", &[last, airy, first]),
            frame_case(&frame, "Q.AAPL,T.MSFT", &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn what_stands_inside_strings_and_arrays_is_no_key() {
    let stack = Stack::start().await;
    let events = [
        r#"{"ev":"T","note":"\"sym\":\"AAPL\"","sym":"MSFT"}"#,
        r#"{"ev":"T","note":"},{\"ev\":\"T\",\"sym\":\"AAPL\"},{","sym":"MSFT"}"#,
        r#"{"ev":"T","note":"]}]}[{[{","sym":"MSFT"}"#,
        r#"{"ev":"T","note":"\\","sym":"MSFT","x":"\\\""}"#,
        r#"{"ev":"T","note":"\\\\\"","sym":"MSFT"}"#,
        r#"{"ev":"T","nested":{"sym":"AAPL","ev":"Q"},"sym":"MSFT"}"#,
        r#"{"nested":[{"ev":"Q","sym":"AAPL"},["}"]],"ev":"T","sym":"MSFT"}"#,
        r#"{"ev":"T","":"sym","x":"AAPL","sym":"MSFT"}"#,
        r#"{"ev":"T","SYM":"AAPL","Sym":"AAPL","symb":"AAPL","sym":"MSFT"}"#,
        r#"{"ev":"T","T":"AAPL","pair":"AAPL","p":"AAPL","sym":"MSFT"}"#,
    ];
    let frame = format!("[{}]", events.join(","));
    check(
        &stack,
        &[
            frame_case(&frame, "T.MSFT", &events),
            frame_case(&frame, "T.*", &events),
            frame_case(&frame, "T.AAPL,Q.*,Q.AAPL", &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn escaped_keys_and_symbols_mean_what_json_says() {
    let stack = Stack::start().await;
    let events = [
        r#"{"ev":"T","sym":"\u0041APL"}"#,
        r#"{"\u0065v":"T","s\u0079m":"AAPL"}"#,
        r#"{"ev":"\u0054","sym":"AAPL"}"#,
    ];
    let frame = format!("[{}]", events.join(","));
    check(
        &stack,
        &[
            frame_case(&frame, "T.AAPL", &events),
            frame_case(&frame, "T.*", &events),
            frame_case(&frame, "Q.AAPL", &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn unknown_kinds_go_to_wildcard_clients_alone() {
    let stack = Stack::start().await;
    let strange = [
        r#"{"ev":"ZZ","sym":"AAPL"}"#,
        r#"{"ev":"XT","pair":"BTC-USD"}"#,
        r#"{"ev":"t","sym":"AAPL"}"#,
        r#"{"ev":"TT","sym":"AAPL"}"#,
        r#"{"ev":"","sym":"AAPL"}"#,
    ];
    let known = trade("AAPL", 1);
    let frame = format!("[{},{known}]", strange.join(","));
    let all: Vec<_> = strange.iter().copied().chain([known.as_str()]).collect();
    check(
        &stack,
        &[
            frame_case(&frame, "T.*", &[&known]),
            frame_case(&frame, "T.AAPL,Q.*,A.*,AM.*,LULD.*,NOI.*,FMV.*", &[&known]),
            frame_case(&frame, "*", &all),
        ],
    )
    .await;
}

#[tokio::test]
async fn three_of_five_thousand_events_in_a_frame_are_found() {
    let stack = Stack::start().await;
    let events: Vec<_> = (0..5_000)
        .map(|n| match n {
            0 | 2_500 | 4_999 => trade("WANTED", n),
            n if n % 3 == 0 => quote("WANTED", n),
            n => trade(&format!("S{n}"), n),
        })
        .collect();
    let mut client = stack.subscriber("T.WANTED,AM.END").await;
    stack.publish(&events);
    stack.publish(&[END]);
    client.expect_objects(&[&events[0], &events[2_500], &events[4_999]]).await;
    client.expect_objects(&[END]).await;
}

#[tokio::test]
async fn a_lone_object_is_a_frame_of_one() {
    let stack = Stack::start().await;
    let event = trade("AAPL", 1);
    let airy = format!(" {event}\n");
    check(
        &stack,
        &[
            frame_case(&event, "T.AAPL", &[&event]),
            frame_case(&airy, "T.AAPL", &[&event]),
            frame_case(&event, "*", &[&event]),
            frame_case(&event, "T.MSFT", &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn statuses_among_data_are_kept_from_clients() {
    let stack = Stack::start().await;
    let (one, two) = (trade("AAPL", 1), quote("AAPL", 2));
    let status = r#"{"ev":"status","status":"success","message":"subscribed to: T.AAPL"}"#;
    let shuffled = r#"{"message":"x","status":"error" , "ev" : "status"}"#;
    let mixed = format!("[{one},{status},{two}]");
    let around = format!("[{status},{one},{two},{shuffled}]");
    let alone = format!("[{status},{shuffled}]");
    check(
        &stack,
        &[
            frame_case(&mixed, "*", &[&one, &two]),
            frame_case(&mixed, "T.AAPL", &[&one]),
            frame_case(&around, "*", &[&one, &two]),
            frame_case(&around, "Q.*", &[&two]),
            frame_case(&alone, "*", &[]),
        ],
    )
    .await;
    let mut client = stack.subscriber("*").await;
    stack.sim.handle.inject(Fault::StatusInData);
    stack.publish(&[&one, &two]);
    client.expect_objects(&[&one, &two]).await;
}

#[tokio::test]
async fn a_damaged_message_that_may_hold_events_is_reported_as_a_gap() {
    let stack = Stack::start().await;
    let mut filtered = stack.subscriber("T.AAPL").await;
    let mut direct = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    direct.subscribe("T.AAPL").await;
    let event = trade("AAPL", 1);
    let expected = r#"{"ev":"status","status":"gap","message":"a frame reached the firehose tier damaged: events in it may be missing","tier":"firehose","reason":"malformed","frames":1}"#;
    let cut = r#"{"ev":"T","sym":"AA"#;
    let send: [&dyn Fn(); 2] =
        [&|| stack.sim.handle.publish_raw(cut), &|| stack.sim.handle.inject(Fault::Binary)];
    for send in send {
        send();
        stack.publish(&[&event]);
        for client in [&mut filtered, &mut direct] {
            assert_eq!(without_position(&client.next_object().await), expected);
            client.expect_objects(&[&event]).await;
        }
    }
}

#[tokio::test]
async fn what_is_no_json_is_dropped_and_counted_and_the_rest_goes_on() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("*").await;
    let event = trade("AAPL", 1);
    for garbage in [
        "",
        "hello",
        "7",
        "null",
        "\"ev\"",
        "[]",
        "[ ]",
        "[{}]",
        "[7,null,\"T\",[]]",
        r#"[{"sym":"AAPL"}]"#,
        r#"[{"ev":7,"sym":"AAPL"}]"#,
        r#"[{"ev":"T","sym":"AAPL""#,
    ] {
        stack.sim.handle.publish_raw(garbage);
        stack.publish(&[&event]);
        // A notice may say that events were missed. An object without `ev` would crash official
        // clients.
        let received = client.next_but_notices().await;
        assert_eq!(received, event, "after {garbage:?}");
    }
    for fault in [Fault::Garbage, Fault::Binary] {
        stack.sim.handle.inject(fault);
        stack.publish(&[&event]);
        client.expect_event(&event).await;
    }
    // Both tiers work as before, on the same connection.
    client.command("subscribe", "T.AAPL").await;
    client.expect_status("success", "subscribed to: T.AAPL").await;
    assert_eq!(stack.sim.handle.stats().connections_accepted, 1);
    eventually(SOON, "malformed frames are counted", async || {
        stack.firehose.metric("firehose_frames_malformed_total").await >= Some(4.0)
    })
    .await;
}
