//! Damaged arrays: what is no event, or no JSON, costs the events around it nothing, and no client
//! ever reads a message that its JSON parser refuses.

use serde_json::Value;
use tests::{
    damage::{BINARY_HEARTBEATS, NO_OBJECTS, WITHOUT_EVENTS, malformed_events},
    official_clients::Client,
    stack::{CLIENT_KEY, FIREHOSE_KEY, Stack},
    wait::{SOON, eventually},
    ws_client::TestClient,
};

use crate::events::{quote, trade};

/// The notice for a frame that cost events.
const GAP: &str = r#"{"ev":"status","status":"gap","message":"a frame reached the firehose tier damaged: events in it may be missing","tier":"firehose","reason":"malformed","frames":1}"#;

/// A stack, and clients of everything or of one symbol: of the filtered proxy and the firehose.
async fn witnesses() -> (Stack, [TestClient; 3]) {
    let stack = Stack::start().await;
    let mut direct = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    direct.subscribe("T.AAPL").await;
    let clients = [stack.subscriber("*").await, stack.subscriber("T.AAPL").await, direct];
    (stack, clients)
}

/// A notice without the place at which it stands.
pub(crate) fn without_position(object: &str) -> String {
    let (before, rest) = match object.split_once(r#","position":""#) {
        Some((before, rest)) if before.contains(r#""ev":"status""#) => (before, rest),
        _ => return object.to_owned(),
    };
    let (_, after) = rest.split_once('"').expect("the end of the position");
    format!("{before}{after}")
}

/// Publishes a frame, then an event. Each client gets these objects, and then the event.
async fn expect(stack: &Stack, clients: &mut [TestClient], frame: &str, objects: &[&str]) {
    let end = trade("AAPL", 9);
    stack.sim.handle.publish_raw(frame);
    stack.publish(&[&end]);
    for client in clients {
        for object in objects.iter().chain(&[end.as_str()]) {
            let next = client.next_object().await;
            assert_eq!(without_position(&next), *object, "{frame:?}");
        }
    }
}

#[tokio::test]
async fn an_element_that_is_no_object_costs_no_event_and_is_no_gap() {
    let (stack, mut clients) = witnesses().await;
    let [one, two] = [trade("AAPL", 1), trade("AAPL", 2)];
    for odd in NO_OBJECTS {
        for frame in [
            format!("[{one},{odd},{two}]"),
            format!("[{odd},{one},{two}]"),
            format!("[{one},{two},{odd}]"),
        ] {
            expect(&stack, &mut clients, &frame, &[&one, &two]).await;
        }
    }
    let frame = format!("[{one},{},{two}]", NO_OBJECTS.join(" , "));
    expect(&stack, &mut clients, &frame, &[&one, &two]).await;
    let dropped = 4 * NO_OBJECTS.len();
    let counted = stack.firehose.metric("firehose_elements_dropped_total").await;
    assert_eq!(counted, Some(dropped as f64));
    assert_eq!(stack.filtered[0].metric("filtered_elements_dropped_total").await, Some(0.0));
    assert!(stack.firehose.log_count("elements of an upstream array dropped") < 3);
}

#[tokio::test]
async fn an_event_that_a_strict_parser_refuses_reaches_nobody_and_is_a_gap() {
    let (stack, mut clients) = witnesses().await;
    let [one, two] = [trade("AAPL", 1), trade("AAPL", 2)];
    let malformed = malformed_events();
    for bad in &malformed {
        expect(&stack, &mut clients, &format!("[{one},{bad},{two}]"), &[&one, &two, GAP]).await;
    }
    expect(&stack, &mut clients, &format!("[{}]", malformed.join(",")), &[GAP]).await;
    let lost = 2 * malformed.len() as i64;
    let ledger = stack.firehose.health().await["ledger"].clone();
    assert_eq!(ledger["intake"]["malformed"], lost, "{ledger}");
    let dropped = stack.firehose.metric("firehose_elements_dropped_total").await;
    assert_eq!(dropped, Some(lost as f64));
    for program in [&stack.firehose, &stack.filtered[0]] {
        eventually(SOON, "the ledger balances", async || {
            program.health().await["ledger"]["balanced"] == Value::Bool(true)
        })
        .await;
    }
}

#[tokio::test]
async fn the_events_before_a_frame_breaks_off_arrive() {
    let (stack, mut clients) = witnesses().await;
    let [one, two] = [trade("AAPL", 1), trade("AAPL", 2)];
    for rest in [
        "",
        ",",
        r#",{"ev":"T","sym":"AAP"#,
        r#",{"ev":"T","sym":"AAPL","c":[1}]"#,
        r#",{"ev":"T","sym":"AAPL","x":"y}]"#,
        "]]",
        "],",
        "][]",
        "]\u{c}",
    ] {
        expect(&stack, &mut clients, &format!("[{one},{two}{rest}"), &[&one, &two, GAP]).await;
    }
    // A mark of byte order is no JSON, but events may follow it.
    expect(&stack, &mut clients, &format!("\u{feff}[{one}]"), &[GAP]).await;
}

#[tokio::test]
async fn what_holds_no_event_is_no_gap() {
    let (stack, mut clients) = witnesses().await;
    for text in WITHOUT_EVENTS {
        stack.sim.handle.publish_raw(text);
    }
    for bytes in BINARY_HEARTBEATS {
        stack.sim.handle.inject(polygon_sim::Fault::RawBinary { bytes: bytes.to_vec() });
    }
    // At the firehose, an empty array goes on as it is. It holds no object.
    expect(&stack, &mut clients, "[]", &[]).await;
}

/// Each of these clients reads every message with the parser of its language, and stops at the
/// first that it cannot read.
#[tokio::test]
async fn no_clients_parser_meets_what_it_cannot_read() {
    let stack = Stack::start().await;
    let params = "T.AAPL,Q.AAPL,AM.END";
    let mut running = Vec::new();
    for client in [Client::JsMassive, Client::JsPlain, Client::PythonPlain] {
        for (addr, key) in [(stack.addr(), CLIENT_KEY), (stack.firehose.addr(), FIREHOSE_KEY)] {
            if let Some(mut started) = client.start(addr, key, params).await {
                started.subscribed(params).await;
                running.push(started);
            }
        }
    }
    let mut good = Vec::new();
    let bad = malformed_events();
    let odd = NO_OBJECTS.iter().map(|odd| (*odd).to_owned());
    for (n, bad) in bad.into_iter().chain(odd).enumerate() {
        let pair = [trade("AAPL", n), quote("AAPL", n)];
        stack.sim.handle.publish_raw(&format!("[{},{bad},{}]", pair[0], pair[1]));
        good.extend(pair);
    }
    for text in WITHOUT_EVENTS {
        stack.sim.handle.publish_raw(text);
    }
    let end = r#"{"ev":"AM","sym":"END","v":1}"#;
    stack.publish(&[end]);
    good.push(end.to_owned());
    for client in &mut running {
        for event in &good {
            assert_eq!(&client.next_unless_notice().await, event);
        }
    }
    for client in running {
        client.finish().await;
    }
}
