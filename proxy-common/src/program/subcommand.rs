//! The tasks that a program runs instead of serving.

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{command_line::StartupExit, hash_key};
use crate::{access::parse_label, version};

/// A task that a program runs instead of serving.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Subcommand {
    /// Reads the settings as at a start, prints them with their sources, and ends with the code of
    /// a start. Flags stand before the word check
    Check {
        /// Also connects and logs in upstream, and compares the clocks. At the firehose this may
        /// take the account's connection from the program that uses it
        #[arg(long)]
        connect: bool,
    },
    /// Reads a key from standard input and prints its line for a file of keys
    HashKey {
        /// The name under which the key's sessions are logged and counted
        #[arg(default_value = "client", value_parser = parse_label)]
        label: String,
    },
    /// Asks the program that runs with the same settings whether it is alive
    Healthcheck,
    /// Prints completions of the command line for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Prints the manual page, for man -l or a directory of manual pages
    Man,
}

impl Subcommand {
    /// Runs a task that needs no settings, and returns the text for standard output. `None` for
    /// one that needs them.
    pub(super) fn run<T: CommandFactory>(&self) -> Option<StartupExit> {
        let done = match self {
            Self::Check { .. } | Self::Healthcheck => return None,
            Self::HashKey { label } => hash_key::line(label),
            Self::Completions { shell } => Ok(completions(T::command(), *shell)),
            Self::Man => man(T::command()).map_err(StartupExit::system),
        };
        Some(done.map_or_else(|error| error, StartupExit::Output))
    }
}

fn completions(mut command: Command, shell: Shell) -> String {
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(shell, &mut command, &name, &mut script);
    let script = String::from_utf8_lossy(&script);
    // For bash the library writes the name in two ways if it has a hyphen, and then completes
    // nothing after a subcommand (clap-rs/clap, issue 6421).
    script.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"))
}

fn man(command: Command) -> std::io::Result<String> {
    let (source, mut page) = (format!("{} {}", command.get_name(), version::VERSION), Vec::new());
    Man::new(command).source(source).date(version::DATE).render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}
