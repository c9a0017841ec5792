//! The service manager's side: the shipped units by systemd's own tools, and what the programs
//! report to it, seen at a socket of the test's own.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram as StdDatagram},
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use polygon_sim::SimConfig;
use tempfile::TempDir;
use tests::{
    program::{Launch, Program, Signal, binaries},
    stack::{self, FIREHOSE_KEY, ReservedPort, Sim, is_up},
    wait::{SOON, within},
    ws_client::TestClient,
};
use tokio::{net::UnixDatagram, process::Command, time::timeout};

use crate::{
    doc_snippets::{block, document, replaced, root},
    documents::settings,
};

/// The time of the watchdog in these tests. A busy machine may delay a beat.
const WATCHDOG: Duration = Duration::from_secs(2);

/// Each unit, its instance, its program and its file of settings.
const UNITS: [(&str, &str, &str, &str); 2] = [
    ("firehose-proxy.service", "firehose-proxy.service", "firehose-proxy", "firehose.env"),
    ("filtered-proxy@.service", "filtered-proxy@8765.service", "filtered-proxy", "filtered.env"),
];

/// Writes a unit into a new directory, with the programs under test in place of the installed ones.
fn unit(file: &str, instance: &str) -> (TempDir, PathBuf) {
    let text = document(&format!("deploy/systemd/{file}"));
    let programs = format!("{}/", binaries().display());
    let dir = tempfile::tempdir().expect("make a temporary directory");
    let path = dir.path().join(instance);
    fs::write(&path, text.replace("/usr/local/bin/", &programs)).expect("write a unit");
    (dir, path)
}

/// Runs `systemd-analyze` and returns whether it succeeds, and all that it prints.
async fn analyze(command: &str, option: &str, unit: &PathBuf) -> (bool, String) {
    let run = Command::new("systemd-analyze").args([command, option]).arg(unit).output();
    let done = within(SOON, "systemd-analyze", run).await;
    let done = done.expect("run systemd-analyze: install the package systemd");
    let text = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8(text).expect("text of systemd-analyze"))
}

#[tokio::test]
async fn systemd_finds_no_fault_in_the_units() {
    for (file, instance, ..) in UNITS {
        let (_dir, path) = unit(file, instance);
        assert_eq!(analyze("verify", "--man=no", &path).await, (true, String::new()), "{file}");
    }
    // A fault would be found.
    let (_dir, path) = unit(UNITS[0].0, UNITS[0].1);
    let text = fs::read_to_string(&path).expect("read a unit");
    fs::write(&path, replaced(&text, "WatchdogSec=30", "WatchdogSec=soon")).expect("write a unit");
    assert!(analyze("verify", "--man=no", &path).await.1.contains("Failed to parse"));
}

#[tokio::test]
async fn systemd_rates_the_units_as_well_protected() {
    for (file, instance, ..) in UNITS {
        let (_dir, path) = unit(file, instance);
        let (_, text) = analyze("security", "--offline=true", &path).await;
        let level = text.split("Overall exposure level for ").nth(1);
        let level = level.and_then(|rest| rest.split(": ").nth(1)?.split(' ').next()?.parse().ok());
        let level: f64 = level.unwrap_or_else(|| panic!("no level in {text}"));
        assert!(level <= 2.0, "{file}: {level}\n{text}");
    }
}

#[tokio::test]
async fn the_units_set_what_the_programs_read() {
    for (file, instance, program, env) in UNITS {
        let text = document(&format!("deploy/systemd/{file}"));
        let known = settings(program).await;
        let env = document(&format!("deploy/systemd/{env}"));
        let in_env = env.lines().filter(|line| !line.starts_with("# "));
        let in_unit = text.lines().filter_map(|line| line.strip_prefix("Environment="));
        let mut set = BTreeMap::new();
        for line in in_env.chain(in_unit) {
            let (name, value) = line.trim_start_matches('#').split_once('=').expect(line);
            assert!(known.contains_key(name), "{program} has no setting {name}");
            assert!(set.insert(name, value).is_none(), "{name} is set twice for {instance}");
        }
        let credential = "LoadCredential=polygon-key:";
        assert!(text.contains(credential) && set["POLYGON_API_KEY_FILE"] == "%d/polygon-key");
        // systemd kills what takes longer to stop.
        let stop = text.split("TimeoutStopSec=").nth(1).and_then(|rest| rest.lines().next());
        let stop: u64 = stop.and_then(|seconds| seconds.parse().ok()).expect("seconds");
        assert_eq!(known["DRAIN_TIMEOUT"].as_deref(), Some("10s"));
        assert!(stop > 10, "{stop}");
        // A unit without its own settings starts, as far as they are right.
        let check = text.lines().find_map(|line| line.strip_prefix("ExecStartPre="));
        let words: Vec<_> = check.expect("a check before the start").split(' ').collect();
        assert_eq!(words, [format!("/usr/local/bin/{program}"), "check".to_owned()]);
        let mut launch = Launch::new(program).file("polygon-key", "k\n").arg(words[1]);
        for (name, value) in
            set.iter().filter(|(name, _)| text.contains(&format!("Environment={name}")))
        {
            launch = launch.env(name, value.replace("%d/", "").replace("%i", "8765"));
        }
        let done = launch.run(SOON).await;
        assert_eq!(done.code, Some(0), "{done:?}");
    }
}

/// Runs the commands of the document that install the units, in a directory that stands for `/`.
#[tokio::test]
async fn the_commands_that_install_the_units_work() {
    let document = document("docs/OPERATIONS.md");
    let commands = block(&document, "sh", "/etc/systemd/system");
    let dir = tempfile::tempdir().expect("make a temporary directory");
    let dest = dir.path().display();
    for made in ["usr/local/bin", "etc/systemd/system", "etc/sysusers.d"] {
        fs::create_dir_all(dir.path().join(made)).expect("make a directory");
    }
    let mut script = String::from("set -e\n");
    for line in commands.lines().map(|line| line.split("  #").next().unwrap_or_default()) {
        // The binaries are built, no systemd runs here, and the group is that of the directory.
        if line.starts_with("cargo") || line.starts_with("systemctl") {
            continue;
        }
        let line = line.replace(" /usr/", &format!(" {dest}/usr/"));
        let line = line.replace(" /etc/", &format!(" {dest}/etc/"));
        let line = line.replace("systemd-sysusers", &format!("systemd-sysusers --root={dest}"));
        let line = line.replace("target/release", &binaries().display().to_string());
        script += &(line.replace(" -g polygon-proxy", "") + "\n");
    }
    let mut sh = Command::new("sh");
    let sh = sh.args(["-c", &script]).current_dir(root()).stdin(Stdio::null()).output();
    let done = within(SOON, "the commands", sh).await.expect("run a shell");
    assert!(done.status.success(), "{script}: {done:?}");
    let text = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap_or_default();
    assert!(text("etc/group").contains("polygon-proxy:"), "{}", text("etc/group"));
    let mut paths: Vec<_> =
        UNITS.iter().map(|(unit, ..)| format!("etc/systemd/system/{unit}")).collect();
    paths.extend(UNITS.iter().map(|(.., env)| format!("etc/polygon-proxy/{env}")));
    paths.extend(UNITS.iter().map(|(_, _, program, _)| format!("usr/local/bin/{program}")));
    for path in paths.iter().map(|path| dir.path().join(path)) {
        assert!(path.is_file(), "{} after {script}", path.display());
    }
    let mode = |path: &str| {
        let metadata = fs::metadata(dir.path().join(path)).expect("the metadata of a file");
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode("etc/polygon-proxy/polygon-key"), 0o600);
    assert_eq!(mode("etc/polygon-proxy"), 0o750);
}

/// The service manager's socket.
struct Manager {
    socket: UnixDatagram,
    dir: TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let socket = StdDatagram::bind(dir.path().join("notify")).expect("bind a socket");
        socket.set_nonblocking(true).expect("set a socket non-blocking");
        Self { socket: UnixDatagram::from_std(socket).expect("a socket of tokio"), dir }
    }

    /// The program with this manager and its watchdog.
    fn launch(&self, launch: Launch) -> Launch {
        let launch = launch.env("NOTIFY_SOCKET", self.dir.path().join("notify").display());
        launch.env("WATCHDOG_USEC", WATCHDOG.as_micros())
    }

    async fn receive(&self) -> String {
        let mut buffer = vec![0; 8_192];
        let received = self.socket.recv(&mut buffer).await.expect("receive a notification");
        String::from_utf8(buffer[..received].to_vec()).expect("a notification is text")
    }

    /// The next notification that begins with this line.
    async fn expect(&self, begin: &str) -> String {
        let found = async {
            loop {
                let text = self.receive().await;
                if text.starts_with(begin) {
                    return text;
                }
            }
        };
        within(SOON, &format!("the notification {begin:?}"), found).await
    }

    /// Checks that the watchdog is fed in time, this often.
    async fn is_fed(&self, times: u32) {
        self.expect("WATCHDOG=1\n").await;
        for _ in 0..times {
            let before = Instant::now();
            self.expect("WATCHDOG=1\n").await;
            assert!(before.elapsed() < WATCHDOG, "fed after {:?}", before.elapsed());
        }
    }

    /// Checks that nothing feeds the watchdog for as long as it takes to expire.
    async fn starves(&self) {
        while self.socket.try_recv(&mut [0; 8_192]).is_ok() {}
        let fed = timeout(WATCHDOG, self.receive()).await;
        assert!(fed.is_err(), "{fed:?}");
    }
}

async fn stopped(mut program: Program, manager: &Manager) {
    program.signal(Signal::SIGTERM);
    let text = manager.expect("STOPPING=1\n").await;
    assert!(text.contains("\nSTATUS=stopping"), "{text}");
    // DRAIN_TIMEOUT, which is 10 s, and time to end.
    assert!(text.contains("\nEXTEND_TIMEOUT_USEC=15000000\n"), "{text}");
    assert_eq!(program.wait_exit(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn a_program_is_ready_once_its_port_is_bound_whatever_its_upstream_does() {
    let manager = Manager::new();
    let (own, upstream) = (ReservedPort::new(), ReservedPort::new());
    let launch = stack::firehose(&format!("ws://{}/stocks", upstream.addr()));
    let program = manager.launch(launch.env("FIREHOSE_PORT", own.addr().port())).spawn();
    let first = within(SOON, "a notification", manager.receive()).await;
    assert_eq!(first, "READY=1\n");
    TestClient::login(own.addr(), FIREHOSE_KEY).await;
    let status = manager.expect("STATUS=down: no connection to Polygon at ").await;
    assert_eq!(status.lines().count(), 1, "{status}");
    stopped(program, &manager).await;
}

#[tokio::test]
async fn the_status_follows_the_health() {
    let manager = Manager::new();
    let sim = Sim::start().await;
    let program = manager.launch(stack::firehose(&sim.url("stocks"))).start().await;
    manager.expect("STATUS=ok\n").await;
    drop(sim);
    manager.expect("STATUS=down: ").await;
    stopped(program, &manager).await;
}

#[tokio::test]
async fn the_loops_that_move_data_feed_the_watchdog_idle_or_flooded() {
    let flood = SimConfig {
        market: "stocks,crypto".to_owned(),
        rate: 20_000.0,
        frame_events: 1,
        ..SimConfig::default()
    };
    let sim = Sim::with(flood).await;
    let [upper, lower] = [Manager::new(), Manager::new()];
    let firehose = upper.launch(stack::firehose(&sim.url("")).env("MARKETS", "stocks,crypto"));
    let firehose = firehose.start().await;
    let filtered = lower.launch(stack::filtered(firehose.addr()).env("MARKETS", "stocks,crypto"));
    let filtered = filtered.start().await;
    is_up(&filtered).await;
    tests::wait::eventually(SOON, "a flood", async || {
        filtered.metric("filtered_events_in_total").await > Some(1_000.0)
    })
    .await;
    for manager in [&upper, &lower] {
        manager.is_fed(4).await;
    }
    // Nothing arrives any more.
    drop(sim);
    drop(firehose);
    lower.is_fed(2).await;
    stopped(filtered, &lower).await;
}

#[tokio::test]
async fn a_program_that_hangs_feeds_no_watchdog() {
    let manager = Manager::new();
    let nowhere = ReservedPort::new();
    let program = manager.launch(stack::filtered(nowhere.addr())).start().await;
    manager.is_fed(1).await;
    program.signal(Signal::SIGSTOP);
    manager.starves().await;
    program.signal(Signal::SIGCONT);
    manager.is_fed(1).await;
    stopped(program, &manager).await;
}

#[tokio::test]
async fn a_reload_is_announced_and_ends_with_ready() {
    let manager = Manager::new();
    let nowhere = ReservedPort::new();
    let program = manager.launch(stack::filtered(nowhere.addr())).start().await;
    manager.expect("READY=1\n").await;
    program.signal(Signal::SIGHUP);
    let text = manager.expect("RELOADING=1\nMONOTONIC_USEC=").await;
    let time = text.trim_end().rsplit('=').next().and_then(|time| time.parse::<u64>().ok());
    let uptime = fs::read_to_string("/proc/uptime").expect("read the uptime");
    let uptime: f64 = uptime.split(' ').next().and_then(|s| s.parse().ok()).expect("seconds");
    let late = uptime - time.expect("microseconds") as f64 / 1e6;
    assert!((-1.0..60.0).contains(&late), "{text} is {late} s before now");
    manager.expect("READY=1\n").await;
    stopped(program, &manager).await;
}
