//! Dozens of clients that change their subscriptions all the time, each checked against an
//! independent model. Each must receive exactly the events of its channels, in order, byte for
//! byte.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use polygon_sim::{Generator, SimConfig, generate::sample_kinds};
use serde_json::Value;
use tests::{
    oracle::{Oracle, Step},
    stack::{CLIENT_KEY, Stack, StackConfig},
    wait::{SOON, within},
    ws_client::{Received, TestClient, acks, objects},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{events::end_of, seed};

/// A run of the churn.
struct Churn {
    market: &'static str,
    clients: usize,
    frames: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stocks() {
    run(Churn { market: "stocks", clients: 36, frames: 500 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crypto() {
    run(Churn { market: "crypto", clients: 16, frames: 200 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forex() {
    run(Churn { market: "forex", clients: 16, frames: 200 }).await;
}

async fn run(churn: Churn) {
    let seed = seed::of_this_run();
    // Printed when the test fails.
    println!("TEST_SEED={seed}");
    let market = churn.market;
    let stack = Stack::with(StackConfig {
        sim: SimConfig { market: market.to_owned(), record: true, ..SimConfig::default() },
        filtered: 2,
        // The clients also choose types that `*` leaves out by default.
        firehose_env: vec![("UPSTREAM_CHANNELS", sample_kinds(market).join(","))],
        ..StackConfig::default()
    })
    .await;
    let mut rng = Rng::with_seed(seed);
    let generator = Generator::new(market, 40, seed).expect("a generator");
    let words = Arc::new(Vocabulary::new(market, &generator));
    let (end_channel, end_event) = end_of(market);

    let sent = Arc::new(AtomicUsize::new(0));
    let finish = CancellationToken::new();
    let (settled, mut all_settled) = mpsc::channel(churn.clients);
    let mut clients = JoinSet::new();
    for n in 0..churn.clients {
        let client = Client {
            addr: stack.filtered[n % 2].addr(),
            rng: rng.fork(),
            words: Arc::clone(&words),
            sent: Arc::clone(&sent),
            end: (end_channel.clone(), end_event.clone()),
            finish: finish.clone(),
            settled: settled.clone(),
        };
        clients.spawn(async move { (n, client.live().await) });
    }
    let mut visitors = JoinSet::new();
    for n in 0..2 {
        let (addr, rng) = (stack.filtered[n % 2].addr(), rng.fork());
        visitors.spawn(come_and_go(addr, rng, Arc::clone(&words), finish.clone()));
    }

    let mut market_feed = Feed { generator, rng, seen: HashSet::new(), kind: market };
    for _ in 0..churn.frames {
        let events = market_feed.frame();
        sent.fetch_add(events.len(), SeqCst);
        stack.sim.handle.publish_raw(&format!("[{}]", events.join(",")));
        tokio::time::sleep(Duration::from_millis(market_feed.rng.u64(0..8))).await;
    }
    finish.cancel();
    for _ in 0..churn.clients {
        within(SOON, "every client settles", all_settled.recv())
            .await
            .expect("a client ended early");
    }
    sent.fetch_add(1, SeqCst);
    stack.sim.handle.publish_raw(&format!("[{end_event}]"));

    let mut logs = Vec::new();
    while let Some(ended) = within(SOON, "every client ends", clients.join_next()).await {
        logs.push(ended.unwrap_or_else(|error| panic!("a client failed: {error}")));
    }
    while let Some(ended) = visitors.join_next().await {
        ended.expect("a visitor");
    }
    check_clients(market, &stack, &logs, sent.load(SeqCst));
}

fn check_clients(market: &str, stack: &Stack, logs: &[(usize, Vec<Step>)], sent: usize) {
    let events: Vec<_> = stack.sim.handle.sent().iter().flat_map(|frame| objects(frame)).collect();
    assert_eq!(events.len(), sent, "the simulator sent what was published");
    let oracle = Oracle::new(market, &events);
    let (mut received, mut changes) = (0, 0);
    for (n, steps) in logs {
        if let Err(wrong) = oracle.check(steps) {
            panic!("client {n}: {wrong}");
        }
        let of_events = steps.iter().filter(|step| matches!(step, Step::Event(_))).count();
        received += of_events;
        changes += steps.len() - of_events;
    }
    println!("{market}: {sent} events, {received} deliveries and {changes} changes checked");
    assert!(sent > 1_000 && received > sent && changes > 10 * logs.len(), "too little happened");
}

/// The channels to choose from.
struct Vocabulary {
    market: &'static str,
    kinds: Vec<&'static str>,
    symbols: Vec<String>,
}

impl Vocabulary {
    fn new(market: &'static str, generator: &Generator) -> Self {
        let symbols = generator.symbols().take(25).map(str::to_owned).collect();
        Self { market, kinds: sample_kinds(market).to_vec(), symbols }
    }

    async fn log_in(&self, addr: SocketAddr) -> TestClient {
        let mut client = TestClient::connect_to(addr, &format!("/{}", self.market)).await;
        client.log_in(CLIENT_KEY).await;
        client
    }

    fn channel(&self, rng: &mut Rng) -> String {
        let kind = rng.choice(&self.kinds).expect("there are kinds");
        match rng.u8(..100) {
            0..2 => "*".to_owned(),
            2..12 => format!("{kind}.*"),
            12..17 => format!("{kind}.NOSUCH"),
            17..35 => {
                let mut prefix = self.symbol(rng);
                prefix.truncate(rng.usize(1..=prefix.len()));
                format!("{kind}.{prefix}*")
            }
            _ => format!("{kind}.{}", self.symbol(rng)),
        }
    }

    /// A symbol in one of its spellings, mostly one of the most active.
    fn symbol(&self, rng: &mut Rng) -> String {
        let most = 1 + rng.usize(..self.symbols.len());
        let symbol = &self.symbols[rng.usize(..most)];
        let prefix = match (self.market, rng.u8(..4)) {
            ("forex", 0) => "C:",
            ("crypto", 0) => "X:",
            _ => "",
        };
        let separator = *rng.choice(&["-", "/", ""]).expect("not empty");
        match self.market {
            "forex" | "crypto" => prefix.to_owned() + &symbol.replace(['-', '/'], separator),
            _ => symbol.clone(),
        }
    }

    fn channels(&self, rng: &mut Rng, most: usize) -> Vec<String> {
        (0..rng.usize(1..=most)).map(|_| self.channel(rng)).collect()
    }
}

/// Frames of generated events, none repeated. Some have shapes that the market does not use today.
struct Feed {
    generator: Generator,
    rng: Rng,
    seen: HashSet<String>,
    kind: &'static str,
}

impl Feed {
    fn frame(&mut self) -> Vec<String> {
        let most = if self.rng.u8(..50) == 0 { 400 } else { 40 };
        let count = self.rng.usize(1..=most);
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            let event = self.event();
            if self.seen.insert(event.clone()) {
                events.push(event);
            }
        }
        events
    }

    fn event(&mut self) -> String {
        let mut event = String::new();
        self.generator.next(1_790_604_301_417_000_000 + self.seen.len() as u64, &mut event);
        match self.rng.u8(..20) {
            // With the keys in another order, `ev` too.
            0 => {
                let value: Value = serde_json::from_str(&event).expect("a generated event");
                value.to_string()
            }
            1 => event.replacen(',', " ,\n ", 3).replacen(':', " : ", 2),
            2 => {
                let n = self.seen.len();
                format!(r#"{{"ev":"NEW{}","sym":"{}","n":{n}}}"#, n % 3, self.kind)
            }
            _ => event,
        }
    }
}

/// One client and what it needs.
struct Client {
    addr: SocketAddr,
    rng: Rng,
    words: Arc<Vocabulary>,
    /// How many events have been given to the simulator.
    sent: Arc<AtomicUsize>,
    /// The channel and the bytes of the very last event.
    end: (String, String),
    finish: CancellationToken,
    /// Sends once the last subscription is acknowledged.
    settled: mpsc::Sender<()>,
}

/// A command on its way: its acknowledgement, and the change that it makes.
struct PendingCommand {
    ack: String,
    added: Vec<String>,
    removed: Vec<String>,
}

impl Client {
    /// Runs until the last event and returns all that it saw.
    async fn live(mut self) -> Vec<Step> {
        let pause = Duration::from_millis(self.rng.u64(..500));
        tokio::time::sleep(pause).await;
        let mut socket = self.words.log_in(self.addr).await;
        let mut steps = Vec::new();
        let mut pending: VecDeque<PendingCommand> = VecDeque::new();
        let mut held = BTreeSet::new();
        let mut finishing = false;
        let mut settled = false;
        let mut next_change = Instant::now();
        loop {
            tokio::select! {
                received = socket.next(SOON) => {
                    let Received::Text(text) = received else { panic!("{received:?} in the middle") };
                    let objects = objects(&text);
                    if objects.iter().all(|object| !object.starts_with(r#"{"ev":"status""#)) {
                        let is_over = objects.last() == Some(&self.end.1);
                        steps.extend(objects.into_iter().map(Step::Event));
                        if is_over {
                            return steps;
                        }
                    } else {
                        let change = pending.pop_front().expect("an acknowledgement of nothing");
                        assert_eq!(text, change.ack);
                        let sent_before = self.sent.load(SeqCst);
                        let PendingCommand { added, removed, .. } = change;
                        steps.push(Step::Changed { added, removed, sent_before });
                    }
                }
                () = sleep_until(next_change), if !finishing => {
                    for _ in 0..*self.rng.choice(&[1, 1, 1, 3]).expect("not empty") {
                        let change = self.change(&mut held);
                        Self::send(&mut socket, &change).await;
                        pending.push_back(change);
                    }
                    next_change = Instant::now() + Duration::from_millis(self.rng.u64(2..80));
                }
                () = self.finish.cancelled(), if !finishing => {
                    finishing = true;
                    let change = PendingCommand {
                        ack: acks("subscribed", &self.end.0),
                        added: vec![self.end.0.clone()],
                        removed: Vec::new(),
                    };
                    Self::send(&mut socket, &change).await;
                    pending.push_back(change);
                }
            }
            if finishing && pending.is_empty() && !settled {
                settled = true;
                self.settled.send(()).await.expect("the test waits for it");
            }
        }
    }

    fn change(&mut self, held: &mut BTreeSet<String>) -> PendingCommand {
        let rng = &mut self.rng;
        let is_full = held.len() > 12;
        if !held.is_empty() && (is_full || rng.u8(..5) < 2) {
            let mut removed: Vec<String> = match rng.u8(..8) {
                0 => held.iter().cloned().collect(),
                1 => self.words.channels(rng, 3),
                _ => {
                    let count = rng.usize(1..=held.len().min(4));
                    rng.choose_multiple(held.iter().cloned(), count)
                }
            };
            rng.shuffle(&mut removed);
            removed.iter().for_each(|item| {
                held.remove(item);
            });
            let ack = acks("unsubscribed", &removed.join(","));
            PendingCommand { ack, added: Vec::new(), removed }
        } else {
            let added = self.words.channels(rng, 5);
            held.extend(added.iter().cloned());
            let ack = acks("subscribed", &added.join(","));
            PendingCommand { ack, added, removed: Vec::new() }
        }
    }

    async fn send(socket: &mut TestClient, change: &PendingCommand) {
        if change.removed.is_empty() {
            socket.command("subscribe", &change.added.join(", ")).await;
        } else {
            socket.command("unsubscribe", &change.removed.join(",")).await;
        }
    }
}

/// Connects, subscribes and drops the connection, again and again. Other clients must not be
/// affected.
async fn come_and_go(
    addr: SocketAddr,
    mut rng: Rng,
    words: Arc<Vocabulary>,
    finish: CancellationToken,
) {
    while !finish.is_cancelled() {
        let mut socket = words.log_in(addr).await;
        let items = words.channels(&mut rng, 20).join(",");
        socket.command("subscribe", &items).await;
        socket.next_text().await;
        tokio::time::sleep(Duration::from_millis(rng.u64(..30))).await;
    }
}
