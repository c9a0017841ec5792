//! The fault matrix: each fault at each link, and schedules drawn by chance. Whatever happens, each client gets what is
//! right, in order, complete up to what it is told it missed; and every ledger balances.

use std::time::Duration;

use fastrand::Rng;
use tests::{
    chain::{Chain, Day, Place},
    relay::{Fault, Planned, schedule},
};
use tokio::time::sleep;

use crate::seed;

/// How long a lasting fault lasts.
const LASTING: Duration = Duration::from_secs(1);
/// Faults at each link in a schedule, unless `TEST_FAULTS` says otherwise.
const FAULTS: usize = 6;
/// The longest pause between faults of a schedule, and the longest fault.
const LONGEST: Duration = Duration::from_millis(1_500);

#[tokio::test]
async fn between_vendor_and_firehose() {
    each_fault_at(Place::Vendor).await;
}

#[tokio::test]
async fn between_firehose_and_filtered_proxy() {
    each_fault_at(Place::Firehose).await;
}

#[tokio::test]
async fn between_filtered_proxy_and_clients() {
    each_fault_at(Place::Client).await;
}

async fn each_fault_at(place: Place) {
    let chain = Chain::start(&[]).await;
    let mut day = Day::new(seed::of_this_run());
    for (relayed, channels) in
        [(true, "T.*,Q.*"), (true, "T.S1,Q.S2"), (true, "*"), (false, "T.*,Q.*"), (false, "Q.S3")]
    {
        day.watch(&chain, relayed, channels).await;
    }
    for fault in Fault::ALL {
        println!("{fault} at {place:?}");
        let plan = [Planned { after: Duration::from_millis(300), fault, lasting: LASTING }];
        day.publish_while(&chain, chain.relay(place).play(&plan)).await;
        day.recover(&chain).await;
    }
    let verdict = day.end(&chain).await;
    println!("{place:?}: {} events, {} received", verdict.events, verdict.received());
    assert!(verdict.received() > verdict.events / 2, "too little happened");
    // A cut, a reset and a black hole lose connections; a delay and a throttle do not.
    for watched in &verdict.watchers {
        let told = |status| watched.iter().map(|one| one.told(status)).sum::<usize>();
        if place == Place::Client {
            assert_eq!((told("upstream_down"), told("gap")), (0, 0));
        } else {
            assert_eq!(watched.len(), 1, "clients stay connected: {:?}", watched[0].end);
            assert_eq!((told("upstream_down"), told("upstream_up")), (3, 3));
        }
    }
    let connections = verdict.connections();
    let ends: Vec<_> = verdict.watchers.iter().flatten().map(|one| &one.end).collect();
    assert_eq!(connections, if place == Place::Client { 5 + 3 * 3 } else { 5 }, "{ends:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_drawn_by_chance_at_all_links_at_once() {
    by_chance(&Chain::start(&[]).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_where_every_port_speaks_tls() {
    by_chance(&Chain::encrypted().await).await;
}

async fn by_chance(chain: &Chain) {
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests' own switch, no setting of the product"
    )]
    let faults = std::env::var("TEST_FAULTS").ok();
    let faults = faults.map_or(FAULTS, |n| n.parse().expect("TEST_FAULTS is a whole number"));
    let seed = seed::of_this_run();
    // Shown when the test fails.
    println!("TEST_SEED={seed} TEST_FAULTS={faults}");
    let mut rng = Rng::with_seed(seed);
    let plans = Place::ALL.map(|_| schedule(&mut rng, faults, LONGEST));
    let mut day = Day::new(seed);
    for (relayed, channels) in [(true, "T.*,Q.*"), (true, "Q.S1"), (false, "*"), (false, "T.S2")] {
        day.watch(chain, relayed, channels).await;
    }
    let [vendor, firehose, client] = &plans;
    let trouble = async {
        tokio::join!(
            chain.relay(Place::Vendor).play(vendor),
            chain.relay(Place::Firehose).play(firehose),
            chain.relay(Place::Client).play(client),
        );
        sleep(Duration::from_millis(200)).await;
    };
    day.publish_while(chain, trouble).await;
    day.recover(chain).await;
    let verdict = day.end(chain).await;
    println!(
        "{} faults: {} events, {} received on {} connections",
        3 * faults,
        verdict.events,
        verdict.received(),
        verdict.connections(),
    );
    assert!(verdict.received() > verdict.events / 10, "too little happened");
}
