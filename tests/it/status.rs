//! The status for people and scripts: `/status.json`, `/sessions`, and who may see what.

use std::net::SocketAddr;

use polygon_sim::Fault;
use serde_json::{Value, json};
use tests::{
    http::{Response, get, request},
    program::{Launch, Program},
    stack::{self, CLIENT_KEY, ReservedPort, Stack, StackConfig},
    wait::{SOON, eventually},
    ws_client::TestClient,
};
use tokio::net::TcpStream;

use crate::events::{quote, trade};

/// SHA-256 of `abc`, from the standard (FIPS 180-2).
const OPERATOR: &str =
    "desk sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad role=operator";

/// A filtered proxy with the operator's key, `abc`, and [`CLIENT_KEY`].
pub(crate) fn with_an_operator(firehose: SocketAddr) -> Launch {
    let keys = format!("{OPERATOR}\n{CLIENT_KEY}\n");
    let launch = stack::filtered(firehose).without("CLIENT_API_KEYS").file("keys", &keys);
    launch.env("CLIENT_API_KEYS_FILE", "keys")
}

async fn get_with(addr: SocketAddr, path: &str, headers: &str) -> Response {
    let head = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n{headers}\r\n");
    request(addr, &head).await
}

async fn status(addr: SocketAddr) -> Value {
    let response = get(addr, "/status.json").await;
    assert_eq!(response.status, 200, "{response:?}");
    response.json()
}

#[tokio::test]
async fn sessions_are_for_the_operator_alone() {
    let nowhere = ReservedPort::new();
    let program = with_an_operator(nowhere.addr()).start().await;
    let addr = program.addr();
    let _client = TestClient::login(addr, CLIENT_KEY).await;
    let with_key = async |path: &str, key: &str| {
        get_with(addr, path, &format!("Authorization: {key}\r\n")).await
    };
    // Without a key: the state, and nothing of clients.
    let public = get(addr, "/status.json").await;
    assert_eq!((public.status, public.json()["sessions"].clone()), (200, json!(1)));
    assert_eq!(public.json().get("operator"), None);
    for hidden in ["127.0.0.1\"", "key-1", "desk", "user_agent", "MAX_CONNECTIONS"] {
        assert!(!public.body.contains(hidden), "{hidden} in {}", public.body);
    }
    let refused = get(addr, "/sessions").await;
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, "Bearer"));
    // Keys that are no operator's.
    for path in ["/status.json", "/sessions"] {
        for key in ["Bearer wrong", &format!("Bearer {CLIENT_KEY}"), "Basic abc", "abc", "Bearer "]
        {
            let refused = with_key(path, key).await;
            assert_eq!(refused.status, 401, "{path} {key}: {refused:?}");
            assert!(!refused.body.contains("key-1"), "{refused:?}");
        }
        for key in ["Bearer abc", "bearer  abc"] {
            assert_eq!(with_key(path, key).await.status, 200, "{path} {key}");
        }
    }
    let wrong = program.metric_with("filtered_abuse_total", "reason=\"auth_failed\"").await;
    assert_eq!(wrong, Some(10.0));
    let seen = with_key("/status.json", "Bearer abc").await.json();
    assert_eq!(seen["operator"]["sessions"][0]["key"], "key-1", "{seen}");
    assert_eq!(seen["operator"]["limits"]["MAX_CONNECTIONS"], "10000", "{seen}");
    let sessions = with_key("/sessions", "Bearer abc").await.json();
    assert_eq!(sessions["sessions"].as_array().map(Vec::len), Some(1), "{sessions}");
    // The operator's key opens sessions like any other.
    let _other = TestClient::login(addr, "abc").await;
}

#[tokio::test]
async fn with_an_admin_port_the_status_is_there_and_needs_no_key() {
    let nowhere = ReservedPort::new();
    let mut program = stack::filtered(nowhere.addr()).env("ADMIN_PORT", 0).start().await;
    let admin = program.bound("admin listening").await;
    let browser = "Accept: text/html\r\n";
    for path in ["/", "/status", "/status.json", "/sessions"] {
        let there = get_with(admin, path, browser).await;
        assert_eq!(there.status, 200, "{path}: {there:?}");
        let here = get_with(program.addr(), path, browser).await;
        assert_eq!(here.status, 426, "{path}: {here:?}");
    }
    assert!(status(admin).await["operator"]["sessions"].is_array());
}

#[tokio::test]
async fn a_session_is_shown_with_its_name() {
    let nowhere = ReservedPort::new();
    let mut program = stack::filtered(nowhere.addr()).env("ADMIN_PORT", 0).start().await;
    let admin = program.bound("admin listening").await;
    let mut sessions = Vec::new();
    for path in ["/session/alpha.1/stocks", "/stocks"] {
        let mut client = TestClient::connect_to(program.addr(), path).await;
        client.log_in(CLIENT_KEY).await;
        sessions.push(client);
    }
    let shown = get(admin, "/sessions").await.json();
    let names = [0, 1].map(|n| shown["sessions"][n]["session"].clone());
    assert_eq!(names, [json!("alpha.1"), Value::Null], "{shown}");
}

#[tokio::test]
async fn only_browsers_get_the_page_at_the_root_and_clients_their_websocket() {
    let stack = Stack::start().await;
    for program in [&stack.firehose, &stack.filtered[0]] {
        let addr = program.addr();
        assert_eq!(get(addr, "/").await.status, 426);
        assert_eq!(get_with(addr, "/", "Accept: */*\r\n").await.status, 426);
        for (path, accept) in [("/", "Accept: text/html,*/*;q=0.8\r\n"), ("/status", "")] {
            let page = get_with(addr, path, accept).await;
            assert_eq!(page.status, 200);
            assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
            let policy = page.header("content-security-policy");
            assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
            assert!(!policy.contains("unsafe"), "{policy}");
        }
        let post = format!("POST /status HTTP/1.1\r\nHost: {addr}\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(request(addr, &post).await.status, 405);
        // A browser's WebSocket sends no `Accept`, others may.
        let stream = TcpStream::connect(addr).await.expect("connect");
        let mut client = TestClient::over(stream, &[("accept", "text/html")]).await;
        client.expect(tests::ws_client::GREETING).await;
    }
}

#[tokio::test]
async fn a_session_is_shown_with_what_identifies_it_and_the_slowest_first() {
    let filtered_env = vec![("ADMIN_PORT", "0".to_owned())];
    let mut stack = Stack::with(StackConfig { filtered_env, ..StackConfig::default() }).await;
    let admin = stack.filtered[0].bound("admin listening").await;
    let mut clients = Vec::new();
    for n in 0..3 {
        let stream = TcpStream::connect(stack.addr()).await.expect("connect");
        let agent = format!("quant/{n} <b>\u{7f}");
        let port = stream.local_addr().expect("an address").port();
        // A header holds no control characters, but may be long.
        let agent = agent.replace('\u{7f}', &"x".repeat(200));
        let mut client = TestClient::over(stream, &[("user-agent", &agent)]).await;
        client.log_in(CLIENT_KEY).await;
        client.subscribe("Q.AAPL,Q.MSFT").await;
        clients.push((client, port));
    }
    let mut stalled = TestClient::connect_narrow(stack.addr(), 4_096).await;
    stalled.log_in(CLIENT_KEY).await;
    stalled.subscribe("T.*").await;
    let wide = |n: usize| trade(&format!("AAPL\",\"x\":\"{}", "x".repeat(2_000)), n);
    let mut sent = Vec::new();
    let first = async || get(admin, "/sessions").await.json()["sessions"][0].clone();
    eventually(SOON, "the stalled client is first", async || {
        let events: Vec<_> = (sent.len()..sent.len() + 100).map(wide).collect();
        stack.publish(&events);
        sent.extend(events);
        let first = first().await;
        first["number"] == 4 && first["queued_bytes"].as_u64() > Some(1_000)
    })
    .await;
    eventually(SOON, "its lag grows", async || first().await["lag_seconds"].as_f64() > Some(0.3))
        .await;
    stack.publish(&[quote("AAPL", 1), quote("MSFT", 2), quote("X", 3)]);
    for (client, _) in &mut clients {
        client.expect_objects(&[quote("AAPL", 1), quote("MSFT", 2)]).await;
    }
    let sessions = get(admin, "/sessions").await.json();
    let sessions = sessions["sessions"].as_array().expect("a list");
    assert_eq!(sessions.len(), 4);
    for (n, (_, port)) in clients.iter().enumerate() {
        let shown = &sessions[n + 1];
        let agent = format!("quant/{n} <b>{}", "x".repeat(200));
        let expected = json!({
            "number": n + 1, "market": "stocks", "key": "key-1", "address": "127.0.0.1",
            "port": port, "user_agent": agent[..100], "subscriptions": 2, "events": 2,
            "queued_bytes": 0, "lag_seconds": 0.0,
        });
        for (name, value) in expected.as_object().expect("an object") {
            assert_eq!(&shown[name], value, "{name} of {shown}");
        }
        assert!(shown["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{shown}");
    }
    stalled.expect_objects(&sent).await;
    eventually(SOON, "nothing lags", async || first().await["number"] == 1).await;
}

#[tokio::test]
async fn outages_and_gaps_are_kept_with_their_times_and_the_verdict_follows() {
    let stack = Stack::start().await;
    let (firehose, filtered) = (&stack.firehose, &stack.filtered[0]);
    let action =
        async |program: &Program| status(program.addr()).await["verdict"]["action"].clone();
    for program in [firehose, filtered] {
        eventually(SOON, "all is well", async || action(program).await == "none").await;
    }
    stack.sim.handle.inject(Fault::RefuseTcp { on: true });
    stack.sim.handle.inject(Fault::Abort);
    eventually(SOON, "the firehose waits", async || action(firehose).await == "wait").await;
    let down = status(firehose.addr()).await;
    let market = &down["markets"][0];
    assert_eq!(market["incidents"][0]["to"], Value::Null, "{down}");
    assert!(
        down["problems"][0]["what"]
            .as_str()
            .is_some_and(|what| what.starts_with("No connection to Polygon"))
    );
    eventually(SOON, "the filtered proxy reports it", async || {
        let status = status(filtered.addr()).await;
        status["markets"][0]["reported_outages"].as_array().is_some_and(|list| !list.is_empty())
            && status["verdict"]["action"] == "wait"
    })
    .await;
    stack.sim.handle.inject(Fault::RefuseTcp { on: false });
    for program in [firehose, filtered] {
        eventually(SOON, "all is well again", async || action(program).await == "none").await;
    }
    eventually(SOON, "the outage is kept", async || {
        let incidents = status(firehose.addr()).await["markets"][0]["incidents"].clone();
        incidents[0]["kind"] == "outage" && incidents[0]["to"].is_string()
    })
    .await;
}
