//! Outages: the notices that clients get of them, the causes, and their ends.

use std::time::SystemTime;

use polygon_sim::Fault;
use serde_json::Value;
use tests::{
    program::{Program, Signal},
    relay::Relay,
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Sim, Stack, failed, is_up},
    wait::{SOON, eventually},
    ws_client::TestClient,
};

use crate::{events::trade, tiers::ports, upstream::STOCKS};

#[tokio::test]
async fn notices_of_an_outage_come_in_frames_of_their_own() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("T.AAPL").await;
    let before = unix_millis();
    stack.sim.handle.inject(Fault::Abort);
    let down: Value = serde_json::from_str(&client.next_text().await).expect("a frame");
    let up: Value = serde_json::from_str(&client.next_text().await).expect("a frame");
    for (frame, status) in [(&down, "upstream_down"), (&up, "upstream_up")] {
        let notices = frame.as_array().expect("an array");
        assert_eq!(notices.len(), 1, "{frame}");
        assert_eq!(notices[0]["ev"], "status", "{frame}");
        assert_eq!(notices[0]["status"], status, "{frame}");
        assert_eq!(notices[0]["tier"], "firehose", "{frame}");
        assert!(notices[0]["message"].is_string() && notices[0]["reason"].is_string(), "{frame}");
        assert!(notices[0]["from"].as_u64() >= Some(before), "{frame}");
    }
    let (from, to) = (up[0]["from"].as_u64(), up[0]["to"].as_u64());
    assert_eq!(from, down[0]["from"].as_u64());
    assert!(from <= to && to <= Some(unix_millis()), "{up}");
}

#[tokio::test]
async fn a_client_that_comes_during_an_outage_gets_the_notice() {
    let stack = Stack::start().await;
    let mut witness = stack.subscriber("T.AAPL").await;
    stack.sim.handle.inject(Fault::RefuseTcp { on: true });
    stack.sim.handle.inject(Fault::Abort);
    assert!(witness.next_text().await.contains(r#""status":"upstream_down""#));
    for (addr, key) in ports(&stack) {
        let mut late = TestClient::login(addr, key).await;
        late.command("subscribe", "AAPL").await;
        let refused = late.next_text().await;
        assert!(refused.contains(r#""status":"error""#), "{refused}");
        // A notice for a client that holds nothing would come before this answer.
        late.subscribe("T.AAPL").await;
        let notice: Value = serde_json::from_str(&late.next_text().await).expect("a frame");
        assert_eq!(notice[0]["status"], "upstream_down", "{notice}");
        assert_eq!(notice[0]["tier"], "firehose", "{notice}");
    }
    stack.sim.handle.inject(Fault::RefuseTcp { on: false });
    stack.linked().await;
    let mut later = stack.subscriber("T.AAPL").await;
    stack.publish(&[trade("AAPL", 1)]);
    later.expect_objects(&[trade("AAPL", 1)]).await;
}

/// Whoever is told that events may be missing waits for the end of it.
#[tokio::test]
async fn each_upstream_down_has_its_upstream_up_whatever_the_client_holds_then() {
    let stack = Stack::start().await;
    let [mut before, mut during, mut again, mut refused, mut both] = [const { Vec::new() }; 5];
    for (addr, key) in ports(&stack) {
        for clients in [&mut before, &mut during, &mut again, &mut refused, &mut both] {
            clients.push(TestClient::login(addr, key).await);
        }
    }
    for client in before.iter_mut().chain(&mut both) {
        client.subscribe("T.AAPL").await;
    }
    stack.sim.handle.inject(Fault::RefuseTcp { on: true });
    stack.sim.handle.inject(Fault::Abort);
    let mut reason = String::new();
    for client in before.iter_mut().chain(&mut both) {
        while !reason.starts_with("unreachable") {
            let [status, tier, why] = client.next_notice().await;
            assert_eq!([&*status, &*tier], ["upstream_down", "firehose"]);
            reason = why;
        }
        reason.clear();
    }
    for client in &mut before {
        client.unsubscribe("T.AAPL").await;
    }
    for client in during.iter_mut().chain(&mut again) {
        client.subscribe("T.AAPL").await;
        assert_eq!(client.next_notice().await[0], "upstream_down");
        client.unsubscribe("T.AAPL").await;
    }
    for client in again.iter_mut().chain(&mut both) {
        client.command("subscribe", "Q.AAPL").await;
        let text = client.next_text().await;
        assert!(text.contains("subscribed to: Q.AAPL"), "{text}");
        assert_eq!(client.next_notice().await[0], "upstream_down");
    }
    for client in &mut refused {
        client.command("subscribe", "ZZ.AAPL").await;
        assert!(client.next_text().await.contains(r#""status":"error""#));
    }
    stack.sim.handle.inject(Fault::RefuseTcp { on: false });
    stack.linked().await;
    for client in [&mut before, &mut during, &mut again, &mut both].into_iter().flatten() {
        assert_eq!(client.next_notice().await[..2], ["upstream_up", "firehose"]);
    }
    // Nothing else comes, and nobody is told what it was not told the beginning of.
    for clients in [&mut before, &mut during, &mut again, &mut refused, &mut both] {
        for client in clients {
            client.subscribe("A.AAPL").await;
        }
    }
}

/// The outage of the link ends while that of the firehose goes on, and the client holds nothing.
#[tokio::test]
async fn the_end_of_each_outage_reaches_a_client_that_holds_nothing_meanwhile() {
    let stack = Stack::start().await;
    let relay = Relay::start(stack.firehose.addr()).await;
    let filtered = stack::filtered(relay.addr()).start().await;
    is_up(&filtered).await;
    let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    client.subscribe("T.AAPL").await;
    stack.sim.handle.inject(Fault::RefuseTcp { on: true });
    stack.sim.handle.inject(Fault::Abort);
    while !client.next_notice().await[2].starts_with("unreachable") {}
    stack::cut(&relay, &filtered).await;
    assert_eq!(client.next_notice().await[..2], ["upstream_down", "filtered"]);
    client.unsubscribe("T.AAPL").await;
    relay.heal();
    filtered.signal(Signal::SIGHUP);
    assert_eq!(client.next_notice().await[..2], ["upstream_up", "filtered"]);
    assert_eq!(client.next_notice().await[..2], ["upstream_down", "firehose"]);
    stack.sim.handle.inject(Fault::RefuseTcp { on: false });
    stack.firehose.signal(Signal::SIGHUP);
    assert_eq!(client.next_notice().await[..2], ["upstream_up", "firehose"]);
    // Nothing else comes.
    client.subscribe("A.AAPL").await;
}

#[tokio::test]
async fn a_client_that_gives_up_waiting_for_the_vendors_answer_is_told_the_end() {
    let stack = Stack::start().await;
    stack.sim.handle.inject(Fault::Slow { bytes_per_second: Some(200) });
    let mut direct = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    direct.subscribe("LV.AAPL").await;
    assert_eq!(direct.next_notice().await, ["upstream_down", "firehose", "subscribing"]);
    direct.unsubscribe("LV.AAPL").await;
    assert_eq!(direct.next_notice().await, ["upstream_up", "firehose", "subscribing"]);
}

#[tokio::test]
async fn a_client_that_comes_before_the_first_link_is_complete_gets_the_notice() {
    let port = ReservedPort::new();
    let sim = Sim::start().await;
    sim.handle.inject(Fault::NoVerdict { on: true });
    let filtered = stack::filtered(port.addr()).start().await;
    failed(&filtered, SOON, "unreachable").await;
    let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    client.subscribe("T.AAPL").await;
    let refused = "unreachable: Connection refused (os error 111)";
    assert_eq!(client.next_notice().await, ["upstream_down", "filtered", refused]);
    let launch = stack::firehose(&sim.url("stocks")).env("FIREHOSE_PORT", port.addr().port());
    let firehose = launch.start().await;
    assert_eq!(client.next_notice().await, ["upstream_up", "filtered", refused]);
    assert_eq!(client.next_notice().await, ["upstream_down", "firehose", "starting"]);
    let mut direct = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
    let mut late = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    for client in [&mut direct, &mut late] {
        client.subscribe("T.AAPL").await;
        assert_eq!(client.next_notice().await, ["upstream_down", "firehose", "starting"]);
    }
    let health = filtered.health().await;
    assert_eq!(health["status"], "degraded", "{health}");
    assert!(
        health["problems"][0].as_str().is_some_and(|text| text.ends_with("starting")),
        "{health}"
    );
    sim.handle.inject(Fault::NoVerdict { on: false });
    sim.handle.inject(Fault::Abort);
    let aborted = "connection lost: end of stream without a close frame";
    for client in [&mut client, &mut direct, &mut late] {
        assert_eq!(client.next_notice().await, ["upstream_down", "firehose", aborted]);
        assert_eq!(client.next_notice().await, ["upstream_up", "firehose", aborted]);
    }
    sim.handle.publish(&[trade("AAPL", 1)]);
    for client in [&mut client, &mut direct, &mut late] {
        client.expect_objects(&[trade("AAPL", 1)]).await;
    }
}

/// Whoever waits for data must know what stands in its way, however far from the vendor.
#[tokio::test]
async fn the_cause_of_an_outage_reaches_clients_and_health_and_again_when_it_changes() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("T.AAPL").await;
    let mut direct = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    direct.subscribe("T.AAPL").await;
    let hub = &stack.sim.handle;
    let on_auth = |on| [Fault::PlanLacksMarket { on }, Fault::RefuseAuth { on: false }];
    let http = |status| vec![Fault::RefuseUpgrade { status, header: None }];
    // Each cause ends as the next one begins.
    let causes = [
        (vec![Fault::RefuseTcp { on: true }, Fault::Abort], "connection lost: "),
        (vec![], "unreachable: "),
        (http(Some(404)), "unreachable: HTTP 404"),
        (on_auth(true).to_vec(), "auth_failed: Your plan doesn't include websocket access."),
        (vec![Fault::EvictOnAuth { on: true }], "max_connections: "),
    ];
    let ends = [
        vec![],
        vec![Fault::RefuseTcp { on: false }],
        http(None),
        on_auth(false).to_vec(),
        vec![Fault::EvictOnAuth { on: false }],
    ];
    let (mut started, mut reason) = (None, String::new());
    for ((faults, cause), end) in causes.into_iter().zip([vec![]].into_iter().chain(ends)) {
        for fault in faults.into_iter().chain(end) {
            hub.inject(fault);
        }
        eventually(SOON, "it waits", async || {
            let state = stack.firehose.health_text("/upstream/state").await;
            ["waiting", "refused"].contains(&&*state)
        })
        .await;
        stack.firehose.signal(Signal::SIGHUP);
        for client in [&mut client, &mut direct] {
            reason = loop {
                let text = client.next_text().await;
                let notices: Value = serde_json::from_str(&text).expect("a frame");
                assert_eq!(notices[0]["status"], "upstream_down", "{text}");
                assert_eq!(notices[0]["tier"], "firehose", "{text}");
                let from = started.get_or_insert_with(|| notices[0]["from"].clone());
                assert_eq!(notices[0]["from"], *from, "one outage: {text}");
                let reason = notices[0]["reason"].as_str().expect("a reason").to_owned();
                if reason.starts_with(cause) {
                    break reason;
                }
            };
        }
        // The first cause lasts until the first attempt only.
        if cause.starts_with("connection lost") {
            continue;
        }
        let told = async |program: &Program| {
            let health = program.health().await;
            let problem = health["problems"][0].as_str().unwrap_or_default().to_owned();
            health["status"] != "ok" && problem.contains(cause)
        };
        eventually(SOON, "both tell it", async || {
            told(&stack.firehose).await && told(&stack.filtered[0]).await
        })
        .await;
    }
    hub.inject(Fault::EvictOnAuth { on: false });
    stack.firehose.signal(Signal::SIGHUP);
    for client in [&mut client, &mut direct] {
        assert_eq!(client.next_notice().await, ["upstream_up", "firehose", &*reason]);
    }
    stack.linked().await;
}

#[tokio::test]
async fn a_cause_that_stays_is_told_once() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("T.AAPL").await;
    let refuse = |status| Fault::RefuseUpgrade { status, header: None };
    stack.sim.handle.inject(refuse(Some(500)));
    stack.sim.handle.inject(Fault::Abort);
    let mut reasons = Vec::new();
    for _ in 0..2 {
        reasons.push(client.next_notice().await[2].clone());
    }
    assert_ne!(reasons[0], reasons[1]);
    let refused = stack.sim.handle.stats().upgrades_refused;
    eventually(SOON, "more attempts fail", async || {
        stack.firehose.signal(Signal::SIGHUP);
        stack.sim.handle.stats().upgrades_refused > refused + 3
    })
    .await;
    stack.sim.handle.inject(refuse(None));
    assert_eq!(client.next_notice().await, ["upstream_up", "firehose", &*reasons[1]]);
}

/// The firehose acknowledges `*` at once and requests the vendor's channels one after the other.
#[tokio::test]
async fn what_passes_before_each_channel_is_carried_lies_between_notices() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).start().await;
    is_up(&firehose).await;
    // Each acknowledgement takes some tenths of a second.
    sim.handle.inject(Fault::Slow { bytes_per_second: Some(200) });
    let filtered = stack::filtered(firehose.addr()).start().await;
    let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    client.subscribe("FMV.AAPL").await;
    loop {
        let notice = client.next_notice().await;
        if notice[1] == "firehose" {
            assert_eq!(notice, ["upstream_down", "firehose", "subscribing"]);
            break;
        }
        assert_eq!(notice[1..], ["filtered", "starting"]);
    }
    let fair_value = |n: usize| format!(r#"{{"ev":"FMV","fmv":1.5,"sym":"AAPL","t":{n}}}"#);
    assert!(!sim.handle.subscriptions().contains("FMV.*"), "the last channel is carried already");
    sim.handle.publish(&[fair_value(1)]);
    assert_eq!(client.next_notice().await, ["upstream_up", "firehose", "subscribing"]);
    assert_eq!(sim.handle.subscriptions(), STOCKS.map(str::to_owned).into());
    sim.handle.publish(&[fair_value(2)]);
    client.expect_objects(&[fair_value(2)]).await;
}

#[tokio::test]
async fn only_clients_that_ask_for_a_channel_not_yet_carried_have_to_wait() {
    let stack = Stack::start().await;
    let mut other = stack.subscriber("T.AAPL").await;
    let mut direct = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    direct.subscribe("T.AAPL,Q.*").await;
    stack.publish(&[trade("AAPL", 1)]);
    direct.expect_objects(&[trade("AAPL", 1)]).await;
    direct.subscribe("LV.AAPL").await;
    for status in ["upstream_down", "upstream_up"] {
        assert_eq!(direct.next_notice().await, [status, "firehose", "subscribing"]);
    }
    stack.publish(&[trade("AAPL", 2)]);
    direct.expect_objects(&[trade("AAPL", 2)]).await;
    other.expect_objects(&[trade("AAPL", 1), trade("AAPL", 2)]).await;
}

fn unix_millis() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().expect("a clock past 1970");
    u64::try_from(since.as_millis()).expect("not so late")
}
