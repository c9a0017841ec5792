//! Grafana's own types for dashboards, from PyPI. Grafana itself is in no registry that tests use.

use std::{path::Path, time::Duration};

use crate::official_clients::{packages::Packages, run};

/// The members of a dashboard that Grafana does not know, as paths. `None` where Python is missing.
///
/// # Panics
///
/// If the types cannot be installed, or the file is no dashboard.
pub async fn unknown_members(dashboard: &Path) -> Option<Vec<String>> {
    let script = Packages::Grafana.drivers().join("dashboard.py");
    let mut command = Packages::Grafana.interpreter(&script).await?;
    command.arg(dashboard);
    let finished = run("Grafana's types", command, Duration::from_secs(60)).await;
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    Some(finished.stdout.lines().map(str::to_owned).collect())
}
