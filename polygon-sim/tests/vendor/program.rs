//! The binary: settings, log, control endpoint, signals.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    client::{Client, within},
    control::http,
};

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polygon-sim"));
    // No `.env` of the developer above this directory must interfere.
    command.args(args).current_dir(std::env::temp_dir());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A running program, killed when dropped. Its log lines arrive parsed.
struct Program {
    child: Child,
    log: mpsc::Receiver<Value>,
}

impl Program {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (send, log) = mpsc::sync_channel(1_000);
        // The thread ends with the program's log.
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _unread = send.send(serde_json::from_str(&line).unwrap_or(Value::from(line)));
            }
        });
        Self { child, log }
    }

    /// Waits for the log line with this message.
    fn logged(&self, message: &str) -> Value {
        loop {
            let line = self.log.recv_timeout(Duration::from_secs(10)).expect(message);
            if line["message"] == message {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {id}")]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_steers_and_stops_on_each_signal() {
    for signal in ["TERM", "INT"] {
        let mut settings = command(&["--port", "0", "--rate", "2000", "--key", "one,two"]);
        settings.env("SIM_CONTROL_PORT", "0").env("SIM_REFUSE", "FMV,NOI");
        let mut program = Program::start(settings);
        let control = program.logged("control endpoint ready");
        let control = control["addr"].as_str().unwrap().parse().unwrap();
        let listening = program.logged("listening");
        let addr = listening["addr"].as_str().unwrap();
        assert_eq!(listening["url"], format!("ws://{addr}/stocks"));

        let mut client = Client::open(&format!("ws://{addr}/stocks")).await.unwrap();
        client.text().await;
        client.send(r#"{"action":"auth","params":"two"}"#).await;
        assert!(client.text().await.contains("authenticated"));
        client.send(r#"{"action":"subscribe","params":"FMV.*,Q.*"}"#).await;
        assert!(client.text().await.contains("not authorized"));
        assert!(client.text().await.contains(r#""ev":"Q""#));
        assert!(http(control, "GET", "/stats", "").await.1.contains("\"auths\":1"));

        program.signal(signal);
        program.logged("stopped");
        let status = within("the end", async { program.child.wait().unwrap() }).await;
        assert_eq!(status.code(), Some(0), "{signal}");
    }
}

#[test]
fn bad_settings_end_it_with_one_line_that_names_them() {
    let plan = std::env::temp_dir().join(format!("plan-{}.jsonl", std::process::id()));
    std::fs::write(&plan, "{\"at\":\"soon\",\"rate\":1}\n").unwrap();
    for (args, named) in [
        (&["--port", "0", "--market", "bonds"][..], "bonds"),
        (&["--port", "0", "--market", "stocks,bonds"], "bonds"),
        (&["--port", "0", "--market", "stocks,stocks"], "/stocks"),
        (&["--port", "0", "--refuse", "XX"], "XX"),
        (&["--port", "0", "--rate", "-1"], "rate"),
        (&["--port", "0", "--plan", plan.to_str().unwrap()], "line 1"),
        (&["--port", "0", "--plan", "/no/such/plan"], "/no/such/plan"),
        (&["--port", "70000"], "70000"),
        (&["--host", "192.0.2.1"], "bind"),
    ] {
        let Output { status, stderr, .. } = command(args).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(!status.success() && stderr.contains(named), "{args:?}: {stderr}");
    }
    std::fs::remove_file(&plan).unwrap();
}

#[test]
fn help_names_every_variable() {
    let help = String::from_utf8(command(&["--help"]).output().unwrap().stdout).unwrap();
    for name in ["PORT", "HOST", "MARKET", "RATE", "SYMBOLS", "SEED", "KEY", "REFUSE", "PROFILE"] {
        assert!(help.contains(&format!("SIM_{name}")), "{name}: {help}");
    }
}
