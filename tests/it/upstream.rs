//! Both links: one connection for all clients, losses, refusals, any order of starting.

use std::time::{Duration, SystemTime};

use polygon_sim::{Fault, SimConfig};
use serde_json::{Value, json};
use tests::{
    program::{Program, Signal},
    stack::{
        self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Sim, Stack, StackConfig, failed, in_state,
        is_up,
    },
    wait::{SOON, eventually, holds_for},
    ws_client::TestClient,
};

use crate::events::{quote, trade};

/// The channels of the stock market.
pub(crate) const STOCKS: [&str; 7] = ["A.*", "AM.*", "FMV.*", "LULD.*", "NOI.*", "Q.*", "T.*"];

async fn carries(program: &Program, expected: &[&str]) -> bool {
    let health = program.health().await;
    if health["upstream"]["state"] != "up" {
        return false;
    }
    let carried = health["channels"]["carried"].as_array().cloned().unwrap_or_default();
    let mut carried: Vec<_> = carried.iter().filter_map(Value::as_str).collect();
    carried.sort_unstable();
    carried == expected
}

/// Waits until a filtered proxy's firehose is linked to the simulator and every channel is
/// subscribed on the way.
async fn is_linked(sim: &Sim, filtered: &Program) {
    eventually(SOON, "everything is subscribed", async || {
        let all = STOCKS.map(str::to_owned).into();
        carries(filtered, &["*"]).await && sim.handle.subscriptions() == all
    })
    .await;
}

#[tokio::test]
async fn any_number_of_proxies_and_clients_share_one_connection_and_one_login() {
    let stack = Stack::with(StackConfig { filtered: 2, ..StackConfig::default() }).await;
    let mut clients = Vec::new();
    for n in 0..40 {
        let mut client = TestClient::login(stack.filtered[n % 2].addr(), CLIENT_KEY).await;
        client.subscribe(["T.AAPL", "*", "Q.AAPL,T.*", "T.MSFT"][n / 2 % 4]).await;
        clients.push(client);
    }
    let events = [trade("AAPL", 1), quote("AAPL", 2), trade("MSFT", 3)];
    stack.publish(&events);
    for (n, client) in clients.iter_mut().enumerate() {
        let expected: &[usize] = [&[0][..], &[0, 1, 2], &[0, 1, 2], &[2]][n / 2 % 4];
        client.expect_objects(&expected.iter().map(|&n| &events[n]).collect::<Vec<_>>()).await;
    }
    let stats = stack.sim.handle.stats();
    assert_eq!((stats.tcp_accepted, stats.auths, stats.connections_now), (1, 1, 1));
    assert_eq!(stack.sim.handle.subscriptions(), STOCKS.map(str::to_owned).into());
}

/// It is unknown whether the vendor delivers an event twice if two subscriptions of a connection
/// match it, so nothing is requested twice.
#[tokio::test]
async fn a_channel_within_a_wildcard_is_not_asked_for_again() {
    let stack = Stack::start().await;
    let mut direct = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    direct.subscribe("T.AAPL,Q.*").await;
    let mut other = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    // Requests keep their order, so the earlier commands have been handled once this one has.
    other.subscribe("LV.AAPL").await;
    eventually(SOON, "a channel outside every wildcard is requested", async || {
        stack.sim.handle.commands().iter().any(|command| command.contains("LV.AAPL"))
    })
    .await;
    assert_eq!(stack.sim.handle.subscriptions(), STOCKS.map(str::to_owned).into());
}

#[tokio::test]
async fn channels_are_asked_of_the_vendor_one_by_one_and_never_all_at_once() {
    let stack = Stack::start().await;
    let client = stack.subscriber("*,T.AAPL,Q.*").await;
    client.close().await;
    let mut asked = Vec::new();
    for command in stack.sim.handle.commands() {
        let command: Value = serde_json::from_str(&command).expect("a command of ours is JSON");
        if command["action"] != "auth" {
            assert_eq!(command["action"], "subscribe", "{command}");
            asked.push(command["params"].as_str().expect("params are a string").to_owned());
        }
    }
    asked.sort_unstable();
    assert_eq!(asked, STOCKS, "a client's subscription never goes upstream");
}

#[tokio::test]
async fn upstream_channels_can_be_chosen() {
    let stack = Stack::with(StackConfig {
        firehose_env: vec![("UPSTREAM_CHANNELS", "T.*, Q.AAPL".to_owned())],
        ..StackConfig::default()
    })
    .await;
    eventually(SOON, "both are carried", async || {
        carries(&stack.firehose, &["Q.AAPL", "T.*"]).await
    })
    .await;
    assert_eq!(
        stack.sim.handle.subscriptions(),
        ["Q.AAPL", "T.*"].map(str::to_owned).into(),
        "nothing else is requested"
    );
    let mut client = stack.subscriber("*").await;
    let events = [trade("MSFT", 1), quote("MSFT", 2), quote("AAPL", 3)];
    stack.publish(&events);
    client.expect_objects(&[&events[0], &events[2]]).await;
}

#[tokio::test]
async fn a_firehose_asks_for_what_its_clients_want_and_drops_it_after_the_last_one_left() {
    let sim = Sim::start().await;
    let firehose =
        stack::firehose(&sim.url("stocks")).env("UPSTREAM_LINGER", "200ms").start().await;
    is_up(&firehose).await;
    let held = async |expected: &[&str]| {
        let expected = expected.iter().map(|&channel| channel.to_owned()).collect();
        let what = format!("upstream holds {expected:?}");
        eventually(SOON, &what, async || sim.handle.subscriptions() == expected).await;
    };
    let mut one = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
    let mut two = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
    one.subscribe("T.AAPL,T.MSFT").await;
    held(&["T.AAPL", "T.MSFT"]).await;
    two.subscribe("T.AAPL,Q.*").await;
    for status in ["upstream_down", "upstream_up"] {
        assert_eq!(two.next_notice().await, [status, "firehose", "subscribing"]);
    }
    held(&["Q.*", "T.AAPL", "T.MSFT"]).await;
    one.close().await;
    held(&["Q.*", "T.AAPL"]).await;
    two.unsubscribe("Q.*").await;
    held(&["T.AAPL"]).await;
    drop(two);
    held(&[]).await;
    assert_eq!(sim.handle.stats().connections_accepted, 1);
}

#[tokio::test]
async fn a_refused_channel_is_reported_and_the_rest_goes_on() {
    let sim =
        SimConfig { refuse: vec!["FMV".to_owned(), "NOI".to_owned()], ..SimConfig::default() };
    let stack = Stack::with(StackConfig { sim, ..StackConfig::default() }).await;
    eventually(SOON, "every channel that the plan allows is carried", async || {
        carries(&stack.firehose, &["A.*", "AM.*", "LULD.*", "Q.*", "T.*"]).await
    })
    .await;
    let response = tests::http::get(stack.firehose.addr(), "/health").await;
    assert_eq!(response.status, 200);
    let health = response.json();
    assert_eq!(health["status"], "degraded");
    let mut refused: Vec<_> = health["channels"]["refused"].as_array().cloned().unwrap_or_default();
    refused.sort_by_key(ToString::to_string);
    assert_eq!(refused, [json!("FMV.*"), json!("NOI.*")]);
    let mut client = stack.subscriber("*").await;
    stack.publish(&[trade("AAPL", 1)]);
    client.expect_objects(&[trade("AAPL", 1)]).await;
    assert_eq!(stack.sim.handle.stats().connections_accepted, 1);
}

#[tokio::test]
async fn a_refused_channel_without_subscribers_is_no_problem() {
    let sim = Sim::with(SimConfig { refuse: vec!["FMV".to_owned()], ..SimConfig::default() }).await;
    let launch = stack::firehose(&sim.url("stocks")).env("UPSTREAM_LINGER", "1ms");
    let firehose = launch.start().await;
    let mut holder = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
    holder.command("subscribe", "T.AAPL").await;
    let mut other = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
    other.command("subscribe", "FMV.AAPL").await;
    let status = async |wanted: &str| firehose.health_text("/status").await == wanted;
    eventually(SOON, "the refusal is a problem", async || status("degraded").await).await;
    other.close().await;
    eventually(SOON, "the refusal is no longer a problem", async || status("ok").await).await;
}

#[tokio::test]
async fn clients_stay_through_every_way_of_losing_the_vendor() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("T.AAPL").await;
    // Only a few, because the delay grows with each retry.
    let close = |code| Fault::CloseWith { code, reason: String::new() };
    let losses = [Fault::Abort, close(1000), close(1012)];
    for (n, loss) in losses.clone().into_iter().enumerate() {
        let logins = stack.sim.handle.stats().auths;
        stack.sim.handle.inject(loss);
        eventually(SOON, "the firehose is back", async || {
            stack.sim.handle.stats().auths == logins + 1
        })
        .await;
        eventually(SOON, "everything is subscribed again", async || {
            stack.sim.handle.subscriptions() == STOCKS.map(str::to_owned).into()
        })
        .await;
        stack.publish(&[quote("AAPL", n), trade("AAPL", n)]);
        client.expect_event(&trade("AAPL", n)).await;
    }
    let health = stack.firehose.health().await;
    assert_eq!(health["upstream"]["reconnects"], losses.len(), "{health}");
    let (upstream, known) = (&health["upstream"], |value: &Value| value.is_string());
    let outage = &upstream["last_outage"];
    assert!(known(&outage["from"]) && known(&outage["to"]), "{health}");
    assert_eq!(outage["reason"], "connection lost: closed with code 1012", "{health}");
    assert_eq!(upstream["last_error"], Value::Null, "an error of the past: {health}");
    client.command("subscribe", "T.MSFT").await;
    client.expect_status("success", "subscribed to: T.MSFT").await;
}

#[tokio::test]
async fn the_first_retry_comes_at_once() {
    let stack = Stack::start().await;
    let before = std::time::Instant::now();
    stack.sim.handle.inject(Fault::Abort);
    eventually(SOON, "the firehose is back", async || stack.sim.handle.stats().auths == 2).await;
    // Under 250 ms by design. The rest is for a busy machine.
    let took = before.elapsed();
    assert!(took < Duration::from_secs(2), "back after {took:?}");
}

#[tokio::test]
async fn login_waits_for_a_slow_vendor_and_survives_a_broken_one() {
    let sim = Sim::start().await;
    sim.handle.inject(Fault::RefuseTcp { on: true });
    let firehose = stack::firehose(&sim.url("stocks")).start().await;
    eventually(SOON, "a try fails", async || sim.handle.stats().tcp_refused > 0).await;
    in_state(&firehose, "waiting").await;
    sim.handle.inject(Fault::RefuseTcp { on: false });
    sim.handle.inject(Fault::RefuseUpgrade { status: Some(503), header: None });
    eventually(SOON, "a try fails", async || sim.handle.stats().upgrades_refused > 0).await;
    sim.handle.inject(Fault::RefuseUpgrade { status: None, header: None });
    sim.handle.inject(Fault::NoVerdict { on: true });
    in_state(&firehose, "authenticating").await;
    sim.handle.inject(Fault::NoVerdict { on: false });
    sim.handle.inject(Fault::Abort);
    is_up(&firehose).await;
}

/// Each of these says the same: another process has the account's connection.
#[tokio::test]
async fn an_eviction_is_known_by_any_of_its_words() {
    let error = |status: &str, message: &str| {
        format!(r#"[{{"ev":"status","status":"{status}","message":"{message}"}}]"#)
    };
    let words = "Maximum number of websocket connections exceeded. You have reached the limit.";
    for told in [
        error("error", words),
        error("max_connections", words),
        error("error", "Maximum number of connections exceeded."),
        error("force_disconnect", "bye"),
    ] {
        let sim = Sim::start().await;
        let firehose = stack::firehose(&sim.url("stocks")).start().await;
        is_up(&firehose).await;
        sim.handle.publish_raw(&told);
        failed(&firehose, SOON, "max_connections: another process").await;
        in_state(&firehose, "waiting").await;
        holds_for(Duration::from_secs(2), "a pause", async || sim.handle.stats().auths == 1).await;
    }
}

#[tokio::test]
async fn an_eviction_is_known_by_the_reason_of_a_close() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).start().await;
    is_up(&firehose).await;
    let reason = "Maximum number of websocket connections exceeded.".to_owned();
    sim.handle.inject(Fault::CloseWith { code: 1000, reason });
    failed(&firehose, SOON, "max_connections: another process").await;
    holds_for(Duration::from_secs(2), "a pause", async || sim.handle.stats().auths == 1).await;
}

#[tokio::test]
async fn a_bare_close_1008_is_an_eviction_from_the_second_time_on() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).start().await;
    for auths in 1..=2 {
        eventually(SOON, "up", async || sim.handle.stats().auths == auths).await;
        is_up(&firehose).await;
        sim.handle.inject(Fault::CloseWith { code: 1008, reason: String::new() });
    }
    failed(&firehose, SOON, "max_connections: another process").await;
    holds_for(Duration::from_secs(2), "a pause", async || sim.handle.stats().auths == 2).await;
}

/// A notice of a loss without a loss would make clients fetch what they have.
#[tokio::test]
async fn what_holds_no_events_is_counted_and_is_no_gap() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("T.AAPL").await;
    let lone = r#"[{"status":"disconnected","message":"maintenance"}]"#;
    let empty = r#"[{"ev":"","status":"notice","message":"hello"}]"#;
    for told in ["", "\r\n", "null", "heartbeat", lone, empty] {
        stack.sim.handle.publish_raw(told);
    }
    stack.publish(&[trade("AAPL", 1)]);
    client.expect_objects(&[trade("AAPL", 1)]).await;
    let malformed = stack.firehose.metric("firehose_frames_malformed_total").await;
    assert_eq!(malformed, Some(4.0), "counted");
    // The status is kept as the reason of the end that it announces.
    stack.sim.handle.inject(Fault::Abort);
    failed(&stack.firehose, SOON, "(after notice: hello)").await;
}

/// The official clients take the first frame for the greeting, whatever it says.
#[tokio::test]
async fn any_first_frame_is_the_greeting() {
    for greeting in [
        r#"[{"ev":"status","status":"welcome","message":"hello"}]"#,
        r#"{"status":"connected"}"#,
        "[]",
        "hello",
        "",
    ] {
        let sim = Sim::start().await;
        sim.handle.inject(Fault::GreetWith { text: Some(greeting.to_owned()) });
        let firehose = stack::firehose(&sim.url("stocks")).start().await;
        is_up(&firehose).await;
    }
    let sim = Sim::start().await;
    let refusal = r#"[{"ev":"status","status":"max_connections","message":"too many"}]"#;
    sim.handle.inject(Fault::GreetWith { text: Some(refusal.to_owned()) });
    let firehose = stack::firehose(&sim.url("stocks")).start().await;
    failed(&firehose, SOON, "max_connections").await;
    assert_eq!(sim.handle.stats().auths, 0, "no key is sent after a refusal");
}

#[tokio::test]
async fn a_redirect_is_named_and_not_followed() {
    let (sim, other) = (Sim::start().await, Sim::start().await);
    let place = other.url("stocks");
    let shown = format!("moved to {place:?}");
    for status in [301, 308] {
        let header = Some(("Location".to_owned(), format!("{place}?token=abc")));
        sim.handle.inject(Fault::RefuseUpgrade { status: Some(status), header });
        let mut firehose = stack::firehose(&sim.url("stocks")).start().await;
        failed(&firehose, SOON, &format!("HTTP {status}")).await;
        failed(&firehose, SOON, &shown).await;
        let line = firehose.logged("link is down").await;
        assert!(line["error"].as_str().is_some_and(|e| e.contains(&shown)), "{line}");
        assert!(!firehose.log_text().contains("token=abc"), "a query may hold a secret");
    }
    assert_eq!(other.handle.stats().connections_accepted, 0, "the key stays here");
}

#[tokio::test]
async fn an_upstream_that_names_a_time_is_not_tried_before_it() {
    let in_a_minute = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
    for (status, time) in [(429, "30"), (503, "4"), (429, &in_a_minute)] {
        let sim = Sim::start().await;
        let header = Some(("Retry-After".to_owned(), time.to_owned()));
        sim.handle.inject(Fault::RefuseUpgrade { status: Some(status), header });
        let firehose = stack::firehose(&sim.url("stocks")).start().await;
        failed(&firehose, SOON, &format!("HTTP {status}")).await;
        holds_for(Duration::from_secs(3), "one try", async || {
            sim.handle.stats().upgrades_refused == 1
        })
        .await;
        sim.handle.inject(Fault::RefuseUpgrade { status: None, header: None });
        if time != "4" {
            firehose.signal(Signal::SIGHUP);
        }
        is_up(&firehose).await;
    }
}

#[tokio::test]
async fn a_refused_key_is_reported_and_not_tried_again_at_once() {
    let sim = Sim::start().await;
    sim.handle.inject(Fault::RefuseAuth { on: true });
    let firehose = stack::firehose(&sim.url("stocks")).start().await;
    let filtered = stack::filtered(firehose.addr()).start().await;
    in_state(&firehose, "refused").await;
    let response = tests::http::get(firehose.addr(), "/health").await;
    assert_eq!(response.status, 503);
    let health = response.json();
    assert_eq!(health["status"], "down");
    let reason = health["upstream"]["last_error"].as_str().unwrap_or_default();
    assert!(reason.contains("auth_failed") && reason.contains("authentication failed"), "{reason}");
    // Clients are served anyway, and wait for data.
    is_up(&filtered).await;
    let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    client.subscribe("T.AAPL").await;
    holds_for(Duration::from_secs(3), "one try with a refused key", async || {
        sim.handle.stats().auth_failures == 1
    })
    .await;
    // The operator may request another try. Here it brings the reason about the plan.
    sim.handle.inject(Fault::RefuseAuth { on: false });
    sim.handle.inject(Fault::PlanLacksMarket { on: true });
    firehose.signal(Signal::SIGHUP);
    eventually(SOON, "a second try", async || sim.handle.stats().auth_failures == 2).await;
    eventually(SOON, "the vendor's reason in /health", async || {
        let reason = firehose.health_text("/upstream/last_error").await;
        reason.contains("Your plan doesn't include websocket access.")
    })
    .await;
    sim.handle.inject(Fault::PlanLacksMarket { on: false });
    firehose.signal(Signal::SIGHUP);
    is_linked(&sim, &filtered).await;
    sim.handle.publish(&[trade("AAPL", 1)]);
    client.expect_event(&trade("AAPL", 1)).await;
}

#[tokio::test]
async fn a_proxy_with_a_wrong_key_says_so_and_waits() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).start().await;
    let filtered = stack::filtered(firehose.addr()).env("FIREHOSE_API_KEY", "wrong").start().await;
    in_state(&filtered, "refused").await;
    let reason = filtered.health_text("/upstream/last_error").await;
    assert!(reason.contains("auth_failed"), "{reason}");
    holds_for(Duration::from_secs(2), "one try with a refused key", async || {
        firehose.metric("firehose_sessions_opened_total").await == Some(1.0)
    })
    .await;
}

#[tokio::test]
async fn an_account_used_elsewhere_is_left_alone_for_a_while() {
    for evict_newcomer in [false, true] {
        let stack = Stack::start().await;
        let mut client = stack.subscriber("T.AAPL").await;
        if evict_newcomer {
            stack.sim.handle.inject(Fault::EvictOnAuth { on: true });
            stack.sim.handle.inject(Fault::Abort);
        } else {
            stack.sim.handle.inject(Fault::Evict);
        }
        in_state(&stack.firehose, "waiting").await;
        eventually(SOON, "the reason in /health", async || {
            let reason = stack.firehose.health_text("/upstream/last_error").await;
            reason.contains("max_connections") && reason.contains("another process")
        })
        .await;
        let tries = stack.sim.handle.stats().auths;
        holds_for(Duration::from_secs(2), "no further try", async || {
            stack.sim.handle.stats().auths == tries
        })
        .await;
        assert!(tries <= 2, "{tries} logins");
        // No client downstream is closed because of it.
        client.command("subscribe", "Q.AAPL").await;
        client.expect_status("success", "subscribed to: Q.AAPL").await;
    }
}

#[tokio::test]
async fn a_filtered_proxy_may_start_first() {
    let port = ReservedPort::new();
    let sim = Sim::start().await;
    let filtered = stack::filtered(port.addr()).start().await;
    let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    client.subscribe("T.AAPL").await;
    let response = tests::http::get(filtered.addr(), "/health").await;
    assert_eq!(response.status, 503);
    assert_eq!(response.json()["status"], "down");
    let firehose =
        stack::firehose(&sim.url("stocks")).env("FIREHOSE_PORT", port.addr().port()).start().await;
    assert_eq!(firehose.addr(), port.addr());
    is_linked(&sim, &filtered).await;
    sim.handle.publish(&[trade("AAPL", 1)]);
    client.expect_event(&trade("AAPL", 1)).await;
}

#[tokio::test]
async fn clients_do_not_notice_a_restart_of_the_firehose() {
    let port = ReservedPort::new();
    let sim = Sim::start().await;
    let launch = || stack::firehose(&sim.url("stocks")).env("FIREHOSE_PORT", port.addr().port());
    let firehose = launch().start().await;
    let filtered =
        [stack::filtered(port.addr()).start().await, stack::filtered(port.addr()).start().await];
    let mut clients = Vec::new();
    for proxy in &filtered {
        is_linked(&sim, proxy).await;
        let mut client = TestClient::login(proxy.addr(), CLIENT_KEY).await;
        client.subscribe("T.AAPL").await;
        clients.push(client);
    }
    sim.handle.publish(&[trade("AAPL", 1)]);
    for client in &mut clients {
        client.expect_event(&trade("AAPL", 1)).await;
    }
    firehose.stop().await;
    eventually(SOON, "the vendor sees it leave", async || sim.handle.subscriptions().is_empty())
        .await;
    for proxy in &filtered {
        eventually(SOON, "the loss is seen", async || {
            proxy.health_text("/upstream/state").await != "up"
        })
        .await;
        assert!(!proxy.health_text("/upstream/last_error").await.is_empty());
    }
    // While there is no firehose, clients may connect and change their subscriptions.
    for client in &mut clients {
        client.command("subscribe", "Q.AAPL").await;
        client.expect_status("success", "subscribed to: Q.AAPL").await;
    }
    let mut late = TestClient::login(filtered[0].addr(), CLIENT_KEY).await;
    late.subscribe("T.AAPL").await;
    clients.push(late);
    let _firehose = launch().start().await;
    for proxy in &filtered {
        is_linked(&sim, proxy).await;
    }
    let events = [trade("AAPL", 2), quote("AAPL", 3), trade("AAPL", 4)];
    sim.handle.publish(&events);
    for (n, client) in clients.iter_mut().enumerate() {
        let expected: &[usize] = if n == 2 { &[0, 2] } else { &[0, 1, 2] };
        for &n in expected {
            client.expect_event(&events[n]).await;
        }
    }
}

#[tokio::test]
async fn success_is_logged_in_the_words_of_the_quick_start() {
    let mut stack = Stack::start().await;
    stack.firehose.logged("Authenticated successfully").await;
    stack.filtered[0].logged("Authenticated successfully").await;
    stack.filtered[0].logged("Subscribed to wildcard (*)").await;
}
