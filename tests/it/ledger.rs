//! The ledger: it accounts for every event that comes in, with numbers that the market and the
//! clients confirm.
//!
//! Every test that drops a program checks that its ledger balances. The tests here check the
//! numbers themselves.

use polygon_sim::Fault;
use serde_json::Value;
use tests::{
    program::Program,
    stack::{FIREHOSE_KEY, Stack, StackConfig},
    wait::{SOON, eventually},
    ws_client::TestClient,
};

use crate::events::{quote, trade};

async fn has(program: &Program, what: &str, expected: &[(&str, i64)]) {
    let mut ledger = Value::Null;
    let read = |ledger: &Value, name: &str| ledger.pointer(name).and_then(Value::as_i64);
    eventually(SOON, what, async || {
        ledger = program.health().await["ledger"].clone();
        let good = expected.iter().all(|&(name, value)| read(&ledger, name) == Some(value));
        if !good {
            println!("{what}: {ledger}");
        }
        good
    })
    .await;
    assert_eq!(ledger["balanced"], true, "{ledger}");
}

#[tokio::test]
async fn every_event_is_counted_where_it_went() {
    let stack = Stack::with(StackConfig { filtered: 2, ..StackConfig::default() }).await;
    let mut all = stack.subscriber("*").await;
    let mut one = stack.subscriber("T.AAPL").await;
    let events = [trade("AAPL", 1), quote("AAPL", 2), trade("MSFT", 3)];
    stack.publish(&events);
    all.expect_objects(&events).await;
    one.expect_objects(&events[..1]).await;
    has(
        &stack.firehose,
        "firehose",
        &[
            ("/intake/received", 3),
            ("/intake/routed", 3),
            ("/intake/not_subscribed", 0),
            ("/sessions/owed", 6),
            ("/sessions/delivered", 6),
            ("/sessions/queued", 0),
        ],
    )
    .await;
    has(
        &stack.filtered[0],
        "first",
        &[("/intake/subscribed", 3), ("/sessions/owed", 4), ("/sessions/delivered", 4)],
    )
    .await;
    has(
        &stack.filtered[1],
        "second",
        &[("/intake/received", 3), ("/intake/not_subscribed", 3), ("/sessions/owed", 0)],
    )
    .await;
    drop(all);
    eventually(SOON, "one session is left", async || {
        stack.filtered[0].metric("filtered_sessions").await == Some(1.0)
    })
    .await;
    stack.publish(&events);
    one.expect_objects(&events[..1]).await;
    has(&stack.filtered[0], "one less", &[("/intake/not_subscribed", 2), ("/sessions/owed", 5)])
        .await;
    assert_eq!(stack.sim.handle.stats().events_sent, 6);
}

#[tokio::test]
async fn what_is_no_event_or_damaged_is_counted_as_that() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("T.AAPL").await;
    let event = trade("AAPL", 1);
    // Two events and the beginning of a third; an object without a type; a type with an escaped
    // key.
    stack.sim.handle.publish_raw(&format!(r#"[{event},{event},{{"ev":"T","sym":"AA"#));
    stack.sim.handle.publish_raw(&format!(r#"[{event},{{"sym":"AAPL"}}]"#));
    stack.sim.handle.publish_raw(r#"[{"\u0065v":"T","sym":"AAPL"}]"#);
    stack.publish(&[trade("AAPL", 2)]);
    while client.next_but_notices().await != trade("AAPL", 2) {}
    has(
        &stack.filtered[0],
        "filtered",
        &[
            ("/intake/received", 6),
            ("/intake/routed", 5),
            ("/intake/malformed", 1),
            ("/sessions/delivered", 5),
        ],
    )
    .await;
    has(
        &stack.firehose,
        "firehose",
        &[("/intake/received", 7), ("/intake/routed", 6), ("/intake/malformed", 1)],
    )
    .await;
}

#[tokio::test]
async fn outages_are_counted_and_what_came_back_balances() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("T.AAPL").await;
    stack.publish(&[trade("AAPL", 1)]);
    client.expect_event(&trade("AAPL", 1)).await;
    has(&stack.firehose, "before", &[("/outages", 0)]).await;
    stack.sim.handle.inject(Fault::Abort);
    eventually(SOON, "the firehose is back", async || stack.sim.handle.stats().auths == 2).await;
    stack.linked().await;
    stack.publish(&[trade("AAPL", 2)]);
    client.expect_event(&trade("AAPL", 2)).await;
    has(&stack.firehose, "after", &[("/outages", 1), ("/intake/received", 2)]).await;
    has(&stack.filtered[0], "after", &[("/outages", 0), ("/sessions/delivered", 2)]).await;
}

#[tokio::test]
async fn what_the_ring_overwrites_is_counted_to_the_event() {
    let firehose_env = vec![
        ("RING_FRAMES", "512".to_owned()),
        ("CLIENT_QUEUE_BYTES", "100000000".to_owned()),
        ("CLIENT_MAX_LAG", "60s".to_owned()),
    ];
    let stack = Stack::with(StackConfig { firehose_env, ..StackConfig::default() }).await;
    let mut stuck = TestClient::connect_narrow(stack.firehose.addr(), 4_096).await;
    stuck.log_in(FIREHOSE_KEY).await;
    stuck.subscribe("T.*").await;
    let mut quick = stack.subscriber("T.*").await;
    let wide = |n: usize| trade(&format!("AAPL\",\"x\":\"{}", "x".repeat(2_000)), n);
    let lost = async || {
        let lost = stack.firehose.metric_with("firehose_events_lost_total", "ring_overrun").await;
        lost.unwrap_or_default()
    };
    // Until the sockets are full and the ring has overwritten frames that the client has not read.
    for round in 0..30 {
        let events: Vec<_> = (round * 200..round * 200 + 200).map(wide).collect();
        for frame in events.chunks(5) {
            stack.publish(frame);
        }
        quick.expect_objects(&events).await;
    }
    let end = trade("END", 0);
    stack.publish(&[&end]);
    quick.expect_event(&end).await;
    // The events that it gets and the events reported as missed add up to all that was sent.
    let (mut received, mut reported_lost) = (0, 0);
    loop {
        let object = stuck.next_object().await;
        if object == end {
            break;
        }
        let value: Value = serde_json::from_str(&object).expect("an object");
        match value["status"].as_str() {
            Some("gap") => reported_lost += value["events"].as_u64().expect("how many events"),
            None => received += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(reported_lost > 0, "nothing was overwritten");
    assert_eq!(received + reported_lost, 6_000);
    assert_eq!(lost().await, reported_lost as f64);
}
