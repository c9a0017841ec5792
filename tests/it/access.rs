//! Hostile and careless clients at both ports: limits by address, web pages, proxies in front,
//! commands without end.

use std::{net::SocketAddr, time::Duration};

use tests::{
    http::{Response, get, request, upgrade, upgrade_head},
    program::Program,
    wait::{SOON, eventually, within},
    ws_client::{Received, TestClient},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::Instant,
};

use crate::tiers::programs;

/// A session of this client through a proxy.
async fn through_proxy(addr: SocketAddr, client: &str) -> TestClient {
    let stream = TcpStream::connect(addr).await.expect("connect");
    TestClient::over(stream, &[("x-forwarded-for", client)]).await
}

/// A connection from this address of the machine.
async fn connect_from(source: &str, addr: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("make a socket");
    socket.bind(format!("{source}:0").parse().expect("an address")).expect("bind a source address");
    within(SOON, "connecting", socket.connect(addr)).await.expect("connect")
}

fn assert_retry_later(response: &Response) {
    assert_eq!(response.status, 503, "{response:?}");
    let retry = response.header("retry-after");
    assert!(retry.parse::<u32>().is_ok_and(|seconds| seconds > 0), "Retry-After: {retry:?}");
    assert_eq!(response.body.trim_end().lines().count(), 1, "{response:?}");
}

/// How often a program refused a client for this reason. Both of its counters must agree.
async fn refused_for(program: &Program, prefix: &str, reason: &str) -> Option<f64> {
    let label = format!("reason=\"{reason}\"");
    let refused = program.metric_with(&format!("{prefix}_connections_refused_total"), &label).await;
    let abuse = program.metric_with(&format!("{prefix}_abuse_total"), &label).await;
    assert_eq!(refused, abuse, "{reason}");
    abuse
}

#[tokio::test]
async fn an_address_may_hold_a_limited_number_of_sessions() {
    let settings = [("TRUSTED_PROXIES", "127.0.0.1"), ("MAX_CONNECTIONS_PER_ADDRESS", "2")];
    for (program, key, prefix) in programs(&settings).await {
        let addr = program.addr();
        let mut first = through_proxy(addr, "203.0.113.1").await;
        let _second = through_proxy(addr, "203.0.113.1").await;
        first.log_in(key).await;
        assert_retry_later(&upgrade(addr, "X-Forwarded-For: 203.0.113.1\r\n").await);
        // Addresses that a client puts before its own do not count.
        let forged = "X-Forwarded-For: 198.51.100.9, 203.0.113.1\r\n";
        assert_retry_later(&upgrade(addr, forged).await);
        // Other clients are not affected, and a network of IPv6 counts as one client.
        through_proxy(addr, "203.0.113.2").await.log_in(key).await;
        let mut v6 = Vec::new();
        for client in ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"] {
            v6.push(through_proxy(addr, client).await);
        }
        assert_retry_later(&upgrade(addr, "X-Forwarded-For: 2001:db8::3\r\n").await);
        // Programs on this machine are not counted. A client that is not trusted cannot speak for
        // others.
        for _ in 0..5 {
            v6.push(TestClient::login(addr, key).await);
            let stranger = connect_from("127.0.0.2", addr).await;
            v6.push(TestClient::over(stranger, &[("x-forwarded-for", "203.0.113.1")]).await);
        }
        assert_eq!(refused_for(&program, prefix, "address_full").await, Some(3.0));
        first.close().await;
        eventually(SOON, "the address may open a session again", async || {
            upgrade(addr, "X-Forwarded-For: 203.0.113.1\r\n").await.status == 101
        })
        .await;
    }
}

#[tokio::test]
async fn an_address_that_connects_too_often_is_refused_with_a_retry_time() {
    let settings = [("TRUSTED_PROXIES", "127.0.0.1"), ("HANDSHAKE_RATE", "1")];
    for (program, _, prefix) in programs(&settings).await {
        let addr = program.addr();
        let from = "X-Forwarded-For: 203.0.113.1\r\n";
        // Ten seconds' worth at once, successful or not.
        for n in 0..10 {
            let headers =
                if n % 2 == 0 { from.to_owned() } else { format!("{from}Origin: null\r\n") };
            let status = upgrade(addr, &headers).await.status;
            assert_eq!(status, if n % 2 == 0 { 101 } else { 403 }, "{n}");
        }
        let mut refused = None;
        for _ in 0..20 {
            let response = upgrade(addr, from).await;
            if response.status != 101 {
                refused = Some(response);
                break;
            }
        }
        assert_retry_later(&refused.expect("one of the twenty is refused"));
        assert!(refused_for(&program, prefix, "handshake_rate").await >= Some(1.0));
        // Neither other clients nor programs on this machine are affected.
        assert_eq!(upgrade(addr, "X-Forwarded-For: 203.0.113.2\r\n").await.status, 101);
        for _ in 0..30 {
            assert_eq!(upgrade(addr, "").await.status, 101);
        }
        eventually(SOON, "the address may connect again", async || {
            upgrade(addr, from).await.status == 101
        })
        .await;
    }
}

#[tokio::test]
async fn commands_that_come_too_fast_are_answered_later() {
    for (program, key, prefix) in programs(&[("COMMAND_RATE", "1")]).await {
        let mut hasty = TestClient::login(program.addr(), key).await;
        let mut other = TestClient::login(program.addr(), key).await;
        let started = Instant::now();
        // Ten are answered at once, the login among them, and then one per second.
        for n in 0..15 {
            hasty.command("unsubscribe", &format!("T.S{n}")).await;
        }
        other.subscribe("T.AAPL").await;
        let other_took = started.elapsed();
        for n in 0..15 {
            hasty.expect_status("success", &format!("unsubscribed to: T.S{n}")).await;
        }
        let took = started.elapsed();
        assert!(took > Duration::from_secs(2), "15 answers in {took:?}");
        assert!(other_took < took, "another client waited for {other_took:?} of {took:?}");
        // The session lives on and is answered as before.
        hasty.ping(b"still here").await;
        let name = format!("{prefix}_abuse_total");
        let slowed = program.metric_with(&name, "reason=\"command_rate\"").await;
        assert!(slowed > Some(1.0), "{slowed:?}");
        assert_eq!(program.log_count("slowed down: commands faster than COMMAND_RATE"), 1);
    }
}

#[tokio::test]
async fn subscribing_one_by_one_is_not_slowed_down_by_default() {
    for (program, key, prefix) in programs(&[]).await {
        let mut client = TestClient::login(program.addr(), key).await;
        for n in 0..3_000 {
            client.command("subscribe", &format!("T.S{n}")).await;
        }
        for n in 0..3_000 {
            client.expect_status("success", &format!("subscribed to: T.S{n}")).await;
        }
        let name = format!("{prefix}_abuse_total");
        assert_eq!(program.metric(&name).await, Some(0.0), "no abuse of any kind");
    }
}

#[tokio::test]
async fn a_message_of_endless_parts_costs_the_others_nothing() {
    for (program, key, prefix) in programs(&[("COMMAND_RATE", "100")]).await {
        let addr = program.addr();
        let mut stream = TcpStream::connect(addr).await.expect("connect");
        let head = upgrade_head(addr, "/stocks", "");
        stream.write_all(head.as_bytes()).await.expect("ask for a WebSocket");
        // A first fragment of a text, then empty fragments, none of which is the last. All are
        // masked with zeros.
        stream.write_all(&[0x01, 0x81, 0, 0, 0, 0, b'x']).await.expect("begin a message");
        let parts = [0x00, 0x80, 0, 0, 0, 0].repeat(10_000);
        let flood = tokio::spawn(async move { while stream.write_all(&parts).await.is_ok() {} });
        let mut other = TestClient::login(addr, key).await;
        eventually(SOON, "the flood is slowed down", async || {
            other.ping(b"x").await;
            let name = format!("{prefix}_abuse_total");
            program.metric_with(&name, "reason=\"command_rate\"").await > Some(1.0)
        })
        .await;
        flood.abort();
    }
}

#[tokio::test]
async fn web_pages_from_elsewhere_are_refused() {
    let elsewhere = [
        "https://evil.example",
        "null",
        "http://localhost:3000",
        "file://",
        "chrome-extension://abc",
    ];
    for (program, key, prefix) in programs(&[]).await {
        let addr = program.addr();
        for origin in elsewhere {
            let response = upgrade(addr, &format!("Origin: {origin}\r\n")).await;
            assert_eq!(response.status, 403, "{origin}: {response:?}");
            assert!(response.body.contains("ALLOWED_ORIGINS"), "{response:?}");
        }
        // To a client that asked for 127.0.0.1, a page at the same port of localhost is foreign
        // too.
        let local = format!("Origin: http://localhost:{}\r\n", addr.port());
        assert_eq!(upgrade(addr, &local).await.status, 403);
        assert_eq!(refused_for(&program, prefix, "origin").await, Some(6.0));
        // No browser sends these.
        for odd in ["", "127.0.0.1", "my-program", "http://localhost/", &format!("ws://{addr}")] {
            let response = upgrade(addr, &format!("Origin: {odd}\r\n")).await;
            assert_eq!(response.status, 101, "{odd:?}: {response:?}");
        }
        // Some libraries send the host that they connect to as the origin. Official clients send
        // none.
        assert_eq!(upgrade(addr, &format!("Origin: http://{addr}\r\n")).await.status, 101);
        TestClient::login(addr, key).await;
        let health = format!(
            "GET /health HTTP/1.1\r\nHost: {addr}\r\nOrigin: https://evil.example\r\nConnection: close\r\n\r\n"
        );
        assert!(matches!(request(addr, &health).await.status, 200 | 503));
    }
    let settings = [("ALLOWED_ORIGINS", "https://desk.example.com, http://localhost:3000")];
    for (program, ..) in programs(&settings).await {
        for origin in ["https://desk.example.com", "http://localhost:3000"] {
            let response = upgrade(program.addr(), &format!("Origin: {origin}\r\n")).await;
            assert_eq!(response.status, 101, "{origin}: {response:?}");
        }
        let other = upgrade(program.addr(), "Origin: https://desk.example.com:8443\r\n").await;
        assert_eq!(other.status, 403);
    }
    for (program, ..) in programs(&[("ALLOWED_ORIGINS", "*")]).await {
        for origin in elsewhere {
            let response = upgrade(program.addr(), &format!("Origin: {origin}\r\n")).await;
            assert_eq!(response.status, 101, "{origin}: {response:?}");
        }
    }
}

/// A PROXY header of version 2 for a client 203.0.113.N, written by hand.
fn proxy_v2(n: u8) -> Vec<u8> {
    let addresses = [203, 0, 113, n, 127, 0, 0, 1, 0x12, 0x67, 0x22, 0x3d];
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"[..], &addresses].concat()
}

/// Everything that comes back until the end, for bytes sent from the proxy's address.
async fn from_proxy(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect_from("127.0.0.2", addr).await;
    stream.write_all(bytes).await.expect("send");
    let mut answer = Vec::new();
    let reading = async { while stream.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {} };
    within(SOON, "the end of a connection", reading).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn the_proxy_protocol_names_the_client_of_a_connection() {
    let settings = [
        ("TRUSTED_PROXIES", "127.0.0.2"),
        ("PROXY_PROTOCOL", "on"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "1"),
        ("AUTH_TIMEOUT", "1s"),
    ];
    for (program, key, prefix) in programs(&settings).await {
        let addr = program.addr();
        let mut stream = connect_from("127.0.0.2", addr).await;
        stream.write_all(&proxy_v2(1)).await.expect("send a header");
        let mut first = TestClient::over(stream, &[]).await;
        first.log_in(key).await;
        let line = b"PROXY TCP4 203.0.113.2 127.0.0.1 4711 8765\r\n";
        let mut stream = connect_from("127.0.0.2", addr).await;
        stream.write_all(line).await.expect("send a header");
        let mut second = TestClient::over(stream, &[]).await;
        second.log_in(key).await;
        // A client behind the proxy is a client like any other: limited, and not trusted to speak
        // for others.
        let ask = upgrade_head(addr, "/", "X-Forwarded-For: 198.51.100.1\r\nConnection: close\r\n");
        let answer = from_proxy(addr, &[&proxy_v2(1), ask.as_bytes()].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert_eq!(refused_for(&program, prefix, "address_full").await, Some(1.0));
        // Health checks of the proxy itself, and clients that bypass it.
        let health = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        for own in [&b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"[..], b"PROXY UNKNOWN\r\n"] {
            let answer = from_proxy(addr, &[own, health].concat()).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        assert_eq!(get(addr, "/livez").await.status, 200);
        TestClient::login(addr, key).await;
        // No header, a broken one, and one that never ends.
        for bad in [&health[..], b"PROXY TCP4 x y z\r\n\r\n", &proxy_v2(1)[..13]] {
            assert_eq!(from_proxy(addr, bad).await, "");
        }
        assert_eq!(refused_for(&program, prefix, "proxy_header").await, Some(3.0));
        first.ping(b"x").await;
    }
}

#[tokio::test]
async fn abuse_is_counted_each_time_and_logged_once() {
    let settings = [("TRUSTED_PROXIES", "127.0.0.1"), ("LOG_LEVEL", "info")];
    for (mut program, _, prefix) in programs(&settings).await {
        let addr = program.addr();
        for n in 0..30 {
            let headers =
                format!("Origin: https://evil.example\r\nX-Forwarded-For: 203.0.113.{n}\r\n");
            assert_eq!(upgrade(addr, &headers).await.status, 403);
        }
        assert_eq!(refused_for(&program, prefix, "origin").await, Some(30.0));
        let sentence = "turned away: a web page that ALLOWED_ORIGINS does not list";
        let line = program.logged(sentence).await;
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["abuse"], "origin");
        assert_eq!(line["client"], "203.0.113.0", "{line}");
        for _ in 0..5 {
            let mut client = TestClient::connect(addr).await;
            client.command("auth", "no-such-key").await;
            assert_eq!(client.end(SOON).await, Received::Closed(Some(1008)));
        }
        eventually(SOON, "wrong keys are counted", async || {
            let name = format!("{prefix}_abuse_total");
            program.metric_with(&name, "reason=\"auth_failed\"").await == Some(5.0)
        })
        .await;
        let warnings = program.log_text().matches(r#""abuse":"#).count();
        assert_eq!(warnings, 2, "one line for each kind:\n{}", program.log_text());
    }
}
