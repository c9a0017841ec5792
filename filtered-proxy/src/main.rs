//! Starts the filtered proxy: configuration, log, signals, exit code. The work is in the library.

use std::process::ExitCode;

use filtered_proxy::{Args, Config, FilteredProxy};
use proxy_common::{
    config::Unparsed,
    process::{self, Threads},
};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    process::start(Threads::PerCore, |args: &Args| &args.log, run)
}

async fn run(config: Config) -> Result<(), Unparsed> {
    let proxy = FilteredProxy::bind(config).await.map_err(Unparsed::Error)?;
    let link = proxy.link();
    let stop = CancellationToken::new();
    let work = proxy.serve(stop.clone());
    process::run(work, stop, || link.retry_now()).await.map_err(Unparsed::system)
}
