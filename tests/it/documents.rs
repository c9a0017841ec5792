//! Whether the documents are right: settings, endpoints, snippets, types, metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use futures_util::future::join_all;
use polygon_sim::SimConfig;
use tests::{
    http::{get, refused_upgrade},
    official_clients::{Client, run_script, run_script_in},
    program::{Finished, Launch, Program, Signal},
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Sim, Stack, StackConfig},
    wait::{SOON, eventually, listens, within},
    ws_client::{AUTHENTICATED, GREETING, TestClient, acks},
};
use tokio::{
    process::Command,
    time::{interval, timeout},
};

use crate::{
    doc_snippets::{block, document, has_program, replaced, root},
    events::{quote, trade},
};

/// The cells of the rows of all tables with these first headings.
fn table(document: &str, headings: [&str; 2]) -> Vec<Vec<String>> {
    let start = format!("| {} | {} ", headings[0], headings[1]);
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    let mut rows = Vec::new();
    let mut lines = document.lines();
    while lines.any(|line| line.starts_with(&start)) {
        // The line under the headings comes first.
        rows.extend(lines.by_ref().skip(1).take_while(|line| line.starts_with('|')).map(cells));
    }
    assert!(!rows.is_empty(), "a table headed {headings:?}");
    rows
}

/// The rows of all tables of settings: three groups in the README, tuning in OPERATIONS.
fn documented_settings() -> Vec<Vec<String>> {
    let documents = ["README.md", "docs/OPERATIONS.md"];
    documents.iter().flat_map(|name| table(&document(name), ["variable", "tier"])).collect()
}

/// The texts between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

const TIERS: [(&str, &str); 2] = [("firehose", "firehose-proxy"), ("filtered", "filtered-proxy")];

/// The variables in a program's `--help`, with their defaults.
pub(crate) async fn settings(binary: &'static str) -> BTreeMap<String, Option<String>> {
    let Finished { stdout, .. } = Launch::new(binary).arg("--help").run(SOON).await;
    let in_brackets = |text: &str, name: &str| {
        let start = text.find(&format!("[{name}: "))? + name.len() + 3;
        text[start..].split(']').next().map(str::to_owned)
    };
    let mut settings = BTreeMap::new();
    for option in stdout.split("\n      --").skip(1) {
        let Some(variable) = in_brackets(option, "env") else { continue };
        let variable = variable.trim_end_matches('=').to_owned();
        assert!(settings.insert(variable, in_brackets(option, "default")).is_none());
    }
    assert!(settings.len() > 10, "{stdout}");
    settings
}

/// The default as the documents write it, for a default of `--help`.
fn default_cell(help: Option<&str>) -> String {
    match help {
        None | Some("none") => "none".to_owned(),
        Some("the account's key") => "`POLYGON_API_KEY`".to_owned(),
        Some("the types that the host serves by wildcard") => {
            "the [types that the host serves](docs/WIRE.md#channels) by wildcard".to_owned()
        }
        Some("text on a terminal, json otherwise") => "by output".to_owned(),
        Some(value) => format!("`{value}`"),
    }
}

#[tokio::test]
async fn every_setting_is_documented_once_with_its_default() {
    let readme = document("README.md");
    let rows = documented_settings();
    // A setting may have a default of its own in each tier.
    let names: BTreeSet<_> = rows.iter().map(|row| (&row[0], &row[1])).collect();
    let both: BTreeSet<_> = rows.iter().filter(|row| row[1] == "both").map(|row| &row[0]).collect();
    let once = |row: &Vec<String>| row[1] == "both" || !both.contains(&row[0]);
    let is_once = names.len() == rows.len() && rows.iter().all(once);
    assert!(is_once, "a setting has more than one row: {rows:?}");
    assert!(rows.iter().all(|row| row.len() == 4), "{rows:?}");
    let secrets = readme.split("Secrets (").nth(1).and_then(|rest| rest.split(')').next());
    let secrets = quoted(secrets.expect("the README names the secrets"));
    let mut files = BTreeSet::new();
    for (tier, binary) in TIERS {
        let mut listed = settings(binary).await;
        files
            .extend(listed.keys().filter_map(|name| name.strip_suffix("_FILE")).map(str::to_owned));
        listed.retain(|name, _| !name.ends_with("_FILE"));
        // An alias, which is documented in the row of the setting itself.
        assert_eq!(listed.remove("MASSIVE_API_KEY"), Some(None));
        let listed: BTreeMap<_, _> = listed
            .into_iter()
            .map(|(name, default)| (format!("`{name}`"), default_cell(default.as_deref())))
            .collect();
        let documented: BTreeMap<_, _> = rows
            .iter()
            .filter(|row| row[1] == tier || row[1] == "both")
            .map(|row| (row[0].clone(), row[2].clone()))
            .collect();
        assert_eq!(documented, listed, "settings of {binary}: documents and --help");
    }
    assert!(rows.iter().all(|row| ["both", "firehose", "filtered"].contains(&row[1].as_str())));
    assert!(rows.iter().any(|row| row[3].contains("`MASSIVE_API_KEY`")), "the alias");
    assert_eq!(files, secrets.into_iter().map(str::to_owned).collect(), "secrets from files");
}

#[tokio::test]
async fn the_example_of_a_dotenv_shows_settings_that_exist_and_their_defaults() {
    let mut known = BTreeMap::new();
    for (_, binary) in TIERS {
        known.extend(settings(binary).await);
    }
    let example = document(".env.example");
    let mut shown = 0;
    for line in example.lines() {
        let Some((name, value)) = line.trim_start_matches('#').split_once('=') else {
            assert!(line.is_empty() || line.starts_with("# "), "{line}");
            continue;
        };
        let default = known.get(name).unwrap_or_else(|| panic!("no setting {name}"));
        let default = default.as_deref().unwrap_or_default().replace("MARKET", "stocks");
        assert!(
            value == default || (value.is_empty() && (line.contains("KEY") || default == "none")),
            "{line}: {default}"
        );
        shown += 1;
    }
    assert!(shown > 3, "{example}");
    // First as it is, then with a key in it.
    let dotenv = replaced(&example, "\nPOLYGON_API_KEY=\n", "\nPOLYGON_API_KEY=some-key\n");
    for (_, binary) in TIERS {
        let launch = || Launch::new(binary).arg("--port").arg(0);
        let refused = launch().file(".env", &example).run(SOON).await;
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("POLYGON_API_KEY") && refused.stderr.contains("not set"));
        let unreachable = ReservedPort::new();
        let upstream = format!("ws://{}", unreachable.addr());
        let launch = launch().file(".env", &dotenv);
        launch.env("POLYGON_WS_URL", &upstream).env("FIREHOSE_URL", &upstream).start().await;
    }
}

#[tokio::test]
async fn every_endpoint_of_the_readme_answers() {
    let stack = Stack::start().await;
    for row in table(&document("README.md"), ["path", "answer"]) {
        let path = row[0].trim_matches('`');
        for program in [&stack.firehose, &stack.filtered[0]] {
            let response = get(program.addr(), path).await;
            assert_eq!(response.status, 200, "{path}: {response:?}");
            let kind = response.header("content-type").to_owned();
            assert_eq!(kind.starts_with("application/json"), row[1].starts_with("JSON"), "{kind}");
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let names = ["README.md", "QUICKSTART.md", "CHANGELOG.md"].map(PathBuf::from);
    let docs = std::fs::read_dir(root().join("docs")).expect("there are documents");
    let docs = docs.map(|entry| Path::new("docs").join(entry.expect("an entry").file_name()));
    for name in
        names.into_iter().chain(docs).filter(|name| name.extension().is_some_and(|e| e == "md"))
    {
        let text = document(name.to_str().expect("a readable name"));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let local = !target.contains("://") && !target.is_empty();
            let place = root().join(&name).with_file_name(target);
            assert!(!local || place.exists(), "{}: {target} is missing", name.display());
        }
    }
}

/// Publishes the same events again and again until the work completes.
async fn while_publishing<T>(stack: &Stack, events: &[String], work: impl Future<Output = T>) -> T {
    let mut ticks = interval(Duration::from_millis(50));
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => stack.publish(events),
        }
    }
}

#[tokio::test]
async fn the_python_snippet_works_as_it_stands() {
    let stack = Stack::start().await;
    let document = document("QUICKSTART.md");
    let snippet = block(&document, "python", "WebSocketClient(");
    let snippet = replaced(snippet, "localhost:8765", &stack.addr().to_string());
    let script = format!(
        "import os\nfrom massive import WebSocketClient\nKEY = os.environ['POLYGON_API_KEY']\n\
         client = {snippet}\nseen = set()\n\
         def show(events):\n    for event in events:\n        seen.add((event.event_type, event.symbol))\n    \
         if len(seen) == 2:\n        print(sorted(seen), flush=True)\n        os._exit(0)\n\
         client.run(show)\n"
    );
    let dir = tempfile::tempdir().expect("make a temporary directory");
    let path = dir.path().join("snippet.py");
    std::fs::write(&path, script).expect("write a script");
    let events = [trade("AAPL", 1), quote("AAPL", 2), trade("MSFT", 3)];
    let run = run_script(path.to_str().expect("a readable path"), &[], CLIENT_KEY, SOON);
    let Some(done) = while_publishing(&stack, &events, run).await else { return };
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(done.stdout.trim(), "[('Q', 'AAPL'), ('T', 'AAPL')]");
}

#[tokio::test]
async fn the_javascript_snippet_works_as_it_stands() {
    let stack = Stack::start().await;
    // This installs the packages.
    let Some(client) = Client::JsMassive.start(stack.addr(), CLIENT_KEY, "").await else { return };
    client.finish().await;
    let test = std::env::current_exe().expect("the path of the running test");
    let target = test.ancestors().nth(3).expect("a test lies in TARGET/PROFILE/deps");
    let document = document("QUICKSTART.md");
    let snippet = block(&document, "js", "websocketClient(");
    let snippet = replaced(snippet, "localhost:8765", &stack.addr().to_string());
    let line = document.lines().find(|line| line.starts_with("JavaScript ("));
    let packages = quoted(line.expect("QUICKSTART names the packages"));
    assert_eq!(packages.len(), 2, "{packages:?}");
    for package in packages {
        let script = format!(
            "import {{ websocketClient }} from {package:?};\nconst KEY = process.env.POLYGON_API_KEY;\n{snippet}\n\
             ws.onmessage = ({{ data }}) => {{\n  const first = JSON.parse(data)[0];\n  \
             if (first.status === 'auth_success') ws.send('{{\"action\":\"subscribe\",\"params\":\"T.AAPL\"}}');\n  \
             if (first.ev === 'T') {{ console.log(data); process.exit(0); }}\n}};\n"
        );
        let mut node = Command::new("node");
        node.args(["--input-type=module", "--eval", &script])
            .current_dir(target.join("clients").join("node"))
            .env("POLYGON_API_KEY", CLIENT_KEY)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let events = [quote("AAPL", 1), trade("AAPL", 2)];
        let run = within(SOON, package, node.output());
        let done = while_publishing(&stack, &events, run).await.expect("run node");
        assert!(done.status.success(), "{package}: {done:?}");
        let out = String::from_utf8_lossy(&done.stdout);
        assert!(out.starts_with(&format!("[{}", events[1])), "{package}: {out}");
    }
}

#[tokio::test]
async fn the_plain_commands_of_the_quick_start_work() {
    let stack = Stack::start().await;
    let document = document("QUICKSTART.md");
    let place = document.lines().find(|line| line.starts_with("Anything that speaks WebSocket"));
    let path = place.and_then(|line| line.split("localhost:8765").nth(1)?.split('`').next());
    let commands = block(&document, "text", "\"action\"");
    let (login, subscription) = commands.trim().split_once('\n').expect("two commands");
    let mut client = TestClient::connect_to(stack.addr(), path.expect("an address")).await;
    let answers: Vec<_> = block(&document, "text", "connected").lines().collect();
    assert_eq!(answers, [GREETING, AUTHENTICATED, &acks("subscribed", "T.AAPL,Q.AAPL,LULD.*")]);
    client.expect(answers[0]).await;
    client.send_raw(&replaced(login, "<key>", CLIENT_KEY)).await;
    client.expect(answers[1]).await;
    client.send_raw(subscription).await;
    client.expect(answers[2]).await;
}

#[tokio::test]
async fn the_go_snippet_is_go() {
    let document = document("QUICKSTART.md");
    let snippet = block(&document, "go", "massivews.New(");
    // Written directly, because the test runner hides the output of tests that pass.
    let missing = "the Go snippet is not compiled: no registry of the tests has client-go";
    let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: {missing} ***");
    if !has_program("gofmt", "-h").await {
        return;
    }
    let indented = snippet.trim_end().replace('\n', "\n\t");
    let program = format!("package main\n\nfunc main() {{\n\t{indented}\n}}\n");
    let dir = tempfile::tempdir().expect("make a temporary directory");
    let path = dir.path().join("main.go");
    std::fs::write(&path, program).expect("write a program");
    let gofmt = Command::new("gofmt").arg("-d").arg(&path).output();
    let done = within(SOON, "gofmt", gofmt).await.expect("run gofmt");
    assert!(done.status.success() && done.stdout.is_empty(), "{done:?}");
}

/// Runs the block as it stands, but at another address and with another key.
#[tokio::test]
async fn a_client_that_is_killed_loses_nothing() {
    let sim = SimConfig { rate: 2_000.0, symbols: 20, ..SimConfig::default() };
    let stack = Stack::with(StackConfig { sim, ..StackConfig::default() }).await;
    let dir = tempfile::tempdir().expect("make a temporary directory");
    let which = dir.path().join("which.py");
    let prints = "import sys\nprint(sys.executable)\nprint(':'.join(sys.path))\n";
    std::fs::write(&which, prints).expect("write a script");
    let Some(python) = run_script_in(dir.path(), &which, &[], SOON).await else { return };
    let (python, path) = python.stdout.trim().split_once('\n').expect("two lines");
    let script = root().join("tests/test_client.py");
    let document = document("QUICKSTART.md");
    let commands = block(&document, "sh", "/session/alpha")
        .replace("python3 tests/test_client.py", &format!("{python} {}", script.display()))
        .replace("localhost:8765", &stack.addr().to_string())
        .replace("sim-key", CLIENT_KEY);
    let mut bash = Command::new("bash");
    bash.args(["-e", "-c", &commands])
        .env("PYTHONPATH", path)
        .current_dir(dir.path())
        .env("FILTERED_PROXY_PORT", stack.addr().port().to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let done = within(2 * SOON, "the commands", bash.output()).await.expect("run bash");
    assert!(done.status.success(), "{done:?}");
    let lines = |name: &str| {
        let text = std::fs::read_to_string(dir.path().join(name)).expect("what a client printed");
        text.lines().count()
    };
    let [first, second, witness] = ["first.txt", "second.txt", "witness.txt"].map(lines);
    assert!(first > 10 && second > witness / 2 && witness > 100, "{first} {second} {witness}");
    assert_eq!(lines("lost.txt"), 0, "{done:?}");
    assert!(String::from_utf8_lossy(&done.stdout).contains(r#""history":{"#), "{done:?}");
}

/// Starts each program of the block as its line says, but on free ports.
#[tokio::test]
async fn the_commands_without_a_key_bring_data() {
    let document = document("QUICKSTART.md");
    let block = block(&document, "sh", "polygon-sim").replace("\\\n", "");
    let [sim, firehose, filtered, client] = block.lines().collect::<Vec<_>>()[..] else {
        panic!("four commands in {block}");
    };
    let start = |line: &str, name: &'static str, port: &str, upstream: &str| {
        let command = line.split(" #").next().expect("a command");
        let (settings, program) = command.split_once("cargo run --release -p ").expect("cargo");
        assert_eq!(program.trim(), name);
        let mut launch = Launch::new(name).env(port, 0);
        for setting in settings.split_whitespace() {
            let (name, value) = setting.split_once('=').expect("a setting");
            launch = launch.env(name, value.replace("localhost:8766", upstream));
        }
        launch
    };
    let mut sim = start(sim, "polygon-sim", "SIM_PORT", "").spawn();
    let listening = || sim_address(&sim.log_text());
    eventually(SOON, "the simulator listens", async || listening().is_some()).await;
    let upstream = listening().expect("waited for above");
    let firehose = start(firehose, "firehose-proxy", "FIREHOSE_PORT", &upstream).start().await;
    let url = format!("ws://{}", firehose.addr());
    let filtered = start(filtered, "filtered-proxy", "FILTERED_PROXY_PORT", "");
    let filtered = filtered.env("FIREHOSE_URL", url).start().await;
    stack::is_up(&filtered).await;
    let line = client.split(" #").next().and_then(|line| line.strip_prefix("python3 tests/"));
    let mut words = line.expect("a script").split_whitespace().map(|word| word.trim_matches('"'));
    let script = words.next().expect("a script");
    let url = format!("ws://{}", filtered.addr());
    let args: Vec<_> = words.chain(["--seconds", "2", "--url", &url]).collect();
    let Some(done) = run_script(script, &args, "wrong-key", SOON).await else { return };
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.contains("-- T.AAPL ") && done.stdout.contains("-- Q.AAPL "), "{done:?}");
    sim.signal(Signal::SIGTERM);
    assert_eq!(sim.wait_exit(SOON).await.code(), Some(0), "{}", sim.log_text());
}

/// The address in a simulator's log, whose lines have a form of their own.
fn sim_address(log: &str) -> Option<String> {
    let mut lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    let line: serde_json::Value =
        lines.find(|line: &serde_json::Value| line["message"] == "listening")?;
    line["addr"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn the_example_of_a_file_of_keys_is_one() {
    let document = document("docs/OPERATIONS.md");
    let keys = block(&document, "text", "sha256:");
    let nowhere = ReservedPort::new();
    let launch = stack::filtered(nowhere.addr()).without("CLIENT_API_KEYS");
    let launch = launch.file("keys", keys).env("CLIENT_API_KEYS_FILE", "keys");
    let health = launch.start().await.health().await;
    assert_eq!(health["keys"], serde_json::json!({"desk-a": 0, "desk-b": 0}));
}

#[tokio::test]
async fn each_market_takes_the_types_of_the_table_and_no_other() {
    let wire = document("docs/WIRE.md");
    let rows = table(&wire, ["market", "types"]);
    let every: BTreeSet<_> = rows.iter().flat_map(|row| quoted(&row[1])).collect();
    let markets: Vec<_> = rows.iter().map(|row| row[0].as_str()).collect();
    let readme = document("README.md");
    let settings = table(&readme, ["variable", "tier"]);
    let market = settings.iter().find(|row| row[0] == "`MARKET`").expect("a setting");
    assert_eq!(quoted(&market[3]), markets, "markets of README and WIRE");
    let checks = rows.iter().map(async |row| {
        let (market, types) = (&row[0], quoted(&row[1]));
        let nowhere = ReservedPort::new();
        let firehose = stack::firehose(&format!("ws://{}", nowhere.addr()));
        let filtered = stack::filtered(nowhere.addr());
        for (launch, key) in [(firehose, FIREHOSE_KEY), (filtered, CLIENT_KEY)] {
            let program = launch.env("MARKET", market).start().await;
            let mut client = TestClient::connect_to(program.addr(), &format!("/{market}")).await;
            client.log_in(key).await;
            for kind in &every {
                for channel in [format!("{kind}.*"), format!("{kind}.X:ABC-USD")] {
                    client.command("subscribe", &channel).await;
                    // The firehose knows what the vendor serves by contract only.
                    let on_demand = market == "options" && matches!(*kind, "Q" | "FMV");
                    if on_demand && key == FIREHOSE_KEY && channel.ends_with('*') {
                        let answer = client.next_but_notices().await;
                        assert!(answer.contains("by contract only"), "{answer}");
                    } else if types.contains(kind) {
                        client.expect_status("success", &format!("subscribed to: {channel}")).await;
                    } else {
                        let text = format!(
                            "unknown channel type in {channel:?}: expected one of {} before the first dot",
                            types.join(", ")
                        );
                        client.expect_status("error", &text).await;
                    }
                }
            }
        }
    });
    join_all(checks).await;
}

/// The metrics of `/metrics`: names without the tier's prefix and types, and the reasons of each.
async fn metrics(
    program: &Program,
    prefix: &str,
) -> (BTreeMap<String, String>, BTreeMap<String, BTreeSet<String>>) {
    let text = get(program.addr(), "/metrics").await.body;
    let short = |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_owned();
    let mut shown = BTreeMap::new();
    let mut reasons = BTreeMap::<_, BTreeSet<_>>::new();
    for line in text.lines() {
        if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let ending = if kind == "counter" { "_total" } else { "" };
            shown.insert(short(name) + ending, kind.to_owned());
        } else if let Some((name, labels)) = line.split_once('{') {
            let others = [
                ("key", "_sessions_by_key"),
                ("type", "_contracts_"),
                ("le", "_seconds_bucket"),
                ("balance", "_ledger_unaccounted_events"),
                ("version", "_build_info"),
            ];
            let is_other = |(label, of): &(&str, &str)| {
                labels.starts_with(&format!("{label}=\"")) && name.contains(of)
            };
            if others.iter().any(is_other) {
                continue;
            }
            let value = labels.strip_prefix("reason=\"").and_then(|rest| rest.split('"').next());
            let value = value.unwrap_or_else(|| panic!("a label that is no reason: {line}"));
            reasons.entry(short(name)).or_default().insert(value.to_owned());
        }
    }
    (shown, reasons)
}

#[tokio::test]
async fn the_document_of_metrics_is_complete_and_right() {
    let document = document("docs/METRICS.md");
    let rows = table(&document, ["metric", "tier"]);
    let documented_reasons: BTreeMap<_, BTreeSet<_>> =
        table(&document, ["metric", "values of `reason`"])
            .iter()
            .map(|row| {
                (
                    row[0].trim_matches('`').to_owned(),
                    quoted(&row[1]).into_iter().map(str::to_owned).collect(),
                )
            })
            .collect();
    let nowhere = ReservedPort::new();
    let firehose = stack::firehose(&format!("ws://{}", nowhere.addr()));
    let firehose = firehose.env("RECORD_DIR", "recorded").env("LEASE", "file:lease");
    let firehose = firehose.env("NATS_URL", format!("nats://{}", nowhere.addr()));
    let filtered = stack::filtered_on_nats(&format!("nats://{}", nowhere.addr()));
    let filtered = filtered.env("LAST_VALUES", "on");
    for (launch, key, tier) in
        [(firehose, FIREHOSE_KEY, "firehose"), (filtered, CLIENT_KEY, "filtered")]
    {
        // Some metrics appear only after something was counted: a failed try upstream and a refused
        // client.
        let launch = launch.env("MAX_CONNECTIONS", 1);
        // A market with contracts on demand.
        let program = launch.env("MARKET", "options").start().await;
        let mut client = TestClient::connect_to(program.addr(), "/").await;
        client.log_in(key).await;
        refused_upgrade(program.addr(), "/").await;
        eventually(SOON, "a try fails", async || {
            !program.health_text("/upstream/last_error").await.is_empty()
        })
        .await;
        let (shown, reasons) = metrics(&program, &format!("{tier}_")).await;
        let documented: BTreeMap<_, _> = rows
            .iter()
            .filter(|row| row[1] == "both" || row[1] == tier)
            .map(|row| (row[0].trim_matches('`').to_owned(), row[2].clone()))
            .filter(|(name, _)| !crate::metrics::ABSENT_AT_FIRST.contains(&name.as_str()))
            .collect();
        assert_eq!(documented, shown, "METRICS.md and /metrics of the {tier} tier");
        assert!(reasons.keys().eq(documented_reasons.keys()), "{reasons:?} {documented_reasons:?}");
        for (name, reasons) in reasons {
            let documented = &documented_reasons[&name];
            let all = matches!(name.as_str(), "sessions_closed_total" | "events_lost_total");
            assert!(
                reasons.is_subset(documented) && (!all || reasons == *documented),
                "{name}: {reasons:?}"
            );
        }
    }
}

#[tokio::test]
async fn both_programs_serve_at_every_log_level() {
    for level in ["error", "warn", "info", "debug", "trace"] {
        let sim = Sim::start().await;
        // Without log lines a test cannot learn a port that the program chose.
        let (upper, lower) = (ReservedPort::new(), ReservedPort::new());
        let launch = stack::firehose(&sim.url("stocks")).env("FIREHOSE_PORT", upper.addr().port());
        let firehose = launch.env("LOG_LEVEL", level).spawn();
        let launch = stack::filtered(upper.addr()).env("FILTERED_PROXY_PORT", lower.addr().port());
        let filtered = launch.env("LOG_LEVEL", level).spawn();
        for (addr, key) in [(upper.addr(), FIREHOSE_KEY), (lower.addr(), CLIENT_KEY)] {
            listens(addr).await;
            let mut client = TestClient::login(addr, key).await;
            client.command("subscribe", "T.AAPL").await;
            client.expect_status("success", "subscribed to: T.AAPL").await;
            let what = format!("an event at LOG_LEVEL={level}");
            let mut ticks = interval(Duration::from_millis(50));
            let event = async {
                loop {
                    ticks.tick().await;
                    sim.handle.publish(&[trade("AAPL", 1)]);
                    let wait = Duration::from_millis(200);
                    if let Ok(object) = timeout(wait, client.next_but_notices()).await {
                        return object;
                    }
                }
            };
            assert_eq!(within(SOON, &what, event).await, trade("AAPL", 1));
        }
        for mut program in [filtered, firehose] {
            program.signal(Signal::SIGTERM);
            let status = program.wait_exit(SOON).await;
            assert_eq!(status.code(), Some(0), "LOG_LEVEL={level}: {}", program.log_text());
        }
    }
}
