//! Several firehoses of which one may dial, and how long it takes until the next one does.

use std::{
    fmt,
    time::{Duration, Instant},
};

use polygon_sim::SimConfig;
use tokio::{task::JoinSet, time::interval};

use crate::{
    nats::NatsServer,
    program::{Launch, Program, Signal},
    stack::{self, FIREHOSE_KEY, Sim},
    wait::{SOON, eventually, within},
    ws_client::TestClient,
};

/// How often the market is watched and publishes.
const TICK: Duration = Duration::from_millis(1);

/// Firehoses with a lease, and the vendor that they share.
#[derive(Debug)]
pub struct Contenders {
    /// The firehoses that run.
    pub programs: Vec<Program>,
    /// The vendor.
    pub sim: Sim,
    settings: Vec<(&'static str, String)>,
}

impl Contenders {
    /// So many firehoses with these settings, one of which holds the lease and is connected. The
    /// others could take it.
    ///
    /// # Panics
    ///
    /// If that is not so in time.
    pub async fn start(count: usize, settings: Vec<(&'static str, String)>) -> Self {
        let sim = Sim::with(SimConfig::default()).await;
        let mut contenders = Self { programs: Vec::new(), sim, settings };
        for _ in 0..count {
            let program = contenders.launch().start().await;
            contenders.programs.push(program);
        }
        contenders.complete().await;
        contenders
    }

    /// As [`start`](Self::start), with leases in this NATS.
    ///
    /// # Panics
    ///
    /// If that is not so in time.
    pub async fn on_nats(
        count: usize,
        nats: &NatsServer,
        mut more: Vec<(&'static str, String)>,
    ) -> Self {
        more.extend([("NATS_URL", nats.url()), ("LEASE", "nats".to_owned())]);
        Self::start(count, more).await
    }

    /// One more firehose, about to be started.
    #[must_use]
    pub fn launch(&self) -> Launch {
        stack::firehose(&self.sim.url("stocks"))
            .env("DRAIN_SPREAD", "0s")
            .envs(self.settings.clone())
    }

    /// Waits until one holds the lease and is connected, and all others could take it. Returns
    /// which one.
    ///
    /// # Panics
    ///
    /// If that is not so in time.
    pub async fn complete(&self) -> usize {
        let mut holder = None;
        eventually(SOON, "one holds the lease, and the others stand by", async || {
            holder = None;
            for (n, program) in self.programs.iter().enumerate() {
                let health = program.health().await;
                let lease = &health["lease"];
                if lease["ready"] != true {
                    return false;
                }
                if lease["role"] == "holder" {
                    if health["upstream"]["state"] != "up" || holder.is_some() {
                        return false;
                    }
                    holder = Some(n);
                }
            }
            holder.is_some()
        })
        .await;
        holder.expect("one of them holds it")
    }

    /// Waits until one of these holds the lease and is connected.
    ///
    /// # Panics
    ///
    /// If that is not so in time.
    pub async fn holder_among(&self, among: &[usize]) -> usize {
        let mut holder = None;
        eventually(SOON, "one of the others takes over", async || {
            for &n in among {
                if self.is_connected_holder(n).await {
                    holder = Some(n);
                }
            }
            holder.is_some()
        })
        .await;
        holder.expect("one of them holds it")
    }

    async fn is_connected_holder(&self, n: usize) -> bool {
        let health = self.programs[n].health().await;
        health["lease"]["role"] == "holder" && health["upstream"]["state"] == "up"
    }

    /// How many connections the vendor has been dialled for in all.
    #[must_use]
    pub fn dialled(&self) -> u64 {
        self.sim.handle.stats().tcp_accepted
    }
}

/// Waits until a firehose stands by and could take the lease.
///
/// # Panics
///
/// If that is not so in time.
pub async fn stands_by(program: &Program) {
    eventually(SOON, "it stands by", async || {
        let health = program.health().await;
        health["lease"]["role"] == "standby"
            && health["lease"]["ready"] == true
            && health["upstream"]["state"] == "standby"
    })
    .await;
}

/// A trade.
#[must_use]
pub fn trade(n: usize) -> String {
    format!(
        r#"{{"ev":"T","sym":"AAPL","i":"{n}","x":4,"p":231.5,"s":1,"t":1790604301417,"q":{n}}}"#
    )
}

/// How the holder ends in one kind of rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It is killed, and another firehose started.
    Kill,
    /// It stands still, and goes on after the takeover.
    Stop,
}

/// What rounds of takeovers have shown.
#[derive(Debug, Clone)]
pub struct Report {
    /// How the holders ended.
    pub death: Death,
    /// From the end of a holder to the first event of the next one, for each round.
    pub times: Vec<Duration>,
    /// In how many rounds the vendor had two connections at some moment.
    pub overlaps: usize,
    /// How often the vendor was dialled beyond once for each takeover.
    pub further_dials: u64,
    /// How many connections the vendor ended because there was another.
    pub evictions: u64,
}

impl Report {
    /// The time that this share of the rounds did not exceed.
    ///
    /// # Panics
    ///
    /// If there was no round.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let mut times = self.times.clone();
        times.sort();
        let last = times.len().checked_sub(1).expect("there was a round");
        times[(last as f64 * share).round() as usize]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { death, times, overlaps, further_dials, evictions } = self;
        let what = match death {
            Death::Kill => "SIGKILL",
            Death::Stop => "SIGSTOP",
        };
        writeln!(
            f,
            "{what}: {} rounds; first event of the next holder after p50 {:.2} s, at most {:.2} s; \
             two connected in {overlaps} rounds, {evictions} evicted; further dials: \
             {further_dials}",
            times.len(),
            self.quantile(0.5).as_secs_f64(),
            self.quantile(1.0).as_secs_f64(),
        )
    }
}

/// Ends the holder of the lease so often, and reads the events of the next one each time.
///
/// # Panics
///
/// If nobody takes over in time.
pub async fn takeovers(contenders: &mut Contenders, death: Death, rounds: usize) -> Report {
    let before = contenders.sim.handle.stats();
    let mut report =
        Report { death, times: Vec::new(), overlaps: 0, further_dials: 0, evictions: 0 };
    let mut market = JoinSet::new();
    let handle = contenders.sim.handle.clone();
    market.spawn(async move {
        let mut ticks = interval(TICK);
        for n in 0.. {
            ticks.tick().await;
            handle.publish(&[trade(n)]);
        }
    });
    for _ in 0..rounds {
        let holder = contenders.complete().await;
        let mut readers = JoinSet::new();
        for (n, program) in contenders.programs.iter().enumerate() {
            if n != holder {
                let mut client = TestClient::login(program.addr(), FIREHOSE_KEY).await;
                client.command("subscribe", "T.*").await;
                readers.spawn(async move {
                    loop {
                        if client.next_object().await.contains(r#""ev":"T""#) {
                            return Instant::now();
                        }
                    }
                });
            }
        }
        let mut watching = JoinSet::new();
        let handle = contenders.sim.handle.clone();
        watching.spawn(async move {
            let mut ticks = interval(TICK);
            loop {
                ticks.tick().await;
                if handle.stats().connections_now > 1 {
                    return;
                }
            }
        });
        let began = Instant::now();
        let signal = match death {
            Death::Kill => Signal::SIGKILL,
            Death::Stop => Signal::SIGSTOP,
        };
        contenders.programs[holder].signal(signal);
        let first = within(SOON, "the first event of the next holder", readers.join_next()).await;
        let first = first.expect("there is a standby").expect("it reads");
        report.times.push(first - began);
        report.overlaps += usize::from(watching.try_join_next().is_some());
        match death {
            Death::Kill => {
                contenders.programs[holder].wait_exit(SOON).await;
                let next = contenders.launch().start().await;
                contenders.programs[holder] = next;
            }
            Death::Stop => {
                contenders.programs[holder].signal(Signal::SIGCONT);
                stands_by(&contenders.programs[holder]).await;
            }
        }
    }
    let after = contenders.sim.handle.stats();
    report.further_dials = (after.tcp_accepted - before.tcp_accepted).abs_diff(rounds as u64);
    report.evictions = after.evictions - before.evictions;
    report
}
