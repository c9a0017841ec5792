//! Named sessions come back to any filtered proxy, by a bucket in NATS.

use async_nats::jetstream;
use futures_util::TryStreamExt;
use serde_json::Value;
use tests::{
    nats::NatsServer,
    program::{Program, Signal},
    stack::{self, CLIENT_KEY, Sim, is_complete, is_up},
    wait::{SOON, eventually},
    ws_client::{Received, TestClient},
};

use crate::events::trade;

const BUCKET: &str = "POLYGON_SESSIONS";

/// A firehose and two filtered proxies on one NATS server.
struct Two {
    filtered: Vec<Program>,
    firehose: Program,
    sim: Sim,
    nats: NatsServer,
}

impl Two {
    async fn start() -> Self {
        let nats = NatsServer::start().await;
        let sim = Sim::start().await;
        let launch = stack::firehose(&sim.url("stocks")).env("NATS_URL", nats.url());
        let firehose = launch.start().await;
        let mut filtered = Vec::new();
        for _ in 0..2 {
            filtered.push(stack::filtered_on_nats(&nats.url()).start().await);
        }
        for proxy in &filtered {
            is_up(proxy).await;
            is_complete(proxy).await;
        }
        let two = Self { filtered, firehose, sim, nats };
        eventually(SOON, "the bucket", async || two.store().await.is_some()).await;
        two
    }

    async fn store(&self) -> Option<jetstream::kv::Store> {
        jetstream::new(self.nats.client().await).get_key_value(BUCKET).await.ok()
    }

    /// What the bucket holds, by key.
    async fn saved(&self) -> Vec<(String, String)> {
        let Some(store) = self.store().await else { return Vec::new() };
        let Ok(keys) = store.keys().await else { return Vec::new() };
        let mut saved = Vec::new();
        for key in keys.try_collect::<Vec<_>>().await.expect("the keys of the bucket") {
            let value = store.get(&key).await.expect("read an entry").unwrap_or_default();
            saved.push((key, String::from_utf8(value.into()).expect("a text")));
        }
        saved
    }

    fn publish(&self, trades: &[String]) {
        self.sim.handle.publish(trades);
    }

    /// A client with a name at a proxy, subscribed.
    async fn client(&self, proxy: usize, name: &str) -> TestClient {
        let path = format!("/session/{name}/stocks");
        let mut client = TestClient::connect_to(self.filtered[proxy].addr(), &path).await;
        client.log_in(CLIENT_KEY).await;
        client.subscribe("T.AAPL").await;
        client
    }

    /// Lets a client read until the bucket holds the end of the feed for its session alone.
    async fn confirmed(&self, client: &mut TestClient) -> Vec<(String, String)> {
        let head = self.firehose.health_text("/history/to").await;
        let mut saved = Vec::new();
        eventually(SOON, "the bucket holds the position", async || {
            client.ping(b"read").await;
            saved = self.saved().await;
            saved.len() == 1 && saved[0].1.ends_with(&format!(" {head}"))
        })
        .await;
        saved
    }
}

fn trades(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|n| trade("AAPL", n)).collect()
}

/// The next notice with this status. Events before it fail the test.
async fn expect(client: &mut TestClient, status: &str) -> Value {
    loop {
        let object: Value = serde_json::from_str(&client.next_object().await).expect("JSON");
        assert_eq!(object["ev"], "status", "{status} is missing: {object}");
        if object["status"] == status {
            return object;
        }
    }
}

/// The events up to this one.
async fn events_to(client: &mut TestClient, last: &str) -> Vec<String> {
    let mut events = Vec::new();
    while events.last().is_none_or(|event| event != last) {
        let object = client.next_object().await;
        if !object.contains(r#""ev":"status""#) {
            events.push(object);
        }
    }
    events
}

#[tokio::test]
async fn a_named_session_goes_on_at_another_proxy_when_its_own_is_killed() {
    let mut two = Two::start().await;
    let mut client = two.client(0, "alpha").await;
    expect(&mut client, "session").await;
    two.publish(&trades(0..3));
    client.expect_objects(&trades(0..3)).await;
    let saved = two.confirmed(&mut client).await;
    let (key, value) = &saved[0];
    assert!(key.starts_with("stocks.") && !key.contains("alpha"), "{key}");
    assert!(!value.contains(CLIENT_KEY) && !value.contains("key-1"), "{value}");
    two.filtered[0].signal(Signal::SIGKILL);
    two.filtered[0].wait_exit(SOON).await;
    drop(client);
    two.publish(&trades(3..7));
    let mut back = two.client(1, "alpha").await;
    expect(&mut back, "resumed").await;
    assert_eq!(events_to(&mut back, &trade("AAPL", 6)).await, trades(3..7));
    // Another key's session of this name, and another name, get nothing old.
    let mut other = two.client(1, "beta").await;
    expect(&mut other, "session").await;
    two.publish(&trades(7..8));
    assert_eq!(events_to(&mut back, &trade("AAPL", 7)).await, trades(7..8));
    other.expect_objects(&trades(7..8)).await;
}

#[tokio::test]
async fn the_last_session_of_a_name_wins_at_whichever_proxy() {
    let two = Two::start().await;
    let mut first = two.client(0, "alpha").await;
    expect(&mut first, "session").await;
    two.publish(&trades(0..3));
    first.expect_objects(&trades(0..3)).await;
    two.confirmed(&mut first).await;
    let mut second = two.client(1, "alpha").await;
    expect(&mut second, "resumed").await;
    expect(&mut second, "live").await;
    // What the first one confirms next is refused, and ends it.
    let end = tokio::spawn(async move { first.end(2 * SOON).await });
    let mut published = 3;
    eventually(SOON, "the first session ends", async || {
        two.publish(&trades(published..published + 1));
        published += 1;
        end.is_finished()
    })
    .await;
    assert_eq!(end.await.expect("it reads"), Received::Closed(Some(1008)));
    let events = events_to(&mut second, &trade("AAPL", published - 1)).await;
    assert_eq!(events, trades(3..published));
    // Back at the first proxy, which knew less, it goes on where it stood at the second.
    two.confirmed(&mut second).await;
    drop(second);
    two.publish(&trades(published..published + 2));
    let mut back = two.client(0, "alpha").await;
    expect(&mut back, "resumed").await;
    let events = events_to(&mut back, &trade("AAPL", published + 1)).await;
    assert_eq!(events, trades(published..published + 2));
}

#[tokio::test]
async fn without_an_answer_of_nats_a_session_begins_and_is_saved_later() {
    let mut two = Two::start().await;
    let mut client = two.client(0, "alpha").await;
    expect(&mut client, "session").await;
    two.publish(&trades(0..1));
    client.expect_objects(&trades(0..1)).await;
    two.confirmed(&mut client).await;
    drop(client);
    two.nats.kill();
    // It does not wait for NATS, and learns that nothing is known of it here.
    let mut elsewhere = two.client(1, "alpha").await;
    expect(&mut elsewhere, "session").await;
    two.nats.restart().await;
    for proxy in &two.filtered {
        is_up(proxy).await;
        is_complete(proxy).await;
    }
    two.publish(&trades(1..2));
    assert_eq!(events_to(&mut elsewhere, &trade("AAPL", 1)).await, trades(1..2));
    two.confirmed(&mut elsewhere).await;
}

#[tokio::test]
async fn a_bucket_that_is_removed_is_made_and_filled_again() {
    let two = Two::start().await;
    let mut client = two.client(0, "alpha").await;
    expect(&mut client, "session").await;
    two.publish(&trades(0..1));
    client.expect_objects(&trades(0..1)).await;
    two.confirmed(&mut client).await;
    let context = jetstream::new(two.nats.client().await);
    context.delete_key_value(BUCKET).await.expect("remove the bucket");
    two.publish(&trades(1..2));
    client.expect_objects(&trades(1..2)).await;
    two.confirmed(&mut client).await;
}
