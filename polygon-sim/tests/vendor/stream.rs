//! The stream of events: filtering, fidelity, batching, lag.

use std::time::Duration;

use polygon_sim::{Profile, SimConfig};
use serde_json::Value;

use crate::client::{Ended, Sim, events};

/// Reads frames until they hold this many events.
async fn read(client: &mut crate::client::Client, count: usize) -> Vec<String> {
    let (mut frames, mut seen) = (Vec::new(), 0);
    while seen < count {
        let frame = client.text().await;
        seen += serde_json::from_str::<Vec<Value>>(&frame).unwrap().len();
        frames.push(frame);
    }
    frames
}

#[tokio::test]
async fn scripted_events_keep_their_bytes_and_their_frame() {
    let sim = Sim::start(SimConfig { record: true, ..SimConfig::default() }).await;
    let mut client = sim.subscriber("T.BRK.B,LULD.*,FMV.AAPL").await;
    let trade = r#"{ "sym":"BRK.B", "ev":"T" , "p":1.50,"n":{"sym":"x"}, "u":"\u0041" }"#;
    let bands = r#"{"ev":"LULD","h":1,"l":1,"i":[16],"T":"GE","t":1}"#;
    let fair = r#"{"ev":"FMV","fmv":1e2,"sym":"AAPL","t":1}"#;
    let status = r#"{"ev":"status","status":"x","message":"y"}"#;
    let others = [r#"{"ev":"T","sym":"AAPL"}"#, r#"{"ev":"ZZ"}"#, r#"{"ev":"NOI","T":"GE"}"#];
    sim.handle.publish(&events(&[trade, others[0], others[1], bands, others[2], fair, status]));
    sim.handle.publish(&events(&others));
    sim.handle.publish_raw(r#" [ {"ev":"T","sym":"MSFT"} ] "#);
    let first = format!("[{trade},{bands},{fair},{status}]");
    assert_eq!(client.text().await, first);
    let raw = r#" [ {"ev":"T","sym":"MSFT"} ] "#;
    assert_eq!(client.text().await, raw, "no empty frame between");
    assert_eq!(sim.handle.sent(), [first.as_str(), raw]);
    sim.until("the counts", |sim| sim.stats().frames_sent == 2).await;
    assert_eq!(sim.handle.stats().events_sent, 5);
}

#[tokio::test]
async fn generated_events_are_filtered_batched_and_recorded() {
    let config = SimConfig {
        rate: 20_000.0,
        symbols: 200,
        frame_events: 7,
        record: true,
        ..SimConfig::default()
    };
    let sim = Sim::start(config).await;
    let mut client = sim.subscriber("T.*,Q.AAPL").await;
    let mut frames = read(&mut client, 3_000).await;
    client.send(r#"{"action":"unsubscribe","params":"T.*,Q.AAPL"}"#).await;
    loop {
        let frame = client.text().await;
        if frame.contains("unsubscribed to") {
            break;
        }
        frames.push(frame);
    }
    assert_eq!(frames, sim.handle.sent());
    let mut largest = 0;
    for frame in &frames {
        let all: Vec<Value> = serde_json::from_str(frame).unwrap();
        largest = largest.max(all.len());
        for event in &all {
            let wanted = event["ev"] == "T" || (event["ev"] == "Q" && event["sym"] == "AAPL");
            assert!(wanted, "{event}");
        }
    }
    assert!(largest >= 7, "{largest}");
    client.is_quiet().await;
}

#[tokio::test]
async fn generated_trades_have_unique_ids_and_growing_sequences() {
    let sim = Sim::start(SimConfig { rate: 50_000.0, ..SimConfig::default() }).await;
    let mut client = sim.subscriber("T.*").await;
    let (mut id, mut sequence) = (0, 0);
    for frame in read(&mut client, 5_000).await {
        for event in serde_json::from_str::<Vec<Value>>(&frame).unwrap() {
            let next: u64 = event["i"].as_str().unwrap().parse().unwrap();
            assert!(next > id && event["q"].as_u64().unwrap() > sequence, "{event}");
            (id, sequence) = (next, event["q"].as_u64().unwrap());
        }
    }
}

#[tokio::test]
async fn nothing_is_generated_while_no_client_is_subscribed() {
    let sim = Sim::start(SimConfig { rate: 50_000.0, ..SimConfig::default() }).await;
    let mut client = sim.connect().await;
    client.log_in().await;
    client.is_quiet().await;
    assert_eq!(sim.handle.stats().events_generated, 0);
    client.subscribe("Q.*").await;
    read(&mut client, 100).await;
    sim.handle.set_rate(0.0);
    client.send(r#"{"action":"unsubscribe","params":"Q.*"}"#).await;
    while !client.text().await.contains("unsubscribed") {}
    client.is_quiet().await;
}

#[tokio::test]
async fn the_open_bursts() {
    let config = SimConfig { rate: 2_000.0, profile: Profile::Open, ..SimConfig::default() };
    let sim = Sim::start(config).await;
    let _client = sim.subscriber("NOI.*").await;
    let start = std::time::Instant::now();
    sim.until("a burst", |sim| sim.stats().events_generated > 4_000).await;
    // At the plain rate this would take two seconds.
    assert!(start.elapsed() < Duration::from_millis(1_500), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_lagging_client_gets_bigger_frames() {
    let config = SimConfig { rate: 100_000.0, frame_events: 10, ..SimConfig::default() };
    let sim = Sim::start(config).await;
    let mut client = sim.subscriber("T.*,Q.*").await;
    // The client does not read until the socket's buffers are full and a backlog has built up.
    sim.until("a backlog", |sim| {
        let stats = sim.stats();
        stats.events_generated > stats.events_sent + 30_000
    })
    .await;
    // Everything generated so far. The backlog comes after what the socket's buffers hold.
    let made = usize::try_from(sim.handle.stats().events_generated).unwrap();
    let frames = read(&mut client, made).await;
    assert!(frames.iter().all(|frame| frame.len() <= 960_000));
    let events = |frame: &String| serde_json::from_str::<Vec<Value>>(frame).unwrap().len();
    let largest = frames.iter().map(events).max().unwrap();
    assert!(largest >= 100, "ten times the usual at least: {largest}");
    assert_eq!(sim.handle.stats().slow_kills, 0);
}

#[tokio::test]
async fn a_client_past_the_buffer_is_killed_alone() {
    let config = SimConfig {
        rate: 100_000.0,
        buffer_bytes: 1 << 20,
        max_connections: 2,
        ..SimConfig::default()
    };
    let sim = Sim::start(config).await;
    let mut quick = sim.subscriber("NOI.*").await;
    let mut slow = sim.subscriber("T.*,Q.*").await;
    sim.until("the kill", |sim| sim.stats().slow_kills == 1).await;
    assert_eq!(slow.end().await, Ended::Dropped);
    read(&mut quick, 3).await;
    assert_eq!(sim.handle.stats().slow_kills, 1);
}
