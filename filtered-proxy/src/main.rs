//! Starts the filtered proxy. The work is in the library.

use std::process::ExitCode;

use filtered_proxy::{Args, bind};
use proxy_common::program::runtime::{self, Threads};

fn main() -> ExitCode {
    runtime::start::<Args, _, _>(Threads::PerCore, bind)
}
