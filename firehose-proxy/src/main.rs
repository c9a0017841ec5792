//! Starts the firehose. The work is in the library.

use std::process::ExitCode;

use firehose_proxy::bind;
use proxy_common::program::runtime::{self, Threads};

fn main() -> ExitCode {
    runtime::start(Threads::One, bind)
}
