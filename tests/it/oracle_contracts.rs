//! Clients that ask for and give up contracts on demand all the time, more of them than the vendor
//! serves, through lost connections. Each is checked against the independent model: from the
//! `success` for a contract to the `error` for it, or to its unsubscription, a client gets exactly
//! the contract's events, in order with all others, and at no other time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use polygon_sim::{Fault, SimConfig};
use serde_json::Value;
use tests::{
    oracle::{Oracle, Step},
    stack::{Stack, StackConfig},
    wait::{SOON, eventually, within},
    ws_client::{Received, TestClient, objects},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{events::end_of, seed};

const KEYS: [&str; 3] = ["desk-a", "desk-b", "desk-c"];
const CLIENTS: usize = 15;
const FRAMES: usize = 500;
/// The contracts of the market.
const CONTRACTS: usize = 40;
/// How many quotes of them the vendor serves at a time.
const ROOM: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contracts_beyond_the_room_reach_exactly_whom_they_were_granted() {
    let seed = seed::of_this_run();
    // Printed when the test fails.
    println!("TEST_SEED={seed}");
    let stack = Stack::with(StackConfig {
        sim: SimConfig { market: "options".to_owned(), contracts: ROOM, ..SimConfig::default() },
        filtered: 2,
        firehose_env: vec![
            ("UPSTREAM_CONTRACTS", ROOM.to_string()),
            ("UPSTREAM_LINGER", "1ms".to_owned()),
        ],
        filtered_env: vec![("CLIENT_API_KEYS", KEYS.join(","))],
    })
    .await;
    let mut rng = Rng::with_seed(seed);
    let (sent, finish) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let (settled, mut all_settled) = mpsc::channel(CLIENTS);
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        let client = Client {
            addr: stack.filtered[n % 2].addr(),
            key: KEYS[n % KEYS.len()],
            rng: rng.fork(),
            sent: Arc::clone(&sent),
            finish: finish.clone(),
            settled: settled.clone(),
            seen: Seen::default(),
        };
        clients.spawn(async move { (n, client.live().await) });
    }

    let mut events = Vec::new();
    for frame in 0..FRAMES {
        match frame {
            150 => stack.sim.handle.inject(Fault::Abort),
            300 => {
                stack.sim.handle.inject(Fault::Contracts { most: Some(ROOM - 4) });
                stack.sim.handle.inject(Fault::Abort);
            }
            _ => {}
        }
        let count = rng.usize(1..30);
        let of_frame: Vec<_> = (0..count).map(|n| event(&mut rng, events.len() + n)).collect();
        sent.fetch_add(count, SeqCst);
        events.extend(of_frame.iter().cloned());
        stack.sim.handle.publish(&of_frame);
        tokio::time::sleep(Duration::from_millis(rng.u64(0..10))).await;
    }
    finish.cancel();
    let mut wished = BTreeSet::new();
    for _ in 0..CLIENTS {
        let wishes = within(SOON, "every client settles", all_settled.recv()).await;
        wished.extend(wishes.expect("a client ended early"));
    }
    let room = (ROOM - 4).min(wished.len());
    let mut served = BTreeSet::new();
    eventually(SOON, "the room is full of contracts that clients hold", async || {
        let now: BTreeSet<String> = stack.sim.handle.subscriptions();
        let now = now.into_iter().filter(|channel| channel.starts_with("Q.")).collect();
        let before = std::mem::replace(&mut served, now);
        served == before && served.is_subset(&wished) && served.len() == room
    })
    .await;
    let (_, end) = end_of("options");
    sent.fetch_add(1, SeqCst);
    events.push(end.clone());
    stack.sim.handle.publish(&[end]);

    let oracle = Oracle::new("options", &events);
    let (mut grants, mut losses, mut quotes) = (0, 0, 0);
    while let Some(ended) = within(SOON, "every client ends", clients.join_next()).await {
        let (n, (seen, wishes)) = ended.unwrap_or_else(|error| panic!("a client failed: {error}"));
        if let Err(wrong) = oracle.check(&seen.steps) {
            panic!("client {n}: {wrong}");
        }
        let expected: BTreeSet<_> = served.intersection(&wishes).cloned().collect();
        assert_eq!(seen.granted, expected, "what client {n} holds in the end");
        (grants, losses) = (grants + seen.grants, losses + seen.losses);
        let is_quote =
            |step: &&Step| matches!(step, Step::Event(event) if event.contains(r#""ev":"Q""#));
        quotes += seen.steps.iter().filter(is_quote).count();
    }
    println!("{} events, {quotes} quotes, {grants} grants, {losses} losses", events.len());
    assert!(quotes > 500 && grants > 100 && losses > 20, "too little happened");
}

fn contract(rng: &mut Rng) -> String {
    format!("O:{}261218C{:08}", ["SPY", "QQQ"][rng.usize(..2)], rng.usize(..CONTRACTS / 2))
}

fn event(rng: &mut Rng, n: usize) -> String {
    let kind = ["Q", "Q", "T", "A"][rng.usize(..4)];
    format!(r#"{{"ev":"{kind}","sym":"{}","q":{n}}}"#, contract(rng))
}

fn channel(rng: &mut Rng) -> String {
    match rng.u8(..20) {
        0 => "T.*".to_owned(),
        1 => "A.*".to_owned(),
        2 => "T.O:QQQ*".to_owned(),
        3 => "*".to_owned(),
        4..7 => format!("T.{}", contract(rng)),
        _ => format!("Q.{}", contract(rng)),
    }
}

struct Client {
    addr: SocketAddr,
    key: &'static str,
    rng: Rng,
    /// How many events have been given to the simulator.
    sent: Arc<AtomicUsize>,
    finish: CancellationToken,
    /// Gets the contracts held in the end, once everything is acknowledged and no outage lasts.
    settled: mpsc::Sender<BTreeSet<String>>,
    seen: Seen,
}

/// What a client saw.
#[derive(Default)]
struct Seen {
    steps: Vec<Step>,
    /// The contracts that it should get now.
    granted: BTreeSet<String>,
    grants: usize,
    losses: usize,
    /// Tiers whose upstream is down. Events may be missing until it is up again.
    down: BTreeSet<String>,
    is_last_acknowledged: bool,
}

impl Client {
    /// Runs until the last event. Returns what it saw, and the contracts held in the end.
    async fn live(mut self) -> (Seen, BTreeSet<String>) {
        let mut socket = TestClient::connect_to(self.addr, "/options").await;
        socket.log_in(self.key).await;
        let (mut held, mut next_change) = (BTreeSet::new(), Instant::now());
        let (mut finishing, mut is_settled) = (false, false);
        let (end_channel, end_event) = end_of("options");
        loop {
            tokio::select! {
                received = socket.next(SOON) => {
                    let Received::Text(text) = received else { panic!("{received:?}") };
                    let sent = self.sent.load(SeqCst);
                    for object in objects(&text) {
                        let is_over = object == end_event;
                        self.seen.see(object, sent, &end_channel);
                        if is_over {
                            return (self.seen, contracts(&held));
                        }
                    }
                }
                () = sleep_until(next_change), if !finishing => {
                    self.change(&mut socket, &mut held).await;
                    next_change = Instant::now() + Duration::from_millis(self.rng.u64(2..80));
                }
                () = self.finish.cancelled(), if !finishing => {
                    finishing = true;
                    socket.command("subscribe", &end_channel).await;
                }
            }
            let is_quiet = self.seen.is_last_acknowledged && self.seen.down.is_empty();
            if is_quiet && !std::mem::replace(&mut is_settled, is_quiet) {
                self.settled.send(contracts(&held)).await.expect("the test waits for it");
            }
        }
    }

    async fn change(&mut self, socket: &mut TestClient, held: &mut BTreeSet<String>) {
        let rng = &mut self.rng;
        let removes = !held.is_empty() && (held.len() > 10 || rng.u8(..5) < 2);
        let items = if removes {
            let count =
                if rng.u8(..10) == 0 { held.len() } else { rng.usize(1..=held.len().min(4)) };
            rng.choose_multiple(held.iter().cloned(), count)
        } else {
            (0..rng.usize(1..5)).map(|_| channel(rng)).collect()
        };
        for item in &items {
            if removes {
                held.remove(item);
            } else {
                held.insert(item.clone());
            }
        }
        let action = if removes { "unsubscribe" } else { "subscribe" };
        socket.command(action, &items.join(",")).await;
    }
}

fn contracts(held: &BTreeSet<String>) -> BTreeSet<String> {
    held.iter().filter(|item| item.starts_with("Q.")).cloned().collect()
}

/// A channel as the model has it: its `*` would include the contracts on demand. No client holds
/// these prefixes otherwise.
fn entries(item: &str) -> Vec<String> {
    match item {
        "*" => ["T.O*", "A.O*", "AM.E*"].map(str::to_owned).to_vec(),
        item => vec![item.to_owned()],
    }
}

impl Seen {
    fn see(&mut self, object: String, sent_before: usize, end_channel: &str) {
        if !object.starts_with(r#"{"ev":"status""#) {
            self.gap_if_down();
            self.steps.push(Step::Event(object));
            return;
        }
        let status: BTreeMap<String, Value> = serde_json::from_str(&object).expect("a status");
        let text = |name: &str| status.get(name).and_then(Value::as_str).unwrap_or_default();
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        match text("status") {
            "success" => match text("message").split_once(" to: ") {
                Some(("subscribed", item)) => {
                    self.is_last_acknowledged |= item == end_channel;
                    if item.starts_with("Q.") {
                        self.grants += usize::from(self.granted.insert(item.to_owned()));
                    }
                    added.extend(entries(item));
                }
                Some(("unsubscribed", item)) => {
                    self.granted.remove(item);
                    removed.extend(entries(item));
                }
                _ => panic!("{object}"),
            },
            "error" => {
                let item = text("contract");
                assert!(item.starts_with("Q.") && text("message").contains("waits"), "{object}");
                self.losses += usize::from(self.granted.remove(item));
                removed.push(item.to_owned());
            }
            "upstream_down" => {
                self.down.insert(text("tier").to_owned());
                return self.steps.push(Step::Gap);
            }
            "upstream_up" => {
                match text("tier") {
                    // An outage of the firehose that still lasts is reported again.
                    "filtered" => self.down.clear(),
                    tier => _ = self.down.remove(tier),
                }
                return self.steps.push(Step::Gap);
            }
            _ => panic!("{object}"),
        }
        self.gap_if_down();
        self.steps.push(Step::Changed { added, removed, sent_before });
    }

    fn gap_if_down(&mut self) {
        if !self.down.is_empty() {
            self.steps.push(Step::Gap);
        }
    }
}
