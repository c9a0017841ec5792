//! Upstreams that fall silent without closing: pings and deadlines find them, and the programs
//! recover.
//!
//! The test waits for the product's own timeouts, so all cases run at once.

use std::time::Duration;

use polygon_sim::{Fault, SimConfig};
use tests::{
    program::Signal,
    stack::{self, CLIENT_KEY, Sim, Stack, StackConfig, failed, is_up},
    ws_client::TestClient,
};

use crate::events::trade;

/// Three pings of 15 s, and some time for a busy machine.
const THREE_PINGS: Duration = Duration::from_secs(60);
/// The 10 s of one login step, and some time for a busy machine.
const LOGIN_STEP: Duration = Duration::from_secs(25);

#[tokio::test]
async fn a_silent_upstream_is_given_up_and_tried_again() {
    tokio::join!(half_open_vendor(), frozen_firehose(), no_greeting(), no_verdict());
}

/// Waits until a program's link has failed with this text in its reason.
async fn patient_stack() -> Stack {
    // The clients of the test answer no pings while it waits.
    let ping = ("PING_INTERVAL", "10min".to_owned());
    Stack::with(StackConfig { filtered_env: vec![ping], ..StackConfig::default() }).await
}

async fn half_open_vendor() {
    let stack = patient_stack().await;
    let mut client = stack.subscriber("T.AAPL").await;
    stack.sim.handle.inject(Fault::Silence { on: true });
    failed(&stack.firehose, THREE_PINGS, "half-open").await;
    assert_eq!(stack.filtered[0].health_text("/upstream/state").await, "up");
    stack.sim.handle.inject(Fault::Silence { on: false });
    stack.linked().await;
    stack.publish(&[trade("AAPL", 1)]);
    client.expect_event(&trade("AAPL", 1)).await;
}

async fn frozen_firehose() {
    let stack = patient_stack().await;
    let mut client = TestClient::login(stack.addr(), CLIENT_KEY).await;
    client.subscribe("T.AAPL").await;
    stack.firehose.signal(Signal::SIGSTOP);
    failed(&stack.filtered[0], THREE_PINGS, "half-open").await;
    stack.firehose.signal(Signal::SIGCONT);
    stack.linked().await;
    stack.publish(&[trade("AAPL", 1)]);
    client.expect_event(&trade("AAPL", 1)).await;
}

/// A vendor that waits longer for the key than the firehose waits for an answer.
async fn patient_vendor() -> Sim {
    Sim::with(SimConfig { auth_timeout: Duration::from_secs(120), ..SimConfig::default() }).await
}

async fn no_greeting() {
    let sim = patient_vendor().await;
    sim.handle.inject(Fault::NoGreeting { on: true });
    let firehose = stack::firehose(&sim.url("stocks")).start().await;
    failed(&firehose, LOGIN_STEP, "no greeting in time").await;
    sim.handle.inject(Fault::NoGreeting { on: false });
    is_up(&firehose).await;
}

async fn no_verdict() {
    let sim = patient_vendor().await;
    sim.handle.inject(Fault::NoVerdict { on: true });
    let firehose = stack::firehose(&sim.url("stocks")).start().await;
    failed(&firehose, LOGIN_STEP, "no verdict on the key in time").await;
    sim.handle.inject(Fault::NoVerdict { on: false });
    is_up(&firehose).await;
}
