//! Echoes on both ends of the product's WebSockets, for the Autobahn cases. The server end uses the
//! server and the sessions' own reading, writing and closing. The client end uses the link's
//! connection. `cargo test -p tests --test it autobahn::` runs the cases.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use clap::{Parser, Subcommand};
use proxy_common::{
    access::Keys,
    config::values::websocket_url,
    health::{HealthDocument, HealthReporter},
    link::{Link, LinkConfig, LinkError, LinkHandle, UpstreamMessage, Wanted, connect},
    program::{
        args::ServerArgs,
        command_line::{StartupExit, parse},
        logging::LogArgs,
        runtime::{self, Threads},
        wiring::{Foundation, MarketCounters},
    },
    protocol::{NoticePolicy, TierName},
    server::Handler,
    session::{
        ClientInfo, ClientMessage, CloseReason, Inbound, Outbound, SessionMetrics, SlowLimits,
        close_session,
    },
    transport::{ListenConfig, Socket},
    websocket::Frame,
};
use secrecy::SecretString;
use tokio::{
    sync::watch,
    task::{JoinSet, coop::consume_budget},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use url::Url;

/// The longest message sent back if the limit on commands is lifted: the longest of the cases.
const LIFTED_BYTES: usize = 16 << 20;

/// Sends every message back.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    end: End,
}

#[derive(Debug, Subcommand)]
enum End {
    /// Listens on a free port of loopback until it is stopped
    Server {
        /// Takes messages of up to 16 MiB, where a tier takes commands of up to 1 MiB
        #[arg(long)]
        lift_limit: bool,
        #[command(flatten)]
        server: Box<ServerArgs>,
    },
    /// Runs all cases of a fuzzing server
    Client {
        /// Cases at once: some wait for seconds
        #[arg(long, default_value_t = 1)]
        at_once: usize,
        /// URL of the fuzzing server
        #[arg(value_parser = websocket_url)]
        server: Url,
    },
}

fn main() -> ExitCode {
    let args = match parse::<Args>() {
        Ok(line) => line.args,
        Err(reason) => return runtime::exit(reason),
    };
    args.log.init("echo");
    match args.end {
        End::Server { lift_limit, server } => {
            let max_bytes = lift_limit.then_some(LIFTED_BYTES);
            runtime::block_on(Threads::PerCore, serve(*server, max_bytes))
        }
        End::Client { at_once, server } => {
            runtime::block_on(Threads::One, run_cases(server, at_once))
        }
    }
}

async fn serve(server: ServerArgs, max_bytes: Option<usize>) -> Result<(), StartupExit> {
    // An echo asks for no key.
    let keys = Keys::account("ECHO_KEYS", &SecretString::from("none"));
    let listen = ListenConfig::new(("ECHO_HOST", "127.0.0.1"), ("ECHO_PORT", 0));
    let config = server.check(listen, keys, NoticePolicy::Off).map_err(StartupExit::Error)?;
    let (market, limits) = (config.sessions.market, config.sessions.slow);
    let keys = Arc::clone(&config.sessions.keys);
    let mut foundation =
        Foundation::bind(TierName::Filtered, config).await.map_err(StartupExit::Error)?;
    // `/health` shows a link; this one never connects.
    let nowhere = Url::parse("ws://localhost").map_err(StartupExit::system)?;
    let nowhere = LinkConfig::new("nobody", nowhere, SecretString::from("none"));
    let wanted = watch::Sender::new(Wanted::default());
    let counters = foundation.market(market);
    let MarketCounters { upstream, intake, sessions, .. } = counters.clone();
    let (_link, link) = Link::new(nowhere, wanted.subscribe(), Arc::clone(&upstream));
    let health = HealthReporter::new(market, keys, upstream, intake, Arc::clone(&sessions));
    let echo = Echo { max_bytes, limits, metrics: sessions, health, link };
    let (counters, stop) = (vec![counters], CancellationToken::new());
    let budget = foundation.budget(&counters, Arc::default());
    let tier = foundation.serve_by(echo, counters, budget, Vec::new(), Vec::new());
    let work = tier.serve(stop.clone());
    runtime::run(work, stop, async || {}).await.map_err(StartupExit::system)
}

/// The server's handler, in place of a tier.
struct Echo {
    max_bytes: Option<usize>,
    limits: SlowLimits,
    metrics: Arc<SessionMetrics>,
    health: HealthReporter,
    link: LinkHandle,
}

impl Handler for Echo {
    fn serve<'a>(
        &'a self,
        socket: Socket,
        early: &[u8],
        _client: ClientInfo,
        _stop: &'a CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<'a> {
        let outbound = Outbound::new(socket, self.limits, Arc::clone(&self.metrics));
        let mut inbound = match self.max_bytes {
            Some(max_bytes) => Inbound::with_limit(early, max_bytes),
            None => Inbound::new(early),
        };
        async move {
            let reason = loop {
                let step = tokio::select! {
                    biased;
                    written = outbound.run_writer() => written,
                    message = inbound.next(&outbound) => {
                        consume_budget().await;
                        message.and_then(|message| send_back(&outbound, &message))
                    }
                };
                if let Err(reason) = step {
                    break reason;
                }
            };
            close_session(&outbound, &mut inbound, reason, None, None).await;
        }
    }

    fn health(&self) -> HealthDocument {
        HealthDocument::of(vec![self.health.report(&[self.link.status()], None, Vec::new())])
    }

    fn tick(&self) {}
}

fn send_back(outbound: &Outbound, message: &ClientMessage) -> Result<(), CloseReason> {
    let frame = match message {
        ClientMessage::Text(text) => Frame::new(text.as_bytes()),
        ClientMessage::Binary(payload) => Frame::of_kind(Data::Binary, payload),
        ClientMessage::Ping | ClientMessage::Pong(_) | ClientMessage::Part => return Ok(()),
        ClientMessage::Close => return Err(CloseReason::ClientGone),
    };
    outbound.send_frame(&frame, Instant::now());
    Ok(())
}

/// Asks the fuzzing server for its number of cases, runs each, and lets it write the report.
async fn run_cases(server: Url, at_once: usize) -> Result<(), StartupExit> {
    const AGENT: &str = "agent=link";
    let at = |path: &str, query: &str| {
        let mut url = server.clone();
        url.set_path(path);
        url.set_query(Some(query));
        LinkConfig::new("Autobahn", url, SecretString::from("none"))
    };
    let count = echo(&at("/getCaseCount", AGENT)).await.map_err(StartupExit::system)?;
    let count: usize = count.parse().map_err(StartupExit::system)?;
    let cases = (1..=count).map(|case| at("/runCase", &format!("case={case}&{AGENT}")));
    let cases = Arc::new(Mutex::new(cases.collect::<Vec<_>>().into_iter()));
    let mut workers = JoinSet::new();
    for _ in 0..at_once {
        let cases = Arc::clone(&cases);
        workers.spawn(async move {
            let next = || cases.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some(config) = next() {
                // Many cases end with an error on purpose.
                if let Err(error) = echo(&config).await {
                    debug!(url = %config.url, %error, "ended");
                }
            }
        });
    }
    workers.join_all().await;
    // The fuzzing server closes this connection without an answer.
    let end = echo(&at("/updateReports", AGENT)).await;
    debug!(?end, "all cases tried");
    Ok(())
}

/// Connects as a link does, sends back every message until the upstream closes, and returns the
/// last text.
async fn echo(config: &LinkConfig) -> Result<String, LinkError> {
    let mut socket = connect(config).await?;
    let mut last = String::new();
    loop {
        match socket.next().await.map_err(|error| LinkError::Closed(error.to_string()))? {
            // A link ignores text that is not UTF-8.
            UpstreamMessage::Text(frame) => {
                if let Ok(text) = str::from_utf8(frame.text()) {
                    text.clone_into(&mut last);
                    socket.send_text(text);
                }
            }
            UpstreamMessage::Binary(payload) => socket.send(OpCode::Data(Data::Binary), &payload),
            UpstreamMessage::Control => {}
            UpstreamMessage::Close(_) => return Ok(last),
        }
    }
}
