//! Each fault, as a client sees it.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use polygon_sim::{Fault, SimConfig};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::client::{AUTHENTICATED, Client, EVICTED, Ended, GREETING, Sim, events, status, within};

const AUTH: &str = r#"{"action":"auth","params":"sim-key"}"#;
/// Long enough for an answer on loopback. Used only where no answer may come.
const NO_ANSWER: Duration = Duration::from_millis(150);

async fn hears_nothing(client: &mut Client) {
    let heard = timeout(NO_ANSWER, client.0.next()).await;
    assert!(heard.is_err(), "{heard:?}");
}

#[tokio::test]
async fn auth_is_refused_while_on() {
    let sim = Sim::plain().await;
    let plan =
        "Your plan doesn't include websocket access. Visit https://polygon.io/pricing to upgrade.";
    for (fault, off, text) in [
        (Fault::RefuseAuth { on: true }, Fault::RefuseAuth { on: false }, "authentication failed"),
        (Fault::PlanLacksMarket { on: true }, Fault::PlanLacksMarket { on: false }, plan),
    ] {
        sim.handle.inject(fault);
        let mut client = sim.connect().await;
        assert_eq!(client.text().await, GREETING);
        client.send(AUTH).await;
        assert_eq!(client.text().await, status("auth_failed", text));
        assert_eq!(client.end().await, Ended::Dropped);
        sim.handle.inject(off);
        sim.connect().await.log_in().await;
    }
}

#[tokio::test]
async fn eviction_and_eviction_on_auth() {
    let sim = Sim::plain().await;
    let mut first = sim.subscriber("T.*").await;
    sim.handle.inject(Fault::EvictOnAuth { on: true });
    for _ in 0..2 {
        let mut client = sim.connect().await;
        client.send(AUTH).await;
        assert_eq!(client.text().await, GREETING);
        assert_eq!(client.text().await, AUTHENTICATED);
        assert_eq!(client.text().await, EVICTED);
        assert_eq!(client.end().await, Ended::Closed(1008));
    }
    first.is_quiet().await;
    sim.handle.inject(Fault::Evict);
    assert_eq!(first.text().await, EVICTED);
    assert_eq!(first.end().await, Ended::Closed(1008));
    assert_eq!(sim.handle.stats().evictions, 3);
}

#[tokio::test]
async fn abort_ends_without_a_close_frame() {
    let sim = Sim::plain().await;
    let mut client = sim.subscriber("T.*").await;
    sim.handle.inject(Fault::Abort);
    assert_eq!(client.end().await, Ended::Dropped);
    sim.until("the connection to leave", |sim| sim.stats().connections_now == 0).await;
}

#[tokio::test]
async fn a_close_comes_with_its_code_after_what_was_queued() {
    let sim = Sim::plain().await;
    let mut client = sim.subscriber("T.*").await;
    sim.handle.publish_raw("[]");
    sim.handle.inject(Fault::CloseWith { code: 1012, reason: String::new() });
    assert_eq!(client.text().await, "[]");
    assert_eq!(client.end().await, Ended::Closed(1012));
}

#[tokio::test]
async fn silence_answers_nothing_until_it_ends() {
    let sim = Sim::plain().await;
    let mut client = sim.subscriber("T.*").await;
    sim.handle.inject(Fault::Silence { on: true });
    within("sending", client.0.send(Message::Ping("p".into()))).await.unwrap();
    sim.handle.publish(&events(&[r#"{"ev":"T","sym":"LOST"}"#]));
    hears_nothing(&mut client).await;
    let upgrade = timeout(NO_ANSWER, tokio_tungstenite::connect_async(&sim.url)).await;
    assert!(upgrade.is_err(), "an upgrade was answered");
    sim.handle.inject(Fault::Silence { on: false });
    assert_eq!(client.message().await, Ok(Message::Pong("p".into())));
    sim.handle.publish(&events(&[r#"{"ev":"T","sym":"HEARD"}"#]));
    assert_eq!(client.text().await, r#"[{"ev":"T","sym":"HEARD"}]"#);
}

#[tokio::test]
async fn a_silent_connection_can_be_aborted() {
    let sim = Sim::plain().await;
    let mut client = sim.subscriber("T.*").await;
    sim.handle.inject(Fault::Silence { on: true });
    sim.handle.inject(Fault::Abort);
    assert_eq!(client.end().await, Ended::Dropped);
}

#[tokio::test]
async fn greeting_and_verdict_can_be_left_out() {
    let sim = Sim::plain().await;
    sim.handle.inject(Fault::NoGreeting { on: true });
    let mut client = sim.connect().await;
    hears_nothing(&mut client).await;
    sim.handle.inject(Fault::NoVerdict { on: true });
    client.send(AUTH).await;
    hears_nothing(&mut client).await;
    sim.handle.inject(Fault::NoVerdict { on: false });
    client.send(AUTH).await;
    assert_eq!(client.text().await, AUTHENTICATED);
    sim.handle.inject(Fault::NoGreeting { on: false });
    assert_eq!(sim.connect().await.text().await, GREETING);
}

#[tokio::test]
async fn tcp_and_upgrades_can_be_refused() {
    let sim = Sim::plain().await;
    sim.handle.inject(Fault::RefuseTcp { on: true });
    assert!(matches!(Client::open(&sim.url).await, Err(Error::Io(_) | Error::Protocol(_))));
    sim.handle.inject(Fault::RefuseTcp { on: false });
    sim.handle.inject(Fault::RefuseUpgrade { status: Some(503), header: None });
    match Client::open(&sim.url).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), 503),
        other => panic!("{other:?}"),
    }
    sim.handle.inject(Fault::RefuseUpgrade { status: None, header: None });
    sim.connect().await.log_in().await;
    let stats = sim.handle.stats();
    assert_eq!((stats.tcp_accepted, stats.tcp_refused, stats.upgrades_refused), (3, 1, 1));
}

#[tokio::test]
async fn garbage_and_binary_reach_those_authenticated() {
    let sim = Sim::start(SimConfig { record: true, ..SimConfig::default() }).await;
    let mut stranger = sim.connect().await;
    assert_eq!(stranger.text().await, GREETING);
    let mut client = sim.subscriber("T.*").await;
    sim.handle.inject(Fault::Garbage);
    let garbage = client.text().await;
    assert!(serde_json::from_str::<serde_json::Value>(&garbage).is_err(), "{garbage}");
    sim.handle.inject(Fault::Binary);
    assert!(matches!(client.message().await, Ok(Message::Binary(_))));
    client.is_quiet().await;
    stranger.is_quiet().await;
    assert!(sim.handle.sent().is_empty(), "neither is data");
}

#[tokio::test]
async fn raw_frames_go_out_as_they_are() {
    let sim = Sim::plain().await;
    let mut client = sim.subscriber("T.*").await;
    for text in ["", "\r\n", "[null,5]", "[{\"ev\":\"T\",\"sym\":\"A\u{1}\",}]"] {
        sim.handle.inject(Fault::RawText { text: text.to_owned() });
        assert_eq!(client.text().await, text);
    }
    for bytes in [vec![], vec![1]] {
        sim.handle.inject(Fault::RawBinary { bytes: bytes.clone() });
        assert!(matches!(client.message().await, Ok(Message::Binary(came)) if came == bytes));
    }
}

#[tokio::test]
async fn a_huge_frame_holds_what_is_subscribed() {
    let sim = Sim::plain().await;
    let mut client = sim.subscriber("T.*,Q.*").await;
    sim.handle.inject(Fault::HugeFrame { events: 20_000 });
    let frame = client.text().await;
    let all: Vec<serde_json::Value> = serde_json::from_str(&frame).unwrap();
    assert!((19_000..20_000).contains(&all.len()), "{}", all.len());
    assert!(all.iter().all(|event| event["ev"] == "T" || event["ev"] == "Q"));
    assert!(frame.len() > 2_000_000);
    sim.until("the count", |sim| sim.stats().largest_frame_events == all.len() as u64).await;
}

#[tokio::test]
async fn slow_bytes_take_their_time() {
    let sim = Sim::plain().await;
    let mut client = sim.subscriber("T.*").await;
    sim.handle.inject(Fault::Slow { bytes_per_second: Some(10_000) });
    let text = format!("[\"{}\"]", "x".repeat(3_000));
    let start = Instant::now();
    sim.handle.publish_raw(&text);
    assert_eq!(client.text().await, text);
    let took = start.elapsed();
    assert!(took > Duration::from_millis(200), "{took:?}");
    sim.handle.inject(Fault::Slow { bytes_per_second: None });
    sim.handle.publish_raw(&format!("[\"{}\"]", "y".repeat(3_000_000)));
    assert_eq!(client.text().await.len(), 3_000_004);
}

#[tokio::test]
async fn a_status_rides_in_the_next_data_frame() {
    let sim = Sim::plain().await;
    let mut client = sim.subscriber("T.*").await;
    let event = r#"{"ev":"T","sym":"AAPL"}"#;
    sim.handle.inject(Fault::StatusInData);
    sim.handle.publish(&events(&[event, event]));
    sim.handle.publish(&events(&[event, event]));
    let inside = r#"{"ev":"status","status":"success","message":"subscribed to: Q.NTEST.Q"}"#;
    assert_eq!(client.text().await, format!("[{event},{inside},{event}]"));
    assert_eq!(client.text().await, format!("[{event},{event}]"));
}

#[test]
fn faults_read_as_documented() {
    let read = |text| serde_json::from_str::<Fault>(text).unwrap();
    assert_eq!(read(r#"{"fault":"evict"}"#), Fault::Evict);
    assert_eq!(read(r#"{"fault":"silence","on":true}"#), Fault::Silence { on: true });
    assert_eq!(
        read(r#"{"fault":"refuse_upgrade","status":502}"#),
        Fault::RefuseUpgrade { status: Some(502), header: None }
    );
    assert_eq!(read(r#"{"fault":"slow"}"#), Fault::Slow { bytes_per_second: None });
    assert!(serde_json::from_str::<Fault>(r#"{"fault":"close_with"}"#).is_err());
}
