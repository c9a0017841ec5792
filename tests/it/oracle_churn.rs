//! Dozens of clients that change their subscriptions all the time, each checked against an
//! independent model. Each must receive exactly the events of its channels, in order, byte for
//! byte.

use std::time::Duration;

use fastrand::Rng;
use polygon_sim::{SimConfig, generate::sample_kinds};
use tests::{
    churn::Crowd,
    stack::{CLIENT_KEY, Stack, StackConfig},
    ws_client::objects,
};

use crate::seed;

/// A run of the churn.
struct Churn {
    market: &'static str,
    clients: usize,
    frames: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stocks() {
    run(Churn { market: "stocks", clients: 36, frames: 500 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crypto() {
    run(Churn { market: "crypto", clients: 16, frames: 200 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forex() {
    run(Churn { market: "forex", clients: 16, frames: 200 }).await;
}

async fn run(churn: Churn) {
    let seed = seed::of_this_run();
    // Printed when the test fails.
    println!("TEST_SEED={seed}");
    let market = churn.market;
    let stack = Stack::with(StackConfig {
        sim: SimConfig { market: market.to_owned(), record: true, ..SimConfig::default() },
        filtered: 2,
        // The clients also choose types that `*` leaves out by default.
        firehose_env: vec![("UPSTREAM_CHANNELS", sample_kinds(market).join(","))],
        ..StackConfig::default()
    })
    .await;
    let mut crowd = Crowd::new(&stack.sim.handle, seed, &[]);
    for n in 0..churn.clients {
        crowd.join(stack.filtered[n % 2].addr(), CLIENT_KEY, false);
    }
    for filtered in &stack.filtered {
        crowd.visit(filtered.addr(), CLIENT_KEY);
    }
    let mut rng = Rng::with_seed(seed);
    for _ in 0..churn.frames {
        crowd.publish();
        tokio::time::sleep(Duration::from_millis(rng.u64(0..8))).await;
    }
    crowd.settle().await;
    let told = crowd.told();
    let summary = crowd.end().await;
    assert!(told.iter().all(|told| told.notices.is_empty()), "a notice without an outage");
    let sent: Vec<_> = stack.sim.handle.sent().iter().flat_map(|frame| objects(frame)).collect();
    assert!(sent == summary.events, "the simulator sent something else than was published");
    let (sent, received, changes) = (sent.len(), summary.received, summary.changes);
    let is_much = sent > 1_000 && received > sent && changes > 10 * churn.clients;
    assert!(is_much, "too little happened");
}
