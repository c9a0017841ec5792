//! What can be typed.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand, ValueEnum};

/// Measures the proxies around real sockets, beside floors of the same work, and verifies every
/// event meanwhile.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Options {
    /// Scenarios to run, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "split,s1,s2,s3,s4,s5,s6,growth")]
    pub scenario: Vec<Scenario>,
    /// Only see that everything works: a fraction of a second for each figure, one run, no file
    /// written unless --out is given
    #[arg(long)]
    pub quick: bool,
    /// How often each figure is taken; the median counts
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Seconds that the whole run may wait for the machine's other programs to rest before it
    /// repeats disturbed stretches
    #[arg(long, default_value_t = 60)]
    pub patience: u64,
    /// Where the table, the JSON file and the plots go
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// A part that the program plays for itself.
    #[command(subcommand)]
    pub part: Option<Part>,
}

/// A scenario, as docs/BENCHMARKS.md defines it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Splitting and looking up, on one thread, without sockets
    Split,
    /// One client with two channels
    S1,
    /// 100 clients on everything
    S2,
    /// 1,000 clients with 10 symbols each
    S3,
    /// 10,000 idle clients
    S4,
    /// 100 clients of which 5 do not read
    S5,
    /// The same load with and without TLS on the port
    S6,
    /// Cost from few to many clients, subscriptions and events a frame
    Growth,
}

/// A part that the program plays for itself, as a process of its own.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// The floor of S1
    #[command(hide = true)]
    Relay {
        /// Where the load comes from.
        upstream: SocketAddr,
    },
    /// The floor of S2 and S3
    #[command(hide = true)]
    Fanout {
        /// How many clients to wait for.
        clients: usize,
        /// Events of a frame.
        frame_events: usize,
        /// When the clock of the run began.
        epoch_ns: u64,
    },
}
