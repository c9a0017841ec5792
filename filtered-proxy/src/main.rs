//! Starts the filtered proxy: configuration, log, signals, exit code. The work is in the library.

use std::process::ExitCode;

use filtered_proxy::{Args, Config, FilteredProxy};
use proxy_common::{
    config::Unparsed,
    program::runtime::{self, Threads},
};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    runtime::start::<Args, _, _>(Threads::PerCore, run)
}

async fn run(config: Config) -> Result<(), Unparsed> {
    let proxy = FilteredProxy::bind(config).await.map_err(Unparsed::Error)?;
    let reload = proxy.reload();
    let stop = CancellationToken::new();
    let work = proxy.serve(stop.clone());
    runtime::run(work, stop, async || reload.run().await).await.map_err(Unparsed::system)
}
