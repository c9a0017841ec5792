//! Several markets on one port.

use std::net::SocketAddr;

use polygon_sim::{Fault, Market, SimConfig, SimHandle, control, plan::Plan};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Error;
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Client, EVICTED, Ended, Sim, events, status, within},
    control::http,
};

const MARKETS: [Market; 3] = [Market::Stocks, Market::Options, Market::Crypto];

/// A simulator of three markets, and the handle of each.
async fn start(config: SimConfig) -> (Sim, [SimHandle; 3]) {
    let market = "stocks, options,crypto".to_owned();
    let sim = Sim::start(SimConfig { market, ..config }).await;
    let handles: [_; 3] = sim.handles.clone().try_into().unwrap();
    assert_eq!(handles.each_ref().map(SimHandle::market), MARKETS);
    (sim, handles)
}

/// A client of this path that is authenticated and subscribed to these channels.
async fn subscriber(addr: SocketAddr, path: &str, channels: &str) -> Client {
    let mut client = Client::open(&format!("ws://{addr}{path}")).await.unwrap();
    client.log_in().await;
    client.subscribe(channels).await;
    client
}

#[tokio::test]
async fn the_path_chooses_the_market() {
    let (sim, [stocks, options, crypto]) = start(SimConfig::default()).await;
    let mut clients = [
        subscriber(sim.addr, "//stocks/", "T.*").await,
        subscriber(sim.addr, "/options?x=1", "T.*").await,
        subscriber(sim.addr, "/crypto", "XT.*").await,
    ];
    for handle in [&stocks, &options, &crypto] {
        assert_eq!((handle.stats().auths, handle.stats().connections_now), (1, 1));
    }
    let sent = [
        r#"{"ev":"T","sym":"AAPL","p":1}"#,
        r#"{"ev":"T","sym":"O:SPY261218C00650000","p":1}"#,
        r#"{"ev":"XT","pair":"BTC-USD","p":1}"#,
    ];
    for (handle, event) in [&stocks, &options, &crypto].into_iter().zip(sent) {
        handle.publish(&events(&[event]));
    }
    for (client, event) in clients.iter_mut().zip(sent) {
        assert_eq!(client.text().await, format!("[{event}]"));
        client.is_quiet().await;
    }
    // The kinds of another market are unknown.
    clients[0].send(r#"{"action":"subscribe","params":"XT.*"}"#).await;
    clients[0].is_quiet().await;
    assert_eq!(crypto.commands().len(), 3, "auth, subscribe and the unknown action");
}

#[tokio::test]
async fn other_paths_are_refused() {
    let (sim, [stocks, ..]) = start(SimConfig::default()).await;
    for path in ["/", "/forex", "/Stocks", "/stocks/x"] {
        match Client::open(&format!("ws://{}{path}", sim.addr)).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), 404, "{path}"),
            other => panic!("{path}: {other:?}"),
        }
    }
    assert_eq!(stocks.stats().upgrades_refused, 4);
}

#[tokio::test]
async fn a_request_line_may_come_in_pieces_or_not_at_all() {
    let (sim, [_, _, crypto]) = start(SimConfig::default()).await;
    drop(within("connecting", TcpStream::connect(sim.addr)).await.unwrap());
    let mut tcp = within("connecting", TcpStream::connect(sim.addr)).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let head = "GET /crypto HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for piece in head.as_bytes().chunks(3) {
        tcp.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = [0; 12];
    within("an answer", tcp.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    assert_eq!(crypto.stats().tcp_accepted, 1);
}

#[tokio::test]
async fn each_market_has_an_account_slot_and_faults_of_its_own() {
    let (sim, [stocks, options, crypto]) = start(SimConfig::default()).await;
    let mut kept = subscriber(sim.addr, "/stocks", "T.*").await;
    let mut first = subscriber(sim.addr, "/crypto", "XT.*").await;
    let second = subscriber(sim.addr, "/crypto", "XT.*").await;
    assert_eq!(first.text().await, EVICTED);
    assert_eq!(first.end().await, Ended::Closed(1008));
    crypto.inject(Fault::RefuseAuth { on: true });
    options.inject(Fault::RefuseTcp { on: true });
    let mut refused = Client::open(&format!("ws://{}/crypto", sim.addr)).await.unwrap();
    refused.text().await;
    refused.send(r#"{"action":"auth","params":"sim-key"}"#).await;
    assert_eq!(refused.text().await, status("auth_failed", "authentication failed"));
    assert!(Client::open(&format!("ws://{}/options", sim.addr)).await.is_err());
    assert_eq!(options.stats().tcp_refused, 1);
    drop(second);
    kept.is_quiet().await;
    let counts = [&stocks, &options, &crypto].map(SimHandle::stats);
    assert_eq!(counts.map(|stats| stats.evictions), [0, 0, 1]);
    assert_eq!(counts.map(|stats| stats.auth_failures), [0, 0, 1]);
}

#[tokio::test]
async fn each_market_generates_events_of_its_own() {
    let (sim, [stocks, options, crypto]) =
        start(SimConfig { rate: 2_000.0, ..SimConfig::default() }).await;
    let mut coins = subscriber(sim.addr, "/crypto", "XQ.*").await;
    let mut shares = subscriber(sim.addr, "/stocks", "Q.*").await;
    assert!(coins.text().await.starts_with(r#"[{"ev":"XQ","#));
    assert!(shares.text().await.starts_with(r#"[{"ev":"Q","#));
    assert!(stocks.stats().events_generated > 0 && crypto.stats().events_generated > 0);
    assert_eq!(options.stats().events_generated, 0, "nobody is subscribed");
}

#[tokio::test]
async fn the_control_endpoint_and_plans_name_a_market_or_mean_all() {
    let (sim, handles) = start(SimConfig::default()).await;
    let [stocks, options, crypto] = &handles;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut endpoint = JoinSet::new();
    let stop = CancellationToken::new();
    endpoint.spawn(control::serve(listener, sim.handles.clone(), stop.clone()));
    let mut clients = [
        subscriber(sim.addr, "/stocks", "T.*").await,
        subscriber(sim.addr, "/options", "T.*").await,
        subscriber(sim.addr, "/crypto", "XT.*").await,
    ];

    let heartbeat = r#"{"fault":"raw_text","text":"heartbeat"}"#;
    assert_eq!(http(addr, "POST", "/fault", heartbeat).await.0, 204);
    for client in &mut clients {
        assert_eq!(client.text().await, "heartbeat");
    }
    let evict = r#"{"fault":"evict"}"#;
    assert_eq!(http(addr, "POST", "/fault?market=crypto", evict).await.0, 204);
    assert_eq!(clients[2].text().await, EVICTED);
    assert_eq!(clients[2].end().await, Ended::Closed(1008));
    assert_eq!(http(addr, "POST", "/rate?market=options", "1000").await.0, 204);
    assert!(clients[1].text().await.starts_with(r#"[{"ev":"T","sym":"O:"#));
    clients[0].is_quiet().await;
    assert_eq!(http(addr, "POST", "/rate", "0").await.0, 204);

    let (code, stats) = http(addr, "GET", "/stats", "").await;
    let stats: Value = serde_json::from_str(&stats).unwrap();
    let evictions = ["stocks", "options", "crypto"].map(|name| stats[name]["evictions"].as_u64());
    assert_eq!((code, evictions), (200, [Some(0), Some(0), Some(1)]));
    let one = http(addr, "GET", "/stats?market=crypto", "").await.1;
    assert_eq!(serde_json::from_str::<Value>(&one).unwrap()["evictions"], 1);
    assert_eq!(http(addr, "POST", "/fault?market=forex", evict).await.0, 400);

    let plan = Plan::parse(
        r#"{"at":"1ms","fault":{"fault":"close_with","code":1012},"market":"options"}
           {"at":"2ms","fault":{"fault":"raw_text","text":"second"}}"#,
        &MARKETS,
    )
    .unwrap();
    within("the plan", plan.run(sim.handles.clone())).await;
    assert_eq!(clients[0].text().await, "second");
    assert_eq!(clients[1].end().await, Ended::Closed(1012));
    assert_eq!((stocks.stats().evictions, options.stats().evictions), (0, 0));
    assert_eq!(crypto.stats().evictions, 1);

    stop.cancel();
    within("the endpoint to stop", endpoint.join_next()).await.unwrap().unwrap();
}
