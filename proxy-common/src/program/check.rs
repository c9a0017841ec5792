//! The subcommand `check`: shows the settings in force, and tries the upstream if it is asked to.

use std::{
    io::{self, Write},
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use tokio::net::lookup_host;

use super::{
    command_line::{CommandLine, StartupExit},
    program_config::ProgramConfig,
};
use crate::{
    link::{LinkConfig, LinkError, authenticate, open},
    protocol::TierName,
    version,
};

/// A clock that differs by more is a problem: opening hours and the dates of certificates depend on
/// it.
const MAX_CLOCK_ERROR: Duration = Duration::from_secs(5);

/// The warning before a login at the vendor.
const TAKES_CONNECTION: &str = "This logs in to the vendor with the account's key. A program that uses the account's \
     connection, such as a running firehose, may lose it.";

/// Prints the settings in force, and what follows from them. With `connect`, also tries each
/// upstream.
///
/// # Errors
///
/// The program would not start, or an attempt fails.
pub(super) async fn run<C: ProgramConfig>(
    name: &str,
    line: &CommandLine<C::Args>,
    config: &C,
    connect: bool,
) -> Result<(), StartupExit> {
    if connect && C::TIER == TierName::Firehose {
        say(TAKES_CONNECTION);
    }
    say(&format!("{name} {}\n", version::FULL));
    let server = config.server();
    let addresses = server.addresses().await.map_err(StartupExit::Error)?;
    let admin = server.admin_addresses().await.map_err(StartupExit::Error)?;
    let settings = line.settings.iter();
    let rows = settings
        .map(|setting| [setting.name.clone(), setting.value.clone(), setting.source.to_string()]);
    say(&table(&rows.collect::<Vec<_>>()));
    let dotenv = line.dotenv.as_ref().map_or("none".to_owned(), |path| path.display().to_string());
    let mut rows = vec![[".env".to_owned(), dotenv]];
    rows.push(["listens on", &*list(&addresses)].map(str::to_owned));
    if !admin.is_empty() {
        rows.push(["admin port on", &*list(&admin)].map(str::to_owned));
    }
    let markets: Vec<_> = server.markets.iter().map(ToString::to_string).collect();
    rows.push(["markets", &*markets.join(", ")].map(str::to_owned));
    rows.extend(config.links().map(|link| ["upstream".to_owned(), link.shown()]));
    let labels: Vec<_> = server.sessions.keys.sessions().into_keys().collect();
    rows.push(["keys of clients", &*labels.join(", ")].map(str::to_owned));
    rows.dedup();
    say(&table(&rows));
    for ignored in line.ignored() {
        say(&format!("warning: {ignored}"));
    }
    say("The settings are valid. Whether the ports are free was not tried.");
    let mut failed = false;
    if connect {
        let mut links: Vec<&LinkConfig> = config.links().collect();
        // Of several connections to one host, one is enough.
        links.dedup_by(|link, before| link.url == before.url);
        for link in links {
            failed |= !attempt(link).await;
        }
    }
    if failed { Err(StartupExit::CheckFailed) } else { Ok(()) }
}

/// Tries one upstream, and prints each step. Whether all is well.
async fn attempt(link: &LinkConfig) -> bool {
    say(&format!("\n{} at {}", link.upstream, link.shown()));
    match try_steps(link).await {
        Ok(clock) => clock,
        Err(error) => {
            say(&format!("  failed     {error}; {}", error.advice()));
            false
        }
    }
}

/// Resolves, connects, compares the clocks, and logs in. Whether the clock is right.
async fn try_steps(link: &LinkConfig) -> Result<bool, LinkError> {
    #[cfg(feature = "nats")]
    if let Some(nats) = &link.nats {
        say(&format!("  connected  {}", nats.try_it().await?));
        return Ok(true);
    }
    let host = link.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = link.url.port_or_known_default().unwrap_or(443);
    let found = lookup_host((host, port)).await;
    let found = found.map_err(|error| LinkError::Unreachable(error.to_string()))?;
    say(&format!("  addresses  {}", list(&found.collect::<Vec<_>>())));
    let began = Instant::now();
    let opened = open(link).await?;
    let (now, took) = (SystemTime::now(), began.elapsed());
    let encryption = opened.tls.as_deref().unwrap_or("not encrypted");
    say(&format!("  connected  in {} ms, {encryption}", took.as_millis()));
    let (clock, right) = compare_clocks(now, opened.date);
    say(&format!("  clock      {clock}"));
    let socket = authenticate(link, opened.socket).await?;
    say("  login      accepted");
    // The vendor frees the account's connection at once if it is closed in due form.
    let _ = socket.close().await;
    Ok(right)
}

/// What to say of our clock, and whether it is right. The upstream's time has whole seconds.
fn compare_clocks(ours: SystemTime, theirs: Option<SystemTime>) -> (String, bool) {
    let Some(theirs) = theirs else {
        return ("not compared: the upstream names no time".to_owned(), true);
    };
    let (error, direction) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    if error <= MAX_CLOCK_ERROR {
        return ("agrees with the upstream's".to_owned(), true);
    }
    let error = humantime::format_duration(Duration::from_secs(error.as_secs()));
    (format!("ours is {error} {direction} the upstream's: correct it, best by NTP"), false)
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Rows with aligned columns.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..COLUMNS).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &format!("{cell:width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn say(text: &str) {
    // A reader that has seen enough may close the pipe.
    let _: io::Result<()> = writeln!(io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_right_within_a_few_seconds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let compare = |theirs| compare_clocks(now, Some(theirs));
        for seconds in [0, 1, 5] {
            let seconds = Duration::from_secs(seconds);
            assert!(compare(now + seconds).1 && compare(now - seconds).1);
        }
        let minutes = Duration::from_secs(130);
        let wrong = |direction: &str| {
            let expected =
                format!("ours is 2m 10s {direction} the upstream's: correct it, best by NTP");
            (expected, false)
        };
        assert_eq!(compare(now - minutes), wrong("ahead of"));
        assert_eq!(compare(now + minutes), wrong("behind"));
        assert!(compare_clocks(now, None).1);
    }
}
