//! Contracts on demand: types that the vendor serves by contract only, a limited number of each.

use std::{net::SocketAddr, ops::Range};

use polygon_sim::{Fault, SimConfig};
use serde_json::Value;
use tests::{
    program::{Launch, Program},
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Sim, is_complete, is_up},
    wait::{SOON, eventually},
    ws_client::{TestClient, acks, coming_back},
};

use crate::resume::read_until;

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
    let health = firehose.health().await;
    assert_eq!(health["contracts"]["Q"], serde_json::json!({"held": 5, "room": 5, "waiting": 1}));
    assert_eq!(health["contracts"]["FMV"], serde_json::json!({"held": 0, "room": 5, "waiting": 0}));
    eventually(SOON, "the metrics say the same", async || {
        let mut same = true;
        for (name, number) in [("held", 5.0), ("room", 5.0), ("waiting", 1.0)] {
            let name = format!("firehose_contracts_{name}");
            same &= firehose.metric_with(&name, r#"type="Q""#).await == Some(number);
        }
        same
    })
    .await;
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

/// A firehose and filtered proxies in front of an options market.
async fn chain(sim: &Sim, room: usize, proxies: usize, keys: &str) -> (Program, Vec<Program>) {
    let firehose = start(firehose(sim).env("UPSTREAM_CONTRACTS", room)).await;
    let mut filtered = Vec::new();
    for _ in 0..proxies {
        let launch = stack::filtered(firehose.addr()).env("MARKET", "options");
        let program = launch.env("CLIENT_API_KEYS", keys).start().await;
        is_complete(&program).await;
        filtered.push(program);
    }
    eventually(SOON, "everything of the market is carried", async || {
        sim.handle.subscriptions().contains("AM.*")
    })
    .await;
    (firehose, filtered)
}

#[tokio::test]
async fn a_contract_reaches_exactly_the_clients_that_hold_it() {
    let sim = options(1_000).await;
    let (_firehose, filtered) = chain(&sim, 1_000, 2, CLIENT_KEY).await;
    let mut clients = Vec::new();
    for (proxy, items) in [(0, "*"), (0, "Q.{0}"), (1, "Q.{0},Q.{1}"), (1, "*,Q.{1}"), (1, "T.*")] {
        let items = items.replace("{0}", &contract(0)).replace("{1}", &contract(1));
        let mut client = client(filtered[proxy].addr(), CLIENT_KEY).await;
        client.command("subscribe", &items).await;
        for _ in items.split(',') {
            assert!(client.next_but_notices().await.contains("subscribed to: "));
        }
        clients.push(client);
    }
    // The other channels are never passed on.
    holds(&sim, &quotes(0..2)).await;
    let trade =
        |n: usize, seq: usize| format!(r#"{{"ev":"T","sym":"{}","p":1.3,"q":{seq}}}"#, contract(n));
    let day = [trade(0, 1), quote(0, 2), trade(1, 3), quote(1, 4), quote(0, 5), trade(9, 6)];
    sim.handle.publish(&day);
    let of = |numbers: &[usize]| numbers.iter().map(|n| day[*n].clone()).collect::<Vec<_>>();
    let end = trade(7, 7);
    sim.handle.publish(std::slice::from_ref(&end));
    for (client, numbers) in
        clients.iter_mut().zip([&[0, 2, 5][..], &[1, 4], &[1, 3, 4], &[0, 2, 3, 5], &[0, 2, 5]])
    {
        client.expect_objects(&of(numbers)).await;
    }
    for n in [0, 3, 4] {
        clients[n].expect_objects(std::slice::from_ref(&end)).await;
    }
    clients[1].ping(b"quiet").await;
    assert!(clients[1].take_objects().is_empty());
    // The last holder's end frees the contract.
    clients.truncate(2);
    holds(&sim, &quotes(0..1)).await;
    let error = "upstream serves Q by contract only, 1000 at a time";
    for item in ["Q.*", "Q.O:SPY*"] {
        clients[1].command("subscribe", item).await;
        let answer = clients[1].next_object().await;
        assert!(answer.contains(error) && answer.contains(r#""status":"error""#), "{answer}");
    }
}

#[tokio::test]
async fn a_key_of_few_contracts_gets_room_from_a_key_of_many() {
    let sim = options(6).await;
    let (_firehose, filtered) = chain(&sim, 6, 2, "many,few").await;
    let mut many = client(filtered[0].addr(), "many").await;
    let items = quotes(0..9);
    many.command("subscribe", &items.join(",")).await;
    assert_eq!(
        sorted(answers(&mut many, 9).await),
        [subscribed(&items[..6]), waiting(&items[6..], 1..4, 6)].concat()
    );
    let mut few = client(filtered[1].addr(), "few").await;
    let own = quotes(20..22);
    few.command("subscribe", &own.join(",")).await;
    assert_eq!(sorted(answers(&mut few, 2).await), subscribed(&own));
    assert_eq!(answers(&mut many, 2).await, waiting(&items[4..6], 1..3, 6));
    holds(&sim, &[&items[..4], &own[..]].concat()).await;
    // A contract that has room for one key has room for all.
    few.command("subscribe", &items[4]).await;
    assert_eq!(answers(&mut few, 1).await, subscribed(&items[4..5]));
    let changed = [waiting(&items[3..4], 1..2, 6), subscribed(&items[4..5])].concat();
    assert_eq!(sorted(answers(&mut many, 2).await), changed);
    // Whoever lost its room gets no events of the contract.
    sim.handle.publish(&[3, 4, 20].map(|n| quote(n, n)));
    many.expect_objects(&[quote(4, 4)]).await;
    few.expect_objects(&[quote(4, 4), quote(20, 20)]).await;
    few.close().await;
    let back = [items[3].clone(), items[5].clone()];
    assert_eq!(sorted(answers(&mut many, 2).await), subscribed(&back));
    holds(&sim, &items[..6]).await;
}

#[tokio::test]
async fn contracts_come_back_after_the_firehose_restarts() {
    let sim = options(1_000).await;
    let port = ReservedPort::new();
    let launch = || firehose(&sim).env("FIREHOSE_PORT", port.addr().port());
    let filtered =
        stack::filtered(port.addr()).env("MARKET", "options").env("CLIENT_API_KEYS", CLIENT_KEY);
    let filtered = filtered.start().await;
    // Nothing is known yet, so it is acknowledged.
    let mut client = client(filtered.addr(), CLIENT_KEY).await;
    let items = quotes(0..3);
    client.command("subscribe", &items.join(",")).await;
    assert_eq!(answers(&mut client, 3).await, subscribed(&items));
    let mut seq = 0;
    for room in [10, 2, 10] {
        let program = launch().env("UPSTREAM_CONTRACTS", room).start().await;
        let held = &items[..room.min(3)];
        holds(&sim, held).await;
        if room < 3 {
            assert_eq!(answers(&mut client, 1).await, waiting(&items[2..], 1..2, 2));
        } else if seq > 0 {
            assert_eq!(answers(&mut client, 1).await, subscribed(&items[2..]));
        }
        is_complete(&filtered).await;
        for n in 0..held.len() {
            seq += 1;
            sim.handle.publish(&[quote(n, seq)]);
            client.expect_event(&quote(n, seq)).await;
        }
        program.stop().await;
    }
}

#[tokio::test]
async fn after_the_vendor_was_lost_the_contracts_of_most_clients_are_asked_for_first() {
    let sim = options(1_000).await;
    let (_firehose, filtered) = chain(&sim, 1_000, 2, "desk-a,desk-b").await;
    let items = quotes(0..400);
    let mut clients = Vec::new();
    // All, and then the last ones by clients of the same filtered proxy, of the same key and not.
    for (proxy, key, of_it) in [(0, "desk-a", &items[..]), (0, "desk-a", &items[350..])]
        .into_iter()
        .chain([(0, "desk-b", &items[380..]), (1, "desk-b", &items[390..])])
    {
        let mut client = client(filtered[proxy].addr(), key).await;
        client.command("subscribe", &of_it.join(",")).await;
        answers(&mut client, of_it.len()).await;
        clients.push(client);
    }
    // The firehose learns of further clients within about a second.
    eventually(SOON, "those of most clients are asked for first", async || {
        let before = sim.handle.commands().len();
        sim.handle.inject(Fault::Abort);
        let mut requests = Vec::new();
        eventually(SOON, "all are asked for again", async || {
            let commands = sim.handle.commands();
            requests =
                commands[before..].iter().filter(|text| text.contains("\"Q.")).cloned().collect();
            requests.len() >= 2
        })
        .await;
        holds(&sim, &items).await;
        let is_first = |item: &String| requests[0].contains(item.as_str());
        assert!(items[..350].iter().any(|item| !is_first(item)), "not all in one request");
        items[350..].iter().all(is_first)
    })
    .await;
}

/// Who has room, by the rule of the documents: the keys take turns.
fn model(asks: &[(usize, Vec<String>)], room: usize) -> std::collections::BTreeSet<String> {
    let mut lists: Vec<(usize, Vec<String>)> = Vec::new();
    for (key, items) in asks {
        match lists.iter_mut().find(|(known, _)| known == key) {
            Some((_, list)) => list.extend(items.iter().cloned()),
            None => lists.push((*key, items.clone())),
        }
    }
    let longest = lists.iter().map(|(_, list)| list.len()).max().unwrap_or_default();
    let turns = (0..longest).flat_map(|n| lists.iter().filter_map(move |(_, list)| list.get(n)));
    turns.take(room).cloned().collect()
}

#[tokio::test]
async fn forty_clients_share_the_room_as_the_model_says_through_reconnects() {
    const KEYS: [&str; 4] = ["key-a", "key-b", "key-c", "key-d"];
    let sim = options(1_000).await;
    let (_firehose, filtered) = chain(&sim, 1_000, 2, &KEYS.join(",")).await;
    let mut asks = Vec::new();
    let mut clients = Vec::new();
    for n in 0..40_usize {
        // The keys ask for different numbers.
        let key = [0, 0, 0, 1, 1, 1, 2, 2, 3, 0][n % 10];
        let items = quotes(75 * n..75 * (n + 1));
        let mut client = client(filtered[n % 2].addr(), KEYS[key]).await;
        client.subscribe("T.O:END").await;
        client.command("subscribe", &items.join(",")).await;
        answers(&mut client, 75).await;
        asks.push((key, items));
        clients.push(client);
    }
    for (round, room) in [1_000, 1_000, 900, 900].into_iter().enumerate() {
        match round {
            1 => sim.handle.inject(Fault::Abort),
            2 => {
                sim.handle.inject(Fault::Contracts { most: Some(room) });
                sim.handle.inject(Fault::Abort);
            }
            3 => {
                clients.drain(..5);
                asks.drain(..5);
            }
            _ => {}
        }
        let inside = model(&asks, room);
        assert_eq!(inside.len(), room);
        holds(&sim, &inside.iter().cloned().collect::<Vec<_>>()).await;
        // The vendor sends an event of each contract that it holds.
        let end = format!(r#"{{"ev":"T","sym":"O:END","q":{round}}}"#);
        let complete = async |client: &mut TestClient, items: &[String]| {
            let expected: Vec<String> =
                items.iter().filter(|item| inside.contains(*item)).cloned().collect();
            let mut got = Vec::new();
            loop {
                let object = client.next_but_notices().await;
                if object == end {
                    break;
                }
                let event: Value = serde_json::from_str(&object).expect("an object");
                if event["ev"] == "Q" {
                    got.push(format!("Q.{}", event["sym"].as_str().expect("a symbol")));
                }
            }
            assert_eq!(got, expected, "round {round}");
        };
        for program in &filtered {
            is_complete(program).await;
        }
        let all = asks.iter().flat_map(|(_, items)| items);
        let events: Vec<String> = all
            .map(|item| {
                format!(r#"{{"ev":"Q","sym":"{}","q":{round}}}"#, item.trim_start_matches("Q."))
            })
            .chain([end.clone()])
            .collect();
        sim.handle.publish(&events);
        for (client, (_, items)) in clients.iter_mut().zip(&asks) {
            complete(client, items).await;
        }
    }
    let requests = sim.handle.commands();
    let most = requests.iter().map(|command| command.matches("Q.O:").count()).max();
    assert!(most <= Some(500), "{most:?}");
    let subscribes = requests.iter().filter(|command| command.contains(r#""subscribe""#));
    let most = subscribes.map(|command| command.matches("Q.O:").count()).max();
    assert_eq!(most, Some(200));
}

#[tokio::test]
async fn several_connections_share_the_contracts_and_their_room() {
    let market = "options".to_owned();
    let config = SimConfig { market, contracts: 10, max_connections: 3, ..SimConfig::default() };
    let sim = Sim::with(config).await;
    let firehose = firehose(&sim)
        .env("UPSTREAM_CONTRACTS", 10)
        .env("UPSTREAM_CONNECTIONS_OPTIONS", 3)
        .start()
        .await;
    is_up(&firehose).await;
    eventually(SOON, "three connections", async || sim.handle.stats().auths == 3).await;
    let mut client = client(firehose.addr(), FIREHOSE_KEY).await;
    client.subscribe("T.*").await;
    let items = quotes(0..40);
    client.command("subscribe", &items.join(",")).await;
    let (first, rest) = items.split_at(30);
    let got = sorted(answers(&mut client, 40).await);
    assert_eq!(got, [subscribed(first), waiting(rest, 1..11, 30)].concat());
    holds(&sim, first).await;
    // Each contract and each channel comes over one connection.
    sim.handle.publish(&(0..40).map(|n| quote(n, n)).collect::<Vec<_>>());
    let mut events = Vec::new();
    while events.len() < 30 {
        events.push(client.next_but_notices().await);
    }
    events.sort();
    assert_eq!(events, (0..30).map(|n| quote(n, n)).collect::<Vec<_>>());
    // Room on any connection is given to the next in the queue.
    client.command("unsubscribe", &first[7..9].join(",")).await;
    let acknowledged = [client.next_but_notices().await, client.next_but_notices().await];
    assert!(acknowledged.iter().all(|status| status.contains("unsubscribed to: ")));
    assert_eq!(sorted(answers(&mut client, 2).await), subscribed(&rest[..2]));
    let held = [&first[..7], &first[9..], &rest[..2]].concat();
    holds(&sim, &held).await;
    // Contracts stay spread as they are when a connection is lost.
    sim.handle.inject(Fault::Abort);
    eventually(SOON, "three new connections", async || sim.handle.stats().auths == 6).await;
    holds(&sim, &held).await;
}

#[tokio::test]
async fn the_limit_of_a_client_at_the_firehose_does_not_bound_all_clients_of_a_filtered_proxy() {
    let sim = options(1_000).await;
    let firehose = start(firehose(&sim).env("MAX_SUBSCRIPTIONS", 3)).await;
    let filtered = stack::filtered(firehose.addr()).env("MARKET", "options").start().await;
    is_complete(&filtered).await;
    let mut through = client(filtered.addr(), CLIENT_KEY).await;
    let items = quotes(0..20);
    through.command("subscribe", &items.join(",")).await;
    assert_eq!(sorted(answers(&mut through, 20).await), subscribed(&items));
    // A client of the firehose itself is limited, and told so.
    let mut direct = client(firehose.addr(), FIREHOSE_KEY).await;
    direct.command("subscribe", &items[..3].join(",")).await;
    assert_eq!(sorted(answers(&mut direct, 3).await), subscribed(&items[..3]));
    direct.command("subscribe", &items[3]).await;
    let refused = direct.next_but_notices().await;
    assert!(refused.contains("subscription limit of 3 reached"), "{refused}");
}

#[tokio::test]
async fn a_hint_for_one_client_is_no_news_for_the_link() {
    let sim = options(1_000).await;
    let firehose = start(firehose(&sim)).await;
    let filtered = stack::filtered(firehose.addr()).env("MARKET", "options").start().await;
    is_complete(&filtered).await;
    let mut through = client(filtered.addr(), CLIENT_KEY).await;
    through.command("subscribe", "Q.o:spy261218c00000001").await;
    let (mut hints, mut answered) = (0, false);
    while hints == 0 || !answered {
        let status = through.next_but_notices().await;
        hints += usize::from(status.contains(r#""status":"hint""#));
        answered |= status.contains("subscribed to: ");
    }
    assert_eq!(hints, 1);
    assert!(!filtered.log_text().contains("upstream status"), "{}", filtered.log_text());
}

#[tokio::test]
async fn a_replay_holds_no_contract_that_waits_for_room() {
    let sim = options(1).await;
    let (_firehose, filtered) = chain(&sim, 1, 1, "one,two").await;
    let proxy = &filtered[0];
    let (items, trade) = (quotes(0..2), |seq: usize| quote(7, seq).replacen("\"Q\"", "\"T\"", 1));
    let from = proxy.health_text("/history/to").await;
    let mut holder = client(proxy.addr(), "one").await;
    for n in [0, 1] {
        holder.command("subscribe", &items[n]).await;
        assert_eq!(answers(&mut holder, 1).await, subscribed(&items[n..=n]));
        sim.handle.publish(&[quote(n, n), trade(n)]);
        holder.expect_objects(&[quote(n, n)]).await;
        if n == 0 {
            holder.command("unsubscribe", &items[0]).await;
            holder.expect(&acks("unsubscribed", &items[0])).await;
            holds(&sim, &[]).await;
        }
    }
    // The first contract waits, the second is served already.
    let mut back = client(proxy.addr(), "two").await;
    let params = format!("T.*,{},{}", items[0], items[1]);
    back.send_raw(&coming_back(&params, &from)).await;
    let (mut events, mut statuses) = (Vec::new(), Vec::new());
    while events.last() != Some(&trade(1)) || !statuses.iter().any(|s: &String| s.contains("waits"))
    {
        let object = back.next_object().await;
        match object.contains(r#""ev":"status""#) {
            true => statuses.push(object),
            false => events.push(object),
        }
    }
    assert_eq!(events, [trade(0), quote(1, 1), trade(1)], "{statuses:?}");
    // A client counts the events of all its items, also of those that wait now.
    let mut counting = client(proxy.addr(), "two").await;
    counting.send_raw(&coming_back(&params, &format!("{from}-3"))).await;
    let (events, _) = read_until(&mut counting, &trade(1)).await;
    assert_eq!(events, [trade(1)]);
    drop(counting);
    // It begins with its acknowledgement.
    holder.command("unsubscribe", &items[1]).await;
    holder.expect(&acks("unsubscribed", &items[1])).await;
    back.command("unsubscribe", &items[1]).await;
    let granted = format!("subscribed to: {}", items[0]);
    while !back.next_object().await.contains(&granted) {}
    sim.handle.publish(&[quote(0, 9)]);
    back.expect_objects(&[quote(0, 9)]).await;
}
