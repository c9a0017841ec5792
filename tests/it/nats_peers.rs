//! `/health` of each program on NATS lists the others.

use serde_json::Value;
use tests::{
    nats::NatsServer,
    program::{Program, Signal},
    stack::{self, Sim, is_complete, is_up},
    wait::{SOON, eventually},
};

/// The tiers of the others, as a program lists them.
async fn peers(program: &Program) -> Vec<(String, String)> {
    let health = program.health().await;
    let text = |peer: &Value, name: &str| peer[name].as_str().expect("a text").to_owned();
    let peers = health["peers"].as_array().expect("a list of peers");
    peers.iter().map(|peer| (text(peer, "tier"), text(peer, "status"))).collect()
}

async fn lists(program: &Program, expected: &[(&str, &str)]) {
    let owned = |(tier, status): &(&str, &str)| ((*tier).to_owned(), (*status).to_owned());
    let expected: Vec<_> = expected.iter().map(owned).collect();
    let mut last = Vec::new();
    eventually(SOON, &format!("{expected:?} are listed"), async || {
        last = peers(program).await;
        last == expected
    })
    .await;
}

#[tokio::test]
async fn health_of_each_program_lists_the_others() {
    let nats = NatsServer::start().await;
    let sim = Sim::start().await;
    let launch = || stack::firehose(&sim.url("stocks")).env("NATS_URL", nats.url());
    let firehose = launch().start().await;
    let one = stack::filtered_on_nats(&nats.url()).start().await;
    let mut two = stack::filtered_on_nats(&nats.url()).start().await;
    for proxy in [&one, &two] {
        is_up(proxy).await;
        is_complete(proxy).await;
    }
    lists(&firehose, &[("filtered", "ok"), ("filtered", "ok")]).await;
    lists(&one, &[("filtered", "ok"), ("firehose", "ok")]).await;
    let health = one.health().await;
    for peer in health["peers"].as_array().expect("a list") {
        let id = peer["instance"].as_str().expect("a text");
        assert!(id.len() == 16 && id.chars().all(|c| c.is_ascii_hexdigit()), "{peer}");
        assert!(peer["host"].as_str().is_some_and(|host| !host.is_empty()), "{peer}");
        assert_eq!(peer["version"], health["version"]);
        let lag = &peer["lag"]["messages"];
        assert_eq!(lag.is_u64(), peer["tier"] == "filtered", "{peer}");
    }
    // One that stands still does not hold up the others' answers, and is left out after a while.
    two.signal(Signal::SIGSTOP);
    lists(&one, &[("firehose", "ok")]).await;
    two.signal(Signal::SIGCONT);
    lists(&one, &[("filtered", "ok"), ("firehose", "ok")]).await;
    two.signal(Signal::SIGKILL);
    two.wait_exit(SOON).await;
    lists(&firehose, &[("filtered", "ok")]).await;
}

#[tokio::test]
async fn without_nats_health_lists_nobody() {
    let stack = stack::Stack::start().await;
    for program in [&stack.firehose, &stack.filtered[0]] {
        let health = program.health().await;
        assert_eq!((&health["peers"], &health["lag"]), (&Value::Null, &Value::Null), "{health}");
    }
}
