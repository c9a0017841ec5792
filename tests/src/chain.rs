//! A whole chain with a relay at each hop, a market of numbered events, and watchers that are
//! checked from their first event to their last.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use tokio::{
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};

use crate::{
    damage::Damage,
    ledger,
    oracle::Oracle,
    program::Program,
    relay::Relay,
    stack::{CLIENT_KEY, Sim, filtered, firehose},
    tls::{Certificate, Tunnel},
    wait::eventually,
    watcher::{Watched, Watcher},
};

/// The text with which a marker begins; its number follows. Every watcher is subscribed to the
/// channel of markers. The last marker has number 0.
const MARKER: &str = r#"{"ev":"AM","sym":"END","v":"#;
/// How long the watchers may take to get the last marker before it is sent once more.
const END_INTERVAL: Duration = Duration::from_secs(5);
/// How often a new marker is sent while a watcher has not got one.
const MARKER_INTERVAL: Duration = Duration::from_millis(200);
/// Symbols of the market.
const SYMBOLS: usize = 8;
/// Time between frames.
const FRAME_INTERVAL: Duration = Duration::from_millis(5);
/// A watcher gives up a connection that is silent for this long. Pings come every 2 s.
const SILENCE_LIMIT: Duration = Duration::from_secs(8);
/// How long links and watchers may need to come back after many faults. Their delays grow with each
/// try.
const BACK: Duration = Duration::from_secs(60);

/// The position of a relay in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// Between the vendor and the firehose.
    Vendor,
    /// Between the firehose and the filtered proxy.
    Firehose,
    /// Between the filtered proxy and its clients.
    Client,
}

impl Hop {
    /// All hops, from the market down.
    pub const ALL: [Self; 3] = [Self::Vendor, Self::Firehose, Self::Client];
}

/// Simulator, firehose and filtered proxy, with a relay at each hop. Fields are dropped from the
/// clients' end to the market's.
#[derive(Debug)]
pub struct Chain {
    relays: [Relay; 3],
    /// The tunnels that clients use where the ports speak TLS: one direct, one through the relay.
    tunnels: Option<[Tunnel; 2]>,
    /// The filtered proxy.
    pub filtered: Program,
    /// The firehose.
    pub firehose: Program,
    /// The market.
    pub sim: Sim,
}

impl Chain {
    /// A chain of the stock market, all linked up. The filtered proxy has these settings beside the
    /// usual ones.
    ///
    /// # Panics
    ///
    /// If something does not start or link up in time.
    pub async fn start(settings: &[(&'static str, &str)]) -> Self {
        Self::with(settings, None).await
    }

    /// A chain in which both ports speak TLS.
    ///
    /// # Panics
    ///
    /// If something does not start or link up in time.
    pub async fn encrypted() -> Self {
        Self::with(&[], Some(Certificate::new())).await
    }

    async fn with(settings: &[(&'static str, &str)], certificate: Option<Certificate>) -> Self {
        let tls = certificate.iter().flat_map(Certificate::settings);
        let sim = Sim::start().await;
        let vendor = Relay::start(sim.addr()).await;
        // Little enough to be full soon: a history that fills up would look like a leak.
        let launch =
            firehose(&format!("ws://{}/stocks", vendor.addr())).env("HISTORY_BYTES", 1_000_000);
        let firehose = launch.envs(tls.clone()).start().await;
        let between = Relay::start(firehose.addr()).await;
        let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let mut launch =
            filtered(between.addr()).env("PING_INTERVAL", "2s").envs(settings).envs(tls);
        if let Some(certificate) = &certificate {
            let url = format!("wss://localhost:{}", between.addr().port());
            launch = launch.env("FIREHOSE_URL", url);
            launch = launch.env("FIREHOSE_CA", certificate.file().display());
        }
        let filtered = launch.start().await;
        let clients = Relay::start(filtered.addr()).await;
        let tunnels = match certificate.map(|certificate| certificate.trust()) {
            Some(trust) => Some([
                Tunnel::start(filtered.addr(), trust.clone()).await,
                Tunnel::start(clients.addr(), trust).await,
            ]),
            None => None,
        };
        let chain = Self { relays: [vendor, between, clients], tunnels, filtered, firehose, sim };
        eventually(BACK, "the chain is linked up", async || chain.is_linked().await).await;
        chain
    }

    /// The address for clients: direct, or through the relay.
    fn entrance(&self, relayed: bool) -> SocketAddr {
        match &self.tunnels {
            Some([direct, through]) => if relayed { through } else { direct }.addr(),
            None if relayed => self.relay(Hop::Client).addr(),
            None => self.filtered.addr(),
        }
    }

    /// The relay at this hop.
    #[must_use]
    pub fn relay(&self, hop: Hop) -> &Relay {
        &self.relays[hop as usize]
    }

    /// Whether both links are up and every channel is carried.
    ///
    /// # Panics
    ///
    /// If a program does not answer.
    pub async fn is_linked(&self) -> bool {
        let held = self.sim.handle.subscriptions();
        let carried = ["T.*", "Q.*", "AM.*"].iter().all(|channel| held.contains(*channel));
        let filtered = self.filtered.health().await;
        carried
            && filtered["channels"]["carried"][0] == "*"
            && self.firehose.health_text("/upstream/state").await == "up"
    }
}

/// The market's events, each unique by its number.
#[derive(Debug)]
pub struct Day {
    events: Vec<String>,
    rng: Rng,
    sent: Arc<AtomicUsize>,
    live: Arc<AtomicUsize>,
    watchers: JoinSet<Vec<Watched>>,
    /// The last marker sent, and for each watcher the last one that it got.
    markers: usize,
    heard: Vec<Arc<AtomicUsize>>,
    padding: usize,
    damage: Option<Damage>,
}

impl Day {
    /// A day that has just begun. The seed determines its events.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            events: Vec::new(),
            rng: Rng::with_seed(seed),
            sent: Arc::default(),
            live: Arc::default(),
            watchers: JoinSet::new(),
            markers: 0,
            heard: Vec::new(),
            padding: 0,
            damage: None,
        }
    }

    /// Adds this many bytes to each frame.
    #[must_use]
    pub fn padded(self, bytes: usize) -> Self {
        Self { padding: bytes, ..self }
    }

    /// Lets the market also send messages without events, elements that are no objects, and events
    /// that are no JSON.
    #[must_use]
    pub fn damaged(mut self) -> Self {
        self.damage = Some(Damage::new(self.rng.u64(..)));
        self
    }

    /// Frames published so far that held malformed events.
    #[must_use]
    pub fn malformed_frames(&self) -> usize {
        self.damage.as_ref().map_or(0, |damage| damage.malformed_frames)
    }

    /// Connects a watcher of these channels, directly or through the clients' relay, and waits
    /// until it is subscribed.
    ///
    /// # Panics
    ///
    /// If it is not subscribed in time.
    pub async fn watch(&mut self, chain: &Chain, relayed: bool, channels: &str) {
        self.heard.push(Arc::default());
        let watcher = Watcher {
            addr: chain.entrance(relayed),
            key: CLIENT_KEY,
            channels: format!("{channels},AM.END"),
            sent: Arc::clone(&self.sent),
            marker: MARKER,
            heard: Arc::clone(self.heard.last().expect("pushed above")),
            silence_limit: SILENCE_LIMIT,
            live: Arc::clone(&self.live),
        };
        self.watchers.spawn(watcher.watch());
        let all = self.watchers.len();
        let live = || self.live.load(SeqCst);
        eventually(BACK, "a watcher is subscribed", async || live() == all).await;
    }

    /// Publishes events until the future completes.
    pub async fn publish_while<T>(
        &mut self,
        chain: &Chain,
        happening: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(happening);
        let mut frames = interval(FRAME_INTERVAL);
        loop {
            tokio::select! {
                happened = &mut happening => return happened,
                _ = frames.tick() => self.publish(chain),
            }
        }
    }

    fn publish(&mut self, chain: &Chain) {
        let first = self.events.len();
        for n in first..first + self.rng.usize(1..8) {
            let symbol = self.rng.usize(..SYMBOLS);
            self.events.push(match self.rng.bool() {
                true => format!(r#"{{"ev":"T","sym":"S{symbol}","p":231.4175,"s":12,"q":{n}}}"#),
                false => {
                    format!(r#"{{"ev":"Q","sym":"S{symbol}","bp":498.21,"ap":498.4,"q":{n}}}"#)
                }
            });
        }
        if self.padding > 0 {
            let (n, x) = (self.events.len(), "x".repeat(self.padding));
            self.events.push(format!(r#"{{"ev":"T","sym":"WIDE","q":{n},"x":"{x}"}}"#));
        }
        self.sent.store(self.events.len(), SeqCst);
        let events = &self.events[first..];
        match &mut self.damage {
            Some(damage) => damage.publish(&chain.sim.handle, events),
            None => chain.sim.handle.publish(events),
        }
    }

    /// Publishes until the chain is linked up and every watcher has got a marker sent from now on.
    ///
    /// # Panics
    ///
    /// If that takes too long.
    pub async fn recover(&mut self, chain: &Chain) {
        let linked = eventually(BACK, "links are up", async || chain.is_linked().await);
        self.publish_while(chain, linked).await;
        let first = self.markers + 1;
        let heard = self.heard.clone();
        let everyone = || heard.iter().all(|heard| heard.load(SeqCst) >= first);
        let deadline = Instant::now() + BACK;
        while !everyone() {
            assert!(Instant::now() < deadline, "watchers are not back");
            self.markers += 1;
            self.send(chain, format!("{MARKER}{}}}", self.markers));
            let pause = async {
                let next = Instant::now() + MARKER_INTERVAL;
                while Instant::now() < next && !everyone() {
                    sleep(FRAME_INTERVAL).await;
                }
            };
            self.publish_while(chain, pause).await;
        }
    }

    fn send(&mut self, chain: &Chain, marker: String) {
        self.events.push(marker.clone());
        self.sent.store(self.events.len(), SeqCst);
        chain.sim.handle.publish(&[marker]);
    }

    /// Ends the day and checks everything that each watcher saw: right, in order, and complete
    /// except for declared gaps. Returns what they saw.
    ///
    /// # Panics
    ///
    /// If something was wrong, if the last event did not come, or if a ledger does not balance.
    pub async fn end(mut self, chain: &Chain) -> Summary {
        let mut watchers = Vec::new();
        let deadline = Instant::now() + BACK;
        for n in 0.. {
            assert!(Instant::now() < deadline, "only {} watchers heard the end", watchers.len());
            // Blanks make each last marker unique, for watchers that were just coming back.
            self.send(chain, format!("{MARKER}0{}}}", " ".repeat(n)));
            while let Ok(Some(watched)) = timeout(END_INTERVAL, self.watchers.join_next()).await {
                watchers.push(watched.unwrap_or_else(|error| panic!("a watcher failed: {error}")));
            }
            if self.watchers.is_empty() {
                break;
            }
        }
        let oracle = Oracle::new("stocks", &self.events);
        for (n, one) in watchers.iter().flatten().enumerate() {
            // The last connection of each watcher ended with the end of the day, so it is complete.
            if let Err(wrong) = oracle.check_begun(&one.steps) {
                panic!("connection {n}: {wrong}; notices {:?}, end {:?}", one.notices, one.end);
            }
        }
        for (name, program) in [("firehose", &chain.firehose), ("filtered", &chain.filtered)] {
            ledger::check(name, program.plain());
        }
        Summary { events: self.events.len(), watchers }
    }
}

/// A day that passed every check.
#[derive(Debug)]
pub struct Summary {
    /// Events published.
    pub events: usize,
    /// What each watcher saw, by connection. The watchers stand in no order.
    pub watchers: Vec<Vec<Watched>>,
}

impl Summary {
    /// Events received by all watchers.
    #[must_use]
    pub fn received(&self) -> usize {
        let is_event = |step: &&crate::oracle::Step| matches!(step, crate::oracle::Step::Event(_));
        let connections = self.watchers.iter().flatten();
        connections.map(|one| one.steps.iter().filter(is_event).count()).sum()
    }

    /// Connections of all watchers.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.watchers.iter().map(Vec::len).sum()
    }
}
