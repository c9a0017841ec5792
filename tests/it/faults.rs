//! The fault matrix: each fault at each hop, and random schedules. Whatever happens, each client
//! gets the right events in order, complete except for the gaps reported to it, and every ledger
//! balances.

use std::time::Duration;

use fastrand::Rng;
use tests::{
    chain::{Chain, Day, Hop},
    oracle::Step,
    relay::{Fault, Planned, schedule},
    wait::{SOON, eventually},
};
use tokio::time::sleep;

use crate::seed;

/// How long a lasting fault lasts.
const LASTING: Duration = Duration::from_secs(1);
/// Faults at each hop in a schedule. `TEST_FAULTS` overrides it.
const FAULTS: usize = 6;
/// The longest pause between the faults of a schedule, and the longest fault.
const LONGEST: Duration = Duration::from_millis(1_500);

#[tokio::test]
async fn between_vendor_and_firehose() {
    each_fault_at(Hop::Vendor).await;
}

#[tokio::test]
async fn between_firehose_and_filtered_proxy() {
    each_fault_at(Hop::Firehose).await;
}

#[tokio::test]
async fn between_filtered_proxy_and_clients() {
    each_fault_at(Hop::Client).await;
}

async fn each_fault_at(hop: Hop) {
    let chain = Chain::start(&[]).await;
    let mut day = Day::new(seed::of_this_run());
    for (relayed, channels) in
        [(true, "T.*,Q.*"), (true, "T.S1,Q.S2"), (true, "*"), (false, "T.*,Q.*"), (false, "Q.S3")]
    {
        day.watch(&chain, relayed, channels).await;
    }
    for fault in Fault::ALL {
        println!("{fault} at {hop:?}");
        let plan = [Planned { after: Duration::from_millis(300), fault, lasting: LASTING }];
        day.publish_while(&chain, chain.relay(hop).play(&plan)).await;
        day.recover(&chain).await;
    }
    let summary = day.end(&chain).await;
    println!("{hop:?}: {} events, {} received", summary.events, summary.received());
    assert!(summary.received() > summary.events / 2, "too little happened");
    // A cut, a reset and a black hole lose connections; a delay and a throttle do not.
    for watched in &summary.watchers {
        let notices = |status| watched.iter().map(|one| one.notice_count(status)).sum::<usize>();
        if hop == Hop::Client {
            assert_eq!((notices("upstream_down"), notices("gap")), (0, 0));
        } else {
            assert_eq!(watched.len(), 1, "clients stay connected: {:?}", watched[0].end);
            assert_eq!((notices("upstream_down"), notices("upstream_up")), (3, 3));
        }
    }
    let connections = summary.connections();
    let ends: Vec<_> = summary.watchers.iter().flatten().map(|one| &one.end).collect();
    assert_eq!(connections, if hop == Hop::Client { 5 + 3 * 3 } else { 5 }, "{ends:?}");
}

#[tokio::test]
async fn in_the_markets_own_frames() {
    let chain = Chain::start(&[]).await;
    let mut day = Day::new(seed::of_this_run()).damaged();
    for channels in ["*", "T.*,Q.*", "T.S1,Q.S2"] {
        day.watch(&chain, false, channels).await;
    }
    let enough = eventually(SOON, "enough is damaged", async || {
        chain.firehose.metric("firehose_elements_dropped_total").await > Some(60.0)
    });
    day.publish_while(&chain, enough).await;
    day.recover(&chain).await;
    let malformed = day.malformed_frames();
    let summary = day.end(&chain).await;
    let all = summary.watchers.iter().map(|watched| match &watched[..] {
        [one] => one.steps.iter().filter(|step| matches!(step, Step::Event(_))).count(),
        several => panic!("{} connections: {:?}", several.len(), several[0].end),
    });
    assert_eq!(all.max(), Some(summary.events), "a client of everything gets every good event");
    for one in summary.watchers.iter().flatten() {
        assert_eq!(one.notice_count("gap"), malformed, "{:?}", one.notices);
    }
    assert!(malformed > 5, "too little happened");
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
    // Printed when the test fails.
    println!("TEST_SEED={seed} TEST_FAULTS={faults}");
    let mut rng = Rng::with_seed(seed);
    let plans = Hop::ALL.map(|_| schedule(&mut rng, faults, LONGEST));
    let mut day = Day::new(seed).damaged();
    for (relayed, channels) in [(true, "T.*,Q.*"), (true, "Q.S1"), (false, "*"), (false, "T.S2")] {
        day.watch(chain, relayed, channels).await;
    }
    let [vendor, firehose, client] = &plans;
    let trouble = async {
        tokio::join!(
            chain.relay(Hop::Vendor).play(vendor),
            chain.relay(Hop::Firehose).play(firehose),
            chain.relay(Hop::Client).play(client),
        );
        sleep(Duration::from_millis(200)).await;
    };
    day.publish_while(chain, trouble).await;
    day.recover(chain).await;
    let summary = day.end(chain).await;
    println!(
        "{} faults: {} events, {} received on {} connections",
        3 * faults,
        summary.events,
        summary.received(),
        summary.connections(),
    );
    assert!(summary.received() > summary.events / 10, "too little happened");
}
