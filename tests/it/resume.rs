//! Coming back: links and clients go on from where they stood.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use tests::{
    program::{Program, Signal},
    relay::{Fault, Relay},
    stack::{
        self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Sim, Stack, StackConfig, in_state, is_up,
    },
    wait::{SOON, eventually, within},
    ws_client::{TestClient, acks, coming_back},
};

use crate::events::{number, quote, trade};

/// A filtered proxy behind a relay, so that its link alone can be cut.
struct Cuttable {
    filtered: Program,
    relay: Relay,
    firehose: Program,
    sim: Sim,
}

impl Cuttable {
    async fn start(firehose_env: &[(&'static str, &str)]) -> Self {
        let sim = Sim::start().await;
        let owned = firehose_env.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let firehose = stack::firehose(&sim.url("stocks")).envs(owned).start().await;
        // Once the vendor serves all, the filtered proxy begins without an outage.
        let mut first = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
        first.command("subscribe", "*").await;
        stack::is_answered(&firehose).await;
        let relay = Relay::start(firehose.addr()).await;
        let filtered = stack::filtered(relay.addr()).start().await;
        let cuttable = Self { filtered, relay, firehose, sim };
        is_up(&cuttable.filtered).await;
        stack::is_complete(&cuttable.filtered).await;
        drop(first);
        cuttable
    }

    async fn client(&self, path: &str) -> TestClient {
        let mut client = TestClient::connect_to(self.filtered.addr(), path).await;
        client.log_in(CLIENT_KEY).await;
        client
    }

    fn publish(&self, events: &[String]) {
        self.sim.handle.publish(events);
    }

    /// Cuts the link, and waits until the filtered proxy has noticed.
    async fn cut(&self) {
        stack::cut(&self.relay, &self.filtered).await;
    }

    /// Waits until the firehose has received so many events.
    async fn has_events(&self, events: f64) {
        eventually(SOON, "the firehose has the events", async || {
            self.firehose.metric("firehose_events_in_total").await == Some(events)
        })
        .await;
    }

    async fn heal(&self) {
        self.relay.heal();
        in_state(&self.filtered, "up").await;
    }
}

fn trades(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|n| trade("AAPL", n)).collect()
}

/// The next notice, as JSON.
async fn status(client: &mut TestClient) -> Value {
    let text = client.next_text().await;
    let mut frame: Vec<Value> = serde_json::from_str(&text).expect("a frame");
    assert_eq!(frame.len(), 1, "{text}");
    assert_eq!(frame[0]["ev"], "status", "{text}");
    frame.remove(0)
}

/// Waits for this notice. No event may come before it.
async fn expect(client: &mut TestClient, name: &str) -> Value {
    let mut notice = status(client).await;
    // The cause of an outage may change, and the history holds the outage of the first moments.
    while (notice["status"] == "upstream_down" && name != "upstream_down")
        || (notice["reason"] == "subscribing" && notice["status"] == "upstream_up")
    {
        notice = status(client).await;
    }
    assert_eq!(notice["status"], name, "{notice}");
    notice
}

/// Sends a subscription with more than params.
async fn subscribe(client: &mut TestClient, params: &str, rest: &str) {
    client.send_raw(&format!(r#"{{"action":"subscribe","params":"{params}",{rest}}}"#)).await;
    client.expect(&acks("subscribed", params)).await;
}

/// The same position of an epoch that no firehose had.
fn of_another_epoch(position: &str) -> String {
    format!("1-{}", position.split('-').next_back().expect("a sequence"))
}

/// Publishes these frames, waits until the filtered proxy has routed their trades of AAPL, the
/// first `count`, and returns where they begin.
async fn history_of(stack: &Stack, frames: &[Vec<String>], count: usize) -> String {
    let mut witness = stack.subscriber("T.AAPL").await;
    let from = stack.filtered[0].health_text("/history/to").await;
    frames.iter().for_each(|events| stack.publish(events));
    witness.expect_objects(&trades(0..count)).await;
    from
}

/// Reads until a status with this name.
async fn read_until_status(client: &mut TestClient, name: &str) {
    while status(client).await["status"] != name {}
}

/// Reads objects until this event; notices apart.
pub(crate) async fn read_until(client: &mut TestClient, last: &str) -> (Vec<String>, Vec<Value>) {
    let (mut events, mut notices) = (Vec::new(), Vec::new());
    within(SOON, "the last event", async {
        loop {
            let object = client.next_object().await;
            if object.contains(r#""ev":"status""#) {
                notices.push(serde_json::from_str(&object).expect("a status"));
                continue;
            }
            let done = object == last;
            events.push(object);
            if done {
                return;
            }
        }
    })
    .await;
    (events, notices)
}

/// The notice of the end of an outage: the last of these, or the next.
async fn up(client: &mut TestClient, mut notices: Vec<Value>) -> Value {
    while notices.last().is_none_or(|notice| notice["status"] != "upstream_up") {
        notices.push(status(client).await);
    }
    notices.pop().expect("a notice")
}

fn names(notices: &[Value]) -> Vec<&str> {
    notices.iter().map(|notice| notice["status"].as_str().expect("a status")).collect()
}

#[tokio::test]
async fn a_link_that_was_cut_misses_nothing() {
    let chain = Cuttable::start(&[]).await;
    let mut client = chain.client("/").await;
    client.subscribe("T.AAPL").await;
    chain.publish(&trades(0..3));
    client.expect_objects(&trades(0..3)).await;
    chain.cut().await;
    expect(&mut client, "upstream_down").await;
    for n in 3..40 {
        chain.publish(&trades(n..n + 1));
    }
    chain.has_events(40.0).await;
    chain.heal().await;
    chain.publish(&trades(40..41));
    let (events, notices) = read_until(&mut client, &trade("AAPL", 40)).await;
    assert_eq!(events, trades(3..41));
    let up = up(&mut client, notices).await;
    assert_eq!((&up["status"], &up["missed"]), (&"upstream_up".into(), &0.into()), "{up}");
    let position = |pointer| chain.filtered.health_text(pointer);
    let firehoses = chain.firehose.health_text("/history/to").await;
    assert_eq!(position("/history/to").await, firehoses);
}

#[tokio::test]
async fn what_the_firehose_has_no_more_is_counted() {
    let chain = Cuttable::start(&[("HISTORY_BYTES", "2000")]).await;
    let mut client = chain.client("/").await;
    client.subscribe("T.AAPL").await;
    chain.publish(&trades(0..1));
    client.expect_objects(&trades(0..1)).await;
    chain.cut().await;
    expect(&mut client, "upstream_down").await;
    for n in 1..100 {
        chain.publish(&trades(n..n + 1));
    }
    chain.has_events(100.0).await;
    chain.heal().await;
    let gap = expect(&mut client, "gap").await;
    let (events, notices) = read_until(&mut client, &trade("AAPL", 99)).await;
    let lost = gap["frames"].as_u64().expect("a count") as usize;
    assert_eq!(gap["reason"], "too_old", "{gap}");
    assert_eq!(events, trades(1 + lost..100), "{gap}");
    assert!(events.len() < 20 && !events.is_empty(), "{gap}");
    let up = up(&mut client, notices).await;
    assert!(up["missed"].is_null(), "{up}");
}

#[tokio::test]
async fn whoever_subscribes_while_the_link_is_cut_gets_nothing_older() {
    let chain = Cuttable::start(&[]).await;
    let mut before = chain.client("/").await;
    before.subscribe("T.AAPL").await;
    chain.publish(&trades(0..1));
    before.expect_objects(&trades(0..1)).await;
    chain.cut().await;
    expect(&mut before, "upstream_down").await;
    chain.publish(&trades(1..3));
    chain.has_events(3.0).await;
    let mut late = chain.client("/").await;
    late.subscribe("T.AAPL").await;
    expect(&mut late, "upstream_down").await;
    before.subscribe("Q.AAPL").await;
    expect(&mut before, "upstream_down").await;
    chain.publish(&[quote("AAPL", 7)]);
    chain.has_events(4.0).await;
    chain.heal().await;
    let (events, _) = read_until(&mut before, &trade("AAPL", 2)).await;
    assert_eq!(events, trades(1..3));
    for client in [&mut before, &mut late] {
        let gap = expect(client, "gap").await;
        assert_eq!(gap["reason"], "subscribed_in_outage", "{gap}");
        let up = expect(client, "upstream_up").await;
        assert_eq!(up["missed"], 0, "{up}");
    }
    chain.publish(&[trade("AAPL", 3), quote("AAPL", 8)]);
    late.expect_objects(&trades(3..4)).await;
    before.expect_objects(&[trade("AAPL", 3), quote("AAPL", 8)]).await;
}

#[tokio::test]
async fn what_is_subscribed_while_the_link_is_cut_stays_so_if_other_items_come_back() {
    let chain = Cuttable::start(&[]).await;
    let mut witness = chain.client("/").await;
    witness.subscribe("T.AAPL").await;
    let from = chain.filtered.health_text("/history/to").await;
    chain.publish(&[trade("AAPL", 0), quote("AAPL", 0)]);
    witness.expect_objects(&trades(0..1)).await;
    chain.cut().await;
    let mut client = chain.client("/").await;
    client.subscribe("Q.AAPL").await;
    expect(&mut client, "upstream_down").await;
    subscribe(&mut client, "T.AAPL", &format!(r#""from":"{from}""#)).await;
    let (events, notices) = read_until(&mut client, &trade("AAPL", 0)).await;
    assert_eq!(events, trades(0..1));
    assert_eq!(names(&notices).last(), Some(&"resumed"), "{notices:?}");
    chain.publish(&[quote("AAPL", 1), trade("AAPL", 1), quote("AAPL", 2)]);
    chain.has_events(5.0).await;
    chain.heal().await;
    let (events, mut notices) = read_until(&mut client, &trade("AAPL", 1)).await;
    assert_eq!(events, trades(1..2));
    while notices.last().is_none_or(|notice| notice["status"] != "upstream_up") {
        notices.push(status(&mut client).await);
    }
    let gaps: Vec<_> = notices.iter().filter(|notice| notice["status"] == "gap").collect();
    assert_eq!(gaps.len(), 1, "{notices:?}");
    assert_eq!(gaps[0]["reason"], "subscribed_in_outage", "{notices:?}");
    chain.publish(&[quote("AAPL", 3), trade("AAPL", 2)]);
    client.expect_objects(&[quote("AAPL", 3), trade("AAPL", 2)]).await;
}

#[tokio::test]
async fn what_is_subscribed_during_a_replay_begins_where_the_replay_stands() {
    let stack = stack_of(1).await;
    let frame = |n| vec![trade("AAPL", n), quote("AAPL", n), trade("MSFT", n)];
    let from = history_of(&stack, &(0..50).map(frame).collect::<Vec<_>>(), 50).await;
    let mut client = stack.client().await;
    let command = coming_back("T.AAPL", &format!("{from}-20"));
    client.send_raw(&command).await;
    client.command("subscribe", "Q.AAPL").await;
    client.expect(&acks("subscribed", "T.AAPL")).await;
    let (events, _) = read_until(&mut client, &trade("AAPL", 49)).await;
    let (trades_of, quotes): (Vec<_>, Vec<_>) =
        events.into_iter().partition(|event| event.contains(r#""ev":"T""#));
    assert_eq!(trades_of, trades(20..50), "what the client has comes of neither");
    let first = 49 - quotes.len();
    assert!(first >= 19, "{quotes:?}");
    assert_eq!(quotes, (first..49).map(|n| quote("AAPL", n)).collect::<Vec<_>>());
}

#[tokio::test]
async fn each_command_leaves_out_its_own_events() {
    let stack = stack_of(1).await;
    let frame = |n| vec![quote("AAPL", n), trade("AAPL", n)];
    let from = history_of(&stack, &(0..20).map(frame).collect::<Vec<_>>(), 20).await;
    let mut client = stack.client().await;
    for (item, has) in [("T.AAPL", 12), ("Q.AAPL", 15)] {
        let place = format!("{from}-{has}");
        client.send_raw(&coming_back(item, &place)).await;
    }
    let (events, _) = read_until(&mut client, &trade("AAPL", 19)).await;
    let expected = (12..20).flat_map(|n| {
        let quote = (n >= 15).then(|| quote("AAPL", n));
        quote.into_iter().chain([trade("AAPL", n)])
    });
    assert_eq!(events, expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn a_count_of_what_is_not_held_any_more_holds_nothing_up() {
    let stack = stack_of(1).await;
    let from = stack.filtered[0].health_text("/history/to").await;
    let mut client = stack.client().await;
    // All three before the replay begins.
    for command in [
        coming_back("T.AAPL", &format!("{from}-3")),
        r#"{"action":"unsubscribe","params":"T.AAPL"}"#.to_owned(),
        r#"{"action":"subscribe","params":"Q.AAPL"}"#.to_owned(),
    ] {
        client.send_raw(&command).await;
    }
    read_until_status(&mut client, "live").await;
    let quotes: Vec<_> = (0..3).map(|n| quote("AAPL", n)).collect();
    stack.publish(&quotes);
    client.expect_objects(&quotes).await;
}

#[tokio::test]
async fn whoever_claims_more_events_than_there_were_is_answered_and_goes_live() {
    let stack = stack_of(1).await;
    let from = history_of(&stack, &[trades(0..3)], 3).await;
    let mut client = stack.client().await;
    subscribe(&mut client, "T.AAPL", &format!(r#""from":"{from}-9""#)).await;
    expect(&mut client, "resumed").await;
    let error = expect(&mut client, "error").await;
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("fewer events came"), "{error}");
    expect(&mut client, "live").await;
    stack.publish(&trades(3..5));
    client.expect_objects(&trades(3..5)).await;
}

#[tokio::test]
async fn a_session_has_a_bounded_number_of_counts() {
    let stack = stack_of(1).await;
    let from = history_of(&stack, &[trades(0..9)], 9).await;
    let mut client = stack.client().await;
    let command = coming_back("T.AAPL", &format!("{from}-5"));
    for _ in 0..100 {
        client.send_raw(&command).await;
    }
    read_until_status(&mut client, "error").await;
    stack.publish(&trades(9..10));
    read_until(&mut client, &trade("AAPL", 9)).await;
}

#[tokio::test]
async fn without_a_history_an_outage_is_announced_as_ever() {
    let firehose_env = vec![("HISTORY_BYTES", "0".to_owned())];
    let filtered_env = firehose_env.clone();
    let stack =
        Stack::with(StackConfig { firehose_env, filtered_env, ..StackConfig::default() }).await;
    let mut client = stack.subscriber("T.AAPL").await;
    assert!(stack.filtered[0].health().await["history"].is_null());
    let mut lost = stack.client().await;
    subscribe(&mut lost, "T.AAPL", r#""from":"1-2""#).await;
    let gap = expect(&mut lost, "gap").await;
    assert_eq!(gap["reason"], "no_history", "{gap}");
    stack.sim.handle.inject(polygon_sim::Fault::Abort);
    expect(&mut client, "upstream_down").await;
    let up = expect(&mut client, "upstream_up").await;
    assert!(up["missed"].is_null(), "{up}");
    stack.publish(&trades(0..1));
    client.expect_objects(&trades(0..1)).await;
}

/// A stack whose filtered proxies know positions.
async fn stack_of(filtered: usize) -> Stack {
    Stack::with(StackConfig { filtered, ..StackConfig::default() }).await
}

async fn login(program: &Program, path: &str) -> TestClient {
    let mut client = TestClient::connect_to(program.addr(), path).await;
    client.log_in(CLIENT_KEY).await;
    client
}

#[tokio::test]
async fn a_client_goes_on_at_another_proxy() {
    let stack = stack_of(2).await;
    let mut client = login(&stack.filtered[0], "/?positions=1ms").await;
    client.subscribe("T.AAPL,Q.AAPL").await;
    stack.publish(&trades(0..5));
    let (first, mut notices) = read_until(&mut client, &trade("AAPL", 4)).await;
    assert_eq!(first, trades(0..5));
    // Those before the last event stand before it.
    notices.clear();
    while notices.last().is_none_or(|notice| notice["status"] != "position") {
        notices.push(status(&mut client).await);
    }
    let position =
        notices.last().expect("a position")["position"].as_str().expect("a position").to_owned();
    drop(client);
    stack.publish(&trades(5..9));
    stack.publish(&[quote("AAPL", 9), quote("MSFT", 9)]);
    for program in &stack.filtered {
        eventually(SOON, "the proxy has the events", async || {
            program.metric("filtered_events_in_total").await == Some(11.0)
        })
        .await;
    }
    let mut back = login(&stack.filtered[1], "/").await;
    subscribe(&mut back, "T.AAPL,Q.AAPL", &format!(r#""from":"{position}""#)).await;
    let resumed = expect(&mut back, "resumed").await;
    assert_eq!(resumed["position"], *position, "{resumed}");
    let mut expected = trades(5..9);
    expected.push(quote("AAPL", 9));
    back.expect_objects(&expected).await;
    let live = expect(&mut back, "live").await;
    assert_eq!(live["position"], *stack.firehose.health_text("/history/to").await);
    stack.publish(&trades(10..12));
    back.expect_objects(&trades(10..12)).await;
    // Three of them it has already.
    let mut third = login(&stack.filtered[0], "/").await;
    subscribe(&mut third, "T.AAPL,Q.AAPL", &format!(r#""from":"{position}-3""#)).await;
    expect(&mut third, "resumed").await;
    third.expect_objects(&[trade("AAPL", 8), quote("AAPL", 9)]).await;
    third.expect_objects(&trades(10..12)).await;
    expect(&mut third, "live").await;
    // At the firehose, which does not filter.
    let mut raw = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    subscribe(&mut raw, "T.AAPL", &format!(r#""from":"{position}""#)).await;
    expect(&mut raw, "resumed").await;
    let (all, _) = read_until(&mut raw, &trade("AAPL", 11)).await;
    expected.push(quote("MSFT", 9));
    expected.extend(trades(10..12));
    assert_eq!(all, expected);
}

#[tokio::test]
async fn a_client_names_a_time() {
    let stack = stack_of(1).await;
    let mut witness = stack.subscriber("T.AAPL").await;
    stack.publish(&trades(0..2));
    witness.expect_objects(&trades(0..2)).await;
    let since = unix_millis() + 200;
    eventually(SOON, "time passes", async || unix_millis() >= since).await;
    stack.publish(&trades(2..4));
    witness.expect_objects(&trades(2..4)).await;
    let mut client = stack.client().await;
    subscribe(&mut client, "T.AAPL", &format!(r#""since":{since}"#)).await;
    let resumed = expect(&mut client, "resumed").await;
    assert!(resumed["time"].as_u64() >= Some(since - 150), "{resumed}");
    client.expect_objects(&trades(2..4)).await;
    expect(&mut client, "live").await;
    // Before the proxy began.
    let mut early = stack.client().await;
    subscribe(&mut early, "T.AAPL", r#""since":1000"#).await;
    let gap = expect(&mut early, "gap").await;
    assert_eq!(gap["reason"], "too_old", "{gap}");
    expect(&mut early, "resumed").await;
    let (events, _) = read_until(&mut early, &trade("AAPL", 3)).await;
    assert_eq!(events, trades(0..4));
    expect(&mut early, "live").await;
}

#[tokio::test]
async fn a_proxy_that_starts_has_the_history_and_gives_none_of_it_unasked() {
    let stack = stack_of(1).await;
    let mut client = login(&stack.filtered[0], "/?positions=1ms").await;
    client.subscribe("T.AAPL").await;
    let first = expect(&mut client, "position").await;
    stack.publish(&trades(0..3));
    read_until(&mut client, &trade("AAPL", 2)).await;
    let newcomer = stack::filtered(stack.firehose.addr()).start().await;
    stack::is_complete(&newcomer).await;
    let mut fresh = login(&newcomer, "/").await;
    fresh.subscribe("T.AAPL").await;
    let mut back = login(&newcomer, "/").await;
    let from = first["position"].as_str().expect("a position");
    subscribe(&mut back, "T.AAPL", &format!(r#""from":"{from}""#)).await;
    expect(&mut back, "resumed").await;
    back.expect_objects(&trades(0..3)).await;
    expect(&mut back, "live").await;
    stack.publish(&trades(3..4));
    fresh.expect_objects(&trades(3..4)).await;
    back.expect_objects(&trades(3..4)).await;
}

#[tokio::test]
async fn a_restarted_firehose_is_another_epoch() {
    let stack = stack_of(1).await;
    let mut client = login(&stack.filtered[0], "/?positions=1ms").await;
    client.subscribe("T.AAPL").await;
    stack.publish(&trades(0..1));
    read_until(&mut client, &trade("AAPL", 0)).await;
    let mut notices: Vec<Value> = Vec::new();
    while notices.last().is_none_or(|notice| notice["status"] != "position") {
        notices.push(status(&mut client).await);
    }
    let from =
        notices.last().expect("a notice")["position"].as_str().expect("a position").to_owned();
    // Another firehose that never had this epoch.
    let other = stack_of(1).await;
    let mut lost = login(&other.filtered[0], "/").await;
    let old = of_another_epoch(&from);
    subscribe(&mut lost, "T.AAPL", &format!(r#""from":"{old}""#)).await;
    let gap = expect(&mut lost, "gap").await;
    assert_eq!((&gap["reason"], &gap["after"]), (&"other_epoch".into(), &old.into()), "{gap}");
    expect(&mut lost, "resumed").await;
    expect(&mut lost, "live").await;
    other.publish(&trades(5..6));
    lost.expect_objects(&trades(5..6)).await;
}

#[tokio::test]
async fn a_named_session_goes_on_where_its_client_had_confirmed() {
    let stack = stack_of(1).await;
    let path = "/session/alpha/stocks";
    let mut client = login(&stack.filtered[0], path).await;
    client.subscribe("T.AAPL").await;
    let first = expect(&mut client, "session").await;
    assert!(first["message"].as_str().is_some_and(|text| text.contains("alpha")), "{first}");
    stack.publish(&trades(0..3));
    client.expect_objects(&trades(0..3)).await;
    // Reading answers the pings. One follows the last events.
    let pings = client.pings();
    eventually(SOON, "a ping", async || {
        client.ping(b"read").await;
        client.pings() > pings
    })
    .await;
    client.ping(b"read").await;
    let mut witness = stack.subscriber("T.AAPL").await;
    drop(client);
    stack.publish(&trades(3..7));
    witness.expect_objects(&trades(3..7)).await;
    let mut back = login(&stack.filtered[0], path).await;
    back.subscribe("T.AAPL").await;
    expect(&mut back, "resumed").await;
    let (events, notices) = read_until(&mut back, &trade("AAPL", 6)).await;
    assert!(notices.is_empty(), "{notices:?}");
    assert!(events.ends_with(&trades(3..7)), "{events:?}");
    expect(&mut back, "live").await;
    // Another name, and no name, get nothing old.
    for path in ["/session/beta", "/"] {
        let mut other = login(&stack.filtered[0], path).await;
        other.subscribe("T.AAPL").await;
        if path != "/" {
            expect(&mut other, "session").await;
        }
        stack.publish(&trades(7..8));
        other.expect_objects(&trades(7..8)).await;
        back.expect_objects(&trades(7..8)).await;
    }
    // A second connection of the name takes over.
    let mut second = login(&stack.filtered[0], path).await;
    second.subscribe("T.AAPL").await;
    let end = back.end(SOON).await;
    assert!(format!("{end:?}").contains("1008"), "{end:?}");
    assert_eq!(names(&[expect(&mut second, "resumed").await]), ["resumed"]);
}

/// Two proxies, the link of the first of which can be cut or slowed.
struct Two {
    chain: Cuttable,
    other: Program,
}

impl Two {
    async fn start(firehose_env: &[(&'static str, &str)]) -> Self {
        let chain = Cuttable::start(firehose_env).await;
        let other = stack::filtered(chain.firehose.addr()).start().await;
        is_up(&other).await;
        stack::is_complete(&other).await;
        Self { chain, other }
    }

    /// Where a client of the other proxy stands that got these trades behind a position.
    async fn place_behind(&self, numbers: std::ops::Range<usize>) -> String {
        let mut client = login(&self.other, "/?positions=1h").await;
        client.subscribe("T.AAPL").await;
        let position = expect(&mut client, "position").await;
        for n in numbers.clone() {
            self.chain.publish(&trades(n..n + 1));
        }
        client.expect_objects(&trades(numbers.clone())).await;
        format!("{}-{}", position["position"].as_str().expect("a text"), numbers.len())
    }

    async fn back(&self, place: &str) -> TestClient {
        let mut back = self.chain.client("/").await;
        subscribe(&mut back, "T.AAPL", &format!(r#""from":"{place}""#)).await;
        back
    }
}

#[tokio::test]
async fn a_client_is_not_sent_again_what_another_proxy_was_faster_to_send() {
    let two = Two::start(&[]).await;
    two.chain.relay.inject(Fault::Delay(Duration::from_secs(1)));
    let place = two.place_behind(0..3).await;
    let mut back = two.back(&place).await;
    expect(&mut back, "resumed").await;
    two.chain.publish(&trades(3..5));
    let (events, _) = read_until(&mut back, &trade("AAPL", 4)).await;
    assert_eq!(events, trades(3..5));
}

#[tokio::test]
async fn nothing_behind_a_gap_is_taken_for_what_the_client_has() {
    let two = Two::start(&[("HISTORY_BYTES", "2000")]).await;
    two.chain.cut().await;
    let place = two.place_behind(0..3).await;
    for n in 3..100 {
        two.chain.publish(&trades(n..n + 1));
    }
    two.chain.has_events(100.0).await;
    two.chain.heal().await;
    two.chain.publish(&trades(100..101));
    let mut back = two.back(&place).await;
    let (events, notices) = read_until(&mut back, &trade("AAPL", 100)).await;
    let gap = notices.iter().find(|notice| notice["status"] == "gap").expect("a gap");
    let lost = gap["frames"].as_u64().expect("a count") as usize;
    assert_eq!(events, trades(lost..101), "{gap}");
}

#[tokio::test]
async fn nothing_of_a_new_firehose_is_taken_for_what_the_client_has() {
    let port = ReservedPort::new();
    let mut two = Two::start(&[("FIREHOSE_PORT", &port.addr().port().to_string())]).await;
    two.chain.cut().await;
    let place = two.place_behind(0..3).await;
    two.chain.firehose.signal(Signal::SIGKILL);
    two.chain.firehose.wait_exit(SOON).await;
    two.chain.relay.heal();
    let url = two.chain.sim.url("stocks");
    let launch = stack::firehose(&url).env("FIREHOSE_PORT", port.addr().port());
    two.chain.firehose = launch.start().await;
    is_up(&two.chain.filtered).await;
    stack::is_complete(&two.chain.filtered).await;
    two.chain.publish(&trades(10..12));
    let mut back = two.back(&place).await;
    let (events, notices) = read_until(&mut back, &trade("AAPL", 11)).await;
    assert_eq!(events, trades(10..12));
    let gap = notices.iter().find(|notice| notice["reason"] == "other_epoch").expect("a gap");
    // Whoever stands behind the gap hears of it again, and gets nothing twice.
    let place = format!("{}-1", gap["position"].as_str().expect("a position"));
    let mut again = two.back(&place).await;
    let resumed = expect(&mut again, "resumed").await;
    assert_eq!(resumed["position"], gap["position"], "{resumed}");
    let (events, _) = read_until(&mut again, &trade("AAPL", 11)).await;
    assert_eq!(events, trades(11..12));
}

#[tokio::test]
async fn a_replay_that_leaves_out_what_the_client_has_says_no_position_of_it() {
    let two = Two::start(&[]).await;
    let place = two.place_behind(0..1_000).await;
    let mut back = login(&two.chain.filtered, "/?positions=1ms").await;
    subscribe(&mut back, "T.AAPL", &format!(r#""from":"{place}""#)).await;
    expect(&mut back, "resumed").await;
    let mut next = status(&mut back).await;
    while next["status"] == "upstream_down" || next["status"] == "upstream_up" {
        next = status(&mut back).await;
    }
    let head = two.chain.firehose.health_text("/history/to").await;
    assert_eq!(next["position"], *head, "{next}");
}

#[tokio::test]
async fn a_proxy_that_fills_its_history_says_no_position_of_it() {
    let stack = stack_of(1).await;
    let mut witness = stack.subscriber("T.AAPL").await;
    for n in 0..1_000 {
        stack.publish(&trades(n..n + 1));
    }
    read_until(&mut witness, &trade("AAPL", 999)).await;
    let relay = Relay::start(stack.firehose.addr()).await;
    relay.inject(Fault::Throttle(40_000));
    let newcomer = stack::filtered(relay.addr()).start().await;
    eventually(SOON, "the history is being filled", async || {
        newcomer.metric("filtered_frames_in_total").await > Some(100.0)
    })
    .await;
    let mut client = login(&newcomer, "/?positions=1ms").await;
    client.subscribe("T.AAPL").await;
    let mut notice = status(&mut client).await;
    assert!(newcomer.metric("filtered_frames_in_total").await < Some(900.0), "too late");
    relay.heal();
    while notice["status"] != "position" {
        notice = status(&mut client).await;
    }
    let head = stack.firehose.health_text("/history/to").await;
    assert_eq!(notice["position"], *head, "{notice}");
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("not so late")
}

/// A stack without a filtered proxy, and a position before anything is published.
async fn firehose_alone(notices: &str) -> (Stack, String) {
    let firehose_env = vec![("CLIENT_NOTICES", notices.to_owned())];
    let stack =
        Stack::with(StackConfig { filtered: 0, firehose_env, ..StackConfig::default() }).await;
    let mut all = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    all.command("subscribe", "*").await;
    stack::is_answered(&stack.firehose).await;
    let from = stack.firehose.health_text("/history/to").await;
    (stack, from)
}

/// An event of 100 KB.
fn long(n: usize) -> String {
    trade(&format!("AAPL\",\"x\":\"{}", "x".repeat(100_000)), n)
}

#[tokio::test]
async fn a_session_at_the_firehose_that_goes_back_loses_nothing_that_it_had_not_read() {
    let (stack, from) = firehose_alone("on").await;
    let firehose = &stack.firehose;
    // Where it stood before, and ahead of what it has read.
    for ahead in [false, true] {
        let mut client = TestClient::connect_narrow(firehose.addr(), 64 * 1024).await;
        client.log_in(FIREHOSE_KEY).await;
        client.subscribe("T.AAPL").await;
        let before = firehose.metric("firehose_events_in_total").await.unwrap_or_default();
        let first = before as usize;
        let all: Vec<_> = (first..first + 200).map(long).collect();
        all.iter().for_each(|event| stack.publish(&[event]));
        eventually(SOON, "the firehose has the events", async || {
            firehose.metric("firehose_events_in_total").await == Some(before + 200.0)
        })
        .await;
        let to = firehose.health_text("/history/to").await;
        let place = if ahead { &to } else { &from };
        let lost = r#"reason="session_closed""#;
        let lost_before = firehose.metric_with("firehose_events_lost_total", lost).await;
        let command = coming_back("T.AAPL", place);
        client.send_raw(&command).await;
        let (events, notices) = read_until(&mut client, &all[199]).await;
        let resumed = |notice: &Value| notice["status"] == "resumed";
        assert!(notices.iter().any(resumed), "{:?}", names(&notices));
        assert!(!names(&notices).contains(&"gap"), "{notices:?}");
        match ahead {
            true => assert!(events == all, "each once, although it named the end"),
            false => assert!(events.ends_with(&all), "all again"),
        }
        expect(&mut client, "live").await;
        let lost_now = firehose.metric_with("firehose_events_lost_total", lost).await;
        assert_eq!(lost_now, lost_before);
        client.close().await;
    }
}

#[tokio::test]
async fn a_second_start_at_the_firehose_hides_no_gap_of_the_first() {
    let (stack, from) = firehose_alone("on").await;
    let gone = of_another_epoch(&from);
    let mut client = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    for place in [&gone, &from] {
        let command = coming_back("T.AAPL", place);
        client.send_raw(&command).await;
    }
    let mut names = Vec::new();
    while names.last().is_none_or(|name| name != "live") {
        names.push(status(&mut client).await["status"].as_str().unwrap_or_default().to_owned());
    }
    assert!(names.iter().any(|name| name == "gap"), "{names:?}");
}

#[tokio::test]
async fn with_notices_off_a_replay_at_the_firehose_gives_events_alone() {
    let (stack, from) = firehose_alone("off").await;
    let mut witness = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    witness.subscribe("T.AAPL").await;
    let gone = of_another_epoch(&from);
    stack.publish(&trades(0..2));
    witness.expect_objects(&trades(0..2)).await;
    stack.sim.handle.inject(polygon_sim::Fault::Abort);
    eventually(SOON, "the firehose is back", async || {
        stack.firehose.metric("firehose_upstream_connects_total").await == Some(2.0)
    })
    .await;
    is_up(&stack.firehose).await;
    stack::is_answered(&stack.firehose).await;
    stack.publish(&trades(2..4));
    witness.expect_objects(&trades(2..4)).await;
    for place in [&from, &gone] {
        let mut client = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
        subscribe(&mut client, "T.AAPL", &format!(r#""from":"{place}""#)).await;
        client.expect_objects(&trades(0..4)).await;
        stack.publish(&trades(4..5));
        client.expect_objects(&trades(4..5)).await;
        // Filtered proxies pass them on.
        let mut all = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
        all.send_raw(&coming_back("*", &from)).await;
        let (_, notices) = read_until(&mut all, &trade("AAPL", 4)).await;
        assert!(names(&notices).contains(&"resumed"), "{notices:?}");
        assert!(names(&notices).contains(&"upstream_up"), "{notices:?}");
    }
}

#[tokio::test]
async fn whoever_is_closed_by_a_proxy_that_stops_goes_on_where_the_notice_stands() {
    let filtered_env = vec![("DRAIN_SPREAD", "500ms".to_owned())];
    let stack =
        Stack::with(StackConfig { filtered: 2, filtered_env, ..StackConfig::default() }).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = stack.client().await;
        client.subscribe("T.AAPL").await;
        clients.push(client);
    }
    let sim = stack.sim.handle.clone();
    let load = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        for n in 0.. {
            ticks.tick().await;
            sim.publish(&trades(n..n + 1));
        }
    });
    for client in &mut clients {
        read_until(client, &trade("AAPL", 20)).await;
    }
    stack.filtered[0].signal(Signal::SIGTERM);
    for (n, client) in clients.iter_mut().enumerate() {
        let mut last = 20;
        let notice = loop {
            let object = client.next_object().await;
            match number(&object) {
                Some(next) => assert_eq!(next, std::mem::replace(&mut last, next) + 1),
                None => break serde_json::from_str::<Value>(&object).expect("a status"),
            }
        };
        assert_eq!(notice["status"], "draining", "{notice}");
        let from = notice["position"].as_str().unwrap_or_else(|| panic!("client {n}: {notice}"));
        let mut back = login(&stack.filtered[1], "/").await;
        subscribe(&mut back, "T.AAPL", &format!(r#""from":"{from}""#)).await;
        expect(&mut back, "resumed").await;
        let (events, _) = read_until(&mut back, &trade("AAPL", last + 50)).await;
        assert_eq!(events, trades(last + 1..last + 51), "client {n}");
    }
    load.abort();
}

#[tokio::test]
async fn whoever_is_closed_otherwise_is_given_a_position_if_nothing_was_dropped() {
    let stack = stack_of(1).await;
    let path = "/session/alpha/stocks";
    let mut first = login(&stack.filtered[0], path).await;
    first.subscribe("T.AAPL").await;
    expect(&mut first, "session").await;
    let mut direct = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    direct.subscribe("T.AAPL").await;
    stack.publish(&trades(0..1));
    for client in [&mut first, &mut direct] {
        client.expect_objects(&trades(0..1)).await;
    }
    let head = stack.firehose.health_text("/history/to").await;
    let _second = login(&stack.filtered[0], path).await;
    let notice = expect(&mut first, "taken_over").await;
    assert_eq!(notice["position"], *head, "{notice}");
    stack.firehose.signal(Signal::SIGTERM);
    let notice = expect(&mut direct, "draining").await;
    assert_eq!(notice["position"], *head, "{notice}");
}
