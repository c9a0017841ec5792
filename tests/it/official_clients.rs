//! The vendor's official clients, unmodified except for the host, against both tiers. Beside them
//! run plain WebSocket libraries and the project's own two client programs.

mod scripts;

use std::{net::Ipv4Addr, process::Stdio};

use futures_util::future::join_all;
use polygon_sim::SimConfig;
use tests::{
    official_clients::{Client, Prompt, Running},
    program::Signal,
    stack::{CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Stack, StackConfig, filtered, firehose},
    wait::{SOON, eventually, within},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::events::{quote, trade};

/// Ends a published sequence. Every client of a test is subscribed to it.
const END: &str = r#"{"ev":"AM","sym":"END","v":1}"#;

/// A client of the stack's filtered proxy, subscribed to these items alone. `None` where it cannot
/// run.
async fn subscriber(client: Client, stack: &Stack, params: &str) -> Option<Running> {
    let mut running = client.start(stack.addr(), CLIENT_KEY, params).await?;
    running.subscribed(params).await;
    Some(running)
}

#[tokio::test]
async fn official_clients_get_exactly_their_events_byte_for_byte() {
    let stack = Stack::start().await;
    let events = [
        trade("AAPL", 0),
        quote("AAPL", 1),
        trade("BRK.B", 2),
        quote("BRK.B", 3),
        // A symbol in `T` after an array, and times beyond the precision of a double.
        r#"{"ev":"LULD","h":14.28,"l":12.92,"i":[16],"z":3,"T":"BRK.B","t":1790604301733018455,"q":4}"#.to_owned(),
        r#"{"ev":"NOI","T":"GE","t":1790625000114203904,"at":1600,"a":"C","i":5,"x":10,"o":41200,"b":287.35}"#.to_owned(),
        r#"{"ev":"FMV","fmv":231.416,"sym":"AAPL","t":1790604301418204112}"#.to_owned(),
        r#"{"ev":"A","sym":"AAPL","v":7,"o":185.10,"c":1.8512e2,"dv":"7.0","s":1790604301000}"#.to_owned(),
        // A parser and a writer together would change every part of this.
        r#"{ "ev" : "T", "sym" : "AAPL" , "p" : 231.40, "s" : 1E2, "u" : "\u00e9é\/[{,\"", "x":-0 }"#.to_owned(),
        r#"{"ev":"T","sym":"BRK.A","i":"\"sym\":\"AAPL\"","p":1}"#.to_owned(),
        trade("BRK", 10),
    ];
    // More than one message may hold for any of the clients: Python accepts 1 MiB, Go 1,000,000
    // bytes.
    let many: Vec<String> = (0..12_000).map(|n| trade("MANY", n)).collect();
    assert!(many.iter().map(String::len).sum::<usize>() > 1 << 20);

    let cases: [(Client, &str, &[usize], bool); 6] = [
        (Client::PythonMassive, "T.AAPL,Q.BRK.B,LULD.BRK.B,T.MANY", &[0, 3, 4, 8], true),
        (Client::PythonPolygon, "*", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], true),
        (Client::PythonPlain, "T.BRK.B,NOI.GE,FMV.AAPL,A.*", &[2, 5, 6, 7], false),
        (Client::JsMassive, "*", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], true),
        (Client::JsPolygon, "T.*,Q.AAPL", &[0, 1, 2, 8, 9, 10], true),
        (Client::JsPlain, "LULD.*,NOI.*,FMV.*,T.BRK", &[4, 5, 6, 10], false),
    ];
    let clients = join_all(cases.map(async |(client, params, expected, wants_many)| {
        let running = subscriber(client, &stack, &format!("{params},AM.END")).await?;
        Some((running, expected, wants_many))
    }));
    let clients = clients.await;
    for event in &events {
        stack.publish(&[event]);
    }
    stack.publish(&events);
    stack.publish(&many);
    stack.publish(&[END]);
    for (mut client, expected, wants_many) in clients.into_iter().flatten() {
        let once = expected.iter().map(|&n| &events[n]);
        client.expect_objects(&once.clone().chain(once).collect::<Vec<_>>()).await;
        if wants_many {
            client.expect_objects(&many).await;
        }
        client.expect_objects(&[END]).await;
        client.finish().await;
    }
}

#[tokio::test]
async fn official_clients_read_several_markets_of_one_proxy_at_once() {
    let markets = ["stocks", "options", "crypto"];
    let sim = SimConfig { market: markets.join(","), ..SimConfig::default() };
    let stack = Stack::with(StackConfig { sim, ..StackConfig::default() }).await;
    let contract = "O:SPY261218C00650000";
    let coin = |n: usize| format!(r#"{{"ev":"XT","pair":"BTC-USD","p":112405.77,"i":"{n}"}}"#);
    let events = [
        [trade("AAPL", 1), trade("AAPL", 2)],
        [trade(contract, 3), quote(contract, 4)],
        [coin(5), coin(6)],
    ];
    // The clients sort out no events: they would show those of another market, too.
    let params = ["T.AAPL".to_owned(), format!("T.{contract},Q.{contract}"), "XT.BTC-USD".into()];
    let clients = [Client::PythonMassive, Client::PythonPolygon, Client::JsMassive];
    let clients = clients.iter().flat_map(|client| (0..markets.len()).map(|n| (*client, n)));
    let clients = clients.map(async |(client, n)| {
        let (addr, params) = (stack.addr(), &params[n]);
        let mut running = client.start_in(markets[n], addr, CLIENT_KEY, params).await?;
        running.subscribed(params).await;
        Some((running, n))
    });
    let clients = join_all(clients).await;
    for (market, events) in markets.iter().zip(&events) {
        stack.sim.market(market).publish(events);
    }
    for (mut client, n) in clients.into_iter().flatten() {
        client.expect_objects(&events[n]).await;
        client.finish().await;
    }
}

#[tokio::test]
async fn official_clients_read_the_firehose_too() {
    let stack = Stack::start().await;
    let addr = stack.firehose.addr();
    let clients = [Client::PythonMassive, Client::JsMassive].map(async |client| {
        let mut running = client.start(addr, FIREHOSE_KEY, "T.AAPL").await?;
        running.subscribed("T.AAPL").await;
        Some(running)
    });
    let clients = join_all(clients).await;
    // The firehose does not filter: an event that one client wants goes to all.
    let events = [trade("AAPL", 1), quote("MSFT", 2)];
    stack.publish(&events);
    for mut client in clients.into_iter().flatten() {
        client.expect_objects(&events).await;
        client.finish().await;
    }
}

#[tokio::test]
async fn official_clients_subscribe_by_prefix() {
    let stack = Stack::start().await;
    let clients = Client::ALL
        .map(async |client| subscriber(client, &stack, "T.AA*,T.AAPL,Q.BRK.*,AM.END").await);
    let clients = join_all(clients).await;
    let events = [
        trade("AAPL", 1),
        trade("AA", 2),
        trade("ABCD", 3),
        quote("AAPL", 4),
        quote("BRK.B", 5),
        quote("BRKX", 6),
        END.to_owned(),
    ];
    stack.publish(&events);
    for mut client in clients.into_iter().flatten() {
        client.expect_objects(&[0, 1, 4, 6].map(|n| &events[n])).await;
        client.finish().await;
    }
}

#[tokio::test]
async fn no_official_client_stumbles_over_a_hint() {
    let stack = Stack::start().await;
    let clients = Client::ALL.map(async |client| {
        let mut running = client.start(stack.addr(), CLIENT_KEY, "T.AAPL,T.aapl").await?;
        running.subscribed("T.AAPL,T.aapl").await;
        Some(running)
    });
    let clients = join_all(clients).await;
    stack.publish(&[trade("AAPL", 1)]);
    for mut client in clients.into_iter().flatten() {
        assert_eq!(client.next_unless_notice().await, trade("AAPL", 1));
        client.finish().await;
    }
}

#[tokio::test]
async fn each_official_client_reports_a_wrong_key_in_its_own_way() {
    let stack = Stack::start().await;
    let checks = Client::ALL.map(async |client| {
        let Some(mut running) = client.start(stack.addr(), "wrong-key", "T.AAPL").await else {
            return;
        };
        let by = match client {
            Client::PythonMassive | Client::PythonPolygon => "AuthError",
            Client::PythonPlain | Client::JsMassive | Client::JsPolygon | Client::JsPlain => {
                "auth_failed"
            }
        };
        let said = (by.to_owned(), "authentication failed".to_owned());
        assert_eq!(running.refused().await, said, "{client:?}");
    });
    join_all(checks).await;
}

#[tokio::test]
async fn the_python_client_makes_objects_of_events() {
    let stack = Stack::start().await;
    for client in [Client::PythonMassive, Client::PythonPolygon] {
        let params = "T.AAPL,Q.AAPL,A.AAPL,LULD.ABCX,NOI.GE,FMV.AAPL";
        let Some(mut running) = client.start_parsed(stack.addr(), CLIENT_KEY, params).await else {
            continue;
        };
        for _ in params.split(',') {
            // The client requests them in its own order, and shows the answers only in its log.
            running.logged("status: subscribed to: ").await;
        }
        stack.publish(&[
            trade("AAPL", 1),
            quote("AAPL", 2),
            trade("MSFT", 3),
            r#"{"ev":"A","sym":"AAPL","v":18422,"o":185.1,"c":185.12,"e":1790604302000}"#
                .to_owned(),
            r#"{"ev":"LULD","h":14.28,"l":12.92,"i":[16],"T":"ABCX","t":1790604301733018455}"#
                .to_owned(),
            r#"{"ev":"NOI","T":"GE","at":1600,"a":"C","b":287.35}"#.to_owned(),
            r#"{"ev":"FMV","fmv":231.416,"sym":"AAPL","t":1790604301418204112}"#.to_owned(),
        ]);
        let expected = [
            ("EquityTrade", "price", "231.4175"),
            ("EquityQuote", "bid_price", "498.21"),
            ("EquityAgg", "volume", "18422"),
            ("LimitUpLimitDown", "timestamp", "1790604301733018455"),
            ("Imbalance", "book_clearing_price", "287.35"),
            ("FairMarketValue", "fmv", "231.416"),
        ];
        for (class, field, value) in expected {
            let (found, fields) = running.next_event().await;
            assert_eq!(
                (found.as_str(), fields[field].to_string().as_str()),
                (class, value),
                "{fields}"
            );
        }
        running.finish().await;
    }
}

#[tokio::test]
async fn the_python_client_changes_its_subscriptions_as_it_runs() {
    let stack = Stack::start().await;
    for client in [Client::PythonMassive, Client::PythonPolygon] {
        let Some(mut running) = subscriber(client, &stack, "T.AAPL,AM.END").await else { continue };
        let events = [trade("AAPL", 1), trade("MSFT", 2), quote("AAPL", 3), END.to_owned()];
        let check = async |running: &mut Running, expected: &[usize]| {
            stack.publish(&events);
            let expected = expected.iter().map(|&n| &events[n]).chain([&events[3]]);
            running.expect_objects(&expected.collect::<Vec<_>>()).await;
        };
        check(&mut running, &[0]).await;
        // The client subscribes to the wildcard, then unsubscribes the symbols that it covers. The
        // wildcard must still deliver them.
        running.command("subscribe", "T.*").await;
        running.subscribed("T.*").await;
        running.unsubscribed("T.AAPL").await;
        check(&mut running, &[0, 1]).await;
        running.command("subscribe", "Q.AAPL").await;
        running.subscribed("Q.AAPL").await;
        check(&mut running, &[0, 1, 2]).await;
        running.command("unsubscribe", "T.*").await;
        running.unsubscribed("T.*").await;
        check(&mut running, &[2]).await;
        running.command("subscribe", "T.MS*").await;
        running.subscribed("T.MS*").await;
        check(&mut running, &[1, 2]).await;
        running.command("unsubscribe", "T.MS*").await;
        running.unsubscribed("T.MS*").await;
        check(&mut running, &[2]).await;
        running.finish().await;
    }
}

#[tokio::test]
async fn the_python_client_comes_again_until_there_is_room() {
    let stack = Stack::with(StackConfig {
        filtered_env: vec![("MAX_CONNECTIONS", "1".to_owned())],
        ..StackConfig::default()
    })
    .await;
    let other = stack.client().await;
    let started = Client::PythonMassive.start(stack.addr(), CLIENT_KEY, "T.AAPL").await;
    let Some(mut client) = started else { return };
    eventually(SOON, "it was refused more than once", async || {
        let name = "filtered_connections_refused_total";
        stack.filtered[0].metric_with(name, "reason=\"full\"").await > Some(1.0)
    })
    .await;
    other.close().await;
    client.subscribed("T.AAPL").await;
    stack.publish(&[trade("AAPL", 1)]);
    client.expect_objects(&[trade("AAPL", 1)]).await;
    client.finish().await;
}

#[tokio::test]
async fn the_python_client_tries_a_refused_path_again_and_again() {
    // The clients ask for stocks.
    let nowhere = ReservedPort::new();
    let proxy = filtered(nowhere.addr()).env("MARKET", "options").start().await;
    let refused = "filtered_connections_refused_total";
    for client in [Client::PythonMassive, Client::PythonPolygon] {
        let before = proxy.metric_with(refused, "reason=\"path\"").await;
        let started = client.start(proxy.addr(), CLIENT_KEY, "T.AAPL").await;
        let Some(_running) = started else { continue };
        eventually(2 * SOON, "it was refused five times", async || {
            let now = proxy.metric_with(refused, "reason=\"path\"").await;
            now > Some(before.unwrap_or(0.0) + 4.0)
        })
        .await;
    }
}

#[tokio::test]
async fn the_python_client_logs_refused_items_and_notices() {
    let mut stack = Stack::with(StackConfig {
        filtered_env: vec![("MAX_SUBSCRIPTIONS", "1".to_owned())],
        ..StackConfig::default()
    })
    .await;
    let started =
        Client::PythonMassive.start_parsed(stack.addr(), CLIENT_KEY, "T.AAPL,Q.AAPL").await;
    let Some(mut client) = started else { return };
    client.logged("server error: ").await;
    stack.firehose.signal(Signal::SIGKILL);
    stack.firehose.wait_exit(SOON).await;
    // It reports what it was sent only when something comes.
    client.logged("server upstream_down: ").await;
}

/// A proxy for other hosts must not get the requests for this one.
#[tokio::test]
async fn the_python_client_asks_a_proxy_of_its_environment_unless_told_not_to() {
    let stack = Stack::start().await;
    let proxy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind a free port");
    let proxy_url = format!("http://{}", proxy.local_addr().expect("its address"));
    let program = format!(
        "import os\nfrom massive import WebSocketClient\n\
         def show(events):\n    print(events, flush=True)\n    os._exit(0)\n\
         WebSocketClient(api_key='{CLIENT_KEY}', feed='{}', secure=False, \
         subscriptions=['T.AAPL']).run(show)\n",
        stack.addr()
    );
    let start = async |variable: &str, no_proxy: &str| {
        let mut command = Prompt::Python.command(false).await?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.env(variable, &proxy_url).env("NO_PROXY", no_proxy).env("no_proxy", no_proxy);
        let mut child = command.spawn().expect("start Python");
        let mut input = child.stdin.take().expect("stdin is piped");
        input.write_all(program.as_bytes()).await.expect("write a program");
        Some(child)
    };
    for variable in ["HTTP_PROXY", "HTTPS_PROXY"] {
        let Some(_child) = start(variable, "example.com").await else { return };
        let (mut asked, _) = within(SOON, variable, proxy.accept()).await.expect("accept");
        let mut line = vec![0; "CONNECT ".len()];
        within(SOON, variable, asked.read_exact(&mut line)).await.expect("read a request");
        assert_eq!(line, b"CONNECT ");
    }
    let Some(mut child) = start("HTTP_PROXY", "127.0.0.1").await else { return };
    let ended = eventually(2 * SOON, "an event past the proxy", async || {
        stack.publish(&[trade("AAPL", 1)]);
        child.try_wait().expect("wait for Python").is_some_and(|status| status.success())
    });
    ended.await;
}

#[tokio::test]
async fn the_python_client_survives_restarts_of_both_tiers() {
    let (upper, lower) = (ReservedPort::new(), ReservedPort::new());
    let mut stack = Stack::with(StackConfig {
        firehose_env: vec![("FIREHOSE_PORT", upper.addr().port().to_string())],
        filtered_env: vec![("FILTERED_PROXY_PORT", lower.addr().port().to_string())],
        ..StackConfig::default()
    })
    .await;
    let mut clients = Vec::new();
    for client in [Client::PythonMassive, Client::PythonPolygon] {
        clients.extend(subscriber(client, &stack, "T.AAPL,AM.END").await);
    }
    delivers(&stack, &mut clients, 1).await;

    // The firehose restarts. The clients' sessions stay, and they request nothing again.
    let opened = "filtered_sessions_opened_total";
    let sessions = stack.filtered[0].metric(opened).await.expect("a counter");
    stack.firehose.stop().await;
    let launch = firehose(&stack.sim.url("stocks")).env("FIREHOSE_PORT", upper.addr().port());
    stack.firehose = launch.start().await;
    stack.linked().await;
    delivers(&stack, &mut clients, 2).await;
    assert_eq!(stack.filtered[0].metric(opened).await, Some(sessions));

    // The filtered proxy ends, once by an operator and once as in a crash. The clients reconnect by
    // themselves.
    for (n, signal) in [(3, Signal::SIGTERM), (4, Signal::SIGKILL)] {
        let mut proxy = stack.filtered.remove(0);
        proxy.signal(signal);
        proxy.wait_exit(SOON).await;
        let launch = filtered(upper.addr()).env("FILTERED_PROXY_PORT", lower.addr().port());
        stack.filtered.push(launch.start().await);
        for client in &mut clients {
            client.subscribed("T.AAPL,AM.END").await;
        }
        stack.linked().await;
        delivers(&stack, &mut clients, n).await;
    }
    for client in clients {
        client.finish().await;
    }
}

/// Publishes a trade with this number and checks that every client gets it next, apart from
/// notices.
async fn delivers(stack: &Stack, clients: &mut [Running], n: usize) {
    let events = [trade("AAPL", n), END.to_owned()];
    stack.publish(&events);
    for client in clients {
        for expected in &events {
            assert_eq!(&client.next_unless_notice().await, expected);
        }
    }
}
