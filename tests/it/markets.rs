//! Several markets in one pair of programs: each is served as if it were alone.

use polygon_sim::{Fault, SimConfig};
use serde_json::{Value, json};
use tests::{
    http::{get, refused_upgrade},
    program::{Launch, Program, Signal},
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, Stack, StackConfig, is_complete},
    wait::{SOON, eventually},
    ws_client::{Received, TestClient},
};

use crate::{
    events::{quote, trade},
    tiers::{ports, programs},
};

const MARKETS: [&str; 3] = ["stocks", "options", "crypto"];
const CONTRACT: &str = "O:SPY261218C00650000";

async fn start() -> Stack {
    let sim = SimConfig { market: MARKETS.join(","), ..SimConfig::default() };
    Stack::with(StackConfig { sim, ..StackConfig::default() }).await
}

/// An event of this market that every subscriber of a test gets.
fn event(market: &str, n: usize) -> String {
    match market {
        "crypto" => format!(r#"{{"ev":"XT","pair":"BTC-USD","p":112405.77,"i":"{n}"}}"#),
        "options" => trade(CONTRACT, n),
        _ => trade("AAPL", n),
    }
}

/// The channel of these events.
fn channel(market: &str) -> String {
    match market {
        "crypto" => "XT.BTC-USD".to_owned(),
        "options" => format!("T.{CONTRACT}"),
        _ => "T.AAPL".to_owned(),
    }
}

/// Makes this market send an event.
fn publish(stack: &Stack, market: &str, event: &str) {
    stack.sim.market(market).publish(&[event.to_owned()]);
}

/// The part of `/health` about this market.
async fn health_of(program: &Program, market: &str) -> Value {
    program.health().await["markets"][market].clone()
}

#[tokio::test]
async fn each_client_gets_the_events_of_its_market_and_no_other() {
    let stack = start().await;
    let mut clients = Vec::new();
    for (path, market) in [
        ("/", "stocks"),
        ("/stocks", "stocks"),
        ("//options/", "options"),
        ("/options", "options"),
        ("/crypto", "crypto"),
    ] {
        for params in ["*", &channel(market)] {
            clients.push((market, stack.subscriber_at(path, params).await));
        }
    }
    // Types and symbols that several markets have, in frames of each market.
    let of = |market: &str| -> Vec<String> {
        (0..20)
            .flat_map(|n| match market {
                "crypto" => [event(market, n), event(market, 100 + n)],
                _ => [event(market, n), trade(if n % 2 == 0 { "AAPL" } else { CONTRACT }, 100 + n)],
            })
            .collect()
    };
    for n in 0..40 {
        for market in MARKETS {
            publish(&stack, market, &of(market)[n]);
        }
    }
    for (n, (market, client)) in clients.iter_mut().enumerate() {
        let (mut expected, all) = (of(market), n % 2 == 0);
        expected.retain(|sent| {
            let symbol = if *market == "options" { CONTRACT } else { "AAPL" };
            all || *market == "crypto" || sent.contains(symbol)
        });
        client.expect_objects(&expected).await;
        assert_eq!(client.ping(b"nothing more").await, 0, "{market}");
    }
    for market in MARKETS {
        let stats = stack.sim.market(market).stats();
        assert_eq!((stats.connections_now, stats.auths), (1, 1), "{market}");
    }
}

#[tokio::test]
async fn the_firehose_serves_each_market_too() {
    let stack = start().await;
    let addr = stack.firehose.addr();
    for (path, market) in
        [("/", "stocks"), ("/stocks", "stocks"), ("/options", "options"), ("/crypto", "crypto")]
    {
        let mut client = TestClient::connect_to(addr, path).await;
        client.log_in(FIREHOSE_KEY).await;
        client.subscribe(&channel(market)).await;
        for market in MARKETS {
            publish(&stack, market, &event(market, 1));
        }
        publish(&stack, market, &event(market, 2));
        client.expect_objects(&[event(market, 1), event(market, 2)]).await;
        client.close().await;
    }
}

#[tokio::test]
async fn contracts_on_demand_are_asked_for_on_the_connection_of_their_market() {
    let stack = start().await;
    let item = format!("Q.{CONTRACT}");
    let mut client = stack.client_at("/options").await;
    client.command("subscribe", &item).await;
    client.expect_status("success", &format!("subscribed to: {item}")).await;
    let mut shares = stack.subscriber_at("/stocks", &item).await;
    assert!(stack.sim.market("options").subscriptions().contains(&item));
    assert!(!stack.sim.market("stocks").subscriptions().contains(&item));
    publish(&stack, "stocks", &quote(CONTRACT, 1));
    publish(&stack, "options", &quote(CONTRACT, 2));
    client.expect_objects(&[quote(CONTRACT, 2)]).await;
    shares.expect_objects(&[quote(CONTRACT, 1)]).await;
    let contracts = health_of(&stack.firehose, "options").await["contracts"]["Q"]["held"].clone();
    assert_eq!(contracts, 1);
    assert_eq!(health_of(&stack.firehose, "stocks").await.get("contracts"), None);
}

#[tokio::test]
async fn another_market_is_refused_with_the_names_of_those_served() {
    let stack = start().await;
    for (addr, _) in ports(&stack) {
        for path in ["/forex", "/futures/cme", "/indices", "/Crypto", "/crypto/x", "/x"] {
            let response = refused_upgrade(addr, path).await;
            assert_eq!(response.status, 404, "{path}: {response:?}");
            let served = "this proxy serves stocks at / and /stocks, /options, /crypto";
            assert!(response.body.contains(served), "{path}: {:?}", response.body);
        }
    }
    // A type of another market is unknown.
    let mut client = stack.client_at("/options").await;
    client.command("subscribe", "XT.BTC-USD").await;
    assert!(client.next_object().await.contains("unknown channel type"));
}

#[tokio::test]
async fn one_markets_trouble_touches_no_other() {
    let stack = start().await;
    let mut others = Vec::new();
    for market in ["stocks", "options"] {
        others.push((market, stack.subscriber_at(&format!("/{market}"), "*").await));
    }
    let mut client = stack.subscriber_at("/crypto", "*").await;
    let crypto = stack.sim.market("crypto");
    let cases = [
        (vec![Fault::RefuseAuth { on: true }, Fault::Abort], "auth_failed: "),
        (vec![Fault::EvictOnAuth { on: true }, Fault::Abort], "max_connections: "),
        (vec![Fault::Evict], "max_connections: "),
        (
            vec![Fault::RefuseUpgrade { status: Some(500), header: None }, Fault::Abort],
            "unreachable: HTTP 500",
        ),
    ];
    let mut n = 0;
    for (faults, cause) in cases {
        for fault in faults {
            crypto.inject(fault);
        }
        let mut reason = String::new();
        while !reason.starts_with(cause) {
            let [status, tier, why] = client.next_notice().await;
            assert_eq!((&*status, &*tier), ("upstream_down", "firehose"), "{why}");
            reason = why;
        }
        for program in [&stack.firehose, &stack.filtered[0]] {
            eventually(SOON, "both tell it of this market alone", async || {
                let health = program.health().await;
                let problems = health["problems"].as_array().expect("a list");
                let found = |name: &str| health["markets"][name]["status"].clone();
                health["status"] == "degraded"
                    && !problems.is_empty()
                    && problems.iter().all(|text| text.as_str().unwrap().starts_with("crypto: "))
                    && problems.iter().any(|text| text.as_str().unwrap().contains(cause))
                    && found("crypto") != "ok"
                    && [found("stocks"), found("options")] == ["ok", "ok"]
            })
            .await;
            assert_eq!(get(program.addr(), "/health").await.status, 200);
        }
        // Neither a notice nor a gap: each gets the event alone.
        n += 1;
        for (market, client) in &mut others {
            publish(&stack, market, &event(market, n));
            client.expect_objects(&[event(market, n)]).await;
        }

        for fault in [
            Fault::RefuseAuth { on: false },
            Fault::EvictOnAuth { on: false },
            Fault::RefuseUpgrade { status: None, header: None },
        ] {
            crypto.inject(fault);
        }
        stack.firehose.signal(Signal::SIGHUP);
        while client.next_notice().await[0] != "upstream_up" {}
        stack.linked().await;
        n += 1;
        publish(&stack, "crypto", &event("crypto", n));
        client.expect_objects(&[event("crypto", n)]).await;
        for (market, client) in &mut others {
            publish(&stack, market, &event(market, n));
            client.expect_objects(&[event(market, n)]).await;
        }
    }
    for market in ["stocks", "options"] {
        assert_eq!(stack.sim.market(market).stats().auths, 1, "{market}");
    }
}

#[tokio::test]
async fn health_and_metrics_show_each_market() {
    let stack = start().await;
    let mut client = stack.subscriber_at("/crypto", &channel("crypto")).await;
    for market in MARKETS {
        publish(&stack, market, &event(market, 1));
    }
    client.expect_objects(&[event("crypto", 1)]).await;
    let programs = [(&stack.firehose, "firehose"), (&stack.filtered[0], "filtered")];
    for (program, tier) in programs {
        assert_eq!(program.log_count("unknown setting ignored"), 0, "{}", program.log_text());
        for market in MARKETS {
            let label = format!(r#"market="{market}""#);
            let received = format!("{tier}_events_in_total");
            eventually(SOON, "each market's event is counted", async || {
                program.metric_with(&received, &label).await == Some(1.0)
            })
            .await;
            let sessions = match (tier, market) {
                ("filtered", "stocks" | "options") => 0,
                _ => 1,
            };
            let shown = program.metric_with(&format!("{tier}_sessions"), &label).await;
            assert_eq!(shown, Some(f64::from(sessions)), "{tier} {market}");
            let health = health_of(program, market).await;
            assert_eq!((&health["market"], &health["status"]), (&json!(market), &json!("ok")));
            assert_eq!(health["sessions"], sessions, "{tier} {market}");
            let url = health["upstream"]["url"].as_str().expect("a URL").to_owned();
            assert!(url.ends_with(&format!("/{market}")), "{url}");
        }
        let health = program.health().await;
        assert_eq!((&health["status"], &health["problems"]), (&json!("ok"), &json!([])));
        assert_eq!(health["markets"].as_object().map(serde_json::Map::len), Some(3));
        assert!(health["version"].is_string() && health.get("market").is_none(), "{health}");
    }
}

#[tokio::test]
async fn without_any_upstream_the_program_is_down() {
    for (program, ..) in programs(&[("MARKETS", "stocks,crypto")]).await {
        let response = get(program.addr(), "/health").await;
        assert_eq!((response.status, &response.json()["status"]), (503, &json!("down")));
    }
}

#[tokio::test]
async fn one_market_is_shown_as_ever() {
    for setting in ["MARKET", "MARKETS"] {
        for (program, _, tier) in programs(&[(setting, "crypto")]).await {
            let health = program.health().await;
            assert_eq!(health["market"], "crypto", "{setting}: {health}");
            assert!(health.get("markets").is_none() && health["ledger"].is_object(), "{health}");
            let metrics = get(program.addr(), "/metrics").await.body;
            assert!(metrics.contains(&format!("\n{tier}_sessions 0\n")), "{metrics}");
            assert!(!metrics.contains("market="), "{metrics}");
            let refused = refused_upgrade(program.addr(), "/stocks").await;
            assert!(refused.body.contains("this proxy serves crypto at / and /crypto\n"));
        }
    }
}

#[tokio::test]
async fn a_filtered_proxy_of_one_market_reads_a_firehose_of_several() {
    let stack = start().await;
    let launch = stack::filtered(stack.firehose.addr()).env("MARKET", "crypto");
    let one = launch.start().await;
    is_complete(&one).await;
    let mut client = TestClient::connect_to(one.addr(), "/").await;
    client.log_in(CLIENT_KEY).await;
    client.subscribe("*").await;
    for market in MARKETS {
        publish(&stack, market, &event(market, 1));
    }
    client.expect_objects(&[event("crypto", 1)]).await;
}

#[tokio::test]
async fn contradictions_end_the_programs_with_one_line() {
    let launches: [fn() -> Launch; 2] =
        [|| stack::firehose("ws://127.0.0.1:9"), || stack::filtered(([127, 0, 0, 1], 9).into())];
    for launch in launches {
        for (settings, named) in [
            ([("MARKET", "stocks"), ("MARKETS", "stocks,crypto")], "MARKET: "),
            ([("MARKET", "stocks"), ("MARKETS", "crypto")], "MARKET: "),
            ([("MARKET", "crypto"), ("MARKETS", "crypto,bonds")], "MARKETS: "),
            ([("MARKET", "crypto"), ("MARKETS", "crypto,crypto")], "MARKETS: "),
            ([("MARKET", "crypto"), ("MARKETS", ",")], "MARKETS: "),
        ] {
            let settings = settings.map(|(name, value)| (name, value.to_owned()));
            let done = launch().envs(settings.clone()).run(SOON).await;
            assert_eq!((done.code, done.stderr.lines().count()), (Some(2), 1), "{done:?}");
            let expected = done.stderr.starts_with(named) && done.stderr.contains("expected");
            assert!(expected, "{settings:?}: {}", done.stderr);
        }
        // The same market in both is no contradiction.
        let same = launch().env("MARKET", "crypto").env("MARKETS", "crypto").start().await;
        assert_eq!(same.health().await["market"], "crypto");
    }
    // The path of the upstream is that of one market.
    let url = "ws://127.0.0.1:9/stocks";
    let launch = stack::firehose(url).env("MARKETS", "stocks,crypto");
    let done = launch.run(SOON).await;
    assert_eq!((done.code, done.stderr.lines().count()), (Some(2), 1), "{done:?}");
    assert!(done.stderr.starts_with("POLYGON_WS_URL: "), "{}", done.stderr);
}

#[tokio::test]
async fn every_session_of_every_market_is_closed_when_the_program_stops() {
    let mut stack = start().await;
    let mut clients = Vec::new();
    for market in MARKETS {
        clients.push(stack.subscriber_at(&format!("/{market}"), "*").await);
    }
    stack.filtered.remove(0).stop().await;
    for client in &mut clients {
        let end = client.end(SOON).await;
        assert_eq!(end, Received::Closed(Some(1012)));
    }
    stack.firehose.stop().await;
    for market in MARKETS {
        assert_eq!(stack.sim.market(market).stats().closes_received, 1, "{market}");
    }
}

/// When the firehose's links logged in, in milliseconds of the day.
fn logins(program: &Program) -> Vec<i64> {
    let log = program.log_text();
    let lines =
        log.lines().filter(|line| line.contains(r#""message":"Authenticated successfully""#));
    let time = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let time = line["timestamp"].as_str().expect("a time")[11..23].to_owned();
        let of = |part: std::ops::Range<usize>| time[part].parse::<i64>().expect("a number");
        ((of(0..2) * 60 + of(3..5)) * 60 + of(6..8)) * 1_000 + of(9..12)
    };
    lines.map(time).collect()
}

#[tokio::test]
async fn markets_connect_one_after_another_also_after_a_common_cause() {
    let stack = start().await;
    for market in MARKETS {
        stack.sim.market(market).inject(Fault::Abort);
    }
    eventually(SOON, "all are connected again", async || logins(&stack.firehose).len() == 6).await;
    let times = logins(&stack.firehose);
    for (n, pair) in times.windows(2).enumerate() {
        let apart = (pair[1] - pair[0]).rem_euclid(24 * 3_600_000);
        // Attempts begin 2 s apart. How long each takes differs.
        assert!(apart > 1_000, "logins {n} and {} are {apart} ms apart: {times:?}", n + 1);
    }
}
