//! Crowds of clients that change their subscriptions all the time, through outages too, and what
//! each of them saw. Each is checked against the independent model.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use polygon_sim::{Generator, SimHandle, generate::sample_kinds};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    oracle::{Oracle, Step, end_of},
    wait::{SOON, eventually, within},
    ws_client::{Received, TestClient, acks, objects},
};

/// The symbols of a market's events, and how many of them clients ask for. Those served by contract
/// are asked for all, so that clients want more of them than there is room for.
const SYMBOLS: usize = 40;
const POPULAR: usize = 25;
/// The clients of a crowd at most.
const MOST_CLIENTS: usize = 100;
/// How long a client may wait for answers and for the ends of outages, once it asks for no more.
/// Less than the crowd waits for its clients, so that the client says what it lacks.
const SETTLING: Duration = Duration::from_secs(SOON.as_secs() * 3 / 4);

/// The kinds that the vendor serves by contract only, in this market.
fn by_contract(market: &str) -> &'static [&'static str] {
    match market {
        "options" => &["Q", "FMV"],
        _ => &[],
    }
}

/// The clients of one market, and all that happens in it.
#[derive(Debug)]
pub struct Crowd {
    sim: SimHandle,
    words: Arc<Vocabulary>,
    feed: Feed,
    rng: Rng,
    /// All events published.
    events: Vec<String>,
    /// How many of them have been given to the simulator.
    sent: Arc<AtomicUsize>,
    finish: CancellationToken,
    /// Gets the contracts that a client holds in the end, once everything that it asked for is
    /// acknowledged and no outage lasts.
    settled: (mpsc::Sender<BTreeSet<String>>, mpsc::Receiver<BTreeSet<String>>),
    clients: JoinSet<(usize, Seen)>,
    told: Vec<Arc<Mutex<Told>>>,
    visitors: JoinSet<()>,
}

/// How much a crowd saw. All of it was right.
#[derive(Debug, Default)]
pub struct Summary {
    /// All events published, in order.
    pub events: Vec<String>,
    /// Events that clients received.
    pub received: usize,
    /// Those of contracts among them.
    pub of_contracts: usize,
    /// Changes of subscriptions.
    pub changes: usize,
    /// How often a client was granted a contract.
    pub grants: usize,
    /// How often a client's contract lost its room.
    pub losses: usize,
    /// The contracts that each client was granted in the end, and those that it held.
    pub contracts: Vec<[BTreeSet<String>; 2]>,
}

impl Crowd {
    /// A crowd of this market, without any client yet. Clients and events use these symbols of
    /// other markets beside the market's own.
    ///
    /// # Panics
    ///
    /// If there is no such market.
    #[must_use]
    pub fn new(sim: &SimHandle, seed: u64, foreign: &[&str]) -> Self {
        let market = sim.market().name();
        let generator = Generator::new(market, SYMBOLS, seed).expect("a generator");
        let mut rng = Rng::with_seed(seed);
        let words = Vocabulary::new(market, &generator, foreign);
        let feed = Feed {
            generator,
            rng: rng.fork(),
            seen: HashSet::new(),
            market,
            foreign: foreign.iter().map(|symbol| (*symbol).to_owned()).collect(),
        };
        Self {
            sim: sim.clone(),
            words: Arc::new(words),
            feed,
            rng,
            events: Vec::new(),
            sent: Arc::default(),
            finish: CancellationToken::new(),
            settled: mpsc::channel(MOST_CLIENTS),
            clients: JoinSet::new(),
            told: Vec::new(),
            visitors: JoinSet::new(),
        }
    }

    /// The market's name.
    #[must_use]
    pub fn market(&self) -> &'static str {
        self.words.market
    }

    /// The market's handle.
    #[must_use]
    pub fn sim(&self) -> &SimHandle {
        &self.sim
    }

    /// Lets a client come. If it is `anchored`, it holds a channel all the time, so that it gets
    /// the notices of each outage.
    pub fn join(&mut self, addr: SocketAddr, key: &'static str, anchored: bool) {
        let n = self.told.len();
        let told = Arc::new(Mutex::new(Told { anchored, ..Told::default() }));
        self.told.push(Arc::clone(&told));
        let client = Client {
            addr,
            key,
            rng: self.rng.fork(),
            words: Arc::clone(&self.words),
            sent: Arc::clone(&self.sent),
            end: end_of(self.market()),
            finish: self.finish.clone(),
            settled: self.settled.0.clone(),
            held: BTreeSet::new(),
            pending: VecDeque::new(),
            unanswered: BTreeSet::new(),
            seen: Seen { told, ..Seen::default() },
        };
        self.clients.spawn(async move { (n, client.live().await) });
    }

    /// Lets a client connect, subscribe and drop the connection, again and again. Other clients
    /// must not be affected.
    pub fn visit(&mut self, addr: SocketAddr, key: &'static str) {
        let (words, finish) = (Arc::clone(&self.words), self.finish.clone());
        self.visitors.spawn(come_and_go(addr, key, self.rng.fork(), words, finish));
    }

    /// What each client has been told of outages, in the order in which they joined.
    #[must_use]
    pub fn told(&self) -> Vec<Told> {
        self.told.iter().map(|told| lock(told).clone()).collect()
    }

    /// Publishes a frame of events.
    ///
    /// # Panics
    ///
    /// If a client has ended.
    pub fn publish(&mut self) {
        if let Some(ended) = self.clients.try_join_next() {
            panic!("a client of {} ended early: {:?}", self.market(), ended.err());
        }
        let events = self.feed.frame();
        self.send(events);
    }

    fn send(&mut self, events: Vec<String>) {
        self.sent.fetch_add(events.len(), SeqCst);
        // Contracts come only as far as they are asked for. Elsewhere everything comes, also kinds
        // that the market lacks.
        if self.words.by_contract.is_empty() {
            self.sim.publish_raw(&format!("[{}]", events.join(",")));
        } else {
            self.sim.publish(&events);
        }
        self.events.extend(events);
    }

    /// Lets the clients make no more changes, and waits until all that they asked for is
    /// acknowledged and no outage lasts. Returns the contracts that they hold.
    ///
    /// # Panics
    ///
    /// If that takes too long.
    pub async fn settle(&mut self) -> BTreeSet<String> {
        self.finish.cancel();
        let mut wished = BTreeSet::new();
        for _ in 0..self.clients.len() {
            let wishes = within(SOON, "every client settles", self.settled.1.recv()).await;
            wished.extend(wishes.expect("the crowd itself keeps a sender"));
        }
        while let Some(ended) = within(SOON, "visitors leave", self.visitors.join_next()).await {
            ended.expect("a visitor");
        }
        wished
    }

    /// Settles and ends. Before the last event the vendor has to serve this many of the contracts
    /// that clients hold, or all if there are fewer, and each client has to be granted exactly
    /// these.
    ///
    /// # Panics
    ///
    /// As [`settle`](Self::settle) and [`end`](Self::end).
    pub async fn end_with_contracts(mut self, room: usize) -> Summary {
        let wished = self.settle().await;
        let served = self.served(room, &wished).await;
        let summary = self.end().await;
        for [granted, wishes] in &summary.contracts {
            let expected: BTreeSet<_> = served.intersection(wishes).cloned().collect();
            assert_eq!(*granted, expected, "what a client holds in the end");
        }
        summary
    }

    async fn served(&self, room: usize, wished: &BTreeSet<String>) -> BTreeSet<String> {
        let mut served = BTreeSet::new();
        eventually(SOON, "the room is full of contracts that clients hold", async || {
            let now = contracts(&self.words, &self.sim.subscriptions());
            let before = std::mem::replace(&mut served, now);
            let is_full = served.len() == room.min(wished.len());
            served == before && served.is_subset(wished) && is_full
        })
        .await;
        served
    }

    /// Publishes the last event, waits until every client has it, and checks all that each of them
    /// saw.
    ///
    /// # Panics
    ///
    /// If something was wrong, or if the last event does not come.
    pub async fn end(mut self) -> Summary {
        let (market, (_, end)) = (self.market(), end_of(self.market()));
        self.send(vec![end]);
        let oracle = Oracle::new(market, &self.events).with_contracts(self.words.by_contract);
        let by_contract = self.words.by_contract.iter().map(|kind| format!(r#""{kind}""#));
        let by_contract: Vec<_> = by_contract.collect();
        let of_contract = |event: &str| by_contract.iter().any(|kind| event.contains(kind));
        let mut summary = Summary { events: self.events, ..Summary::default() };
        let mut clients = self.clients;
        while let Some(ended) = within(SOON, "every client ends", clients.join_next()).await {
            let (n, seen) = ended.unwrap_or_else(|error| panic!("a client failed: {error}"));
            if let Err(wrong) = oracle.check(&seen.steps) {
                panic!("client {n} of {market}: {wrong}");
            }
            for step in &seen.steps {
                match step {
                    Step::Event(event) => {
                        summary.received += 1;
                        summary.of_contracts += usize::from(of_contract(event));
                    }
                    Step::Changed { .. } => summary.changes += 1,
                    Step::Gap => {}
                }
            }
            summary.grants += seen.grants;
            summary.losses += seen.losses;
            summary.contracts.push([seen.granted, seen.wishes]);
        }
        println!("{market}: {summary}");
        summary
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { events, received, of_contracts, changes, grants, losses, .. } = self;
        let events = events.len();
        write!(
            f,
            "{events} events, {received} deliveries ({of_contracts} of contracts) and {changes} \
             changes checked, {grants} grants, {losses} losses"
        )
    }
}

/// The channels to choose from.
#[derive(Debug)]
struct Vocabulary {
    market: &'static str,
    /// Kinds that have wildcards.
    kinds: Vec<&'static str>,
    /// Kinds without.
    by_contract: &'static [&'static str],
    symbols: Vec<String>,
}

impl Vocabulary {
    fn new(market: &'static str, generator: &Generator, foreign: &[&str]) -> Self {
        let by_contract = by_contract(market);
        let kinds = sample_kinds(market).iter().copied();
        let own = if by_contract.is_empty() { POPULAR } else { SYMBOLS };
        let symbols = generator.symbols().take(own).chain(foreign.iter().copied());
        Self {
            market,
            kinds: kinds.filter(|kind| !by_contract.contains(kind)).collect(),
            by_contract,
            symbols: symbols.map(str::to_owned).collect(),
        }
    }

    async fn log_in(&self, addr: SocketAddr, key: &str) -> TestClient {
        let mut client = TestClient::connect_to(addr, &format!("/{}", self.market)).await;
        client.log_in(key).await;
        client
    }

    fn is_contract(&self, item: &str) -> bool {
        item.split_once('.').is_some_and(|(kind, _)| self.by_contract.contains(&kind))
    }

    fn channel(&self, rng: &mut Rng) -> String {
        if let Some(kind) = self.by_contract.first()
            && rng.u8(..10) < 7
        {
            return format!("{kind}.{}", self.symbol(rng));
        }
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

/// The contracts among these items.
fn contracts(words: &Vocabulary, items: &BTreeSet<String>) -> BTreeSet<String> {
    items.iter().filter(|item| words.is_contract(item)).cloned().collect()
}

/// Frames of generated events, none repeated. Some have shapes that the market does not use today.
#[derive(Debug)]
struct Feed {
    generator: Generator,
    rng: Rng,
    seen: HashSet<String>,
    market: &'static str,
    /// Symbols of other markets.
    foreign: Vec<String>,
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
        let (market, n) = (self.market, self.seen.len());
        let event = self.generated(1_790_604_301_417_000_000 + n as u64);
        match self.rng.u8(..20) {
            // With the keys in another order, `ev` too.
            0 => {
                let value: Value = serde_json::from_str(&event).expect("a generated event");
                value.to_string()
            }
            1 => event.replacen(',', " ,\n ", 3).replacen(':', " : ", 2),
            2 if by_contract(market).is_empty() => {
                format!(r#"{{"ev":"NEW{}","sym":"{market}","n":{n}}}"#, n % 3)
            }
            3 if !self.foreign.is_empty() => {
                let symbol = self.rng.choice(&self.foreign).expect("not empty");
                let kind = self.rng.choice(&["T", "Q"]).expect("not empty");
                format!(r#"{{"ev":"{kind}","sym":"{symbol}","of":"{market}","n":{n}}}"#)
            }
            _ => event,
        }
    }

    /// A generated event. Where contracts are served, nearly all of them are quotes: most of these
    /// are left out.
    fn generated(&mut self, time_ns: u64) -> String {
        loop {
            let mut event = String::new();
            let drawn = self.generator.next(time_ns, &mut event);
            let is_left_out = !by_contract(self.market).is_empty()
                && self.generator.market().kinds()[drawn.kind].ev == "Q"
                && self.rng.u8(..10) != 0;
            if !is_left_out {
                return event;
            }
        }
    }
}

/// What a client has been told of outages.
#[derive(Debug, Default, Clone)]
pub struct Told {
    /// Whether it holds a channel all the time.
    pub anchored: bool,
    /// Whether it holds that channel now.
    pub has_begun: bool,
    /// The tiers whose upstream is down, each with the last reason. Events may be missing until it
    /// is up again.
    pub down: BTreeMap<String, String>,
    /// All notices: status, tier and reason.
    pub notices: Vec<[String; 3]>,
}

impl Told {
    /// How many outages of this tier have ended.
    #[must_use]
    pub fn ends(&self, tier: &str) -> usize {
        let is_end = |notice: &&[String; 3]| notice[0] == "upstream_up" && notice[1] == tier;
        self.notices.iter().filter(is_end).count()
    }

    fn note(&mut self, notice: [String; 3]) {
        let [status, tier, reason] = notice.clone();
        match (status.as_str(), tier.as_str()) {
            ("upstream_down", _) => _ = self.down.insert(tier, reason),
            // An outage of the firehose that still lasts is reported again.
            (_, "filtered") => self.down.clear(),
            _ => _ = self.down.remove(&tier),
        }
        self.notices.push(notice);
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a client saw.
#[derive(Debug, Default)]
struct Seen {
    steps: Vec<Step>,
    told: Arc<Mutex<Told>>,
    /// The contracts that it should get now.
    granted: BTreeSet<String>,
    grants: usize,
    losses: usize,
    /// The contracts that it holds in the end.
    wishes: BTreeSet<String>,
}

impl Seen {
    fn event(&mut self, event: String) {
        self.gap_if_down();
        self.steps.push(Step::Event(event));
    }

    fn changed(&mut self, added: Vec<String>, removed: Vec<String>, sent_before: usize) {
        self.gap_if_down();
        self.steps.push(Step::Changed { added, removed, sent_before });
    }

    fn gap_if_down(&mut self) {
        if !lock(&self.told).down.is_empty() {
            self.steps.push(Step::Gap);
        }
    }

    /// A status that acknowledges no command as a whole: a notice, or an answer about a contract.
    /// Returns the contract.
    fn status(&mut self, object: &str, words: &Vocabulary, sent_before: usize) -> Option<String> {
        let status: BTreeMap<String, Value> = serde_json::from_str(object).expect("a status");
        let text = |name: &str| status.get(name).and_then(Value::as_str).unwrap_or_default();
        match (text("status"), text("message").split_once("subscribed to: ")) {
            ("upstream_down" | "upstream_up", _) => {
                let notice = ["status", "tier", "reason"].map(|name| text(name).to_owned());
                lock(&self.told).note(notice);
                self.steps.push(Step::Gap);
                None
            }
            ("gap", _) if ["subscribed_in_outage", "on_demand"].contains(&text("reason")) => {
                self.steps.push(Step::Gap);
                None
            }
            ("success", Some(("", item))) if words.is_contract(item) => {
                self.grants += usize::from(self.granted.insert(item.to_owned()));
                self.changed(vec![item.to_owned()], Vec::new(), sent_before);
                Some(item.to_owned())
            }
            ("error", _) if words.is_contract(text("contract")) => {
                assert!(text("message").contains("waits"), "{object}");
                let item = text("contract").to_owned();
                self.losses += usize::from(self.granted.remove(&item));
                self.changed(Vec::new(), vec![item.clone()], sent_before);
                Some(item)
            }
            _ => panic!("a status that nothing asked for: {object}"),
        }
    }
}

/// A command on its way: its acknowledgement, and the change that it makes.
#[derive(Debug)]
struct Pending {
    ack: String,
    added: Vec<String>,
    removed: Vec<String>,
}

/// A client and what it needs.
struct Client {
    addr: SocketAddr,
    key: &'static str,
    rng: Rng,
    words: Arc<Vocabulary>,
    sent: Arc<AtomicUsize>,
    /// The channel and the bytes of the very last event.
    end: (String, String),
    finish: CancellationToken,
    settled: mpsc::Sender<BTreeSet<String>>,
    held: BTreeSet<String>,
    pending: VecDeque<Pending>,
    /// Contracts asked for and not answered since. The answer does not come in order with those to
    /// commands, so it may come later than they do.
    unanswered: BTreeSet<String>,
    seen: Seen,
}

impl Client {
    /// Runs until the last event and returns all that it saw.
    async fn live(mut self) -> Seen {
        sleep(Duration::from_millis(self.rng.u64(..500))).await;
        let mut socket = self.words.log_in(self.addr, self.key).await;
        if lock(&self.seen.told).anchored {
            self.subscribe(&mut socket, vec![self.end.0.clone()]).await;
        }
        let (mut finishing, mut is_settled) = (false, false);
        let mut next_change = Instant::now();
        let mut settles_until = Instant::now();
        loop {
            tokio::select! {
                () = sleep_until(settles_until), if finishing && !is_settled => {
                    let down = lock(&self.seen.told).down.clone();
                    let Self { pending, unanswered, .. } = &self;
                    panic!("no end of {down:?}, or no answer for {pending:?} or {unanswered:?}");
                }
                received = socket.next(SOON) => {
                    let Received::Text(text) = received else { panic!("{received:?}") };
                    if self.read(&text) {
                        self.seen.wishes = contracts(&self.words, &self.held);
                        return self.seen;
                    }
                }
                () = sleep_until(next_change), if !finishing => {
                    for _ in 0..*self.rng.choice(&[1, 1, 1, 3]).expect("not empty") {
                        self.change(&mut socket).await;
                    }
                    next_change = Instant::now() + Duration::from_millis(self.rng.u64(2..80));
                }
                () = self.finish.cancelled(), if !finishing => {
                    finishing = true;
                    settles_until = Instant::now() + SETTLING;
                    self.subscribe(&mut socket, vec![self.end.0.clone()]).await;
                }
            }
            let is_answered = self.pending.is_empty() && self.unanswered.is_empty();
            let is_quiet = is_answered && lock(&self.seen.told).down.is_empty();
            if finishing && is_quiet && !is_settled {
                is_settled = true;
                let wishes = contracts(&self.words, &self.held);
                self.settled.send(wishes).await.expect("the test waits for it");
            }
        }
    }

    /// Takes a message. Returns whether the last event came.
    fn read(&mut self, text: &str) -> bool {
        let sent_before = self.sent.load(SeqCst);
        if self.pending.front().is_some_and(|change| change.ack == text) {
            let change = self.pending.pop_front().expect("there is one");
            for item in &change.removed {
                self.seen.granted.remove(item);
            }
            lock(&self.seen.told).has_begun |= change.added.contains(&self.end.0);
            self.seen.changed(change.added, change.removed, sent_before);
            return false;
        }
        let mut is_over = false;
        for object in objects(text) {
            if object.starts_with(r#"{"ev":"status""#) {
                let answered = self.seen.status(&object, &self.words, sent_before);
                answered.inspect(|contract| _ = self.unanswered.remove(contract));
            } else {
                is_over = object == self.end.1;
                self.seen.event(object);
            }
        }
        is_over
    }

    async fn change(&mut self, socket: &mut TestClient) {
        let rng = &mut self.rng;
        let is_full = self.held.len() > 12;
        if self.held.is_empty() || !is_full && rng.u8(..5) >= 2 {
            let added = self.words.channels(rng, 5);
            self.held.extend(added.iter().cloned());
            return self.subscribe(socket, added).await;
        }
        let mut removed: Vec<String> = match rng.u8(..8) {
            0 => self.held.iter().cloned().collect(),
            1 => self.words.channels(rng, 3),
            _ => {
                let count = rng.usize(1..=self.held.len().min(4));
                rng.choose_multiple(self.held.iter().cloned(), count)
            }
        };
        rng.shuffle(&mut removed);
        removed.iter().for_each(|item| {
            self.held.remove(item);
            self.unanswered.remove(item);
        });
        socket.command("unsubscribe", &removed.join(",")).await;
        let ack = acks("unsubscribed", &removed.join(","));
        self.pending.push_back(Pending { ack, added: Vec::new(), removed });
    }

    /// Subscribes. The answers about contracts come on their own, and not with the others.
    async fn subscribe(&mut self, socket: &mut TestClient, mut added: Vec<String>) {
        socket.command("subscribe", &added.join(", ")).await;
        added.retain(|item| {
            let is_contract = self.words.is_contract(item);
            if is_contract {
                self.unanswered.insert(item.clone());
            }
            !is_contract
        });
        if !added.is_empty() {
            let ack = acks("subscribed", &added.join(","));
            self.pending.push_back(Pending { ack, added, removed: Vec::new() });
        }
    }
}

async fn come_and_go(
    addr: SocketAddr,
    key: &'static str,
    mut rng: Rng,
    words: Arc<Vocabulary>,
    finish: CancellationToken,
) {
    while !finish.is_cancelled() {
        let mut socket = words.log_in(addr, key).await;
        let items = words.channels(&mut rng, 20).join(",");
        socket.command("subscribe", &items).await;
        socket.next_text().await;
        sleep(Duration::from_millis(rng.u64(..60))).await;
    }
}
