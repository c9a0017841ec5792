//! The product's binaries as processes, each with an environment of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use nix::{sys::signal::kill, unistd::Pid};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
};

pub use nix::sys::signal::Signal;

use crate::{
    http, ledger,
    wait::{SOON, eventually, within},
};

/// How many of a program's last lines are printed when a test fails.
const TAIL: usize = 60;

/// A program about to be started, with its settings.
///
/// It gets only `PATH` from the environment of the tests, and it runs in an empty directory of its
/// own. So no `.env` and no exported key of the machine can interfere.
#[derive(Debug)]
pub struct Launch {
    binary: &'static str,
    settings: Vec<(String, String)>,
    args: Vec<String>,
    /// Commands of a shell that becomes the program.
    prelude: Option<&'static str>,
    /// A program that becomes this program, with its arguments.
    runner: Vec<String>,
    /// The standard input of [`Launch::run`].
    input: String,
    dir: TempDir,
}

impl Launch {
    /// The binary of this name, without any setting.
    ///
    /// # Panics
    ///
    /// If no temporary directory can be made.
    #[must_use]
    pub fn new(binary: &'static str) -> Self {
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let (settings, args, input) = (Vec::new(), Vec::new(), String::new());
        Self { binary, settings, args, prelude: None, runner: Vec::new(), input, dir }
    }

    /// Sets this environment variable and replaces an earlier value.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "texts and numbers read alike at the call")]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self = self.without(name);
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Sets these environment variables and replaces earlier values.
    #[must_use]
    pub fn envs<'a>(self, settings: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        settings.into_iter().fold(self, |launch, (name, value)| launch.env(name, value))
    }

    /// Removes this environment variable.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.settings.retain(|(set, _)| set != name);
        self
    }

    /// Adds an argument.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "texts and numbers read alike at the call")]
    pub fn arg(mut self, arg: impl ToString) -> Self {
        self.args.push(arg.to_string());
        self
    }

    /// Lets a shell run these commands first, such as `ulimit -n 64`. It then becomes the program.
    #[must_use]
    pub fn after(mut self, commands: &'static str) -> Self {
        self.prelude = Some(commands);
        self
    }

    /// Lets another program start it and become it, such as `ip netns exec NAME`.
    #[must_use]
    pub fn run_by(mut self, command: impl Into<Vec<String>>) -> Self {
        self.runner = command.into();
        self
    }

    /// Sets its standard input for [`Launch::run`].
    #[must_use]
    pub fn input(mut self, text: &str) -> Self {
        text.clone_into(&mut self.input);
        self
    }

    /// Puts a file of this name into the directory that it runs in.
    ///
    /// # Panics
    ///
    /// If the file cannot be written.
    #[must_use]
    pub fn file(self, name: &str, content: &str) -> Self {
        std::fs::write(self.dir.path().join(name), content).expect("write a file for a program");
        self
    }

    /// The directory that it will run in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self) -> Command {
        let program = binaries().join(self.binary);
        let mut command = match self.prelude {
            None => match self.runner.split_first() {
                None => Command::new(program),
                Some((runner, args)) => {
                    let mut command = Command::new(runner);
                    command.args(args).arg(program);
                    command
                }
            },
            Some(commands) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("{commands} && exec \"$0\" \"$@\"")).arg(program);
                shell
            }
        };
        command
            .args(&self.args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts it and waits until it logs its address. With `TLS_CERT`, or a `PROXY_PROTOCOL` that
    /// requires a header of the tests, it needs an `ADMIN_PORT`, which answers plain HTTP.
    ///
    /// # Panics
    ///
    /// If it does not start, ends, or does not listen in time.
    pub async fn start(self) -> Program {
        let admin = self.settings.iter().any(|(name, _)| name == "ADMIN_PORT");
        let mut program = self.spawn();
        program.addr = Some(program.bound("listening").await);
        program.plain =
            if admin { Some(program.bound("admin listening").await) } else { program.addr };
        program
    }

    /// Starts it without waiting for anything.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn spawn(self) -> Program {
        let mut child = self.command().spawn().expect("start a program");
        let log = Arc::new(Log::default());
        let mut readers = JoinSet::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        readers.spawn(collect(stdout, Arc::clone(&log)));
        readers.spawn(collect(stderr, Arc::clone(&log)));
        Program {
            binary: self.binary,
            child,
            log,
            readers,
            addr: None,
            plain: None,
            _dir: self.dir,
        }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    ///
    /// If it does not start or does not end within the limit.
    pub async fn run(self, limit: Duration) -> Finished {
        let mut command = self.command();
        let started = Instant::now();
        let mut child = command.stdin(Stdio::piped()).spawn().expect("start a program");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // The program may end without reading.
        let _ = stdin.write_all(self.input.as_bytes()).await;
        drop(stdin);
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let mut out = child.stdout.take().expect("stdout is piped");
        let mut err = child.stderr.take().expect("stderr is piped");
        let end = async {
            let (out, err, status) = tokio::join!(
                out.read_to_string(&mut stdout),
                err.read_to_string(&mut stderr),
                child.wait()
            );
            out.expect("read the output of a program");
            err.expect("read the errors of a program");
            status.expect("wait for the end of a program")
        };
        let what = format!("the end of {} {:?} with {:?}", self.binary, self.args, self.settings);
        let status = within(limit, &what, end).await;
        Finished { code: status.code(), stdout, stderr, took: started.elapsed() }
    }
}

/// The result of a program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code. `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

/// A running program. Dropping it checks its ledger and kills it. In a failing test it also prints
/// its last lines.
#[derive(Debug)]
pub struct Program {
    binary: &'static str,
    child: Child,
    log: Arc<Log>,
    /// The tasks that read its output. They end with it.
    readers: JoinSet<()>,
    addr: Option<SocketAddr>,
    /// The address that answers plain HTTP.
    plain: Option<SocketAddr>,
    /// The directory it runs in, removed with it.
    _dir: TempDir,
}

impl Program {
    /// The address that it listens on.
    ///
    /// # Panics
    ///
    /// If it was started by [`Launch::spawn`], which does not wait for the address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr.expect("the program was started with Launch::start")
    }

    /// The address that answers plain HTTP without a PROXY header: its admin port, if it has one.
    #[must_use]
    pub fn plain(&self) -> SocketAddr {
        self.plain.unwrap_or_else(|| self.addr())
    }

    /// Waits for its first log line with this message and returns the address in it.
    ///
    /// # Panics
    ///
    /// If there is none in time.
    pub async fn bound(&mut self, message: &str) -> SocketAddr {
        let line = self.logged(message).await;
        let addr = line.pointer("/addr").and_then(Value::as_str);
        addr.and_then(|addr| addr.parse().ok())
            .unwrap_or_else(|| panic!("no address in the log line {line}"))
    }

    /// Waits for its first log line with this message.
    ///
    /// # Panics
    ///
    /// If there is none in time, or if the program ends without it.
    pub async fn logged(&mut self, message: &str) -> Value {
        let what = format!("{} logs {message:?}", self.binary);
        let mut found = None;
        eventually(SOON, &what, async || {
            found = self.log.find(message);
            if found.is_none() && self.readers.try_join_next().is_some() {
                panic!("{} ended before it logged {message:?}:\n{}", self.binary, self.log.text());
            }
            found.is_some()
        })
        .await;
        found.expect("the condition held")
    }

    /// How many of its log lines have this message.
    #[must_use]
    pub fn log_count(&self, message: &str) -> usize {
        self.log.lines().iter().filter(|line| has_message(line, message)).count()
    }

    /// All that it has written so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        self.log.text()
    }

    /// Its process id.
    ///
    /// # Panics
    ///
    /// If it has ended already.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id().expect("the program still runs")
    }

    /// Whether its end was waited for.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.child.id().is_none()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// If it has ended already.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).expect("process ids fit");
        kill(Pid::from_raw(id), signal).expect("signal a program");
    }

    /// Waits for its end and returns its exit status. After that, [`Program::log_text`] is
    /// complete.
    ///
    /// # Panics
    ///
    /// If it does not end within the limit.
    pub async fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.binary);
        let end = async {
            let status = self.child.wait().await.expect("wait for the end of a program");
            while self.readers.join_next().await.is_some() {}
            status
        };
        within(limit, &what, end).await
    }

    /// Stops it as an operator does, and waits for its end.
    ///
    /// # Panics
    ///
    /// If it does not end within 10 s with exit code 0.
    pub async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait_exit(Duration::from_secs(10)).await;
        assert_eq!(status.code(), Some(0), "exit code of {} after SIGTERM", self.binary);
    }

    /// The JSON of its `/health`, with any HTTP status.
    ///
    /// # Panics
    ///
    /// If there is no answer, or if it is not JSON.
    pub async fn health(&self) -> Value {
        http::get(self.plain(), "/health").await.json()
    }

    /// The string at this pointer of its `/health`, such as `/upstream/state`. Empty if there is
    /// none.
    ///
    /// # Panics
    ///
    /// If there is no answer, or if it is not JSON.
    pub async fn health_text(&self, pointer: &str) -> String {
        let health = self.health().await;
        health.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// The sum of a metric's samples over all its labels. `None` if it has no sample.
    ///
    /// # Panics
    ///
    /// If there is no answer, or if a sample is not a number.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        self.metric_with(name, "").await
    }

    /// The sum of a metric's samples whose labels contain this text, such as `reason="drain"`.
    /// `None` if it has no such sample.
    ///
    /// # Panics
    ///
    /// If there is no answer, or if a sample is not a number.
    pub async fn metric_with(&self, name: &str, label: &str) -> Option<f64> {
        let response = http::get(self.plain(), "/metrics").await;
        assert_eq!(response.status, 200, "/metrics of {}", self.binary);
        sum_of_samples(&response.body, name, label)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let ended = self.child.try_wait().map_or(true, |status| status.is_some());
        let has_ledger = self.binary != "polygon-sim";
        if has_ledger
            && let (Some(addr), false, false) = (self.plain, ended, std::thread::panicking())
        {
            ledger::check(self.binary, addr);
        }
        if std::thread::panicking() {
            let lines = self.log.lines();
            let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
            eprintln!("--- last lines of {} ---\n{tail}\n---", self.binary);
        }
        // `kill_on_drop` kills it. It may outlive the test for a moment, which does no harm.
    }
}

/// The sum of the samples of one metric in Prometheus' text format.
fn sum_of_samples(text: &str, name: &str, label: &str) -> Option<f64> {
    let samples = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (found, labels) = series.split_once('{').unwrap_or((series, ""));
        (found == name && labels.contains(label))
            .then(|| value.parse::<f64>().expect("a metric's sample is a number"))
    });
    samples.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// The lines that a program wrote. Not bounded, because a test's program is short-lived.
#[derive(Debug, Default)]
struct Log(Mutex<Vec<String>>);

impl Log {
    fn push(&self, line: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn text(&self) -> String {
        self.lines().join("\n")
    }

    fn find(&self, message: &str) -> Option<Value> {
        let lines = self.lines();
        let line = lines.iter().find(|line| has_message(line, message))?;
        serde_json::from_str(line).ok()
    }
}

/// Whether a log line is an event with this message.
fn has_message(line: &str, message: &str) -> bool {
    // Parsing is slow, and most lines do not hold the message.
    line.contains(message)
        && serde_json::from_str::<Value>(line)
            .is_ok_and(|event| event.pointer("/message").and_then(Value::as_str) == Some(message))
}

async fn collect(output: impl AsyncRead + Unpin, log: Arc<Log>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.push(line);
    }
}

/// The directory of the product's binaries, built with the profile and the target directory of the
/// running test.
///
/// They are built once per run. `cargo test` builds the binaries of a package only for that
/// package's own tests, so this calls cargo.
///
/// # Panics
///
/// If cargo fails. The message holds its output.
pub fn binaries() -> &'static Path {
    // A build that fails is tried once, not by every test.
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match DIR.get_or_init(build) {
        Ok(dir) => dir,
        Err(output) => panic!("cargo could not build the programs under test:\n{output}"),
    }
}

fn build() -> Result<PathBuf, String> {
    // TARGET/PROFILE/deps/it-HASH
    let test = std::env::current_exe().expect("the path of the running test");
    let profile_dir = test.ancestors().nth(2).expect("a test lies in PROFILE/deps");
    let target_dir =
        profile_dir.parent().expect("a profile's directory lies in the target directory");
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => panic!("no profile in {}", test.display()),
    };
    let mut cargo = std::process::Command::new(env!("CARGO"));
    // With these variables, which cargo sets for tests, build scripts and their dependents would
    // run again.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    let output = cargo
        // The whole workspace, like the tests: a part of it would be built again with other
        // features.
        .args(["build", "--quiet", "--workspace", "--bins", "--example", "echo"])
        .args(["--profile", profile, "--target-dir"])
        .arg(target_dir)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .expect("run cargo");
    if output.status.success() {
        Ok(profile_dir.to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_labels() {
        let text =
            "# TYPE x_total counter\nx_total{reason=\"a\"} 2\nx_total{reason=\"b\"} 3\nx 7\nxy 9\n";
        assert_eq!(sum_of_samples(text, "x_total", ""), Some(5.0));
        assert_eq!(sum_of_samples(text, "x_total", "reason=\"b\""), Some(3.0));
        assert_eq!(sum_of_samples(text, "x", ""), Some(7.0));
        assert_eq!(sum_of_samples(text, "z", ""), None);
    }
}
