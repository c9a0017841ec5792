//! Slow clients that come back, and clients that come back and read slowly.

use std::time::Duration;

use serde_json::Value;
use tests::{
    program::Program,
    relay::{Fault, Relay},
    stack::{self, CLIENT_KEY, Sim, Stack, StackConfig, in_state, is_complete, is_up},
    wait::{SOON, eventually, within},
    ws_client::{TestClient, acks, coming_back},
};
use tokio::time::{Instant, sleep};

use crate::events::{number, quote, trade};

/// Events of a frame.
const FRAME: usize = 100;

/// An event of 2 KB, so that a few fill the system's buffers.
fn wide(n: usize) -> String {
    trade(&format!("AAPL\",\"x\":\"{}", "x".repeat(2_000)), n)
}

/// A filtered proxy under load, and a client that reads everything at once.
struct Loaded {
    stack: Stack,
    witness: TestClient,
    sent: usize,
}

impl Loaded {
    async fn start(settings: &[(&'static str, &str)]) -> Self {
        let filtered_env =
            settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let stack = Stack::with(StackConfig { filtered_env, ..StackConfig::default() }).await;
        let witness = stack.subscriber("T.*").await;
        Self { stack, witness, sent: 0 }
    }

    /// Publishes frames, each of which the witness gets before the next.
    async fn publish(&mut self, frames: usize) {
        for _ in 0..frames {
            let events: Vec<_> = (self.sent..self.sent + FRAME).map(wide).collect();
            self.sent += FRAME;
            self.stack.publish(&events);
            self.witness.expect_objects(&events).await;
        }
    }

    async fn closed_as_slow(&self) -> f64 {
        let label = r#"reason="slow_consumer""#;
        let name = "filtered_sessions_closed_total";
        self.stack.filtered[0].metric_with(name, label).await.unwrap_or_default()
    }

    /// Where the feed stands.
    async fn position(&self) -> String {
        self.stack.filtered[0].health_text("/history/to").await
    }

    /// A client with a small buffer that comes back to this position. Reads up to `resumed`.
    async fn back(&self, from: &str) -> TestClient {
        let mut back = TestClient::connect_narrow(self.stack.addr(), 64 * 1024).await;
        back.log_in(CLIENT_KEY).await;
        back.send_raw(&coming_back("T.*", from)).await;
        back.expect(&acks("subscribed", "T.*")).await;
        assert_eq!(status(&back.next_object().await).expect("a status")["status"], "resumed");
        back
    }
}

fn status(object: &str) -> Option<Value> {
    let object: Value = serde_json::from_str(object).expect("an object");
    (object["ev"] == "status").then_some(object)
}

/// Reads up to the event of this number.
async fn read_to(client: &mut TestClient, last: usize) -> (Vec<usize>, Vec<Value>) {
    let (mut events, mut notices) = (Vec::new(), Vec::new());
    within(2 * SOON, "the last event", async {
        while events.last() != Some(&last) {
            let object = client.next_object().await;
            match status(&object) {
                Some(notice) => notices.push(notice),
                None => events.push(number(&object).expect("a trade")),
            }
        }
    })
    .await;
    (events, notices)
}

#[tokio::test]
async fn a_named_session_closed_as_slow_gets_what_it_missed_when_it_comes_back() {
    let mut loaded = Loaded::start(&[("CLIENT_QUEUE_BYTES", "1000000")]).await;
    let path = "/session/slow/stocks";
    // The relay's buffers are small.
    let relay = Relay::start(loaded.stack.addr()).await;
    let mut slow = TestClient::connect_to(relay.addr(), path).await;
    slow.log_in(CLIENT_KEY).await;
    slow.subscribe("T.*").await;
    loaded.publish(2).await;
    read_to(&mut slow, loaded.sent - 1).await;
    let had = loaded.sent;
    relay.inject(Fault::Throttle(1_000));
    // What comes while it is being closed must still fit the history.
    let label = r#"reason="slow_consumer""#;
    let lost = async |proxy: &Program| {
        proxy.metric_with("filtered_events_lost_total", label).await.unwrap_or_default()
    };
    while lost(&loaded.stack.filtered[0]).await == 0.0 {
        assert!(loaded.sent < 30_000, "it is not too slow");
        loaded.publish(5).await;
    }
    eventually(SOON, "it is closed", async || loaded.closed_as_slow().await == 1.0).await;
    loaded.publish(2).await;
    drop(slow);
    let mut back = loaded.stack.subscriber_at(path, "T.*").await;
    let (events, notices) = read_to(&mut back, loaded.sent - 1).await;
    assert_eq!(notices[0]["status"], "resumed", "{notices:?}");
    assert!(notices.iter().all(|notice| notice["status"] != "gap"), "{notices:?}");
    assert!(events[0] <= had, "it had {had} events and goes on with {}", events[0]);
    assert_eq!(events, (events[0]..loaded.sent).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_replay_that_is_read_slowly_keeps_nobody_waiting_and_is_not_closed() {
    let mut loaded = Loaded::start(&[("CLIENT_QUEUE_BYTES", "1000000")]).await;
    let from = loaded.position().await;
    loaded.publish(60).await;
    let mut back = loaded.back(&from).await;
    let (mut events, until) = (Vec::new(), Instant::now() + Duration::from_secs(4));
    while Instant::now() < until {
        // About 100 KB/s. The witness gets what is published meanwhile.
        for _ in 0..5 {
            let object = back.next_object().await;
            // Notices of the beginning stand in the history too.
            if status(&object).is_none_or(|notice| notice["tier"] != "firehose") {
                events.push(number(&object).expect("nothing but the replay"));
            }
        }
        loaded.publish(1).await;
        sleep(Duration::from_millis(80)).await;
    }
    assert!(events.len() < 60 * FRAME, "the replay goes on");
    assert_eq!(loaded.closed_as_slow().await, 0.0);
    let (rest, notices) = read_to(&mut back, loaded.sent - 1).await;
    events.extend(rest);
    assert_eq!(events, (0..loaded.sent).collect::<Vec<_>>());
    let names: Vec<_> = notices.iter().map(|notice| &notice["status"]).collect();
    assert!(names.iter().all(|name| *name == "live"), "{notices:?}");
    assert_eq!(loaded.closed_as_slow().await, 0.0);
}

#[tokio::test]
async fn a_replay_that_the_feed_overtakes_says_how_many_frames_are_lost() {
    let mut loaded =
        Loaded::start(&[("HISTORY_BYTES", "6000000"), ("CLIENT_QUEUE_BYTES", "1000000")]).await;
    let from = loaded.position().await;
    loaded.publish(25).await;
    let mut back = loaded.back(&from).await;
    // It reads nothing while the history goes on.
    loaded.publish(60).await;
    let (events, notices) = read_to(&mut back, loaded.sent - 1).await;
    let gaps: Vec<_> = notices.iter().filter(|notice| notice["status"] == "gap").collect();
    assert_eq!(gaps.len(), 1, "{notices:?}");
    assert_eq!(gaps[0]["reason"], "overtaken", "{}", gaps[0]);
    let lost = gaps[0]["frames"].as_u64().expect("a count") as usize * FRAME;
    let first_lost = (0..).find(|n| events.get(*n) != Some(n)).expect("some are lost");
    let expected = (0..first_lost).chain(first_lost + lost..loaded.sent);
    assert_eq!(events, expected.collect::<Vec<_>>(), "{}", gaps[0]);
    eventually(SOON, "live data follows", async || {
        status(&back.next_object().await).is_some_and(|notice| notice["status"] == "live")
    })
    .await;
}

#[tokio::test]
async fn a_client_that_reads_slowly_what_a_lost_link_missed_is_not_closed_and_gets_it_all() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).start().await;
    let relay = Relay::start(firehose.addr()).await;
    let filtered = stack::filtered(relay.addr()).env("CLIENT_QUEUE_BYTES", 1_000_000).start().await;
    is_up(&filtered).await;
    is_complete(&filtered).await;
    let mut slow = TestClient::connect_narrow(filtered.addr(), 64 * 1024).await;
    slow.log_in(CLIENT_KEY).await;
    slow.subscribe("T.AAPL").await;
    let mut quick = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    quick.subscribe("T.MSFT").await;
    stack::cut(&relay, &filtered).await;
    // Begins only behind what was missed.
    slow.command("subscribe", "Q.AAPL").await;
    let (frames, mut sent) = (100, 0);
    let mut publish = |frame| {
        let wides = (sent..sent + FRAME).map(wide);
        sent += FRAME;
        let others = [trade("MSFT", frame), quote("AAPL", frame)];
        let events: Vec<_> = wides.chain(others).collect();
        sim.handle.publish(&events);
    };
    let acknowledged = async || {
        let held = filtered.metric("filtered_subscriptions").await;
        held == Some(3.0)
    };
    eventually(SOON, "the quotes are subscribed", acknowledged).await;
    (0..frames).for_each(&mut publish);
    eventually(SOON, "the firehose has all", async || {
        let all = (frames * (FRAME + 2)) as f64;
        firehose.metric("firehose_events_in_total").await == Some(all)
    })
    .await;
    relay.heal();
    in_state(&filtered, "up").await;
    // It gets all of 20 MB before the slow one has read a byte of it.
    let (others, notices) = read_to(&mut quick, frames - 1).await;
    assert_eq!(others, (0..frames).collect::<Vec<_>>());
    assert!(notices.iter().all(|notice| notice["status"] != "live"), "{notices:?}");
    publish(frames);
    let (others, _) = read_to(&mut quick, frames).await;
    assert_eq!(others, [frames]);
    let (mut events, mut notices) = read_to(&mut slow, sent - 1).await;
    assert_eq!(events, (0..sent).collect::<Vec<_>>());
    (events, _) = read_to(&mut slow, frames).await;
    assert_eq!(events, [frames], "of the quotes the first one that is no older");
    notices.retain(|notice| notice["status"] != "success" && notice["status"] != "upstream_down");
    let names: Vec<_> = notices.iter().map(|notice| &notice["status"]).collect();
    assert_eq!(names, ["gap", "upstream_up"], "{notices:?}");
    assert_eq!(notices[0]["reason"], "subscribed_in_outage", "{notices:?}");
    assert_eq!(notices[1]["missed"], 0, "{notices:?}");
    // It was set aside, and is back.
    eventually(SOON, "live data follows", async || {
        status(&slow.next_object().await).is_some_and(|notice| notice["status"] == "live")
    })
    .await;
    sim.handle.publish(&[wide(sent)]);
    assert_eq!(number(&slow.next_object().await), Some(sent));
    let closed = filtered.metric_with("filtered_sessions_closed_total", "slow_consumer").await;
    assert_eq!(closed.unwrap_or_default(), 0.0);
}
