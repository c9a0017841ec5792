//! Notices: every official client survives each of them, and they can be turned off.

use std::time::Duration;

use polygon_sim::Fault;
use serde_json::Value;
use tests::{
    official_clients::{Client, Output, Running},
    program::Signal,
    stack::{CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Stack, StackConfig, filtered},
    wait::{SOON, eventually},
    ws_client::{Received, TestClient},
};

use crate::events::trade;

/// Waits until the firehose has logged in this many times and has requested everything again.
async fn is_back(stack: &Stack, logins: u64) {
    eventually(SOON, "the firehose is back", async || {
        stack.sim.handle.stats().auths == logins && stack.sim.handle.subscriptions().contains("T.*")
    })
    .await;
}

#[tokio::test]
async fn with_notices_off_a_filtered_proxy_passes_none_on() {
    let mut stack = Stack::with(StackConfig {
        filtered_env: vec![("CLIENT_NOTICES", "off".to_owned())],
        ..StackConfig::default()
    })
    .await;
    let mut all = stack.subscriber("*").await;
    let mut client = stack.subscriber("T.AAPL").await;
    stack.sim.handle.inject(Fault::Abort);
    is_back(&stack, 2).await;
    stack.sim.handle.publish_raw(r#"[{"sym":"no type"},{"ev":"T","sym":"AAPL"}]"#);
    for client in [&mut client, &mut all] {
        client.expect(r#"[{"ev":"T","sym":"AAPL"}]"#).await;
    }
    let mut proxy = stack.filtered.remove(0);
    proxy.signal(Signal::SIGTERM);
    for client in [&mut client, &mut all] {
        assert_eq!(
            client.next(SOON).await,
            Received::Closed(Some(1012)),
            "without a closing status"
        );
    }
    assert_eq!(proxy.wait_exit(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn with_notices_off_a_firehose_still_informs_filtered_proxies() {
    let mut stack = Stack::with(StackConfig {
        firehose_env: vec![("CLIENT_NOTICES", "off".to_owned())],
        ..StackConfig::default()
    })
    .await;
    let mut client = stack.subscriber("T.AAPL").await;
    let mut direct = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    direct.subscribe("T.AAPL").await;
    stack.sim.handle.inject(Fault::Abort);
    for status in ["upstream_down", "upstream_up"] {
        let text = client.next_text().await;
        assert!(text.contains(status) && text.contains(r#""tier":"firehose""#), "{text}");
    }
    is_back(&stack, 2).await;
    stack.publish(&[trade("AAPL", 1)]);
    direct.expect(&format!("[{}]", trade("AAPL", 1))).await;
    client.expect(&format!("[{}]", trade("AAPL", 1))).await;
    let firehose = &mut stack.firehose;
    firehose.signal(Signal::SIGTERM);
    assert_eq!(direct.next(SOON).await, Received::Closed(Some(1012)), "without a closing status");
    // The filtered proxy learned the reason.
    eventually(SOON, "the reason of the loss", async || {
        stack.filtered[0].log_text().contains("draining")
    })
    .await;
}

/// An official client under test, and how it shows statuses.
struct Witness {
    client: Client,
    running: Running,
    /// Whether it makes objects of events. Then it shows statuses only in its log.
    parsed: bool,
    /// A symbol that only this client is subscribed to, beside AAPL.
    own: String,
}

impl Witness {
    async fn start(client: Client, parsed: bool, own: &str, stack: &Stack) -> Option<Self> {
        let (addr, params) = (stack.addr(), format!("T.AAPL,T.{own}"));
        let running = match parsed {
            true => client.start_parsed(addr, CLIENT_KEY, &params).await?,
            false => client.start(addr, CLIENT_KEY, &params).await?,
        };
        let mut started = Self { client, running, parsed, own: own.to_owned() };
        started.subscribed().await;
        Some(started)
    }

    async fn subscribed(&mut self) {
        if self.parsed {
            for _ in 0..2 {
                self.running.logged("status: subscribed to: T.").await;
            }
        } else {
            self.running.subscribed(&format!("T.AAPL,T.{}", self.own)).await;
        }
    }

    /// Waits for a status with this name and these words in its message.
    async fn gets_notice(&mut self, status: &str, words: &str) {
        loop {
            match self.running.next().await {
                Output::Frame(text) => {
                    let objects: Vec<Value> = serde_json::from_str(&text).expect("a frame");
                    if objects.iter().any(|object| object["status"] == status) {
                        assert!(text.contains(words), "{text}");
                        assert_eq!(
                            objects.len(),
                            1,
                            "{:?}: alone in its frame: {text}",
                            self.client
                        );
                        return;
                    }
                }
                Output::Log(line) if line.starts_with("status: ") && line.contains(words) => return,
                Output::Log(_) | Output::Event { .. } => {}
                other => panic!("{:?}: {other:?} instead of {status}", self.client),
            }
        }
    }

    /// Waits for a trade with this number and skips other events and statuses.
    async fn gets_trade(&mut self, n: usize) {
        let event = trade("AAPL", n);
        let fields: Value = serde_json::from_str(&event).expect("an event");
        loop {
            match self.running.next().await {
                Output::Frame(text) if text.contains(&event) => return,
                Output::Event { fields: found, .. } if found["sequence_number"] == fields["q"] => {
                    return;
                }
                Output::Frame(_) | Output::Event { .. } | Output::Log(_) => {}
                other => panic!("{:?}: {other:?} instead of trade {n}", self.client),
            }
        }
    }

    fn reconnects(&self) -> bool {
        matches!(self.client, Client::PythonMassive | Client::PythonPolygon)
    }

    /// After a close it either reconnects by itself or prints how it was closed.
    async fn survives(&mut self, close: &str) {
        if !self.reconnects() {
            let ended = self.running.next().await;
            assert!(matches!(&ended, Output::Ended(why) if why.starts_with(close)), "{ended:?}");
        } else {
            self.subscribed().await;
        }
    }
}

/// The official clients, in each of the ways in which they show events.
async fn witnesses(stack: &Stack) -> Vec<Witness> {
    let mut found = Vec::new();
    for (client, parsed, own) in [
        (Client::PythonMassive, false, "OWN.A"),
        (Client::PythonMassive, true, "OWN.B"),
        (Client::PythonPolygon, true, "OWN.C"),
        (Client::JsMassive, false, "OWN.D"),
        (Client::JsPolygon, false, "OWN.E"),
    ] {
        found.extend(Witness::start(client, parsed, own, stack).await);
    }
    found
}

#[tokio::test]
async fn official_clients_survive_every_kind_of_notice() {
    let port = ReservedPort::new();
    let mut stack = Stack::with(StackConfig {
        firehose_env: vec![("RING_FRAMES", "4".to_owned())],
        filtered_env: vec![
            ("FILTERED_PROXY_PORT", port.addr().port().to_string()),
            ("CLIENT_QUEUE_BYTES", "1000000".to_owned()),
        ],
        ..StackConfig::default()
    })
    .await;
    let mut clients = witnesses(&stack).await;

    stack.sim.handle.inject(Fault::Abort);
    is_back(&stack, 2).await;
    for client in &mut clients {
        client.gets_notice("upstream_down", "until the upstream of the firehose tier is up").await;
        client.gets_notice("upstream_up", "upstream of the firehose tier is up after").await;
    }

    // A gap at the filtered tier: an object that is not an event.
    stack.sim.handle.publish_raw(r#"[{"sym":"no type"}]"#);
    for client in &mut clients {
        client.gets_notice("gap", "damaged").await;
    }
    // A gap at the firehose: many frames at once are more than its small ring holds.
    let proxy = &stack.filtered[0];
    let many: Vec<_> = (0..100).map(|n| trade("MSFT", n)).collect();
    eventually(SOON, "the ring has overwritten frames", async || {
        for _ in 0..50 {
            stack.publish(&many);
        }
        let lost = "firehose_events_lost_total";
        stack.firehose.metric_with(lost, "ring_overrun").await > Some(0.0)
    })
    .await;
    for client in &mut clients {
        client.gets_notice("gap", "lost at the firehose").await;
    }
    stack.publish(&[trade("AAPL", 1)]);
    for client in &mut clients {
        client.gets_trade(1).await;
    }

    // A client that reads too slowly gets a notice and is closed.
    for client in &mut clients {
        let before = proxy.metric_with("filtered_events_lost_total", "slow_consumer").await;
        client.running.signal(Signal::SIGSTOP);
        // Long events fill the queue with few objects, so that the client can still read them and
        // the close in time.
        let long = format!(r#"{{"ev":"T","sym":"{}",{}"q":0}}"#, client.own, " ".repeat(50_000));
        eventually(SOON, "a session is closed as slow", async || {
            stack.publish(&[&long]);
            proxy.metric_with("filtered_events_lost_total", "slow_consumer").await > before
        })
        .await;
        client.running.signal(Signal::SIGCONT);
        client.gets_notice("slow_consumer", "reads more slowly").await;
        client.survives("1008").await;
    }
    // Clients that do not reconnect by themselves are started again.
    for client in &mut clients {
        if !client.reconnects() {
            let again = Witness::start(client.client, client.parsed, &client.own, &stack).await;
            *client = again.expect("it was there before");
        }
    }
    stack.publish(&[trade("AAPL", 2)]);
    for client in &mut clients {
        client.gets_trade(2).await;
    }

    let mut proxy = stack.filtered.remove(0);
    proxy.signal(Signal::SIGTERM);
    for client in &mut clients {
        client.gets_notice("draining", "restarting").await;
    }
    assert_eq!(proxy.wait_exit(Duration::from_secs(10)).await.code(), Some(0));
    let launch = filtered(stack.firehose.addr()).env("FILTERED_PROXY_PORT", port.addr().port());
    stack.filtered.push(launch.start().await);
    stack.linked().await;
    for client in &mut clients {
        client.survives("1012").await;
    }
    stack.publish(&[trade("AAPL", 3)]);
    for client in clients.iter_mut().filter(|client| client.reconnects()) {
        client.gets_trade(3).await;
    }
}

#[tokio::test]
async fn official_clients_survive_what_the_firehose_sends_to_filtered_proxies() {
    let stack = Stack::start().await;
    for client in [Client::PythonMassive, Client::JsMassive] {
        let Some(mut running) = client.start(stack.firehose.addr(), FIREHOSE_KEY, "*").await else {
            continue;
        };
        running.subscribed("*").await;
        let coverage = running.next_object().await;
        assert!(coverage.contains(r#""status":"carried""#), "{coverage}");
        stack.publish(&[trade("AAPL", 1)]);
        assert_eq!(running.next_unless_notice().await, trade("AAPL", 1));
        running.finish().await;
    }
    let client = Client::PythonMassive.start_parsed(stack.firehose.addr(), FIREHOSE_KEY, "*").await;
    let Some(mut running) = client else { return };
    running.logged("status: * stands for ").await;
    stack.publish(&[trade("AAPL", 1)]);
    assert_eq!(running.next_event().await.0, "EquityTrade");
    running.finish().await;
}
