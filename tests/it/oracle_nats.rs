//! Filtered proxies that take the feed from NATS, while NATS servers, firehoses and proxies are
//! killed, stand still or are cut off: each client must get exactly the events of its channels,
//! once and in order. An independent model says which. Only what the vendor could not deliver, and
//! what lies before a new holder's first event, may be missing, and it must be declared.
//!
//! `TEST_SECONDS` makes it last longer, `TEST_SEED` repeats what happened.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use fastrand::Rng;
use polygon_sim::Fault as VendorFault;
use tests::{
    aware::{Aware, MARKER},
    nats::tiers::{BACK, Part, Plan, Tiers},
    oracle::Oracle,
    relay::{Fault, Relay},
    stack::CLIENT_KEY,
    stories::{Excuses, Market, check, check_lively},
    wait::within,
    watcher::{Watched, Watcher},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::seed;

const PROXIES: usize = 3;
const FIREHOSES: usize = 2;
/// What the clients with positions subscribe to, beside the markers. The first gets everything.
const CHANNELS: [&str; 6] = ["*", "T.*", "Q.*", "T.S1,Q.S2", "T.S3,T.S4,Q.*", "T.S1*,Q.S6"];
/// What the clients without positions subscribe to.
const PLAIN: [&str; PROXIES] = ["*", "T.*", "Q.S1,T.S2"];
/// How many events may be on their way when something happens.
const ON_THEIR_WAY: usize = 1_000;
/// How long something lasts at most. Longer than the time after which a standby takes over.
const LONGEST: Duration = Duration::from_secs(4);
/// A plain client gives up a connection that is silent for this long.
const SILENCE_LIMIT: Duration = Duration::from_secs(8);
/// How long the test lasts without `TEST_SECONDS`.
const SHORT: Duration = Duration::from_secs(25);

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    /// A part is killed, and started again after this time.
    Killed(Part, Duration),
    /// A part stands still for this time.
    Stopped(Part, Duration),
    /// A program cannot reach NATS for this time, or a NATS server not the others.
    Cut(Part, Duration),
    /// All clients at this door lose their connections.
    Door(usize),
    /// The vendor ends its connection.
    Vendor,
}

impl Event {
    fn drawn(rng: &mut Rng, nodes: usize) -> Self {
        let part = match rng.u8(..3) {
            0 => Part::Node(rng.usize(..nodes)),
            1 => Part::Firehose(rng.usize(..FIREHOSES)),
            _ => Part::Proxy(rng.usize(..PROXIES)),
        };
        let lasting = LONGEST.mul_f64(rng.f64());
        match rng.u8(..12) {
            0..4 => Self::Killed(part, lasting),
            4..7 => Self::Stopped(part, lasting),
            7..10 => Self::Cut(part, lasting),
            10 => Self::Door(rng.usize(..PROXIES)),
            _ => Self::Vendor,
        }
    }

    fn part(self) -> Option<Part> {
        match self {
            Self::Killed(part, _) | Self::Stopped(part, _) | Self::Cut(part, _) => Some(part),
            Self::Door(_) | Self::Vendor => None,
        }
    }

    fn lasting(self) -> Duration {
        match self {
            Self::Killed(_, lasting) | Self::Stopped(_, lasting) | Self::Cut(_, lasting) => lasting,
            Self::Door(_) | Self::Vendor => Duration::ZERO,
        }
    }
}

async fn begins(event: Event, tiers: &mut Tiers) {
    match event {
        Event::Killed(part, _) => tiers.kill(part).await,
        Event::Stopped(part, _) => tiers.stop(part),
        Event::Cut(part, _) => tiers.cut(part),
        Event::Door(n) => tiers.doors[n].inject(Fault::Reset),
        Event::Vendor => tiers.sim.handle.inject(VendorFault::Abort),
    }
}

async fn ends(event: Event, tiers: &mut Tiers) {
    match event {
        Event::Killed(part, _) => tiers.revive(part).await,
        Event::Stopped(part, _) => tiers.cont(part),
        Event::Cut(part, _) => tiers.heal(part),
        Event::Door(_) | Event::Vendor => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_get_everything_out_of_one_server_whatever_dies() {
    run(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_get_everything_out_of_a_cluster_whatever_dies() {
    run(3).await;
}

/// Lets random things happen, with this many NATS servers.
async fn run(nodes: usize) {
    let seed = seed::of_this_run();
    // Printed when the test fails.
    println!("TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let plan = Plan { nodes, firehoses: FIREHOSES, proxies: PROXIES, ..Plan::default() };
    let mut tiers = Tiers::start(plan).await;
    let mut market = Market::new(tiers.sim.handle.clone(), rng.u64(..));
    let mut aware = JoinSet::new();
    for (n, channels) in CHANNELS.iter().enumerate() {
        let client = Aware {
            doors: tiers.doors.iter().map(Relay::addr).collect(),
            key: CLIENT_KEY,
            channels: (*channels).to_owned(),
            changing: Vec::new(),
            rng: rng.fork(),
            leaves: Some(Duration::from_secs(1)),
            sent: Arc::clone(&market.sent),
            heard: heard(&mut market),
        };
        aware.spawn(async move { (n, client.live().await) });
    }
    let mut plain = JoinSet::new();
    for (door, channels) in tiers.doors.iter().zip(PLAIN) {
        let watcher = Watcher {
            addr: door.addr(),
            key: CLIENT_KEY,
            channels: format!("{channels},AM.END"),
            sent: Arc::clone(&market.sent),
            marker: MARKER,
            heard: heard(&mut market),
            silence_limit: SILENCE_LIMIT,
            live: Arc::default(),
        };
        plain.spawn(watcher.watch());
    }
    let mut excuses = Excuses::default();
    let (started, mut dials) = (Instant::now(), tiers.dials().len());
    market.until_heard(BACK).await;
    while started.elapsed() < lasts() {
        let mut events = vec![Event::drawn(&mut rng, nodes)];
        let second = Event::drawn(&mut rng, nodes);
        if rng.u8(..4) == 0 && second.part() != events[0].part() {
            events.push(second);
        }
        let pause = Duration::from_millis(rng.u64(100..600));
        println!("{events:?} after {} events, {:?}", market.events.len(), started.elapsed());
        market.publish_while(sleep(pause)).await;
        let before = market.events.len().saturating_sub(ON_THEIR_WAY);
        let happening = async {
            for event in &events {
                begins(*event, &mut tiers).await;
            }
            let longest = events.iter().map(|event| event.lasting()).max();
            sleep(longest.unwrap_or_default()).await;
            for event in &events {
                ends(*event, &mut tiers).await;
            }
            tiers.recovered().await;
        };
        market.publish_while(happening).await;
        market.until_heard(BACK).await;
        let dialled = tiers.dials().len();
        if dialled > dials || events.contains(&Event::Vendor) {
            // The vendor was away. Those who come back across a new holder's start may miss more.
            let span = before..market.events.len();
            println!("the vendor was dialled, so events of {span:?} may be missing");
            excuses.firehose.push(span);
        }
        dials = dialled;
    }
    market.until_heard(BACK).await;
    market.end();
    let mut stories = BTreeMap::new();
    while let Some(ended) = within(BACK, "every client gets the end", aware.join_next()).await {
        let (n, story) = ended.unwrap_or_else(|error| panic!("a client failed: {error}"));
        stories.insert(n, story);
    }
    let mut watched = Vec::new();
    while let Some(ended) = within(BACK, "every plain client gets the end", plain.join_next()).await
    {
        watched.extend(ended.unwrap_or_else(|error| panic!("a client failed: {error}")));
    }
    check_plain(&market.events, &watched);
    check(&market.events, &stories, &CHANNELS, &excuses);
    check_lively(&stories);
    tiers.check_dials().await;
}

/// Where a new client notes the last marker that it got.
fn heard(market: &mut Market) -> Arc<AtomicUsize> {
    let heard = Arc::<AtomicUsize>::default();
    market.heard.push(Arc::clone(&heard));
    heard
}

/// Checks each connection of the clients without positions, from its subscription to its end.
fn check_plain(events: &[String], watched: &[Watched]) {
    let oracle = Oracle::new("stocks", events);
    println!("{} connections of plain clients", watched.len());
    for (n, one) in watched.iter().enumerate() {
        if let Err(wrong) = oracle.check_begun(&one.steps) {
            panic!("plain connection {n}: {wrong}; notices {:?}, end {}", one.notices, one.end);
        }
    }
}

/// How long things happen.
fn lasts() -> Duration {
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests' own switch, no setting of the product"
    )]
    let given = std::env::var("TEST_SECONDS").ok();
    given.map_or(SHORT, |seconds| {
        Duration::from_secs(seconds.parse().expect("TEST_SECONDS is a whole number"))
    })
}
