//! A market of numbered events, and whether clients that know their positions got what they must.
//!
//! An independent model says which events a client must have got over all its connections. Only
//! what has an excuse may be missing, and it must be declared.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use polygon_sim::SimHandle;
use serde_json::Value;
use tokio::time::interval;

use crate::{
    aware::{Aware, MARKER, Story},
    oracle::{Oracle, Step, matches},
    stack::CLIENT_KEY,
    wait::eventually,
};

const SYMBOLS: usize = 12;
const FRAME_INTERVAL: Duration = Duration::from_millis(4);
/// A marker comes with each frame whose number this divides.
const MARKER_FRAMES: usize = 25;

/// The market's events, each unique by its number.
#[derive(Debug)]
pub struct Market {
    sim: SimHandle,
    /// What was published, in order.
    pub events: Vec<String>,
    frames: usize,
    markers: usize,
    rng: Rng,
    /// How many events were published.
    pub sent: Arc<AtomicUsize>,
    /// For each client the last marker that it got.
    pub heard: Vec<Arc<AtomicUsize>>,
}

impl Market {
    /// A market that publishes through this simulator. The seed determines its events.
    #[must_use]
    pub fn new(sim: SimHandle, seed: u64) -> Self {
        Self {
            sim,
            events: Vec::new(),
            frames: 0,
            markers: 0,
            rng: Rng::with_seed(seed),
            sent: Arc::default(),
            heard: Vec::new(),
        }
    }

    /// A client of everything at this door, which comes back there and never leaves by itself. It is
    /// one of those that [`until_heard`](Self::until_heard) waits for.
    pub fn client_of_everything(&mut self, door: SocketAddr, seed: u64) -> Aware {
        let heard = Arc::<AtomicUsize>::default();
        self.heard.push(Arc::clone(&heard));
        Aware {
            doors: vec![door],
            key: CLIENT_KEY,
            channels: "*".to_owned(),
            changing: Vec::new(),
            rng: Rng::with_seed(seed),
            leaves: None,
            sent: Arc::clone(&self.sent),
            heard,
        }
    }

    /// Publishes one frame.
    pub fn publish(&mut self) {
        let first = self.events.len();
        self.frames += 1;
        for n in first..first + self.rng.usize(1..8) {
            let symbol = self.rng.usize(..SYMBOLS);
            let kind = if self.rng.bool() { "T" } else { "Q" };
            self.events.push(format!(r#"{{"ev":"{kind}","sym":"S{symbol}","q":{n}}}"#));
        }
        if self.frames.is_multiple_of(MARKER_FRAMES) {
            self.markers += 1;
            self.events.push(format!("{MARKER}{}}}", self.markers));
        }
        self.send(first);
    }

    /// Publishes the last marker.
    pub fn end(&mut self) {
        let first = self.events.len();
        self.events.push(format!("{MARKER}0}}"));
        self.send(first);
    }

    /// Sends the events from this number on in one frame.
    pub fn send(&self, first: usize) {
        self.sent.store(self.events.len(), SeqCst);
        self.sim.publish(&self.events[first..]);
    }

    /// Publishes until the future completes.
    pub async fn publish_while<T>(&mut self, happening: impl Future<Output = T>) -> T {
        tokio::pin!(happening);
        let mut frames = interval(FRAME_INTERVAL);
        loop {
            tokio::select! {
                happened = &mut happening => return happened,
                _ = frames.tick() => self.publish(),
            }
        }
    }

    /// Publishes until every client has got a marker that is sent from now on.
    ///
    /// # Panics
    ///
    /// If one has not within the limit.
    pub async fn until_heard(&mut self, limit: Duration) {
        let (heard, first) = (self.heard.clone(), self.markers + 1);
        let everyone = async || heard.iter().all(|heard| heard.load(SeqCst) >= first);
        self.publish_while(eventually(limit, "every client gets what is new", everyone)).await;
    }
}

/// The numbers of events that may be missing.
#[derive(Debug, Default)]
pub struct Excuses {
    /// The vendor was away: nobody gets them, or all do.
    pub vendor: Vec<Range<usize>>,
    /// The firehose was away, or a link was overrun: some may get them and others not.
    pub firehose: Vec<Range<usize>>,
}

impl Excuses {
    fn among(spans: &[Range<usize>], n: usize) -> bool {
        spans.iter().any(|span| span.contains(&n))
    }
}

/// Checks that each client got exactly the events of its channels, once and in order, over all its
/// connections, from its first one on. `channels` are those of each client, without the markers'.
///
/// # Panics
///
/// If one got something else, or misses an event without an excuse, or is told of a loss although
/// nothing has an excuse.
pub fn check(
    events: &[String],
    stories: &BTreeMap<usize, Story>,
    channels: &[&str],
    excuses: &Excuses,
) {
    let numbers: HashMap<&str, usize> =
        events.iter().enumerate().map(|(n, event)| (event.as_str(), n)).collect();
    let parsed: Vec<Value> =
        events.iter().map(|event| serde_json::from_str(event).expect("an event")).collect();
    let oracle = Oracle::new("stocks", events);
    let received = |story: &Story| -> HashSet<usize> {
        let numbers = story.steps.iter().filter_map(|step| match step {
            Step::Event(event) => Some(numbers[event.as_str()]),
            Step::Gap | Step::Changed { .. } => None,
        });
        numbers.collect()
    };
    let got: Vec<_> = stories.values().map(received).collect();
    for (n, story) in stories {
        let connections = story.ends.len();
        println!("{n}: {connections} connections, {} skips, {:?}", story.skips, story.notices);
        if let Err(wrong) = oracle.check(&story.steps) {
            let named: Vec<usize> = wrong.split(' ').filter_map(|n| n.parse().ok()).collect();
            for event in named.into_iter().filter(|event| *event < events.len()) {
                let who: Vec<usize> =
                    (0..got.len()).filter(|client| got[*client].contains(&event)).collect();
                println!("{event}: {} came to clients {who:?}", events[event]);
            }
            panic!("client {n} ({}): {wrong}\n{}", channels[*n], story.log.join("\n"));
        }
    }
    let by_anyone: HashSet<usize> = got.iter().flatten().copied().collect();
    for (n, got) in got.iter().enumerate() {
        let first = *got.iter().min().expect("it got something");
        let items: Vec<_> = channels[n].split(',').chain(["AM.END"]).collect();
        let wanted =
            |event: usize| items.iter().any(|channel| matches("stocks", channel, &parsed[event]));
        for missing in (first..events.len()).filter(|n| !got.contains(n)).filter(|n| wanted(*n)) {
            let nobody_has_it = !by_anyone.contains(&missing);
            let vendors = nobody_has_it && Excuses::among(&excuses.vendor, missing);
            let excused = vendors || Excuses::among(&excuses.firehose, missing);
            assert!(excused, "client {n} never got event {missing} of {excuses:?}");
        }
    }
    let restarted = !excuses.firehose.is_empty();
    for (n, story) in stories {
        for notice in story.notices.keys() {
            let declares_loss = notice.contains(" gap ")
                || (notice.starts_with("filtered upstream_up") && !notice.ends_with("missed"));
            assert!(restarted || !declares_loss, "client {n}: {:?}", story.notices);
        }
    }
}

/// Checks that the clients came back often, also in the middle between two positions.
///
/// # Panics
///
/// If they did not.
pub fn check_lively(stories: &BTreeMap<usize, Story>) {
    let connections: usize = stories.values().map(|story| story.ends.len()).sum();
    let skips: usize = stories.values().map(|story| story.skips).sum();
    let enough = connections > 3 * stories.len() && skips > stories.len();
    assert!(enough, "too little happened: {connections} connections, {skips} skips");
}
