//! Commands: which are acknowledged, which are refused, and with which text.

use tests::{
    stack::{CLIENT_KEY, Stack, StackConfig},
    wait::SOON,
    ws_client::{Received, TestClient, acks},
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use crate::{events::trade, tiers::ports};

const NO_COMMAND: &str = r#"[{"ev":"status","status":"error","message":"invalid command: expected one JSON object such as {\"action\":\"subscribe\",\"params\":\"T.AAPL,Q.*\"}"}]"#;

/// A frame of one `error` status. The message is JSON text without the quotes.
fn error(message: &str) -> String {
    format!(r#"[{{"ev":"status","status":"error","message":"{message}"}}]"#)
}

#[tokio::test]
async fn commands_are_read_in_the_spelling_of_every_official_client() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::login(addr, key).await;
        let spellings = [
            r#"{"action": "subscribe", "params": "T.AAPL"}"#,
            r#"{"action": "subscribe", "params":"T.AAPL"}"#,
            r#"{"action":"subscribe","params":"T.AAPL"}"#,
            r#"{"params":"T.AAPL","action":"subscribe"}"#,
            r#"{"ev":"x","status":"","message":"","action":"subscribe","params":"T.AAPL"}"#,
            "\n { \"action\" :\t\"subscribe\" ,\r\n\"params\" : \"T.AAPL\" } ",
            r#"{"action":"\u0073ubscribe","params":"T\u002eAAPL"}"#,
        ];
        for spelling in spellings {
            client.send_raw(spelling).await;
            client.expect(&acks("subscribed", "T.AAPL")).await;
        }
    }
}

#[tokio::test]
async fn items_are_trimmed_and_empty_ones_ignored() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::login(addr, key).await;
        client.command("subscribe", " AM.AAPL, AM.MSFT ,,\tT.*\n, * ,").await;
        client.expect(&acks("subscribed", "AM.AAPL,AM.MSFT,T.*,*")).await;
        if addr == stack.firehose.addr() {
            client.expect_coverage().await;
        }
        client.command("unsubscribe", ", *,AM.MSFT ").await;
        client.expect(&acks("unsubscribed", "*,AM.MSFT")).await;
        for nothing in ["", " ", ",", " , ,"] {
            for action in ["subscribe", "unsubscribe"] {
                client.command(action, nothing).await;
                let message = format!(
                    r#"nothing to {action}: expected channels separated by commas in \"params\", for example T.AAPL,Q.*"#
                );
                client.expect(&error(&message)).await;
            }
        }
    }
}

#[tokio::test]
async fn the_first_dot_ends_the_kind_and_symbols_stay_as_they_are() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::login(addr, key).await;
        let items =
            "T.BRK.B,T.NTEST.Q,T.BACpL,T.XYZw,T.O:SPY251219C00650000,T.EUR/USD,T.BTC-USD,T.I:SPX";
        client.subscribe(items).await;
        client.unsubscribe(items).await;
    }
}

/// The vendor acknowledges whatever looks like a channel.
#[tokio::test]
async fn what_probably_matches_nothing_is_acknowledged_with_a_hint_in_the_same_frame() {
    let stack = Stack::start().await;
    let case = "symbols are case-sensitive and in upper case";
    let quotes = "symbols stand without quotes";
    let separator = "commas separate channels, as in T.AAPL,Q.AAPL";
    let cases = [
        ("T.aapl", "T.aapl", case),
        ("T.AAPL,T.\u{e9},Q.BACpL", "T.\u{e9}", "no known symbol has such a character"),
        ("T.AAPL;Q.AAPL", "T.AAPL;Q.AAPL", separator),
        (r#"T.A"B\C"#, r#"T.A\"B\\C"#, quotes),
    ];
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::login(addr, key).await;
        for (items, doubted, reason) in cases {
            client.command("subscribe", items).await;
            let acknowledged = acks("subscribed", items);
            let acknowledged = acknowledged.trim_end_matches(']');
            let text = format!("subscribed, but perhaps nothing comes: {doubted}: {reason}");
            let hint = format!(r#"{{"ev":"status","status":"hint","message":"{text}"}}"#);
            client.expect(&format!("{acknowledged},{hint}]")).await;
            // Once is enough.
            client.subscribe(items).await;
            client.unsubscribe(items).await;
        }
    }
    // As asked: the case is the vendor's.
    let mut client = TestClient::login(stack.addr(), CLIENT_KEY).await;
    client.command("subscribe", "T.aapl").await;
    assert!(client.next_text().await.contains("subscribed to: T.aapl"));
    stack.publish(&[trade("AAPL", 1), trade("aapl", 2)]);
    client.expect_objects(&[trade("aapl", 2)]).await;
}

#[tokio::test]
async fn without_notices_no_hint_is_given() {
    let off = vec![("CLIENT_NOTICES", "off".to_owned())];
    let stack = Stack::with(StackConfig {
        firehose_env: off.clone(),
        filtered_env: off,
        ..StackConfig::default()
    })
    .await;
    for (addr, key) in ports(&stack) {
        TestClient::login(addr, key).await.subscribe("T.aapl").await;
    }
}

#[tokio::test]
async fn blanks_around_a_key_do_not_count() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        for written in [format!("{key} "), format!("\t{key}\r\n")] {
            TestClient::login(addr, &written).await;
        }
    }
}

#[tokio::test]
async fn repeating_and_removing_what_is_not_held_is_acknowledged() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::login(addr, key).await;
        client.unsubscribe("T.AAPL").await;
        client.subscribe("T.AAPL").await;
        client.subscribe("T.AAPL").await;
        client.subscribe("T.AAPL,T.AAPL").await;
        client.unsubscribe("T.AAPL").await;
        client.unsubscribe("T.AAPL,*,Q.*").await;
    }
    let mut client = stack.subscriber("T.AAPL,T.AAPL").await;
    client.subscribe("T.AAPL").await;
    client.unsubscribe("T.AAPL").await;
    client.subscribe("T.MSFT").await;
    stack.publish(&[trade("AAPL", 1), trade("MSFT", 2)]);
    client.expect_objects(&[trade("MSFT", 2)]).await;
}

#[tokio::test]
async fn refusals_name_the_item_and_come_first() {
    let stack = Stack::start().await;
    let kinds = "T, Q, A, AM, LULD, NOI, FMV, LV";
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::login(addr, key).await;
        let cases = [
            (
                "AAPL",
                r#"invalid channel \"AAPL\": expected TYPE.SYMBOL, TYPE.PREFIX*, TYPE.* or *, for example T.*"#
                    .to_owned(),
            ),
            (
                "T.",
                r#"invalid channel \"T.\": expected TYPE.SYMBOL, TYPE.PREFIX*, TYPE.* or *, for example T.*"#
                    .to_owned(),
            ),
            (
                ".AAPL",
                r#"invalid channel \".AAPL\": expected TYPE.SYMBOL, TYPE.PREFIX*, TYPE.* or *, for example T.*"#
                    .to_owned(),
            ),
            (
                "ZZ.AAPL",
                format!(
                    r#"unknown channel type in \"ZZ.AAPL\": expected one of {kinds} before the first dot"#
                ),
            ),
            (
                "t.AAPL",
                format!(
                    r#"unknown channel type in \"t.AAPL\": expected one of {kinds} before the first dot"#
                ),
            ),
            (
                "XT.BTC-USD",
                format!(
                    r#"unknown channel type in \"XT.BTC-USD\": expected one of {kinds} before the first dot"#
                ),
            ),
            (
                "T.A*B",
                r#"invalid symbol in \"T.A*B\": a * is the end of a channel, as in T.* or T.AA*"#
                    .to_owned(),
            ),
            (
                "T.**",
                r#"invalid symbol in \"T.**\": a * is the end of a channel, as in T.* or T.AA*"#
                    .to_owned(),
            ),
            (
                "T.*A",
                r#"invalid symbol in \"T.*A\": a * is the end of a channel, as in T.* or T.AA*"#
                    .to_owned(),
            ),
        ];
        for action in ["subscribe", "unsubscribe"] {
            for (item, message) in &cases {
                client.command(action, item).await;
                client.expect(&error(message)).await;
            }
        }
        client.command("subscribe", "T.AAPL,ZZ.AAPL,Q.AAPL,AAPL").await;
        client
            .expect(
                &[
                    r#"[{"ev":"status","status":"error","message":"unknown channel type in \"ZZ.AAPL\": expected one of T, Q, A, AM, LULD, NOI, FMV, LV before the first dot"}"#,
                    r#"{"ev":"status","status":"error","message":"invalid channel \"AAPL\": expected TYPE.SYMBOL, TYPE.PREFIX*, TYPE.* or *, for example T.*"}"#,
                    r#"{"ev":"status","status":"success","message":"subscribed to: T.AAPL"}"#,
                    r#"{"ev":"status","status":"success","message":"subscribed to: Q.AAPL"}]"#,
                ]
                .join(","),
            )
            .await;
    }
}

#[tokio::test]
async fn what_is_no_command_is_answered_and_the_connection_lives_on() {
    let stack = Stack::start().await;
    let unknown = |action: &str| {
        error(&format!(r#"unknown action \"{action}\": expected auth, subscribe or unsubscribe"#))
    };
    let params = |action: &str| {
        error(&format!(r#"invalid command: \"params\" of \"{action}\" must be a string"#))
    };
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::login(addr, key).await;
        for text in [
            "",
            "hello",
            "[]",
            "7",
            "null",
            "{}",
            "{",
            r#"{"params":"T.AAPL"}"#,
            r#"{"action":7,"params":"T.AAPL"}"#,
            r#"["subscribe","T.AAPL"]"#,
            r#"[{"action":"subscribe","params":"T.AAPL"}]"#,
            r#"{"action":"subscribe","params":"T.AAPL"}{"action":"subscribe","params":"T.AAPL"}"#,
        ] {
            client.send_raw(text).await;
            assert_eq!(client.next_text().await, NO_COMMAND, "after {text:?}");
        }
        for action in ["ping", "listen", "Subscribe", ""] {
            client.command(action, "T.AAPL").await;
            client.expect(&unknown(action)).await;
        }
        for action in ["auth", "subscribe", "unsubscribe"] {
            for value in ["7", "null", r#"["T.AAPL"]"#, "{}"] {
                client.send_raw(&format!(r#"{{"action":"{action}","params":{value}}}"#)).await;
                client.expect(&params(action)).await;
            }
            client.send_raw(&format!(r#"{{"action":"{action}"}}"#)).await;
            client.expect(&params(action)).await;
        }
        client.subscribe("T.AAPL").await;
    }
}

#[tokio::test]
async fn a_binary_message_is_no_command() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::login(addr, key).await;
        client
            .send(Message::Binary(br#"{"action":"subscribe","params":"*"}"#.as_slice().into()))
            .await;
        client.expect(&error("invalid command: expected a text frame, got a binary one")).await;
        client.subscribe("T.AAPL").await;
    }
}

#[tokio::test]
async fn commands_take_effect_in_their_order() {
    let stack = Stack::start().await;
    let mut client = stack.client().await;
    client.command("subscribe", "T.A,T.B").await;
    client.command("unsubscribe", "T.A").await;
    client.send_raw("nonsense").await;
    client.command("subscribe", "T.C").await;
    client.command("unsubscribe", "T.B").await;
    client.expect(&acks("subscribed", "T.A,T.B")).await;
    client.expect(&acks("unsubscribed", "T.A")).await;
    client.expect(NO_COMMAND).await;
    client.expect(&acks("subscribed", "T.C")).await;
    client.expect(&acks("unsubscribed", "T.B")).await;
    stack.publish(&[trade("A", 1), trade("B", 2), trade("C", 3)]);
    client.expect_objects(&[trade("C", 3)]).await;
}

#[tokio::test]
async fn a_message_past_the_limit_closes_with_1009() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::login(addr, key).await;
        let params = "T.AAPL,".repeat(300_000);
        client.send_raw(&format!(r#"{{"action":"subscribe","params":"{params}"}}"#)).await;
        assert_eq!(client.end(SOON).await, Received::Closed(Some(1009)));
        TestClient::login(addr, key).await.subscribe("T.AAPL").await;
    }
}

#[tokio::test]
async fn a_text_that_is_not_utf8_closes_with_1007() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::login(addr, key).await;
        client.subscribe("T.AAPL").await;
        let latin_1 = b"{\"action\":\"subscribe\",\"params\":\"T.\xe9\"}".to_vec();
        let frame = Frame::message(latin_1, OpCode::Data(Data::Text), true);
        client.send(Message::Frame(frame)).await;
        assert_eq!(client.end(SOON).await, Received::Closed(Some(1007)));
    }
}

#[tokio::test]
async fn subscriptions_past_the_limit_are_refused_one_by_one() {
    let stack = Stack::with(StackConfig {
        filtered_env: vec![("MAX_SUBSCRIPTIONS", "3".to_owned())],
        ..StackConfig::default()
    })
    .await;
    let mut client = TestClient::login(stack.addr(), CLIENT_KEY).await;
    client.subscribe("T.A,T.B").await;
    client.command("subscribe", "T.C,T.D,T.A").await;
    let frame = client.next_frame().await;
    assert_eq!(frame.len(), 3, "{frame:?}");
    assert!(frame[0].starts_with(r#"{"ev":"status","status":"error","message":""#), "{frame:?}");
    assert!(frame[0].contains("T.D"), "{frame:?}");
    let accepted = acks("subscribed", "T.C,T.A");
    assert_eq!(format!("[{},{}]", frame[1], frame[2]), accepted);
    stack.publish(&[trade("D", 1), trade("C", 2)]);
    client.expect_objects(&[trade("C", 2)]).await;
    // An unsubscribed channel makes room.
    client.unsubscribe("T.A").await;
    client.subscribe("T.D").await;
}
