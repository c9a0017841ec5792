//! Ends the holder of a lease in NATS again and again, and prints how long its standby takes until
//! the first event. Fails if the vendor was ever dialled more often than the lease has passed.
//! `--rounds 50` kills 50 holders and stops 50.

use std::process::ExitCode;

use clap::Parser;
use tests::{
    lease::{Contenders, Death, takeovers},
    nats::NatsServer,
};

/// Measures takeovers.
#[derive(Debug, Parser)]
struct Args {
    /// How many holders to kill, and how many to stop
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// How many firehoses contend
    #[arg(long, default_value_t = 2)]
    firehoses: usize,
    /// LEASE_TAKEOVER of the firehoses
    #[arg(long, default_value = "2s")]
    takeover: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let nats = NatsServer::start().await;
    let settings = vec![("LEASE_TAKEOVER", args.takeover)];
    let mut contenders = Contenders::on_nats(args.firehoses, &nats, settings).await;
    let mut failed = false;
    for death in [Death::Kill, Death::Stop] {
        let report = takeovers(&mut contenders, death, args.rounds).await;
        print!("{report}");
        failed |= report.further_dials > 0;
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
