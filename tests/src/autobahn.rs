//! The Autobahn cases, which PyPI's `kosoku` runs against the echoes of
//! `proxy-common/examples/echo.rs`.

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

use serde::Deserialize;

use crate::{
    official_clients::{packages::Packages, run},
    program::binaries,
};

/// How long a run may take. The longest cases take some seconds each, a few hundred others almost
/// none.
const LIMIT: Duration = Duration::from_secs(540);

/// The end of the connection that is tested.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// The server at this address.
    Server(SocketAddr),
    /// The client of the example.
    Link,
}

/// The result of one case.
#[derive(Debug, Clone, Deserialize)]
pub struct Outcome {
    /// Its number, such as `1.1.1`.
    pub case: String,
    /// The suite's verdict on the answers.
    pub behavior: String,
    /// The suite's verdict on how the connection ended.
    pub close: String,
    /// The close code that came, if any.
    pub code: Option<u16>,
    /// The close codes that the suite accepts.
    pub right_codes: Vec<u16>,
    /// Whether the suite had to end the connection because the other side did not.
    pub dropped: bool,
    /// The suite's reasons.
    pub why: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, behavior, close, code, right_codes, dropped, why } = self;
        write!(f, "{case}: {behavior}, {close}, close code {code:?} of {right_codes:?}")?;
        write!(f, "{}: {why}", if *dropped { ", dropped" } else { "" })
    }
}

/// Runs the cases with these numbers or patterns, such as `1.*`, `at_once` at a time. `None` where
/// Python is missing.
///
/// # Panics
///
/// If the suite cannot be installed or run.
pub async fn try_cases<C: AsRef<str>>(
    target: Target,
    cases: &[C],
    at_once: usize,
) -> Option<Vec<Outcome>> {
    let driver = Packages::Autobahn.drivers().join("autobahn.py");
    let mut command = Packages::Autobahn.interpreter(&driver).await?;
    match target {
        Target::Server(addr) => command.args(["server", &format!("ws://{addr}")]),
        Target::Link => command.arg("client").arg(binaries().join("examples").join("echo")),
    };
    command.args(["--at-once", &at_once.to_string(), "--cases"]);
    command.args(cases.iter().map(AsRef::as_ref));
    let finished = run(&format!("Autobahn cases at {target:?}"), command, LIMIT).await;
    assert_eq!(finished.code, Some(0), "Autobahn cases at {target:?}: {}", finished.stderr);
    let outcomes = finished.stdout.lines().map(serde_json::from_str);
    Some(outcomes.collect::<Result<_, _>>().expect("a line of JSON for each case"))
}

/// How many cases had each pair of verdicts.
#[must_use]
pub fn tally(outcomes: &[Outcome]) -> BTreeMap<(&str, &str), usize> {
    let mut counts = BTreeMap::new();
    for Outcome { behavior, close, .. } in outcomes {
        *counts.entry((behavior.as_str(), close.as_str())).or_default() += 1;
    }
    counts
}
