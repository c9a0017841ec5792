//! Large messages and slow readers: a message of 1,000,000 bytes crashes official clients.

use polygon_sim::Fault;
use tests::{
    program::Program,
    stack::{CLIENT_KEY, FIREHOSE_KEY, Stack, StackConfig},
    wait::{SOON, eventually},
    ws_client::{Received, TestClient},
};

use crate::events::{quote, trade};

/// More events than two messages can hold.
fn many() -> Vec<String> {
    let event = |n| if n % 2 == 0 { trade("AAPL", n) } else { quote("MSFT", n) };
    (0..20_000).map(event).collect()
}

#[tokio::test]
async fn a_frame_past_the_limit_is_split_between_events() {
    let stack = Stack::start().await;
    let events = many();
    let trades: Vec<_> = events.iter().step_by(2).collect();
    assert!(trades.iter().map(|trade| trade.len()).sum::<usize>() > 1_000_000);
    let mut all = stack.subscriber("*").await;
    let mut some = stack.subscriber("T.*").await;
    let mut one = stack.subscriber("T.AAPL,Q.GOOG").await;
    stack.publish(&events);
    // Reading an object also checks the size of its message.
    all.expect_objects(&events).await;
    some.expect_objects(&trades).await;
    one.expect_objects(&trades).await;
    assert_eq!(stack.sim.handle.stats().frames_sent, 1, "the market sent it in one frame");
}

#[tokio::test]
async fn the_firehose_splits_a_long_frame_as_well() {
    let stack = Stack::start().await;
    let events = many();
    let mut client = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    client.subscribe("*").await;
    client.expect_coverage().await;
    stack.publish(&events);
    client.expect_objects(&events).await;
}

/// A link keeps five buffers of up to a megabyte each for the next frames, and releases them when
/// it ends.
#[tokio::test]
async fn long_frames_leave_little_behind() {
    let firehose_env = vec![("HISTORY_BYTES", "0".to_owned())];
    let stack = Stack::with(StackConfig { firehose_env, ..StackConfig::default() }).await;
    let mut client = stack.subscriber("Q.*").await;
    let memory = async || {
        let memory = stack.firehose.metric("process_resident_memory_bytes").await;
        memory.expect("a gauge")
    };
    // The quote comes after the trades, which no client wants.
    let mut publish = async |events: usize| {
        let events: Vec<_> = (0..events).map(|n| trade("AAPL", n)).collect();
        stack.publish(&events);
        let end = quote("MSFT", events.len());
        stack.publish(&[&end]);
        client.expect_objects(&[end]).await;
    };
    publish(10).await;
    let before = memory().await;
    for round in 0..30 {
        publish(5_000 + round * 30).await;
    }
    let kept = memory().await - before;
    // One frame of 15 MB, then enough to fill every buffer once more.
    publish(100_000).await;
    for _ in 0..100 {
        publish(1_500).await;
    }
    let longer = memory().await - before;
    stack.sim.handle.inject(Fault::Abort);
    eventually(SOON, "the firehose is back", async || stack.sim.handle.stats().auths == 2).await;
    let rest = memory().await - before;
    println!(
        "kept after long frames {kept}, after a longer one {longer}, after the connection {rest}"
    );
    assert!(kept < 5.0 * 1_048_576.0 + 1e6, "{kept} bytes kept of frames of 25 MB");
    assert!(longer < 5.0 * 1_048_576.0 + 3e6, "{longer} bytes kept of one of 15 MB");
    assert!(rest < 3e6, "{rest} bytes kept of a connection that has ended");
}

#[tokio::test]
async fn a_slow_reader_gets_everything_in_fewer_messages() {
    let stack = Stack::with(StackConfig {
        filtered_env: vec![("CLIENT_MAX_LAG", "60s".to_owned())],
        ..StackConfig::default()
    })
    .await;
    let mut slow = TestClient::connect_narrow(stack.addr(), 4_096).await;
    slow.log_in(CLIENT_KEY).await;
    slow.subscribe("T.*").await;
    let mut quick = stack.subscriber("T.*").await;
    // More than the system's socket buffers hold.
    let events: Vec<_> = (0..80_000).map(|n| trade("AAPL", n)).collect();
    for frame in events.chunks(100) {
        stack.publish(frame);
    }
    quick.expect_objects(&events).await;
    eventually(SOON, "something is queued", async || {
        stack.filtered[0].metric("filtered_queue_bytes").await > Some(0.0)
    })
    .await;
    // A pong overtakes the queue. At most the socket's content comes before it.
    let frames_before = slow.ping(b"are you there").await;
    let mut messages = frames_before;
    let mut received = slow.take_objects();
    assert!(received.len() < events.len(), "the pong came after all data");
    while received.len() < events.len() {
        received.extend(slow.next_frame().await);
        messages += 1;
    }
    assert!(received == events, "the events received differ from those sent");
    assert!(messages < 800, "{messages} messages for 800 frames");
    eventually(SOON, "nothing is queued", async || {
        stack.filtered[0].metric("filtered_queue_bytes").await == Some(0.0)
    })
    .await;
}

#[tokio::test]
async fn an_event_that_fits_no_message_is_dropped_and_counted() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("T.AAPL").await;
    let mut all = stack.subscriber("*").await;
    let events = [
        trade("AAPL", 1),
        format!(r#"{{"ev":"T","sym":"AAPL","x":"{}"}}"#, "x".repeat(950_000)),
        trade("AAPL", 2),
    ];
    stack.publish(&events);
    for client in [&mut client, &mut all] {
        let mut notices = Vec::new();
        for event in [&events[0], &events[2]] {
            let mut received = client.next_object().await;
            while received.starts_with(r#"{"ev":"status","status":"gap","#) {
                notices.push(std::mem::replace(&mut received, client.next_object().await));
            }
            assert_eq!(&received, event);
        }
        // The notice comes once, before or after the next event.
        if notices.is_empty() {
            notices.push(client.next_object().await);
        }
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert!(notices[0].contains(r#""reason":"oversize""#), "{notices:?}");
    }
    let lost = async |program: &Program, metric: &str| {
        program.metric_with(metric, r#"reason="oversize""#).await.unwrap_or_default()
    };
    eventually(SOON, "the loss is counted once", async || {
        let firehose = lost(&stack.firehose, "firehose_events_lost_total").await;
        firehose + lost(&stack.filtered[0], "filtered_events_lost_total").await == 1.0
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_read_gets_a_notice_and_is_closed_and_no_other_is_affected() {
    let stack = Stack::with(StackConfig {
        filtered_env: vec![("CLIENT_QUEUE_BYTES", "1000000".to_owned())],
        ..StackConfig::default()
    })
    .await;
    let mut stuck = TestClient::connect_narrow(stack.addr(), 4_096).await;
    stuck.log_in(CLIENT_KEY).await;
    stuck.subscribe("T.*").await;
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(stack.subscriber("T.*").await);
    }
    // Wide events, so that a few fill the system's buffers.
    let wide = |n: usize| trade(&format!("AAPL\",\"x\":\"{}", "x".repeat(2_000)), n);
    let filtered = &stack.filtered[0];
    let closed = async || {
        let label = r#"reason="slow_consumer""#;
        filtered.metric_with("filtered_sessions_closed_total", label).await
    };
    let mut sent = 0;
    eventually(SOON, "the slow client is closed", async || {
        let events: Vec<_> = (sent..sent + 200).map(wide).collect();
        sent += events.len();
        stack.publish(&events);
        for other in &mut others {
            other.expect_objects(&events).await;
        }
        closed().await == Some(1.0)
    })
    .await;
    // The slow client gets the events up to the limit, whole and in order, then the reason, then
    // the close.
    let mut next = 0;
    let last = loop {
        match stuck.next(SOON).await {
            Received::Text(text) if text.starts_with(r#"[{"ev":"status""#) => {
                assert!(text.contains(r#""status":"slow_consumer""#), "{text}");
            }
            Received::Text(text) => {
                for object in tests::ws_client::objects(&text) {
                    assert!(object == wide(next), "instead of event {next}: {object}");
                    next += 1;
                }
            }
            end => break end,
        }
    };
    assert!(matches!(last, Received::Closed(Some(1008)) | Received::Dropped), "{last:?}");
    assert!(next < sent, "{next} of {sent} events");
    let lost =
        filtered.metric_with("filtered_events_lost_total", r#"reason="slow_consumer""#).await;
    assert!(lost > Some(0.0), "{lost:?}");
    // A client that comes back is accepted.
    let mut back = stack.subscriber("T.*").await;
    stack.publish(&[trade("AAPL", 0)]);
    back.expect_objects(&[trade("AAPL", 0)]).await;
}
