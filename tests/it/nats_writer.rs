//! The firehose on NATS: what its stream holds is what came, once and in order, whatever happens to
//! NATS.

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream::{
    self,
    stream::{Config, StorageType},
};
use serde_json::Value;
use tests::{
    nats::{
        NatsServer,
        stream::{DATA, EXPECTED, Head, STATE, STREAM, Stored, messages, publish},
    },
    program::{Launch, Program, Signal},
    stack::{FIREHOSE_KEY, Sim, firehose, is_answered, is_up},
    wait::{SOON, eventually, holds_for},
    ws_client::TestClient,
};
use tokio::time::sleep;

use crate::events::trade;

/// A market and a firehose that writes its feed to NATS. The client's demand makes it carry all.
struct Feed {
    sim: Sim,
    firehose: Program,
    _demand: TestClient,
    /// The frames published.
    sent: Vec<String>,
}

fn on_nats(sim: &Sim, nats: &NatsServer) -> Launch {
    firehose(&sim.url("stocks")).env("NATS_URL", nats.url())
}

impl Feed {
    async fn start(nats: &NatsServer) -> Self {
        let sim = Sim::start().await;
        let launch = on_nats(&sim, nats);
        Self::with(sim, launch).await
    }

    async fn with(sim: Sim, launch: Launch) -> Self {
        let firehose = launch.start().await;
        let demand = wants_all(&firehose).await;
        Self { sim, firehose, _demand: demand, sent: Vec::new() }
    }

    /// Publishes this many frames, the first of one event and each next of one more, up to five.
    fn publish(&mut self, frames: usize) {
        for _ in 0..frames {
            let n = self.sent.len();
            let events: Vec<String> = (0..=n % 5).map(|k| trade("AAPL", 10 * n + k)).collect();
            self.sim.handle.publish(&events);
            self.sent.push(format!("[{}]", events.join(",")));
        }
    }

    /// Waits until the firehose has all that was published and NATS has acknowledged it.
    async fn is_stored(&self) {
        let sent = self.sent.len() as f64;
        eventually(SOON, "the whole feed in NATS", async || {
            self.firehose.metric("firehose_frames_in_total").await >= Some(sent)
                && self.firehose.metric("firehose_nats_lag_frames").await == Some(0.0)
                && self.firehose.metric("firehose_nats_unacknowledged").await == Some(0.0)
                && self.firehose.metric("firehose_nats_up").await == Some(1.0)
        })
        .await;
    }

    /// The stream holds what was published, and nothing else.
    async fn check(&self, nats: &NatsServer) -> Checked {
        self.is_stored().await;
        let stored = messages(&nats.client().await, STREAM).await;
        let checked = check(&stored);
        assert_eq!(checked.frames, self.sent);
        checked
    }
}

async fn wants_all(firehose: &Program) -> TestClient {
    is_up(firehose).await;
    let mut demand = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
    demand.command("subscribe", "*").await;
    is_answered(firehose).await;
    demand
}

/// What the messages of a stream say.
#[derive(Debug, Default)]
struct Checked {
    /// The frames of events that count: those of no lower epoch than any before.
    frames: Vec<String>,
    /// The notices among them.
    notices: Vec<Value>,
    /// The epochs, in order.
    epochs: Vec<u64>,
    /// Events that the heads count as left out.
    lost: u64,
    /// Messages with states.
    states: usize,
}

/// Follows the messages of a stream as a reader would that knows their format alone.
fn check(stored: &[Stored]) -> Checked {
    let mut checked = Checked::default();
    let mut next = Head::default();
    for message in stored {
        let head = message.head();
        let texts = message.texts();
        let expected = message.headers.get(EXPECTED).map(|seq| seq.as_str().to_owned());
        if let Some(expected) = expected {
            assert_eq!(expected, (message.sequence - 1).to_string(), "{message:?}");
        } else {
            assert!(message.is_state(), "only the opening has no expectation: {message:?}");
        }
        assert!(head.epoch >= next.epoch, "an earlier epoch writes: {message:?}");
        if head.epoch > next.epoch {
            assert!(message.is_state() && message.headers.get(EXPECTED).is_none(), "{message:?}");
            checked.epochs.push(head.epoch);
            next = Head { epoch: head.epoch, ..Head::default() };
        }
        assert!(texts.iter().map(String::len).sum::<usize>() <= 65_536 || texts.len() == 1);
        let lost = head.lost - next.lost;
        if lost > 0 {
            // Counted in the head of the message that says so.
            let gap: Value = serde_json::from_str(&texts[0]).expect("a notice");
            assert_eq!(gap[0]["reason"], "overtaken", "{gap}");
            assert_eq!(gap[0]["events"], lost, "{gap}");
            assert_eq!(gap[0]["frames"], head.seq - next.seq, "{gap}");
            (next.seq, next.lost) = (head.seq, head.lost);
            checked.lost += lost;
        }
        assert_eq!((head.seq, head.events), (next.seq, next.events), "{message:?} after {next:?}");
        if message.is_state() {
            checked.states += 1;
            assert!(texts[0].starts_with(r#"[{"ev":"status","status":"carried","#), "{texts:?}");
            assert!(message.headers.get("H").is_some());
            continue;
        }
        for text in texts {
            let objects: Vec<Value> = serde_json::from_str(&text).expect("an array");
            if objects[0]["ev"] == "status" {
                checked.notices.extend(objects);
            } else {
                next.seq += 1;
                next.events += objects.len() as u64;
                checked.frames.push(text);
            }
        }
    }
    checked
}

/// Waits until `/health` shows a problem that holds this text, and returns it.
async fn problem(firehose: &Program, text: &str) -> String {
    let mut found = String::new();
    eventually(SOON, text, async || {
        let health = firehose.health().await;
        let problems = health["problems"].as_array().expect("a list").iter();
        let mut problems = problems.filter_map(Value::as_str).map(str::to_owned);
        problems.find(|problem| problem.contains(text)).is_some_and(|problem| {
            found = problem;
            true
        })
    })
    .await;
    found
}

async fn has_no_problem(firehose: &Program) {
    eventually(SOON, "no problem", async || firehose.health_text("/status").await == "ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_stored_once_in_order_as_it_came() {
    let nats = NatsServer::start().await;
    let mut feed = Feed::start(&nats).await;
    for burst in [1, 1, 500, 3_000, 1] {
        feed.publish(burst);
        feed.is_stored().await;
    }
    let long = trade("AAPL", 7).replace(r#""i":"7""#, &format!(r#""i":"{}""#, "7".repeat(300_000)));
    feed.sim.handle.publish(&[long.clone(), long.clone()]);
    feed.sent.push(format!("[{long},{long}]"));
    let checked = feed.check(&nats).await;
    assert_eq!(checked.epochs.len(), 1);
    let state = checked.states;
    let stored = async || messages(&nats.client().await, STREAM).await;
    eventually(SOON, "a state each second", async || check(&stored().await).states > state + 2)
        .await;
    assert!(checked.lost == 0);
    has_no_problem(&feed.firehose).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coverage_and_an_outage_are_states_in_order_with_the_data() {
    let nats = NatsServer::start().await;
    let mut feed = Feed::start(&nats).await;
    feed.publish(3);
    feed.is_stored().await;
    feed.sim.handle.inject(polygon_sim::Fault::RefuseTcp { on: true });
    feed.sim.handle.inject(polygon_sim::Fault::Abort);
    let client = nats.client().await;
    let last_state = async || {
        let stored = messages(&client, STREAM).await;
        stored.into_iter().rev().find(Stored::is_state).expect("a state").texts()
    };
    eventually(SOON, "a state in the outage", async || {
        last_state().await.get(1).is_some_and(|text| text.contains(r#""status":"upstream_down""#))
    })
    .await;
    feed.sim.handle.inject(polygon_sim::Fault::RefuseTcp { on: false });
    eventually(SOON, "a state after it", async || last_state().await.len() == 1).await;
    feed.publish(3);
    let checked = feed.check(&nats).await;
    let named: Vec<&str> =
        checked.notices.iter().filter_map(|notice| notice["status"].as_str()).collect();
    let end = named.iter().rposition(|status| *status == "upstream_up").expect("an end");
    assert_eq!(named[end - 1..], ["upstream_down", "upstream_up"], "{named:?}");
    assert!(last_state().await[0].contains("T.*"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_comes_back_with_its_store_misses_nothing() {
    let mut nats = NatsServer::start().await;
    let mut feed = Feed::start(&nats).await;
    for _ in 0..3 {
        feed.publish(300);
        nats.kill();
        feed.publish(300);
        problem(&feed.firehose, "NATS does not take the feed: ").await;
        nats.restart().await;
        feed.publish(300);
        feed.check(&nats).await;
    }
    has_no_problem(&feed.firehose).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_misses_nothing() {
    let nats = NatsServer::start().await;
    let mut feed = Feed::start(&nats).await;
    feed.publish(300);
    feed.is_stored().await;
    for seconds in [1, 3, 8] {
        nats.stop();
        for _ in 0..seconds * 10 {
            feed.publish(50);
            sleep(Duration::from_millis(100)).await;
        }
        nats.cont();
        feed.check(&nats).await;
    }
    has_no_problem(&feed.firehose).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_history_drops_before_nats_is_back_is_a_gap_with_exact_counts() {
    let mut nats = NatsServer::start().await;
    let sim = Sim::start().await;
    let launch = on_nats(&sim, &nats).env("HISTORY_BYTES", 1 << 20);
    let mut feed = Feed::with(sim, launch).await;
    feed.publish(100);
    feed.is_stored().await;
    nats.kill();
    feed.publish(10_000);
    let received = async || feed.firehose.metric("firehose_frames_in_total").await;
    eventually(SOON, "the frames", async || received().await >= Some(10_100.0)).await;
    nats.restart().await;
    feed.publish(10);
    feed.is_stored().await;
    let checked = check(&messages(&nats.client().await, STREAM).await);
    let events = |frames: &[String]| {
        frames.iter().map(|frame| frame.matches(r#""ev""#).count() as u64).sum::<u64>()
    };
    let kept = checked.frames.len() - 100;
    assert!(checked.lost > 0 && kept > 10, "{} lost, {kept} kept", checked.lost);
    assert_eq!(checked.frames[..100], feed.sent[..100]);
    assert_eq!(checked.frames[100..], feed.sent[feed.sent.len() - kept..]);
    assert_eq!(checked.lost, events(&feed.sent) - events(&checked.frames));
    let lost = feed.firehose.metric("firehose_nats_lost_events_total").await;
    assert_eq!(lost, Some(checked.lost as f64));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_firehoses_the_older_writes_no_more_and_says_so() {
    let nats = NatsServer::start().await;
    let mut older = Feed::start(&nats).await;
    older.publish(100);
    older.is_stored().await;
    let mut newer = Feed::start(&nats).await;
    let text = problem(&older.firehose, "another firehose").await;
    assert!(text.contains("LEASE"), "{text}");
    assert_eq!(older.firehose.metric("firehose_nats_fenced").await, Some(1.0));
    older.publish(100);
    newer.publish(100);
    newer.is_stored().await;
    let checked = check(&messages(&nats.client().await, STREAM).await);
    assert_eq!(checked.epochs.len(), 2);
    assert_eq!(checked.frames, [&older.sent[..100], &newer.sent].concat());
    holds_for(Duration::from_secs(2), "fenced for good", async || {
        older.firehose.metric("firehose_nats_up").await == Some(0.0)
            && newer.firehose.metric("firehose_nats_up").await == Some(1.0)
    })
    .await;
    has_no_problem(&newer.firehose).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_gone_is_made_again_with_all_that_the_history_holds() {
    let mut nats = NatsServer::start().await;
    let sim = Sim::start().await;
    let launch = on_nats(&sim, &nats).env("NATS_STORAGE", "memory").env("NATS_MAX_AGE", "30min");
    let mut feed = Feed::with(sim, launch).await;
    feed.publish(1_000);
    feed.check(&nats).await;
    nats.restart().await;
    let context = jetstream::new(nats.client().await);
    feed.publish(10);
    // The whole epoch, for readers that stand anywhere in it.
    feed.check(&nats).await;
    let config = context.get_stream(STREAM).await.expect("a stream").cached_info().config.clone();
    assert_eq!((config.storage, config.max_age), (StorageType::Memory, Duration::from_secs(1_800)));
    context.delete_stream(STREAM).await.expect("remove a stream");
    feed.publish(10);
    eventually(SOON, "a stream", async || context.get_stream(STREAM).await.is_ok()).await;
    feed.check(&nats).await;
    has_no_problem(&feed.firehose).await;
}

/// Why a firehose opens its epoch with more than one message.
#[tokio::test(flavor = "multi_thread")]
async fn behind_one_message_of_another_the_rest_of_a_window_fits_again() {
    let nats = NatsServer::start().await;
    let client = nats.client().await;
    let config = Config {
        name: STREAM.to_owned(),
        subjects: vec![STATE.to_owned(), DATA.to_owned()],
        ..Config::default()
    };
    jetstream::new(client.clone()).create_stream(config).await.expect("make a stream");
    publish(&client, DATA, None, None, "0").await.expect("stored at 1");
    publish(&client, STATE, None, None, "of another").await.expect("stored at 2");
    // A window that was under way meanwhile.
    publish(&client, DATA, None, Some(1), "1").await.expect_err("refused");
    let third = publish(&client, DATA, None, Some(2), "2").await;
    assert_eq!(third, Ok(3), "the second of the window is stored without the first");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_others_do_not_disturb_the_feed() {
    let nats = NatsServer::start().await;
    let mut feed = Feed::start(&nats).await;
    let client = nats.client().await;
    feed.publish(100);
    feed.is_stored().await;
    for (subject, head) in [(DATA, None), (STATE, None), (STATE, Some("5-0 0 0 0"))] {
        let seq = publish(&client, subject, head, None, "other").await.expect("stored");
        // Its next message is refused. In the middle of a burst only the heads would say what the
        // burst lacks.
        eventually(SOON, "a message behind it", async || {
            messages(&client, STREAM).await.last().expect("a message").sequence > seq
        })
        .await;
        feed.publish(100);
        feed.is_stored().await;
    }
    let mut stored = messages(&client, STREAM).await;
    stored.retain(|message| message.payload != "other");
    assert_eq!(check(&stored).frames, feed.sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_other_settings_is_left_alone_and_reported() {
    let nats = NatsServer::start().await;
    let context = jetstream::new(nats.client().await);
    let config = Config {
        name: STREAM.to_owned(),
        subjects: vec![STATE.to_owned(), DATA.to_owned()],
        max_bytes: 1 << 20,
        max_age: Duration::from_secs(60),
        ..Config::default()
    };
    context.create_stream(config.clone()).await.expect("make a stream");
    let mut feed = Feed::start(&nats).await;
    let text = problem(&feed.firehose, "NATS_MAX_BYTES").await;
    assert_eq!(
        text,
        "stream POLYGON_STOCKS in NATS has 1048576 bytes where NATS_MAX_BYTES says 8589934592 \
         bytes: it is left as it is"
    );
    problem(&feed.firehose, "has 1m where NATS_MAX_AGE says 1h").await;
    feed.publish(10);
    feed.check(&nats).await;
    let found = context.get_stream(STREAM).await.expect("a stream").cached_info().config.clone();
    assert_eq!((found.max_bytes, found.max_age), (config.max_bytes, config.max_age));
    assert_eq!(
        feed.firehose.log_count(
            "stream POLYGON_STOCKS in NATS has 1m where NATS_MAX_AGE says 1h: it is left as it is"
        ),
        1
    );

    let other = vec!["polygon.stocks.*".to_owned()];
    let changed = Config { subjects: other, ..found };
    context.update_stream(changed).await.expect("change a stream");
    feed.firehose.stop().await;
    let firehose = on_nats(&feed.sim, &nats).start().await;
    problem(
        &firehose,
        "NATS does not take the feed: stream POLYGON_STOCKS holds polygon.stocks.* instead of \
         polygon.stocks.data, polygon.stocks.state",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_us_is_named_in_one_line() {
    let users = "authorization { users: [\
        {user: feed, password: right-password}, \
        {user: poor, password: poor-password, permissions: {publish: [\"x\"]}}] }";
    let nats = NatsServer::with(users).await;
    let sim = Sim::start().await;
    let launch = |creds: &str| on_nats(&sim, &nats).file("creds", creds).env("NATS_CREDS", "creds");
    let wrong = launch("feed:wrong-password\n").start().await;
    let text = problem(&wrong, "NATS does not take the feed").await;
    assert!(text.ends_with("refuses us: check NATS_CREDS"), "{text}");
    assert!(!wrong.log_text().contains("wrong-password"));
    let poor = launch("poor:poor-password").start().await;
    problem(&poor, "NATS does not take the feed: our user has not the rights of a firehose").await;
    let right = launch("feed:right-password").start().await;
    eventually(SOON, "the feed", async || right.metric("firehose_nats_up").await == Some(1.0))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_carry_the_feed_is_named_in_one_line() {
    for (config, text) in [
        ("max_payload: 500000", "takes 500000 bytes a message: set its max_payload"),
        ("# no jetstream", "it has no JetStream"),
        (
            "jetstream { store_dir: \"$STORE\", max_file: 1M, max_mem: 1M }",
            "stream POLYGON_STOCKS: it has no room",
        ),
    ] {
        let nats = NatsServer::with(config).await;
        let sim = Sim::start().await;
        let firehose = on_nats(&sim, &nats).start().await;
        let found = problem(&firehose, text).await;
        assert!(found.starts_with("NATS does not take the feed: "), "{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firehose_that_starts_again_goes_on_in_the_stream_with_a_new_epoch() {
    let nats = NatsServer::start().await;
    let mut feed = Feed::start(&nats).await;
    feed.publish(500);
    feed.is_stored().await;
    let Feed { sim, mut firehose, mut sent, .. } = feed;
    // NATS is busy while the firehose stops.
    nats.stop();
    sim.handle.publish(&[trade("LAST", 1)]);
    sent.push(format!("[{}]", trade("LAST", 1)));
    let received = async || firehose.metric("firehose_frames_in_total").await;
    eventually(SOON, "the last frame", async || received().await >= Some(501.0)).await;
    firehose.signal(Signal::SIGTERM);
    sleep(Duration::from_millis(100)).await;
    nats.cont();
    assert!(firehose.wait_exit(SOON).await.success());
    let stored = messages(&nats.client().await, STREAM).await;
    assert_eq!(check(&stored).frames, sent);
    assert!(stored.last().is_some_and(Stored::is_state), "the last state is the end");
    let launch = on_nats(&sim, &nats);
    let mut next = Feed::with(sim, launch).await;
    next.publish(5);
    next.is_stored().await;
    let checked = check(&messages(&nats.client().await, STREAM).await);
    assert_eq!(checked.epochs.len(), 2);
    assert_eq!(checked.frames, [sent, next.sent].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_nats_that_contradict_others_are_refused_in_one_line() {
    let refusals = BTreeMap::from([
        (("HISTORY_BYTES", "0"), "HISTORY_BYTES: invalid value \"0\": expected at least 1048576"),
        (("NATS_URL", "http://a"), "NATS_URL: invalid value"),
        (("NATS_URL", "nats://u:secret@a"), "NATS_URL: invalid value"),
        (("NATS_REPLICAS", "6"), "NATS_REPLICAS: invalid value"),
        (("NATS_STORAGE", "disk"), "NATS_STORAGE: invalid value"),
        (("NATS_STREAM", "a.b"), "NATS_STREAM: invalid value"),
        (("NATS_CREDS", "missing"), "NATS_CREDS"),
    ]);
    for ((variable, value), text) in refusals {
        let launch = firehose("ws://127.0.0.1:1").env("NATS_URL", "nats://127.0.0.1:1");
        let finished = launch.env(variable, value).run(SOON).await;
        assert!(finished.stderr.starts_with(text), "{variable}={value}: {}", finished.stderr);
        assert_eq!(finished.stderr.trim_end().lines().count(), 1, "{}", finished.stderr);
        assert!(!finished.stderr.contains("secret"), "{}", finished.stderr);
    }
}
