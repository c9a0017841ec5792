//! Slow consumers: each gets a notice and is closed, all together stay within the total limit, and
//! no other client is affected.

use std::time::Duration;

use serde_json::Value;
use tests::{
    program::Program,
    relay::{Fault, Relay},
    stack::{CLIENT_KEY, FIREHOSE_KEY, Stack, StackConfig},
    wait::{SOON, eventually, within},
    ws_client::{Received, TestClient},
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    task::JoinSet,
    time::{interval, sleep},
};

use crate::events::{quote, trade};

/// An event of 2 KB, so that a few fill the system's buffers.
fn wide(n: usize) -> String {
    trade(&format!("AAPL\",\"x\":\"{}", "x".repeat(2_000)), n)
}

async fn with(settings: &[(&'static str, &str)]) -> Stack {
    let filtered_env = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Stack::with(StackConfig { filtered_env, ..StackConfig::default() }).await
}

/// A client with a small receive buffer.
async fn narrow(stack: &Stack, channels: &str) -> TestClient {
    buffered(stack, 4_096, channels).await
}

async fn buffered(stack: &Stack, bytes: u32, channels: &str) -> TestClient {
    let mut client = TestClient::connect_narrow(stack.addr(), bytes).await;
    client.log_in(CLIENT_KEY).await;
    client.subscribe(channels).await;
    client
}

async fn closed_as_slow(stack: &Stack) -> f64 {
    let label = r#"reason="slow_consumer""#;
    let closed = stack.filtered[0].metric_with("filtered_sessions_closed_total", label).await;
    closed.unwrap_or_default()
}

async fn memory(program: &Program) -> f64 {
    program.metric("process_resident_memory_bytes").await.expect("a gauge")
}

async fn trickle(mut stream: TcpStream) {
    let mut buffer = [0; 1_000];
    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn every_kind_of_slow_reader_is_closed_and_the_others_get_everything() {
    let stack = with(&[("CLIENT_QUEUE_BYTES", "400000")]).await;
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(stack.subscriber("T.*").await);
    }
    let _stalled = narrow(&stack, "T.*").await;
    let mut tasks = JoinSet::new();
    tasks.spawn(trickle(narrow(&stack, "T.*").await.into_stream()));
    let mut mid_frame = narrow(&stack, "T.*").await.into_stream();
    let mut sent = 0;
    let mut stopped = false;
    eventually(SOON, "all slow readers are closed", async || {
        let events: Vec<_> = (sent..sent + 100).map(wide).collect();
        sent += events.len();
        stack.publish(&events);
        for other in &mut others {
            other.expect_objects(&events).await;
        }
        if !std::mem::replace(&mut stopped, true) {
            // It stops in the middle of the first event.
            mid_frame.read_exact(&mut [0; 1_001]).await.expect("the begin of a frame");
        }
        closed_as_slow(&stack).await >= 3.0
    })
    .await;
    assert_eq!(closed_as_slow(&stack).await, 3.0);
    assert_eq!(stack.filtered[0].metric("filtered_sessions").await, Some(4.0));
}

#[tokio::test]
async fn a_hundred_stalled_clients_get_a_notice_and_cost_the_others_nothing() {
    let stack = with(&[("CLIENT_QUEUE_BYTES", "1000000")]).await;
    let mut others = [stack.subscriber("T.*").await, stack.subscriber("T.*").await];
    let mut stalled = Vec::new();
    for n in 0..100 {
        // Each has channels of its own, so that no two share queued chunks. With a small buffer the
        // rest would take longer than a closing session may.
        stalled.push(buffered(&stack, 128 * 1024, &format!("T.*,Q.X{n}")).await);
    }
    let lost = async || {
        let label = r#"reason="slow_consumer""#;
        stack.filtered[0].metric_with("filtered_events_lost_total", label).await
    };
    let before = memory(&stack.filtered[0]).await;
    let (mut sent, mut most) = (0, before);
    eventually(Duration::from_secs(60), "all stalled clients are closing", async || {
        let events: Vec<_> = (sent..sent + 100).map(wide).collect();
        sent += events.len();
        stack.publish(&events);
        for other in &mut others {
            other.expect_objects(&events).await;
        }
        most = most.max(memory(&stack.filtered[0]).await);
        lost().await > Some(0.0)
            && stack.filtered[0].metric("filtered_queue_bytes").await < Some(100.0 * 300_000.0)
    })
    .await;
    // The clients now read everything. A client that is in time gets the reason of its close.
    let mut readers = JoinSet::new();
    for mut client in stalled {
        readers.spawn(async move {
            let mut notified = false;
            loop {
                match client.next(Duration::from_secs(60)).await {
                    Received::Text(text) => {
                        notified |= text.contains(r#""status":"slow_consumer""#);
                    }
                    end => return (notified, end),
                }
            }
        });
    }
    let mut in_time = 0;
    while let Some(ended) = readers.join_next().await {
        match ended.expect("a reader") {
            (true, Received::Closed(Some(1008))) => in_time += 1,
            (_, Received::Dropped) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(in_time > 0, "no client got the notice");
    eventually(SOON, "all are closed", async || closed_as_slow(&stack).await == 100.0).await;
    let grown = most - before;
    println!(
        "{in_time} of 100 got the notice in time, {sent} events, memory grown by {grown} bytes"
    );
    // The limit of the queues, what is framed ahead, and what the allocator keeps.
    assert!(grown < 100.0 * 1.3e6 + 60e6, "grown by {grown} bytes");
    let events = [wide(sent)];
    stack.publish(&events);
    for other in &mut others {
        other.expect_objects(&events).await;
    }
}

#[tokio::test]
async fn past_the_total_limit_the_sessions_that_hold_the_most_are_closed() {
    const TOTAL: f64 = 6e6;
    let stack = with(&[
        ("CLIENT_QUEUE_BYTES", "50000000"),
        ("CLIENT_MAX_LAG", "60s"),
        ("TOTAL_QUEUE_BYTES", "6000000"),
    ])
    .await;
    let mut quick = stack.subscriber("T.*").await;
    let _greedy = [narrow(&stack, "T.*").await, narrow(&stack, "T.*,Q.*").await];
    let mut modest = narrow(&stack, "Q.*").await;
    let mut modest_events = Vec::new();
    let (mut sent, mut most) = (0, 0.0_f64);
    eventually(Duration::from_secs(60), "both greedy ones are closed", async || {
        let events: Vec<_> = (sent..sent + 100).map(wide).collect();
        sent += events.len();
        stack.publish(&events);
        quick.expect_objects(&events).await;
        let quotes: Vec<_> = (0..20).map(|n| quote("MSFT", sent + n)).collect();
        stack.publish(&quotes);
        modest_events.extend(quotes);
        let queued = stack.filtered[0].metric("filtered_queue_bytes").await;
        most = most.max(queued.expect("a gauge"));
        closed_as_slow(&stack).await == 2.0
    })
    .await;
    // Events routed between two checks, and the rest of half written messages, come on top.
    println!("at most {most} bytes queued");
    assert!(most > TOTAL / 2.0 && most < TOTAL * 2.0, "{most} bytes queued");
    modest.expect_objects(&modest_events).await;
    assert_eq!(closed_as_slow(&stack).await, 2.0);
}

#[tokio::test]
async fn a_slow_reader_with_a_backlog_gets_its_pongs() {
    let stack = with(&[("CLIENT_MAX_LAG", "10min"), ("CLIENT_QUEUE_BYTES", "300000000")]).await;
    let relay = Relay::start(stack.addr()).await;
    let mut slow = TestClient::login(relay.addr(), CLIENT_KEY).await;
    slow.subscribe("T.*").await;
    // A fifth of the market's rate.
    relay.inject(Fault::Throttle(200_000));
    let market = async {
        let mut frames = interval(Duration::from_millis(10));
        let mut n = 0;
        loop {
            frames.tick().await;
            let events: Vec<_> = (n..n + 5).map(wide).collect();
            n += events.len();
            stack.publish(&events);
        }
    };
    let pings = async {
        eventually(SOON, "a backlog", async || {
            stack.filtered[0].metric("filtered_queue_bytes").await > Some(1e6)
        })
        .await;
        for n in 0..4 {
            let started = tokio::time::Instant::now();
            within(SOON, "a pong", slow.ping(b"are you there")).await;
            println!("pong {n} after {:?}", started.elapsed());
        }
    };
    tokio::select! {
        () = market => {}
        () = pings => {}
    }
    assert_eq!(closed_as_slow(&stack).await, 0.0);
    // After the whole backlog a pong would take as long as the backlog itself.
    let queued = stack.filtered[0].metric("filtered_queue_bytes").await.expect("a gauge");
    assert!(queued > 1e6, "{queued} bytes queued");
}

/// A stack whose firehose lets a session queue 2 MB, and a client of that firehose that does not
/// read yet.
async fn stuck_at_firehose(ring: &[(&'static str, &str)]) -> (Stack, TestClient) {
    let settings = [("CLIENT_QUEUE_BYTES", "2000000"), ("CLIENT_MAX_LAG", "10min")];
    let settings = settings.iter().chain(ring);
    let firehose_env = settings.map(|(name, value)| (*name, (*value).to_owned())).collect();
    let stack = Stack::with(StackConfig { firehose_env, ..StackConfig::default() }).await;
    let mut stuck = TestClient::connect_narrow(stack.firehose.addr(), 4_096).await;
    stuck.log_in(FIREHOSE_KEY).await;
    stuck.subscribe("T.*").await;
    (stack, stuck)
}

/// Publishes long frames. A quick client gets all of them.
async fn publish_long(stack: &Stack, frames: usize, bytes: usize) {
    let mut quick = stack.subscriber("T.*").await;
    for n in 0..frames {
        let event = trade(&format!("LONG\",\"x\":\"{}", "x".repeat(bytes)), n);
        stack.publish(&[&event]);
        quick.expect_objects(&[event]).await;
    }
    let end = trade("END", 0);
    stack.publish(&[&end]);
    quick.expect_event(&end).await;
}

/// Reads up to the end. Returns how many long events came and how many were reported as lost.
async fn read_on(stuck: &mut TestClient) -> (usize, usize) {
    let (mut received, mut reported_lost) = (0, 0);
    loop {
        let object: Value = serde_json::from_str(&stuck.next_object().await).expect("an object");
        match object["status"].as_str() {
            Some("gap") => {
                assert_eq!(object["frames"], object["events"], "one event a frame");
                reported_lost += object["events"].as_u64().expect("how many events") as usize;
            }
            None if object["sym"] == "END" => return (received, reported_lost),
            None => received += 1,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_ring_of_long_frames_is_bounded_in_bytes_and_reports_what_is_lost() {
    const FRAMES: usize = 500;
    let ring = [("RING_FRAMES", "1024"), ("RING_BYTES", "4194304"), ("HISTORY_BYTES", "0")];
    let (stack, mut stuck) = stuck_at_firehose(&ring).await;
    let before = memory(&stack.firehose).await;
    publish_long(&stack, FRAMES, 100_000).await;
    let grown = memory(&stack.firehose).await - before;
    println!("memory grown by {grown} bytes");
    // The ring, the same amount again for the rest of the buffers that hold its frames, and the
    // session's own queue.
    assert!(grown < 2.0 * 4.2e6 + 4e6, "grown by {grown} bytes for frames of 50 MB");
    let (received, reported_lost) = read_on(&mut stuck).await;
    assert!(reported_lost > 0, "nothing was lost");
    assert_eq!(received + reported_lost, FRAMES);
    let lost = stack.firehose.metric_with("firehose_events_lost_total", "ring_overrun").await;
    assert_eq!(lost, Some(reported_lost as f64));
}

#[tokio::test]
async fn a_lagging_client_of_the_firehose_is_not_closed_because_its_frames_are_long() {
    let (stack, mut stuck) = stuck_at_firehose(&[]).await;
    publish_long(&stack, 100, 100_000).await;
    assert_eq!(read_on(&mut stuck).await, (100, 0));
}
