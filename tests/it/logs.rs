//! Logs and `/health` for whoever is on call: who, what, where, since when, and what to do.

use std::{net::SocketAddr, time::Duration};

use polygon_sim::{Fault, SimConfig};
use serde_json::Value;
use tests::{
    http::{refused_upgrade, upgrade},
    program::Program,
    stack::{self, CLIENT_KEY, Sim, Stack, StackConfig, in_state, is_up},
    wait::{SOON, eventually, holds_for},
    ws_client::TestClient,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
};

use crate::{
    doc_snippets::document,
    events::{quote, trade},
};

/// The lines of a program's log, each of which is one flat JSON object with a message.
fn lines(program: &Program, name: &str) -> Vec<Value> {
    let text = program.log_text();
    let parse = |line: &str| {
        let parsed: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        for key in ["timestamp", "level", "message", "target"] {
            assert!(parsed[key].is_string(), "{key} of {line}");
            assert_eq!(line.matches(&format!("\"{key}\":")).count(), 1, "{key} of {line}");
        }
        assert_eq!(parsed["program"], name, "{line}");
        assert_eq!(parsed["version"], env!("CARGO_PKG_VERSION"), "{line}");
        assert_eq!(line.matches("\"version\":").count(), 1, "{line}");
        // What `{:?}` makes of structs, variants and options.
        for rust in [" { ", "Some(", "Ok(", "Err("] {
            assert!(!line.contains(rust), "{rust:?} in {line}");
        }
        parsed
    };
    text.lines().map(parse).collect()
}

#[tokio::test]
async fn each_line_is_flat_json_and_names_its_program_at_any_level() {
    let debug = [("LOG_LEVEL", "debug".to_owned()), ("SILENCE_ALARM", "1s".to_owned())];
    let stack = Stack::with(StackConfig {
        firehose_env: debug.to_vec(),
        filtered_env: debug[..1].to_vec(),
        ..StackConfig::default()
    })
    .await;
    let client = stack.subscriber("T.AAPL").await;
    client.close().await;
    assert_eq!(refused_upgrade(stack.addr(), "/nowhere").await.status, 404);
    for fault in [Fault::Garbage, Fault::Binary, Fault::Evict] {
        stack.sim.handle.inject(fault);
    }
    in_state(&stack.firehose, "waiting").await;
    drop(TestClient::login(stack.addr(), CLIENT_KEY).await);
    for (program, name) in
        [(&stack.firehose, "firehose-proxy"), (&stack.filtered[0], "filtered-proxy")]
    {
        assert!(lines(program, name).len() > 5);
    }
}

#[tokio::test]
async fn a_client_turned_away_is_logged_with_what_it_sent() {
    let stack = Stack::start().await;
    let proxy = &stack.filtered[0];
    refused_upgrade(proxy.addr(), "/nowhere?apiKey=secret").await;
    upgrade(proxy.addr(), "Origin: https://evil.example\r\n").await;
    upgrade(proxy.addr(), "Content-Length: 1\r\n").await;
    for (abuse, detail) in [
        ("path", "/nowhere"),
        ("origin", "https://evil.example"),
        ("handshake", "a request with a body"),
    ] {
        let mut found = None;
        eventually(SOON, "a line about it", async || {
            let lines = lines(proxy, "filtered-proxy");
            found = lines.into_iter().find(|line| line["abuse"] == abuse);
            found.is_some()
        })
        .await;
        let line = found.expect("the condition held");
        assert_eq!(
            (&line["detail"], &line["client"]),
            (&detail.into(), &"127.0.0.1".into()),
            "{line}"
        );
    }
    assert!(!proxy.log_text().contains("secret"));
}

#[tokio::test]
async fn a_link_that_is_down_says_where_since_when_why_and_what_to_do() {
    let sim = Sim::start().await;
    sim.handle.inject(Fault::RefuseUpgrade { status: Some(404), header: None });
    let url = sim.url("stocks");
    let mut firehose = stack::firehose(&format!("{url}?apiKey=secret")).start().await;
    let line = firehose.logged("link is down").await;
    assert_eq!((&line["url"], &line["upstream"]), (&Value::from(&*url), &"Polygon".into()));
    for (field, text) in [("error", "HTTP 404"), ("advice", "URL"), ("next_try", "s")] {
        assert!(line[field].as_str().is_some_and(|value| value.contains(text)), "{line}");
    }
    let health = firehose.health().await;
    assert_eq!((&health["status"], &health["upstream"]["url"]), (&"down".into(), &line["url"]));
    let upstream = |key: &str| health["upstream"][key].as_str().expect(key).to_owned();
    let problem = health["problems"][0].as_str().expect("a problem");
    for part in ["Polygon", &*url, &*upstream("since"), "HTTP 404", "its URL is right"] {
        assert!(problem.contains(part), "{part:?} in {problem}");
    }
    assert!(upstream("last_error_at") >= upstream("since"), "{health}");
    sim.handle.inject(Fault::RefuseUpgrade { status: None, header: None });
    is_up(&firehose).await;
    eventually(SOON, "no problem is left", async || {
        let health = firehose.health().await;
        let upstream = &health["upstream"];
        let gone = upstream["last_error"].is_null() && upstream["last_error_at"].is_null();
        gone && health["problems"] == Value::Array(Vec::new())
    })
    .await;
    let reason = firehose.health_text("/upstream/last_outage/reason").await;
    assert!(reason.contains("HTTP 404"), "{reason}");
    assert!(!firehose.log_text().contains("secret"));
}

#[tokio::test]
async fn whatever_makes_a_tier_degraded_is_a_problem_in_words() {
    let sim = SimConfig { refuse: vec!["NOI".to_owned()], ..SimConfig::default() };
    let stack = Stack::with(StackConfig { sim, ..StackConfig::default() }).await;
    eventually(SOON, "it is degraded", async || {
        stack.firehose.health_text("/status").await == "degraded"
    })
    .await;
    assert_eq!(stack.firehose.health_text("/problems/0").await, "Polygon refuses NOI.*");
}

#[tokio::test]
async fn lines_of_a_market_name_it_if_there_are_several() {
    let sim = SimConfig { market: "stocks,crypto".to_owned(), ..SimConfig::default() };
    let filtered_env = vec![("LOG_LEVEL", "debug".to_owned())];
    let stack = Stack::with(StackConfig { sim, filtered_env, ..StackConfig::default() }).await;
    drop(stack.subscriber_at("/crypto", "XT.BTC-USD").await);
    let of = |program: &Program, name, message: &str| -> Vec<String> {
        let lines = lines(program, name).into_iter();
        let of_message = lines.filter(|line| line["message"] == message);
        of_message
            .map(|line| line["span"]["market"].as_str().unwrap_or("none").to_owned())
            .collect()
    };
    let filtered = &stack.filtered[0];
    eventually(SOON, "a line about the session", async || {
        of(filtered, "filtered-proxy", "session started") == ["crypto"]
    })
    .await;
    for (program, name) in [(&stack.firehose, "firehose-proxy"), (filtered, "filtered-proxy")] {
        let mut markets = of(program, name, "Authenticated successfully");
        markets.sort();
        assert_eq!(markets, ["crypto", "stocks"]);
    }
}

/// A filtered proxy at this level, with these settings.
async fn at_level(level: &str, settings: &[(&'static str, &str)]) -> Stack {
    let settings = settings.iter().copied().chain([("LOG_LEVEL", level)]);
    let filtered_env = settings.map(|(name, value)| (name, value.to_owned())).collect();
    Stack::with(StackConfig { filtered_env, ..StackConfig::default() }).await
}

/// A client with this `User-Agent`, and its own address.
async fn named(stack: &Stack, user_agent: &str) -> (TestClient, SocketAddr) {
    let stream = TcpStream::connect(stack.addr()).await.expect("connect");
    let own = stream.local_addr().expect("an address");
    (TestClient::over(stream, &[("user-agent", user_agent)]).await, own)
}

/// The lines of the filtered proxy with this message.
fn of_message(stack: &Stack, message: &str) -> Vec<Value> {
    let all = lines(&stack.filtered[0], "filtered-proxy").into_iter();
    all.filter(|line| line["message"] == message).collect()
}

/// Waits for the first line of the filtered proxy with this message.
async fn line(stack: &Stack, message: &str) -> Value {
    let mut found = None;
    eventually(SOON, message, async || {
        found = of_message(stack, message).into_iter().next();
        found.is_some()
    })
    .await;
    found.expect("the condition held")
}

#[tokio::test]
async fn a_session_is_logged_with_who_and_how_much() {
    let stack = at_level("info", &[]).await;
    let (mut client, own) = named(&stack, "desk/1.0 (\"test\")").await;
    let mut texts = vec![client.next_text().await];
    client.command("auth", CLIENT_KEY).await;
    texts.push(client.next_text().await);
    client.command("subscribe", "T.AAPL").await;
    texts.push(client.next_text().await);
    let started = line(&stack, "session started").await;
    assert_eq!(started["level"], "INFO", "{started}");
    for n in 0..3 {
        stack.publish(&[trade("AAPL", n), quote("AAPL", n)]);
        texts.push(client.next_text().await);
    }
    drop(client);
    let ended = line(&stack, "session ended").await;
    assert_eq!(ended["level"], "INFO", "{ended}");
    for line in [&started, &ended] {
        assert_eq!(line["session"], 1, "{line}");
        assert_eq!(line["client"], own.to_string(), "{line}");
        assert_eq!(line["user_agent"], "desk/1.0 (\"test\")", "{line}");
        assert_eq!(line["key"], "key-1", "{line}");
    }
    let document = document("docs/OPERATIONS.md");
    for (line, others) in [(&started, ""), (&ended, "`session` `client` `user_agent` `key`")] {
        let message = format!("| `{}` |", line["message"].as_str().expect("a message"));
        let row = document.lines().find(|row| row.starts_with(&message)).expect("a row");
        let fields = format!("{} {others}", row.split(" | ").nth(2).expect("a cell"));
        for field in fields.split('`').skip(1).step_by(2) {
            assert!(!line[field].is_null(), "{field} of {line}");
        }
    }
    // The header of a short message has 2 bytes, that of a longer one 4.
    let sizes = texts.iter().map(|text| text.len() + if text.len() < 126 { 2 } else { 4 });
    assert_eq!(ended["bytes"], sizes.sum::<usize>(), "{ended}");
    assert_eq!((&ended["events"], &ended["lag_ms"]), (&3.into(), &0.into()), "{ended}");
    assert_eq!(ended["reason"], "client_gone", "{ended}");
    assert!(ended["seconds"].as_u64().is_some_and(|seconds| seconds < 60), "{ended}");
    // The next one has the next number.
    stack.client().await.close().await;
    eventually(SOON, "a second line", async || of_message(&stack, "session ended").len() == 2)
        .await;
    assert_eq!(of_message(&stack, "session ended")[1]["session"], 2);
    assert!(of_message(&stack, "command").is_empty());
}

#[tokio::test]
async fn a_slow_client_is_logged_with_its_lag() {
    let stack = at_level("info", &[("CLIENT_MAX_LAG", "700ms")]).await;
    let mut client = TestClient::connect_narrow(stack.addr(), 4_096).await;
    client.log_in(CLIENT_KEY).await;
    client.subscribe("T.*").await;
    let wide = |n| trade(&format!("AAPL\",\"x\":\"{}", "x".repeat(2_000)), n);
    let flood = async {
        let mut n = 0;
        loop {
            n += 1;
            stack.publish(&[wide(n)]);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let ended = tokio::select! {
        ended = line(&stack, "session ended") => ended,
        () = flood => unreachable!("it never ends"),
    };
    assert_eq!((&ended["level"], &ended["reason"]), (&"WARN".into(), &"slow_consumer".into()));
    let lag = ended["lag_ms"].as_u64().expect("a number");
    assert!((600..20_000).contains(&lag), "{ended}");
    drop(client);
}

#[tokio::test]
async fn sessions_without_a_login_and_commands_are_logged_at_debug() {
    let stack = at_level("debug", &[]).await;
    drop(TestClient::connect(stack.addr()).await);
    let waits = line(&stack, "session waits for its key").await;
    let ended = line(&stack, "session ended").await;
    for line in [&waits, &ended] {
        assert_eq!((&line["level"], &line["session"]), (&"DEBUG".into(), &1.into()), "{line}");
    }
    assert!(ended["key"].is_null() && of_message(&stack, "session started").is_empty());
    let mut client = stack.subscriber("T.AAPL,Q.AAPL").await;
    client.unsubscribe("Q.AAPL").await;
    // No line shows what is no channel: it may be a key in the wrong field.
    client.command("subscribe", "s3cret").await;
    client.next_text().await;
    eventually(SOON, "four commands", async || of_message(&stack, "command").len() == 4).await;
    let commands: Vec<_> = of_message(&stack, "command")
        .iter()
        .map(|line| {
            assert_eq!((&line["level"], &line["session"]), (&"DEBUG".into(), &2.into()), "{line}");
            [&line["command"], &line["subject"]].map(|text| text.as_str().unwrap_or("").to_owned())
        })
        .collect();
    let expected = [
        ["auth", "key-1"],
        ["subscribe", "T.AAPL, Q.AAPL"],
        ["unsubscribe", "Q.AAPL"],
        ["subscribe", "nothing"],
    ];
    assert_eq!(commands, expected);
    assert!(!stack.filtered[0].log_text().contains("s3cret"));
}

#[tokio::test]
async fn the_lines_of_a_named_session_have_its_name() {
    let stack = at_level("debug", &[]).await;
    let mut client = TestClient::connect_to(stack.addr(), "/session/alpha").await;
    client.log_in(CLIENT_KEY).await;
    drop(client);
    for message in ["session waits for its key", "session started", "command", "session ended"] {
        let line = line(&stack, message).await;
        assert_eq!((&line["session"], &line["session_name"]), (&1.into(), &"alpha".into()));
    }
    // Another session has no such field.
    stack.client().await.close().await;
    eventually(SOON, "a second line", async || of_message(&stack, "session ended").len() == 2)
        .await;
    let second = &of_message(&stack, "session ended")[1];
    assert_eq!(second.get("session_name"), None, "{second}");
}

#[tokio::test]
async fn what_a_client_calls_itself_is_cut_and_holds_no_control_characters() {
    let stack = at_level("info", &[]).await;
    let (mut client, _) = named(&stack, &format!("a\tb{}", "x".repeat(1_000))).await;
    client.log_in(CLIENT_KEY).await;
    let started = line(&stack, "session started").await;
    assert_eq!(started["user_agent"], format!("ab{}", "x".repeat(98)), "{started}");
}

#[tokio::test]
async fn a_client_behind_a_proxy_is_logged_by_its_own_address() {
    let trusted = ("TRUSTED_PROXIES", "127.0.0.2");
    let from_proxy = async |stack: &Stack| {
        let socket = TcpSocket::new_v4().expect("make a socket");
        socket.bind(([127, 0, 0, 2], 0).into()).expect("bind an address of this machine");
        socket.connect(stack.addr()).await.expect("connect")
    };
    let stack = at_level("info", &[trusted]).await;
    let stream = from_proxy(&stack).await;
    let mut client = TestClient::over(stream, &[("x-forwarded-for", "203.0.113.9")]).await;
    client.log_in(CLIENT_KEY).await;
    // Its port is not known.
    assert_eq!(line(&stack, "session started").await["client"], "203.0.113.9");
    let stack = at_level("info", &[trusted, ("PROXY_PROTOCOL", "on")]).await;
    let mut stream = from_proxy(&stack).await;
    let header = b"PROXY TCP6 2001:db8::7 ::1 4711 8765\r\n";
    stream.write_all(header).await.expect("write");
    let mut client = TestClient::over(stream, &[]).await;
    client.log_in(CLIENT_KEY).await;
    assert_eq!(line(&stack, "session started").await["client"], "[2001:db8::7]:4711");
}

#[tokio::test]
async fn a_storm_of_clients_leaves_a_hundred_lines_and_a_count() {
    let stack = at_level("info", &[]).await;
    for _ in 0..130 {
        stack.client().await.close().await;
    }
    let count = line(&stack, "sessions started and ended without a line: too many at once").await;
    assert_eq!((&count["starts"], &count["ends"]), (&30.into(), &30.into()), "{count}");
    for message in ["session started", "session ended"] {
        assert_eq!(of_message(&stack, message).len(), 100, "{message}");
    }
    // Once.
    holds_for(Duration::from_secs(2), "no other count", async || {
        stack.filtered[0].log_count("sessions started and ended without a line: too many at once")
            == 1
    })
    .await;
}
