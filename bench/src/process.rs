//! The programs under load, as child processes: the real binaries, and the floors.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::param::clock_ticks_per_second;
use tempfile::TempDir;

use crate::{
    floor::{FloorStep, parse_sent},
    load::Sent,
    secure::Identity,
    wire::KEY,
};

/// How long a program may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(10);

/// How long the counters of a busy program may take to agree at one moment.
const LEDGER_LIMIT: Duration = Duration::from_secs(5);

/// Where a firehose records, in its working directory.
const RECORDS: &str = "records";

/// What a stream keeps: more than a stretch of load, less than fills a disk.
const STREAM_BYTES: u64 = 2 << 30;

/// A recording that has not grown for this long is complete. It grows once a second.
const RECORDED: Duration = Duration::from_millis(1_500);

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Program {
    /// Its name in the report.
    pub name: &'static str,
    /// The address that it listens on.
    pub address: SocketAddr,
    /// The address that answers plain HTTP, of a proxy.
    plain: Option<SocketAddr>,
    child: Child,
    output: Option<Arc<Mutex<BufReader<ChildStdout>>>>,
    /// Its working directory, where its log is written. The directory is empty, so that no `.env`
    /// interferes.
    dir: TempDir,
}

/// What a firehose has recorded.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Whether it has given up.
    pub stopped: bool,
}

/// Where the binaries are.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
    own: PathBuf,
    nats_server: Option<PathBuf>,
}

/// Where a NATS server keeps its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// On disk.
    File,
    /// In memory.
    Memory,
}

impl Binaries {
    /// Builds the two proxies with this program's profile, in the same target directory.
    /// `nats_server` is the program of NATS.
    ///
    /// # Errors
    ///
    /// If they do not build.
    pub fn build(nats_server: Option<PathBuf>) -> Result<Self> {
        let own = std::env::current_exe()?;
        let dir = own.parent().context("this program lies in a directory")?.to_owned();
        let target = dir.parent().context("that directory lies in a target directory")?;
        let mut command = Command::new(env!("CARGO"));
        command
            .args(["build", "--quiet", "--bins", "-p", "firehose-proxy", "-p", "filtered-proxy"])
            .arg("--manifest-path")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
            .arg("--target-dir")
            .arg(target);
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        ensure!(command.status().context("run cargo")?.success(), "the proxies do not build");
        Ok(Self { dir, own, nats_server })
    }

    /// Starts a firehose on this upstream. If it records, then into its working directory. If there
    /// is a NATS server, it publishes there too.
    pub fn firehose(
        &self,
        upstream: SocketAddr,
        history: Option<u64>,
        records: bool,
        nats: Option<(SocketAddr, Storage)>,
    ) -> Result<Program> {
        let mut settings = vec![("POLYGON_WS_URL", format!("ws://{upstream}/stocks"))];
        settings.extend(history_bytes(history));
        if let Some((address, storage)) = nats {
            let storage = match storage {
                Storage::File => "file",
                Storage::Memory => "memory",
            };
            settings.push(("NATS_URL", format!("nats://{address}")));
            settings.push(("NATS_STORAGE", storage.to_owned()));
            settings.push(("NATS_MAX_BYTES", STREAM_BYTES.to_string()));
        }
        settings.extend(records.then(|| ("RECORD_DIR", RECORDS.to_owned())));
        let (host, port) = ("FIREHOSE_HOST", "FIREHOSE_PORT");
        self.tier("firehose-proxy", "firehose", host, port, &settings, None)
    }

    /// Starts a filtered proxy on this firehose, `ws://...` or `nats://...`. Its port speaks TLS if
    /// there is an identity.
    pub fn filtered(
        &self,
        firehose: &str,
        history: Option<u64>,
        tls: Option<&Identity>,
    ) -> Result<Program> {
        let mut settings = vec![("FIREHOSE_URL", firehose.to_owned())];
        settings.extend(history_bytes(history));
        let (host, port) = ("FILTERED_PROXY_HOST", "FILTERED_PROXY_PORT");
        self.tier("filtered-proxy", "filtered", host, port, &settings, tls)
    }

    fn tier(
        &self,
        binary: &str,
        name: &'static str,
        host: &str,
        port: &str,
        settings: &[(&str, String)],
        tls: Option<&Identity>,
    ) -> Result<Program> {
        let dir = tempfile::tempdir()?;
        // The port was free a moment ago. If another program has taken it, the log says so.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = fs::File::create(dir.path().join("log"))?;
        let mut command = Command::new(self.dir.join(binary));
        command.env_clear();
        let mut plain = address;
        if let Some(identity) = tls {
            let [certificate, key] = identity.files();
            plain = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            command.env("TLS_CERT", certificate).env("TLS_KEY", key);
            command.env("ADMIN_PORT", plain.port().to_string());
        }
        let child = command
            .envs([("POLYGON_API_KEY", KEY), ("LOG_LEVEL", "warn"), (host, "127.0.0.1")])
            .env(port, address.port().to_string())
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {binary}"))?;
        let program = Program { name, address, plain: Some(plain), child, output: None, dir };
        program.started()
    }

    /// Starts a NATS server with JetStream.
    pub fn nats(&self) -> Result<Program> {
        let path = self.nats_server.as_ref();
        let path = path.context("give the path of nats-server with --nats-server")?;
        let dir = tempfile::tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = fs::File::create(dir.path().join("log"))?;
        let child = Command::new(path)
            .args(["--addr", "127.0.0.1", "--port", &address.port().to_string()])
            .arg("--jetstream")
            .arg("--store_dir")
            .arg(dir.path().join("store"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", path.display()))?;
        Program { name: "nats", address, plain: None, child, output: None, dir }.started()
    }

    /// Starts this program again as a floor.
    pub fn floor(&self, name: &'static str, args: &[String]) -> Result<Program> {
        let mut child = Command::new(&self.own)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a floor")?;
        let mut output = BufReader::new(child.stdout.take().context("its output is piped")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let address = line.trim().parse().context("a floor prints its address")?;
        Ok(Program {
            name,
            address,
            plain: None,
            child,
            output: Some(Arc::new(Mutex::new(output))),
            dir: tempfile::tempdir()?,
        })
    }
}

impl Program {
    /// Waits until it listens.
    fn started(mut self) -> Result<Self> {
        let deadline = Instant::now() + START_LIMIT;
        while TcpStream::connect(self.address).is_err() {
            let running = self.child.try_wait()?.is_none();
            let in_time = running && Instant::now() < deadline;
            ensure!(in_time, "{} did not start: {}", self.name, self.log());
            pause();
        }
        Ok(self)
    }

    /// Gives a floor an order. A thread of its own waits for the answer.
    pub fn order(&mut self, order: &FloorStep) -> Result<JoinHandle<Result<Sent>>> {
        let input = self.child.stdin.as_mut().context("a floor has an input")?;
        writeln!(input, "{order}")?;
        let output = Arc::clone(self.output.as_ref().context("a floor has an output")?);
        Ok(std::thread::spawn(move || {
            let mut line = String::new();
            output.lock().unwrap_or_else(PoisonError::into_inner).read_line(&mut line)?;
            parse_sent(&line)
        }))
    }

    /// Processor time used so far, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(&self.child.id().to_string())
    }

    /// The peak of its resident memory, in bytes.
    pub fn peak_bytes(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// Its resident memory now, in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// Checks that the ledger of a proxy accounts for every event. Others keep no
    /// ledger.
    ///
    /// # Errors
    ///
    /// If the ledger does not balance in time.
    pub fn check_ledger(&self) -> Result<()> {
        if self.plain.is_none() {
            return Ok(());
        }
        let deadline = Instant::now() + LEDGER_LIMIT;
        loop {
            let ledger = &self.health()?["ledger"];
            if ledger["balanced"] == true {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the ledger of {} does not balance: {ledger}",
                self.name
            );
            pause();
        }
    }

    /// Whether a filtered proxy gets everything from its firehose.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn is_linked(&self) -> Result<bool> {
        let health = self.health()?;
        let carried = &health["channels"]["carried"][0];
        Ok(health["upstream"]["state"] == "up" && carried == "*")
    }

    /// What it has recorded, once nothing more comes. `None` if it does not record.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn recording(&self) -> Result<Option<Recording>> {
        let Ok(files) = fs::read_dir(self.dir.path().join(RECORDS).join("stocks")) else {
            return Ok(None);
        };
        let files: Vec<PathBuf> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
        let size = || files.iter().map(|file| Ok(fs::metadata(file)?.len())).sum::<Result<u64>>();
        let (mut bytes, mut since) = (size()?, Instant::now());
        while since.elapsed() < RECORDED {
            pause();
            let now = size()?;
            if now != bytes {
                (bytes, since) = (now, Instant::now());
            }
        }
        let problems = self.health()?["problems"].to_string();
        Ok(Some(Recording { bytes, stopped: problems.contains("recording") }))
    }

    fn health(&self) -> Result<serde_json::Value> {
        let plain = self.plain.context("a proxy answers HTTP")?;
        let mut stream = TcpStream::connect(plain)?;
        stream.set_read_timeout(Some(LEDGER_LIMIT))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok(serde_json::from_str(body)?)
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let Some(line) = line else { bail!("{} ended: {}", self.name, self.log()) };
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1_024)
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        log_tail(self.dir.path())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time that this program has used so far, in seconds.
pub fn own_cpu_seconds() -> Result<f64> {
    cpu_seconds("self")
}

/// Idle time of all cores of the machine so far, in seconds.
///
/// Busy time is computed from idle time, not from the time used: the kernel here counts interrupts
/// both for the process that they serve and separately, so the sums do not match.
pub fn idle_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    // cpu user nice system idle iowait
    let ticks: Vec<u64> = stat
        .split_whitespace()
        .skip(4)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()
        .context("times in /proc/stat")?;
    Ok(ticks.iter().sum::<u64>() as f64 / clock_ticks_per_second() as f64)
}

/// The number of cores that were busy since `since`, when [`idle_seconds`] returned `idle_before`.
pub fn busy_cores(since: Instant, idle_before: f64) -> Result<f64> {
    let cores = std::thread::available_parallelism()?.get() as f64;
    Ok(cores - (idle_seconds()? - idle_before) / since.elapsed().as_secs_f64())
}

/// The setting for this size of a history. `None` leaves the default.
fn history_bytes(bytes: Option<u64>) -> Option<(&'static str, String)> {
    bytes.map(|bytes| ("HISTORY_BYTES", bytes.to_string()))
}

fn cpu_seconds(process: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in brackets, may hold blanks.
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let (Some(user), Some(system)) = (fields.get(11), fields.get(12)) else {
        bail!("no times in /proc/{process}/stat");
    };
    let ticks = user.parse::<u64>()? + system.parse::<u64>()?;
    Ok(ticks as f64 / clock_ticks_per_second() as f64)
}

fn log_tail(dir: &Path) -> String {
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// The pause between two checks of a condition.
#[expect(clippy::disallowed_methods, reason = "the pause of a loop that watches a deadline")]
pub fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

/// Where and when the figures were taken.
///
/// # Errors
///
/// If the system does not provide it.
pub fn about() -> Result<serde_json::Value> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown", |(_, model)| model.trim());
    let load = fs::read_to_string("/proc/loadavg")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(serde_json::json!({
        "processor": model,
        "cores": std::thread::available_parallelism()?.get(),
        "kernel": release.trim(),
        "load_average_before": load.split_whitespace().next(),
    }))
}
