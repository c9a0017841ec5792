//! Both ends of the product's WebSockets as echoes, for the Autobahn cases: a server made of the server and the sessions that
//! both tiers have, with their settings, and a client made of the link. `cargo test -p tests --test it autobahn::` runs the cases.

use std::{process::ExitCode, sync::Arc, time::SystemTime};

use clap::{Parser, Subcommand};
use prometheus_client::registry::Registry;
use proxy_common::{
    access::{gate::Doors, keys::Keys},
    config::{ListenArgs, LogArgs, Unparsed, bind, parse, websocket_url},
    health::{ChannelHealth, Health, HealthReporter},
    link::{self, LinkConfig, LinkState, LinkStatus},
    metrics::{IntakeMetrics, LinkMetrics, SessionMetrics},
    program::runtime::{self, Threads},
    protocol::{channel::Channel, channel_set::ChannelSet, coverage::Shortfall, notice::Notices},
    server::Server,
    session::{self, Change, Ground, Seat, Tier, Visitor, close::CloseReason, outbound::Outbound},
    transport::socket::Socket,
};
use secrecy::SecretString;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use url::Url;

/// The longest message sent back where the limit on commands is lifted: the longest of the cases.
const LIFTED_BYTES: usize = 16 << 20;

/// Sends back what comes.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    end: End,
}

#[derive(Debug, Subcommand)]
enum End {
    /// Listens at a free port of loopback, until it is told to stop
    Server {
        /// Takes messages of up to 16 MiB, where a tier takes commands of up to 1 MiB
        #[arg(long)]
        lift_limit: bool,
        #[command(flatten)]
        listen: Box<ListenArgs>,
    },
    /// Goes through all cases of a fuzzing server
    Client {
        /// How many at once: some wait for seconds
        #[arg(long, default_value_t = 1)]
        at_once: usize,
        /// Where it is
        #[arg(value_parser = websocket_url)]
        server: Url,
    },
}

fn main() -> ExitCode {
    let args = match parse::<Args>() {
        Ok(args) => args,
        Err(unparsed) => return runtime::refuse(unparsed),
    };
    args.log.init();
    match args.end {
        End::Server { lift_limit, listen } => {
            let max_bytes = lift_limit.then_some(LIFTED_BYTES);
            runtime::block_on(Threads::PerCore, serve(*listen, max_bytes))
        }
        End::Client { at_once, server } => {
            runtime::block_on(Threads::One, go_through(server, at_once))
        }
    }
}

async fn serve(listen: ListenArgs, max_bytes: Option<usize>) -> Result<(), Unparsed> {
    // Sessions that are echoes ask for no key.
    let keys = Keys::account("ECHO_KEYS", &SecretString::from("none"));
    let address = (("ECHO_HOST", "127.0.0.1"), ("ECHO_PORT", 0));
    let bound = bind(address.0, address.1, None, &keys).await.map_err(Unparsed::Error)?;
    let mut registry = Registry::default();
    let metrics = SessionMetrics::register(&mut registry);
    let tier = EchoTier {
        max_bytes,
        health: HealthReporter::new(listen.market),
        metrics: Arc::clone(&metrics),
    };
    let server = Server {
        tier: Arc::new(tier),
        metrics,
        sessions: listen.sessions(Arc::new(keys), Notices::Off),
        max_connections: listen.max_connections,
        certificate: listen.certificate().map_err(Unparsed::Error)?.map(Arc::new),
        doors: Arc::new(Doors::new(&listen.admission, &mut registry)),
        total_queue_bytes: listen.total_queue_bytes,
        registry,
    };
    let stop = CancellationToken::new();
    let work = server.serve(bound, stop.clone());
    runtime::run(work, stop, async || {}).await.map_err(Unparsed::system)
}

/// What stands behind the server in place of a tier.
struct EchoTier {
    max_bytes: Option<usize>,
    health: HealthReporter,
    metrics: Arc<SessionMetrics>,
}

impl Tier for EchoTier {
    type Seat = Nobody;

    async fn admit(&self, _outbound: &Arc<Outbound>) -> Nobody {
        std::future::pending().await
    }

    fn health(&self) -> Health {
        let link = LinkStatus {
            state: LinkState::Waiting,
            since: SystemTime::now(),
            last_error: None,
            connects: 0,
            channels: ChannelHealth::default(),
        };
        let (upstream, intake) = (LinkMetrics::default(), IntakeMetrics::default());
        self.health.report(&link, &upstream, &intake, &self.metrics, Vec::new())
    }

    fn tick(&self) {}

    fn serve<'a>(
        ground: &Ground<'a, Self>,
        socket: Socket,
        early: &[u8],
        visitor: Visitor<'a>,
    ) -> impl Future<Output = CloseReason> + Send + use<'a> {
        session::echo(ground, socket, early, visitor, ground.tier.max_bytes)
    }
}

/// Echoes subscribe to nothing.
enum Nobody {}

impl Seat for Nobody {
    async fn change(&mut self, _change: Change) -> Result<(), CloseReason> {
        match *self {}
    }

    fn held(&self) -> &ChannelSet {
        match *self {}
    }

    fn shortfall(&self, _channel: &Channel) -> Option<Shortfall> {
        match *self {}
    }

    async fn pull(&mut self) -> Result<(), CloseReason> {
        match *self {}
    }
}

/// Asks the fuzzing server how many cases it has, goes through each, and has it write down the verdicts.
async fn go_through(server: Url, at_once: usize) -> Result<(), Unparsed> {
    const AGENT: &str = "agent=link";
    let at = |path: &str, query: &str| {
        let mut url = server.clone();
        url.set_path(path);
        url.set_query(Some(query));
        LinkConfig::new("Autobahn", url, SecretString::from("none"))
    };
    let count = link::echo(&at("/getCaseCount", AGENT)).await.map_err(Unparsed::system)?;
    let count: usize = count.parse().map_err(Unparsed::system)?;
    let mut lanes = JoinSet::new();
    for lane in 1..=at_once {
        let cases = (lane..=count).step_by(at_once);
        let cases = cases.map(|case| (case, at("/runCase", &format!("case={case}&{AGENT}"))));
        let cases: Vec<_> = cases.collect();
        lanes.spawn(async move {
            for (case, config) in cases {
                // Many cases end badly on purpose.
                if let Err(error) = link::echo(&config).await {
                    debug!(case, %error, "ended");
                }
            }
        });
    }
    lanes.join_all().await;
    // The fuzzing server leaves without a word at that.
    let end = link::echo(&at("/updateReports", AGENT)).await;
    debug!(?end, "all cases tried");
    Ok(())
}
