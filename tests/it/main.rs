//! End-to-end tests: the real programs behind real sockets, a simulated market above them.
//!
//! Every rule of the protocol that clients rely on stands here with its texts written out. One binary, so that the
//! programs under test are built once and tests share the machine well.

mod big;
mod commands;
mod config;
mod documents;
mod events;
mod faults;
mod filter;
mod half_open;
mod handshake;
mod http;
mod ledger;
mod login;
mod manners;
mod official_clients;
mod oracle_churn;
mod scale;
mod shapes;
mod slow;
mod soak;
mod stop;
mod tidy;
mod tls;
mod upstream;

use std::net::SocketAddr;

use tests::stack::{CLIENT_KEY, FIREHOSE_KEY, Stack};

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
