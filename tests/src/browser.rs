//! A real browser: Chromium, driven by `tests/clients/browser.mjs`.

use std::{path::PathBuf, process::Stdio};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
};

use crate::{
    official_clients::packages::Packages,
    wait::{SOON, eventually, within},
};

/// The names of the program, by system.
const CHROMIUM: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// A browser with one page. Dropping it ends it.
#[derive(Debug)]
pub struct Browser {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Browser {
    /// Starts a browser.
    ///
    /// # Panics
    ///
    /// If there is no Chromium or no Node, or the driver cannot be installed.
    pub async fn start() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let found =
            |name: &&str| directories.iter().map(|one| one.join(name)).find(|it| it.is_file());
        let chromium = CHROMIUM
            .iter()
            .find_map(found)
            .expect("these tests need Chromium: install your system's package chromium");
        let driver = Packages::Node.drivers().join("browser.mjs");
        let command = Packages::Node.interpreter(&driver).await;
        let mut command = command.expect("these tests need Node 18 with npm");
        command.arg(chromium).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start node");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { _child: child, input, output }
    }

    /// Opens this address.
    ///
    /// # Panics
    ///
    /// If nothing answers there in time.
    pub async fn open(&mut self, url: &str) {
        self.command("open", url.into()).await;
    }

    /// The value of a JavaScript expression in the page.
    ///
    /// # Panics
    ///
    /// If it throws.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        self.command("evaluate", expression.into()).await
    }

    /// The text of all elements of this selector, as a reader sees it.
    ///
    /// # Panics
    ///
    /// If the selector is none.
    pub async fn text(&mut self, selector: &str) -> String {
        let selector = Value::from(selector);
        let all =
            format!("[...document.querySelectorAll({selector})].map(e => e.innerText).join('\\n')");
        self.evaluate(&all).await.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until this JavaScript expression is true in the page.
    ///
    /// # Panics
    ///
    /// If it is not in time.
    pub async fn shows(&mut self, what: &str, expression: &str) {
        eventually(SOON, what, async || self.evaluate(expression).await == true).await;
    }

    /// Types a text into this field and presses Enter.
    ///
    /// # Panics
    ///
    /// If there is no such field.
    pub async fn enter(&mut self, selector: &str, text: &str) {
        self.command("type", json!([selector, text])).await;
    }

    /// Prefers `light` or `dark` from now on.
    ///
    /// # Panics
    ///
    /// If the driver fails.
    pub async fn prefer(&mut self, scheme: &str) {
        self.command("scheme", scheme.into()).await;
    }

    /// Makes the window this wide, in pixels.
    ///
    /// # Panics
    ///
    /// If the driver fails.
    pub async fn resize(&mut self, width: u32) {
        self.command("width", width.into()).await;
    }

    /// Keeps a picture of the whole page as `target/tmp/pages/NAME.png`.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub async fn picture(&mut self, name: &str) {
        // TARGET/PROFILE/deps/it-HASH
        let test = std::env::current_exe().expect("the path of the running test");
        let target = test.ancestors().nth(3).expect("a test lies in TARGET/PROFILE/deps");
        let directory = target.join("tmp").join("pages");
        std::fs::create_dir_all(&directory).expect("make a directory");
        let file = directory.join(format!("{name}.png"));
        self.command("screenshot", file.display().to_string().into()).await;
    }

    /// The errors and warnings of the page and of its console.
    ///
    /// # Panics
    ///
    /// If the driver fails.
    pub async fn complaints(&mut self) -> Vec<String> {
        self.strings("complaints").await
    }

    /// Every address that the page has asked.
    ///
    /// # Panics
    ///
    /// If the driver fails.
    pub async fn requests(&mut self) -> Vec<String> {
        self.strings("requests").await
    }

    async fn strings(&mut self, command: &str) -> Vec<String> {
        let list = self.command(command, Value::Null).await;
        serde_json::from_value(list).expect("a list of strings")
    }

    async fn command(&mut self, name: &str, argument: Value) -> Value {
        let line = format!("{}\n", json!({ name: argument }));
        let answered = async {
            self.input.write_all(line.as_bytes()).await.expect("the driver runs");
            let answer = self.output.next_line().await.expect("the driver answers");
            answer.expect("the driver runs; its errors are above")
        };
        let answer = within(3 * SOON, name, answered).await;
        let answer: Value = serde_json::from_str(&answer).expect("an answer is JSON");
        assert_eq!(answer.get("error"), None, "{line}");
        answer["value"].clone()
    }
}
