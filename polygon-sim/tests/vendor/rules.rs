//! The rules of a session, with every text written out.

use std::{collections::BTreeSet, time::Duration};

use futures_util::SinkExt;
use polygon_sim::{Fault, SimConfig, SimHandle};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::client::{AUTHENTICATED, Client, EVICTED, Ended, GREETING, Sim, events, status, within};

fn held(handle: &SimHandle) -> Vec<String> {
    handle.subscriptions().into_iter().collect()
}

#[tokio::test]
async fn greeting_verdict_and_acknowledgements_each_have_a_frame() {
    let sim = Sim::plain().await;
    let mut client = sim.connect().await;
    // Pipelined, as the official Go client does.
    client.send(r#"{"action": "auth", "params": "sim-key"}"#).await;
    client.send(r#"{"action":"subscribe","params":"T.AAPL, Q.BRK.B,,"}"#).await;
    assert_eq!(client.text().await, GREETING);
    assert_eq!(client.text().await, AUTHENTICATED);
    assert_eq!(
        client.text().await,
        concat!(
            r#"[{"ev":"status","status":"success","message":"subscribed to: T.AAPL"},"#,
            r#"{"ev":"status","status":"success","message":"subscribed to: Q.BRK.B"}]"#
        )
    );
    assert_eq!(held(&sim.handle), ["Q.BRK.B", "T.AAPL"]);
    assert_eq!(sim.handle.commands()[0], r#"{"action":"auth","params":"***"}"#);
    assert_eq!(sim.handle.commands().len(), 2);
    let stats = sim.handle.stats();
    assert_eq!((stats.connections_accepted, stats.connections_now, stats.auths), (1, 1, 1));
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_dropped_without_a_close_frame() {
    let sim = Sim::plain().await;
    let mut client = sim.connect().await;
    client.send(r#"{"action":"auth","params":"other"}"#).await;
    assert_eq!(client.text().await, GREETING);
    assert_eq!(client.text().await, status("auth_failed", "authentication failed"));
    assert_eq!(client.end().await, Ended::Dropped);
    assert_eq!(sim.handle.stats().auth_failures, 1);
    sim.until("the connection to leave", |sim| sim.stats().connections_now == 0).await;
}

#[tokio::test]
async fn commands_before_auth_are_refused_and_the_connection_lives_on() {
    let sim = Sim::plain().await;
    let mut client = sim.connect().await;
    assert_eq!(client.text().await, GREETING);
    for action in ["subscribe", "unsubscribe"] {
        client.send(&format!(r#"{{"action":"{action}","params":"T.AAPL"}}"#)).await;
        assert_eq!(client.text().await, status("auth_required", "authentication required"));
    }
    client.send(r#"{"action":"auth","params":"sim-key"}"#).await;
    assert_eq!(client.text().await, AUTHENTICATED);
    client.send(r#"{"action":"auth","params":"sim-key"}"#).await;
    assert_eq!(client.text().await, AUTHENTICATED, "answered again");
    assert!(sim.handle.subscriptions().is_empty());
}

#[tokio::test]
async fn unknown_channels_and_duplicates_get_no_answer() {
    let sim = Sim::plain().await;
    let mut client = sim.subscriber("T.AAPL").await;
    client.send(r#"{"action":"subscribe","params":"*,AAPL,ZZ.AAPL,t.AAPL,T.,T.AAPL"}"#).await;
    client.is_quiet().await;
    client.send(r#"{"action":"subscribe","params":"T.AAPL,T.*,T.NOSUCH"}"#).await;
    let acks = client.text().await;
    assert_eq!(acks.matches("subscribed to").count(), 2, "{acks}");
    assert_eq!(held(&sim.handle), ["T.*", "T.AAPL", "T.NOSUCH"]);
}

#[tokio::test]
async fn unsubscribe_is_acknowledged_for_what_was_held() {
    let sim = Sim::plain().await;
    let mut client = sim.subscriber("T.AAPL,T.*").await;
    client.send(r#"{"action":"unsubscribe","params":"T.MSFT,T.AAPL,*"}"#).await;
    assert_eq!(client.text().await, status("success", "unsubscribed to: T.AAPL"));
    client.send(r#"{"action":"unsubscribe","params":"T.AAPL"}"#).await;
    client.is_quiet().await;
    sim.handle.publish(&events(&[r#"{"ev":"T","sym":"AAPL"}"#]));
    assert_eq!(client.text().await, r#"[{"ev":"T","sym":"AAPL"}]"#, "the wildcard still covers it");
    assert_eq!(sim.handle.stats().unsubscribe_requests, 2);
}

#[tokio::test]
async fn refusals_come_first_and_name_nothing() {
    let config = SimConfig { refuse: vec!["FMV".into(), "NOI".into()], ..SimConfig::default() };
    let sim = Sim::start(config).await;
    let mut client = sim.connect().await;
    client.log_in().await;
    client.send(r#"{"action":"subscribe","params":"T.*,FMV.*,NOI.GE"}"#).await;
    assert_eq!(
        client.text().await,
        concat!(
            r#"[{"ev":"status","status":"error","message":"not authorized"},"#,
            r#"{"ev":"status","status":"error","message":"not authorized"},"#,
            r#"{"ev":"status","status":"success","message":"subscribed to: T.*"}]"#
        )
    );
    assert_eq!(sim.handle.subscriptions(), BTreeSet::from(["T.*".to_owned()]));
}

#[tokio::test]
async fn malformed_requests_are_answered_and_survived() {
    let sim = Sim::plain().await;
    let mut client = sim.connect().await;
    client.log_in().await;
    for bad in ["", "[]", "{", r#"{"action":"subscribe"}"#, r#"{"action":"x","params":"T.A"}"#] {
        client.send(bad).await;
        assert_eq!(client.text().await, status("error", "invalid request"), "{bad}");
    }
    within("sending", client.0.send(Message::binary("x"))).await.unwrap();
    assert_eq!(client.text().await, status("error", "invalid request"));
    assert_eq!(sim.handle.stats().malformed_requests, 6);
}

#[tokio::test]
async fn a_newer_connection_evicts_the_older() {
    let sim = Sim::plain().await;
    let mut old = sim.subscriber("T.AAPL").await;
    // A connection that has not authenticated takes no slot of the account.
    let mut new = sim.connect().await;
    assert_eq!(new.text().await, GREETING);
    assert_eq!(held(&sim.handle), ["T.AAPL"]);
    new.send(r#"{"action":"auth","params":"sim-key"}"#).await;
    assert_eq!(new.text().await, AUTHENTICATED);
    assert_eq!(old.text().await, EVICTED);
    assert_eq!(old.end().await, Ended::Closed(1008));
    new.subscribe("T.MSFT").await;
    assert_eq!(held(&sim.handle), ["T.MSFT"]);
    assert_eq!(sim.handle.stats().evictions, 1);
    sim.until("the old one to leave", |sim| sim.stats().connections_now == 1).await;
}

#[tokio::test]
async fn the_account_may_hold_more_connections() {
    let sim = Sim::start(SimConfig { max_connections: 2, ..SimConfig::default() }).await;
    let mut first = sim.subscriber("T.AAPL").await;
    let mut second = sim.subscriber("T.MSFT").await;
    let (a, m) = (r#"{"ev":"T","sym":"AAPL","p":1.50}"#, r#"{"ev":"T","sym":"MSFT"}"#);
    sim.handle.publish(&events(&[a, m, a]));
    assert_eq!(first.text().await, format!("[{a},{a}]"));
    assert_eq!(second.text().await, format!("[{m}]"));
    let _third = sim.subscriber("T.F").await;
    assert_eq!(first.end().await, Ended::Closed(1008), "the oldest goes");
    second.is_quiet().await;
}

#[tokio::test]
async fn no_auth_in_time_ends_the_connection() {
    let auth_timeout = Duration::from_millis(30);
    let sim = Sim::start(SimConfig { auth_timeout, ..SimConfig::default() }).await;
    let mut late = sim.connect().await;
    assert_eq!(late.text().await, GREETING);
    assert_eq!(late.text().await, status("auth_timeout", "No authentication request received."));
    assert_eq!(late.end().await, Ended::Closed(1008));
    assert_eq!(sim.handle.stats().auth_timeouts, 1);
}

#[tokio::test]
async fn paths_of_other_markets_are_not_found() {
    let sim = Sim::plain().await;
    let base = sim.url.strip_suffix("/stocks").unwrap();
    for path in ["", "/", "/options", "/stocks/more"] {
        match Client::open(&format!("{base}{path}")).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), 404, "{path}"),
            other => panic!("{path}: {other:?}"),
        }
    }
    for path in ["//stocks", "/stocks/", "///stocks//?apiKey=x"] {
        Client::open(&format!("{base}{path}")).await.unwrap();
    }
    let stats = sim.handle.stats();
    assert_eq!((stats.upgrades_refused, stats.connections_accepted), (4, 3));
}

#[tokio::test]
async fn pings_are_answered_at_any_time() {
    let sim = Sim::plain().await;
    let mut client = sim.connect().await;
    assert_eq!(client.text().await, GREETING);
    within("sending", client.0.send(Message::Ping("abc".into()))).await.unwrap();
    assert_eq!(client.message().await, Ok(Message::Pong("abc".into())));
    assert_eq!(sim.handle.stats().pings_received, 1);
}

#[tokio::test]
async fn thousands_of_items_are_acknowledged_in_one_frame() {
    let sim = Sim::plain().await;
    let mut client = sim.connect().await;
    client.log_in().await;
    let items: Vec<_> = (0..5_000).map(|n| format!("T.S{n}")).collect();
    client.send(&format!(r#"{{"action":"subscribe","params":"{}"}}"#, items.join(","))).await;
    let acks = client.text().await;
    assert_eq!(acks.matches("subscribed to: T.S").count(), 5_000);
    assert!(acks.find("T.S10\"").unwrap() < acks.find("T.S4999\"").unwrap());
}

const LIMIT: &str =
    "Subscription limit reached for feed. Please remove some subscriptions and try again.";

fn contracts(kind: &str, numbers: std::ops::Range<usize>) -> String {
    let items: Vec<_> = numbers.map(|n| format!("{kind}.O:SPY261218C{n:08}")).collect();
    items.join(",")
}

async fn options() -> (Sim, Client) {
    let config = SimConfig { market: "options".to_owned(), ..SimConfig::default() };
    let sim = Sim::start(config).await;
    let mut client = sim.connect().await;
    client.log_in().await;
    (sim, client)
}

#[tokio::test]
async fn a_request_for_too_many_contracts_is_refused_whole_with_fewer_statuses_than_items() {
    let (sim, mut client) = options().await;
    for first in [0, 300, 600] {
        client.subscribe(&contracts("Q", first..first + 300)).await;
    }
    let more = contracts("Q", 900..1_100);
    for _ in 0..2 {
        client.send(&format!(r#"{{"action":"subscribe","params":"{more}"}}"#)).await;
        for _ in 0..27 {
            assert_eq!(client.text().await, status("error", LIMIT));
        }
        client.is_quiet().await;
        assert_eq!(held(&sim.handle).len(), 900);
    }
    // Contracts that are held take no room again, and removed ones free it at once.
    client.subscribe(&contracts("Q", 900..1_000)).await;
    client
        .send(&format!(r#"{{"action":"unsubscribe","params":"{}"}}"#, contracts("Q", 0..10)))
        .await;
    client
        .send(&format!(r#"{{"action":"subscribe","params":"{}"}}"#, contracts("Q", 990..1_010)))
        .await;
    assert_eq!(client.text().await.matches("unsubscribed to").count(), 10);
    assert_eq!(client.text().await.matches("subscribed to").count(), 10);
    assert_eq!(held(&sim.handle).len(), 1_000);
    // Each kind has a room of its own. Others have no limit.
    client.subscribe(&contracts("FMV", 0..1_000)).await;
    client.subscribe(&contracts("T", 0..1_500)).await;
    client.send(r#"{"action":"subscribe","params":"T.*,Q.O:X"}"#).await;
    assert_eq!(client.text().await, status("error", LIMIT), "a wildcard beside it is refused too");
    client.is_quiet().await;
}

#[tokio::test]
async fn the_limit_on_contracts_changes_by_a_fault() {
    let (sim, mut client) = options().await;
    client.subscribe(&contracts("Q", 0..3)).await;
    sim.handle.inject(Fault::Contracts { most: Some(2) });
    client.send(r#"{"action":"subscribe","params":"Q.O:X"}"#).await;
    assert_eq!(client.text().await, status("error", LIMIT));
    assert_eq!(held(&sim.handle).len(), 3, "what is held stays");
    sim.handle.inject(Fault::Contracts { most: None });
    client.subscribe("Q.O:X").await;
}
