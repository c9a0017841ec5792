//! Installs the packages that the drivers need.
//!
//! They are installed once per target directory, at the versions pinned in `tests/clients`, into
//! `target/clients`. This needs Python 3.10 or newer with pip or ensurepip, and Node 18 or newer
//! with npm. If one is missing and `CI` is set in the environment, the tests that need it fail.
//! Otherwise they pass, and one line on standard error says that clients were skipped.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, sync::OnceCell, time::timeout};

use crate::wait::{SOON, eventually, within};

/// How long an installation may take.
const INSTALLATION: Duration = Duration::from_secs(300);
/// How many of an installer's last lines are shown when it fails.
const TAIL: usize = 40;

/// A set of packages that are installed together.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Packages {
    Massive,
    Polygon,
    Autobahn,
    Grafana,
    Deploy,
    DuckDb,
    Nats,
    OldNats,
    Node,
}

impl Packages {
    fn name(self) -> &'static str {
        match self {
            Self::Massive => "py-massive",
            Self::Polygon => "py-polygon",
            Self::Autobahn => "py-autobahn",
            Self::Grafana => "py-grafana",
            Self::Deploy => "py-deploy",
            Self::DuckDb => "py-duckdb",
            Self::Nats => "py-nats",
            Self::OldNats => "py-nats-old",
            Self::Node => "node",
        }
    }

    /// The files of `tests/clients` that list the packages. For Node also the programs: Node looks
    /// for packages only beside the program that imports them.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Massive => &["requirements-massive.txt"],
            Self::Polygon => &["requirements-polygon.txt"],
            Self::Autobahn => &["requirements-autobahn.txt"],
            Self::Grafana => &["requirements-grafana.txt"],
            Self::Deploy => &["requirements-deploy.txt"],
            Self::DuckDb => &["requirements-duckdb.txt"],
            Self::Nats => &["requirements-nats.txt"],
            Self::OldNats => &["requirements-nats-old.txt"],
            Self::Node => &[
                "package.json",
                "package-lock.json",
                "browser.mjs",
                "driver.mjs",
                "official.mjs",
                "plain.mjs",
            ],
        }
    }

    /// The programs that it brings, once it is installed.
    pub(crate) fn programs(self) -> PathBuf {
        self.dir().join("bin")
    }

    /// Where it is installed.
    fn dir(self) -> PathBuf {
        // TARGET/PROFILE/deps/it-HASH
        let test = std::env::current_exe().expect("the path of the running test");
        let target = test.ancestors().nth(3).expect("a test lies in TARGET/PROFILE/deps");
        target.join("clients").join(self.name())
    }

    /// The directory of the programs that use it.
    pub(crate) fn drivers(self) -> PathBuf {
        match self {
            Self::Node => self.dir(),
            _ => sources(),
        }
    }

    /// A command that runs a program with these packages. `None` where the language is missing.
    pub(crate) async fn interpreter(self, program: &Path) -> Option<Command> {
        self.install(&self.toolchain().await?).await;
        let mut command = Command::new(self.language());
        if !matches!(self, Self::Node) {
            command
                .env("PYTHONPATH", self.dir())
                .env("PYTHONNOUSERSITE", "1")
                // If a signal interrupts a write, unbuffered Python loses the rest of it.
                .env_remove("PYTHONUNBUFFERED")
                .env("PYTHONDONTWRITEBYTECODE", "1");
        }
        command
            .arg(program)
            // The machine's own keys and proxies must not interfere.
            .env_remove("MASSIVE_API_KEY")
            .env("NO_PROXY", "*")
            .env("no_proxy", "*")
            // The delay of the Python clients' library after a refused connection. Its default is
            // up to 5 s.
            .env("WEBSOCKETS_BACKOFF_INITIAL_DELAY", "0.2")
            .env("WEBSOCKETS_BACKOFF_MIN_DELAY", "0.2")
            .kill_on_drop(true);
        Some(command)
    }

    fn language(self) -> &'static str {
        match self {
            Self::Node => "node",
            _ => "python3",
        }
    }

    /// The version of the language, if everything is there that an installation needs. If not, this
    /// panics where `CI` is set. Elsewhere it prints that something is skipped.
    async fn toolchain(self) -> Option<String> {
        static PYTHON: OnceCell<Option<String>> = OnceCell::const_new();
        static NODE: OnceCell<Option<String>> = OnceCell::const_new();
        let found = match self {
            Self::Node => &NODE,
            _ => &PYTHON,
        };
        let look = async || match self.probe_toolchain().await {
            Ok(version) => Some(version),
            Err(problem) => {
                let text = format!("the clients that run on {}: {problem}", self.language());
                assert!(std::env::var_os("CI").is_none(), "can not run {text}");
                // Written directly, because the test runner hides the output of tests that pass.
                let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: {text} ***");
                None
            }
        };
        found.get_or_init(look).await.clone()
    }

    async fn probe_toolchain(self) -> Result<String, String> {
        let language = self.language();
        let least = match self {
            Self::Node => (18, 0),
            _ => (3, 10),
        };
        let version = probe(language, &["--version"])
            .await
            .ok_or_else(|| format!("there is no {language}"))?;
        if number(&version) < Some(least) {
            let (major, minor) = least;
            return Err(format!("{} is older than {major}.{minor}", version.trim()));
        }
        let installer = match self {
            Self::Node => probe("npm", &["--version"]).await.is_some(),
            _ => has_pip().await || has_ensurepip().await,
        };
        match self {
            _ if installer => Ok(version),
            Self::Node => Err("there is no npm".to_owned()),
            _ => {
                let needed = "your system's package python3-pip or python3-venv";
                Err(format!("{language} has neither pip nor ensurepip; install {needed}"))
            }
        }
    }

    /// Installs the packages unless exactly these are installed.
    async fn install(self, version: &str) {
        let dir = self.dir();
        let beside = |ending: &str| dir.with_extension(ending);
        fs::create_dir_all(dir.parent().expect("a directory for clients")).expect("make it");
        let lock = File::create(beside("lock")).expect("make a lock file");
        let what = format!("installing {}", self.name());
        eventually(INSTALLATION, &what, async || lock.try_lock().is_ok()).await;

        let mut stamp = version.to_owned();
        for file in self.files() {
            stamp +=
                &fs::read_to_string(sources().join(file)).expect("read a file of tests/clients");
        }
        if fs::read_to_string(beside("stamp")).is_ok_and(|installed| installed == stamp) {
            return;
        }
        // Without the stamp, an interrupted installation is not used.
        fs::remove_file(beside("stamp")).or_else(absent_is_fine).expect("remove an old stamp");
        fs::remove_dir_all(&dir).or_else(absent_is_fine).expect("remove an old installation");
        fs::create_dir(&dir).expect("make a directory");
        for file in self.files() {
            fs::copy(sources().join(file), dir.join(file)).expect("copy a file of tests/clients");
        }
        let log = beside("log");
        File::create(&log).expect("make a log file");
        let steps = async {
            match self {
                Self::Node => {
                    let args = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
                    step(Command::new("npm").args(args).current_dir(&dir), &log).await
                }
                _ => pip(&dir, &dir.join(self.files()[0]), &log).await,
            }
        };
        let failure = match timeout(INSTALLATION, steps).await {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some(format!("not within {INSTALLATION:?}")),
        };
        if let Some(failure) = failure {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
            panic!("{what}: {failure}\n--- end of {} ---\n{tail}\n---", log.display());
        }
        fs::write(beside("stamp"), stamp).expect("write a stamp");
    }
}

/// Installs Python packages into a directory, with the system's pip or with one in a virtual
/// environment.
async fn pip(dir: &Path, requirements: &Path, log: &Path) -> Result<(), String> {
    let mut python = PathBuf::from("python3");
    if !has_pip().await {
        let venv = dir.join("venv");
        step(Command::new("python3").args(["-m", "venv"]).arg(&venv), log).await?;
        python = venv.join("bin").join("python3");
    }
    let mut install = Command::new(python);
    install
        .args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check"])
        // `--target` and a configured `--user` exclude each other.
        .env("PIP_USER", "0")
        .arg("--target")
        .arg(dir)
        .arg("--requirement")
        .arg(requirements);
    step(&mut install, log).await
}

async fn has_pip() -> bool {
    probe("python3", &["-m", "pip", "--version"]).await.is_some()
}

async fn has_ensurepip() -> bool {
    // Imported, not run: some systems refuse to run it outside a virtual environment.
    probe("python3", &["-c", "import ensurepip"]).await.is_some()
}

/// Runs one step of an installation and appends its output to the log.
async fn step(command: &mut Command, log: &Path) -> Result<(), String> {
    let log = File::options().append(true).open(log).expect("open a log file");
    let copy = log.try_clone().expect("clone a file");
    let status = command.stdin(Stdio::null()).stdout(log).stderr(copy).kill_on_drop(true).status();
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    match status.await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program}: {status}")),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// The numbers at the beginning of a version such as `Python 3.11.7` or `v20.20.2`.
fn number(version: &str) -> Option<(u32, u32)> {
    let start = version.find(|c: char| c.is_ascii_digit())?;
    let mut parts = version[start..].split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The output of a command, if it exists and succeeds.
async fn probe(program: &str, args: &[&str]) -> Option<String> {
    let command = Command::new(program).args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = within(SOON, program, command).await.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn absent_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The directory with the drivers and the pinned versions.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_they_are_printed() {
        assert_eq!(number("Python 3.11.7\n"), Some((3, 11)));
        assert_eq!(number("v20.20.2\n"), Some((20, 20)));
        assert!(number("Python 3.9.2") < Some((3, 10)));
        assert_eq!(number("none"), None);
    }
}
