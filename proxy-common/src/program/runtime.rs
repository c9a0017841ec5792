//! Runs a program: file descriptors, runtime, signals, exit code.

use std::{io::IsTerminal, num::NonZero, process::ExitCode, thread};

use clap::CommandFactory;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    check,
    command_line::{self, StartupExit},
    healthcheck,
    program_config::{ProgramArgs, ProgramConfig},
    service_manager,
    subcommand::Subcommand,
    wiring::BoundTier,
};
use crate::{config::ConfigError, link::LinkConfig, server::Handler, version::FULL};

/// Ends a program that does not serve: prints a text to standard output and succeeds, or prints one
/// line to standard error and exits with code 2. The code is 1 after a check that found a problem.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "help or an error for the user")]
pub fn exit(reason: StartupExit) -> ExitCode {
    match reason {
        StartupExit::Output(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        StartupExit::Error(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
        StartupExit::CheckFailed => ExitCode::FAILURE,
    }
}

/// How many processors this program may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// How many threads a program uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// One, for a program with few sessions. It wakes no other threads, and writes in larger
    /// portions.
    One,
    /// One for each core, in addition to the one that runs the program itself.
    PerCore,
}

/// Runs a tier as a program: settings, log, ports, service, exit code.
///
/// Help, the output of a subcommand, and a setting that is missing or wrong end it by [`exit`].
pub fn start<C: ProgramConfig, H: Handler>(
    threads: Threads,
    bind: impl AsyncFnOnce(C) -> Result<BoundTier<H>, ConfigError>,
) -> ExitCode {
    let line = match command_line::parse::<C::Args>() {
        Ok(line) => line,
        Err(reason) => return exit(reason),
    };
    let subcommand = line.args.subcommand();
    if let Some(done) = subcommand.and_then(Subcommand::run::<C::Args>) {
        return exit(done);
    }
    let config = match C::try_from(&line.args) {
        Ok(config) => config,
        Err(error) => return exit(StartupExit::Error(line.explain(error))),
    };
    let name = C::Args::command().get_name().to_owned();
    match subcommand {
        Some(&Subcommand::Check { connect }) => {
            return block_on(Threads::One, check::run(&name, &line, &config, connect));
        }
        Some(Subcommand::Healthcheck) => return healthcheck::run(config.server()),
        _ => {}
    }
    line.args.log().init(&name);
    line.log_ignored();
    let market = list(config.server().markets.iter());
    let upstream = list(config.links().map(LinkConfig::shown));
    block_on(threads, async {
        let tier = bind(config).await.map_err(StartupExit::Error)?;
        let addresses = tier.listeners.addresses().map_err(StartupExit::system)?;
        info!(
            build = FULL,
            dotenv =
                line.dotenv.map_or_else(|| "none".to_owned(), |path| path.display().to_string()),
            addresses = list(addresses.iter()),
            market,
            upstream,
            "starting"
        );
        // Not later, once the upstream is up: clients may connect and wait for it, and a refused
        // key must not look like a failed start, which would be tried again and again.
        service_manager::ready();
        let (reload, stop) = (tier.reload.clone(), CancellationToken::new());
        let (handler, drain_timeout) = (tier.handler(), tier.drain_timeout);
        let status = service_manager::show_status(|| handler.health());
        let notifying = async {
            let _: Option<()> = stop.run_until_cancelled(status).await;
            service_manager::stopping(drain_timeout);
        };
        let serving = tier.serve(stop.clone());
        let work = async {
            tokio::join!(serving, notifying);
        };
        let reload = async || {
            service_manager::reloading();
            reload.run().await;
            if !stop.is_cancelled() {
                service_manager::ready();
            }
        };
        run(work, stop.clone(), reload).await.map_err(StartupExit::system)
    })
}

fn list(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// Runs a whole program on a runtime of its own.
pub fn block_on(
    threads: Threads,
    program: impl Future<Output = Result<(), StartupExit>>,
) -> ExitCode {
    let mut builder = match threads {
        Threads::One => Builder::new_current_thread(),
        Threads::PerCore => Builder::new_multi_thread(),
    };
    // Each client needs a descriptor, and systems allow few by default. The program must live with
    // the number that the system grants.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        warn!(%error, "failed to raise the limit on open files");
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit(StartupExit::system(error)),
    };
    let ended = runtime.block_on(program);
    // Name resolution may hang in a thread that nothing can cancel.
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => exit(reason),
    }
}

/// Runs a program's work until it ends by itself, some time after `stop`, or until a second signal.
///
/// SIGINT and SIGTERM cancel `stop`. SIGHUP runs `reload`, but if it comes because the terminal
/// closed, it cancels `stop` too.
///
/// # Errors
///
/// The system does not let the program watch signals.
pub async fn run(
    work: impl Future<Output = ()>,
    stop: CancellationToken,
    reload: impl AsyncFn(),
) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut stop_signal = async || {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        }
    };
    let stops = async {
        // Await outside the log lines: they do not evaluate their arguments when their level is
        // off.
        let signal = stop_signal().await;
        info!(signal, "stopping; a second signal stops at once");
        stop.cancel();
        let signal = stop_signal().await;
        warn!(signal, "second signal: stopping without waiting for sessions");
    };
    let had_terminal = std::io::stderr().is_terminal();
    let reloads = async {
        loop {
            // Only a closed runtime ends the stream.
            if hangup.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
            if had_terminal && !std::io::stderr().is_terminal() {
                info!("the terminal has closed: stopping");
                stop.cancel();
            } else {
                reload().await;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stops => {}
        () = reloads => {}
    }
    Ok(())
}
