//! The filtered proxy on NATS: its clients get what the stream holds, once and in order, and learn
//! of everything that it does not hold any more. The test itself writes the stream, unless it says
//! otherwise.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_nats::{
    Client, ConnectOptions,
    jetstream::{self, stream::Config},
};
use polygon_sim::SimConfig;
use serde_json::Value;
use tests::{
    nats::{
        NatsServer,
        stream::{DATA, STATE, STREAM, frame, publish},
    },
    program::{Finished, Launch, Program, Signal},
    stack::{self, CLIENT_KEY, Sim, failed, filtered_on_nats, is_complete, is_up},
    wait::{SOON, eventually, holds_for, within},
    ws_client::TestClient,
};
use tokio::{sync::Mutex, task::JoinSet, time::sleep};

use crate::events::{number, trade};

const CARRIED: &str = r#"[{"ev":"status","status":"carried","message":"m","tier":"firehose","carried":["T.*","Q.*"],"pending":[],"refused":[]}]"#;

/// A run of a firehose, which writes as the format says.
#[derive(Debug)]
struct Run {
    client: Client,
    epoch: u64,
    seq: u64,
    events: u64,
    /// The number of the last message of the stream.
    last: u64,
}

impl Run {
    fn head(&self) -> String {
        format!("{}-{} {} 0 {}", self.epoch, self.seq, self.events, 1_790_000_000_000 + self.seq)
    }

    /// Opens its epoch: the only message that is stored behind any other.
    async fn open(&mut self) {
        let (head, client) = (self.head(), &self.client);
        self.last = publish(client, STATE, Some(&head), None, frame(CARRIED)).await.expect("open");
    }

    async fn state(&mut self) -> Result<(), String> {
        let (head, after) = (self.head(), Some(self.last));
        self.last = publish(&self.client, STATE, Some(&head), after, frame(CARRIED)).await?;
        Ok(())
    }

    /// Stores frames, several in a message. Returns the number of events.
    async fn data(&mut self, frames: &[Vec<String>]) {
        for joined in frames.chunks(3) {
            let texts = joined.iter().map(|events| format!("[{}]", events.join(",")));
            let payload: Vec<u8> = texts.flat_map(|text| frame(&text)).collect();
            let (head, after) = (self.head(), Some(self.last));
            self.last =
                publish(&self.client, DATA, Some(&head), after, payload).await.expect("store");
            self.seq += joined.len() as u64;
            self.events += joined.iter().map(Vec::len).sum::<usize>() as u64;
        }
    }
}

/// A stream with a firehose that the test plays.
struct Feed {
    run: Arc<Mutex<Run>>,
    /// Writes a state several times a second.
    states: JoinSet<()>,
    /// The number of the next event.
    next: usize,
    client: Client,
}

impl Feed {
    async fn start(nats: &NatsServer, config: Config) -> Self {
        let client = nats.client().await;
        make_stream(&client, config).await;
        let run = Run { client: client.clone(), epoch: 7, seq: 0, events: 0, last: 0 };
        let mut feed =
            Self { run: Arc::new(Mutex::new(run)), states: JoinSet::new(), next: 0, client };
        feed.run.lock().await.open().await;
        feed.write_states();
        feed
    }

    fn write_states(&mut self) {
        let run = Arc::clone(&self.run);
        self.states.spawn(async move {
            loop {
                sleep(Duration::from_millis(300)).await;
                // While the server is away, the next one comes later.
                let _ = run.lock().await.state().await;
            }
        });
    }

    /// Another run of the firehose takes over.
    async fn take_over(&mut self) {
        let mut run = self.run.lock().await;
        run.epoch += 1;
        (run.seq, run.events) = (0, 0);
        run.open().await;
    }

    /// Stores this many frames of one to three events.
    async fn publish(&mut self, frames: usize) {
        let frames: Vec<Vec<String>> = (0..frames)
            .map(|n| {
                let events = (0..=n % 3).map(|k| trade("AAPL", self.next + k)).collect::<Vec<_>>();
                self.next += events.len();
                events
            })
            .collect();
        self.run.lock().await.data(&frames).await;
    }
}

async fn make_stream(client: &Client, config: Config) {
    let subjects = vec![DATA.to_owned(), STATE.to_owned()];
    let config = Config { name: STREAM.to_owned(), subjects, ..config };
    jetstream::new(client.clone()).create_stream(config).await.expect("make a stream");
}

async fn proxy(nats: &NatsServer) -> Program {
    let proxy = filtered_on_nats(&nats.url()).start().await;
    is_up(&proxy).await;
    is_complete(&proxy).await;
    proxy
}

async fn subscriber(proxy: &Program) -> TestClient {
    let mut client = TestClient::login(proxy.addr(), CLIENT_KEY).await;
    client.subscribe("T.*").await;
    client
}

/// A feed with the default settings, a proxy that takes it out of this server, and a client of it.
async fn reading(nats: &NatsServer) -> (Feed, Program, TestClient) {
    let feed = Feed::start(nats, Config::default()).await;
    let proxy = proxy(nats).await;
    let client = subscriber(&proxy).await;
    (feed, proxy, client)
}

/// What a client got: the numbers of events, and notices.
#[derive(Debug, Default)]
struct Got {
    events: Vec<usize>,
    notices: Vec<Value>,
}

impl Got {
    fn statuses(&self) -> Vec<&str> {
        self.notices.iter().filter_map(|notice| notice["status"].as_str()).collect()
    }

    fn notice(&self, status: &str) -> &Value {
        let found = self.notices.iter().find(|notice| notice["status"] == status);
        found.unwrap_or_else(|| panic!("no {status}: {:?}", self.notices))
    }
}

/// Reads until the event before this number has come.
async fn read_to(client: &mut TestClient, end: usize) -> Got {
    let mut got = Got::default();
    while got.events.last() != Some(&(end - 1)) {
        let object = client.next_object().await;
        match number(&object) {
            Some(n) => {
                assert_eq!(object, trade("AAPL", n), "byte for byte");
                got.events.push(n);
            }
            None => got.notices.push(serde_json::from_str(&object).expect("a status")),
        }
    }
    got
}

/// Reads until this notice has come.
async fn read_to_notice(client: &mut TestClient, status: &str) -> Got {
    let mut got = Got::default();
    while got.statuses().last() != Some(&status) {
        let object = client.next_object().await;
        match number(&object) {
            Some(n) => got.events.push(n),
            None => got.notices.push(serde_json::from_str(&object).expect("a status")),
        }
    }
    got
}

async fn consumers(client: &Client) -> Vec<String> {
    use futures_util::TryStreamExt;
    let stream = jetstream::new(client.clone()).get_stream(STREAM).await.expect("the stream");
    stream.consumer_names().try_collect().await.expect("names of consumers")
}

#[tokio::test]
async fn clients_get_exactly_their_events_as_they_were_stored() {
    let nats = NatsServer::start().await;
    let mut feed = Feed::start(&nats, Config::default()).await;
    feed.publish(20).await;
    let before = feed.next;
    let proxy = proxy(&nats).await;
    let mut client = subscriber(&proxy).await;
    let mut other = TestClient::login(proxy.addr(), CLIENT_KEY).await;
    other.subscribe("T.MSFT").await;
    feed.publish(200).await;
    let got = read_to(&mut client, feed.next).await;
    assert_eq!(got.events, (before..feed.next).collect::<Vec<_>>());
    assert!(got.notices.is_empty(), "{:?}", got.notices);
    let events = vec![trade("MSFT", 1)];
    feed.run.lock().await.data(&[events]).await;
    other.expect_event(&trade("MSFT", 1)).await;
    assert_eq!(proxy.health_text("/status").await, "ok");
    assert_eq!(proxy.health_text("/upstream/url").await, nats.url());
    assert_eq!(consumers(&feed.client).await.len(), 1);
    proxy.stop().await;
    eventually(SOON, "the consumer is removed", async || consumers(&feed.client).await.is_empty())
        .await;
}

#[tokio::test]
async fn a_proxy_that_starts_reads_its_history_from_the_stream() {
    let nats = NatsServer::start().await;
    let mut feed = Feed::start(&nats, Config::default()).await;
    feed.publish(50).await;
    let middle = feed.next;
    let position = {
        let run = feed.run.lock().await;
        format!("{}-{}", run.epoch, run.seq)
    };
    feed.publish(50).await;
    let proxy = proxy(&nats).await;
    let mut client = TestClient::login(proxy.addr(), CLIENT_KEY).await;
    let from = format!(r#"{{"action":"subscribe","params":"T.*","from":"{position}"}}"#);
    client.send_raw(&from).await;
    let got = read_to(&mut client, feed.next).await;
    assert_eq!(got.events, (middle..feed.next).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_consumer_that_is_removed_is_made_anew_and_nothing_is_missed() {
    let nats = NatsServer::start().await;
    let (mut feed, proxy, mut client) = reading(&nats).await;
    let first = feed.next;
    for _ in 0..3 {
        feed.publish(30).await;
        let stream = jetstream::new(feed.client.clone()).get_stream(STREAM).await.expect("it");
        for name in consumers(&feed.client).await {
            stream.delete_consumer(&name).await.expect("remove a consumer");
        }
        feed.publish(30).await;
        let last = read_to(&mut client, feed.next).await;
        assert!(last.notices.is_empty(), "{:?}", last.notices);
        let expected = feed.next - last.events.len()..feed.next;
        assert_eq!(last.events, expected.collect::<Vec<_>>());
    }
    assert!(feed.next > first);
    let renewed = proxy.metric("filtered_nats_consumers_renewed_total").await;
    assert!(renewed >= Some(3.0), "{renewed:?}");
}

#[tokio::test]
async fn a_proxy_that_stood_still_loses_nothing_that_the_stream_holds() {
    let nats = NatsServer::start().await;
    let (mut feed, proxy, mut client) = reading(&nats).await;
    proxy.signal(Signal::SIGSTOP);
    for _ in 0..30 {
        feed.publish(60).await;
        sleep(Duration::from_millis(400)).await;
    }
    proxy.signal(Signal::SIGCONT);
    let got = read_to(&mut client, feed.next).await;
    assert_eq!(got.events, (0..feed.next).collect::<Vec<_>>());
    let told = got.notices.iter().filter(|notice| notice["status"] == "upstream_up");
    assert!(told.into_iter().all(|up| up["missed"] == 0), "{:?}", got.notices);
    assert!(!got.statuses().contains(&"gap"), "{:?}", got.notices);
}

#[tokio::test]
async fn what_retention_removed_before_it_was_read_is_counted_exactly() {
    let nats = NatsServer::start().await;
    let config = Config { max_messages: 60, ..Config::default() };
    let mut feed = Feed::start(&nats, config).await;
    let proxy = proxy(&nats).await;
    let mut client = subscriber(&proxy).await;
    feed.publish(10).await;
    read_to(&mut client, feed.next).await;
    let first = feed.next;
    // Consumers end with their proxy's connection, and the stream goes on.
    proxy.signal(Signal::SIGSTOP);
    let stream = jetstream::new(feed.client.clone()).get_stream(STREAM).await.expect("it");
    for name in consumers(&feed.client).await {
        stream.delete_consumer(&name).await.expect("remove a consumer");
    }
    feed.publish(2_000).await;
    proxy.signal(Signal::SIGCONT);
    let got = read_to(&mut client, feed.next).await;
    let gap = got.notice("gap");
    assert_eq!(gap["reason"], "too_old", "{gap}");
    let lost = gap["events"].as_u64().expect("an exact count") as usize;
    assert_eq!(lost + got.events.len(), feed.next - first, "{gap}");
    assert!(lost > 1_000, "{gap}");
    let missing = got.events.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    assert!(missing <= 1, "one hole");
    eventually(SOON, "the loss is counted", async || {
        proxy.metric("filtered_nats_lost_events_total").await == Some(lost as f64)
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_killed_and_comes_back_costs_nothing() {
    let mut nats = NatsServer::start().await;
    let (mut feed, _proxy, mut client) = reading(&nats).await;
    feed.publish(30).await;
    read_to(&mut client, feed.next).await;
    let first = feed.next;
    nats.kill();
    let down = read_to_notice(&mut client, "upstream_down").await;
    assert!(down.events.is_empty());
    nats.restart().await;
    eventually(SOON, "the stream is back", async || {
        jetstream::new(feed.client.clone()).get_stream(STREAM).await.is_ok()
    })
    .await;
    // As a writer would, it looks where the stream stands.
    let mut stream = jetstream::new(feed.client.clone()).get_stream(STREAM).await.expect("it");
    feed.run.lock().await.last = stream.info().await.expect("its state").state.last_sequence;
    feed.publish(30).await;
    let got = read_to(&mut client, feed.next).await;
    assert_eq!(got.events, (first..feed.next).collect::<Vec<_>>());
    let up = match got.notices.iter().find(|notice| notice["status"] == "upstream_up") {
        Some(up) => up.clone(),
        None => read_to_notice(&mut client, "upstream_up").await.notice("upstream_up").clone(),
    };
    assert_eq!(up["missed"], 0, "{up}");
}

#[tokio::test]
async fn a_stream_that_is_made_anew_goes_on_where_the_proxy_stood() {
    let nats = NatsServer::start().await;
    let (mut feed, _proxy, mut client) = reading(&nats).await;
    feed.publish(30).await;
    read_to(&mut client, feed.next).await;
    let first = feed.next;
    {
        let mut run = feed.run.lock().await;
        let context = jetstream::new(feed.client.clone());
        context.delete_stream(STREAM).await.expect("remove the stream");
        make_stream(&feed.client, Config::default()).await;
        run.open().await;
    }
    feed.publish(30).await;
    let got = read_to(&mut client, feed.next).await;
    assert_eq!(got.events, (first..feed.next).collect::<Vec<_>>());
    assert!(!got.statuses().contains(&"gap"), "{:?}", got.notices);
}

#[tokio::test]
async fn another_epoch_is_announced_and_whoever_writes_the_old_one_is_passed_over() {
    let nats = NatsServer::start().await;
    let (mut feed, proxy, mut client) = reading(&nats).await;
    feed.publish(30).await;
    read_to(&mut client, feed.next).await;
    let (first, old) = (feed.next, feed.run.lock().await.head());
    feed.take_over().await;
    {
        // Only a program that does not keep to the chain can do this.
        let mut run = feed.run.lock().await;
        let payload = frame(&format!("[{}]", trade("AAPL", 999_999)));
        run.last = publish(&feed.client, DATA, Some(&old), None, payload).await.expect("store");
    }
    feed.publish(30).await;
    let mut got = read_to(&mut client, feed.next).await;
    assert_eq!(got.events, (first..feed.next).collect::<Vec<_>>());
    if !got.statuses().contains(&"upstream_up") {
        got.notices.extend(read_to_notice(&mut client, "upstream_up").await.notices);
    }
    assert_eq!(got.statuses(), ["upstream_down", "gap", "upstream_up"], "{:?}", got.notices);
    let (gap, up) = (got.notice("gap"), got.notice("upstream_up"));
    assert_eq!((&gap["reason"], &gap["events"]), (&"other_epoch".into(), &Value::Null), "{gap}");
    assert_eq!(gap["position"], "8-0", "{gap}");
    assert_eq!(up["missed"], Value::Null, "nobody knows what the old run would have sent: {up}");
    eventually(SOON, "the old writer is counted", async || {
        proxy.metric("filtered_nats_old_epoch_messages_total").await >= Some(1.0)
    })
    .await;
}

#[tokio::test]
async fn a_silent_firehose_is_an_outage_that_its_next_state_ends() {
    let nats = NatsServer::start().await;
    let (mut feed, proxy, mut client) = reading(&nats).await;
    feed.publish(30).await;
    read_to(&mut client, feed.next).await;
    let first = feed.next;
    feed.states.abort_all();
    let down = read_to_notice(&mut client, "upstream_down").await;
    let reason = down.notice("upstream_down")["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("the firehose is silent"), "{reason}");
    failed(&proxy, SOON, "the firehose is silent").await;
    feed.write_states();
    feed.publish(10).await;
    let mut got = read_to(&mut client, feed.next).await;
    assert_eq!(got.events, (first..feed.next).collect::<Vec<_>>());
    if !got.statuses().contains(&"upstream_up") {
        got.notices.extend(read_to_notice(&mut client, "upstream_up").await.notices);
    }
    assert_eq!(got.notice("upstream_up")["missed"], 0, "{:?}", got.notices);
}

#[tokio::test]
async fn a_quiet_market_is_no_silence() {
    let nats = NatsServer::start().await;
    let _feed = Feed::start(&nats, Config::default()).await;
    let proxy = proxy(&nats).await;
    holds_for(Duration::from_secs(6), "the link stays up", async || {
        proxy.health_text("/upstream/state").await == "up"
    })
    .await;
    assert_eq!(proxy.metric("filtered_nats_consumers_renewed_total").await, Some(0.0));
}

#[tokio::test]
async fn what_is_wrong_with_nats_is_said_in_one_line() {
    let config = "authorization { user: a, password: right }";
    let nats = NatsServer::with(config).await;
    let launch = filtered_on_nats(&nats.url()).file("creds", "a:wrong");
    let creds = launch.dir().join("creds");
    let proxy = launch.env("NATS_CREDS", creds.display()).start().await;
    failed(&proxy, SOON, "NATS refuses what NATS_CREDS holds").await;
    assert!(!proxy.log_text().contains("wrong"), "the password stays secret");

    let nats = NatsServer::start().await;
    let proxy = filtered_on_nats(&nats.url()).start().await;
    failed(&proxy, SOON, "NATS has no stream POLYGON_STOCKS").await;
    let client = nats.client_with(ConnectOptions::new()).await;
    make_stream(&client, Config::default()).await;
    failed(&proxy, SOON, "the firehose is silent").await;
}

#[tokio::test]
async fn settings_that_contradict_each_other_stop_the_program_with_one_line() {
    let on_nats = || filtered_on_nats("nats://127.0.0.1:4222");
    let over_web_socket = || stack::filtered("127.0.0.1:1".parse().expect("an address"));
    let bad: [(Launch, &str); 4] = [
        (on_nats().env("FIREHOSE_CA", "/no/such/file"), "FIREHOSE_CA is not for NATS"),
        (on_nats().env("FIREHOSE_URL", "nats://u:secret@a"), "NATS_CREDS names their file"),
        (on_nats().env("NATS_STREAM", "a b"), "NATS_STREAM"),
        (over_web_socket().env("NATS_CREDS", "x"), "NATS_CREDS is for NATS"),
    ];
    for (launch, expected) in bad {
        let Finished { code, stderr, .. } = launch.run(SOON).await;
        assert_ne!(code, Some(0), "{expected}");
        let line = stderr.trim();
        assert!(line.contains(expected) && !line.contains("secret"), "{line}");
    }
}

#[tokio::test]
async fn contracts_on_demand_are_asked_of_the_firehose_over_nats() {
    let nats = NatsServer::start().await;
    let market = "options".to_owned();
    let sim = Sim::with(SimConfig { market, contracts: 2, ..SimConfig::default() }).await;
    let firehose = stack::firehose(&sim.url("options")).env("MARKET", "options");
    let firehose = firehose.env("NATS_URL", nats.url()).env("UPSTREAM_LINGER", "1s").start().await;
    let proxy = filtered_on_nats(&nats.url()).env("MARKET", "options").start().await;
    is_up(&firehose).await;
    is_up(&proxy).await;
    is_complete(&proxy).await;
    let items: Vec<String> = (1..=3).map(|n| format!("Q.O:SPY261218C0060{n}000")).collect();
    let mut client = TestClient::connect_to(proxy.addr(), "/options").await;
    client.log_in(CLIENT_KEY).await;
    let mut answers = BTreeMap::new();
    client.command("subscribe", &items.join(",")).await;
    while answers.len() < 3 {
        let status: Value = serde_json::from_str(&client.next_but_notices().await).expect("JSON");
        let item = match status["message"].as_str().and_then(|text| text.split(": ").nth(1)) {
            Some(item) if status["status"] == "success" => item.to_owned(),
            _ => status["contract"].as_str().unwrap_or_else(|| panic!("{status}")).to_owned(),
        };
        answers.insert(item, status);
    }
    assert_eq!(answers[&items[0]]["status"], "success");
    assert_eq!(answers[&items[1]]["status"], "success");
    assert_eq!(
        (&answers[&items[2]]["status"], &answers[&items[2]]["place"]),
        (&"error".into(), &1.into())
    );
    // One leaves, and the one that waits gets its room.
    client.command("unsubscribe", &items[0]).await;
    client.expect_status("success", &format!("unsubscribed to: {}", items[0])).await;
    client.expect_status("success", &format!("subscribed to: {}", items[2])).await;
    let held = || sim.handle.subscriptions().into_iter().filter(|item| item.starts_with("Q."));
    eventually(SOON, "the vendor serves two", async || held().collect::<Vec<_>>() == items[1..])
        .await;
    drop(client);
    eventually(SOON, "nobody wants them any more", async || held().count() == 0).await;
    within(SOON, "the proxy stops", proxy.stop()).await;
    // The stream is written whoever reads it.
    let all = sim.handle.subscriptions();
    assert!(all.iter().any(|item| item == "T.*"), "{all:?}");
    drop(firehose);
}
