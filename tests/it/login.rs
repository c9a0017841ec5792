//! From the connection to the answer to `auth`: greeting, keys, deadlines.

use std::time::Duration;

use tests::{
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, Sim, Stack, StackConfig, VENDOR_KEY, is_up},
    wait::{SOON, eventually},
    ws_client::{AUTHENTICATED, GREETING, Received, TestClient, acks},
};

use crate::{events::trade, tiers::ports};

const AUTH_FAILED: &str =
    r#"[{"ev":"status","status":"auth_failed","message":"authentication failed"}]"#;
const AUTH_REQUIRED: &str = r#"[{"ev":"status","status":"auth_required","message":"authentication required: send auth before subscribing"}]"#;
const AUTH_TIMEOUT: &str =
    r#"[{"ev":"status","status":"auth_timeout","message":"No authentication request received."}]"#;
/// The close code for keys, limits and slow readers.
const POLICY: Received = Received::Closed(Some(1008));

#[tokio::test]
async fn greeting_verdict_and_acknowledgements_each_have_a_frame() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::connect(addr).await;
        client
            .expect(r#"[{"ev":"status","status":"connected","message":"Connected Successfully"}]"#)
            .await;
        client.send_raw(&format!(r#"{{"action":"auth","params":"{key}"}}"#)).await;
        client
            .expect(r#"[{"ev":"status","status":"auth_success","message":"authenticated"}]"#)
            .await;
        client.send_raw(r#"{"action":"subscribe","params":"T.AAPL,Q.AAPL"}"#).await;
        client
            .expect(r#"[{"ev":"status","status":"success","message":"subscribed to: T.AAPL"},{"ev":"status","status":"success","message":"subscribed to: Q.AAPL"}]"#)
            .await;
        client.send_raw(r#"{"action":"unsubscribe","params":"Q.AAPL"}"#).await;
        client
            .expect(r#"[{"ev":"status","status":"success","message":"unsubscribed to: Q.AAPL"}]"#)
            .await;
    }
}

#[tokio::test]
async fn a_client_may_send_everything_before_it_reads_anything() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::connect(addr).await;
        client.command("auth", key).await;
        client.command("subscribe", "T.AAPL").await;
        client.command("subscribe", "Q.MSFT,T.MSFT").await;
        client.command("unsubscribe", "T.AAPL").await;
        client.expect(GREETING).await;
        client.expect(AUTHENTICATED).await;
        client.expect(&acks("subscribed", "T.AAPL")).await;
        client.expect(&acks("subscribed", "Q.MSFT,T.MSFT")).await;
        client.expect(&acks("unsubscribed", "T.AAPL")).await;
    }
}

#[tokio::test]
async fn every_path_an_official_client_makes_leads_to_the_market() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let paths =
            ["/", "/stocks", "//stocks", "/stocks/", "//stocks//", "/stocks?a=b", "//", "/?x"];
        for path in paths {
            TestClient::connect_to(addr, path).await.log_in(key).await;
        }
    }
}

#[tokio::test]
async fn subscribing_before_auth_is_answered_and_changes_nothing() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::connect(addr).await;
        client.expect(GREETING).await;
        for action in ["subscribe", "unsubscribe"] {
            client.command(action, "*").await;
            client.expect(AUTH_REQUIRED).await;
        }
        client.command("auth", key).await;
        client.expect(AUTHENTICATED).await;
        client.subscribe("T.AAPL").await;
        if addr == stack.addr() {
            let wanted = trade("AAPL", 2);
            stack.publish(&[trade("MSFT", 1), wanted.clone()]);
            client.expect_objects(&[wanted]).await;
        }
    }
}

#[tokio::test]
async fn a_wrong_key_gets_the_verdict_then_the_close() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let wrong_keys =
            ["wrong", "", " ", &key[1..], &key.to_uppercase(), &format!("{key}x"), VENDOR_KEY];
        let mut clients = Vec::new();
        for wrong in wrong_keys {
            let mut client = TestClient::connect(addr).await;
            client.expect(GREETING).await;
            client.command("auth", wrong).await;
            // Never acknowledged, because it comes after the refusal.
            client.command("subscribe", "*").await;
            client.expect(AUTH_FAILED).await;
            clients.push((wrong, client));
        }
        for (wrong, client) in &mut clients {
            assert_eq!(client.next(SOON).await, POLICY, "with key {wrong:?}");
        }
    }
    // The key of one tier is not valid on the other.
    let [(filtered, client_key), (firehose, firehose_key)] = ports(&stack);
    for (addr, key) in [(filtered, firehose_key), (firehose, client_key)] {
        let mut client = TestClient::connect(addr).await;
        client.expect(GREETING).await;
        client.command("auth", key).await;
        client.expect(AUTH_FAILED).await;
    }
}

#[tokio::test]
async fn a_second_auth_is_judged_again() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::login(addr, key).await;
        client.subscribe("T.AAPL").await;
        client.command("auth", key).await;
        client.expect(AUTHENTICATED).await;
        let event = trade("AAPL", 1);
        stack.publish(&[&event]);
        client.expect_objects(&[event]).await;
        client.command("auth", "wrong").await;
        client.expect(AUTH_FAILED).await;
        assert_eq!(client.next(SOON).await, POLICY);
    }
}

#[tokio::test]
async fn a_client_without_auth_in_time_gets_a_status_and_is_closed() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).env("AUTH_TIMEOUT", "300ms").start().await;
    let filtered = stack::filtered(firehose.addr()).env("AUTH_TIMEOUT", "300ms").start().await;
    for (program, key) in [(&filtered, CLIENT_KEY), (&firehose, FIREHOSE_KEY)] {
        let mut silent = TestClient::connect(program.addr()).await;
        silent.expect(GREETING).await;
        silent.expect(AUTH_TIMEOUT).await;
        assert_eq!(silent.next(SOON).await, POLICY);

        // Other commands do not count as authentication.
        let mut talker = TestClient::connect(program.addr()).await;
        talker.command("subscribe", "T.AAPL").await;
        talker.expect(GREETING).await;
        talker.expect(AUTH_REQUIRED).await;
        talker.expect(AUTH_TIMEOUT).await;
        assert_eq!(talker.next(SOON).await, POLICY);

        // An authenticated client may be silent for any time.
        let mut member = TestClient::login(program.addr(), key).await;
        let mut silent = TestClient::connect(program.addr()).await;
        assert_eq!(silent.end(SOON).await, POLICY);
        member.subscribe("T.AAPL").await;
    }
}

#[tokio::test]
async fn a_connection_that_never_asks_for_anything_is_ended() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).env("AUTH_TIMEOUT", "300ms").start().await;
    let filtered = stack::filtered(firehose.addr()).env("AUTH_TIMEOUT", "300ms").start().await;
    for program in [&filtered, &firehose] {
        for head in ["", "GET /stocks HTTP/1.1\r\nHost: x\r\nUpgrade: webs"] {
            let answer = tests::http::raw(program.addr(), head).await;
            assert!(!answer.contains("101"), "{answer}");
        }
    }
}

#[tokio::test]
async fn each_of_several_keys_opens() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks"))
        .env("FIREHOSE_API_KEYS", format!("other-key, {FIREHOSE_KEY},"))
        .start()
        .await;
    let filtered = stack::filtered(firehose.addr())
        .without("CLIENT_API_KEYS")
        .file("clients.keys", "first-key\nsecond-key, third-key\n")
        .env("CLIENT_API_KEYS_FILE", "clients.keys")
        .start()
        .await;
    is_up(&filtered).await;
    for key in ["first-key", "second-key", "third-key"] {
        TestClient::login(filtered.addr(), key).await;
    }
    for key in ["other-key", FIREHOSE_KEY] {
        TestClient::login(firehose.addr(), key).await;
    }
}

#[tokio::test]
async fn one_key_is_enough_for_everything() {
    let sim = Sim::start().await;
    for variable in ["POLYGON_API_KEY", "MASSIVE_API_KEY"] {
        let firehose = stack::firehose(&sim.url("stocks"))
            .without("FIREHOSE_API_KEYS")
            .without("POLYGON_API_KEY")
            .env(variable, VENDOR_KEY)
            .start()
            .await;
        let filtered = stack::filtered(firehose.addr())
            .without("FIREHOSE_API_KEY")
            .without("CLIENT_API_KEYS")
            .env(variable, VENDOR_KEY)
            .start()
            .await;
        is_up(&filtered).await;
        is_up(&firehose).await;
        for addr in [filtered.addr(), firehose.addr()] {
            TestClient::login(addr, VENDOR_KEY).await;
        }
    }
}

#[tokio::test]
async fn pings_are_answered_and_sent() {
    let ping = ("PING_INTERVAL", "200ms".to_owned());
    let stack = Stack::with(StackConfig {
        firehose_env: vec![ping.clone()],
        filtered_env: vec![ping],
        ..StackConfig::default()
    })
    .await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::connect(addr).await;
        client.expect(GREETING).await;
        client.ping(b"before auth").await;
        client.command("auth", key).await;
        client.expect(AUTHENTICATED).await;
        client.ping(b"").await;
        client.ping(&[7; 125]).await;
        // Its pongs keep it alive while it reads.
        let reading = client.next(Duration::from_secs(2));
        let quiet = tokio::time::timeout(Duration::from_secs(1), reading).await;
        assert!(quiet.is_err(), "{quiet:?} on an idle session");
        assert!(client.pings() >= 3, "{} pings", client.pings());
    }
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_closed() {
    let ping = ("PING_INTERVAL", "200ms".to_owned());
    let stack = Stack::with(StackConfig {
        firehose_env: vec![ping.clone()],
        filtered_env: vec![ping],
        ..StackConfig::default()
    })
    .await;
    let tiers = [
        (&stack.filtered[0], CLIENT_KEY, "filtered_sessions_closed_total"),
        (&stack.firehose, FIREHOSE_KEY, "firehose_sessions_closed_total"),
    ];
    for (program, key, closed) in tiers {
        // A client that is not polled answers no ping.
        let _frozen = TestClient::login(program.addr(), key).await;
        eventually(SOON, "the frozen client is closed", async || {
            program.metric_with(closed, r#"reason="silent""#).await == Some(1.0)
        })
        .await;
    }
    // The filtered proxy's own link answers pings.
    assert_eq!(stack.firehose.metric("firehose_sessions").await, Some(1.0));
}
