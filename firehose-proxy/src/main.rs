//! Starts the firehose: configuration, log, signals, exit code. The work is in the library.

use std::process::ExitCode;

use firehose_proxy::{Args, Config, Firehose};
use proxy_common::{
    config::Unparsed,
    program::runtime::{self, Threads},
};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    runtime::start::<Args, _, _>(Threads::One, run)
}

async fn run(config: Config) -> Result<(), Unparsed> {
    let firehose = Firehose::bind(config).await.map_err(Unparsed::Error)?;
    let reload = firehose.reload();
    let stop = CancellationToken::new();
    let work = firehose.serve(stop.clone());
    runtime::run(work, stop, async || reload.run().await).await.map_err(Unparsed::system)
}
