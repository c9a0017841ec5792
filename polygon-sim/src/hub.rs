//! The service that all connections of a market share: who is connected, what is published, which
//! faults are on.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::{
    config::SimConfig,
    connection::{Connection, Item},
    event::{Batch, BatchEvent, Subject},
    fault::Fault,
    generate::Generator,
    journal::Journal,
    lock::lock,
    market::Market,
    stats::{Counters, SimStats},
    status,
    throttle::Throttle,
};

/// Generated events that share one reading of the clock.
const EVENTS_PER_CLOCK: usize = 64;

/// The most events in a frame made by [`Fault::HugeFrame`].
const HUGE_FRAME_EVENTS: usize = 1_000_000;

/// An array that ends too early.
const GARBAGE: &str = r#"[{"ev":"T","sym":"AAPL","p":231."#;
const BINARY: &str = r#"[{"ev":"status","status":"success","message":"subscribed to: T.NTEST.Q"}]"#;

/// The faults that last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Switches {
    refuse_auth: bool,
    plan_lacks_market: bool,
    evict_on_auth: bool,
    no_verdict: bool,
    pub(crate) no_greeting: bool,
    pub(crate) refuse_tcp: bool,
    pub(crate) refuse_upgrade: Option<u16>,
    pub(crate) refusal_header: Option<(String, String)>,
    greet_with: Option<String>,
    contracts: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) config: SimConfig,
    pub(crate) market: Market,
    pub(crate) counters: Arc<Counters>,
    pub(crate) journal: Journal,
    pub(crate) throttle: Arc<Throttle>,
    silent: watch::Sender<bool>,
    rate: AtomicU64,
    /// Positions of the kinds that the plan lacks.
    refused: Vec<usize>,
    /// The generator's symbols in their matching form.
    forms: Vec<String>,
    /// Used by the feed and by a fault, for one batch at a time. Never held across an await.
    generator: Mutex<Generator>,
    switches: Mutex<Switches>,
    /// The open connections; authenticated ones stand in the order of their `auth`. Locked before a
    /// connection's own state, never the other way round.
    connections: Mutex<Vec<Arc<Connection>>>,
}

impl Hub {
    pub(crate) fn new(market: Market, config: SimConfig) -> Result<Self> {
        let generator = Generator::new(market.name(), config.symbols, config.seed)?;
        Ok(Self {
            market,
            counters: Arc::default(),
            journal: Journal::default(),
            throttle: Arc::default(),
            silent: watch::Sender::new(false),
            rate: AtomicU64::new(config.rate.to_bits()),
            refused: config.refuse.iter().filter_map(|kind| market.kind(kind)).collect(),
            forms: generator.symbols().map(|symbol| market.matching_form(symbol)).collect(),
            generator: Mutex::new(generator),
            switches: Mutex::default(),
            connections: Mutex::default(),
            config,
        })
    }

    pub(crate) fn switches(&self) -> Switches {
        lock(&self.switches).clone()
    }

    pub(crate) fn silence(&self) -> watch::Receiver<bool> {
        self.silent.subscribe()
    }

    pub(crate) fn rate(&self) -> f64 {
        f64::from_bits(self.rate.load(Relaxed))
    }

    pub(crate) fn set_rate(&self, rate: f64) {
        self.rate.store(rate.to_bits(), Relaxed);
    }

    pub(crate) fn stats(&self) -> SimStats {
        self.counters.snapshot(lock(&self.connections).len() as u64)
    }

    pub(crate) fn subscriptions(&self) -> BTreeSet<String> {
        let mut held = BTreeSet::new();
        for connection in lock(&self.connections).iter() {
            connection.collect_channels(&mut held);
        }
        held
    }

    /// Whether any connection is subscribed to anything.
    pub(crate) fn has_audience(&self) -> bool {
        lock(&self.connections).iter().any(|connection| connection.is_subscribed())
    }

    /// Registers a connection until the guard is dropped, and greets it.
    pub(crate) fn register(self: &Arc<Self>, reset: Arc<AtomicBool>) -> Registration {
        let counters = Arc::clone(&self.counters);
        let connection =
            Arc::new(Connection::new(self.market, self.config.buffer_bytes, counters, reset));
        self.counters.connections_accepted.one();
        let switches = self.switches();
        match switches.greet_with {
            Some(text) => connection.send_text(text),
            None if switches.no_greeting => {}
            None => connection.send_status(status::CONNECTED),
        }
        lock(&self.connections).push(Arc::clone(&connection));
        Registration { hub: Arc::clone(self), connection }
    }

    /// Answers an `auth`.
    pub(crate) fn authenticate(&self, connection: &Arc<Connection>, key: &str) {
        let switches = self.switches();
        let refusal = if switches.no_verdict {
            return;
        } else if switches.plan_lacks_market {
            Some(status::PLAN_LACKS_MARKET)
        } else if switches.refuse_auth || !self.config.keys.iter().any(|known| known == key) {
            Some(status::AUTH_FAILED)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.counters.auth_failures.one();
            connection.send_last([Item::Status(status::frame(refusal)), Item::Drop]);
            return;
        }
        self.counters.auths.one();
        if switches.evict_on_auth {
            connection.admit();
            connection.evict();
        } else {
            self.admit(connection);
        }
    }

    /// Admits a new connection and evicts the oldest ones past the account's limit.
    fn admit(&self, newcomer: &Arc<Connection>) {
        let mut connections = lock(&self.connections);
        if !newcomer.admit() {
            return;
        }
        connections.retain(|connection| !Arc::ptr_eq(connection, newcomer));
        connections.push(Arc::clone(newcomer));
        let held: Vec<_> = connections.iter().filter(|one| one.is_authenticated()).collect();
        let over = held.len().saturating_sub(self.config.max_connections);
        held[..over].iter().for_each(|oldest| oldest.evict());
    }

    pub(crate) fn subscribe(&self, connection: &Connection, params: &str) {
        let contracts = self.switches().contracts.unwrap_or(self.config.contracts);
        connection.subscribe(params, &self.refused, contracts);
    }

    /// Generates events and queues them in frames of `per_frame`.
    pub(crate) fn generate(&self, count: usize, per_frame: usize, tick: Option<u64>) {
        let mut batch = Batch { text: String::with_capacity(count * 176), ..Batch::default() };
        {
            let mut generator = lock(&self.generator);
            let mut now_ns = 0;
            for n in 0..count {
                if n % EVENTS_PER_CLOCK == 0 {
                    now_ns = unix_ns();
                }
                let drawn = generator.next(now_ns, &mut batch.text);
                let end = batch.text.len();
                batch.events.push(BatchEvent { end, kind: drawn.kind, symbol: drawn.symbol });
            }
        }
        self.counters.events_generated.add(count);
        self.each(|connection| connection.offer(&batch, &self.forms, per_frame, tick));
    }

    pub(crate) fn publish(&self, events: &[String]) {
        let read = |event: &'_ String| Subject::read(self.market, event);
        let events: Vec<_> = events.iter().map(|event| (read(event), event.as_str())).collect();
        self.each(|connection| connection.publish(&events));
    }

    pub(crate) fn replay(&self, text: &str) {
        let events: Vec<&RawValue> = serde_json::from_str(text).unwrap_or_default();
        let read = |event: &&RawValue| Subject::find(self.market, event.get());
        let subjects: Vec<_> = events.iter().map(read).collect();
        let events: Vec<_> =
            subjects.into_iter().zip(events.iter().map(|event| event.get())).collect();
        let whole = Arc::<str>::from(text);
        self.each(|connection| connection.replay(&whole, &events));
    }

    pub(crate) fn waiting_bytes(&self) -> usize {
        let connections = lock(&self.connections);
        connections.iter().map(|connection| connection.waiting_bytes()).max().unwrap_or(0)
    }

    pub(crate) fn publish_raw(&self, text: &str) {
        let elements = serde_json::from_str::<Vec<serde::de::IgnoredAny>>(text);
        let (text, elements) = (Arc::<str>::from(text), elements.map_or(0, |found| found.len()));
        self.each(|connection| {
            connection.send_authenticated(Item::Raw(Arc::clone(&text), elements));
        });
    }

    fn send_binary(&self, bytes: &Bytes) {
        self.each(|connection| connection.send_authenticated(Item::Binary(bytes.clone())));
    }

    /// Calls `act` for every connection, unless the service is silent.
    fn each(&self, act: impl Fn(&Connection)) {
        if *self.silent.borrow() {
            return;
        }
        let connections = lock(&self.connections).clone();
        connections.iter().for_each(|connection| act(connection));
    }

    pub(crate) fn inject(&self, fault: Fault) {
        let switches = || lock(&self.switches);
        match fault {
            Fault::RefuseAuth { on } => switches().refuse_auth = on,
            Fault::PlanLacksMarket { on } => switches().plan_lacks_market = on,
            Fault::EvictOnAuth { on } => switches().evict_on_auth = on,
            Fault::NoGreeting { on } => switches().no_greeting = on,
            Fault::NoVerdict { on } => switches().no_verdict = on,
            Fault::RefuseTcp { on } => switches().refuse_tcp = on,
            Fault::RefuseUpgrade { status, header } => {
                let mut switches = switches();
                (switches.refuse_upgrade, switches.refusal_header) = (status, header);
            }
            Fault::Contracts { most } => switches().contracts = most,
            Fault::GreetWith { text } => switches().greet_with = text,
            Fault::Silence { on } => {
                self.silent.send_replace(on);
            }
            Fault::Slow { bytes_per_second } => self.throttle.set(bytes_per_second),
            Fault::HugeFrame { events } => {
                self.generate(events.min(HUGE_FRAME_EVENTS), usize::MAX, None);
            }
            Fault::Evict => self.each(Connection::evict),
            // An abort reaches a silent connection too.
            Fault::Abort => lock(&self.connections).iter().for_each(|one| one.abort()),
            Fault::CloseWith { code, reason } => {
                self.each(|connection| {
                    connection.send_last([Item::Close(code, reason.clone().into())]);
                });
            }
            Fault::Garbage => {
                self.each(|connection| connection.send_authenticated(Item::Garbage(GARBAGE)));
            }
            Fault::Binary => {
                self.send_binary(&Bytes::from_static(BINARY.as_bytes()));
            }
            Fault::RawText { text } => self.publish_raw(&text),
            Fault::RawBinary { bytes } => self.send_binary(&bytes.into()),
            Fault::StatusInData => self.each(Connection::put_status_in_data),
        }
    }
}

/// A connection registered in the hub. Dropping it removes the connection.
pub(crate) struct Registration {
    hub: Arc<Hub>,
    pub(crate) connection: Arc<Connection>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.hub.connections).retain(|one| !Arc::ptr_eq(one, &self.connection));
    }
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
