//! TLS on the ports of both programs: clients that use it, certificates that are read again, and
//! handshakes that are refused.

use std::net::SocketAddr;

use futures_util::{StreamExt, future::join_all};
use tests::{
    http,
    official_clients::Client,
    program::{Finished, Launch, Program, Signal},
    relay::{Fault, Relay},
    stack::{CLIENT_KEY, Sim, Stack, filtered, firehose, is_up},
    tls::{Certificate, Trust, Tunnel},
    wait::{SOON, eventually, within},
    ws_client::{GREETING, TestClient},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{client_async, tungstenite::Message};

use crate::{
    doc_snippets::{block, document, has_program},
    events::{quote, trade},
    tiers::programs,
};

/// A chain in which every port speaks TLS. The filtered proxy has these settings.
async fn encrypted(settings: &[(&'static str, &str)]) -> (Stack, Certificate) {
    let sim = Sim::start().await;
    let (inner, outer) = (Certificate::new(), Certificate::new());
    let firehose = firehose(&sim.url("stocks")).envs(inner.settings()).start().await;
    let filtered = filtered(firehose.addr())
        .env("FIREHOSE_URL", format!("wss://localhost:{}", firehose.addr().port()))
        .env("FIREHOSE_CA", inner.file().display())
        .envs(outer.settings())
        .envs(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let stack = Stack { filtered: vec![filtered.start().await], firehose, sim };
    stack.linked().await;
    (stack, outer)
}

/// Both programs without an upstream, with this certificate and these settings. Each comes with a
/// key that it accepts and the prefix of its metrics.
async fn encrypted_programs(
    certificate: &Certificate,
    settings: &[(&str, &str)],
) -> [(Program, &'static str, &'static str); 2] {
    let tls = certificate.settings();
    let tls = tls.iter().map(|(name, value)| (*name, value.as_str()));
    programs(&tls.chain(settings.iter().copied()).collect::<Vec<_>>()).await
}

async fn try_tls(addr: SocketAddr, trust: &Trust) -> bool {
    let stream = TcpStream::connect(addr).await.expect("connect");
    within(SOON, "a TLS handshake", trust.connect(stream)).await.is_ok()
}

#[tokio::test]
async fn a_chain_of_encrypted_ports_loses_and_changes_nothing() {
    let (stack, certificate) = encrypted(&[("CLIENT_MAX_LAG", "60s")]).await;
    let quick = Tunnel::start(stack.addr(), certificate.trust()).await;
    // Over a slow line records leave in pieces. Half written ones wait while more is queued and
    // pings come.
    let line = Relay::start(stack.addr()).await;
    let slow = Tunnel::start(line.addr(), certificate.trust()).await;
    let mut clients = Vec::new();
    for tunnel in [&quick, &quick, &slow] {
        clients.push(TestClient::login(tunnel.addr(), CLIENT_KEY).await);
    }
    for client in &mut clients {
        client.subscribe("T.AAPL,Q.MSFT").await;
    }
    line.inject(Fault::Throttle(400_000));
    let mut expected = Vec::new();
    for n in 0..200 {
        // From one event to more than a buffer of the library holds.
        let events: Vec<_> = (0..1 + n % 7 * 150).map(|m| trade("AAPL", n * 1_000 + m)).collect();
        stack.publish(&events);
        stack.publish(&[trade("MSFT", n), quote("MSFT", n), quote("AAPL", n)]);
        expected.extend(events);
        expected.push(quote("MSFT", n));
        if n % 50 == 25 {
            clients[2].ping(b"through a backlog").await;
        }
    }
    assert!(expected.iter().map(String::len).sum::<usize>() > 4_000_000);
    for client in &mut clients[..2] {
        client.expect_objects(&expected).await;
    }
    line.heal();
    clients[2].expect_objects(&expected).await;
}

#[tokio::test]
async fn official_clients_connect_with_nothing_changed_but_the_host() {
    let (stack, certificate) = encrypted(&[]).await;
    let url = format!("wss://localhost:{}", stack.addr().port());
    let (url, authority) = (&url, &certificate.file());
    // `polygon-api-client` trusts only the public authorities of its package certifi (read in its
    // source).
    let trusting = Client::ALL.into_iter().filter(|client| *client != Client::PythonPolygon);
    let clients = trusting.map(async |client| {
        let params = "T.AAPL,AM.END";
        let mut running = client.start_secure(url, authority, CLIENT_KEY, params).await?;
        running.subscribed(params).await;
        Some(running)
    });
    let clients = join_all(clients).await;
    let many: Vec<_> = (0..5_000).map(|n| trade("AAPL", n)).collect();
    stack.publish(&many);
    stack.publish(&[trade("MSFT", 1)]);
    stack.publish(&[r#"{"ev":"AM","sym":"END","v":1}"#]);
    for mut client in clients.into_iter().flatten() {
        client.expect_objects(&many).await;
        client.expect_objects(&[r#"{"ev":"AM","sym":"END","v":1}"#]).await;
        client.finish().await;
    }
}

#[tokio::test]
async fn a_certificate_is_read_again_without_dropping_anyone() {
    let (mut stack, certificate) = encrypted(&[]).await;
    let (addr, before) = (stack.addr(), certificate.trust());
    let tunnel = Tunnel::start(addr, before.clone()).await;
    let mut old = TestClient::login(tunnel.addr(), CLIENT_KEY).await;
    old.subscribe("T.AAPL").await;

    certificate.renew();
    let after = certificate.trust();
    // Without a signal the new certificate is not used yet.
    assert!(try_tls(addr, &before).await);
    stack.filtered[0].signal(Signal::SIGHUP);
    eventually(SOON, "the new certificate is in use", async || try_tls(addr, &after).await).await;
    assert!(!try_tls(addr, &before).await, "the old certificate is still in use");

    // A key of another certificate, then a broken one: the program keeps the certificate that
    // works.
    let key = std::fs::read(certificate.key_file()).expect("read the key");
    for (n, text) in [key, b"-----BEGIN PRIVATE KEY-----\nAAAA\n".to_vec()].iter().enumerate() {
        Certificate::new().copy_to(&certificate);
        std::fs::write(certificate.key_file(), text).expect("write a key");
        stack.filtered[0].signal(Signal::SIGHUP);
        let message = "failed to read the certificate again: it stays as it was";
        eventually(SOON, "the failure is logged", async || {
            stack.filtered[0].log_count(message) == n + 1
        })
        .await;
        assert!(try_tls(addr, &after).await);
    }
    let line =
        stack.filtered[0].logged("failed to read the certificate again: it stays as it was").await;
    let error = line["error"].as_str().unwrap_or_default();
    assert!(error.starts_with("TLS_KEY: "), "{error}");

    // A session from before all that was not affected.
    let tunnel = Tunnel::start(addr, after).await;
    let mut new = TestClient::login(tunnel.addr(), CLIENT_KEY).await;
    new.subscribe("T.AAPL").await;
    stack.publish(&[trade("AAPL", 1)]);
    for client in [&mut old, &mut new] {
        client.expect_objects(&[trade("AAPL", 1)]).await;
    }
}

#[tokio::test]
async fn the_certificate_that_the_documents_make_works() {
    if !has_program("openssl", "version").await {
        return;
    }
    let certificate = Certificate::new();
    let document = document("docs/OPERATIONS.md");
    let mut shell = Command::new("sh");
    shell.arg("-ec").arg(block(&document, "sh", "openssl req"));
    let made = shell.current_dir(certificate.dir()).output().await.expect("run sh");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let [(firehose, key, _), _] = encrypted_programs(&certificate, &[]).await;
    let tunnel = Tunnel::start(firehose.addr(), certificate.trust()).await;
    TestClient::login(tunnel.addr(), key).await.close().await;
    let proxy = filtered(firehose.addr())
        .env("FIREHOSE_URL", format!("wss://localhost:{}", firehose.addr().port()))
        .env("FIREHOSE_CA", certificate.file().display())
        .start()
        .await;
    is_up(&proxy).await;
}

#[tokio::test]
async fn a_session_ends_with_a_tls_close_notify() {
    let certificate = Certificate::new();
    for (program, _, _) in encrypted_programs(&certificate, &[]).await {
        let stream = TcpStream::connect(program.addr()).await.expect("connect");
        let stream = certificate.trust().connect(stream).await.expect("a TLS handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), None);
        let (mut socket, _) =
            client_async("ws://localhost/stocks", stream).await.expect("an upgrade");
        let greeting = within(SOON, "the greeting", socket.next()).await;
        assert_eq!(greeting.expect("a message").expect("a message"), Message::text(GREETING));
        program.signal(Signal::SIGTERM);
        let mut code = None;
        let closing = async {
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Close(frame) = message {
                    code = frame.map(|frame| u16::from(frame.code));
                }
            }
        };
        within(SOON, "the close", closing).await;
        assert_eq!(code, Some(1012));
        // Without the close notify this would be an error.
        let mut rest = Vec::new();
        let read = within(SOON, "the end", socket.get_mut().read_to_end(&mut rest)).await;
        assert_eq!(read.expect("the end of a TLS stream"), 0);
    }
}

#[tokio::test]
async fn plain_http_is_answered_with_a_hint_at_tls_and_foreign_handshakes_are_counted() {
    let certificate = Certificate::new();
    for (mut program, key, prefix) in encrypted_programs(&certificate, &[]).await {
        let addr = program.addr();
        for response in [http::get(addr, "/health").await, http::upgrade(addr, "").await] {
            assert_eq!(response.status, 400, "{response:?}");
            let expected = "This port speaks TLS: connect with wss:// or https://\n";
            assert_eq!(response.body, expected);
        }
        // Only one line of a kind is logged per minute, and this uses it up. The other case is
        // logged by the other program of this test.
        assert!(!try_tls(addr, &Certificate::new().trust()).await);
        // The alert of a client that does not trust the certificate comes after its last handshake
        // message.
        let label = r#"reason="tls""#;
        eventually(SOON, "all are counted", async || {
            let abuse = program.metric_with(&format!("{prefix}_abuse_total"), label).await;
            let refused = format!("{prefix}_connections_refused_total");
            abuse == Some(3.0) && program.metric_with(&refused, label).await == Some(3.0)
        })
        .await;
        program.logged("turned away: no TLS, or none that both sides accept").await;
        // A connection that only checks whether the port is open is not abuse, and it does not hold
        // up other clients.
        let look = TcpStream::connect(addr).await.expect("connect");
        let tunnel = Tunnel::start(addr, certificate.trust()).await;
        TestClient::login(tunnel.addr(), key).await.close().await;
        drop(look);
        let health = http::get(tunnel.addr(), "/health").await;
        assert_eq!(health.json()["market"], "stocks");
        let abuse = program.metric_with(&format!("{prefix}_abuse_total"), label).await;
        assert_eq!(abuse, Some(3.0));
    }
}

/// The official Python client speaks TLS unless it is told `secure=False`.
#[tokio::test]
async fn tls_on_a_plain_port_is_counted_and_logged() {
    for (mut program, key, prefix) in programs(&[]).await {
        for _ in 0..3 {
            assert!(!try_tls(program.addr(), &Certificate::new().trust()).await);
        }
        let label = r#"reason="tls_on_plain_port""#;
        for metric in ["abuse_total", "connections_refused_total"] {
            let metric = format!("{prefix}_{metric}");
            eventually(SOON, &metric, async || {
                program.metric_with(&metric, label).await == Some(3.0)
            })
            .await;
        }
        let line = program.logged("dropped: a client speaks TLS, this port does not").await;
        assert_eq!(line["level"], "WARN", "{line}");
        TestClient::login(program.addr(), key).await;
    }
}

#[tokio::test]
async fn a_failed_handshake_is_logged_with_its_reason() {
    let certificate = Certificate::new();
    for (mut program, _, _) in encrypted_programs(&certificate, &[]).await {
        assert!(!try_tls(program.addr(), &Certificate::new().trust()).await);
        let line = program.logged("turned away: no TLS, or none that both sides accept").await;
        let error = line["detail"].as_str().unwrap_or_default();
        // The alert of the client's library for an unknown certificate.
        assert!(error.starts_with("received fatal alert: "), "{line}");
    }
}

/// The first message of a client that supports only this old version. It is made by hand, because
/// no library here would send it.
fn client_hello(version: [u8; 2]) -> Vec<u8> {
    // Version, random, no session, one suite of that time (ECDHE_ECDSA_WITH_AES_128_CBC_SHA), no
    // compression.
    let body = [&version[..], &[7; 32], &[0], &[0, 2, 0xc0, 0x09], &[1, 0]].concat();
    let length = u8::try_from(body.len()).expect("a short message");
    let message = [&[1, 0, 0, length][..], &body].concat();
    let length = u8::try_from(message.len()).expect("a short record");
    [&[0x16, 3, 1, 0, length][..], &message].concat()
}

#[tokio::test]
async fn versions_of_the_past_are_refused() {
    let certificate = Certificate::new();
    for (program, key, _) in encrypted_programs(&certificate, &[]).await {
        for version in [[3, 0], [3, 1], [3, 2]] {
            let mut stream = TcpStream::connect(program.addr()).await.expect("connect");
            stream.write_all(&client_hello(version)).await.expect("write");
            let mut answer = Vec::new();
            let read = within(SOON, "an answer", stream.read_to_end(&mut answer)).await;
            read.expect("an answer and the end");
            // A fatal alert (RFC 8446, section 6) about the version: 70, or 40 in older versions.
            assert_eq!(answer.first(), Some(&0x15), "{version:?}: {answer:?}");
            assert!(matches!(answer[5..], [2, 70 | 40]), "{version:?}: {answer:?}");
        }
        let tunnel = Tunnel::start(program.addr(), certificate.trust()).await;
        TestClient::login(tunnel.addr(), key).await.close().await;
    }
}

#[tokio::test]
async fn broken_records_end_their_own_connection_only() {
    let (stack, certificate) = encrypted(&[]).await;
    let trust = certificate.trust();
    let tunnel = Tunnel::start(stack.addr(), trust.clone()).await;
    let mut neighbour = TestClient::login(tunnel.addr(), CLIENT_KEY).await;
    neighbour.subscribe("T.AAPL").await;
    for junk in [
        &b"\x17\x03\x03\x00\x20aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"[..],
        b"\x17\x03\x03\xff\xff",
        b"GET / ",
    ] {
        let stream = TcpStream::connect(stack.addr()).await.expect("connect");
        let stream = trust.connect(stream).await.expect("a TLS handshake");
        let (socket, _) = client_async("ws://localhost/", stream).await.expect("an upgrade");
        let (mut raw, _) = socket.into_inner().into_inner();
        raw.write_all(junk).await.expect("write");
        let mut rest = Vec::new();
        // Any kind of end is right.
        let _ = within(SOON, "its end", raw.read_to_end(&mut rest)).await;
    }
    eventually(SOON, "only one session is left", async || {
        stack.filtered[0].metric("filtered_sessions").await == Some(1.0)
    })
    .await;
    stack.publish(&[trade("AAPL", 1)]);
    neighbour.expect_objects(&[trade("AAPL", 1)]).await;
}

/// Sends records without data, and one byte. The library at the other end would refuse more of
/// them.
async fn say_little(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    for _ in 0..30 {
        stream.get_mut().1.refresh_traffic_keys().expect("a key that may change");
    }
    stream.write_all(b"x").await
}

#[tokio::test]
async fn records_that_hold_next_to_nothing_count_by_their_length() {
    let certificate = Certificate::new();
    for (program, key, prefix) in encrypted_programs(&certificate, &[("COMMAND_RATE", "1")]).await {
        let connect = async || {
            let stream = TcpStream::connect(program.addr()).await.expect("connect");
            certificate.trust().connect(stream).await.expect("a TLS handshake")
        };
        // In a message that never ends: by their length the records cost a minute's worth of
        // commands, by their content nothing.
        let (socket, _) =
            client_async("ws://localhost/stocks", connect().await).await.expect("an upgrade");
        let mut stream = socket.into_inner();
        stream.write_all(b"\x81\xfe\xff\xff\0\0\0\0").await.expect("write");
        for _ in 0..60 {
            say_little(&mut stream).await.expect("write");
        }
        let slowed = format!("{prefix}_abuse_total");
        eventually(SOON, "it is read more slowly", async || {
            program.metric_with(&slowed, r#"reason="command_rate""#).await >= Some(1.0)
        })
        .await;
        // Before the session begins, such a client is dropped.
        let mut stream = connect().await;
        let flood = async {
            loop {
                say_little(&mut stream).await?;
            }
        };
        let end: std::io::Result<()> = within(SOON, "its end", flood).await;
        assert!(end.is_err());
        let tunnel = Tunnel::start(program.addr(), certificate.trust()).await;
        TestClient::login(tunnel.addr(), key).await.close().await;
    }
}

#[tokio::test]
async fn handshakes_count_like_requests_and_no_more() {
    let certificate = Certificate::new();
    let settings =
        [("TRUSTED_PROXIES", "127.0.0.1"), ("PROXY_PROTOCOL", "on"), ("HANDSHAKE_RATE", "1")];
    let from = |port: u16| format!("PROXY TCP4 203.0.113.7 127.0.0.1 {port} 8765\r\n");
    for (program, _, prefix) in encrypted_programs(&certificate, &settings).await {
        let connect = async |port| {
            let mut stream = TcpStream::connect(program.addr()).await.expect("connect");
            stream.write_all(from(port).as_bytes()).await.expect("write");
            let mut stream = certificate.trust().connect(stream).await.ok()?;
            stream
                .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .await
                .ok()?;
            let mut answer = Vec::new();
            within(SOON, "an answer", stream.read_to_end(&mut answer)).await.ok()?;
            Some(String::from_utf8_lossy(&answer[9..12]).into_owned())
        };
        // Ten at once, each a handshake with a request. Without an upstream the answer is 503.
        for port in 1..=10 {
            assert_eq!(connect(port).await.as_deref(), Some("503"), "{port}");
        }
        let label = r#"reason="handshake_rate""#;
        let refused = format!("{prefix}_connections_refused_total");
        assert_eq!(program.metric_with(&refused, label).await, Some(0.0));
        eventually(SOON, "one of the next is dropped", async || connect(11).await.is_none()).await;
        assert!(program.metric_with(&refused, label).await >= Some(1.0));
    }
}

#[tokio::test]
async fn settings_that_do_not_fit_are_refused_by_name() {
    let (certificate, other) = (Certificate::new(), Certificate::new());
    let [cert, key] = [certificate.file(), certificate.key_file()].map(|p| p.display().to_string());
    let others_key = other.key_file().display().to_string();
    let launches: [fn() -> Launch; 2] =
        [|| firehose("ws://127.0.0.1:9/stocks"), || filtered(([127, 0, 0, 1], 9).into())];
    for launch in launches {
        let damaged = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0!\n-----END PRIVATE KEY-----\n";
        let one_line = std::fs::read_to_string(&cert).expect("read the certificate")
            + "-----BEGIN PRIVATE KEY-----c2VjcmV0-----END PRIVATE KEY-----\n";
        for (settings, line) in [
            (
                vec![("TLS_CERT", cert.as_str())],
                "TLS_KEY: not set: expected the private key of TLS_CERT",
            ),
            (vec![("TLS_KEY", &key)], "TLS_CERT: not set: expected the certificate of TLS_KEY"),
            (
                vec![("TLS_CERT", "none"), ("TLS_KEY", &key)],
                "TLS_CERT: invalid value \"none\": expected a file of certificates in PEM form",
            ),
            (vec![("TLS_CERT", &key), ("TLS_KEY", &key)], "it holds none"),
            (vec![("TLS_CERT", &cert), ("TLS_KEY", &cert)], "under no password: it holds none"),
            (
                vec![("TLS_CERT", &cert), ("TLS_KEY", "none")],
                "TLS_KEY: invalid value \"none\": expected a file with a private key in PEM form",
            ),
            (vec![("TLS_CERT", &cert), ("TLS_KEY", "damaged")], "it is damaged"),
            (
                vec![("TLS_CERT", &cert), ("TLS_KEY", &others_key)],
                "expected the private key of the certificate in TLS_CERT",
            ),
            // A key whose line breaks were lost, in the file of both.
            (vec![("TLS_CERT", "one-line"), ("TLS_KEY", "one-line")], "it is damaged"),
            (
                vec![("TLS_CERT", ""), ("TLS_KEY", &key)],
                "TLS_CERT: invalid value \"\": expected a path",
            ),
        ] {
            let launch = launch().file("damaged", damaged).file("one-line", &one_line);
            let launch =
                settings.iter().fold(launch, |launch, (name, value)| launch.env(name, value));
            let Finished { code, stderr, .. } = launch.run(SOON).await;
            assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{settings:?}: {stderr}");
            assert!(stderr.contains(line), "{settings:?}: {stderr}");
            // Neither as text nor as the numbers of its bytes.
            for secret in ["c2VjcmV0", "99, 50, 86, 106"] {
                assert!(!stderr.contains(secret), "{stderr}");
            }
        }
    }
}

#[tokio::test]
async fn an_idle_session_keeps_little() {
    const CLIENTS: usize = 300;
    let (stack, certificate) = encrypted(&[]).await;
    let tunnel = Tunnel::start(stack.addr(), certificate.trust()).await;
    let mut clients = Vec::new();
    let resident = async || {
        let bytes = stack.filtered[0].metric("process_resident_memory_bytes").await;
        bytes.expect("a gauge")
    };
    let mut before = 0.0;
    for n in 0..CLIENTS + 50 {
        // The first sessions need one-time allocations.
        if n == 50 {
            before = resident().await;
        }
        let mut client = TestClient::login(tunnel.addr(), CLIENT_KEY).await;
        client.subscribe("T.AAPL").await;
        clients.push(client);
    }
    stack.publish(&[trade("AAPL", 1)]);
    for client in &mut clients {
        client.expect_objects(&[trade("AAPL", 1)]).await;
    }
    let each = (resident().await - before) / CLIENTS as f64;
    println!("{each:.0} bytes for each idle session over TLS");
    assert!(each < 32_000.0, "{each} bytes for each session");
}
