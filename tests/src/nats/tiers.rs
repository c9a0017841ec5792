//! Vendor, firehoses, NATS and filtered proxies, with a relay wherever two of them meet, so that a
//! test can kill, stop or cut off each of them.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use polygon_sim::SimConfig;

use super::cluster::NatsCluster;
use crate::{
    program::{Launch, Program, Signal},
    relay::{Fault, Relay},
    stack::{self, ReservedPort, Sim, is_complete},
    wait::{SOON, eventually},
};

/// How long everything may need to come back. An election of NATS takes up to 9 s at rest, and a
/// takeover may follow.
pub const BACK: Duration = Duration::from_secs(90);

/// What runs.
#[derive(Debug, Clone)]
pub struct Plan {
    /// NATS servers. More than one replicate everything.
    pub nodes: usize,
    /// Text for the configuration of each of them.
    pub nats: String,
    /// Firehoses. More than one hold a lease.
    pub firehoses: usize,
    /// Filtered proxies.
    pub proxies: usize,
    /// Settings of each firehose beside the usual ones.
    pub firehose_env: Vec<(&'static str, String)>,
    /// Settings of each filtered proxy beside the usual ones.
    pub filtered_env: Vec<(&'static str, String)>,
}

impl Default for Plan {
    /// One of each.
    fn default() -> Self {
        Self {
            nodes: 1,
            nats: String::new(),
            firehoses: 1,
            proxies: 1,
            firehose_env: Vec::new(),
            filtered_env: Vec::new(),
        }
    }
}

/// A program or a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A NATS server.
    Node(usize),
    /// A firehose.
    Firehose(usize),
    /// A filtered proxy.
    Proxy(usize),
}

/// Everything that runs. Fields are dropped from the clients' end to the market's.
#[derive(Debug)]
pub struct Tiers {
    /// Before each filtered proxy, for clients.
    pub doors: Vec<Relay>,
    /// The filtered proxies.
    pub filtered: Vec<Program>,
    /// The firehoses.
    pub firehoses: Vec<Program>,
    /// NATS.
    pub nats: NatsCluster,
    /// Between each firehose, then each filtered proxy, and each NATS server.
    links: Vec<Vec<Relay>>,
    /// Between each firehose and the vendor.
    vendors: Vec<Relay>,
    /// The market.
    pub sim: Sim,
    plan: Plan,
    /// Of the firehoses, then of the filtered proxies.
    ports: Vec<ReservedPort>,
}

impl Tiers {
    /// Starts everything, and waits until it is linked up.
    ///
    /// # Panics
    ///
    /// If that takes too long.
    pub async fn start(plan: Plan) -> Self {
        let sim = Sim::with(SimConfig::default()).await;
        let nats = NatsCluster::with(plan.nodes, &plan.nats).await;
        let (mut links, mut ports, mut vendors) = (Vec::new(), Vec::new(), Vec::new());
        for program in 0..plan.firehoses + plan.proxies {
            let mut to_nodes = Vec::new();
            for node in &nats.nodes {
                to_nodes.push(Relay::start(node.addr()).await);
            }
            links.push(to_nodes);
            ports.push(ReservedPort::new());
            if program < plan.firehoses {
                vendors.push(Relay::start(sim.addr()).await);
            }
        }
        let mut doors = Vec::new();
        for port in &ports[plan.firehoses..] {
            doors.push(Relay::start(port.addr()).await);
        }
        let (filtered, firehoses) = (Vec::new(), Vec::new());
        let mut tiers = Self { doors, filtered, firehoses, nats, links, vendors, sim, plan, ports };
        for n in 0..tiers.plan.firehoses {
            let program = tiers.firehose(n).start().await;
            tiers.firehoses.push(program);
        }
        for n in 0..tiers.plan.proxies {
            let program = tiers.proxy(n).start().await;
            tiers.filtered.push(program);
        }
        tiers.recovered().await;
        tiers
    }

    /// The URL of NATS for this program.
    fn url(&self, program: usize) -> String {
        let urls = self.links[program].iter().map(|relay| format!("nats://{}", relay.addr()));
        urls.collect::<Vec<_>>().join(",")
    }

    /// A firehose, about to be started.
    #[must_use]
    pub fn firehose(&self, n: usize) -> Launch {
        let mut launch = stack::firehose(&format!("ws://{}/stocks", self.vendors[n].addr()))
            .env("NATS_URL", self.url(n))
            .env("NATS_REPLICAS", self.plan.nodes)
            .env("FIREHOSE_PORT", self.ports[n].addr().port());
        if self.plan.firehoses > 1 {
            launch = launch.env("LEASE", "nats");
        }
        launch.envs(self.plan.firehose_env.clone())
    }

    /// A filtered proxy, about to be started.
    #[must_use]
    pub fn proxy(&self, n: usize) -> Launch {
        let program = self.plan.firehoses + n;
        stack::filtered_on_nats(&self.url(program))
            // Sessions of clients that come and go would fill what a failing test prints.
            .env("LOG_LEVEL", "info,proxy_common::session=warn")
            .env("COMMAND_RATE", 1_000)
            .env("FILTERED_PROXY_PORT", self.ports[program].addr().port())
            .envs(self.plan.filtered_env.clone())
    }

    /// Kills a part (SIGKILL), and waits for its end.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub async fn kill(&mut self, part: Part) {
        let program = match part {
            Part::Node(n) => return self.nats.nodes[n].kill(),
            Part::Firehose(n) => &mut self.firehoses[n],
            Part::Proxy(n) => &mut self.filtered[n],
        };
        program.signal(Signal::SIGKILL);
        program.wait_exit(SOON).await;
    }

    /// Starts a part that was killed, with the same port and store.
    ///
    /// # Panics
    ///
    /// If it does not listen in time.
    pub async fn revive(&mut self, part: Part) {
        match part {
            Part::Node(n) => self.nats.nodes[n].revive().await,
            Part::Firehose(n) => self.firehoses[n] = self.firehose(n).start().await,
            Part::Proxy(n) => self.filtered[n] = self.proxy(n).start().await,
        }
    }

    /// Stands a part still (SIGSTOP).
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn stop(&self, part: Part) {
        self.signal(part, Signal::SIGSTOP);
    }

    /// Lets a part go on (SIGCONT).
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn cont(&self, part: Part) {
        self.signal(part, Signal::SIGCONT);
    }

    fn signal(&self, part: Part, signal: Signal) {
        match part {
            Part::Node(n) => self.nats.nodes[n].signal(signal),
            Part::Firehose(n) => self.firehoses[n].signal(signal),
            Part::Proxy(n) => self.filtered[n].signal(signal),
        }
    }

    /// Cuts a program off from all NATS servers, or a NATS server from the others: nothing passes,
    /// and connections end. Its other connections stay.
    pub fn cut(&self, part: Part) {
        for relay in self.relays(part) {
            relay.inject(Fault::BlackHole);
            relay.inject(Fault::Reset);
        }
    }

    /// Ends a cut.
    pub fn heal(&self, part: Part) {
        self.relays(part).for_each(Relay::heal);
    }

    fn relays(&self, part: Part) -> Box<dyn Iterator<Item = &Relay> + '_> {
        match part {
            Part::Node(n) => Box::new(self.nats.routes_of(n)),
            Part::Firehose(n) => Box::new(self.links[n].iter()),
            Part::Proxy(n) => Box::new(self.links[self.plan.firehoses + n].iter()),
        }
    }

    /// The relay between a firehose and the vendor.
    #[must_use]
    pub fn vendor(&self, firehose: usize) -> &Relay {
        &self.vendors[firehose]
    }

    /// Waits until the vendor serves a firehose and every filtered proxy gets everything.
    ///
    /// # Panics
    ///
    /// If that takes too long.
    pub async fn recovered(&self) {
        // The parts that were killed and not revived are left out.
        eventually(BACK, "the vendor serves a firehose", async || self.holder().await.is_some())
            .await;
        eventually(BACK, "the vendor serves all", async || {
            let held = self.sim.handle.subscriptions();
            ["T.*", "Q.*", "AM.*"].iter().all(|channel| held.contains(*channel))
        })
        .await;
        for proxy in self.filtered.iter().filter(|proxy| !proxy.has_ended()) {
            eventually(BACK, "a link is up", async || {
                proxy.health_text("/upstream/state").await == "up"
            })
            .await;
            is_complete(proxy).await;
        }
    }

    /// The firehose whose link to the vendor is up.
    pub async fn holder(&self) -> Option<usize> {
        for (n, firehose) in self.firehoses.iter().enumerate() {
            if !firehose.has_ended() && firehose.health_text("/upstream/state").await == "up" {
                return Some(n);
            }
        }
        None
    }

    /// Which firehose dialled the vendor, in order.
    #[must_use]
    pub fn dials(&self) -> Vec<(Instant, usize)> {
        let each = self.vendors.iter().enumerate();
        let mut dials: Vec<_> = each
            .flat_map(|(n, relay)| relay.accepted().into_iter().map(move |at| (at, n)))
            .collect();
        dials.sort();
        dials
    }

    /// Checks that no firehose dialled the vendor after another one had taken the lease: the vendor
    /// saw no more changes from one to another than there were terms.
    ///
    /// # Panics
    ///
    /// If one did.
    pub async fn check_dials(&self) {
        let dialled: Vec<_> = self.dials().into_iter().map(|(_, firehose)| firehose).collect();
        let changes = dialled.windows(2).filter(|pair| pair[0] != pair[1]).count();
        let term = self.term().await;
        println!("term {term}, dialled by {dialled:?}");
        assert!(changes < term, "{changes} changes in {term} terms: {dialled:?}");
    }

    /// The term of the lease.
    ///
    /// # Panics
    ///
    /// If there is no lease.
    pub async fn term(&self) -> usize {
        let context = jetstream::new(self.nats.client().await);
        // A cluster that has just lost its leader takes a while to answer.
        let mut found = None;
        eventually(SOON, "a bucket of leases", async || {
            found = context.get_stream("KV_POLYGON_LEASE").await.ok();
            found.is_some()
        })
        .await;
        let bucket = found.expect("found above");
        // Read from the leader: a replica may be late.
        let lease = bucket.get_last_raw_message_by_subject("$KV.POLYGON_LEASE.stocks").await;
        let value = lease.expect("a lease").payload;
        let text = std::str::from_utf8(&value).expect("a lease is text");
        let term = text.split_whitespace().nth(1).and_then(|term| term.parse().ok());
        term.unwrap_or_else(|| panic!("no term in the lease {text:?}"))
    }
}
