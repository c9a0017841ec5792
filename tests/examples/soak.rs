//! Runs the soak, prints a report and fails if anything was wrong or has grown. `--minutes 120`
//! runs it for two hours.

use std::{process::ExitCode, time::Duration};

use clap::Parser;

/// Runs both programs in a market full of faults.
#[derive(Debug, Parser)]
struct Args {
    /// How long to run
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Seed of market and faults [default: a new one for each run]
    #[arg(long)]
    seed: Option<u64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("--seed {seed}");
    let report = tests::soak::soak(Duration::from_secs_f64(args.minutes * 60.0), seed).await;
    print!("{report}");
    match report.check() {
        Ok(()) => ExitCode::SUCCESS,
        Err(grown) => {
            eprintln!("{grown}");
            ExitCode::FAILURE
        }
    }
}
