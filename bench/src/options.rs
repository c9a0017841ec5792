//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand, ValueEnum};

/// Measures the proxies over real sockets, beside floors of the same work, and verifies every event
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Options {
    /// Scenarios to run, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "split,s1,s2,s3,s4,s5,s6,s7,s8,growth")]
    pub scenario: Vec<Scenario>,
    /// Only check that everything works: a fraction of a second per figure, one run, no files
    /// unless --out is given
    #[arg(long)]
    pub quick: bool,
    /// How often to take each figure; the median counts
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Seconds that the whole run may wait for other programs of the machine to rest before it
    /// repeats disturbed stretches
    #[arg(long, default_value_t = 60)]
    pub patience: u64,
    /// Directory for the table, the JSON file and the plots
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// The program nats-server, for S9
    #[arg(long)]
    pub nats_server: Option<PathBuf>,
    /// A part that the program plays for itself.
    #[command(subcommand)]
    pub part: Option<Part>,
}

/// A scenario, as docs/BENCHMARKS.md defines it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Splitting and looking up on one thread, without sockets
    Split,
    /// One client with two channels
    S1,
    /// 100 clients on everything
    S2,
    /// 1,000 clients with 10 symbols each
    S3,
    /// 10,000 idle clients
    S4,
    /// 100 clients, 5 of which do not read
    S5,
    /// The same load with and without TLS on the port
    S6,
    /// The same load with and without a recording
    S7,
    /// 100 clients that leave and come back
    S8,
    /// The feed through NATS beside the direct link; needs --nats-server
    S9,
    /// Cost from few to many clients, subscriptions and events per frame
    Growth,
}

/// A part that the program plays for itself, as a process of its own.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// The floor of S1
    #[command(hide = true)]
    Relay {
        /// The address of the load.
        upstream: SocketAddr,
    },
    /// The floor of S2 and S3
    #[command(hide = true)]
    Fanout {
        /// The number of clients to wait for.
        clients: usize,
        /// Events per frame.
        frame_events: usize,
        /// The moment at which the clock of the run began.
        epoch_ns: u64,
    },
}
