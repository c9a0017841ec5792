//! A short soak, which shows that the long one works and finds nothing at once.

use std::time::Duration;

use crate::seed;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_soak_leaves_nothing_behind() {
    let seed = seed::of_this_run();
    // Printed when the test fails.
    println!("TEST_SEED={seed}");
    let report = tests::soak::soak(Duration::from_secs(12), seed).await;
    println!("{report}");
    // Faults take away most events, at random.
    assert!(report.faults > 6 && report.received > report.events / 20, "too little happened");
    assert!(report.visits > 20, "too few visits");
    report.check().unwrap_or_else(|grown| panic!("{grown}"));
}
