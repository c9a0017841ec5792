//! Clients that ask for and give up contracts on demand all the time, more of them than the vendor
//! serves, through lost connections. Each is checked against the independent model: from the
//! `success` for a contract to the `error` for it, or to its unsubscription, a client gets exactly
//! the contract's events, in order with all others, and at no other time.

use std::time::Duration;

use fastrand::Rng;
use polygon_sim::{Fault, SimConfig};
use tests::{
    churn::Crowd,
    stack::{Stack, StackConfig},
};

use crate::seed;

const KEYS: [&str; 3] = ["desk-a", "desk-b", "desk-c"];
const CLIENTS: usize = 15;
const FRAMES: usize = 500;
/// How many quotes the vendor serves at a time.
const ROOM: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contracts_beyond_the_room_reach_exactly_whom_they_were_granted() {
    let seed = seed::of_this_run();
    // Printed when the test fails.
    println!("TEST_SEED={seed}");
    let stack = Stack::with(StackConfig {
        sim: SimConfig { market: "options".to_owned(), contracts: ROOM, ..SimConfig::default() },
        filtered: 2,
        firehose_env: vec![
            ("UPSTREAM_CONTRACTS", ROOM.to_string()),
            ("UPSTREAM_LINGER", "1ms".to_owned()),
        ],
        filtered_env: vec![("CLIENT_API_KEYS", KEYS.join(","))],
    })
    .await;
    let mut crowd = Crowd::new(&stack.sim.handle, seed, &[]);
    for n in 0..CLIENTS {
        crowd.join(stack.filtered[n % 2].addr(), KEYS[n % KEYS.len()], false);
    }
    let mut rng = Rng::with_seed(seed);
    for frame in 0..FRAMES {
        match frame {
            150 => stack.sim.handle.inject(Fault::Abort),
            300 => {
                stack.sim.handle.inject(Fault::Contracts { most: Some(ROOM - 4) });
                stack.sim.handle.inject(Fault::Abort);
            }
            _ => {}
        }
        crowd.publish();
        tokio::time::sleep(Duration::from_millis(rng.u64(0..10))).await;
    }
    let summary = crowd.end_with_contracts(ROOM - 4).await;
    let is_much = summary.of_contracts > 500 && summary.grants > 100 && summary.losses > 20;
    assert!(is_much, "too little happened");
}
