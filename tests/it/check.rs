//! `check`: what is in force and why, the exit code of a start, and the upstream only on request.

use std::{
    net::TcpListener,
    time::{Duration, SystemTime},
};

use futures_util::{SinkExt, StreamExt};
use polygon_sim::SimConfig;
use tests::{
    program::{Finished, Launch},
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, Sim, VENDOR_KEY, failed, is_up},
    tls::Certificate,
    wait::SOON,
    ws_client::{AUTHENTICATED, GREETING},
};
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        http::HeaderValue,
    },
};

use crate::documents::settings;

/// The words that `--connect` begins with at the firehose.
const WARNING: &str = "This logs in to the vendor with the account's key.";

async fn check(launch: Launch) -> Finished {
    launch.arg("check").run(SOON).await
}

async fn check_connect(launch: Launch) -> Finished {
    launch.arg("check").arg("--connect").run(SOON).await
}

/// Value and source of a setting in the table.
fn row<'a>(done: &'a Finished, name: &str) -> (&'a str, &'a str) {
    let mut lines = done.stdout.lines();
    let line = lines.find(|line| line.split(' ').next() == Some(name));
    let cells = line.and_then(|line| line.strip_prefix(name)?.trim().rsplit_once("  "));
    let (value, source) = cells.unwrap_or_else(|| panic!("no row {name} in {}", done.stdout));
    (value.trim(), source)
}

#[tokio::test]
async fn each_value_has_its_source_and_no_secret_is_shown() {
    let secrets = "POLYGON_API_KEY=s3cret-1\nFIREHOSE_API_KEYS=s3cret-2\nMAX_CONNECTIONS=7\n\
                   AUTH_TIMEOUT=9s\nFILTERED_PROXY_PORT=1\n";
    let launch = Launch::new("firehose-proxy")
        .file(".env", secrets)
        .env("AUTH_TIMEOUT", "8s")
        .env("POLYGON_WS_URL", "wss://feed.example/stocks?apiKey=s3cret-3")
        .env("POLYGON_API_KEY_OPTIONS", "s3cret-4")
        .env("UPSTREAM_CHANNELS_OPTIONS", "T")
        .arg("--ping-interval")
        .arg("11s");
    let dotenv = launch.dir().join(".env").display().to_string();
    let done = check(launch).await;
    assert_eq!((done.code, &*done.stderr), (Some(0), ""), "{done:?}");
    for (name, value, source) in [
        ("POLYGON_API_KEY", "(not shown)", &*dotenv),
        ("FIREHOSE_API_KEYS", "(not shown)", &dotenv),
        ("MAX_CONNECTIONS", "7", &dotenv),
        ("AUTH_TIMEOUT", "8s", "environment"),
        ("POLYGON_WS_URL", "wss://feed.example/stocks", "environment"),
        ("POLYGON_API_KEY_OPTIONS", "(not shown)", "environment"),
        ("UPSTREAM_CHANNELS_OPTIONS", "T", "environment"),
        ("PING_INTERVAL", "11s", "flag --ping-interval"),
        ("FIREHOSE_PORT", "8767", "default"),
        ("ADMIN_PORT", "none", "default"),
    ] {
        assert_eq!(row(&done, name), (value, source), "{name}");
    }
    for text in ["127.0.0.1:8767", "wss://feed.example/stocks", "key-1", "commit"] {
        assert!(done.stdout.contains(text), "{text} in {}", done.stdout);
    }
    assert!(!done.stdout.contains("s3cret"), "{}", done.stdout);
}

#[tokio::test]
async fn every_setting_with_a_value_is_listed() {
    for (program, key) in [("firehose-proxy", VENDOR_KEY), ("filtered-proxy", CLIENT_KEY)] {
        let done = check(Launch::new(program).env("POLYGON_API_KEY", key)).await;
        for (name, default) in settings(program).await {
            let Some(default) = default else { continue };
            let url = format!("{default}/");
            let (value, source) = row(&done, &name);
            assert!([&*default, &*url].contains(&value) && source == "default", "{name}: {value}");
        }
    }
}

#[tokio::test]
async fn what_stops_a_start_stops_the_check_with_the_same_words() {
    let firehose = || stack::firehose("ws://127.0.0.1:9/stocks");
    let filtered = || stack::filtered(([127, 0, 0, 1], 9).into());
    type Change = fn(Launch) -> Launch;
    let changes: [Change; 7] = [
        |launch| launch.env("AUTH_TIMEOUT", "soon"),
        |launch| launch.env("MARKET", "bonds"),
        |launch| launch.env("ADMIN_HOST", "no such host").env("ADMIN_PORT", 0),
        |launch| launch.env("TLS_CERT", "no-such-file"),
        |launch| launch.env("DRAIN_SPREAD", "9s"),
        |launch| launch.file(".env", "MAX_CONNECTIONS is 7\n"),
        // Open to other machines with the account's key alone.
        |launch| {
            let launch = launch.without("CLIENT_API_KEYS").without("FIREHOSE_API_KEYS");
            let launch = launch.env("FIREHOSE_HOST", "0.0.0.0");
            launch.env("FILTERED_PROXY_HOST", "0.0.0.0").env("POLYGON_API_KEY", "k")
        },
    ];
    for change in changes {
        for launch in [firehose as fn() -> Launch, filtered] {
            let start = change(launch()).run(SOON).await;
            let checked = check(change(launch())).await;
            let line = |done: &Finished| {
                // The directory of each launch is another one.
                let end = done.stderr.find(".env").unwrap_or_default();
                done.stderr[end..].to_owned()
            };
            assert_eq!((start.code, line(&start)), (Some(2), line(&checked)));
            assert_eq!((checked.code, checked.stderr.lines().count()), (Some(2), 1), "{checked:?}");
        }
    }
}

#[tokio::test]
async fn a_check_opens_no_port_and_connects_to_nothing() {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    upstream.set_nonblocking(true).expect("set a listener non-blocking");
    let taken = upstream.local_addr().expect("an address");
    let firehose = stack::firehose(&format!("ws://{taken}/stocks"));
    for launch in [
        firehose.env("FIREHOSE_PORT", taken.port()),
        stack::filtered(taken).env("FILTERED_PROXY_PORT", taken.port()),
    ] {
        let done = check(launch).await;
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(!done.stdout.contains(WARNING), "{}", done.stdout);
    }
    let connected = upstream.accept();
    assert!(connected.is_err(), "{connected:?}");
}

#[tokio::test]
async fn with_connect_each_step_is_shown_after_a_warning() {
    let sim = Sim::start().await;
    let url = sim.url("stocks");
    let done = check_connect(stack::firehose(&url)).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.starts_with(WARNING), "{}", done.stdout);
    let steps = done.stdout.split(&format!("\nPolygon at {url}\n")).nth(1).expect("steps");
    let address = format!("  addresses  {}\n", sim.addr());
    assert!(steps.starts_with(&address), "{steps}");
    for step in ["  connected  in ", "not encrypted", "  clock      ", "  login      accepted\n"] {
        assert!(steps.contains(step), "{step} in {steps}");
    }
    // A refused key.
    let done = check_connect(stack::firehose(&url).env("POLYGON_API_KEY", "wr0ng")).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stdout.contains("\n  failed     auth_failed: "), "{}", done.stdout);
    assert!(!done.stdout.contains("wr0ng"), "{}", done.stdout);
}

#[tokio::test]
async fn only_a_check_with_connect_takes_the_connection_of_the_account() {
    let sim = Sim::with(SimConfig { max_connections: 1, ..SimConfig::default() }).await;
    let url = sim.url("stocks");
    let firehose = stack::firehose(&url).start().await;
    is_up(&firehose).await;
    assert_eq!(check(stack::firehose(&url)).await.code, Some(0));
    is_up(&firehose).await;
    assert_eq!(check_connect(stack::firehose(&url)).await.code, Some(0));
    failed(&firehose, SOON, "max_connections").await;
}

#[tokio::test]
async fn encryption_and_clock_of_a_firehose_are_checked() {
    let certificate = Certificate::new();
    let firehose = stack::firehose("ws://127.0.0.1:9/stocks").envs(certificate.settings());
    let firehose = firehose.start().await;
    let url = format!("wss://localhost:{}", firehose.addr().port());
    let filtered = || stack::filtered(firehose.addr()).env("FIREHOSE_URL", &url);
    let done = check_connect(filtered().env("FIREHOSE_CA", certificate.file().display())).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    for text in ["TLS 1.3\n", "  clock      agrees with the upstream's\n"] {
        assert!(done.stdout.contains(text), "{text} in {}", done.stdout);
    }
    // It logs in to a program of ours.
    assert!(!done.stdout.contains(WARNING), "{}", done.stdout);
    let done = check_connect(filtered()).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stdout.contains("\n  failed     unreachable: "), "{}", done.stdout);
}

/// A vendor whose clock is an hour ahead.
#[tokio::test]
async fn a_wrong_clock_is_a_problem() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind a port");
    let addr = listener.local_addr().expect("an address");
    let vendor = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("accept");
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3_600));
        #[expect(clippy::result_large_err, reason = "the library's type")]
        let with_date = |_: &Request, mut response: Response| {
            let date = HeaderValue::from_str(&date).expect("a header");
            response.headers_mut().insert("date", date);
            Ok(response)
        };
        let mut socket = accept_hdr_async(tcp, with_date).await.expect("upgrade");
        socket.send(Message::text(GREETING)).await.expect("greet");
        socket.next().await.expect("a key").expect("a message");
        socket.send(Message::text(AUTHENTICATED)).await.expect("answer");
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
    });
    let filtered = stack::filtered(addr).env("FIREHOSE_API_KEY", FIREHOSE_KEY);
    let done = check_connect(filtered).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    let clock = done.stdout.lines().find(|line| line.starts_with("  clock "));
    let clock = clock.expect("a line about the clock");
    assert!(clock.contains("behind the upstream's: correct it"), "{clock}");
    assert!(done.stdout.contains("  login      accepted\n"), "{}", done.stdout);
    vendor.await.expect("the vendor ends");
}
