//! What happens when one part of a deployment on NATS dies, stands still or runs full, as clients
//! of filtered proxies see it. An independent model checks what each client got.

use std::{collections::BTreeMap, io::Write, path::PathBuf, time::Duration};

use fastrand::Rng;
use serde_json::Value;
use tests::{
    aware::Story,
    nats::{
        NatsServer, Version,
        stream::{STREAM, check_chain, messages},
        tiers::{BACK, Part, Plan, Tiers},
    },
    program::{Program, Signal},
    stack::{self, CLIENT_KEY, Sim},
    stories::{Excuses, Market, check},
    tools::installed,
    wait::{SOON, eventually, within},
};
use tokio::{task::JoinSet, time::sleep};

use crate::seed;

/// How many events may be on their way when something happens.
const ON_THEIR_WAY: usize = 1_000;
/// How often a server stands still.
const STOPS: usize = 5;
/// How long a proxy stands still.
const STILL: Duration = Duration::from_secs(30);
/// Room for a small disk, in MiB, and for a larger one.
const SMALL_DISK: u32 = 24;
const LARGE_DISK: u32 = 512;
/// Events that fill the small disk.
const FILLING_FRAMES: usize = 80;
const FILLING_BYTES: usize = 400_000;

/// A deployment with one client at each filtered proxy, which gets everything and stays there.
struct Scene {
    market: Market,
    tiers: Tiers,
    clients: JoinSet<(usize, Story)>,
    excuses: Excuses,
}

impl Scene {
    async fn start(plan: Plan) -> Self {
        let seed = seed::of_this_run();
        // Printed when a test fails.
        println!("TEST_SEED={seed}");
        let tiers = Tiers::start(plan).await;
        let mut market = Market::new(tiers.sim.handle.clone(), seed);
        let mut clients = JoinSet::new();
        for (n, door) in tiers.doors.iter().enumerate() {
            let client = market.client_of_everything(door.addr(), seed);
            clients.spawn(async move { (n, client.live().await) });
        }
        market.until_heard(BACK).await;
        Self { market, tiers, clients, excuses: Excuses::default() }
    }

    /// Publishes while this happens, until everything is linked up again and every client gets what
    /// is new.
    async fn during(&mut self, happening: impl AsyncFnOnce(&mut Tiers)) {
        let Self { market, tiers, .. } = self;
        market.publish_while(happening(tiers)).await;
        market.publish_while(tiers.recovered()).await;
        market.until_heard(BACK).await;
    }

    /// As [`Scene::during`], and the vendor is away meanwhile: what it sends then may be missing.
    async fn without_vendor(&mut self, happening: impl AsyncFnOnce(&mut Tiers)) {
        let before = self.market.events.len().saturating_sub(ON_THEIR_WAY);
        self.during(happening).await;
        self.excuses.firehose.push(before..self.market.events.len());
    }

    /// Ends the clients and checks what they got. Returns what they saw.
    async fn end(mut self) -> (Tiers, BTreeMap<usize, Story>) {
        self.market.end();
        let mut stories = BTreeMap::new();
        while let Some(ended) = within(BACK, "the end", self.clients.join_next()).await {
            let (n, story) = ended.unwrap_or_else(|error| panic!("a client failed: {error}"));
            stories.insert(n, story);
        }
        let channels = vec!["*"; stories.len()];
        check(&self.market.events, &stories, &channels, &self.excuses);
        (self.tiers, stories)
    }
}

/// How often a notice came that begins with this text.
fn count(story: &Story, notice: &str) -> usize {
    let named = story.notices.iter().filter(|(name, _)| name.starts_with(notice));
    named.map(|(_, times)| times).sum()
}

/// Waits until a problem in `/health` contains these texts, and returns it.
async fn problem(program: &Program, parts: &[&str]) -> String {
    let mut found = None;
    eventually(BACK, &format!("a problem with {parts:?}"), async || {
        let health = program.health().await;
        let problems = health["problems"].as_array().cloned().unwrap_or_default();
        let mut texts = problems.iter().filter_map(Value::as_str);
        found = texts.find(|text| parts.iter().all(|part| text.contains(part))).map(str::to_owned);
        found.is_some()
    })
    .await;
    found.expect("the condition held")
}

/// Waits until this standby has taken over.
async fn takes_over(standby: &Program, limit: Duration) {
    let took_over = async || standby.health_text("/upstream/state").await == "up";
    eventually(limit, "the standby takes over", took_over).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_only_server_is_killed_and_comes_back() {
    let mut scene = Scene::start(Plan { firehoses: 2, ..Plan::default() }).await;
    let dials = scene.tiers.dials().len();
    scene
        .during(async |tiers| {
            tiers.kill(Part::Node(0)).await;
            sleep(Duration::from_secs(3)).await;
            tiers.revive(Part::Node(0)).await;
        })
        .await;
    let (tiers, stories) = scene.end().await;
    assert_eq!(tiers.dials().len(), dials, "the firehose kept the vendor's connection");
    assert_eq!(count(&stories[&0], "firehose upstream_down"), 0, "{:?}", stories[&0].notices);
    assert_eq!(count(&stories[&0], "filtered upstream_up nothing missed"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_only_server_stands_still() {
    let mut scene = Scene::start(Plan { firehoses: 2, ..Plan::default() }).await;
    let dials = scene.tiers.dials().len();
    scene
        .during(async |tiers| {
            tiers.stop(Part::Node(0));
            sleep(Duration::from_secs(5)).await;
            tiers.cont(Part::Node(0));
        })
        .await;
    let (tiers, _) = scene.end().await;
    assert_eq!(tiers.dials().len(), dials, "the firehose kept the vendor's connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_only_server_stands_still_again_and_again() {
    let mut scene = Scene::start(Plan { firehoses: 2, proxies: 2, ..Plan::default() }).await;
    let dials = scene.tiers.dials().len();
    let mut rng = Rng::with_seed(seed::of_this_run());
    for _ in 0..STOPS {
        let lasting = Duration::from_millis(rng.u64(500..4_500));
        println!("{lasting:?}");
        scene
            .during(async |tiers| {
                tiers.stop(Part::Node(0));
                sleep(lasting).await;
                tiers.cont(Part::Node(0));
            })
            .await;
        let stored = messages(&scene.tiers.nats.client().await, STREAM).await;
        check_chain(&stored).expect("each message begins where the one before it ends");
    }
    let (tiers, _) = scene.end().await;
    assert_eq!(tiers.dials().len(), dials, "the firehose kept the vendor's connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_leader_of_three_servers_is_killed() {
    // A busy machine elects more slowly than one at rest.
    let patient = vec![("LEASE_KEEP", "60s".to_owned())];
    let plan =
        Plan { nodes: 3, firehoses: 2, proxies: 2, firehose_env: patient, ..Plan::default() };
    let mut scene = Scene::start(plan).await;
    let dials = scene.tiers.dials().len();
    for stream in [STREAM, "KV_POLYGON_LEASE"] {
        scene
            .during(async |tiers| {
                let leader = Part::Node(tiers.nats.leader_of(stream).await);
                tiers.kill(leader).await;
                tiers.recovered().await;
                tiers.revive(leader).await;
            })
            .await;
    }
    let (tiers, _) = scene.end().await;
    assert_eq!(tiers.dials().len(), dials, "the firehose kept the vendor's connection");
    tiers.check_dials().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_a_server_is_replaced_by_plan() {
    let quick = "lame_duck_duration: 30s\nlame_duck_grace_period: 1s\n".to_owned();
    let plan = Plan { nodes: 3, nats: quick, firehoses: 2, ..Plan::default() };
    let mut scene = Scene::start(plan).await;
    let dials = scene.tiers.dials().len();
    scene
        .during(async |tiers| {
            let leader = tiers.nats.leader_of(STREAM).await;
            tiers.nats.nodes[leader].lame_duck().await;
            tiers.revive(Part::Node(leader)).await;
        })
        .await;
    let (tiers, _) = scene.end().await;
    assert_eq!(tiers.dials().len(), dials, "the firehose kept the vendor's connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_in_memory_that_is_lost_begins_anew() {
    let memory = vec![("NATS_STORAGE", "memory".to_owned())];
    let mut scene = Scene::start(Plan { firehose_env: memory, ..Plan::default() }).await;
    // The lost stream may have held what no client had got yet.
    scene
        .without_vendor(async |tiers| {
            tiers.kill(Part::Node(0)).await;
            sleep(Duration::from_secs(1)).await;
            tiers.revive(Part::Node(0)).await;
        })
        .await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_disk_of_the_only_server_begins_a_new_stream() {
    let mut scene = Scene::start(Plan { firehoses: 2, ..Plan::default() }).await;
    scene
        .without_vendor(async |tiers| {
            tiers.kill(Part::Node(0)).await;
            tiers.nats.nodes[0].wipe();
            tiers.revive(Part::Node(0)).await;
            // The lease is gone too. Until its holder notices that, all looks well.
            let stepped_down = async || tiers.holder().await.is_none();
            eventually(BACK, "the holder steps down", stepped_down).await;
        })
        .await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_when_the_firehose_dies() {
    let mut scene = Scene::start(Plan { firehoses: 2, ..Plan::default() }).await;
    let holder = scene.tiers.holder().await.expect("a holder");
    scene
        .without_vendor(async |tiers| {
            tiers.kill(Part::Firehose(holder)).await;
        })
        .await;
    assert_eq!(scene.tiers.holder().await, Some(1 - holder));
    let (tiers, stories) = scene.end().await;
    assert!(count(&stories[&0], "firehose upstream_up") > 0, "{:?}", stories[&0].notices);
    tiers.check_dials().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_standby_the_next_start_goes_on_in_the_same_stream() {
    let mut scene = Scene::start(Plan::default()).await;
    scene
        .without_vendor(async |tiers| {
            tiers.kill(Part::Firehose(0)).await;
            sleep(Duration::from_secs(1)).await;
            tiers.revive(Part::Firehose(0)).await;
        })
        .await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_hear_that_the_firehose_is_silent_while_none_runs() {
    let mut scene = Scene::start(Plan::default()).await;
    scene
        .without_vendor(async |tiers| {
            tiers.kill(Part::Firehose(0)).await;
            let reason = async || tiers.filtered[0].health_text("/upstream/last_error").await;
            let silent = async || reason().await.contains("silent");
            eventually(SOON, "the proxy notices", silent).await;
            tiers.revive(Part::Firehose(0)).await;
        })
        .await;
    let (_, stories) = scene.end().await;
    assert!(count(&stories[&0], "filtered upstream_down") > 0, "{:?}", stories[&0].notices);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firehose_that_stood_still_is_out_when_it_wakes_up() {
    let mut scene = Scene::start(Plan { firehoses: 2, ..Plan::default() }).await;
    let holder = scene.tiers.holder().await.expect("a holder");
    scene
        .without_vendor(async |tiers| {
            tiers.stop(Part::Firehose(holder));
            takes_over(&tiers.firehoses[1 - holder], BACK).await;
            tiers.cont(Part::Firehose(holder));
        })
        .await;
    let (tiers, _) = scene.end().await;
    tiers.check_dials().await;
    assert_eq!(tiers.holder().await, Some(1 - holder));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_stop_hands_over_at_once() {
    let mut scene = Scene::start(Plan { firehoses: 2, ..Plan::default() }).await;
    let holder = scene.tiers.holder().await.expect("a holder");
    scene
        .without_vendor(async |tiers| {
            tiers.firehoses[holder].signal(Signal::SIGTERM);
            tiers.firehoses[holder].wait_exit(SOON).await;
            takes_over(&tiers.firehoses[1 - holder], SOON).await;
        })
        .await;
    let (tiers, _) = scene.end().await;
    tiers.check_dials().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_when_the_standby_dies() {
    let mut scene = Scene::start(Plan { firehoses: 2, ..Plan::default() }).await;
    let holder = scene.tiers.holder().await.expect("a holder");
    let dials = scene.tiers.dials().len();
    scene.during(async |tiers| tiers.kill(Part::Firehose(1 - holder)).await).await;
    let (tiers, stories) = scene.end().await;
    assert_eq!(tiers.dials().len(), dials);
    let told = |name: &&String| name.contains("upstream") || name.contains("gap");
    assert_eq!(stories[&0].notices.keys().find(told), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firehose_that_cannot_reach_nats_hands_over() {
    let mut scene = Scene::start(Plan { firehoses: 2, ..Plan::default() }).await;
    let holder = scene.tiers.holder().await.expect("a holder");
    scene
        .without_vendor(async |tiers| {
            tiers.cut(Part::Firehose(holder));
            takes_over(&tiers.firehoses[1 - holder], BACK).await;
            tiers.heal(Part::Firehose(holder));
        })
        .await;
    let (tiers, _) = scene.end().await;
    tiers.check_dials().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_cannot_reach_nats_goes_on_without_loss() {
    let mut scene = Scene::start(Plan { proxies: 2, ..Plan::default() }).await;
    scene
        .during(async |tiers| {
            tiers.cut(Part::Proxy(0));
            sleep(Duration::from_secs(4)).await;
            tiers.heal(Part::Proxy(0));
        })
        .await;
    let (_, stories) = scene.end().await;
    assert!(count(&stories[&0], "filtered upstream_up nothing missed") > 0);
    assert_eq!(count(&stories[&1], "filtered upstream_down"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_stands_still_for_half_a_minute_loses_nothing() {
    // Its client waits that long.
    let mut scene = Scene::start(Plan { proxies: 2, ..Plan::default() }).await;
    scene
        .during(async |tiers| {
            tiers.stop(Part::Proxy(0));
            sleep(STILL).await;
            tiers.cont(Part::Proxy(0));
        })
        .await;
    let (_, stories) = scene.end().await;
    assert_eq!(count(&stories[&1], "filtered upstream_down"), 0);
}

/// A disk of its own, in memory. Dropping it removes it.
struct Disk(PathBuf);

impl Disk {
    /// A disk of this many MiB. `None` where the machine does not let us make one.
    async fn new(size: u32) -> Option<Self> {
        let dir = tempfile::tempdir().expect("make a temporary directory").keep();
        let done = mount(&format!("size={size}m"), &dir).await;
        if !done {
            std::fs::remove_dir(&dir).expect("remove a directory");
            // Written directly, because the test runner hides the output of tests that pass.
            let text = "\n*** SKIPPED: a full disk: this user may not mount one ***";
            let _ = writeln!(std::io::stderr(), "{text}");
            return None;
        }
        Some(Self(dir))
    }

    async fn grow(&self, size: u32) {
        assert!(mount(&format!("remount,size={size}m"), &self.0).await);
    }
}

async fn mount(options: &str, dir: &std::path::Path) -> bool {
    let mut mount = installed("mount", "mount");
    mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir);
    mount.stderr(std::process::Stdio::null());
    within(SOON, "mount", mount.status()).await.expect("run mount").success()
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server may not have ended yet.
        let unmount = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
        if unmount.is_ok_and(|status| status.success()) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_loses_nothing_once_there_is_room() {
    let Some(disk) = Disk::new(SMALL_DISK).await else { return };
    let nats = format!("jetstream {{ store_dir: \"{}/store\", max_file: 100G }}", disk.0.display());
    let mut scene = Scene::start(Plan { nats, ..Plan::default() }).await;
    for _ in 0..FILLING_FRAMES {
        let first = scene.market.events.len();
        let padding = "x".repeat(FILLING_BYTES);
        let event = format!(r#"{{"ev":"Q","sym":"S2","q":{first},"x":"{padding}"}}"#);
        scene.market.events.push(event);
        scene.market.send(first);
    }
    let line = {
        let Scene { market, tiers, .. } = &mut scene;
        market.publish_while(problem(&tiers.firehoses[0], &["NATS"])).await
    };
    println!("{line}");
    disk.grow(LARGE_DISK).await;
    scene
        .during(async |tiers| {
            // A server whose disk was full takes nothing until it is started again.
            tiers.kill(Part::Node(0)).await;
            tiers.revive(Part::Node(0)).await;
        })
        .await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_room_for_the_stream_is_told_in_one_line() {
    let nats = NatsServer::with("jetstream { store_dir: \"$STORE\", max_file: 64M }").await;
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).env("NATS_URL", nats.url()).start().await;
    let line = problem(&firehose, &["NATS"]).await;
    assert!(!line.contains('\n'), "{line}");
    println!("{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_jetstream_is_told_in_one_line() {
    let nats = NatsServer::with("# no jetstream\n").await;
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).env("NATS_URL", nats.url()).start().await;
    println!("{}", problem(&firehose, &["JetStream"]).await);
    let proxy = stack::filtered_on_nats(&nats.url()).start().await;
    println!("{}", problem(&proxy, &["JetStream"]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_server_that_can_be_had_serves_as_well() {
    let nats = NatsServer::with_version(Version::Old, "").await;
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).env("NATS_URL", nats.url()).start().await;
    let proxy = stack::filtered_on_nats(&nats.url()).start().await;
    stack::is_up(&proxy).await;
    stack::is_answered(&firehose).await;
    stack::is_complete(&proxy).await;
    let mut client = tests::ws_client::TestClient::login(proxy.addr(), CLIENT_KEY).await;
    client.subscribe("T.*").await;
    sim.handle.publish(&[crate::events::trade("AAPL", 1)]);
    client.expect_event(&crate::events::trade("AAPL", 1)).await;
}
