//! Where the data of a market comes from: two hosts, several connections, a key of its own.

use polygon_sim::{Fault, SimConfig};
use tests::{
    http::get,
    program::Launch,
    stack::{self, CLIENT_KEY, ReservedPort, Sim, VENDOR_KEY, is_complete, is_up},
    wait::{SOON, eventually},
    ws_client::TestClient,
};

use crate::events::trade;

fn minute_bar(seq: usize) -> String {
    format!(r#"{{"ev":"AM","sym":"AAPL","v":{seq},"c":1.5}}"#)
}

/// A firehose whose market comes from two hosts.
fn firehose(trades: &Sim, bars: &Sim) -> Launch {
    let urls = format!("ws://{}=T,Q,ws://{}=AM,FMV", trades.addr(), bars.addr());
    stack::firehose(&trades.url("stocks")).env("POLYGON_WS_URL_STOCKS", urls)
}

#[tokio::test]
async fn a_market_may_come_from_two_hosts_and_has_one_outage_for_both() {
    let (trades, bars) = (Sim::start().await, Sim::start().await);
    let firehose = firehose(&trades, &bars).start().await;
    is_up(&firehose).await;
    let filtered = stack::filtered(firehose.addr()).start().await;
    is_complete(&filtered).await;
    let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    client.subscribe("T.AAPL,AM.AAPL,FMV.AAPL").await;
    // Each host is asked for what it serves, and for nothing else.
    let asked = |sim: &Sim| sim.handle.subscriptions().into_iter().collect::<Vec<_>>().join(",");
    assert_eq!((&*asked(&trades), &*asked(&bars)), ("Q.*,T.*", "AM.*,FMV.*"));
    trades.handle.publish(&[trade("AAPL", 1)]);
    client.expect_objects(&[trade("AAPL", 1)]).await;
    bars.handle.publish(&[minute_bar(1)]);
    client.expect_objects(&[minute_bar(1)]).await;

    bars.handle.inject(Fault::RefuseTcp { on: true });
    bars.handle.inject(Fault::Abort);
    let down = client.next_notice().await;
    assert_eq!(down[..2], ["upstream_down", "firehose"]);
    // The other host's data goes on. Refused attempts change the reason of the same outage.
    trades.handle.publish(&[trade("AAPL", 2)]);
    assert_eq!(client.next_but_notices().await, trade("AAPL", 2));
    let health = get(firehose.addr(), "/health").await;
    assert_eq!(health.json()["status"], "degraded");
    let problem = health.json()["problems"][0].to_string();
    assert!(problem.contains(&bars.addr().to_string()), "{problem}");
    assert!(!problem.contains(&trades.addr().to_string()), "{problem}");
    bars.handle.inject(Fault::RefuseTcp { on: false });
    eventually(SOON, "both hosts are connected", async || {
        get(firehose.addr(), "/health").await.json()["status"] == "ok"
    })
    .await;
    let mut notice = client.next_notice().await;
    while notice[0] == "upstream_down" {
        notice = client.next_notice().await;
    }
    assert_eq!(notice[..2], ["upstream_up", "firehose"]);
    bars.handle.publish(&[minute_bar(2)]);
    client.expect_objects(&[minute_bar(2)]).await;
    assert_eq!(trades.handle.stats().connections_accepted, 1, "the other link stayed");
}

#[tokio::test]
async fn a_type_that_is_refused_by_one_host_is_refused_alone() {
    let lacking = SimConfig { refuse: vec!["FMV".to_owned()], ..SimConfig::default() };
    let (trades, bars) = (Sim::start().await, Sim::with(lacking).await);
    let firehose = firehose(&trades, &bars).start().await;
    is_up(&firehose).await;
    let filtered = stack::filtered(firehose.addr()).start().await;
    is_complete(&filtered).await;
    let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    client.command("subscribe", "FMV.AAPL,T.AAPL").await;
    let refused = client.next_object().await;
    assert!(refused.contains(r#""status":"error""#) && refused.contains("FMV"), "{refused}");
    client.expect_status("success", "subscribed to: T.AAPL").await;
}

#[tokio::test]
async fn a_market_may_have_a_key_of_its_own_account() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&format!("ws://{}", sim.addr()))
        .env("POLYGON_API_KEY", "key-of-another-account")
        .env("POLYGON_API_KEY_STOCKS", VENDOR_KEY)
        .start()
        .await;
    is_up(&firehose).await;
    assert_eq!(sim.handle.stats().auth_failures, 0);
    let log = firehose.log_text();
    assert!(!log.contains(VENDOR_KEY) && !log.contains("key-of-another-account"));
}

#[tokio::test]
async fn sources_that_contradict_each_other_stop_the_program() {
    for (name, value, error) in [
        (
            "POLYGON_WS_URL_STOCKS",
            "ws://a.example=T,ws://b.example",
            "expected the types of each URL",
        ),
        ("POLYGON_WS_URL_STOCKS", "ws://a.example=T,ws://b.example=T", "expected each type once"),
        ("POLYGON_WS_URL_STOCKS", "ws://a.example/crypto", "expected the path /stocks"),
        ("UPSTREAM_CHANNELS_STOCKS", "*", "expected event types such as T,Q,AM"),
        ("UPSTREAM_CONNECTIONS_OPTIONS", "0", "expected a whole number of 1 or more"),
    ] {
        let port = ReservedPort::new();
        let launch = stack::firehose(&format!("ws://{}", port.addr())).env(name, value);
        let finished = launch.run(SOON).await;
        assert_eq!(finished.code, Some(2), "{name}");
        let line = finished.stderr.trim();
        assert!(line.starts_with(&format!("{name}: ")) && line.contains(error), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    let port = ReservedPort::new();
    let finished = stack::firehose(&format!("ws://{}", port.addr()))
        .env("POLYGON_WS_URL_STOCKS", "ws://a.example=T,ws://b.example=Q")
        .env("UPSTREAM_CHANNELS", "T,Q,AM")
        .run(SOON)
        .await;
    let line = finished.stderr.trim();
    let expected = "POLYGON_WS_URL_STOCKS: not set: expected a URL with the type AM";
    assert!(line.starts_with(expected), "{line}");
}
