//! The HTTP control endpoint and plans, against a running simulator.

use std::net::SocketAddr;

use polygon_sim::{Market, control, plan::Plan};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::client::{EVICTED, Ended, Sim, within};

/// Sends one request and returns status and body.
pub(crate) async fn http(addr: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {addr}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        let mut tcp = TcpStream::connect(addr).await.unwrap();
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = within("an HTTP answer", exchange).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn steers_over_http() {
    let sim = Sim::plain().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let mut endpoint = JoinSet::new();
    endpoint.spawn(control::serve(listener, sim.handles.clone(), stop.clone()));

    let mut client = sim.subscriber("T.*,Q.*").await;
    let (code, stats) = http(addr, "GET", "/stats", "").await;
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!((code, stats["connections_now"].as_u64()), (200, Some(1)));
    assert_eq!(stats["subscribe_requests"], 1);

    assert_eq!(http(addr, "POST", "/rate", "1000").await.0, 204);
    client.text().await;
    assert_eq!(http(addr, "POST", "/rate", "0").await.0, 204);
    let heartbeat = r#"{"fault":"raw_text","text":"heartbeat"}"#;
    assert_eq!(http(addr, "POST", "/fault", heartbeat).await.0, 204);
    while client.text().await != "heartbeat" {}
    let heartbeat = r#"{"fault":"raw_binary","bytes":[1]}"#;
    assert_eq!(http(addr, "POST", "/fault", heartbeat).await.0, 204);
    assert!(matches!(client.message().await, Ok(Message::Binary(bytes)) if bytes[..] == [1]));
    assert_eq!(http(addr, "POST", "/fault", r#"{"fault":"evict"}"#).await.0, 204);
    while client.text().await != EVICTED {}
    assert_eq!(client.end().await, Ended::Closed(1008));

    let (code, why) = http(addr, "POST", "/fault", r#"{"fault":"flood"}"#).await;
    assert!(code == 400 && why.contains("flood"), "{why}");
    assert_eq!(http(addr, "POST", "/rate", "-1").await.0, 400);
    assert_eq!(http(addr, "POST", "/fault", &"x".repeat(100_000)).await.0, 400);
    assert_eq!(http(addr, "GET", "/fault", "").await.0, 404);
    assert_eq!(http(addr, "GET", "/stats?market=stocks", "").await.0, 200);
    for query in ["market=crypto", "markt=stocks"] {
        assert_eq!(http(addr, "GET", &format!("/stats?{query}"), "").await.0, 400, "{query}");
    }

    stop.cancel();
    within("the endpoint to stop", endpoint.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_plan_is_carried_out_in_order() {
    let sim = Sim::plain().await;
    let mut client = sim.subscriber("T.*,Q.*").await;
    let plan = Plan::parse(
        r#"{"at":"40ms","fault":{"fault":"close_with","code":1012}}
           {"at":"1ms","fault":{"fault":"no_greeting","on":true}}
           {"at":"20ms","fault":{"fault":"huge_frame","events":50}}"#,
        &[Market::Stocks],
    )
    .unwrap();
    within("the plan", plan.run(sim.handles.clone())).await;
    assert!(client.text().await.contains(r#""ev":"Q""#));
    assert_eq!(client.end().await, Ended::Closed(1012));
}
