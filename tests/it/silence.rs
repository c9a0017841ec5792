//! A kind that falls silent while its market is open is reported, with no other effect.

use std::time::Duration;

use polygon_sim::SimConfig;
use tests::{
    http::get,
    program::Program,
    stack::{Stack, StackConfig},
    wait::{SOON, eventually, holds_for},
};

/// A stack on the market that never closes.
async fn crypto(alarm: &str) -> Stack {
    Stack::with(StackConfig {
        sim: SimConfig { market: "crypto".to_owned(), ..SimConfig::default() },
        firehose_env: vec![
            ("SILENCE_ALARM", alarm.to_owned()),
            ("UPSTREAM_CHANNELS", "XT,XQ,XL2".to_owned()),
        ],
        ..StackConfig::default()
    })
    .await
}

/// The kinds named in the sentences about silence, sorted.
async fn silent(firehose: &Program) -> Vec<String> {
    let health = firehose.health().await;
    let problems = health["problems"].as_array().expect("a list of problems").clone();
    let kinds = problems.iter().map(|problem| {
        let sentence = problem.as_str().expect("a sentence");
        assert!(sentence.starts_with("no ") && sentence.ends_with("s while the market is open"));
        sentence.split(' ').nth(1).expect("a kind").to_owned()
    });
    let mut kinds: Vec<_> = kinds.collect();
    kinds.sort_unstable();
    let status = if kinds.is_empty() { "ok" } else { "degraded" };
    assert_eq!(health["status"], status, "{health}");
    kinds
}

#[tokio::test]
async fn a_kind_that_falls_silent_is_reported_until_it_comes_again() {
    let mut stack = crypto("2s").await;
    let trade = |n: usize| vec![format!(r#"{{"ev":"XT","pair":"BTC-USD","p":{n}}}"#)];
    eventually(SOON, "both busy kinds are silent", async || {
        silent(&stack.firehose).await == ["XQ", "XT"]
    })
    .await;
    let metric = "firehose_upstream_silent_kinds";
    assert_eq!(stack.firehose.metric(metric).await, Some(2.0));
    let mut n = 0;
    eventually(SOON, "trades are back", async || {
        stack.publish(&trade(n));
        n += 1;
        silent(&stack.firehose).await == ["XQ"]
    })
    .await;
    assert_eq!(stack.firehose.metric(metric).await, Some(1.0));
    // Degraded is a reason neither to fail health checks nor to reconnect.
    assert_eq!(get(stack.firehose.addr(), "/health").await.status, 200);
    assert_eq!(stack.sim.handle.stats().tcp_accepted, 1);
    stack.firehose.logged("nothing of this kind comes though its market is open").await;
    assert_eq!(stack.filtered[0].health_text("/status").await, "ok");
}

#[tokio::test]
async fn the_silence_alarm_can_be_turned_off() {
    let stack = crypto("off").await;
    holds_for(Duration::from_secs(3), "all is well", async || {
        silent(&stack.firehose).await.is_empty()
    })
    .await;
}
