//! End-to-end tests: the real programs behind real sockets, a simulated market above them.
//!
//! Every rule of the protocol that clients rely on stands here with its texts written out. One binary, so that the
//! programs under test are built once and tests share the machine well.

mod autobahn;
mod big;
mod carried;
mod commands;
mod config;
mod documents;
mod doors;
mod events;
mod faults;
mod filter;
mod half_open;
mod handshake;
mod http;
mod keys;
mod ledger;
mod login;
mod manners;
mod nginx;
mod notices;
mod official_clients;
mod oracle_churn;
mod rolling;
mod scale;
mod shapes;
mod silence;
mod slow;
mod snippets;
mod soak;
mod stop;
mod tidy;
mod tls;
mod upstream;
mod wss;

use std::net::SocketAddr;

use tests::{
    program::{Launch, Program},
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Stack},
};

/// Both programs without an upstream, each with these settings, a key and its metrics' prefix.
async fn programs(settings: &[(&str, &str)]) -> [(Program, &'static str, &'static str); 2] {
    let nowhere = ReservedPort::new();
    let with = |launch: Launch| {
        settings.iter().fold(launch, |launch, (name, value)| launch.env(name, value))
    };
    let firehose = with(stack::firehose(&format!("ws://{}", nowhere.addr()))).start().await;
    let filtered = with(stack::filtered(nowhere.addr())).start().await;
    [(firehose, FIREHOSE_KEY, "firehose"), (filtered, CLIENT_KEY, "filtered")]
}

/// The seed of this run: `TEST_SEED`, or one nobody has tried yet.
fn seed() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests' own switch, no setting of the product"
    )]
    let given = std::env::var("TEST_SEED").ok();
    match given {
        Some(seed) => seed.parse().expect("TEST_SEED is a whole number"),
        None => fastrand::u64(..),
    }
}

/// Both ports with the keys they take: what speaks the vendor's protocol.
fn doors(stack: &Stack) -> [(SocketAddr, &'static str); 2] {
    [(stack.addr(), CLIENT_KEY), (stack.firehose.addr(), FIREHOSE_KEY)]
}
