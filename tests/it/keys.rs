//! Keys of clients: several of them, with labels, in a file that is read again without disturbing
//! sessions.

use std::{fs, path::PathBuf};

use serde_json::json;
use tests::{
    program::{Finished, Launch, Program, Signal},
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Sim, Stack, VENDOR_KEY},
    wait::{SOON, eventually},
    ws_client::{AUTHENTICATED, GREETING, Received, TestClient},
};

use crate::events::{quote, trade};

/// SHA-256 of `abc`, from the standard (FIPS 180-2).
const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
/// The close code for keys, limits and slow readers.
const POLICY: Received = Received::Closed(Some(1008));

/// Both programs before their start, without an upstream. Each comes with the variable of its keys
/// and the prefix of its metrics.
fn launches() -> [(Launch, &'static str, &'static str); 2] {
    let nowhere = ReservedPort::new();
    [
        (stack::firehose(&format!("ws://{}", nowhere.addr())), "FIREHOSE_API_KEYS", "firehose"),
        (stack::filtered(nowhere.addr()), "CLIENT_API_KEYS", "filtered"),
    ]
}

/// The launch with this file of keys instead of its key.
fn with_file(launch: Launch, variable: &str, text: &str) -> Launch {
    launch.without(variable).file("keys", text).env(&format!("{variable}_FILE"), "keys")
}

async fn is_refused(program: &Program, key: &str) {
    let mut client = TestClient::connect(program.addr()).await;
    client.command("auth", key).await;
    assert_eq!(client.end(SOON).await, POLICY, "{key}");
}

#[tokio::test]
async fn hash_key_prints_the_line_for_a_key() {
    for binary in ["firehose-proxy", "filtered-proxy"] {
        let hash = |args: &[&str], input: &str| {
            let launch = Launch::new(binary).arg("hash-key").input(input);
            args.iter().fold(launch, |launch, arg| launch.arg(arg)).run(SOON)
        };
        for input in ["abc", "abc\n", " abc\r\n"] {
            let Finished { code, stdout, stderr, .. } = hash(&["desk-a"], input).await;
            assert_eq!((code, stdout), (Some(0), format!("desk-a {ABC}\n")), "{stderr}");
        }
        let Finished { stdout, .. } = hash(&[], "abc\n").await;
        assert_eq!(stdout, format!("client {ABC}\n"));
        for (args, input) in
            [(&["a"][..], ""), (&["a"], "\n"), (&["a"], "s3cret key\n"), (&["a b"], "k")]
        {
            let Finished { code, stdout, stderr, .. } = hash(args, input).await;
            assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?} {input:?}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(stderr.contains("expected") && !stderr.contains("s3cret"), "{stderr}");
        }
    }
}

#[tokio::test]
async fn sessions_are_counted_by_the_labels_of_their_keys() {
    for (launch, variable, prefix) in launches() {
        let text = format!("# two desks\n\ndesk-a {ABC}\nplain-one, plain-two\n");
        let launch = with_file(launch, variable, &text).env("LOG_LEVEL", "debug");
        let mut program = launch.start().await;
        let mut clients = Vec::new();
        for key in ["abc", "abc", "plain-two"] {
            clients.push(TestClient::login(program.addr(), key).await);
        }
        for key in ["desk-a", ABC, ABC.trim_start_matches("sha256:"), "# two desks", FIREHOSE_KEY] {
            is_refused(&program, key).await;
        }
        let health = program.health().await;
        assert_eq!(health["keys"], json!({"desk-a": 2, "key-1": 0, "key-2": 1}), "{health}");
        let name = format!("{prefix}_sessions_by_key");
        for (label, sessions) in [("desk-a", 2.0), ("key-1", 0.0), ("key-2", 1.0)] {
            let label = format!("key=\"{label}\"");
            assert_eq!(program.metric_with(&name, &label).await, Some(sessions), "{label}");
        }
        let line = program.logged("session started").await;
        assert_eq!(line["key"], "desk-a", "{line}");
        for client in clients {
            client.close().await;
        }
        eventually(SOON, "the sessions are gone", async || {
            program.metric(&name).await == Some(0.0)
        })
        .await;
        program.signal(Signal::SIGTERM);
        program.wait_exit(SOON).await;
        let text = program.log_text();
        for key in ["abc\"", "plain-two", "ba7816bf"] {
            assert!(!text.contains(key), "{key} in the log");
        }
    }
}

#[tokio::test]
async fn a_file_of_keys_is_read_again_on_sighup() {
    for (launch, variable, _) in launches() {
        let launch = with_file(launch, variable, &format!("desk-a {ABC}\ndesk-b-key\n"));
        let file = launch.dir().join("keys");
        let mut program = launch.env("PING_INTERVAL", "1s").start().await;
        let mut stays = TestClient::login(program.addr(), "abc").await;
        let mut goes = TestClient::login(program.addr(), "desk-b-key").await;
        stays.subscribe("T.AAPL").await;
        // There is no upstream.
        while stays.next_notice().await[2] == "starting" {}

        // A file that cannot be read changes nothing.
        fs::write(&file, "desk-a sha256:12\n").expect("write the keys");
        program.signal(Signal::SIGHUP);
        let line = program.logged("failed to read the keys again: they stay as they were").await;
        assert_eq!(line["level"], "ERROR");
        let error = line["error"].as_str().unwrap_or_default();
        let expected = format!(
            r#"{variable}_FILE: invalid value "keys": line 1: expected sha256: with 64 hexadecimal digits"#
        );
        assert_eq!(error, expected);
        TestClient::login(program.addr(), "desk-b-key").await.close().await;

        fs::write(&file, format!("desk-a {ABC}\ndesk-c-key\n")).expect("write the keys");
        program.signal(Signal::SIGHUP);
        let line = program.logged("keys read again").await;
        assert_eq!((&line["added"], &line["removed"]), (&json!(1), &json!(1)), "{line}");
        is_refused(&program, "desk-b-key").await;
        TestClient::login(program.addr(), "desk-c-key").await;
        // A session with the removed key gets a status and is closed.
        goes.expect_status("auth_failed", "key revoked").await;
        assert_eq!(goes.end(SOON).await, POLICY);
        stays.ping(b"still here").await;
        stays.subscribe("T.MSFT").await;
    }
}

#[tokio::test]
async fn a_bad_file_of_keys_is_refused_with_the_number_of_the_line() {
    let cases = [
        (
            format!("# desks\ndesk-a {ABC}\ndesk-b sha256:s3cret\n"),
            "line 3: expected sha256: with 64 hexadecimal digits",
        ),
        (format!("{ABC}\n"), "line 1: expected a label, a blank and sha256: with a digest"),
        (format!("desk a {ABC}\n"), "line 1: expected a label, a blank and sha256: with a digest"),
        (format!("desk-a {ABC}\n\ndesk-b {ABC}\n"), "line 3: the key of line 1 again"),
        (
            "desk-a s3cret\n".to_owned(),
            "line 1: expected keys without blanks, separated by commas, or a label and sha256: with a digest",
        ),
        (
            format!("desk-a {ABC} s3cret\n"),
            "line 1: expected nothing after the digest but markets=, types= and role=operator, each once at most",
        ),
        (
            format!("desk-a {ABC} markets=stocks markets=options\n"),
            "line 1: expected nothing after the digest but markets=, types= and role=operator, each once at most",
        ),
        (
            format!("desk-a {ABC} markets=stocks,s3cret\n"),
            "line 1: markets=: expected some of stocks, options, forex, crypto, indices, futures, with commas and no blanks between",
        ),
    ];
    for (text, why) in &cases {
        for (launch, variable, _) in launches() {
            let launch = with_file(launch, variable, text);
            let Finished { code, stderr, .. } = launch.run(SOON).await;
            assert_eq!(code, Some(2), "{stderr}");
            assert_eq!(stderr, format!("{variable}_FILE: invalid value \"keys\": {why}\n"));
        }
    }
    for (launch, variable, _) in launches() {
        let Finished { stderr, .. } = with_file(launch, variable, "# none yet\n").run(SOON).await;
        assert_eq!(stderr, format!("{variable}_FILE: not set: expected a file that holds a key\n"));
    }
}

#[tokio::test]
async fn the_accounts_key_has_a_label_too() {
    for ((launch, variable, _), own) in launches().into_iter().zip([FIREHOSE_KEY, CLIENT_KEY]) {
        let launch = launch.without(variable).env("POLYGON_API_KEY", VENDOR_KEY);
        let program = launch.start().await;
        let _client = TestClient::login(program.addr(), VENDOR_KEY).await;
        is_refused(&program, own).await;
        assert_eq!(program.health().await["keys"], json!({"account": 1}));
    }
}

#[tokio::test]
async fn a_key_opens_the_markets_that_it_is_for_and_no_others() {
    for (launch, variable, prefix) in launches() {
        // Not all of these markets are served here.
        let text = format!("desk-a {ABC} markets=crypto,options\ndesk-b-key\n");
        let launch = with_file(launch, variable, &text).env("MARKETS", "stocks,crypto");
        let mut program = launch.start().await;
        let at = async |path: &str| TestClient::connect_to(program.addr(), path).await;
        let mut opened = at("/crypto").await;
        opened.log_in("abc").await;
        for path in ["/stocks", "/"] {
            let mut client = at(path).await;
            client.expect(GREETING).await;
            client.command("auth", "abc").await;
            let message = "the key is for options, crypto, not for stocks";
            client.expect_status("auth_failed", message).await;
            assert_eq!(client.end(SOON).await, POLICY, "{path}");
        }
        // As with a wrong key, a second `auth` that is refused ends the session.
        let mut second = at("/stocks").await;
        second.log_in("desk-b-key").await;
        second.command("auth", "abc").await;
        assert_eq!(second.end(SOON).await, POLICY);
        for name in ["abuse_total", "sessions_closed_total"] {
            let name = format!("{prefix}_{name}");
            eventually(SOON, "refused markets are counted", async || {
                program.metric_with(&name, "reason=\"market_refused\"").await == Some(3.0)
            })
            .await;
            let wrong = program.metric_with(&name, "reason=\"auth_failed\"").await;
            assert_eq!(wrong, Some(0.0), "{name}");
        }
        let line = program.logged("closed: the key is for other markets").await;
        assert_eq!(line["abuse"], "market_refused", "{line}");
        opened.ping(b"still here").await;
        assert!(!program.log_text().contains("ba7816bf"), "a digest in the log");
    }
}

/// A stock market and both tiers, with this file of keys at the filtered proxy. Returns the file
/// too.
async fn stack_with_keys(text: &str) -> (Stack, PathBuf) {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).start().await;
    let launch = with_file(stack::filtered(firehose.addr()), "CLIENT_API_KEYS", text);
    let file = launch.dir().join("keys");
    let filtered = vec![launch.env("PING_INTERVAL", "1s").start().await];
    let stack = Stack { filtered, firehose, sim };
    stack.linked().await;
    (stack, file)
}

#[tokio::test]
async fn a_key_gets_the_types_that_it_is_for_and_a_reason_for_the_others() {
    let (stack, _) = stack_with_keys(&format!("desk-a {ABC} types=T,AM\ndesk-b-key\n")).await;
    let mut client = TestClient::login(stack.addr(), "abc").await;
    let refused = "is not for the key desk-a, which may have T, AM";
    client.command("subscribe", "Q.AAPL,T.AAPL,*,A.*,AM.*,LULD.A*,bad").await;
    client.expect_status("error", &format!(r#""Q.AAPL" {refused}"#)).await;
    client.expect_status("error", &format!(r#""*" {refused}: ask for T.*, AM.*"#)).await;
    client.expect_status("error", &format!(r#""A.*" {refused}"#)).await;
    client.expect_status("error", &format!(r#""LULD.A*" {refused}"#)).await;
    let bad = r#"invalid channel "bad": expected TYPE.SYMBOL, TYPE.PREFIX*, TYPE.* or *, for example T.*"#;
    client.expect_status("error", bad).await;
    client.expect_status("success", "subscribed to: T.AAPL").await;
    client.expect_status("success", "subscribed to: AM.*").await;
    stack.publish(&[quote("AAPL", 1), trade("AAPL", 2), trade("MSFT", 3)]);
    client.expect_event(&trade("AAPL", 2)).await;

    // A newer key of more types leaves everything as it is. One of fewer takes what it may not
    // have.
    client.command("auth", "desk-b-key").await;
    client.expect(AUTHENTICATED).await;
    client.subscribe("*,Q.AAPL").await;
    stack.publish(&[quote("MSFT", 4)]);
    client.expect_event(&quote("MSFT", 4)).await;
    client.command("auth", "abc").await;
    client.expect(AUTHENTICATED).await;
    client.expect_status("error", &format!(r#""*" {refused}: ask for T.*, AM.*"#)).await;
    client.expect_status("error", &format!(r#""Q.AAPL" {refused}"#)).await;
    stack.publish(&[quote("AAPL", 5), trade("MSFT", 6), trade("AAPL", 7)]);
    client.expect_event(&trade("AAPL", 7)).await;
    assert_eq!(stack.filtered[0].metric("filtered_subscriptions").await, Some(2.0));
    // Whatever a key may not have can be given up.
    client.unsubscribe("Q.AAPL,*,T.AAPL,AM.*").await;
}

#[tokio::test]
async fn a_limit_that_is_narrowed_ends_the_sessions_of_its_key() {
    let (mut stack, file) = stack_with_keys(&format!("desk-a {ABC}\ndesk-b-key\n")).await;
    let addr = stack.addr();
    let mut narrowed = TestClient::login(addr, "abc").await;
    narrowed.subscribe("Q.AAPL").await;
    let mut other = TestClient::login(addr, "desk-b-key").await;
    other.subscribe("Q.AAPL").await;
    fs::write(file, format!("desk-a {ABC} types=T,AM\ndesk-b-key\n")).expect("write the keys");
    stack.filtered[0].signal(Signal::SIGHUP);
    let line = stack.filtered[0].logged("keys read again").await;
    assert_eq!((&line["added"], &line["removed"]), (&json!(1), &json!(1)), "{line}");
    narrowed.expect_status("auth_failed", "key revoked").await;
    assert_eq!(narrowed.end(SOON).await, POLICY);
    let mut again = TestClient::login(addr, "abc").await;
    again.command("subscribe", "Q.AAPL").await;
    let refused = r#""Q.AAPL" is not for the key desk-a, which may have T, AM"#;
    again.expect_status("error", refused).await;
    again.subscribe("T.AAPL").await;
    other.ping(b"still here").await;
}

#[tokio::test]
async fn a_firehose_refuses_limits_to_types() {
    let limited = format!("desk-a {ABC} markets=stocks\ndesk-b {ABC} types=T\n");
    let [(launch, variable, _), _] = launches();
    let Finished { code, stderr, .. } = with_file(launch, variable, &limited).run(SOON).await;
    let why = "line 2: types= works at the filtered proxy only, as this program hands out frames \
               whole: expected no limit but markets=";
    let error = format!("FIREHOSE_API_KEYS_FILE: invalid value \"keys\": {why}");
    assert_eq!((code, stderr), (Some(2), format!("{error}\n")));

    let [(launch, variable, _), _] = launches();
    let launch = with_file(launch, variable, &format!("desk-a {ABC} markets=stocks\n"));
    let file = launch.dir().join("keys");
    let mut program = launch.start().await;
    let mut client = TestClient::login(program.addr(), "abc").await;
    fs::write(&file, limited).expect("write the keys");
    program.signal(Signal::SIGHUP);
    let line = program.logged("failed to read the keys again: they stay as they were").await;
    assert_eq!(line["error"], error, "{line}");
    client.ping(b"still here").await;
    TestClient::login(program.addr(), "abc").await;
}
