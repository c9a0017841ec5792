//! Filters: each client gets exactly the events of its channels, once, in order, byte for byte.

use tests::{
    stack::{FIREHOSE_KEY, Stack},
    ws_client::TestClient,
};

use crate::events::{bar, minute_bar, quote, trade};

/// Ends a published sequence. Every client of a test is subscribed to it.
const END: &str = r#"{"ev":"AM","sym":"END","v":1}"#;

#[tokio::test]
async fn each_client_gets_what_it_asked_for_and_nothing_else() {
    let stack = Stack::start().await;
    let events = [
        trade("AAPL", 1),
        quote("AAPL", 2),
        trade("MSFT", 3),
        quote("MSFT", 4),
        bar("AAPL", 5),
        minute_bar("AAPL", 6),
        trade("AAP", 7),
        trade("AAPLW", 8),
        trade("AAPLw", 9),
        END.to_owned(),
    ];
    let cases: [(&str, &[usize]); 10] = [
        ("T.AAPL", &[0]),
        ("T.AAPL,Q.AAPL", &[0, 1]),
        ("T.*", &[0, 2, 6, 7, 8]),
        ("Q.*,T.MSFT", &[1, 2, 3]),
        ("A.*", &[4]),
        ("A.AAPL,AM.AAPL", &[4, 5]),
        ("T.AAPLw", &[8]),
        ("T.GOOG,LULD.AAPL", &[]),
        ("*", &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("*,T.*,T.AAPL,AM.AAPL", &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ];
    let mut clients = Vec::new();
    for (params, expected) in cases {
        clients.push((stack.subscriber(&format!("{params},AM.END")).await, expected));
    }
    // In frames of one event, of some and of all: batching must change nothing.
    for frame_events in [1, 3, events.len()] {
        for frame in events.chunks(frame_events) {
            stack.publish(frame);
        }
    }
    for (client, expected) in &mut clients {
        for _ in 0..3 {
            for &n in *expected {
                client.expect_objects(&[&events[n]]).await;
            }
            client.expect_objects(&[END]).await;
        }
    }
}

#[tokio::test]
async fn entries_are_independent_of_each_other() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("*,T.*,T.AAPL,AM.END").await;
    let events = [trade("AAPL", 1), trade("MSFT", 2), quote("AAPL", 3), END.to_owned()];
    let mut check = async |action: &str, item: &str, expected: &[usize]| {
        match action {
            "subscribe" => client.subscribe(item).await,
            _ => client.unsubscribe(item).await,
        }
        stack.publish(&events);
        let expected = expected.iter().map(|&n| &events[n]).chain([&events[3]]);
        client.expect_objects(&expected.collect::<Vec<_>>()).await;
    };
    check("unsubscribe", "*", &[0, 1]).await;
    check("unsubscribe", "T.*", &[0]).await;
    check("subscribe", "T.*", &[0, 1]).await;
    // As the Python client does: it subscribes to the wildcard, then unsubscribes the symbols.
    check("unsubscribe", "T.AAPL", &[0, 1]).await;
    check("subscribe", "T.AAPL", &[0, 1]).await;
    check("subscribe", "*", &[0, 1, 2]).await;
    check("unsubscribe", "T.*,T.AAPL", &[0, 1, 2]).await;
    check("unsubscribe", "*", &[]).await;
    check("subscribe", "Q.AAPL", &[2]).await;
}

#[tokio::test]
async fn nothing_comes_unasked() {
    let stack = Stack::start().await;
    let mut member = stack.client().await;
    let mut stranger = TestClient::connect(stack.addr()).await;
    let mut witness = stack.subscriber("*").await;
    let events = [trade("AAPL", 1), trade("MSFT", 2)];
    stack.publish(&events);
    witness.expect_objects(&events).await;
    // Both clients were connected all the time. The next thing they get is what they ask for now.
    member.subscribe("T.AAPL").await;
    stranger.log_in(tests::stack::CLIENT_KEY).await;
    stranger.subscribe("T.MSFT").await;
    stack.publish(&[trade("MSFT", 3), trade("AAPL", 4)]);
    member.expect_objects(&[trade("AAPL", 4)]).await;
    stranger.expect_objects(&[trade("MSFT", 3)]).await;
}

#[tokio::test]
async fn bytes_of_events_are_not_touched() {
    let stack = Stack::start().await;
    let events = [
        r#"{"ev":"T","sym":"AAPL","p":1.0,"s":1e5,"x":4.522e-05,"q":0.10,"n":-0}"#,
        r#"{"ev":"T","sym":"AAPL","t":1790604301733018455,"big":123456789012345678901234567890}"#,
        r#"{"ev":"T","sym":"AAPL","u":"\u00e9\u00E9é\/ \t","e":""}"#,
        r#"{ "ev" : "T" , "sym" : "AAPL" , "a" : [ 1 , 2 ] }"#,
        "{\"ev\":\"T\",\"sym\":\"AAPL\",\"l\":\"\u{1f600}\u{2028}\"}",
        r#"{"ev":"T","sym":"AAPL","sym2":"MSFT","dup":1,"dup":2}"#,
    ];
    let mut exact = stack.subscriber("T.AAPL").await;
    let mut kind = stack.subscriber("T.*").await;
    let mut all = stack.subscriber("*").await;
    stack.publish(&events);
    for client in [&mut exact, &mut kind, &mut all] {
        client.expect_objects(&events).await;
    }
}

#[tokio::test]
async fn order_is_that_of_the_market_across_channels_and_frames() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("T.A,Q.A,T.B,AM.END").await;
    let mut expected = Vec::new();
    for n in 0..3_000 {
        let event = match n % 4 {
            0 => trade("A", n),
            1 => quote("A", n),
            2 => trade("B", n),
            _ => trade("C", n),
        };
        if n % 4 != 3 {
            expected.push(event.clone());
        }
        stack.publish(&[event]);
    }
    client.expect_objects(&expected).await;
}

#[tokio::test]
async fn clients_with_the_same_interest_get_the_same() {
    let stack = Stack::start().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(stack.subscriber("T.AAPL,T.MSFT").await);
    }
    // One of them leaves and one changes its channels. The others are not affected.
    clients.pop().expect("a client").close().await;
    let mut changed = clients.pop().expect("a client");
    changed.unsubscribe("T.AAPL").await;
    let events: Vec<_> = (0..100).map(|n| trade(["AAPL", "MSFT", "GOOG"][n % 3], n)).collect();
    for frame in events.chunks(7) {
        stack.publish(frame);
    }
    let of = |symbols: &[usize]| {
        let wanted = events.iter().enumerate().filter(|(n, _)| symbols.contains(&(n % 3)));
        wanted.map(|(_, event)| event.clone()).collect::<Vec<_>>()
    };
    for client in &mut clients {
        client.expect_objects(&of(&[0, 1])).await;
    }
    changed.expect_objects(&of(&[1])).await;
}

#[tokio::test]
async fn the_firehose_passes_frames_on_as_they_come() {
    let stack = Stack::start().await;
    let mut client = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    client.subscribe("*").await;
    client.expect_coverage().await;
    let frames = [
        format!("[{},{}]", trade("AAPL", 1), quote("MSFT", 2)),
        r#"[ {"ev":"ZZ","sym":"X"} , {"ev":"T","sym":"Y"} ]"#.to_owned(),
        format!("[{}]", trade("AAPL", 3)),
    ];
    for frame in &frames {
        stack.sim.handle.publish_raw(frame);
    }
    for frame in &frames {
        client.expect(frame).await;
    }
}
