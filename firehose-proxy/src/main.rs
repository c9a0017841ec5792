//! Starts the firehose: configuration, log, signals, exit code. The work is in the library.

use std::process::ExitCode;

use firehose_proxy::{Config, Firehose};
use proxy_common::{
    config::{self, Unparsed},
    process::{self, Threads},
};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let args = match config::parse::<firehose_proxy::Args>() {
        Ok(args) => args,
        Err(unparsed) => return process::refuse(unparsed),
    };
    let config = match Config::try_from(&args) {
        Ok(config) => config,
        Err(error) => return process::refuse(Unparsed::Error(error)),
    };
    args.log.init();
    process::block_on(Threads::One, run(config))
}

async fn run(config: Config) -> Result<(), Unparsed> {
    let firehose = Firehose::bind(config).await.map_err(Unparsed::Error)?;
    let link = firehose.link();
    let stop = CancellationToken::new();
    let work = firehose.serve(stop.clone());
    process::run(work, stop, || link.retry_now()).await.map_err(Unparsed::system)
}
