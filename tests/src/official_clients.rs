//! The vendor's official clients, run as they come from their registries.
//!
//! The programs in `tests/clients` drive them; `driver.py` there says what those print and what
//! they can be told.

pub(crate) mod packages;

use std::{
    collections::{BTreeSet, VecDeque},
    fs::File,
    io::{Read, Seek},
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{sys::signal::kill, unistd::Pid};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::{
    program::{Finished, Signal},
    wait::{SOON, within},
    ws_client::objects,
};
use packages::Packages;

/// The exit code of a driver whose key was refused.
const REFUSED: i32 = 3;

/// A client program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// The vendor's `massive` for Python.
    PythonMassive,
    /// The same under its former name, `polygon-api-client`.
    PythonPolygon,
    /// Python's `websockets`, waiting for each answer.
    PythonPlain,
    /// The vendor's `@massive.com/client-js`.
    JsMassive,
    /// The same under its former name, `@polygon.io/client-js`.
    JsPolygon,
    /// JavaScript's `ws`, sending everything at once.
    JsPlain,
}

impl Client {
    /// Every client.
    pub const ALL: [Self; 6] = [
        Self::PythonMassive,
        Self::PythonPolygon,
        Self::PythonPlain,
        Self::JsMassive,
        Self::JsPolygon,
        Self::JsPlain,
    ];

    /// Starts it against this server with these subscriptions, such as `T.AAPL,Q.AAPL`; none where
    /// its language is missing. It hands over frames as they come.
    ///
    /// # Panics
    ///
    /// It can not be installed or started.
    pub async fn start(self, addr: SocketAddr, key: &str, params: &str) -> Option<Running> {
        self.start_with(&format!("ws://{addr}"), key, params, &[], None).await
    }

    /// Starts it as [`Client::start`] does, against a URL such as `wss://localhost:8765`, where it
    /// trusts this authority.
    ///
    /// # Panics
    ///
    /// It can not be installed or started.
    pub async fn start_secure(
        self,
        url: &str,
        authority: &Path,
        key: &str,
        params: &str,
    ) -> Option<Running> {
        self.start_with(url, key, params, &[], Some(authority)).await
    }

    /// Starts the vendor's Python client so that it makes objects of events, which is its default.
    ///
    /// # Panics
    ///
    /// It can not be installed or started, or is another client.
    pub async fn start_parsed(self, addr: SocketAddr, key: &str, params: &str) -> Option<Running> {
        assert!(
            matches!(self, Self::PythonMassive | Self::PythonPolygon),
            "{self:?} parses nothing"
        );
        self.start_with(&format!("ws://{addr}"), key, params, &["--parsed"], None).await
    }

    async fn start_with(
        self,
        url: &str,
        key: &str,
        params: &str,
        more: &[&str],
        authority: Option<&Path>,
    ) -> Option<Running> {
        let (packages, driver): (_, &[&str]) = match self {
            Self::PythonMassive => (Packages::Massive, &["official.py", "--package", "massive"]),
            Self::PythonPolygon => (Packages::Polygon, &["official.py", "--package", "polygon"]),
            Self::PythonPlain => (Packages::Massive, &["plain.py"]),
            Self::JsMassive => {
                (Packages::Node, &["official.mjs", "--package", "@massive.com/client-js"])
            }
            Self::JsPolygon => {
                (Packages::Node, &["official.mjs", "--package", "@polygon.io/client-js"])
            }
            Self::JsPlain => (Packages::Node, &["plain.mjs"]),
        };
        let mut command = packages.interpreter(&packages.drivers().join(driver[0])).await?;
        command
            .args(&driver[1..])
            .args(["--url", url, "--subscribe", params])
            .args(more)
            .env("POLYGON_API_KEY", key);
        if let Some(authority) = authority {
            // What OpenSSL, and so Python, and what Node trust beside what they come with.
            command.env("SSL_CERT_FILE", authority).env("NODE_EXTRA_CA_CERTS", authority);
        }
        Some(Running::spawn(self, command))
    }
}

/// A running client. Dropping it kills it and, in a failing test, shows what it wrote to standard
/// error.
#[derive(Debug)]
pub struct Running {
    client: Client,
    child: Child,
    /// Its standard input; taken to tell it to leave.
    commands: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    errors: File,
    /// Objects of the last frame not yet given out.
    objects: VecDeque<String>,
}

/// One line of a driver's output.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// A frame, its text untouched.
    Frame(String),
    /// An event that the client made an object of.
    Event {
        /// The name of the object's class.
        class: String,
        /// The object's fields.
        fields: Value,
    },
    /// A line of the client's own log.
    Log(String),
    /// The key was refused.
    Refused {
        /// The error's class, or the status.
        by: String,
        /// In which words.
        message: String,
    },
    /// The client stopped by itself.
    Ended(String),
}

impl Output {
    fn parse(line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        let (kind, value) = line.as_object()?.iter().next()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some(match kind.as_str() {
            "frame" => Self::Frame(text(value)?),
            "event" => {
                Self::Event { class: text(&value["class"])?, fields: value["fields"].clone() }
            }
            "log" => Self::Log(text(value)?),
            "refused" => {
                Self::Refused { by: text(&value["by"])?, message: text(&value["message"])? }
            }
            "ended" => Self::Ended(text(value)?),
            _ => return None,
        })
    }
}

impl Running {
    fn spawn(client: Client, mut command: Command) -> Self {
        let errors = tempfile::tempfile().expect("make a temporary file");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().expect("clone a file"))
            .spawn()
            .unwrap_or_else(|error| panic!("start {client:?}: {error}"));
        let commands = Some(child.stdin.take().expect("stdin is piped"));
        let output = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        Self { client, child, commands, output, errors, objects: VecDeque::new() }
    }

    /// What it writes next.
    ///
    /// # Panics
    ///
    /// Nothing comes before long, or it ends.
    pub async fn next(&mut self) -> Output {
        let what = format!("output of {:?}", self.client);
        let line = within(SOON, &what, self.output.next_line()).await.expect("read the output");
        let line = line.unwrap_or_else(|| panic!("{:?} ended", self.client));
        Output::parse(&line).unwrap_or_else(|| {
            let error = serde_json::from_str::<Value>(&line).err();
            let begin: String = line.chars().take(200).collect();
            panic!("{:?} wrote {} bytes ({error:?}): {begin}", self.client, line.len())
        })
    }

    /// The bytes of the next object that it hands over, in whatever frame.
    ///
    /// # Panics
    ///
    /// Anything else comes first, or nothing before long.
    pub async fn next_object(&mut self) -> String {
        loop {
            if let Some(object) = self.objects.pop_front() {
                return object;
            }
            match self.next().await {
                Output::Frame(text) => self.objects = objects(&text).into(),
                other => panic!("{:?}: {other:?} instead of a frame", self.client),
            }
        }
    }

    /// Takes the next objects, which are these, byte for byte.
    ///
    /// To see that nothing else comes, end with an event that the client is known to get.
    ///
    /// # Panics
    ///
    /// They are not.
    pub async fn expect_objects<T: AsRef<str>>(&mut self, expected: &[T]) {
        for (n, expected) in expected.iter().enumerate() {
            assert_eq!(
                self.next_object().await,
                expected.as_ref(),
                "{:?}: object {n}",
                self.client
            );
        }
    }

    /// Waits until these items are acknowledged: the next objects are their acknowledgements, in
    /// any order, greeting, verdict and notices aside.
    ///
    /// # Panics
    ///
    /// They are not.
    pub async fn subscribed(&mut self, params: &str) {
        self.acknowledged("subscribed", params).await;
    }

    /// Waits until these items are acknowledged as given up, likewise.
    ///
    /// # Panics
    ///
    /// They are not.
    pub async fn unsubscribed(&mut self, params: &str) {
        self.acknowledged("unsubscribed", params).await;
    }

    async fn acknowledged(&mut self, verb: &str, params: &str) {
        let mut missing: BTreeSet<String> = params
            .split(',')
            .map(|item| {
                let message = format!("{verb} to: {item}");
                format!(r#"{{"ev":"status","status":"success","message":"{message}"}}"#)
            })
            .collect();
        while !missing.is_empty() {
            let object = self.next_unless_notice().await;
            assert!(
                missing.remove(&object),
                "{:?}: {object} instead of one of {missing:?}",
                self.client
            );
        }
    }

    /// The bytes of the next object that is no greeting, no verdict and no notice: an event, or an
    /// answer to a request.
    ///
    /// # Panics
    ///
    /// It hands over no objects, or none before long.
    pub async fn next_unless_notice(&mut self) -> String {
        loop {
            let text = self.next_object().await;
            let object: Value = serde_json::from_str(&text).expect("an object parses");
            if object["ev"] != "status"
                || object["status"] == "success"
                || object["status"] == "error"
            {
                return text;
            }
        }
    }

    /// Waits until it is told that its key is refused, and it ends; returns who says so, and in
    /// which words.
    ///
    /// # Panics
    ///
    /// Anything but greeting and verdict comes first, or it does not end as a client with a refused
    /// key.
    pub async fn refused(&mut self) -> (String, String) {
        loop {
            match self.next().await {
                Output::Frame(_) => {}
                Output::Refused { by, message } => {
                    assert_eq!(self.end().await.code(), Some(REFUSED), "{:?}", self.client);
                    return (by, message);
                }
                other => panic!("{:?}: {other:?} instead of a refusal", self.client),
            }
        }
    }

    /// The next event that it made an object of: the object's class and fields. Log lines are
    /// skipped.
    ///
    /// # Panics
    ///
    /// Anything else comes first, or nothing before long.
    pub async fn next_event(&mut self) -> (String, Value) {
        loop {
            match self.next().await {
                Output::Event { class, fields } => return (class, fields),
                Output::Log(_) => {}
                other => panic!("{:?}: {other:?} instead of an event", self.client),
            }
        }
    }

    /// Waits for a line of the client's own log that begins like this, skipping others.
    ///
    /// # Panics
    ///
    /// Anything but log lines comes first, or it does not come before long.
    pub async fn logged(&mut self, line: &str) {
        loop {
            match self.next().await {
                Output::Log(text) if text.starts_with(line) => return,
                Output::Log(_) => {}
                other => panic!("{:?}: {other:?} instead of log line {line:?}", self.client),
            }
        }
    }

    /// Tells it to `subscribe` or `unsubscribe`, through the client's own interface.
    ///
    /// # Panics
    ///
    /// It has ended.
    pub async fn tell(&mut self, action: &str, params: &str) {
        let line = format!("{action} {params}\n");
        let commands = self.commands.as_mut().expect("only finish takes it");
        commands.write_all(line.as_bytes()).await.expect("tell a client something");
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// It has ended already.
    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        kill(Pid::from_raw(id.expect("the client still runs")), signal).expect("signal a client");
    }

    /// Tells it that it is done and waits until it has left.
    ///
    /// # Panics
    ///
    /// It does not leave, or something went wrong with it before.
    pub async fn finish(mut self) {
        self.commands.take();
        let what = format!("the end of {:?}", self.client);
        let end = async {
            // A client that writes can not leave until it is read.
            while self.output.next_line().await.expect("read the output").is_some() {}
            self.child.wait().await.expect("wait for a client")
        };
        assert_eq!(within(SOON, &what, end).await.code(), Some(0), "{what}");
    }

    async fn end(&mut self) -> ExitStatus {
        let what = format!("the end of {:?}", self.client);
        within(SOON, &what, self.child.wait()).await.expect("wait for a client")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut text = String::new();
            let read = self.errors.rewind().and_then(|()| self.errors.read_to_string(&mut text));
            eprintln!("--- errors of {:?} ({read:?}) ---\n{text}---", self.client);
        }
    }
}

/// Runs a program of `tests`, such as `test_client.py`, to its end; none where Python is missing.
///
/// # Panics
///
/// It does not start or does not end within the limit.
pub async fn run_script(name: &str, args: &[&str], key: &str, limit: Duration) -> Option<Finished> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let mut command = Packages::Massive.interpreter(&script).await?;
    command.args(args).env("POLYGON_API_KEY", key);
    Some(run(&format!("{name} {args:?}"), command, limit).await)
}

/// Runs a command to its end.
pub(crate) async fn run(what: &str, mut command: Command, limit: Duration) -> Finished {
    let started = Instant::now();
    let run = command.stdin(Stdio::null()).output();
    let output = within(limit, what, run).await.expect("run a program");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("a script writes UTF-8");
    Finished {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
        took: started.elapsed(),
    }
}
