//! What filtered proxies that read NATS want: each publishes it every few seconds. Here each is a
//! holder of channels like a session, until nothing is heard of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::{Client, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use proxy_common::{
    nats::{ANSWERED, Names, NatsConfig, SteadyConnection},
    protocol::{Channel, Market, OnBehalfOf, Status, status_frames},
};
use serde::Deserialize;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tracing::{Instrument, Span, debug, info};

use crate::subscriber::{HeldContract, Shared};

/// A proxy counts as gone when nothing was heard of it for this long.
const FORGOTTEN: Duration = Duration::from_secs(15);
/// How often to look for answers of the vendor, and for proxies that are gone.
const LOOKING: Duration = Duration::from_millis(100);
/// How long the client may take to accept an answer.
const SENDING: Duration = Duration::from_secs(2);
/// The most proxies of a market. Others are not heard.
const MAX_PROXIES: usize = 1_024;
/// The most contracts of one proxy, counted for each key. Others are not asked for.
const MAX_CONTRACTS: usize = 50_000;
/// The most parts of what one proxy wants.
const MAX_PARTS: usize = 64;

/// Listens to the proxies of a market. Ends with this value.
pub(crate) struct DemandListener {
    _task: JoinSet<()>,
}

impl DemandListener {
    /// Begins to listen.
    pub(crate) fn start(config: NatsConfig, market: Market, shared: Shared) -> Self {
        let mut task = JoinSet::new();
        task.spawn(listen(config, market, shared).instrument(Span::current()));
        Self { _task: task }
    }
}

async fn listen(config: NatsConfig, market: Market, shared: Shared) {
    let names = config.names(market);
    let name = format!("firehose-proxy, demand for {market}");
    let connection = SteadyConnection::start(config.clone(), name);
    let client = connection.connected().await;
    // The client ends only with the connection.
    let Ok(messages) = client.subscribe(names.demand("*")).await else { return };
    info!(servers = config.shown(), "listening to what proxies want");
    Proxies { client, names, shared, known: BTreeMap::new() }.run(messages).await;
}

/// The proxies that were heard of.
struct Proxies {
    client: Client,
    names: Names,
    shared: Shared,
    known: BTreeMap<String, Proxy>,
}

/// What one proxy wants.
struct Proxy {
    session: u64,
    heard: Instant,
    version: u64,
    all: bool,
    /// How many clients of which key hold each contract.
    clients: BTreeMap<(Arc<str>, Channel), u32>,
    held: BTreeMap<Channel, HeldContract>,
    /// Parts of what it wants that are here while others are missing.
    parts: Vec<Option<Demand>>,
}

/// One message of a proxy.
#[derive(Debug, Deserialize)]
struct Demand {
    #[serde(default)]
    n: u64,
    all: bool,
    #[serde(default = "one")]
    part: usize,
    #[serde(default = "one")]
    of: usize,
    #[serde(default)]
    contracts: Vec<Claim>,
}

#[derive(Debug, Deserialize)]
struct Claim {
    r#for: String,
    #[serde(default = "one_client")]
    clients: u32,
    items: Vec<String>,
}

fn one() -> usize {
    1
}

fn one_client() -> u32 {
    1
}

impl Proxies {
    async fn run(mut self, mut messages: Subscriber) {
        let mut looking = interval(LOOKING);
        looking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut standings = self.shared.demand.contracts_version();
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => self.on_message(message).await,
                    // The client ends only with this task.
                    None => return std::future::pending().await,
                },
                _ = looking.tick() => {
                    let changed = standings.has_changed().unwrap_or(false);
                    standings.borrow_and_update();
                    self.look(changed).await;
                }
            }
        }
    }

    async fn on_message(&mut self, message: Message) {
        let Some(id) = message.subject.as_str().rsplit('.').next().map(str::to_owned) else {
            return;
        };
        let Ok(demand) = serde_json::from_slice::<Demand>(&message.payload) else {
            debug!(id, "a demand that cannot be read");
            return;
        };
        if !self.known.contains_key(&id) {
            if self.known.len() >= MAX_PROXIES {
                return;
            }
            let session = self.shared.next_session.fetch_add(1, Ordering::Relaxed);
            self.known.insert(id.clone(), Proxy::new(session));
            info!(id, proxies = self.known.len(), "a proxy wants the feed out of NATS");
        }
        let Some(proxy) = self.known.get_mut(&id) else { return };
        proxy.heard = Instant::now();
        let Some(whole) = proxy.collect(demand) else { return };
        proxy.apply(whole, &self.shared, self.names.market());
        proxy.held.values_mut().for_each(HeldContract::forget_answer);
        let statuses = proxy.changed_answers(&self.shared);
        let version = proxy.version;
        if !proxy.all && proxy.held.is_empty() {
            // It leaves.
            self.known.remove(&id);
        }
        self.answer(&id, version, &statuses).await;
    }

    /// Sends answers that have changed, and forgets proxies that are gone.
    async fn look(&mut self, standings_changed: bool) {
        let now = Instant::now();
        let shared = &self.shared;
        self.known.retain(|id, proxy| {
            let gone = now - proxy.heard >= FORGOTTEN;
            if gone {
                info!(id, "a proxy is gone");
                proxy.leave(shared, self.names.market());
            }
            !gone
        });
        let mut answers = Vec::new();
        for (id, proxy) in &mut self.known {
            if standings_changed || proxy.held.values().any(HeldContract::waits) {
                let statuses = proxy.changed_answers(shared);
                if !statuses.is_empty() {
                    answers.push((id.clone(), proxy.version, statuses));
                }
            }
        }
        for (id, version, statuses) in answers {
            self.answer(&id, version, &statuses).await;
        }
    }

    async fn answer(&self, id: &str, version: u64, statuses: &[Status]) {
        let frames = status_frames(statuses).into_iter().map(|frame| frame.bytes().clone());
        let mut payloads: Vec<Bytes> = frames.collect();
        if payloads.is_empty() {
            payloads.push(Bytes::new());
        }
        for payload in payloads {
            let mut headers = HeaderMap::new();
            headers.insert(ANSWERED, version.to_string());
            let sending =
                self.client.publish_with_headers(self.names.answers(id), headers, payload);
            // What is lost comes again with the proxy's next message.
            if timeout(SENDING, sending).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        for proxy in self.known.values_mut() {
            proxy.leave(&self.shared, self.names.market());
        }
    }
}

impl Proxy {
    fn new(session: u64) -> Self {
        Self {
            session,
            heard: Instant::now(),
            version: 0,
            all: false,
            clients: BTreeMap::new(),
            held: BTreeMap::new(),
            parts: Vec::new(),
        }
    }

    /// Takes a part. Returns the whole once it is there.
    fn collect(&mut self, demand: Demand) -> Option<Vec<Demand>> {
        let (part, of) = (demand.part, demand.of);
        if of > MAX_PARTS || !(1..=of).contains(&part) {
            return None;
        }
        let other = |known: &Demand| known.n != demand.n;
        if self.parts.len() != of || self.parts.iter().flatten().any(other) {
            self.parts = std::iter::repeat_with(|| None).take(of).collect();
        }
        self.parts[part - 1] = Some(demand);
        if self.parts.iter().any(Option::is_none) {
            return None;
        }
        Some(std::mem::take(&mut self.parts).into_iter().flatten().collect())
    }

    /// Changes what it holds to this.
    fn apply(&mut self, demand: Vec<Demand>, shared: &Shared, market: Market) {
        let now = Instant::now();
        let all = demand.iter().any(|part| part.all);
        self.version = demand.first().map_or(0, |part| part.n);
        match (self.all, all) {
            (false, true) => shared.demand.add([&Channel::All]),
            (true, false) => shared.demand.remove([&Channel::All], now),
            (true, true) | (false, false) => {}
        }
        self.all = all;
        let mut wanted = BTreeMap::new();
        for claim in demand.into_iter().flat_map(|part| part.contracts) {
            let key: Arc<str> = claim.r#for.into();
            for item in &claim.items {
                if let Ok(contract) = Channel::parse(item, market)
                    && shared.demand.is_on_demand(&contract)
                    && wanted.len() < MAX_CONTRACTS
                {
                    wanted.insert((Arc::clone(&key), contract), claim.clients.max(1));
                }
            }
        }
        let mut left = BTreeMap::<Arc<str>, Vec<Channel>>::new();
        for (key, contract) in self.clients.keys().filter(|claim| !wanted.contains_key(claim)) {
            left.entry(Arc::clone(key)).or_default().push(contract.clone());
        }
        for (key, contracts) in left {
            shared.demand.remove_contracts(self.session, &key, &contracts, now);
        }
        let mut asked = BTreeMap::<(Arc<str>, u32), BTreeSet<Channel>>::new();
        for ((key, contract), clients) in &wanted {
            if self.clients.get(&(Arc::clone(key), contract.clone())) != Some(clients) {
                asked.entry((Arc::clone(key), *clients)).or_default().insert(contract.clone());
            }
        }
        for ((key, clients), contracts) in asked {
            let clients = OnBehalfOf { key, clients };
            shared.demand.add_contracts(self.session, &clients, &contracts, now);
        }
        let contracts: BTreeSet<&Channel> = wanted.keys().map(|(_, contract)| contract).collect();
        self.held.retain(|contract, _| contracts.contains(contract));
        for contract in contracts {
            if !self.held.contains_key(contract) {
                self.held.insert(contract.clone(), HeldContract::default());
            }
        }
        self.clients = wanted;
    }

    fn leave(&mut self, shared: &Shared, market: Market) {
        let nothing = Demand { n: 0, all: false, part: 1, of: 1, contracts: Vec::new() };
        self.apply(vec![nothing], shared, market);
    }

    /// The answers that differ from the last ones. They have no order with the data.
    fn changed_answers(&mut self, shared: &Shared) -> Vec<Status> {
        let held = &mut self.held;
        shared.demand.contracts(|contracts| {
            let changed = held.iter_mut().filter_map(|(contract, held)| {
                held.changed_answer(contract, &contracts.view(contract)?, u64::MAX)
            });
            changed.collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(n: u64, part: usize, of: usize) -> Demand {
        let text = format!(
            r#"{{"n":{n},"all":true,"part":{part},"of":{of},
                "contracts":[{{"for":"desk","clients":2,"items":["Q.O:{part}"]}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_demand_counts_once_all_its_parts_are_there() {
        let mut proxy = Proxy::new(1);
        assert!(proxy.collect(part(1, 2, 2)).is_none());
        assert!(proxy.collect(part(2, 1, 2)).is_none(), "a part of another version");
        let whole = proxy.collect(part(2, 2, 2)).unwrap();
        assert_eq!(
            whole.iter().map(|part| (part.n, part.part)).collect::<Vec<_>>(),
            [(2, 1), (2, 2)]
        );
        assert!(proxy.collect(part(3, 1, 1)).is_some());
        assert!(proxy.collect(part(4, 3, 2)).is_none());
        assert!(proxy.collect(part(4, 1, MAX_PARTS + 1)).is_none());
    }
}
