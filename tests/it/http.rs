//! The HTTP service of both ports: health, metrics, and every request that is not for a WebSocket.

use std::net::SocketAddr;

use polygon_sim::SimConfig;
use serde_json::Value;
use tests::{
    http::{get, raw, refused_upgrade, request, upgrade},
    program::Program,
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Sim, Stack, StackConfig, is_up},
    wait::{SOON, eventually},
    ws_client::TestClient,
};

use crate::events::{quote, trade};

fn tiers(stack: &Stack) -> [(&Program, &'static str, &'static str); 2] {
    [(&stack.filtered[0], CLIENT_KEY, "filtered"), (&stack.firehose, FIREHOSE_KEY, "firehose")]
}

#[tokio::test]
async fn health_shows_the_state_of_a_tier() {
    let stack = Stack::start().await;
    for (program, key, _) in tiers(&stack) {
        let mut client = TestClient::login(program.addr(), key).await;
        client.subscribe("T.AAPL,Q.AAPL,T.AAPL").await;
        eventually(SOON, "all is well", async || program.health().await["status"] == "ok").await;
        let response = get(program.addr(), "/health").await;
        assert_eq!(response.status, 200);
        assert!(response.header("content-type").starts_with("application/json"));
        let health = response.json();
        let keys: Vec<_> =
            health.as_object().expect("an object").keys().map(String::as_str).collect();
        for key in [
            "status",
            "version",
            "uptime_seconds",
            "market",
            "problems",
            "upstream",
            "channels",
            "sessions",
            "subscriptions",
            "frames_per_second",
            "events_per_second",
        ] {
            assert!(keys.contains(&key), "{key} of {health}");
        }
        assert_eq!(health["status"], "ok", "{health}");
        assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(health["market"], "stocks");
        assert_eq!(health["upstream"]["state"], "up");
        assert_eq!(health["upstream"]["last_error"], Value::Null);
        assert_eq!(health["upstream"]["reconnects"], 0);
        let since = health["upstream"]["since"].as_str().expect("a time");
        assert!(since.len() >= 20 && since.ends_with('Z') && &since[10..11] == "T", "{since}");
        assert_eq!(health["channels"]["refused"], Value::Array(Vec::new()));
        assert_eq!(health["channels"]["pending"], Value::Array(Vec::new()));
        assert!(health["uptime_seconds"].as_u64().is_some_and(|seconds| seconds < 600));
        // The firehose also serves the filtered proxy and its wildcard.
        let own = if key == FIREHOSE_KEY { 1 } else { 0 };
        assert_eq!(health["sessions"], 1 + own, "{health}");
        assert_eq!(health["subscriptions"], 2 + own, "{health}");
    }
    let carried = stack.filtered[0].health().await["channels"]["carried"].clone();
    assert_eq!(carried, serde_json::json!(["*"]));
}

#[tokio::test]
async fn health_is_down_without_an_upstream_but_probes_of_the_process_are_not() {
    let port = ReservedPort::new();
    let programs = [
        stack::filtered(port.addr()).start().await,
        stack::firehose(&format!("ws://{}/stocks", port.addr())).start().await,
    ];
    for program in &programs {
        eventually(SOON, "a try fails", async || {
            !program.health_text("/upstream/last_error").await.is_empty()
        })
        .await;
        let health = get(program.addr(), "/health").await;
        assert_eq!(health.status, 503, "{health:?}");
        assert_eq!(health.json()["status"], "down");
        for probe in ["/livez", "/readyz"] {
            let response = get(program.addr(), probe).await;
            assert_eq!(response.status, 200, "{probe}: {response:?}");
            assert!(response.header("content-type").starts_with("text/plain"), "{response:?}");
        }
    }
}

#[tokio::test]
async fn rates_follow_the_traffic() {
    let sim = SimConfig { rate: 2_000.0, ..SimConfig::default() };
    let stack = Stack::with(StackConfig { sim, ..StackConfig::default() }).await;
    for (program, ..) in tiers(&stack) {
        eventually(SOON, "the rates of a running feed", async || {
            let health = program.health().await;
            let rate = |name: &str| health[name].as_f64().unwrap_or_default();
            let (events, frames) = (rate("events_per_second"), rate("frames_per_second"));
            (500.0..5_000.0).contains(&events) && frames > 10.0 && frames < events
        })
        .await;
    }
    stack.sim.handle.set_rate(0.0);
    for (program, ..) in tiers(&stack) {
        eventually(SOON, "the rates of a silent feed", async || {
            let health = program.health().await;
            health["events_per_second"] == 0.0 && health["frames_per_second"] == 0.0
        })
        .await;
    }
}

#[tokio::test]
async fn metrics_follow_sessions_and_events() {
    let stack = Stack::start().await;
    for (program, key, prefix) in tiers(&stack) {
        let metric = async |name: &str| program.metric(&format!("{prefix}_{name}")).await;
        let own = if prefix == "firehose" { 1.0 } else { 0.0 };
        let before = metric("events_delivered_total").await.expect("a counter");
        let mut client = TestClient::login(program.addr(), key).await;
        client.subscribe("T.AAPL,T.MSFT").await;
        assert_eq!(metric("upstream_up").await, Some(1.0));
        assert_eq!(metric("upstream_connects_total").await, Some(1.0));
        assert_eq!(metric("sessions").await, Some(1.0 + own));
        assert_eq!(metric("sessions_opened_total").await, Some(1.0 + own));
        assert_eq!(metric("subscriptions").await, Some(2.0 + own));
        let events = [trade("AAPL", 1), quote("AAPL", 2), trade("MSFT", 3)];
        stack.publish(&events);
        let delivered = match prefix {
            "firehose" => {
                client.expect_objects(&events).await;
                6.0
            }
            _ => {
                client.expect_objects(&[&events[0], &events[2]]).await;
                2.0
            }
        };
        eventually(SOON, "events delivered are counted", async || {
            metric("events_delivered_total").await == Some(before + delivered)
        })
        .await;
        assert!(metric("in_bytes_total").await > Some(100.0));
        assert!(metric("out_bytes_total").await > Some(100.0));
        assert_eq!(metric("events_lost_total").await, Some(0.0));
        assert_eq!(metric("frames_malformed_total").await, Some(0.0));
        assert!(program.metric("process_resident_memory_bytes").await > Some(1e6));
        assert!(program.metric("process_start_time_seconds").await > Some(1e9));
        let tasks = program.metric("process_tasks").await;
        assert!(tasks > Some(3.0), "{tasks:?}");
        client.close().await;
        eventually(SOON, "the session's task has ended", async || {
            program.metric("process_tasks").await < tasks
        })
        .await;
        eventually(SOON, "the session's end is counted", async || {
            metric("sessions").await == Some(own)
                && metric("subscriptions").await == Some(own)
                && metric("queue_bytes").await == Some(0.0)
                && metric("sessions_closed_total").await == Some(1.0)
        })
        .await;
    }
    // Six events came in, and clients wanted two.
    let filtered = &stack.filtered[0];
    eventually(SOON, "the ledger of the filtered tier", async || {
        filtered.metric("filtered_events_in_total").await == Some(6.0)
            && filtered.metric("filtered_frames_in_total").await == Some(2.0)
            && filtered.metric("filtered_events_filtered_total").await == Some(4.0)
    })
    .await;
}

#[tokio::test]
async fn metrics_are_in_prometheus_text_form() {
    let stack = Stack::start().await;
    for (program, _, prefix) in tiers(&stack) {
        let response = get(program.addr(), "/metrics").await;
        assert_eq!(response.status, 200);
        let kind = response.header("content-type");
        assert!(
            kind.starts_with("text/plain") || kind.starts_with("application/openmetrics-text"),
            "{kind}"
        );
        let mut samples = 0;
        for line in response.body.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(
                series.starts_with(prefix) || series.starts_with("process_"),
                "{line} without the tier's prefix"
            );
            samples += 1;
        }
        assert!(samples > 15, "{samples} samples");
        for name in ["sessions", "upstream_up"] {
            assert!(response.body.contains(&format!("# HELP {prefix}_{name} ")), "help of {name}");
            assert!(
                response.body.contains(&format!("# TYPE {prefix}_{name} gauge")),
                "type of {name}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_no_websocket_gets_426_and_a_helpful_line() {
    let stack = Stack::start().await;
    for (program, ..) in tiers(&stack) {
        for path in ["/", "/stocks", "/anything", "/healthy", "/livez/x"] {
            let response = get(program.addr(), path).await;
            assert_eq!(response.status, 426, "{path}: {response:?}");
            assert!(response.header("upgrade").eq_ignore_ascii_case("websocket"), "{response:?}");
            assert_eq!(response.body.trim_end().lines().count(), 1, "{:?}", response.body);
            assert!(response.body.contains("WebSocket"), "{:?}", response.body);
        }
        for path in ["/health", "/health?verbose", "/health/", "/livez", "/readyz//"] {
            assert_eq!(get(program.addr(), path).await.status, 200, "{path}");
        }
        let head = request(
            program.addr(),
            "POST /stocks HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        )
        .await;
        assert!((400..500).contains(&head.status), "{head:?}");
    }
}

#[tokio::test]
async fn a_balancer_may_check_with_options_and_http_1_0() {
    let stack = Stack::start().await;
    for (program, ..) in tiers(&stack) {
        for (line, status) in [
            ("OPTIONS / HTTP/1.0\r\n", 200),
            ("OPTIONS / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", 200),
            ("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", 200),
            ("OPTIONS /readyz HTTP/1.0\r\n", 200),
            ("HEAD /health HTTP/1.0\r\n", 200),
            ("GET /livez HTTP/1.0\r\n", 200),
            ("OPTIONS /stocks HTTP/1.0\r\n", 426),
            ("DELETE / HTTP/1.0\r\n", 405),
        ] {
            let answer = raw(program.addr(), &format!("{line}\r\n")).await;
            let got = answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
            assert_eq!(got, Some(status), "{line:?}: {answer}");
        }
    }
}

/// RFC 9110, section 5.3: the lines of a list header are one list. RFC 6455, section 4.2.1: the
/// handshake's headers need only name `Upgrade` and `websocket` among others.
#[tokio::test]
async fn a_handshake_may_spread_its_lists_over_lines() {
    let stack = Stack::start().await;
    let lines = [
        "Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: websocket",
        "Connection: close\r\nConnection: upgrade\r\nUpgrade: websocket",
        "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nUpgrade: websocket",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c",
        "Connection: Upgrade\r\nUpgrade: h2c,\twebsocket",
    ];
    for (program, ..) in tiers(&stack) {
        let ask = async |lines: &str, version: &str| {
            let head = format!(
                "GET /stocks HTTP/1.1\r\nHost: x\r\n{lines}\r\nSec-WebSocket-Version: {version}\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            request(program.addr(), &head).await
        };
        for lines in lines {
            let response = ask(lines, "13").await;
            assert_eq!(response.status, 101, "{lines:?}: {response:?}");
            assert!(response.header("upgrade").eq_ignore_ascii_case("websocket"), "{response:?}");
        }
        let response = ask("Connection: close\r\nUpgrade: websocket", "13").await;
        assert_eq!(response.status, 400, "no Connection: Upgrade: {response:?}");
        for version in ["8", "0", "13, 8", "x"] {
            let response = ask("Connection: Upgrade\r\nUpgrade: websocket", version).await;
            assert_eq!(response.status, 400, "{version}: {response:?}");
            assert_eq!(response.header("sec-websocket-version"), "13", "{response:?}");
        }
    }
}

#[tokio::test]
async fn a_handshake_with_a_body_is_refused() {
    let stack = Stack::start().await;
    for (program, ..) in tiers(&stack) {
        for body in ["Content-Length: 1\r\n", "Transfer-Encoding: chunked\r\n"] {
            let response = upgrade(program.addr(), body).await;
            assert_eq!(response.status, 400, "{body}: {response:?}");
            assert!(response.body.contains("with a body"), "{:?}", response.body);
        }
        assert_eq!(upgrade(program.addr(), "Content-Length: 0\r\n").await.status, 101);
    }
}

#[tokio::test]
async fn another_market_is_refused_before_the_upgrade() {
    let stack = Stack::start().await;
    for (program, key, _) in tiers(&stack) {
        for path in ["/options", "/crypto/", "//forex", "/stockss", "/Stocks", "/stocks/x", "/x"] {
            let response = refused_upgrade(program.addr(), path).await;
            assert_eq!(response.status, 404, "{path}: {response:?}");
            assert!(response.body.contains("stocks"), "{path}: {:?}", response.body);
        }
        TestClient::login(program.addr(), key).await;
    }
    let sim = Sim::with(SimConfig { market: "crypto".to_owned(), ..SimConfig::default() }).await;
    let firehose = stack::firehose(&sim.url("crypto")).env("MARKET", "crypto").start().await;
    let response = refused_upgrade(firehose.addr(), "/stocks").await;
    assert_eq!(response.status, 404);
    assert!(response.body.contains("crypto"), "{:?}", response.body);
    TestClient::connect_to(firehose.addr(), "/crypto").await.log_in(FIREHOSE_KEY).await;
}

/// The official clients ask for `/futures/<venue>`, and so may a firehose of another one.
#[tokio::test]
async fn futures_are_served_at_the_paths_of_their_venues() {
    let sim = Sim::with(SimConfig { market: "futures".to_owned(), ..SimConfig::default() }).await;
    let firehose = stack::firehose(&sim.url("futures/cme")).env("MARKET", "futures").start().await;
    let url = format!("ws://{}/futures/comex", firehose.addr());
    let filtered = stack::filtered(firehose.addr())
        .env("MARKET", "futures")
        .env("FIREHOSE_URL", url)
        .start()
        .await;
    for path in ["/futures", "/futures/cme", "/futures/cbot/", "/futures/nymex", "/futures/comex"] {
        for (program, key) in [(&firehose, FIREHOSE_KEY), (&filtered, CLIENT_KEY)] {
            TestClient::connect_to(program.addr(), path).await.log_in(key).await;
        }
    }
    is_up(&filtered).await;
    for path in ["/futures/ice", "/cme", "/futures/cme/x"] {
        assert_eq!(refused_upgrade(filtered.addr(), path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_full_program_refuses_before_the_upgrade() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).env("MAX_CONNECTIONS", 2).start().await;
    let filtered = stack::filtered(firehose.addr()).env("MAX_CONNECTIONS", 1).start().await;
    is_up(&filtered).await;
    // The filtered proxy takes one connection of the firehose.
    for (program, key, prefix) in
        [(&filtered, CLIENT_KEY, "filtered"), (&firehose, FIREHOSE_KEY, "firehose")]
    {
        let client = TestClient::login(program.addr(), key).await;
        let response = refused_upgrade(program.addr(), "/stocks").await;
        assert_eq!(response.status, 503, "{response:?}");
        let retry = response.header("retry-after");
        assert!(retry.parse::<u32>().is_ok_and(|seconds| seconds > 0), "Retry-After: {retry:?}");
        // Operators can still reach it.
        assert_eq!(get(program.addr(), "/health").await.status, 200);
        let refused = format!("{prefix}_connections_refused_total");
        assert_eq!(program.metric(&refused).await, Some(1.0));
        client.close().await;
        eventually(SOON, "a connection slot is free again", async || {
            program.metric(&format!("{prefix}_sessions_closed_total")).await == Some(1.0)
        })
        .await;
        TestClient::login(program.addr(), key).await;
    }
}

#[tokio::test]
async fn with_an_admin_port_all_but_health_moves_there() {
    let sim = Sim::start().await;
    let mut firehose = stack::firehose(&sim.url("stocks")).env("ADMIN_PORT", 0).start().await;
    let mut filtered = stack::filtered(firehose.addr()).env("ADMIN_PORT", 0).start().await;
    is_up(&filtered).await;
    is_up(&firehose).await;
    for (program, prefix) in [(&mut filtered, "filtered"), (&mut firehose, "firehose")] {
        let admin = program.bound("admin listening").await;
        assert!(admin.ip().is_loopback(), "{admin}");
        for path in ["/livez", "/healthz", "/readyz", "/metrics"] {
            assert_eq!(get(admin, path).await.status, 200, "{path}");
            assert_eq!(get(program.addr(), path).await.status, 426, "{path} on the data port");
        }
        assert!(get(admin, "/metrics").await.body.contains(&format!("{prefix}_sessions ")));
        assert_eq!(get(program.addr(), "/health").await.status, 200);
    }
}

#[tokio::test]
async fn the_admin_port_listens_where_admin_host_says() {
    let nowhere = ReservedPort::new();
    for launch in [stack::firehose("ws://127.0.0.1:9"), stack::filtered(nowhere.addr())] {
        let mut program = launch.env("ADMIN_HOST", "0.0.0.0").env("ADMIN_PORT", 0).start().await;
        let admin = program.bound("admin listening").await;
        assert!(admin.ip().is_unspecified(), "{admin}");
        // Another address of this machine.
        let other = SocketAddr::from(([127, 0, 0, 2], admin.port()));
        assert_eq!(get(other, "/readyz").await.status, 200);
    }
}

#[tokio::test]
async fn healthz_is_livez_also_while_the_upstream_is_down() {
    let nowhere = ReservedPort::new();
    let program = stack::filtered(nowhere.addr()).start().await;
    for path in ["/livez", "/healthz"] {
        let response = get(program.addr(), path).await;
        assert_eq!((response.status, &*response.body), (200, "alive\n"), "{path}");
    }
    assert_eq!(get(program.addr(), "/health").await.status, 503);
}

#[tokio::test]
async fn a_connection_may_ask_more_than_once() {
    let stack = Stack::start().await;
    for (program, ..) in tiers(&stack) {
        let twice = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n\
                     GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let response = raw(program.addr(), twice).await;
        assert_eq!(response.matches("HTTP/1.1 200").count(), 2, "{response}");
    }
}
