//! The demo: a simulated market, the firehose and the filtered proxy in one process, on the
//! standard ports.
//!
//! Everything but the market is real. The tiers are the libraries of the two programs, and a real
//! client of the filtered proxy measures the delay that is shown.

mod probe;
mod screen;

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use filtered_proxy::FilteredTier;
use firehose_proxy::FirehoseTier;
use polygon_sim::{Profile, SimConfig, Simulator, config::check_rate};
use proxy_common::{
    config::{
        ConfigError,
        values::{count, duration, port},
    },
    program::{
        command_line::{StartupExit, parse_flags},
        logging::{self, LogFormat, log_filter},
        runtime::{self, Threads},
        wiring::BoundTier,
    },
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::Targets;

use screen::{Figures, Screen};

/// The key of the simulated account, for the firehose and for clients.
const KEY: &str = "demo-key";

/// Runs a simulated market, the firehose and the filtered proxy together, and shows what flows.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// Events per second of the simulated market
    #[arg(long, default_value = "5000", value_parser = rate, allow_negative_numbers = true)]
    rate: f64,
    /// Symbols of the simulated market
    #[arg(long, default_value = "8000", value_parser = count)]
    symbols: usize,
    /// How the rate changes over time: steady, or a burst at the open
    #[arg(long, value_enum, default_value = "steady")]
    profile: Profile,
    /// Seed of the simulated market
    #[arg(long, default_value = "1")]
    seed: u64,
    /// End after this time, for example 10s
    #[arg(long, value_parser = duration)]
    exit_after: Option<Duration>,
    /// Port of the filtered proxy, where clients connect; 0 takes any free one
    #[arg(long, default_value = "8765", value_parser = port)]
    filtered_port: u16,
    /// Port of the firehose; 0 takes any free one
    #[arg(long, default_value = "8767", value_parser = port)]
    firehose_port: u16,
    /// Port of the simulated market; 0 takes any free one
    #[arg(long, default_value = "8766", value_parser = port)]
    market_port: u16,
    /// Log filter; the log goes to standard error
    #[arg(long, default_value = "warn", value_parser = log_filter)]
    log_level: Targets,
}

fn main() -> ExitCode {
    let args = match parse_flags_of_process() {
        Ok(args) => args,
        Err(reason) => return runtime::exit(reason),
    };
    logging::init("demo", args.log_level.clone(), Some(LogFormat::Text));
    runtime::block_on(Threads::PerCore, async {
        run(args).await.map_err(|e| StartupExit::system(format!("{e:#}")))
    })
}

fn parse_flags_of_process() -> Result<Args, StartupExit> {
    let flags: Vec<String> = std::env::args().skip(1).collect();
    parse_flags(&flags.iter().map(String::as_str).collect::<Vec<_>>())
}

async fn run(args: Args) -> anyhow::Result<()> {
    let sim_config = SimConfig {
        rate: args.rate,
        symbols: args.symbols,
        seed: args.seed,
        profile: args.profile,
        keys: vec![KEY.to_owned()],
        ..SimConfig::default()
    };
    let market = Simulator::bind(("127.0.0.1", args.market_port), sim_config)
        .await
        .map_err(|error| market_port_error(args.market_port, &error))?;
    let firehose = bind_firehose(&args, &market.url()).await?;
    let firehose_addr = first(firehose.listeners.addresses()?)?;
    let filtered = bind_filtered(&args, firehose_addr).await?;
    let filtered_addr = first(filtered.listeners.addresses()?)?;

    let figures = Figures::new(&firehose, &filtered);
    let screen = Screen::new(KEY, market.addr(), firehose_addr, filtered_addr);
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let (probe, delays) = probe::new(format!("ws://{filtered_addr}/stocks"), KEY);
    tasks.spawn(probe.run(stop.clone()));
    tasks.spawn(screen.run(figures, delays, stop.clone()));
    // The stop begins at the clients and goes upstream, so that no tier loses what it still reads
    // from.
    let (firehose_stop, market_stop) = (CancellationToken::new(), CancellationToken::new());
    let work = filtered.serve(stop.clone());
    tasks.spawn(then(work, firehose_stop.clone()));
    let work = firehose.serve(firehose_stop);
    tasks.spawn(then(work, market_stop.clone()));
    let work = market.serve(market_stop);
    tasks.spawn(async {
        if let Err(error) = work.await {
            tracing::error!(%error, "the simulated market ended");
        }
    });
    if let Some(time) = args.exit_after {
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(time) => stop.cancel(),
                () = stop.cancelled() => {}
            }
        });
    }
    let all = async { while tasks.join_next().await.is_some() {} };
    runtime::run(all, stop, async || {}).await?;
    Ok(())
}

/// Does the work, then stops the next tier.
async fn then(work: impl Future<Output = ()>, next: CancellationToken) {
    work.await;
    next.cancel();
}

async fn bind_firehose(args: &Args, market: &str) -> anyhow::Result<BoundTier<FirehoseTier>> {
    let port = args.firehose_port.to_string();
    let flags = ["--polygon-api-key", KEY, "--polygon-ws-url", market, "--port", &port];
    let args = parse_flags::<firehose_proxy::Args>(&flags).map_err(explain)?;
    let mut config: firehose_proxy::Config = (&args).try_into()?;
    // An error must name the demo's flag: the tier's variable has no effect here.
    config.server.listen.port_variable = "--firehose-port";
    Ok(firehose_proxy::bind(config).await?)
}

async fn bind_filtered(
    args: &Args,
    firehose: std::net::SocketAddr,
) -> anyhow::Result<BoundTier<FilteredTier>> {
    let (port, url) = (args.filtered_port.to_string(), format!("ws://{firehose}"));
    let flags = ["--polygon-api-key", KEY, "--firehose-url", &url, "--port", &port];
    let args = parse_flags::<filtered_proxy::Args>(&flags).map_err(explain)?;
    let mut config: filtered_proxy::Config = (&args).try_into()?;
    config.server.listen.port_variable = "--filtered-port";
    Ok(filtered_proxy::bind(config).await?)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|&rate| check_rate(rate).is_ok());
    rate.ok_or_else(|| "expected a number of events per second, 0 or more".to_owned())
}

fn market_port_error(port: u16, error: &anyhow::Error) -> ConfigError {
    let cause = error.root_cause();
    let expected = format!("expected a port free at 127.0.0.1:{port}: {cause}");
    ConfigError::invalid("--market-port", port, expected)
}

fn explain(unparsed: StartupExit) -> ConfigError {
    match unparsed {
        StartupExit::Error(error) => error,
        StartupExit::Output(text) => ConfigError::invalid("flags", text, "expected settings"),
    }
}

fn first(addresses: Vec<std::net::SocketAddr>) -> anyhow::Result<std::net::SocketAddr> {
    addresses.into_iter().next().context("the tier listens on no address")
}
