//! The vendor's official clients, unmodified from their registries.
//!
//! The programs in `tests/clients` drive them. `driver.py` there describes their output and their
//! commands.

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
    /// The same client under its former name, `polygon-api-client`.
    PythonPolygon,
    /// Python's `websockets`, which waits for each answer.
    PythonPlain,
    /// The vendor's `@massive.com/client-js`.
    JsMassive,
    /// The same client under its former name, `@polygon.io/client-js`.
    JsPolygon,
    /// JavaScript's `ws`, which sends everything at once.
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

    /// Starts it against this server with these subscriptions, such as `T.AAPL,Q.AAPL`. It prints
    /// frames as they come. `None` where its language is missing.
    ///
    /// # Panics
    ///
    /// If it cannot be installed or started.
    pub async fn start(self, addr: SocketAddr, key: &str, params: &str) -> Option<Running> {
        self.start_with(&format!("ws://{addr}"), key, params, &[], None).await
    }

    /// Starts it as [`Client::start`] does, with this URL, to which the client may add its market.
    ///
    /// # Panics
    ///
    /// If it cannot be installed or started.
    pub async fn start_at(self, url: &str, key: &str, params: &str) -> Option<Running> {
        self.start_with(url, key, params, &[], None).await
    }

    /// Starts it as [`Client::start`] does, with a URL such as `wss://localhost:8765` and this
    /// authority to trust.
    ///
    /// # Panics
    ///
    /// If it cannot be installed or started.
    pub async fn start_secure(
        self,
        url: &str,
        authority: &Path,
        key: &str,
        params: &str,
    ) -> Option<Running> {
        self.start_with(url, key, params, &[], Some(authority)).await
    }

    /// Starts the vendor's own client, in either language, with another market than stocks.
    ///
    /// # Panics
    ///
    /// If it cannot be installed or started, or is another client.
    pub async fn start_in(
        self,
        market: &str,
        addr: SocketAddr,
        key: &str,
        params: &str,
    ) -> Option<Running> {
        assert!(!matches!(self, Self::PythonPlain | Self::JsPlain), "{self:?} knows no markets");
        self.start_with(&format!("ws://{addr}"), key, params, &["--market", market], None).await
    }

    /// Starts the vendor's Python client with its default, which makes objects of events.
    ///
    /// # Panics
    ///
    /// If it cannot be installed or started, or is another client.
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
            // OpenSSL (and so Python) and Node trust these beside their own authorities.
            command.env("SSL_CERT_FILE", authority).env("NODE_EXTRA_CA_CERTS", authority);
        }
        Some(Running::spawn(self, command))
    }
}

/// A running client. Dropping it kills it and, in a failing test, prints its standard error.
#[derive(Debug)]
pub struct Running {
    client: Client,
    child: Child,
    /// Its standard input. Taking it tells the client to leave.
    commands: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    errors: File,
    /// Objects of the last frame that have not been returned yet.
    objects: VecDeque<String>,
}

/// One line of a driver's output.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// A frame with its text unchanged.
    Frame(String),
    /// An object that the client made of an event.
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
        /// The message.
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

    /// The next line of its output.
    ///
    /// # Panics
    ///
    /// If nothing comes in time, or if it ends.
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

    /// The bytes of the next object that it prints, in any frame.
    ///
    /// # Panics
    ///
    /// If anything else comes first, or nothing in time.
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

    /// Takes the next objects and checks that they are these, byte for byte.
    ///
    /// To check that nothing else comes, end with an event that the client is known to get.
    ///
    /// # Panics
    ///
    /// If they differ.
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

    /// Waits until these items are acknowledged. The next objects must be their acknowledgements,
    /// in any order, apart from greeting, verdict and notices.
    ///
    /// # Panics
    ///
    /// If another object comes.
    pub async fn subscribed(&mut self, params: &str) {
        self.acknowledged("subscribed", params).await;
    }

    /// Waits until it is acknowledged that these items are unsubscribed, in the same way.
    ///
    /// # Panics
    ///
    /// If another object comes.
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

    /// The bytes of the next object that is not a greeting, a verdict or a notice: an event, or an
    /// answer to a request.
    ///
    /// # Panics
    ///
    /// If it prints something else than objects, or nothing in time.
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

    /// Waits until its key is refused and it ends. Returns the class or status of the refusal, and
    /// the message.
    ///
    /// # Panics
    ///
    /// If anything but greeting and verdict comes first, or if it does not end as a client with a
    /// refused key.
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

    /// The next object that it made of an event: its class and its fields. Skips log lines.
    ///
    /// # Panics
    ///
    /// If anything else comes first, or nothing in time.
    pub async fn next_event(&mut self) -> (String, Value) {
        loop {
            match self.next().await {
                Output::Event { class, fields } => return (class, fields),
                Output::Log(_) => {}
                other => panic!("{:?}: {other:?} instead of an event", self.client),
            }
        }
    }

    /// Waits for a line of the client's own log that begins like this, and skips others.
    ///
    /// # Panics
    ///
    /// If anything but log lines comes first, or if the line does not come in time.
    pub async fn logged(&mut self, line: &str) {
        loop {
            match self.next().await {
                Output::Log(text) if text.starts_with(line) => return,
                Output::Log(_) => {}
                other => panic!("{:?}: {other:?} instead of log line {line:?}", self.client),
            }
        }
    }

    /// Makes it `subscribe` or `unsubscribe`, through the client's own interface.
    ///
    /// # Panics
    ///
    /// If it has ended.
    pub async fn command(&mut self, action: &str, params: &str) {
        let line = format!("{action} {params}\n");
        let commands = self.commands.as_mut().expect("only finish takes its input");
        commands.write_all(line.as_bytes()).await.expect("send a command to a client");
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// If it has ended already.
    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        kill(Pid::from_raw(id.expect("the client still runs")), signal).expect("signal a client");
    }

    /// Kills it with SIGKILL. Returns the bytes of all objects that it has printed and that were
    /// not returned yet.
    ///
    /// # Panics
    ///
    /// If it has ended already.
    pub async fn kill(mut self) -> Vec<String> {
        self.signal(Signal::SIGKILL);
        let rest = async {
            while let Some(line) = self.output.next_line().await.expect("read the output") {
                // It may have been killed while it wrote the last line.
                if let Some(Output::Frame(text)) = Output::parse(&line) {
                    self.objects.extend(objects(&text));
                }
            }
        };
        within(SOON, "the output of a killed client ends", rest).await;
        self.end().await;
        self.objects.drain(..).collect()
    }

    /// Makes it leave and waits until it has ended.
    ///
    /// # Panics
    ///
    /// If it does not leave, or if something went wrong before.
    pub async fn finish(mut self) {
        self.commands.take();
        let what = format!("the end of {:?}", self.client);
        let end = async {
            // A client that is writing cannot leave until its output is read.
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

/// A language in which the vendor's client is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt {
    /// Python with `massive`.
    Python,
    /// Node with `@massive.com/client-js`.
    Node,
}

impl Prompt {
    /// Its interpreter, which reads standard input as one program or as lines at a prompt. `None`
    /// where the language is missing.
    ///
    /// # Panics
    ///
    /// If the packages cannot be installed.
    pub async fn command(self, at_prompt: bool) -> Option<Command> {
        let packages = match self {
            Self::Python => Packages::Massive,
            Self::Node => Packages::Node,
        };
        // Without a terminal, both open a prompt only when told to.
        let mode = Path::new(if at_prompt { "-i" } else { "-" });
        let mut command = packages.interpreter(mode).await?;
        command.current_dir(packages.drivers());
        if self == Self::Python {
            command.env("PYTHONUNBUFFERED", "1");
        }
        Some(command)
    }
}

/// Runs a program of `tests`, such as `test_client.py`, to its end. `None` where Python is missing.
///
/// # Panics
///
/// If it does not start, or does not end within the limit.
pub async fn run_script(name: &str, args: &[&str], key: &str, limit: Duration) -> Option<Finished> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let mut command = Packages::Massive.interpreter(&script).await?;
    command.args(args).env("POLYGON_API_KEY", key);
    Some(run(&format!("{name} {args:?}"), command, limit).await)
}

/// Runs a Python program in a directory, without a key in its environment. `None` where Python is
/// missing.
///
/// # Panics
///
/// As for [`run_script`].
pub async fn run_script_in(
    dir: &Path,
    script: &Path,
    args: &[&str],
    limit: Duration,
) -> Option<Finished> {
    let mut command = Packages::Massive.interpreter(script).await?;
    command.args(args).current_dir(dir).env_remove("POLYGON_API_KEY");
    Some(run(&format!("{script:?} {args:?} in {dir:?}"), command, limit).await)
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
