//! Responsiveness: answers come at once under any load, and one client costs the others nothing.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tests::{
    http::get,
    program::Signal,
    stack::{CLIENT_KEY, FIREHOSE_KEY, Sim, Stack, StackConfig, filtered, firehose, is_up},
    wait::{SOON, eventually, within},
    ws_client::{Received, TestClient},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use crate::{events::trade, tiers::ports};

/// Far below the 20 s between the proxy's own pings, with which a forgotten answer would leave.
const AT_ONCE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_ping_on_a_quiet_session_is_answered_at_once() {
    let stack = Stack::start().await;
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::login(addr, key).await;
        within(AT_ONCE, "the pong", client.ping(b"quiet")).await;
    }
}

#[tokio::test]
async fn a_clients_close_is_answered_with_its_code() {
    let stack = Stack::start().await;
    for (addr, _) in ports(&stack) {
        let (mut socket, _) = connect_async(format!("ws://{addr}/")).await.expect("connect");
        socket.close(None).await.expect("send a close frame");
        let mut answered = false;
        within(AT_ONCE, "the end", async {
            while let Some(message) = socket.next().await {
                answered |= matches!(message, Ok(Message::Close(_)));
            }
        })
        .await;
        assert!(answered, "the connection ended without a close frame");
    }
}

#[tokio::test]
async fn clients_that_talk_without_pause_do_not_hold_up_the_others() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("T.*").await;
    let mut floods = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (socket, _) = connect_async(format!("ws://{}/", stack.addr())).await.expect("connect");
        let (mut sink, mut stream) = socket.split();
        floods.spawn(async move { while sink.send(Message::text("7")).await.is_ok() {} });
        floods.spawn(async move { while let Some(Ok(_)) = stream.next().await {} });
    }
    eventually(SOON, "the flood has begun", async || {
        stack.filtered[0].metric("filtered_commands_total").await > Some(5_000.0)
    })
    .await;
    for n in 0..20 {
        stack.publish(&[trade("AAPL", n)]);
        within(AT_ONCE, "an event", client.expect_event(&trade("AAPL", n))).await;
        let alive = within(AT_ONCE, "a probe", get(stack.addr(), "/livez")).await;
        assert_eq!(alive.status, 200);
    }
    floods.abort_all();
}

#[tokio::test]
async fn a_command_of_half_a_million_items_costs_little() {
    let stack = Stack::start().await;
    let mut client = stack.client().await;
    client.command("subscribe", &"a,".repeat(500_000)).await;
    let first = client.next_frame().await;
    assert!(first[0].contains(r#""status":"error""#), "{}", first[0]);
    let memory = stack.filtered[0].metric("process_resident_memory_bytes").await;
    assert!(memory < Some(120e6), "{memory:?} bytes");
    let mut text = String::new();
    while !text.contains("450000 were ignored") {
        text = client.next_text().await;
    }
}

#[tokio::test]
async fn many_symbols_at_the_firehose_do_not_hold_up_its_data() {
    // Quotes are not requested by wildcard, so each symbol is requested on its own.
    let stack = Stack::with(StackConfig {
        firehose_env: vec![("UPSTREAM_CHANNELS", "T".to_owned())],
        ..StackConfig::default()
    })
    .await;
    let mut watcher = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    watcher.subscribe("T.*").await;
    let mut greedy = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    let many: Vec<String> = (0..20_000).map(|n| format!("Q.S{n}")).collect();
    greedy.command("subscribe", &many.join(",")).await;
    let asked = async || stack.sim.handle.subscriptions().len() > 20_000;
    let mut n = 0;
    eventually(SOON, "all are requested", async || {
        n += 1;
        stack.publish(&[trade("AAPL", n)]);
        within(AT_ONCE, "an event", watcher.expect_event(&trade("AAPL", n))).await;
        asked().await
    })
    .await;
}

#[tokio::test]
async fn data_before_a_fatal_status_in_one_frame_is_delivered() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("T.AAPL").await;
    let (event, fatal) = (
        trade("AAPL", 1),
        r#"{"ev":"status","status":"max_connections","message":"Maximum number of connections exceeded."}"#,
    );
    stack.sim.handle.publish_raw(&format!("[{event},{fatal}]"));
    client.expect_event(&event).await;
    eventually(SOON, "the eviction is noticed", async || {
        stack.firehose.health_text("/upstream/last_error").await.contains("max_connections")
    })
    .await;
}

#[tokio::test]
async fn stalled_clients_do_not_keep_a_stopping_program_busy() {
    let mut stack = Stack::with(StackConfig {
        filtered_env: vec![("CLIENT_MAX_LAG", "2s".to_owned()), ("DRAIN_TIMEOUT", "6s".to_owned())],
        ..StackConfig::default()
    })
    .await;
    let mut stalled = TestClient::connect_narrow(stack.addr(), 4_096).await;
    stalled.log_in(CLIENT_KEY).await;
    stalled.subscribe("T.*").await;
    let events: Vec<_> = (0..40_000).map(|n| trade("AAPL", n)).collect();
    for frame in events.chunks(1_000) {
        stack.publish(frame);
    }
    let mut proxy = stack.filtered.remove(0);
    eventually(SOON, "something is queued", async || {
        proxy.metric("filtered_queue_bytes").await > Some(0.0)
    })
    .await;
    proxy.signal(Signal::SIGTERM);
    proxy.logged("stopping; a second signal stops at once").await;
    let before = cpu_ticks(proxy.id());
    let mut last = before;
    eventually(Duration::from_secs(15), "the end", async || {
        match cpu_ticks(proxy.id()) {
            Some(now) => last = Some(now),
            None => return true,
        }
        false
    })
    .await;
    // Ticks of 10 ms. A spinning thread would use about 400 of them.
    let used = last.zip(before).map(|(last, before)| last - before);
    assert!(used < Some(100), "{used:?} ticks while stopping");
}

/// The processor time of a process that has not ended, in ticks of 10 ms.
fn cpu_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

#[tokio::test]
async fn a_link_to_a_firehose_of_another_market_is_refused() {
    let sim = Sim::start().await;
    let firehose = firehose(&sim.url("stocks")).start().await;
    is_up(&firehose).await;
    let crypto = filtered(firehose.addr()).env("MARKET", "crypto").start().await;
    eventually(SOON, "the market is refused", async || {
        crypto.health_text("/upstream/last_error").await.contains("404")
    })
    .await;
}

#[tokio::test]
async fn upgrades_to_other_protocols_are_ignored() {
    let stack = Stack::start().await;
    for (addr, _) in ports(&stack) {
        let mut stream = TcpStream::connect(addr).await.expect("connect");
        let request = "GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n\
                       Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut answer = [0; 12];
        within(AT_ONCE, "an answer", tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer))
            .await
            .expect("read");
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
}

#[tokio::test]
async fn a_message_past_the_limit_is_answered_before_the_end() {
    let stack = Stack::start().await;
    let mut client = stack.client().await;
    client.send_raw(&"x".repeat((1 << 20) + 1)).await;
    let end = client.end(SOON).await;
    assert!(matches!(end, Received::Closed(Some(1009))), "{end:?}");
}
