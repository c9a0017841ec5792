//! Settings: their sources, the texts that refuse them, and that no key is ever shown.

use std::{net::TcpListener, time::Duration};

use tests::{
    program::{Finished, Launch, Signal},
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, Sim, VENDOR_KEY, is_up},
    wait::{SOON, eventually},
    ws_client::TestClient,
};

use crate::events::trade;

/// How long a program with a bad setting may live.
const A_SECOND: Duration = Duration::from_secs(1);

fn firehose() -> Launch {
    stack::firehose("ws://127.0.0.1:9/stocks")
}

fn filtered() -> Launch {
    stack::filtered(([127, 0, 0, 1], 9).into())
}

/// Runs a program that cannot start and checks that it gives the reason: one line, exit code 2, at
/// once.
async fn refused(launch: Launch) -> String {
    let what = format!("{launch:?}");
    let Finished { code, stdout, stderr, took } = launch.run(SOON).await;
    assert_eq!(code, Some(2), "{what}: {stderr}");
    assert_eq!(stdout, "", "{what}");
    assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
    assert!(took < A_SECOND, "{what}: took {took:?}");
    stderr.trim_end().to_owned()
}

#[tokio::test]
async fn a_bad_value_is_named_with_its_variable_and_what_is_expected() {
    let both = [
        ("MAX_CONNECTIONS", "many"),
        ("MAX_CONNECTIONS", "0"),
        ("AUTH_TIMEOUT", "10"),
        ("AUTH_TIMEOUT", "0s"),
        ("CLIENT_MAX_LAG", "soon"),
        ("CLIENT_QUEUE_BYTES", "16 MiB"),
        ("TOTAL_QUEUE_BYTES", "0"),
        ("PING_INTERVAL", "-1s"),
        ("ADMIN_PORT", "admin"),
        // Without ADMIN_PORT.
        ("ADMIN_HOST", "0.0.0.0"),
        ("MARKET", "bonds"),
        ("MARKET", "Stocks"),
        ("LOG_LEVEL", "loud=very"),
        ("LOG_FORMAT", "xml"),
        ("DRAIN_TIMEOUT", "forever"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "0"),
        ("HANDSHAKE_RATE", "0"),
        ("COMMAND_RATE", "fast"),
        ("ALLOWED_ORIGINS", "desk.example.com"),
        ("TRUSTED_PROXIES", "127.0.0.1,nginx"),
        ("PROXY_PROTOCOL", "maybe"),
        // It is on, but no client is trusted to send a header.
        ("PROXY_PROTOCOL", "on"),
        ("DRAIN_SPREAD", "2"),
        ("DRAIN_SPREAD", "6s"),
        ("CLIENT_NOTICES", "yes"),
    ];
    let firehose_cases = [
        ("FIREHOSE_PORT", "abc"),
        ("FIREHOSE_PORT", "65536"),
        ("FIREHOSE_PORT", "-1"),
        ("FIREHOSE_HOST", "no such host"),
        ("POLYGON_WS_URL", "http://socket.polygon.io/stocks"),
        ("POLYGON_WS_URL", "socket.polygon.io"),
        ("POLYGON_WS_URL", "wss://"),
        ("UPSTREAM_CHANNELS", "T.*,zz.AAPL"),
        ("UPSTREAM_CHANNELS", "T,new9"),
        ("UPSTREAM_CHANNELS", "T,TOOLONGFOR"),
        ("UPSTREAM_CHANNELS", "T;Q"),
        ("UPSTREAM_CHANNELS", "T,Q.AA*"),
        ("UPSTREAM_LINGER", "a while"),
        ("RING_FRAMES", "x"),
        ("RING_BYTES", "0"),
        // Less than one frame of the ring needs.
        ("RING_BYTES", "1000000"),
        ("SILENCE_ALARM", "never"),
    ];
    let filtered_cases = [
        ("FILTERED_PROXY_PORT", "abc"),
        ("FILTERED_PROXY_HOST", "no such host"),
        ("FIREHOSE_URL", "localhost:8767"),
        ("FIREHOSE_URL", "http://localhost:8767"),
        ("MAX_SUBSCRIPTIONS", "0"),
        ("SESSION_TTL", "10"),
        ("SESSION_TTL", "0s"),
    ];
    let of = |launch: fn() -> Launch, cases: &[(&'static str, &'static str)]| {
        cases.iter().map(|&case| (launch, case)).collect::<Vec<_>>()
    };
    let cases = [
        of(firehose, &both),
        of(firehose, &firehose_cases),
        of(filtered, &both),
        of(filtered, &filtered_cases),
    ];
    for (launch, (variable, value)) in cases.concat() {
        let line = refused(launch().env(variable, value)).await;
        assert!(line.starts_with(&format!("{variable}: ")), "{variable}={value}: {line}");
        assert!(line.contains(value) && line.contains("expected"), "{variable}={value}: {line}");
    }
}

#[tokio::test]
async fn the_line_is_pinned() {
    let line = refused(firehose().env("FIREHOSE_PORT", "abc")).await;
    assert_eq!(
        line,
        r#"FIREHOSE_PORT: invalid value "abc": expected a port number from 0 (any free one) to 65535"#
    );
    let line = refused(filtered().env("AUTH_TIMEOUT", "10")).await;
    assert_eq!(
        line,
        r#"AUTH_TIMEOUT: invalid value "10": expected a time such as 10s, 500ms or 15min"#
    );
}

#[tokio::test]
async fn a_flag_is_refused_under_the_name_of_its_variable() {
    let line = refused(firehose().arg("--port").arg("abc")).await;
    assert!(line.starts_with("FIREHOSE_PORT: invalid value \"abc\": expected "), "{line}");
    let line = refused(filtered().arg("--no-such-flag")).await;
    assert!(line.contains("--no-such-flag"), "{line}");
}

#[tokio::test]
async fn a_missing_key_is_named() {
    let line = refused(firehose().without("POLYGON_API_KEY")).await;
    assert!(line.starts_with("POLYGON_API_KEY: not set: expected "), "{line}");
    let line = refused(firehose().env("POLYGON_API_KEY", "")).await;
    assert!(line.starts_with("POLYGON_API_KEY: not set: expected "), "{line}");
    for needed in ["FIREHOSE_API_KEY", "CLIENT_API_KEYS"] {
        let line = refused(filtered().without(needed)).await;
        assert!(line.contains(needed) && line.contains("POLYGON_API_KEY"), "{line}");
        assert!(line.contains("not set: expected "), "{line}");
    }
    for (launch, variable) in
        [(firehose as fn() -> Launch, "FIREHOSE_API_KEYS"), (filtered, "CLIENT_API_KEYS")]
    {
        let line = refused(launch().env(variable, " , ,")).await;
        assert!(line.starts_with(&format!("{variable}: not set: expected ")), "{line}");
    }
}

#[tokio::test]
async fn secrets_are_read_from_files_and_never_shown() {
    let cases = [
        (firehose as fn() -> Launch, "POLYGON_API_KEY"),
        (firehose, "FIREHOSE_API_KEYS"),
        (filtered, "FIREHOSE_API_KEY"),
        (filtered, "CLIENT_API_KEYS"),
    ];
    for (launch, variable) in cases {
        let file = format!("{variable}_FILE");
        let line = refused(launch().without(variable).env(&file, "no-such-file")).await;
        assert!(line.starts_with(&format!("{file}: invalid value \"no-such-file\": ")), "{line}");
        let line = refused(launch().file("k", "s3cret-in-file").env(&file, "k")).await;
        assert!(line.starts_with(&format!("{variable}: ")) && line.contains(&file), "{line}");
        for key in ["s3cret", VENDOR_KEY, FIREHOSE_KEY, CLIENT_KEY] {
            assert!(!line.contains(key), "{line}");
        }
        let line = refused(launch().without(variable).file("k", "\n").env(&file, "k")).await;
        assert!(line.contains(variable), "{line}");
    }
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks"))
        .without("POLYGON_API_KEY")
        .file("vendor", &format!("{VENDOR_KEY}\n"))
        .env("POLYGON_API_KEY_FILE", "vendor")
        .start()
        .await;
    let filtered = stack::filtered(firehose.addr())
        .without("FIREHOSE_API_KEY")
        .file("firehose", &format!("{FIREHOSE_KEY}\r\n"))
        .env("FIREHOSE_API_KEY_FILE", "firehose")
        .start()
        .await;
    is_up(&firehose).await;
    is_up(&filtered).await;
}

#[tokio::test]
async fn a_broken_dotenv_is_refused_without_showing_its_lines() {
    for launch in [firehose as fn() -> Launch, filtered] {
        let line = refused(launch().file(".env", "POLYGON_API_KEY=s3cret with blanks\n")).await;
        assert!(line.contains(".env") && !line.contains("s3cret"), "{line}");
    }
}

#[tokio::test]
async fn settings_come_from_flags_then_the_environment_then_dotenv() {
    let sim = Sim::start().await;
    let dotenv = format!(
        "# settings\nFIREHOSE_PORT=0\nFIREHOSE_HOST=127.0.0.1\nPOLYGON_WS_URL={}\nPOLYGON_API_KEY=\"{VENDOR_KEY}\"\nAUTH_TIMEOUT=nonsense\n",
        sim.url("stocks")
    );
    let launch = || Launch::new("firehose-proxy").file(".env", &dotenv);
    let line = refused(launch()).await;
    assert!(line.starts_with("AUTH_TIMEOUT: invalid value \"nonsense\""), "{line}");
    let line = refused(launch().env("AUTH_TIMEOUT", "rubbish")).await;
    assert!(line.starts_with("AUTH_TIMEOUT: invalid value \"rubbish\""), "{line}");
    let program =
        launch().env("AUTH_TIMEOUT", "rubbish").arg("--auth-timeout").arg("5s").start().await;
    is_up(&program).await;
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_variable() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("bind a port");
    let addr = taken.local_addr().expect("the address of a bound socket");
    for (launch, variable) in
        [(firehose as fn() -> Launch, "FIREHOSE_PORT"), (filtered, "FILTERED_PROXY_PORT")]
    {
        let line = refused(launch().env(variable, addr.port())).await;
        assert!(line.starts_with(variable) && line.contains(&addr.to_string()), "{line}");
        let line = refused(launch().env("ADMIN_PORT", addr.port())).await;
        assert!(line.starts_with("ADMIN_PORT") && line.contains(&addr.to_string()), "{line}");
    }
}

#[tokio::test]
async fn a_port_open_to_other_machines_wants_keys_of_its_own() {
    let cases = [
        (firehose as fn() -> Launch, "FIREHOSE_HOST", "FIREHOSE_API_KEYS"),
        (filtered, "FILTERED_PROXY_HOST", "CLIENT_API_KEYS"),
    ];
    for (launch, host, keys) in cases {
        let launch = || launch().env("POLYGON_API_KEY", VENDOR_KEY);
        for (address, any) in [("0.0.0.0", "0.0.0.0"), ("::", "::")] {
            if address == "::" && TcpListener::bind("[::1]:0").is_err() {
                continue;
            }
            // The account's key is accepted on loopback only.
            let line = refused(launch().without(keys).env(host, address)).await;
            let expected = format!(
                "{keys}: not set: expected keys for the clients, as {host} opens {any} to other machines"
            );
            assert_eq!(line, expected);
            launch().env(host, address).start().await;
        }
        launch().without(keys).start().await;
    }
}

#[tokio::test]
async fn localhost_means_both_of_its_addresses() {
    let sim = Sim::start().await;
    let mut firehose = stack::firehose(&sim.url("stocks")).without("FIREHOSE_HOST").start().await;
    let addr = firehose.bound("listening").await;
    assert_eq!(addr.ip().to_string(), "127.0.0.1");
    let (count, text) = (firehose.log_count("listening"), firehose.log_text());
    if TcpListener::bind("[::1]:0").is_ok() && has_ipv6_localhost() {
        assert_eq!(count, 2, "{text}");
        assert!(text.contains(&format!("[::1]:{}", addr.port())), "one port on both: {text}");
        let v6 = (std::net::Ipv6Addr::LOCALHOST, addr.port()).into();
        TestClient::login(v6, FIREHOSE_KEY).await;
    }
}

fn has_ipv6_localhost() -> bool {
    use std::net::ToSocketAddrs;
    ("localhost", 1).to_socket_addrs().is_ok_and(|mut all| all.any(|addr| addr.is_ipv6()))
}

#[tokio::test]
async fn help_lists_every_setting_and_no_key() {
    let common = [
        "MARKET",
        "MAX_CONNECTIONS",
        "AUTH_TIMEOUT",
        "PING_INTERVAL",
        "CLIENT_QUEUE_BYTES",
        "TOTAL_QUEUE_BYTES",
        "CLIENT_MAX_LAG",
        "DRAIN_TIMEOUT",
        "MAX_CONNECTIONS_PER_ADDRESS",
        "HANDSHAKE_RATE",
        "COMMAND_RATE",
        "ALLOWED_ORIGINS",
        "TRUSTED_PROXIES",
        "PROXY_PROTOCOL",
        "ADMIN_PORT",
        "ADMIN_HOST",
        "LOG_LEVEL",
        "LOG_FORMAT",
    ];
    let firehose_only = [
        "POLYGON_API_KEY",
        "MASSIVE_API_KEY",
        "POLYGON_API_KEY_FILE",
        "POLYGON_WS_URL",
        "UPSTREAM_CHANNELS",
        "UPSTREAM_LINGER",
        "FIREHOSE_PORT",
        "FIREHOSE_HOST",
        "FIREHOSE_API_KEYS",
        "FIREHOSE_API_KEYS_FILE",
        "RING_FRAMES",
        "RING_BYTES",
    ];
    let filtered_only = [
        "POLYGON_API_KEY",
        "FIREHOSE_URL",
        "FIREHOSE_API_KEY",
        "FIREHOSE_API_KEY_FILE",
        "CLIENT_API_KEYS",
        "CLIENT_API_KEYS_FILE",
        "FILTERED_PROXY_PORT",
        "FILTERED_PROXY_HOST",
        "MAX_SUBSCRIPTIONS",
        "SESSION_TTL",
    ];
    for (launch, own, default) in
        [(firehose(), &firehose_only[..], "8767"), (filtered(), &filtered_only[..], "8765")]
    {
        let Finished { code, stdout, stderr, .. } = launch.arg("--help").run(SOON).await;
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        for setting in common.iter().chain(own) {
            let is_listed = stdout
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .any(|word| word == *setting);
            assert!(is_listed, "{setting} in:\n{stdout}");
        }
        assert!(stdout.contains(default), "{stdout}");
        for key in [VENDOR_KEY, FIREHOSE_KEY, CLIENT_KEY] {
            assert!(!stdout.contains(key), "a key in:\n{stdout}");
        }
    }
}

#[tokio::test]
async fn no_key_is_in_any_log() {
    let sim = Sim::start().await;
    let launch = |launch: Launch| launch.env("LOG_LEVEL", "trace");
    let mut firehose = launch(stack::firehose(&sim.url("stocks"))).start().await;
    let mut filtered = launch(stack::filtered(firehose.addr())).start().await;
    is_up(&filtered).await;
    let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    client.subscribe("T.AAPL").await;
    sim.handle.publish(&[trade("AAPL", 1)]);
    client.close().await;
    for (program, key) in [(&filtered, CLIENT_KEY), (&firehose, FIREHOSE_KEY)] {
        let mut client = TestClient::login(program.addr(), key).await;
        // Keys in wrong places, and wrong keys.
        client.send_raw(&format!(r#"{{"action":"{key}","params":"{key}"}}"#)).await;
        client.send_raw(&format!(r#"{{"action":"auth","params":"{key}""#)).await;
        client.send_raw(key).await;
        client.command("subscribe", key).await;
        client.command("auth", "wr0ng-key").await;
        client.end(SOON).await;
    }
    for program in [&mut filtered, &mut firehose] {
        program.signal(Signal::SIGTERM);
        program.wait_exit(SOON).await;
        let text = program.log_text();
        assert!(text.contains(r#""level":"DEBUG""#), "the log level was not taken");
        for key in [VENDOR_KEY, FIREHOSE_KEY, CLIENT_KEY, "wr0ng-key"] {
            let line = text.lines().find(|line| line.contains(key));
            assert_eq!(line, None, "a key in the log");
        }
    }
}

#[tokio::test]
async fn logs_are_text_or_json_as_asked() {
    let sim = Sim::start().await;
    for (format, is_json) in [(None, true), (Some("json"), true), (Some("text"), false)] {
        let mut launch = stack::firehose(&sim.url("stocks"));
        if let Some(format) = format {
            launch = launch.env("LOG_FORMAT", format);
        }
        let mut program = launch.spawn();
        eventually(SOON, "a log line", async || program.log_text().contains("listening")).await;
        let text = program.log_text();
        for line in text.lines() {
            assert_eq!(line.starts_with('{'), is_json, "{format:?}: {line}");
            assert!(!line.contains('\u{1b}'), "colours in a pipe: {line}");
        }
        program.signal(Signal::SIGTERM);
        program.wait_exit(SOON).await;
    }
}
