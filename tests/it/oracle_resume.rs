//! Clients that know their positions, through everything that can happen to them, to the links, to
//! the vendor and to the proxies: each must get exactly the events of its channels, once and in
//! order, over all its connections. An independent model says which. Only what the vendor did not
//! send, and what a restarted firehose does not remember, may be missing, and it must be declared.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use fastrand::Rng;
use polygon_sim::Fault as VendorFault;
use tests::{
    aware::{Aware, Story},
    oracle::{Oracle, Step},
    program::{Program, Signal},
    relay::{Fault, Relay},
    stack::{self, CLIENT_KEY, ReservedPort, Sim, is_complete, is_up},
    stories::{Excuses, Market, check, check_lively},
    wait::{SOON, eventually, within},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::seed;

const PROXIES: usize = 3;
/// What the clients subscribe to, beside the markers. The first one gets everything.
const CHANNELS: [&str; 8] =
    ["*", "T.*", "Q.*", "T.S1,Q.S2", "T.S3,T.S4,Q.*", "Q.S5", "T.S1*,Q.S6", "*"];
/// How many events may be on their way when something happens.
const ON_THEIR_WAY: usize = 400;
/// How long a link is late.
const LATE_FOR: Duration = Duration::from_millis(700);
/// Items that further clients subscribe to and unsubscribe from all the time, also while they
/// replay. Each of these clients gets these channels beside.
const CHANGING: [&str; 4] = ["T.S2", "Q.S3", "Q.*", "T.S5"];
const BESIDE: [&str; 3] = ["T.S1", "Q.S1,Q.S4", "T.S1*,Q.S6"];
/// The firehose's ring, in frames, and a burst that it cannot hold for any reader.
const RING_FRAMES: usize = 16;
const BURST_FRAMES: usize = 300;
const BURST_EVENT_BYTES: usize = 20_000;
/// How long the firehose may stay away after an eviction.
const EVICTED: Duration = Duration::from_secs(110);
/// How long links may need to come back after several faults.
const BACK: Duration = Duration::from_secs(40);

/// Everything that runs, with a relay at each link and before each proxy. Fields are dropped from
/// the clients' end to the market's.
struct World {
    doors: Vec<Relay>,
    filtered: Vec<Program>,
    links: Vec<Relay>,
    firehose: Program,
    sim: Sim,
    ports: Vec<ReservedPort>,
}

impl World {
    async fn start(ring_frames: Option<usize>) -> Self {
        let sim = Sim::start().await;
        let ports: Vec<_> = (0..=PROXIES).map(|_| ReservedPort::new()).collect();
        let firehose = firehose(&sim, &ports[PROXIES], ring_frames).await;
        let (mut doors, mut links, mut filtered) = (Vec::new(), Vec::new(), Vec::new());
        for port in &ports[..PROXIES] {
            links.push(Relay::start(ports[PROXIES].addr()).await);
            doors.push(Relay::start(port.addr()).await);
            filtered.push(self::filtered(links.last().expect("just pushed"), port).await);
        }
        let world = Self { doors, filtered, links, firehose, sim, ports };
        world.recovered().await;
        world
    }

    /// Waits until everything is linked up.
    async fn recovered(&self) {
        eventually(BACK, "the vendor serves all", async || {
            let held = self.sim.handle.subscriptions();
            let all = ["T.*", "Q.*", "AM.*"].iter().all(|channel| held.contains(*channel));
            all && self.firehose.health_text("/upstream/state").await == "up"
        })
        .await;
        for proxy in &self.filtered {
            eventually(BACK, "a link is up", async || {
                proxy.health_text("/upstream/state").await == "up"
            })
            .await;
            is_complete(proxy).await;
        }
    }

    async fn restart_filtered(&mut self, n: usize) {
        self.filtered[n].signal(Signal::SIGKILL);
        self.filtered[n].wait_exit(SOON).await;
        self.filtered[n] = filtered(&self.links[n], &self.ports[n]).await;
    }

    async fn restart_firehose(&mut self) {
        self.firehose.signal(Signal::SIGKILL);
        self.firehose.wait_exit(SOON).await;
        self.firehose = firehose(&self.sim, &self.ports[PROXIES], None).await;
    }
}

async fn firehose(sim: &Sim, port: &ReservedPort, ring_frames: Option<usize>) -> Program {
    let ring = ring_frames.map(|frames| ("RING_FRAMES", frames.to_string()));
    let launch = stack::firehose(&sim.url("stocks")).envs(ring);
    launch.env("FIREHOSE_PORT", port.addr().port()).start().await
}

async fn filtered(link: &Relay, port: &ReservedPort) -> Program {
    let launch = stack::filtered(link.addr()).env("COMMAND_RATE", 1_000);
    launch.env("FILTERED_PROXY_PORT", port.addr().port()).start().await
}

/// Publishes more at once than the firehose's ring holds.
fn burst(market: &mut Market) {
    for _ in 0..BURST_FRAMES {
        let first = market.events.len();
        let padding = "x".repeat(BURST_EVENT_BYTES);
        market.events.push(format!(r#"{{"ev":"Q","sym":"S2","q":{first},"x":"{padding}"}}"#));
        market.send(first);
    }
}

/// What happens.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// All connections at this door end: in the middle of a frame, or with a reset.
    Door(usize, Fault),
    /// The link of this proxy ends, in the same way.
    Link(usize, Fault),
    /// The link of this proxy is dead for a while.
    DeadLink(usize, Duration),
    /// The link of this proxy is late for a while.
    LateLink(usize, Duration),
    /// The vendor ends its connection.
    Vendor,
    /// The vendor gives the account's connection to another program.
    Evicted,
    /// Events come faster than the links read them.
    Overrun,
    /// This proxy is killed and started again.
    Killed(usize),
    /// The firehose is killed and started again.
    FirehoseKilled,
}

impl Event {
    fn drawn(rng: &mut Rng) -> Self {
        let end = if rng.bool() { Fault::Cut } else { Fault::Reset };
        let n = rng.usize(..PROXIES);
        match rng.u8(..12) {
            0..3 => Self::Door(n, end),
            3..5 => Self::Link(n, end),
            5..7 => Self::DeadLink(n, Duration::from_millis(rng.u64(50..600))),
            7..9 => Self::LateLink(n, Duration::from_millis(rng.u64(20..150))),
            9 => Self::Vendor,
            _ => Self::Killed(n),
        }
    }
}

async fn happens(event: Event, world: &mut World) {
    match event {
        Event::Door(n, fault) => world.doors[n].inject(fault),
        Event::Link(n, fault) => {
            let proxy = &world.filtered[n];
            let losses = async || proxy.metric("filtered_upstream_connects_total").await;
            let before = losses().await;
            world.links[n].inject(fault);
            eventually(BACK, "the link comes back", async || losses().await > before).await;
        }
        Event::DeadLink(n, lasting) => {
            world.links[n].inject(Fault::BlackHole);
            sleep(lasting).await;
            world.links[n].inject(Fault::Reset);
            world.links[n].heal();
        }
        Event::LateLink(n, late) => {
            world.links[n].inject(Fault::Delay(late));
            sleep(LATE_FOR).await;
            world.links[n].heal();
        }
        Event::Vendor => {
            let firehose = &world.firehose;
            let connects = async || firehose.metric("firehose_upstream_connects_total").await;
            let before = connects().await;
            world.sim.handle.inject(VendorFault::Abort);
            eventually(BACK, "the firehose connects anew", async || connects().await > before)
                .await;
        }
        Event::Evicted => {
            let connects = async || world.firehose.metric("firehose_upstream_connects_total").await;
            let before = connects().await;
            world.sim.handle.inject(VendorFault::Evict);
            let is_back = async || connects().await > before;
            eventually(EVICTED, "the firehose connects anew", is_back).await;
        }
        Event::Overrun => {}
        Event::Killed(n) => world.restart_filtered(n).await,
        Event::FirehoseKilled => {
            world.restart_firehose().await;
            is_up(&world.firehose).await;
        }
    }
    world.recovered().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_go_on_at_any_proxy_whatever_is_cut_and_killed() {
    run(14, &[], None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_when_the_firehose_is_killed_too() {
    run(9, &[(3, Event::FirehoseKilled)], None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_when_the_vendor_evicts_the_firehose() {
    run(4, &[(2, Event::Evicted)], None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_when_the_links_are_overrun() {
    let overruns = [2, 5, 6, 9].map(|after| (after, Event::Overrun));
    run(8, &overruns, Some(RING_FRAMES)).await;
}

/// Lets so many things happen, and these others after so many of them.
async fn run(count: usize, others: &[(usize, Event)], ring_frames: Option<usize>) {
    let seed = seed::of_this_run();
    // Printed when the test fails.
    println!("TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut world = World::start(ring_frames).await;
    let mut market = Market::new(world.sim.handle.clone(), rng.u64(..));
    let mut clients = JoinSet::new();
    let changing = CHANGING.map(str::to_owned).to_vec();
    for (n, channels) in CHANNELS.iter().chain(&BESIDE).enumerate() {
        let heard = Arc::<AtomicUsize>::default();
        market.heard.push(Arc::clone(&heard));
        let client = Aware {
            doors: world.doors.iter().map(Relay::addr).collect(),
            key: CLIENT_KEY,
            channels: (*channels).to_owned(),
            changing: if n < CHANNELS.len() { Vec::new() } else { changing.clone() },
            rng: rng.fork(),
            leaves: Some(Duration::from_millis(500)),
            sent: Arc::clone(&market.sent),
            heard,
        };
        clients.spawn(async move { (n, client.live().await) });
    }
    let mut events: Vec<_> = (0..count).map(|_| Event::drawn(&mut rng)).collect();
    for (after, other) in others {
        events.insert(*after, *other);
    }
    let (mut excuses, mut overruns, started) = (Excuses::default(), 0, Instant::now());
    market.until_heard(BACK).await;
    for event in events {
        println!("{event:?} after {} events, {:?}", market.events.len(), started.elapsed());
        market.publish_while(sleep(Duration::from_millis(rng.u64(100..400)))).await;
        let before = market.events.len().saturating_sub(ON_THEIR_WAY);
        if matches!(event, Event::Overrun) {
            burst(&mut market);
        }
        market.publish_while(happens(event, &mut world)).await;
        if !matches!(event, Event::Door(..) | Event::Link(..)) || rng.bool() {
            market.until_heard(BACK).await;
        }
        let span = before..market.events.len();
        overruns += usize::from(matches!(event, Event::Overrun));
        match event {
            Event::Vendor | Event::Evicted => excuses.vendor.push(span),
            Event::FirehoseKilled | Event::Overrun => excuses.firehose.push(span),
            _ => {}
        }
    }
    market.until_heard(BACK).await;
    market.end();
    if ring_frames.is_some() {
        // A busy machine overruns so small a ring at any time. Each gap is declared all the same.
        excuses.firehose.push(0..market.events.len());
    }
    let mut stories = BTreeMap::new();
    while let Some(ended) = within(BACK, "every client gets the end", clients.join_next()).await {
        let (n, story) = ended.unwrap_or_else(|error| panic!("a client failed: {error}"));
        stories.insert(n, story);
    }
    let changing = stories.split_off(&CHANNELS.len());
    check_changing(&market.events, &changing);
    check(&market.events, &stories, &CHANNELS, &excuses);
    check_lively(&stories);
    let overrun = |story: &Story| story.notices.contains_key("firehose gap ring_overrun");
    assert!(overruns == 0 || stories.values().any(overrun), "no link was overrun");
}

/// Checks each connection of the clients that change their items.
fn check_changing(events: &[String], stories: &BTreeMap<usize, Story>) {
    let oracle = Oracle::new("stocks", events);
    let mut changes = 0;
    for (n, story) in stories {
        println!("{n}: {} connections, {:?}", story.ends.len(), story.notices);
        for steps in story.earlier.iter().chain([&story.steps]) {
            changes += steps.iter().filter(|step| matches!(step, Step::Changed { .. })).count();
            if let Err(wrong) = oracle.check_begun(steps) {
                let log = story.log.join("\n");
                panic!("changing client {n} ({}): {wrong}\n{log}", BESIDE[n - CHANNELS.len()]);
            }
        }
    }
    println!("{changes} changes");
    assert!(changes > 100, "too few changes: {changes}");
}
