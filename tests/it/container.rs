//! The container image: built with buildah from `deploy/container/Containerfile`, and run with any
//! user id and without a file system that it could write to.
//!
//! Registries of images are out of reach, so nothing runs in the Rust image of the first stage. The
//! command of that stage runs here instead, with this machine's Rust.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{sys::signal::kill, unistd::Pid};
use serde_json::Value;
use tempfile::TempDir;
use tests::{
    http::get,
    program::Signal,
    stack::ReservedPort,
    tools::{DeployTool, installed},
    wait::{SOON, eventually, listens, within},
    ws_client::{Received, TestClient},
};
use tokio::process::{Child, Command};

use crate::doc_snippets::{document, replaced, root};

/// How long compiling may take.
const COMPILATION: Duration = Duration::from_secs(1_200);
/// How long a step of buildah may take.
const STEP: Duration = Duration::from_secs(120);
/// The programs of the image.
const PROGRAMS: [&str; 4] = ["demo", "filtered-proxy", "firehose-proxy", "polygon-sim"];

const FILE: &str = "deploy/container/Containerfile";

/// The instruction that compiles, and the second stage.
fn stages(file: &str) -> (&str, &str) {
    let (first, second) = file.split_once("\nFROM scratch\n").expect("a second stage");
    let compile = first.split_once("\nRUN ").expect("an instruction that compiles").1;
    (compile.trim(), second)
}

#[tokio::test]
async fn hadolint_finds_nothing() {
    let mut hadolint = DeployTool::Hadolint.command().await;
    let lint = hadolint.arg(root().join(FILE)).output();
    let done = within(SOON, "hadolint", lint).await.expect("run hadolint");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

/// Compiles as the first stage does, but without optimising. Puts the result into `out`.
async fn compile(instruction: &str, target: &Path, out: &Path) {
    let (_mounts, command) = instruction.split_once(",target=/target \\\n").expect("mounts");
    let target = target.display();
    let mut command = command.trim_start().to_owned();
    for (part, by) in [
        ("--release ", String::new()),
        ("--target-dir /target ", format!("--target-dir {target} ")),
        ("\"/target/$target/release\"", format!("\"{target}/$target/debug\"")),
        ("/image/bin", out.join("bin").display().to_string()),
    ] {
        command = replaced(&command, part, &by);
    }
    let mut nice = installed("nice", "coreutils");
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            nice.env_remove(&*name);
        }
    }
    nice.args(["-n", "19", "sh", "-c", &command])
        .current_dir(root())
        .env("CARGO_PROFILE_DEV_DEBUG", "none")
        .env("CARGO_INCREMENTAL", "0")
        .kill_on_drop(true);
    let done = within(COMPILATION, "compiling", nice.output()).await.expect("run a shell");
    assert!(done.status.success(), "{command}\n{}", String::from_utf8_lossy(&done.stderr));
}

/// An image in a store of its own.
struct Image {
    dir: TempDir,
    /// What it holds.
    root: PathBuf,
    /// How it is to be run.
    config: Value,
}

impl Image {
    async fn build() -> Self {
        let test = std::env::current_exe().expect("the path of the running test");
        let target = test.ancestors().nth(3).expect("a test lies in TARGET/PROFILE/deps");
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let context = dir.path().join("context");
        let file = document(FILE);
        let (instruction, second) = stages(&file);
        compile(instruction, &target.join("image"), &context.join("image")).await;
        let second = replaced(second, "COPY --from=build /image /", "COPY image /");
        fs::write(context.join("Containerfile"), format!("FROM scratch\n{second}"))
            .expect("write a file");
        let mut image = Self { root: PathBuf::new(), config: Value::Null, dir };
        image.buildah(&["bud", "--tag", "proxy", &context.display().to_string()]).await;
        let container = image.buildah(&["from", "--pull-never", "localhost/proxy"]).await;
        image.root = image.buildah(&["mount", &container]).await.into();
        let text = image.buildah(&["inspect", "--type", "image", "localhost/proxy"]).await;
        let described: Value = serde_json::from_str(&text).expect("buildah prints JSON");
        image.config = described["OCIv1"]["config"].clone();
        image
    }

    /// Runs buildah, which needs no service and no registry for this. Returns what it prints.
    async fn buildah(&self, args: &[&str]) -> String {
        let mut buildah = installed("buildah", "buildah");
        buildah
            .arg("--root")
            .arg(self.dir.path().join("store"))
            .arg("--runroot")
            .arg(self.dir.path().join("run"))
            .args(["--storage-driver", "vfs"])
            .args(args)
            .env("BUILDAH_ISOLATION", "chroot")
            .kill_on_drop(true);
        let done = within(STEP, "buildah", buildah.output()).await.expect("run buildah");
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("buildah prints text").trim().to_owned()
    }

    fn list(&self, name: &str) -> Vec<&str> {
        let items = self.config[name].as_array().expect("a list");
        items.iter().map(|item| item.as_str().expect("a text")).collect()
    }

    /// A command that runs a program as a container engine does: in the image, with its
    /// variables, as this user and group, and without a file system that it can write to.
    fn command(&self, user: u32, args: &[&str], env: &[(&str, String)]) -> Command {
        let path = |command: Command| command.as_std().get_program().to_owned();
        let chroot: OsString = path(installed("chroot", "coreutils"));
        let mount = path(installed("mount", "mount"));
        let script = "root=$1 user=$2 mount=$3 chroot=$4 && shift 4 && \
                      $mount --bind \"$root\" \"$root\" && \
                      $mount --rbind /dev \"$root/dev\" && \
                      $mount --rbind /proc \"$root/proc\" && \
                      $mount -o remount,bind,ro \"$root\" && \
                      exec $chroot --userspec=\"$user:$user\" \"$root\" \"$@\"";
        let mut command = installed("unshare", "util-linux");
        command.args(["--mount", "/bin/sh", "-c", script, "sh"]).arg(&self.root);
        command.arg(user.to_string()).args([mount, chroot]).args(args).env_clear();
        let variables = self.list("Env").into_iter().filter_map(|line| line.split_once('='));
        command.envs(variables).envs(env.iter().map(|(name, value)| (name, value)));
        command.kill_on_drop(true);
        command
    }

    fn start(&self, user: u32, args: &[&str], env: &[(&str, String)]) -> Container {
        let output = self.dir.path().join(format!("{}.log", args[0]));
        let file = File::create(&output).expect("make a file for output");
        let mut command = self.command(user, args, env);
        command.stdin(Stdio::null()).stderr(file.try_clone().expect("clone a file")).stdout(file);
        Container { child: command.spawn().expect("start a container"), output }
    }

    /// The exit code of a program, and what it prints.
    async fn run(&self, user: u32, args: &[&str], env: &[(&str, String)]) -> (i32, String) {
        let output = self.command(user, args, env).output();
        let done = within(SOON, "the end of a container", output).await.expect("run a container");
        let text = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        (done.status.code().expect("an exit code"), text)
    }
}

/// A program that runs in the image.
struct Container {
    child: Child,
    output: PathBuf,
}

impl Container {
    fn output(&self) -> String {
        fs::read_to_string(&self.output).expect("read the output of a container")
    }

    /// Stops it as a container engine does.
    async fn stop(mut self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).expect("it runs");
        kill(Pid::from_raw(id), Signal::SIGTERM).expect("signal a container");
        let end = within(SOON, "the end of a container", self.child.wait()).await;
        assert_eq!(end.expect("wait for it").code(), Some(0), "{}", self.output());
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}\n---", self.output.display(), self.output());
        }
    }
}

#[tokio::test]
async fn the_image_runs_as_any_user_without_a_file_system_that_it_can_write_to() {
    if fs::metadata("/proc/self").is_ok_and(|process| process.uid() != 0) {
        let text = "the container image is not run: only root may mount file systems";
        assert!(std::env::var_os("CI").is_none(), "{text}");
        // Written directly, because the test runner hides the output of tests that pass.
        let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: {text} ***");
        return;
    }
    let image = Image::build().await;
    holds_the_programs_and_nothing_else(&image);
    // Engines add these.
    for name in ["dev", "etc", "proc"] {
        fs::create_dir(image.root.join(name)).expect("make a directory");
    }
    fs::write(image.root.join("etc/hosts"), "127.0.0.1 localhost\n").expect("write a file");
    let user = 10_000 + std::process::id() % 50_000;
    runs_the_chain(&image, user).await;

    // The command of the image itself.
    let command = image.list("Cmd");
    assert_eq!(command, ["demo"]);
    let ports = ["--market-port", "0", "--firehose-port", "0", "--filtered-port", "0"];
    let demo = image.start(user, &[&command[..], &ports].concat(), &[]);
    eventually(SOON, "figures of the demo", async || demo.output().contains("\ncrypto ")).await;
    demo.stop().await;
}

fn holds_the_programs_and_nothing_else(image: &Image) {
    let listed = fs::read_dir(image.root.join("bin")).expect("read a directory");
    let mut programs: Vec<_> = listed.map(|entry| entry.expect("an entry").file_name()).collect();
    programs.sort();
    assert_eq!(programs, PROGRAMS);
    let rest = fs::read_dir(&image.root).expect("read a directory");
    let rest: Vec<_> = rest.map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(rest, ["bin"]);
    // Kubernetes knows of numbers alone that they are not root's.
    let user = image.config["User"].as_str().and_then(|user| user.split(':').next());
    assert!(user.is_some_and(|user| user.parse::<u32>().is_ok_and(|id| id > 0)), "{user:?}");
}

/// Market, firehose and filtered proxy, each in a container of its own.
async fn runs_the_chain(image: &Image, user: u32) {
    let ports: Vec<_> = (0..5).map(|_| ReservedPort::new()).collect();
    let addr = |n: usize| ports[n].addr();
    let port = |n: usize| addr(n).port().to_string();
    let key = |name| (name, "a-key".to_owned());
    let market = [key("SIM_KEY"), ("SIM_PORT", port(0))];
    let firehose = [
        key("POLYGON_API_KEY"),
        key("FIREHOSE_API_KEYS"),
        ("POLYGON_WS_URL", format!("ws://localhost:{}/stocks", port(0))),
        ("FIREHOSE_PORT", port(1)),
        ("ADMIN_PORT", port(2)),
    ];
    let filtered = [
        key("FIREHOSE_API_KEY"),
        key("CLIENT_API_KEYS"),
        ("FIREHOSE_URL", format!("ws://localhost:{}", port(1))),
        ("FILTERED_PROXY_PORT", port(3)),
        ("ADMIN_PORT", port(4)),
    ];
    let tiers = [("firehose-proxy", &firehose), ("filtered-proxy", &filtered)];
    for (program, env) in tiers {
        let (code, text) = image.run(user, &[program, "healthcheck"], env).await;
        assert!(code == 1 && text.starts_with("not alive: "), "{program}: {code} {text}");
    }
    let market = image.start(user, &["polygon-sim"], &market);
    let running = tiers.map(|(program, env)| image.start(user, &[program], env));
    for port in &ports {
        listens(port.addr()).await;
    }
    for (program, env) in tiers {
        let healthcheck = image.run(user, &[program, "healthcheck"], env).await;
        assert_eq!(healthcheck, (0, String::new()), "{program}");
    }
    for admin in [2, 4] {
        assert_eq!(get(addr(admin), "/readyz").await.status, 200);
        assert!(get(addr(admin), "/metrics").await.body.contains("_sessions "));
    }
    let mut client = TestClient::login(addr(3), "a-key").await;
    client.subscribe("T.*").await;
    assert!(client.next_but_notices().await.starts_with(r#"{"ev":"T","sym":""#));
    let [firehose, filtered] = running;
    let ((), end) = tokio::join!(filtered.stop(), client.end(SOON));
    assert_eq!(end, Received::Closed(Some(1012)));
    firehose.stop().await;
    market.stop().await;
}
