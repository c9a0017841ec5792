//! A whole chain with a relay at each link, a market of numbered events, and watchers whose whole
//! life is judged.

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
    ledger,
    oracle::Oracle,
    program::Program,
    relay::Relay,
    stack::{CLIENT_KEY, Sim, filtered, firehose},
    tls::{Certificate, Tunnel},
    wait::eventually,
    watcher::{Watched, Watcher},
};

/// What events begin with that mark a place, then comes a number; every watcher holds their
/// channel. The last has 0.
const MARKER: &str = r#"{"ev":"AM","sym":"END","v":"#;
/// How long everyone may take to hear the end before it is sent once more.
const END_INTERVAL: Duration = Duration::from_secs(5);
/// How often a new marker is sent while a watcher has yet to hear one.
const MARKER_INTERVAL: Duration = Duration::from_millis(200);
/// Symbols of the market.
const SYMBOLS: usize = 8;
/// Time between frames.
const FRAME_INTERVAL: Duration = Duration::from_millis(5);
/// A watcher gives a connection up on which not even pings come; those come every other second.
const SILENCE_LIMIT: Duration = Duration::from_secs(8);
/// What links and watchers may need to come back after many faults: waits between tries grow.
const BACK: Duration = Duration::from_secs(60);

/// Where a relay stands.
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
    /// All of them, from the market down.
    pub const ALL: [Self; 3] = [Self::Vendor, Self::Firehose, Self::Client];
}

/// Simulator, firehose and filtered proxy, with a relay at each link. Fields are dropped from the
/// clients' end to the market's.
#[derive(Debug)]
pub struct Chain {
    relays: [Relay; 3],
    /// What clients talk to, directly and through the relay, where the ports speak TLS.
    tunnels: Option<[Tunnel; 2]>,
    /// The filtered proxy.
    pub filtered: Program,
    /// The firehose.
    pub firehose: Program,
    /// The market.
    pub sim: Sim,
}

impl Chain {
    /// A chain of the stock market, all linked up. These settings of the filtered proxy stand
    /// beside the usual ones.
    ///
    /// # Panics
    ///
    /// Something does not start or link up before long.
    pub async fn start(settings: &[(&'static str, &str)]) -> Self {
        Self::with(settings, None).await
    }

    /// A chain whose both ports speak TLS.
    ///
    /// # Panics
    ///
    /// Something does not start or link up before long.
    pub async fn encrypted() -> Self {
        Self::with(&[], Some(Certificate::new())).await
    }

    async fn with(settings: &[(&'static str, &str)], certificate: Option<Certificate>) -> Self {
        let tls = certificate.iter().flat_map(Certificate::settings);
        let sim = Sim::start().await;
        let vendor = Relay::start(sim.addr()).await;
        let launch = firehose(&format!("ws://{}/stocks", vendor.addr()));
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

    /// Where clients connect: directly, or through the relay.
    fn entrance(&self, relayed: bool) -> SocketAddr {
        match &self.tunnels {
            Some([direct, through]) => if relayed { through } else { direct }.addr(),
            None if relayed => self.relay(Hop::Client).addr(),
            None => self.filtered.addr(),
        }
    }

    /// The relay at this place.
    #[must_use]
    pub fn relay(&self, hop: Hop) -> &Relay {
        &self.relays[hop as usize]
    }

    /// Whether both links are up and everything is carried.
    ///
    /// # Panics
    ///
    /// A program does not answer.
    pub async fn is_linked(&self) -> bool {
        let held = self.sim.handle.subscriptions();
        let carried = ["T.*", "Q.*", "AM.*"].iter().all(|channel| held.contains(*channel));
        let filtered = self.filtered.health().await;
        carried
            && filtered["channels"]["carried"][0] == "*"
            && self.firehose.health_text("/upstream/state").await == "up"
    }
}

/// The market's events, each told from all others by its number.
#[derive(Debug)]
pub struct Day {
    events: Vec<String>,
    rng: Rng,
    sent: Arc<AtomicUsize>,
    live: Arc<AtomicUsize>,
    watchers: JoinSet<Vec<Watched>>,
    /// The last marker sent, and for each watcher the last one heard.
    markers: usize,
    heard: Vec<Arc<AtomicUsize>>,
    padding: usize,
}

impl Day {
    /// A day that has just begun, drawn by this seed.
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
        }
    }

    /// With so many bytes more in each frame.
    #[must_use]
    pub fn padded(self, bytes: usize) -> Self {
        Self { padding: bytes, ..self }
    }

    /// Lets a watcher of these channels connect, directly or through the clients' relay, and waits
    /// until it is subscribed.
    ///
    /// # Panics
    ///
    /// It is not before long.
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

    /// Publishes until something has happened.
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
        chain.sim.handle.publish(&self.events[first..]);
    }

    /// Publishes until the chain is linked up and every watcher has heard something sent from now
    /// on.
    ///
    /// # Panics
    ///
    /// That takes too long.
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

    /// Ends the day and judges what every watcher saw in all its life: right, in order, complete up
    /// to declared gaps. Returns what they saw.
    ///
    /// # Panics
    ///
    /// Something was not so, the last event did not come, or a ledger does not balance.
    pub async fn end(mut self, chain: &Chain) -> Summary {
        let mut watchers = Vec::new();
        let deadline = Instant::now() + BACK;
        for n in 0.. {
            assert!(Instant::now() < deadline, "only {} watchers heard the end", watchers.len());
            // Blanks tell one end from the other, for watchers that were just coming back.
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
            // The last connection of each ended with the end of the day, so it is complete.
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

/// A day that was judged and found good.
#[derive(Debug)]
pub struct Summary {
    /// Events published.
    pub events: usize,
    /// What each watcher saw, connection by connection, in no order.
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
