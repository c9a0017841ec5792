//! The soak: a market that sends damaged frames, faults at every hop, clients that come and go, and
//! clients that do not read, for any length of time. At its end the programs must hold no more than
//! at its beginning.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    chain::{Chain, Day, Hop},
    program::Program,
    relay::schedule,
    stack::CLIENT_KEY,
    wait::{SOON, eventually},
    ws_client::TestClient,
};

/// The length of a round. After each round the programs are measured.
const ROUND: Duration = Duration::from_secs(20);
/// The longest fault, and the longest pause between two faults.
const LONGEST: Duration = Duration::from_millis(1_500);
/// The pause between two measurements while a program still has something to release.
const PAUSE: Duration = Duration::from_millis(100);
/// Clients that come and go, and clients that do not read.
const VISITORS: usize = 4;
const STALLED: usize = 4;
/// Bytes added to each frame, so that clients that do not read are noticed.
const PADDING: usize = 4_000;

/// How much the memory of a program may differ between two measurements. A link keeps five read
/// buffers of a megabyte after long frames, and the allocator keeps a part of every burst. Mostly
/// the difference is less than half a megabyte.
const MEMORY_SLACK: u64 = 6_000_000;
/// How many files, threads or tasks may still be ending during a measurement: those that answered
/// the last request.
const SLACK: u64 = 2;

/// The resources that a program holds at rest.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Resident memory in bytes, without mapped files.
    pub memory: u64,
    /// Open file descriptors.
    pub files: u64,
    /// Threads.
    pub threads: u64,
    /// Asynchronous tasks.
    pub tasks: u64,
    /// Sessions.
    pub sessions: u64,
}

impl Held {
    async fn by(program: &Program, tier: &str) -> Self {
        let metric = async |name: &str| program.metric(name).await.expect("a gauge") as u64;
        let status = format!("/proc/{}/status", program.id());
        let status = std::fs::read_to_string(status).expect("a program's status");
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.unwrap_or_else(|| panic!("no {name} in {status}"))
        };
        let files = std::fs::read_dir(format!("/proc/{}/fd", program.id()));
        Self {
            memory: field("RssAnon:") * 1_024,
            files: files.expect("a program's files").count() as u64,
            threads: field("Threads:"),
            tasks: metric("process_tasks").await,
            sessions: metric(&format!("{tier}_sessions")).await,
        }
    }

    /// Whether this is no more than before, apart from small variations.
    fn is_back_at(&self, before: &Self) -> bool {
        self.memory <= before.memory + MEMORY_SLACK
            && self.files <= before.files + SLACK
            && self.threads <= before.threads + SLACK
            && self.tasks <= before.tasks + SLACK
            && self.sessions == before.sessions
    }
}

/// The result of a soak.
#[derive(Debug, Default)]
pub struct Report {
    /// Rounds, each checked by the oracle.
    pub rounds: usize,
    /// Faults injected.
    pub faults: usize,
    /// Events published.
    pub events: usize,
    /// Events that watchers received. Each one was checked.
    pub received: usize,
    /// Connections of watchers.
    pub connections: usize,
    /// Sessions of clients that came and went.
    pub visits: usize,
    /// Sessions closed as slow consumers.
    pub slow: u64,
    /// What firehose and filtered proxy held after each round.
    pub held: Vec<[Held; 2]>,
}

impl Report {
    /// Checks that the programs hold no more after the last round than after the first. The state
    /// before the first does not count, because one-time allocations happen in it.
    ///
    /// # Errors
    ///
    /// Says what has grown.
    pub fn check(&self) -> Result<(), String> {
        let (Some(first), Some(last)) = (self.held.first(), self.held.last()) else {
            return Err("no round".to_owned());
        };
        for (tier, (before, after)) in
            ["firehose", "filtered"].into_iter().zip(first.iter().zip(last))
        {
            if !after.is_back_at(before) {
                return Err(format!("{tier} has grown from {before:?} to {after:?}"));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} rounds, {} faults, {} events, {} received on {} connections, {} visits, {} slow",
            self.rounds,
            self.faults,
            self.events,
            self.received,
            self.connections,
            self.visits,
            self.slow,
        )?;
        for (n, tiers) in self.held.iter().enumerate() {
            for (tier, held) in ["firehose", "filtered"].into_iter().zip(tiers) {
                writeln!(
                    f,
                    "after round {}: {tier} {:.1} MB, {} files, {} threads, {} tasks, {} sessions",
                    n + 1,
                    held.memory as f64 / 1e6,
                    held.files,
                    held.threads,
                    held.tasks,
                    held.sessions,
                )?;
            }
        }
        Ok(())
    }
}

/// Soaks for at least this long, and for at least two rounds.
///
/// # Panics
///
/// If a client did not get its events, if a ledger does not balance, or if something does not come
/// back.
pub async fn soak(time: Duration, seed: u64) -> Report {
    let settings =
        [("CLIENT_QUEUE_BYTES", "300000"), ("CLIENT_MAX_LAG", "4s"), ("HISTORY_BYTES", "1000000")];
    let chain = Chain::start(&settings).await;
    let round = ROUND.min(time / 2);
    let mut rng = Rng::with_seed(seed);
    let mut report = Report::default();
    let end = Instant::now() + time;
    while Instant::now() < end || report.rounds < 2 {
        play(&chain, &mut rng, round, &mut report).await;
        report.rounds += 1;
        let held = at_rest(&chain, report.held.first()).await;
        report.held.push(held);
    }
    let label = r#"reason="slow_consumer""#;
    let slow = chain.filtered.metric_with("filtered_sessions_closed_total", label).await;
    report.slow = slow.unwrap_or_default() as u64;
    report
}

/// One round.
async fn play(chain: &Chain, rng: &mut Rng, time: Duration, report: &mut Report) {
    let mut day = Day::new(rng.u64(..)).padded(PADDING).damaged();
    for (relayed, channels) in [(true, "T.*,Q.*"), (true, "Q.S1"), (false, "*"), (false, "T.S2")] {
        day.watch(chain, relayed, channels).await;
    }
    let mut others = JoinSet::new();
    for _ in 0..STALLED {
        others.spawn(stall(chain.filtered.addr()));
    }
    let mut visitors = JoinSet::new();
    let end = Instant::now() + time;
    for _ in 0..VISITORS {
        visitors.spawn(come_and_go(chain.filtered.addr(), rng.fork(), end));
    }
    let mut plans = Hop::ALL.map(|hop| (hop, rng.fork()));
    let [vendor, firehose, client] = &mut plans;
    let trouble = async {
        tokio::join!(
            make_trouble(chain, vendor, end),
            make_trouble(chain, firehose, end),
            make_trouble(chain, client, end)
        )
    };
    let (a, b, c) = day.publish_while(chain, trouble).await;
    report.faults += a + b + c;
    while let Some(visits) = visitors.join_next().await {
        report.visits += visits.unwrap_or_else(|error| panic!("a visitor failed: {error}"));
    }
    others.shutdown().await;
    day.recover(chain).await;
    let summary = day.end(chain).await;
    report.events += summary.events;
    report.received += summary.received();
    report.connections += summary.connections();
}

/// Injects one fault after the other at one hop. Returns how many.
async fn make_trouble(chain: &Chain, (hop, rng): &mut (Hop, Rng), end: Instant) -> usize {
    let mut faults = 0;
    while Instant::now() < end {
        let plan = schedule(rng, 1, LONGEST);
        faults += plan.len();
        chain.relay(*hop).play(&plan).await;
    }
    faults
}

/// Subscribes to everything and reads none of it.
async fn stall(addr: SocketAddr) {
    let mut client = TestClient::connect_narrow(addr, 4_096).await;
    client.log_in(CLIENT_KEY).await;
    client.command("subscribe", "*").await;
    std::future::pending::<()>().await;
}

/// Connects, subscribes and drops the connection, again and again. Returns how often.
async fn come_and_go(addr: SocketAddr, mut rng: Rng, end: Instant) -> usize {
    let mut visits = 0;
    while Instant::now() < end {
        let mut client = TestClient::login(addr, CLIENT_KEY).await;
        let items: Vec<_> = (0..rng.usize(1..20)).map(|_| format!("T.S{}", rng.u8(..16))).collect();
        client.command("subscribe", &items.join(",")).await;
        client.next_text().await;
        sleep(Duration::from_millis(rng.u64(..50))).await;
        visits += 1;
    }
    visits
}

/// What the programs hold once all clients have left. If it is more than `before`, the programs get
/// some time to release it.
async fn at_rest(chain: &Chain, before: Option<&[Held; 2]>) -> [Held; 2] {
    eventually(SOON, "all clients have left", async || {
        chain.filtered.metric("filtered_sessions").await == Some(0.0)
            && chain.filtered.metric("filtered_queue_bytes").await == Some(0.0)
            && chain.firehose.metric("firehose_sessions").await == Some(1.0)
    })
    .await;
    let deadline = Instant::now() + SOON;
    loop {
        let held = [
            Held::by(&chain.firehose, "firehose").await,
            Held::by(&chain.filtered, "filtered").await,
        ];
        let mut pairs = held.iter().zip(before.into_iter().flatten());
        if pairs.all(|(after, before)| after.is_back_at(before)) || Instant::now() >= deadline {
            return held;
        }
        sleep(PAUSE).await;
    }
}
