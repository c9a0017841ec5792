//! Starts the filtered proxy. The work is in the library.

use std::process::ExitCode;

use filtered_proxy::bind;
use proxy_common::program::runtime::{self, Threads};

fn main() -> ExitCode {
    runtime::start(Threads::PerCore, bind)
}
