//! Several markets with one pair of programs, clients of each that change their subscriptions all
//! the time, and faults of one market and of all. Each client must receive exactly the events of
//! its market and channels, and a fault of one market must not be felt in another.

use std::time::Duration;

use fastrand::Rng;
use polygon_sim::{Fault, SimConfig, generate::sample_kinds};
use tests::{
    churn::{Crowd, Told},
    program::Signal,
    relay::{self, Relay},
    stack::{self, Stack, StackConfig},
    wait::{SOON, within},
};

use crate::seed;

const MARKETS: [&str; 3] = ["stocks", "options", "crypto"];
/// Symbols that the events of each market have now and then, whatever market they are of.
const FOREIGN: [&str; 2] = ["AAPL", "O:SPY261218C00650000"];
const KEYS: [&str; 3] = ["desk-a", "desk-b", "desk-c"];
/// The clients of each market, half of them at each filtered proxy.
const CLIENTS: usize = 10;
/// How many quotes of options the vendor serves at a time.
const ROOM: usize = 10;
/// The frames published while nothing else happens.
const QUIET: usize = 40;

/// The reason of an outage begins with one of these.
const LOST: &str = "connection lost: ";
const EVICTED: &str = "max_connections: ";
const REFUSED: &str = "auth_failed: ";

/// All programs, and a crowd in each market.
struct Day {
    /// For the times and the markets of frames. How often it is drawn from depends on the machine.
    pace: Rng,
    crowds: Vec<Crowd>,
    /// Stands between the firehose and the second filtered proxy.
    relay: Relay,
    stack: Stack,
}

impl Day {
    async fn start(rng: &mut Rng) -> Self {
        let keys = ("CLIENT_API_KEYS", KEYS.join(","));
        let markets = MARKETS.join(",");
        let mut stack = Stack::with(StackConfig {
            sim: SimConfig { market: markets.clone(), contracts: ROOM, ..SimConfig::default() },
            firehose_env: vec![
                // The clients also choose types that `*` leaves out by default.
                ("UPSTREAM_CHANNELS_STOCKS", sample_kinds("stocks").join(",")),
                ("UPSTREAM_CHANNELS_CRYPTO", sample_kinds("crypto").join(",")),
                ("UPSTREAM_CONTRACTS", ROOM.to_string()),
                ("UPSTREAM_LINGER", "1ms".to_owned()),
            ],
            filtered_env: vec![keys.clone()],
            ..StackConfig::default()
        })
        .await;
        let relay = Relay::start(stack.firehose.addr()).await;
        let second = stack::filtered(relay.addr()).env("MARKETS", markets).envs([keys]);
        stack.filtered.push(second.start().await);
        stack.linked().await;
        let mut crowds = Vec::new();
        for market in MARKETS {
            let mut crowd = Crowd::new(stack.sim.market(market), rng.u64(..), &FOREIGN);
            for n in 0..CLIENTS {
                // All but one at each proxy hold a channel all the time.
                let key = KEYS[n % KEYS.len()];
                crowd.join(stack.filtered[n % 2].addr(), key, n >= 2);
            }
            crowd.visit(stack.filtered[crowds.len() % 2].addr(), KEYS[0]);
            crowds.push(crowd);
        }
        Self { pace: rng.fork(), crowds, relay, stack }
    }

    /// Publishes a frame in some market.
    async fn publish(&mut self) {
        self.pace.choice(&mut self.crowds).expect("there are markets").publish();
        tokio::time::sleep(Duration::from_millis(self.pace.u64(..16))).await;
    }

    /// Publishes in all markets until the condition holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&[Crowd]) -> bool) {
        within(SOON, what, async {
            while !condition(&self.crowds) {
                self.publish().await;
            }
        })
        .await;
    }

    /// Publishes in all markets for a while in which nothing else happens.
    async fn go_on(&mut self) {
        for _ in 0..QUIET {
            self.publish().await;
        }
    }

    /// Injects faults into one market, and waits until its clients are told of an outage with this
    /// reason.
    async fn strike(&mut self, market: usize, faults: &[Fault], why: &str) {
        let known: Vec<_> =
            witnesses(&self.crowds[market]).iter().map(|t| t.notices.len()).collect();
        for fault in faults {
            self.crowds[market].sim().inject(fault.clone());
        }
        let is_such = |[status, _, reason]: &[String; 3]| {
            status == "upstream_down" && reason.starts_with(why)
        };
        self.until(why, |crowds| {
            let told = witnesses(&crowds[market]);
            told.iter().zip(&known).all(|(told, known)| told.notices[*known..].iter().any(is_such))
        })
        .await;
    }

    /// Waits until so many outages of each market have ended, and none lasts.
    async fn is_back(&mut self, ends: [usize; 3]) {
        self.until("everything comes again", |crowds| {
            let mut crowds = crowds.iter().zip(ends);
            crowds.all(|(crowd, ends)| {
                let is_back = |told: &Told| told.down.is_empty() && told.ends("firehose") == ends;
                witnesses(crowd).iter().all(is_back)
            })
        })
        .await;
    }
}

/// What those clients were told that get every notice.
fn witnesses(crowd: &Crowd) -> Vec<Told> {
    crowd.told().into_iter().filter(|told| told.anchored).collect()
}

/// All notices that the clients of a market got.
fn notices(crowd: &Crowd) -> Vec<Vec<[String; 3]>> {
    crowd.told().into_iter().map(|told| told.notices).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_client_gets_the_events_of_its_market_whatever_happens_in_the_others() {
    let seed = seed::of_this_run();
    // Printed when the test fails.
    println!("TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    // The markets in any order, each with a trouble of its own.
    let mut order = [0, 1, 2];
    rng.shuffle(&mut order);
    let [lost, refused, spared] = order;
    let is_evicted = rng.bool();
    println!("lost: {}, by eviction: {is_evicted}; refused: {}", MARKETS[lost], MARKETS[refused]);
    let mut day = Day::start(&mut rng).await;
    day.until("all clients have begun", |crowds| {
        crowds.iter().flat_map(witnesses).all(|told| told.has_begun)
    })
    .await;
    day.go_on().await;

    let mut ends = [0; 3];
    if is_evicted {
        day.strike(lost, &[Fault::Evict], EVICTED).await;
        // After an eviction the firehose leaves the connection to the other program for a minute.
        day.stack.firehose.signal(Signal::SIGHUP);
    } else {
        day.strike(lost, &[Fault::Abort], LOST).await;
    }
    ends[lost] += 1;
    day.is_back(ends).await;
    day.go_on().await;
    for market in [refused, spared] {
        assert!(notices(&day.crowds[market]).iter().all(Vec::is_empty), "{}", MARKETS[market]);
    }

    let before = notices(&day.crowds[lost]);
    day.strike(refused, &[Fault::RefuseAuth { on: true }, Fault::Abort], REFUSED).await;
    day.go_on().await;
    assert!(notices(&day.crowds[spared]).iter().all(Vec::is_empty), "{}", MARKETS[spared]);
    assert_eq!(notices(&day.crowds[lost]), before, "{}", MARKETS[lost]);

    // A fault that hits all markets, but only at the second proxy: while one market is refused.
    day.relay.inject(relay::Fault::Reset);
    day.until("the second proxy is back", |crowds| {
        let is_back =
            |told: &Told| told.ends("filtered") == 1 && !told.down.contains_key("filtered");
        crowds.iter().all(|crowd| {
            let told = crowd.told();
            told.iter().skip(1).step_by(2).filter(|told| told.anchored).all(is_back)
        })
    })
    .await;
    day.go_on().await;

    // All markets are lost, and one is refused no more. They come back one after the other.
    for crowd in &day.crowds {
        crowd.sim().inject(Fault::RefuseAuth { on: false });
        crowd.sim().inject(Fault::Abort);
    }
    day.stack.firehose.signal(Signal::SIGHUP);
    ends = ends.map(|ends| ends + 1);
    day.is_back(ends).await;
    day.go_on().await;
    day.end(ends, lost, refused, is_evicted).await;
}

impl Day {
    /// Ends the day, and checks what every client got.
    async fn end(self, ends: [usize; 3], lost: usize, refused: usize, is_evicted: bool) {
        for (market, crowd) in self.crowds.iter().enumerate() {
            for (n, told) in crowd.told().iter().enumerate() {
                let what = format!("client {n} of {}: {:?}", MARKETS[market], told.notices);
                let of_filtered = told.ends("filtered");
                assert!(of_filtered <= n % 2, "{what}");
                assert!(told.ends("firehose") <= ends[market], "{what}");
                for [status, tier, why] in &told.notices {
                    let is_right = match tier.as_str() {
                        "filtered" => n % 2 == 1,
                        _ => {
                            why.starts_with(LOST)
                                || why.starts_with(EVICTED) && market == lost && is_evicted
                                || why.starts_with(REFUSED) && market == refused
                        }
                    };
                    assert!(is_right, "{status} of {tier}: {why}: {what}");
                }
            }
            // The connections of markets that are up stay as they are.
            let auths = crowd.sim().stats().auths;
            assert_eq!(auths, 1 + ends[market] as u64, "{}", MARKETS[market]);
        }
        for mut crowd in self.crowds {
            let market = crowd.market();
            let summary = if market == "options" {
                crowd.end_with_contracts(ROOM).await
            } else {
                crowd.settle().await;
                crowd.end().await
            };
            let is_much = summary.events.len() > 500
                && summary.received > 1_000
                && summary.changes > 10 * CLIENTS
                && (market != "options" || summary.grants > 50 && summary.losses > 10);
            assert!(is_much, "too little happened in {market}: {summary}");
        }
    }
}
