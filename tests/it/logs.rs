//! Logs and `/health` for whoever is on call: who, what, where, since when, and what to do.

use polygon_sim::{Fault, SimConfig};
use serde_json::Value;
use tests::{
    http::{refused_upgrade, upgrade},
    program::Program,
    stack::{self, CLIENT_KEY, Sim, Stack, StackConfig, in_state, is_up},
    wait::{SOON, eventually},
    ws_client::TestClient,
};

/// The lines of a program's log, each of which is one flat JSON object with a message.
fn lines(program: &Program, name: &str) -> Vec<Value> {
    let text = program.log_text();
    let parse = |line: &str| {
        let parsed: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        for key in ["timestamp", "level", "message", "target"] {
            assert!(parsed[key].is_string(), "{key} of {line}");
            assert_eq!(line.matches(&format!("\"{key}\":")).count(), 1, "{key} of {line}");
        }
        assert_eq!(parsed["program"], name, "{line}");
        // What `{:?}` makes of structs, variants and options.
        for rust in [" { ", "Some(", "Ok(", "Err("] {
            assert!(!line.contains(rust), "{rust:?} in {line}");
        }
        parsed
    };
    text.lines().map(parse).collect()
}

#[tokio::test]
async fn each_line_is_flat_json_and_names_its_program_at_any_level() {
    let debug = [("LOG_LEVEL", "debug".to_owned()), ("SILENCE_ALARM", "1s".to_owned())];
    let stack = Stack::with(StackConfig {
        firehose_env: debug.to_vec(),
        filtered_env: debug[..1].to_vec(),
        ..StackConfig::default()
    })
    .await;
    let client = stack.subscriber("T.AAPL").await;
    client.close().await;
    assert_eq!(refused_upgrade(stack.addr(), "/nowhere").await.status, 404);
    for fault in [Fault::Garbage, Fault::Binary, Fault::Evict] {
        stack.sim.handle.inject(fault);
    }
    in_state(&stack.firehose, "waiting").await;
    drop(TestClient::login(stack.addr(), CLIENT_KEY).await);
    for (program, name) in
        [(&stack.firehose, "firehose-proxy"), (&stack.filtered[0], "filtered-proxy")]
    {
        assert!(lines(program, name).len() > 5);
    }
}

#[tokio::test]
async fn a_client_turned_away_is_logged_with_what_it_sent() {
    let stack = Stack::start().await;
    let proxy = &stack.filtered[0];
    refused_upgrade(proxy.addr(), "/nowhere?apiKey=secret").await;
    upgrade(proxy.addr(), "Origin: https://evil.example\r\n").await;
    upgrade(proxy.addr(), "Content-Length: 1\r\n").await;
    for (abuse, detail) in [
        ("path", "/nowhere"),
        ("origin", "https://evil.example"),
        ("handshake", "a request with a body"),
    ] {
        let mut found = None;
        eventually(SOON, "a line about it", async || {
            let lines = lines(proxy, "filtered-proxy");
            found = lines.into_iter().find(|line| line["abuse"] == abuse);
            found.is_some()
        })
        .await;
        let line = found.expect("the condition held");
        assert_eq!(
            (&line["detail"], &line["client"]),
            (&detail.into(), &"127.0.0.1".into()),
            "{line}"
        );
    }
    assert!(!proxy.log_text().contains("secret"));
}

#[tokio::test]
async fn a_link_that_is_down_says_where_since_when_why_and_what_to_do() {
    let sim = Sim::start().await;
    sim.handle.inject(Fault::RefuseUpgrade { status: Some(404), header: None });
    let url = sim.url("stocks");
    let mut firehose = stack::firehose(&format!("{url}?apiKey=secret")).start().await;
    let line = firehose.logged("link is down").await;
    assert_eq!((&line["url"], &line["upstream"]), (&Value::from(&*url), &"Polygon".into()));
    for (field, text) in [("error", "HTTP 404"), ("advice", "URL"), ("next_try", "ms")] {
        assert!(line[field].as_str().is_some_and(|value| value.contains(text)), "{line}");
    }
    let health = firehose.health().await;
    assert_eq!((&health["status"], &health["upstream"]["url"]), (&"down".into(), &line["url"]));
    let upstream = |key: &str| health["upstream"][key].as_str().expect(key).to_owned();
    let problem = health["problems"][0].as_str().expect("a problem");
    for part in ["Polygon", &*url, &*upstream("since"), "HTTP 404", "its URL is right"] {
        assert!(problem.contains(part), "{part:?} in {problem}");
    }
    assert!(upstream("last_error_at") >= upstream("since"), "{health}");
    sim.handle.inject(Fault::RefuseUpgrade { status: None, header: None });
    is_up(&firehose).await;
    eventually(SOON, "no problem is left", async || {
        let health = firehose.health().await;
        let upstream = &health["upstream"];
        let gone = upstream["last_error"].is_null() && upstream["last_error_at"].is_null();
        gone && health["problems"] == Value::Array(Vec::new())
    })
    .await;
    let reason = firehose.health_text("/upstream/last_outage/reason").await;
    assert!(reason.contains("HTTP 404"), "{reason}");
    assert!(!firehose.log_text().contains("secret"));
}

#[tokio::test]
async fn whatever_makes_a_tier_degraded_is_a_problem_in_words() {
    let sim = SimConfig { refuse: vec!["NOI".to_owned()], ..SimConfig::default() };
    let stack = Stack::with(StackConfig { sim, ..StackConfig::default() }).await;
    eventually(SOON, "it is degraded", async || {
        stack.firehose.health_text("/status").await == "degraded"
    })
    .await;
    assert_eq!(stack.firehose.health_text("/problems/0").await, "Polygon refuses NOI.*");
}

#[tokio::test]
async fn lines_of_a_market_name_it_if_there_are_several() {
    let sim = SimConfig { market: "stocks,crypto".to_owned(), ..SimConfig::default() };
    let filtered_env = vec![("LOG_LEVEL", "debug".to_owned())];
    let stack = Stack::with(StackConfig { sim, filtered_env, ..StackConfig::default() }).await;
    drop(stack.subscriber_at("/crypto", "XT.BTC-USD").await);
    let of = |program: &Program, name, message: &str| -> Vec<String> {
        let lines = lines(program, name).into_iter();
        let of_message = lines.filter(|line| line["message"] == message);
        of_message
            .map(|line| line["span"]["market"].as_str().unwrap_or("none").to_owned())
            .collect()
    };
    let filtered = &stack.filtered[0];
    assert_eq!(of(filtered, "filtered-proxy", "authenticated"), ["crypto"]);
    for (program, name) in [(&stack.firehose, "firehose-proxy"), (filtered, "filtered-proxy")] {
        let mut markets = of(program, name, "Authenticated successfully");
        markets.sort();
        assert_eq!(markets, ["crypto", "stocks"]);
    }
}
