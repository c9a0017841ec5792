//! The demo: simulated markets, the firehose and the filtered proxy in one process, on the
//! standard ports.
//!
//! Everything but the markets is real. The tiers are the libraries of the two programs, and a real
//! client of the filtered proxy in each market measures the delay that is shown.

mod probe;
mod screen;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use filtered_proxy::FilteredTier;
use firehose_proxy::FirehoseTier;
use polygon_sim::{Generator, Profile, Replay, SimConfig, Simulator, config::check_rate};
use proxy_common::{
    config::{
        ConfigError,
        values::{count, duration, path, port},
    },
    program::{
        args::{Markets, markets},
        command_line::{StartupExit, parse_flags},
        logging::{self, LogFormat, log_filter},
        runtime::{self, Threads},
        wiring::BoundTier,
    },
    protocol::{Kind, Market},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::Targets;

use probe::{Delays, Probe};
use screen::{Addresses, Figures};

/// The key of the simulated account, for the firehose and for clients.
const KEY: &str = "demo-key";

/// Symbols whose delay is measured in each market, the most active. So it can be measured where the
/// vendor serves fair values by contract only.
const PROBED_SYMBOLS: usize = 100;

/// Runs simulated markets, the firehose and the filtered proxy together, and shows what flows.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// Simulated markets: stocks, options, forex, crypto, indices, futures
    #[arg(long, default_value = "stocks,crypto", value_parser = markets)]
    markets: Markets,
    /// Events per second of each simulated market
    #[arg(long, default_value = "5000", value_parser = rate, allow_negative_numbers = true)]
    rate: f64,
    /// Symbols of each simulated market
    #[arg(long, default_value = "8000", value_parser = count)]
    symbols: usize,
    /// How the rate changes over time: steady, or a burst at the open
    #[arg(long, value_enum, default_value = "steady")]
    profile: Profile,
    /// Seed of the simulated markets
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Directory of a recording to play in place of generated events: RECORD_DIR of a firehose
    #[arg(long, value_parser = path)]
    replay: Option<PathBuf>,
    /// End after this time, for example 10s
    #[arg(long, value_parser = duration)]
    exit_after: Option<Duration>,
    /// Port of the filtered proxy, where clients connect; 0 takes any free one
    #[arg(long, default_value = "8765", value_parser = port)]
    filtered_port: u16,
    /// Port of the firehose; 0 takes any free one
    #[arg(long, default_value = "8767", value_parser = port)]
    firehose_port: u16,
    /// Port of the simulated markets; 0 takes any free one
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
    let markets = args.markets.iter().map(|market| market.name()).collect::<Vec<_>>().join(",");
    let sim_config = SimConfig {
        market: markets.clone(),
        // A recording is played alone.
        rate: if args.replay.is_some() { 0.0 } else { args.rate },
        symbols: args.symbols,
        seed: args.seed,
        profile: args.profile,
        keys: vec![KEY.to_owned()],
        ..SimConfig::default()
    };
    let simulator = Simulator::bind(("127.0.0.1", args.market_port), sim_config)
        .await
        .map_err(|error| market_port_error(args.market_port, &error))?;
    let replay = args.replay.clone().map(Replay::of);
    let playback = replay.map(|replay| replay.prepare(simulator.handles())).transpose()?;
    let url = format!("ws://{}", simulator.addr());
    let firehose = bind_firehose(&args, &markets, &url).await?;
    let firehose_addr = first(firehose.listeners.addresses()?)?;
    let filtered = bind_filtered(&args, &markets, firehose_addr).await?;
    let filtered_addr = first(filtered.listeners.addresses()?)?;

    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let mut figures = Vec::new();
    for (upstream, clients) in firehose.counters.iter().zip(&filtered.counters) {
        let (market, delays) = (upstream.market, Delays::default());
        if let Some(channels) = probed(market, &args)? {
            let url = format!("ws://{filtered_addr}/{market}");
            let probe = Probe { url, key: KEY, channels, delays: delays.clone() };
            tasks.spawn(probe.run(stop.clone()));
        }
        figures.push(Figures::new(upstream, clients, delays));
    }
    let addresses =
        Addresses { market: simulator.addr(), firehose: firehose_addr, filtered: filtered_addr };
    tasks.spawn(screen::run(addresses, KEY, figures, stop.clone()));
    if let Some(playback) = playback {
        tasks.spawn(playback.run(stop.clone()));
    }
    // The stop begins at the clients and goes upstream, so that no tier loses what it still reads
    // from.
    let (firehose_stop, market_stop) = (CancellationToken::new(), CancellationToken::new());
    let work = filtered.serve(stop.clone());
    tasks.spawn(then(work, firehose_stop.clone()));
    let work = firehose.serve(firehose_stop);
    tasks.spawn(then(work, market_stop.clone()));
    let work = simulator.serve(market_stop);
    tasks.spawn(async {
        if let Err(error) = work.await {
            tracing::error!(%error, "the simulated markets ended");
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

/// The channels of a market whose delay is measured. `None` if it has no fair values, or if its
/// events are recorded ones, whose times are past.
fn probed(market: Market, args: &Args) -> anyhow::Result<Option<String>> {
    if args.replay.is_some() || !market.kinds().contains(&Kind::FMV) {
        return Ok(None);
    }
    let generator = Generator::new(market.name(), args.symbols, args.seed)?;
    let symbols = generator.symbols().take(PROBED_SYMBOLS);
    Ok(Some(symbols.map(|symbol| format!("FMV.{symbol}")).collect::<Vec<_>>().join(",")))
}

/// Does the work, then stops the next tier.
async fn then(work: impl Future<Output = ()>, next: CancellationToken) {
    work.await;
    next.cancel();
}

async fn bind_firehose(
    args: &Args,
    markets: &str,
    url: &str,
) -> anyhow::Result<BoundTier<FirehoseTier>> {
    let port = args.firehose_port.to_string();
    let flags = ["--polygon-api-key", KEY, "--polygon-ws-url", url, "--port", &port];
    let flags = [&flags[..], &["--markets", markets]].concat();
    let args = parse_flags::<firehose_proxy::Args>(&flags).map_err(explain)?;
    let mut config: firehose_proxy::Config = (&args).try_into()?;
    // An error must name the demo's flag: the tier's variable has no effect here.
    config.server.listen.port_variable = "--firehose-port";
    Ok(firehose_proxy::bind(config).await?)
}

async fn bind_filtered(
    args: &Args,
    markets: &str,
    firehose: std::net::SocketAddr,
) -> anyhow::Result<BoundTier<FilteredTier>> {
    let (port, url) = (args.filtered_port.to_string(), format!("ws://{firehose}"));
    let flags = ["--polygon-api-key", KEY, "--firehose-url", &url, "--port", &port];
    let flags = [&flags[..], &["--markets", markets]].concat();
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
        StartupExit::CheckFailed => ConfigError::other("a check failed"),
    }
}

fn first(addresses: Vec<std::net::SocketAddr>) -> anyhow::Result<std::net::SocketAddr> {
    addresses.into_iter().next().context("the tier listens on no address")
}
