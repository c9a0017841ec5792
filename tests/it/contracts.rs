//! Contracts on demand: types that the vendor serves by contract only, a limited number of each.

use std::{net::SocketAddr, ops::Range};

use polygon_sim::{Fault, SimConfig};
use serde_json::Value;
use tests::{
    program::{Launch, Program},
    stack::{self, FIREHOSE_KEY, Sim, is_up},
    wait::{SOON, eventually},
    ws_client::{TestClient, acks},
};

/// The name of a contract.
fn contract(n: usize) -> String {
    format!("O:SPY261218C{n:08}")
}

/// The items of these contracts' quotes.
fn quotes(numbers: Range<usize>) -> Vec<String> {
    numbers.map(|n| format!("Q.{}", contract(n))).collect()
}

/// The set of these items, as the simulator shows it.
fn set(items: &[String]) -> std::collections::BTreeSet<String> {
    items.iter().cloned().collect()
}

fn quote(n: usize, seq: usize) -> String {
    format!(r#"{{"ev":"Q","sym":"{}","bp":1.25,"ap":1.3,"q":{seq}}}"#, contract(n))
}

/// An options market in which a connection may hold this many contracts of a type.
async fn options(contracts: usize) -> Sim {
    let market = "options".to_owned();
    Sim::with(SimConfig { market, contracts, ..SimConfig::default() }).await
}

fn firehose(sim: &Sim) -> Launch {
    stack::firehose(&sim.url("options")).env("MARKET", "options").env("UPSTREAM_LINGER", "1ms")
}

async fn client(addr: SocketAddr, key: &str) -> TestClient {
    let mut client = TestClient::connect_to(addr, "/options").await;
    client.log_in(key).await;
    client
}

/// The answer for a contract.
#[derive(Debug, PartialEq, Eq, Clone)]
enum Answer {
    Subscribed(String),
    Waiting { item: String, place: u64, room: u64 },
}

/// The next answers for contracts. Notices about upstreams may come between.
async fn answers(client: &mut TestClient, count: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    while answers.len() < count {
        let object = client.next_but_notices().await;
        answers.push(answer(&object));
    }
    answers
}

fn answer(object: &str) -> Answer {
    let status: Value = serde_json::from_str(object).expect("a status");
    let message = status["message"].as_str().expect("a message");
    if let Some(item) = message.strip_prefix("subscribed to: ") {
        assert_eq!(status["status"], "success", "{object}");
        return Answer::Subscribed(item.to_owned());
    }
    let number = |name: &str| status[name].as_u64().unwrap_or_else(|| panic!("{name}: {object}"));
    let (item, place, room) = (status["contract"].as_str(), number("place"), number("room"));
    let item = item.expect("the contract's name").to_owned();
    let expected = format!(
        "{item:?} waits for room: upstream serves {room} contracts of Q at a time; place {place} in the queue"
    );
    assert_eq!((status["status"].as_str(), message), (Some("error"), expected.as_str()));
    Answer::Waiting { item, place, room }
}

fn subscribed(items: &[String]) -> Vec<Answer> {
    items.iter().cloned().map(Answer::Subscribed).collect()
}

fn waiting(items: &[String], places: Range<u64>, room: u64) -> Vec<Answer> {
    let items = items.iter().cloned().zip(places);
    items.map(|(item, place)| Answer::Waiting { item, place, room }).collect()
}

/// The answers in the order of their items: in which order the vendor answers is not what counts.
fn sorted(mut answers: Vec<Answer>) -> Vec<Answer> {
    answers.sort_by_key(|answer| match answer {
        Answer::Subscribed(item) | Answer::Waiting { item, .. } => item.clone(),
    });
    answers
}

/// Waits until the vendor's connection holds these contracts and no others of their type.
async fn holds(sim: &Sim, items: &[String]) {
    let of_quotes = |channel: &String| channel.starts_with("Q.");
    let mut held = std::collections::BTreeSet::new();
    eventually(SOON, "exactly these contracts are held upstream", async || {
        held = sim.handle.subscriptions().into_iter().filter(of_quotes).collect();
        held == set(items)
    })
    .await;
}

async fn start(launch: Launch) -> Program {
    let program = launch.start().await;
    is_up(&program).await;
    program
}

#[tokio::test]
async fn a_contract_is_acknowledged_once_the_vendor_serves_it_and_given_up_after_its_last_holder() {
    let sim = options(1_000).await;
    let firehose = start(firehose(&sim)).await;
    let mut one = client(firehose.addr(), FIREHOSE_KEY).await;
    let mut two = client(firehose.addr(), FIREHOSE_KEY).await;
    let items = quotes(0..3);
    one.command("subscribe", &items[..2].join(",")).await;
    assert_eq!(answers(&mut one, 2).await, subscribed(&items[..2]));
    holds(&sim, &items[..2]).await;
    // No outage is announced for a contract.
    two.command("subscribe", &items[1..].join(",")).await;
    let got = [two.next_object().await, two.next_object().await];
    assert_eq!(got.map(|object| answer(&object)).to_vec(), subscribed(&items[1..]));
    holds(&sim, &items).await;
    sim.handle.publish(&[quote(2, 1)]);
    // The firehose does not filter.
    for client in [&mut one, &mut two] {
        client.expect_objects(&[quote(2, 1)]).await;
    }
    // A repeated subscription is acknowledged like any other.
    two.subscribe(&items[1]).await;
    one.unsubscribe(&items[..2].join(",")).await;
    holds(&sim, &items[1..]).await;
    two.close().await;
    holds(&sim, &[]).await;
}

#[tokio::test]
async fn a_type_without_a_wildcard_is_refused_whole_with_the_reason() {
    let sim = options(1_000).await;
    let firehose = start(firehose(&sim).env("UPSTREAM_CONTRACTS", 950)).await;
    let mut client = client(firehose.addr(), FIREHOSE_KEY).await;
    let error = |item: &str| {
        let message = format!(
            "{item:?} is not carried: upstream serves Q by contract only, 950 at a time: name contracts, such as Q.O:SPY261218C00600000"
        );
        let message = Value::from(message);
        format!(r#"{{"ev":"status","status":"error","message":{message}}}"#)
    };
    for item in ["Q.*", "Q.O:SPY*"] {
        client.command("subscribe", item).await;
        client.expect_objects(&[error(item)]).await;
    }
    client.subscribe("*").await;
    let coverage = client.next_object().await;
    assert!(coverage.contains("; by contract only, 950 at a time: Q, FMV"), "{coverage}");
    assert!(coverage.contains(r#""on_demand":["Q","FMV"],"contracts":950"#), "{coverage}");
}

#[tokio::test]
async fn contracts_beyond_the_room_wait_in_order_and_get_in_as_others_leave() {
    let sim = options(5).await;
    let firehose = start(firehose(&sim).env("UPSTREAM_CONTRACTS", 5)).await;
    let mut client = client(firehose.addr(), FIREHOSE_KEY).await;
    let items = quotes(0..9);
    client.command("subscribe", &items.join(",")).await;
    // Who waits is known at once, who gets in when the vendor has answered.
    assert_eq!(answers(&mut client, 4).await, waiting(&items[5..], 1..5, 5));
    assert_eq!(sorted(answers(&mut client, 5).await), subscribed(&items[..5]));
    holds(&sim, &items[..5]).await;
    let gone = [&items[0], &items[3], &items[6]].map(String::clone).join(",");
    client.unsubscribe(&gone).await;
    let next = [items[5].clone(), items[7].clone()];
    assert_eq!(sorted(answers(&mut client, 2).await), subscribed(&next));
    let held = [1, 2, 4, 5, 7].map(|n| items[n].clone());
    holds(&sim, &held).await;
    // The refused requests of a careless client would show here.
    let requests = sim.handle.commands();
    assert!(requests.iter().all(|command| command.matches("Q.O:").count() <= 5), "{requests:?}");
    let mut other = self::client(firehose.addr(), FIREHOSE_KEY).await;
    other.command("subscribe", &items[8]).await;
    assert_eq!(answers(&mut other, 1).await, waiting(&items[8..], 1..2, 5));
    drop(client);
    assert_eq!(answers(&mut other, 1).await, subscribed(&items[8..]));
    holds(&sim, &items[8..]).await;
}

#[tokio::test]
async fn a_smaller_room_than_the_setting_is_found_and_refuses_nothing_for_good() {
    let sim = options(130).await;
    let firehose = start(firehose(&sim)).await;
    let mut client = client(firehose.addr(), FIREHOSE_KEY).await;
    let items = quotes(0..300);
    client.command("subscribe", &items.join(",")).await;
    let mut answers = sorted(answers(&mut client, 300).await);
    let late = answers.split_off(130);
    assert_eq!(answers, subscribed(&items[..130]));
    assert_eq!(late, waiting(&items[130..], 1..171, 130));
    holds(&sim, &items[..130]).await;
    client.unsubscribe(&items[..10].join(",")).await;
    assert_eq!(sorted(self::answers(&mut client, 10).await), subscribed(&items[130..140]));
    holds(&sim, &items[10..140]).await;
    // Another type, and another request, are not counted against the burst of refusals.
    client.command("subscribe", "T.*").await;
    assert_eq!(format!("[{}]", client.next_but_notices().await), acks("subscribed", "T.*"));
    // The vendor forgets its limit on a new connection, and so does the firehose.
    sim.handle.inject(Fault::Contracts { most: Some(1_000) });
    sim.handle.inject(Fault::Abort);
    assert_eq!(sorted(self::answers(&mut client, 160).await), subscribed(&items[140..]));
    holds(&sim, &items[10..]).await;
}
