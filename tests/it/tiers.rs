//! The parts that tests of both tiers share.

use std::net::SocketAddr;

use tests::{
    program::{Launch, Program},
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Stack},
};

/// Both ports that speak the vendor's protocol, each with a key that it accepts.
pub(crate) fn ports(stack: &Stack) -> [(SocketAddr, &'static str); 2] {
    [(stack.addr(), CLIENT_KEY), (stack.firehose.addr(), FIREHOSE_KEY)]
}

/// Both programs without an upstream, with these settings. Each comes with a key that it accepts
/// and the prefix of its metrics.
pub(crate) async fn programs(
    settings: &[(&str, &str)],
) -> [(Program, &'static str, &'static str); 2] {
    let nowhere = ReservedPort::new();
    let with = |launch: Launch| {
        settings.iter().fold(launch, |launch, (name, value)| launch.env(name, value))
    };
    let firehose = with(stack::firehose(&format!("ws://{}", nowhere.addr()))).start().await;
    let filtered = with(stack::filtered(nowhere.addr())).start().await;
    [(firehose, FIREHOSE_KEY, "firehose"), (filtered, CLIENT_KEY, "filtered")]
}
