//! Cuts of a network between firehoses, NATS and a filtered proxy, each in a network namespace of
//! its own: packets vanish, and nobody closes a connection.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    time::Duration,
};

use polygon_sim::SimConfig;
use tempfile::TempDir;
use tests::{
    namespaces::Namespaces,
    nats::{Version, tiers::BACK},
    program::{Program, binaries},
    stack::{self, Sim, is_answered, is_complete},
    stories::{Excuses, Market, check},
    wait::{SOON, eventually, within},
};
use tokio::{task::JoinSet, time::sleep};

use crate::seed;

/// The namespaces. The vendor and the clients are in that of the test.
const NAMES: &[&str] = &["test", "nats", "one", "two", "proxy"];
const FIREHOSES: [&str; 2] = ["one", "two"];
/// The ports inside, where nobody else listens.
const NATS_PORT: u16 = 4222;
const PORT: u16 = 8765;
/// How long the test inside may take.
const LIMIT: Duration = Duration::from_secs(400);
/// How many events may be on their way when something happens.
const ON_THEIR_WAY: usize = 1_000;
/// A cut that ends before the lease may pass to another one, or the vendor is given up.
const SHORT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn cuts_of_the_network_lose_nothing_but_what_the_vendor_sent_meanwhile() {
    // Inside, neither a registry nor cargo's server can be reached.
    Version::Current.program().await;
    binaries();
    let Some(namespaces) = Namespaces::new(NAMES) else { return };
    for name in &NAMES[1..] {
        namespaces.connect("test", name);
    }
    for name in ["one", "two", "proxy"] {
        namespaces.connect("nats", name);
    }
    namespaces.run_inside("nats_partitions::inside", LIMIT).await;
}

/// A server of NATS in its namespace. Dropping it ends it.
struct Nats {
    child: Child,
    _dir: TempDir,
}

impl Nats {
    async fn start(namespaces: &Namespaces) -> Self {
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let config = dir.path().join("nats.conf");
        let store = dir.path().join("store");
        let text = format!(
            "listen: \"0.0.0.0:{NATS_PORT}\"\n\
             jetstream {{ store_dir: \"{}\", max_file: 100G }}\n",
            store.display()
        );
        std::fs::write(&config, text).expect("write a configuration");
        let log = File::create(dir.path().join("log")).expect("open a log file");
        let [ip, args @ ..] = namespaces.within("nats");
        let mut command = Command::new(ip);
        command.args(args).arg(Version::Current.program().await).arg("--config").arg(config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().expect("start nats-server");
        let addr = SocketAddr::from((namespaces.address("nats", "test"), NATS_PORT));
        tests::wait::listens(addr).await;
        Self { child, _dir: dir }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn is_up(firehose: &Program) -> bool {
    firehose.health_text("/upstream/state").await == "up"
}

/// Everything inside.
struct World {
    namespaces: Namespaces,
    filtered: Program,
    firehoses: Vec<Program>,
    _nats: Nats,
    sim: Sim,
}

impl World {
    async fn start(namespaces: Namespaces) -> Self {
        let nats = Nats::start(&namespaces).await;
        let sim = Sim::at(Ipv4Addr::UNSPECIFIED, SimConfig::default()).await;
        let url = |name| format!("nats://{}:{NATS_PORT}", namespaces.address("nats", name));
        let mut firehoses = Vec::new();
        for name in FIREHOSES {
            let vendor = namespaces.address("test", name);
            let launch = stack::firehose(&format!("ws://{vendor}:{}/stocks", sim.addr().port()))
                .env("FIREHOSE_HOST", namespaces.address(name, "test"))
                .env("FIREHOSE_PORT", PORT)
                .env("NATS_URL", url(name))
                .env("LEASE", "nats")
                .run_by(namespaces.within(name));
            firehoses.push(launch.start().await);
        }
        let launch = stack::filtered_on_nats(&url("proxy"))
            .env("FILTERED_PROXY_HOST", namespaces.address("proxy", "test"))
            .env("FILTERED_PROXY_PORT", PORT)
            .env("COMMAND_RATE", 1_000)
            .run_by(namespaces.within("proxy"));
        let filtered = launch.start().await;
        let world = Self { namespaces, filtered, firehoses, _nats: nats, sim };
        world.recovered().await;
        world
    }

    async fn recovered(&self) {
        eventually(BACK, "the vendor serves a firehose", async || self.holder().await.is_some())
            .await;
        let holder = self.holder().await.expect("the condition held");
        is_answered(&self.firehoses[holder]).await;
        let linked = async || is_up(&self.filtered).await;
        eventually(BACK, "the proxy's link is up", linked).await;
        is_complete(&self.filtered).await;
    }

    async fn holder(&self) -> Option<usize> {
        for (n, firehose) in self.firehoses.iter().enumerate() {
            if is_up(firehose).await {
                return Some(n);
            }
        }
        None
    }

    /// How often a firehose logged in at the vendor.
    fn logins(&self) -> u64 {
        self.sim.handle.stats().auths
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started in a namespace by the test above"]
async fn inside() {
    let namespaces = Namespaces::around(NAMES).expect("this runs inside namespaces");
    let seed = seed::of_this_run();
    println!("TEST_SEED={seed}");
    let world = World::start(namespaces).await;
    let lines = &world.namespaces;
    let mut market = Market::new(world.sim.handle.clone(), seed);
    let client = market.client_of_everything(world.filtered.addr(), seed);
    let mut clients = JoinSet::new();
    clients.spawn(client.live());
    market.until_heard(BACK).await;
    let logins = world.logins();

    println!("the standby is cut from NATS");
    let holder = world.holder().await.expect("a holder");
    let standby = FIREHOSES[1 - holder];
    lines.cut("nats", standby);
    market.publish_while(sleep(SHORT)).await;
    market.until_heard(BACK).await;
    lines.heal("nats", standby);

    println!("the proxy is cut from NATS");
    lines.cut("nats", "proxy");
    let down = async || !is_up(&world.filtered).await;
    market.publish_while(eventually(SOON, "the proxy notices", down)).await;
    lines.heal("nats", "proxy");
    market.publish_while(world.recovered()).await;
    market.until_heard(BACK).await;

    println!("NATS is cut from both firehoses");
    FIREHOSES.iter().for_each(|name| lines.cut("nats", name));
    market.publish_while(sleep(SHORT)).await;
    FIREHOSES.iter().for_each(|name| lines.heal("nats", name));
    market.publish_while(world.recovered()).await;
    market.until_heard(BACK).await;
    assert_eq!(world.logins(), logins, "the holder kept the vendor's connection");

    println!("the holder is cut from NATS");
    let before = market.events.len().saturating_sub(ON_THEIR_WAY);
    lines.cut("nats", FIREHOSES[holder]);
    let took_over = async || is_up(&world.firehoses[1 - holder]).await;
    market.publish_while(eventually(BACK, "the standby takes over", took_over)).await;
    // The vendor has given the connection to the new one. The old one may not dial again.
    let out = async || !is_up(&world.firehoses[holder]).await;
    market.publish_while(eventually(BACK, "the old one is out", out)).await;
    market.until_heard(BACK).await;
    assert_eq!(world.logins(), logins + 1, "the old one dialled");
    lines.heal("nats", FIREHOSES[holder]);
    market.publish_while(world.recovered()).await;
    market.publish_while(sleep(SHORT)).await;
    market.until_heard(BACK).await;
    assert_eq!(world.logins(), logins + 1, "the old one dialled when it came back");
    let mut excuses = Excuses::default();
    excuses.firehose.push(before..market.events.len());

    market.end();
    let story = within(BACK, "the client gets the end", clients.join_next()).await;
    let story = story.expect("one client").expect("the client ends");
    check(&market.events, &BTreeMap::from([(0, story)]), &["*"], &excuses);
}
