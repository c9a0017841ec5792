//! The simulator as a program: it reads its settings, serves until a signal and exits with 0.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use jiff::civil::Time;
use polygon_sim::{
    Profile, Replay, SimConfig, SimHandle, Simulator, control,
    plan::{Plan, parse_duration},
    replay::clock::{Speed, Window},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// A simulated Polygon.io market-data WebSocket. Everything it sends is made up.
///
/// Every setting is a flag, a variable, or a line of a .env file in the working directory or above
/// it.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Port that clients connect to; 0 takes a free one.
    #[arg(long, env = "SIM_PORT", default_value_t = 8766)]
    port: u16,
    /// Address or host name to listen on.
    #[arg(long, env = "SIM_HOST", default_value = "127.0.0.1")]
    host: String,
    /// Markets, each at its own path with connections, events and faults of its own: stocks,
    /// options, forex, crypto, indices or futures; several are separated by commas.
    #[arg(long, env = "SIM_MARKET", default_value = "stocks")]
    market: String,
    /// Events of each market generated per second while some client is subscribed; 0 for none.
    #[arg(long, env = "SIM_RATE", default_value_t = 5_000.0, allow_negative_numbers = true)]
    rate: f64,
    /// Number of symbols of each market, the most active first.
    #[arg(long, env = "SIM_SYMBOLS", default_value_t = 10_000)]
    symbols: usize,
    /// Seed of the generated events.
    #[arg(long, env = "SIM_SEED", default_value_t = 1)]
    seed: u64,
    /// Keys that it accepts, repeated or separated by commas.
    #[arg(long = "key", env = "SIM_KEY", value_delimiter = ',', default_value = "sim-key")]
    #[arg(hide_env_values = true)]
    keys: Vec<String>,
    /// Event kinds that the plan lacks, repeated or separated by commas: FMV,NOI.
    #[arg(long, env = "SIM_REFUSE", value_delimiter = ',')]
    refuse: Vec<String>,
    /// Contracts that a connection may hold of each kind that is served by contract only: quotes
    /// and fair market values of options.
    #[arg(long, env = "SIM_CONTRACTS", default_value_t = 1_000)]
    contracts: usize,
    /// How the rate changes over time: steady, or ten times as high at the open and decaying.
    #[arg(long, env = "SIM_PROFILE", value_enum, default_value_t = Profile::Steady)]
    profile: Profile,
    /// The most events in a frame while the client keeps up.
    #[arg(long, env = "SIM_FRAME_EVENTS", default_value_t = 50)]
    frame_events: usize,
    /// How long events are gathered before they are sent: 5ms.
    #[arg(long, env = "SIM_TICK", default_value = "5ms", value_parser = parse_duration)]
    tick: Duration,
    /// Connections to each market that the account may hold; one more evicts the oldest.
    #[arg(long, env = "SIM_MAX_CONNECTIONS", default_value_t = 1)]
    max_connections: usize,
    /// Port of the HTTP control endpoint on 127.0.0.1 (GET /stats, POST /fault, POST /rate; with
    /// ?market=crypto for one of several markets). By default there is no endpoint.
    #[arg(long, env = "SIM_CONTROL_PORT")]
    control_port: Option<u16>,
    /// File of faults to inject, one JSON object per line: {"at":"12s","fault":{"fault":"evict"}},
    /// with "market":"crypto" for one of several markets.
    #[arg(long, env = "SIM_PLAN")]
    plan: Option<PathBuf>,
    /// Directory of a recording to play in place of generated events: RECORD_DIR of a firehose.
    #[arg(long, env = "SIM_REPLAY")]
    replay: Option<PathBuf>,
    /// How fast the recording is played: a factor such as 10, or max.
    #[arg(long, env = "SIM_SPEED", default_value = "1", value_parser = Speed::parse)]
    speed: Speed,
    /// Play the recording again and again.
    #[arg(long = "loop", env = "SIM_LOOP", requires = "replay")]
    repeat: bool,
    /// Play only what came at this time of day or later, in New York: 09:29.
    #[arg(long, env = "SIM_FROM", requires = "replay", value_parser = Window::parse_time)]
    from: Option<Time>,
    /// Play only what came before this time of day, in New York: 10:00.
    #[arg(long, env = "SIM_UNTIL", requires = "replay", value_parser = Window::parse_time)]
    until: Option<Time>,
    /// Log filter in the syntax of tracing.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// Form of the log: by default text on a terminal, JSON elsewhere.
    #[arg(long, env = "LOG_FORMAT", value_enum)]
    log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    match dotenvy::dotenv() {
        Err(error) if !error.not_found() => {
            // The error's own text shows a line, which may hold a key.
            eprintln!("error: failed to read the .env; the two tiers name the line at fault");
            return ExitCode::FAILURE;
        }
        Ok(_) | Err(_) => {}
    }
    let args = Args::parse();
    if let Err(error) = start_log(&args) {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    serve(args)
}

#[tokio::main]
async fn serve(args: Args) -> ExitCode {
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(args: &Args) -> Result<()> {
    let filter = args.log_level.parse::<Targets>();
    let filter =
        filter.with_context(|| format!("LOG_LEVEL {:?} is not a log filter", args.log_level))?;
    let json = match args.log_format {
        Some(format) => format == LogFormat::Json,
        None => !io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        let mut lines = json_subscriber::fmt::layer().with_writer(io::stderr).flatten_event(true);
        lines.inner_layer_mut().add_static_field("program", "polygon-sim".into());
        registry.with(lines).init();
    } else {
        let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
        registry.with(lines.with_ansi(io::stderr().is_terminal())).init();
    }
    Ok(())
}

async fn run(args: Args) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to watch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("failed to watch SIGTERM")?;

    let (control_port, plan) = (args.control_port, args.plan.clone());
    let replay = args.replay.clone().map(|dir| Replay {
        dir,
        speed: args.speed,
        window: Window { from: args.from, until: args.until },
        repeat: args.repeat,
    });
    let (host, markets) = (args.host.clone(), args.market.clone());
    let simulator = Simulator::bind((host.as_str(), args.port), config(args)).await?;
    let handles = simulator.handles();
    let playback = replay.map(|replay| replay.prepare(handles.clone())).transpose()?;
    let plan = match plan {
        Some(path) => read_plan(&path, &handles)?,
        None => Plan::default(),
    };
    let control = match control_port {
        Some(port) => {
            let listener = TcpListener::bind(("127.0.0.1", port))
                .await
                .with_context(|| format!("failed to bind the control port {port}"))?;
            info!(addr = %listener.local_addr()?, "control endpoint ready");
            Some(listener)
        }
        None => None,
    };
    info!(addr = %simulator.addr(), url = simulator.url(), markets, "listening");

    let stop = CancellationToken::new();
    let serving = async {
        let served = simulator.serve(stop.clone()).await;
        stop.cancel();
        served
    };
    let steering = async {
        if let Some(listener) = control {
            control::serve(listener, handles.clone(), stop.clone()).await;
        }
    };
    let planned = stop.run_until_cancelled(plan.run(handles.clone()));
    let replaying = async {
        if let Some(playback) = playback {
            playback.run(stop.clone()).await;
        }
    };
    let signals = async {
        tokio::select! {
            _ = interrupt.recv() => info!("stopping"),
            _ = terminate.recv() => info!("stopping"),
            () = stop.cancelled() => {}
        }
        stop.cancel();
    };
    let (served, (), _, (), ()) = tokio::join!(serving, steering, planned, replaying, signals);
    info!("stopped");
    served
}

fn read_plan(path: &std::path::Path, markets: &[SimHandle]) -> Result<Plan> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("failed to read the plan {}", path.display()))?;
    Plan::parse(&text, &markets.iter().map(SimHandle::market).collect::<Vec<_>>())
}

fn config(args: Args) -> SimConfig {
    SimConfig {
        market: args.market,
        // A recording is played alone.
        rate: if args.replay.is_some() { 0.0 } else { args.rate },
        symbols: args.symbols,
        seed: args.seed,
        keys: args.keys,
        refuse: args.refuse,
        contracts: args.contracts,
        frame_events: args.frame_events,
        tick: args.tick,
        profile: args.profile,
        max_connections: args.max_connections,
        ..SimConfig::default()
    }
}
