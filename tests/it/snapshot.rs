//! Last values: a subscription may begin with the last event of each item, and live data follows
//! without a gap and without a repetition.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use polygon_sim::SimConfig;
use serde_json::Value;
use tests::{
    official_clients::Client,
    stack::{CLIENT_KEY, Stack, StackConfig},
    ws_client::{TestClient, acks, objects},
};
use tokio::time::sleep;

use crate::events::{bar, quote, trade};

const END: &str =
    r#"[{"ev":"status","status":"snapshot","message":"live data follows","state":"end"}]"#;

async fn start(market: &str, more: &[(&'static str, &str)]) -> Stack {
    let sim = SimConfig { market: market.to_owned(), ..SimConfig::default() };
    let on = [("LAST_VALUES", "on")];
    let env = on.iter().chain(more).map(|(name, value)| (*name, (*value).to_owned()));
    Stack::with(StackConfig { sim, filtered_env: env.collect(), ..StackConfig::default() }).await
}

/// A client that asks for the last values of every subscription.
async fn client_with_snapshots(stack: &Stack) -> TestClient {
    stack.client_at("/?snapshot=1").await
}

async fn ask(client: &mut TestClient, params: &str) {
    let params = Value::from(params);
    let text = format!(r#"{{"action":"subscribe","params":{params},"snapshot":true}}"#);
    client.send_raw(&text).await;
}

/// Takes a snapshot, the next messages: its events and their ages.
async fn snapshot(client: &mut TestClient) -> (Vec<String>, Vec<u64>) {
    let (mut events, mut ages) = (Vec::new(), Vec::new());
    loop {
        let text = client.next_text().await;
        if text == END {
            return (events, ages);
        }
        let begin: Value = serde_json::from_str(&text).expect("a frame is JSON");
        let begin = begin.as_array().filter(|array| array.len() == 1).expect("one status alone");
        let count = begin[0]["events"].as_u64().unwrap_or_else(|| panic!("no snapshot: {text}"));
        let message = format!("last values follow: {count} events");
        assert_eq!(begin[0]["status"], "snapshot");
        assert_eq!(begin[0]["state"], "begin");
        assert_eq!(begin[0]["message"], message);
        let part = begin[0]["ages"].as_array().expect("ages");
        assert_eq!(part.len() as u64, count);
        ages.extend(part.iter().map(|age| age.as_u64().expect("an age")));
        if count > 0 {
            events.extend(client.next_frame().await);
        }
        assert_eq!(events.len(), ages.len());
    }
}

/// Subscribes and takes the acknowledgement and the snapshot. Returns the events.
async fn subscribe(client: &mut TestClient, params: &str) -> Vec<String> {
    ask(client, params).await;
    client.expect(&acks("subscribed", params)).await;
    snapshot(client).await.0
}

#[tokio::test]
async fn the_last_event_of_each_item_comes_between_acknowledgement_and_live_data() {
    let stack = start("stocks", &[]).await;
    let mut all = stack.subscriber("*").await;
    let begun = Instant::now();
    let odd = r#"{ "x":1.50 , "sym" : "AAPL", "ev":"T" }"#.to_owned();
    let luld = r#"{"ev":"LULD","h":1,"T":"MSFT"}"#.to_owned();
    let first = [trade("AAPL", 1), trade("MSFT", 2), quote("AAPL", 3), luld.clone()];
    let second = [bar("AAPL", 4), odd.clone(), r#"{"ev":"T","n":5}"#.to_owned()];
    stack.publish(&first);
    all.expect_objects(&first).await;
    sleep(Duration::from_millis(60)).await;
    stack.publish(&second[..2]);
    stack.sim.handle.publish_raw(&format!("[{}]", second[2]));
    all.expect_objects(&second).await;
    let seen = Instant::now();
    sleep(Duration::from_millis(30)).await;

    let mut client = stack.client().await;
    ask(&mut client, "T.*,Q.AAPL,LULD.MSFT,Q.NONE").await;
    client.expect(&acks("subscribed", "T.*,Q.AAPL,LULD.MSFT,Q.NONE")).await;
    let (least, (events, ages)) = (seen.elapsed(), snapshot(&mut client).await);
    assert_eq!(events, [trade("MSFT", 2), quote("AAPL", 3), luld, odd.clone()]);
    let (most, apart) = (begun.elapsed().as_millis() as u64, ages[0] - ages[3]);
    assert!(ages.is_sorted_by(|a, b| a >= b), "oldest first: {ages:?}");
    assert!(ages[0] <= most && apart >= 55, "{ages:?} in {most} ms");
    assert!(ages[3] >= 30 && least >= Duration::from_millis(30), "{ages:?}");

    let live = [trade("AAPL", 6), quote("AAPL", 7)];
    stack.publish(&live);
    client.expect_objects(&live).await;
    // Items that it holds already, too. The others have had nothing new.
    assert_eq!(subscribe(&mut client, "T.AAPL,T.MSFT").await, [trade("MSFT", 2), live[0].clone()]);
    assert_eq!(subscribe(&mut client, "T.NONE").await, [""; 0]);
    client.subscribe("A.AAPL").await;
    stack.publish(&[bar("AAPL", 8)]);
    client.expect_objects(&[bar("AAPL", 8)]).await;
    let kept = stack.filtered[0].metric("filtered_last_values").await;
    assert_eq!(kept, Some(5.0), "T of two symbols, Q, A and LULD of one");
    assert!(stack.filtered[0].metric("filtered_last_values_bytes").await > Some(500.0));
}

#[tokio::test]
async fn no_event_comes_twice_and_none_is_missed_while_they_flow() {
    const SYMBOLS: usize = 40;
    let stack = start("stocks", &[]).await;
    let event = |n: usize| trade(&format!("S{}", n % SYMBOLS), n);
    let number = |event: &str| -> usize {
        let event: Value = serde_json::from_str(event).expect("an event parses");
        event["q"].as_u64().expect("its number") as usize
    };
    let publish = async {
        for n in (0..).step_by(7) {
            let events: Vec<_> = (n..n + 7).map(event).collect();
            stack.publish(&events);
            sleep(Duration::from_millis(1)).await;
        }
    };
    let check = async {
        sleep(Duration::from_millis(200)).await;
        for round in 0..30 {
            let mut client = client_with_snapshots(&stack).await;
            let params = ["T.*", "*", "T.S*"][round % 3];
            client.subscribe(params).await;
            let (mut events, _) = snapshot(&mut client).await;
            assert_eq!(events.len(), SYMBOLS);
            while events.len() < SYMBOLS + 200 {
                events.extend(objects(&client.next_text().await));
            }
            // The last values of forty symbols that take turns are the last forty events.
            for (n, event) in events.iter().enumerate() {
                assert_eq!(number(event), number(&events[0]) + n, "round {round}");
            }
            client.close().await;
        }
    };
    tokio::select! {
        () = publish => unreachable!("it goes on"),
        () = check => {}
    }
}

#[tokio::test]
async fn pairs_come_in_any_spelling_and_each_once() {
    let stack = start("crypto", &[]).await;
    let mut all = stack.subscriber_at("/crypto", "*").await;
    let events = [
        r#"{"ev":"XT","pair":"BTC-USD","p":1}"#,
        r#"{"ev":"XT","pair":"BTCB-USD","p":2}"#,
        r#"{"ev":"XQ","pair":"BTC-USD","p":3}"#,
        r#"{"ev":"FMV","sym":"X:BTCUSD","fmv":4}"#,
        r#"{"ev":"XT","pair":"BTC/USD","p":5}"#,
    ];
    stack.publish(&events);
    all.expect_objects(&events).await;
    for (items, expected) in [
        ("XT.BTC-*", &[4][..]),
        ("XT.BTC*,XT.X:BTCUSD,XT.*", &[1, 4]),
        ("FMV.BTC-USD,XQ.X:BTC-USD", &[2, 3]),
        ("XT.BTCU*", &[4]),
        ("*", &[1, 2, 3, 4]),
    ] {
        let mut client = stack.client_at("/crypto?snapshot=1").await;
        client.subscribe(items).await;
        let expected: Vec<_> = expected.iter().map(|&n: &usize| events[n]).collect();
        assert_eq!(snapshot(&mut client).await.0, expected, "{items}");
        stack.publish(&[r#"{"ev":"XT","pair":"BTC/USD","p":5}"#]);
        if items != "FMV.BTC-USD,XQ.X:BTC-USD" {
            client.expect_objects(&events[4..]).await;
        }
        client.close().await;
    }
}

#[tokio::test]
async fn a_contract_on_demand_has_a_last_value_for_those_who_name_it() {
    let stack = start("options", &[]).await;
    let contract = "O:SPY261218C00650000";
    let item = format!("Q.{contract}");
    let mut holder = stack.client_at("/options").await;
    ask(&mut holder, &item).await;
    // It is acknowledged by the vendor's answer, so the snapshot comes first and is empty.
    assert_eq!(snapshot(&mut holder).await.0, [""; 0]);
    holder.expect_status("success", &format!("subscribed to: {item}")).await;
    let events = [trade(contract, 1), quote(contract, 2)];
    stack.publish(&events);
    holder.expect_objects(&events[1..]).await;
    let mut all = client_with_snapshots(&stack).await;
    all.subscribe("*").await;
    assert_eq!(snapshot(&mut all).await.0, events[..1]);
    assert_eq!(subscribe(&mut all, &item).await, events[1..]);
}

#[tokio::test]
async fn long_snapshots_come_in_parts_and_too_long_ones_not_at_all() {
    let stack = start("stocks", &[("CLIENT_QUEUE_BYTES", "4000000")]).await;
    let trades: Vec<_> = (0..12_000).map(|n| trade(&format!("M{n}"), n)).collect();
    let quotes: Vec<_> = (0..12_000).map(|n| quote(&format!("M{n}"), n)).collect();
    let mut all = stack.subscriber("*").await;
    for events in trades.chunks(500).chain(quotes.chunks(500)) {
        stack.publish(events);
        all.expect_objects(events).await;
    }
    let mut client = stack.client().await;
    assert!(subscribe(&mut client, "T.M*").await == trades, "the trades in their order");
    ask(&mut client, "*").await;
    client.expect(&acks("subscribed", "*")).await;
    let bytes: usize = trades.iter().chain(&quotes).map(String::len).sum();
    let why = format!(
        "the last values have {bytes} bytes, and half of CLIENT_QUEUE_BYTES is 2000000: ask for \
         fewer items at a time; live data follows"
    );
    client.expect_status("error", &why).await;
    stack.publish(&[quote("LIVE", 1)]);
    client.expect_objects(&[quote("LIVE", 1)]).await;
}

#[tokio::test]
async fn without_last_values_whoever_asks_gets_an_error_and_live_data() {
    let stack = Stack::start().await;
    let why = "no last values without LAST_VALUES=on: live data follows";
    let mut command = stack.client().await;
    ask(&mut command, "T.AAPL").await;
    command.expect(&acks("subscribed", "T.AAPL")).await;
    let mut path = client_with_snapshots(&stack).await;
    path.subscribe("T.AAPL").await;
    let mut plain = stack.subscriber("T.AAPL").await;
    for client in [&mut command, &mut path] {
        client.expect_status("error", why).await;
    }
    stack.publish(&[trade("AAPL", 1)]);
    for client in [&mut command, &mut path, &mut plain] {
        client.expect_objects(&[trade("AAPL", 1)]).await;
    }
    assert_eq!(stack.filtered[0].metric("filtered_last_values").await, None);
}

#[tokio::test]
async fn official_clients_take_a_snapshot_for_events() {
    let stack = start("stocks", &[]).await;
    let mut all = stack.subscriber("*").await;
    let events = [trade("AAPL", 1), trade("MSFT", 2), trade("AAPL", 3), trade("MSFT", 4)];
    stack.publish(&events);
    all.expect_objects(&events).await;
    // The vendor's clients put their market behind the URL.
    let url = format!("ws://{}/?snapshot=1&", stack.addr());
    let clients = Client::ALL.map(async |client| {
        let mut running = client.start_at(&url, CLIENT_KEY, "T.AAPL").await?;
        running.subscribed("T.AAPL").await;
        assert_eq!(running.next_unless_notice().await, events[2], "{client:?}");
        Some((running, client))
    });
    let clients = join_all(clients).await;
    stack.publish(&[trade("MSFT", 5), trade("AAPL", 6)]);
    for (mut running, client) in clients.into_iter().flatten() {
        assert_eq!(running.next_unless_notice().await, trade("AAPL", 6), "{client:?}");
        running.finish().await;
    }
}
