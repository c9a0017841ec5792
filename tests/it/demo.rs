//! The demo: what flows, whether it fits a terminal, and whether what it prints works when pasted.

use std::{fs::File, io::Read, process::Stdio, time::Duration};

use nix::pty::{Winsize, openpty};
use tests::{
    official_clients::{Prompt, run_script},
    program::{Launch, Program, Signal, binaries},
    stack::ReservedPort,
    wait::{SOON, eventually, within},
    ws_client::{Received, TestClient},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

const PORTS: [&str; 3] = ["--market-port", "--firehose-port", "--filtered-port"];

/// The demo on free ports.
fn demo() -> Launch {
    PORTS.into_iter().fold(Launch::new("demo"), |launch, flag| launch.arg(flag).arg(0))
}

/// The heading of the figures.
const HEADING: &str = "\nmarket ";

/// The running demo of these markets, and all that it prints before the figures.
async fn introduced(markets: &str) -> (Program, String) {
    let program = demo().arg("--markets").arg(markets).spawn();
    eventually(SOON, "figures", async || program.log_text().contains(HEADING)).await;
    let text = program.log_text();
    let (introduction, _) = text.split_once(HEADING).expect("waited for above");
    (program, introduction.to_owned())
}

/// The blocks of a text: the lines between empty ones.
fn block<'a>(text: &'a str, holds: &str) -> &'a str {
    let found: Vec<_> = text.split("\n\n").filter(|block| block.contains(holds)).collect();
    assert_eq!(found.len(), 1, "blocks with {holds:?} in {text}");
    found[0]
}

#[tokio::test]
async fn the_demo_shows_what_flows_and_serves_clients() {
    let done = demo().arg("--exit-after").arg("3s").run(SOON).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.took >= Duration::from_secs(3), "{done:?}");
    assert!(done.stdout.starts_with("SIMULATED DATA"), "{done:?}");
    assert!(done.stdout.trim_end().ends_with("stopped"), "{done:?}");

    let mut program = demo().spawn();
    let shown =
        |text: &str| text.lines().find(|line| line.contains("filtered proxy ")).map(str::to_owned);
    eventually(SOON, "where to connect", async || shown(&program.log_text()).is_some()).await;
    let line = shown(&program.log_text()).expect("it is there");
    let addr = line.split("ws://").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    let mut client = TestClient::login(addr.expect("an address"), "demo-key").await;
    client.subscribe("T.*").await;
    assert!(client.next_but_notices().await.starts_with(r#"{"ev":"T","sym":""#));
    for market in ["stocks", "crypto"] {
        has_figures(&program, market).await;
    }
    program.signal(Signal::SIGTERM);
    assert_ne!(client.end(SOON).await, Received::Dropped, "the demo closes in order");
    assert_eq!(program.wait_exit(SOON).await.code(), Some(0), "{}", program.log_text());
}

/// Waits for figures of a running feed of this market.
async fn has_figures(program: &Program, market: &str) {
    eventually(SOON, &format!("figures of {market}"), async || {
        program.log_text().lines().filter(|line| line.starts_with(market)).any(|line| {
            let figures: Vec<f64> =
                line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [upstream, delivered, clients, median, p99] = figures[..] else { return false };
            let flows = upstream > 0.0 && delivered > 0.0 && clients >= 1.0;
            flows && median > 0.0 && p99 >= median && line.ends_with(" ms")
        })
    })
    .await;
}

#[tokio::test]
async fn each_market_is_served_and_measured() {
    let (program, text) = introduced("options,crypto").await;
    let addr = text.split("filtered proxy    ws://").nth(1);
    let addr = addr.and_then(|rest| rest.split(' ').next()?.parse().ok()).expect("an address");
    let tried = block(&text, "  /crypto ");
    let tried = tried.lines().map(|line| {
        let mut words = line.split_whitespace();
        (words.next().expect("a path"), words.next().expect("a channel"))
    });
    let tried: Vec<_> = tried.collect();
    assert_eq!(tried, [("/options", "T.O:SPY261218C00650000"), ("/crypto", "XT.BTC-USD")]);
    for (path, channel) in tried {
        let mut client = TestClient::connect_to(addr, path).await;
        client.log_in("demo-key").await;
        client.subscribe(channel).await;
        let (kind, symbol) = channel.split_once('.').expect("a type and a symbol");
        let event = client.next_but_notices().await;
        assert!(event.starts_with(&format!(r#"{{"ev":"{kind}","#)), "{event}");
        assert!(event.contains(&format!(":\"{symbol}\"")), "{event}");
    }
    for market in ["options", "crypto"] {
        has_figures(&program, market).await;
    }
}

#[tokio::test]
async fn the_output_fits_a_terminal_of_80_columns() {
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(Some(&size), None).expect("open a terminal");
    let mut command = Command::new(binaries().join("demo"));
    // Contracts have the longest names.
    command.args(["--exit-after", "3s", "--rate", "200000"]);
    command.args(["--markets", "options,stocks,crypto"]);
    command.args(PORTS.iter().flat_map(|flag| [*flag, "0"]));
    let (stdout, stderr) = (terminal.slave.try_clone().expect("clone a file"), terminal.slave);
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).kill_on_drop(true);
    let mut child = command.spawn().expect("start the demo");
    drop(command);
    let mut master = File::from(terminal.master);
    let reading = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        let mut buffer = [0; 4_096];
        // The system reports the end of a terminal's other side as an error.
        while let Ok(n @ 1..) = master.read(&mut buffer) {
            all.extend_from_slice(&buffer[..n]);
        }
        String::from_utf8(all).expect("the demo writes UTF-8")
    });
    let status = within(SOON, "the end of the demo", child.wait()).await.expect("wait for it");
    let shown = within(SOON, "its output", reading).await.expect("read a terminal");
    assert_eq!(status.code(), Some(0), "{shown}");
    let clean = |row: &str| row.replace("\x1b[K", "").replace("\x1b[A", "");
    let rows: Vec<_> = shown.split(['\n', '\r']).map(clean).collect();
    let wide: Vec<_> = rows.iter().filter(|row| row.chars().count() > 79).collect();
    assert!(wide.is_empty(), "{wide:#?}");
    // Each second writes over the three lines of the one before.
    let figures = rows.iter().filter(|row| row.starts_with("stocks ")).count();
    assert!(figures >= 2, "{shown}");
    assert_eq!(shown.matches("\x1b[A\x1b[A\r\x1b[Koptions ").count(), figures - 1, "{shown}");
}

#[tokio::test]
async fn what_it_prints_for_python_and_node_runs_at_their_prompts() {
    let (_stocks, stocks) = introduced("stocks,crypto").await;
    let (_crypto, crypto) = introduced("crypto").await;
    let python = (Prompt::Python, "pip install massive && python3", "from massive import");
    let node = (
        Prompt::Node,
        "npm install @massive.com/client-js && node",
        "import(\"@massive.com/client-js\")",
    );
    let cases = [
        (&stocks, python, "EquityTrade("),
        (&stocks, node, "\"ev\":\"T\",\"sym\":\"AAPL\""),
        (&crypto, python, "CryptoTrade("),
        (&crypto, node, "\"ev\":\"XT\",\"pair\":\"BTC-USD\""),
    ];
    for (text, (prompt, shell, begins), event) in cases {
        assert_eq!(block(text, shell), shell);
        let snippet = block(text, begins);
        assert!(snippet.starts_with(begins), "{snippet}");
        for at_prompt in [true, false] {
            let Some(mut command) = prompt.command(at_prompt).await else { continue };
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("start an interpreter");
            let mut input = child.stdin.take().expect("stdin is piped");
            let pasted = format!("{snippet}\n");
            input.write_all(pasted.as_bytes()).await.expect("paste the lines");
            // The end of its input closes a prompt, and starts a program.
            let _open = at_prompt.then_some(input);
            let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
            let mut errors = child.stderr.take().expect("stderr is piped");
            let what = format!("an event for {prompt:?}");
            let seen = async {
                while let Some(line) = lines.next_line().await.expect("read its output") {
                    if line.contains(event) {
                        return true;
                    }
                }
                false
            };
            if !within(2 * SOON, &what, seen).await {
                let mut text = String::new();
                let _ = errors.read_to_string(&mut text).await;
                panic!("{prompt:?}, at its prompt: {at_prompt}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn the_line_for_the_projects_own_client_runs() {
    let (_demo, text) = introduced("stocks,crypto").await;
    let lines = block(&text, "tests/test_client.py").replace("\\\n", "");
    let (install, line) = lines.split_once('\n').expect("two commands");
    assert_eq!(install, "pip install websockets");
    let mut words = line.strip_prefix("python3 tests/").expect("a script").split_whitespace();
    let script = words.next().expect("a script");
    let args: Vec<_> = words.chain(["--seconds", "2"]).collect();
    // The key is that of the line, not that of the environment.
    let Some(done) = run_script(script, &args, "wrong-key", SOON).await else { return };
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.contains(" T    AAPL "), "{done:?}");
}

#[tokio::test]
async fn errors_name_its_own_flags() {
    let taken = ReservedPort::new();
    let listener = std::net::TcpListener::bind(taken.addr()).expect("listen on a reserved port");
    let port = listener.local_addr().expect("its address").port().to_string();
    let refused = async |args: &[(&str, &str)]| {
        let launch = args.iter().fold(Launch::new("demo"), |launch, (flag, value)| {
            launch.arg(format!("{flag}={value}"))
        });
        let done = launch.run(SOON).await;
        assert_eq!((done.code, done.stderr.lines().count()), (Some(2), 1), "{done:?}");
        done.stderr
    };
    for flag in PORTS {
        let args = PORTS.map(|one| (one, if one == flag { port.as_str() } else { "0" }));
        let line = refused(&args).await;
        assert!(line.contains(&format!("{flag}: invalid value \"{port}\"")), "{line}");
        assert!(line.contains(&format!("free at 127.0.0.1:{port}")), "{line}");
        assert!(!line.contains("_PORT"), "{line}");
    }
    for (flag, value) in [
        ("--filtered-port", "abc"),
        ("--rate", "-1"),
        ("--rate", "NaN"),
        ("--symbols", "0"),
        ("--markets", "bonds"),
        ("--markets", "crypto,crypto"),
        ("--profile", "wild"),
        ("--seed", "x"),
        ("--exit-after", "0"),
        ("--log-level", "loud"),
    ] {
        let line = refused(&[(flag, value)]).await;
        assert!(line.starts_with(&format!("{flag}: invalid value \"{value}\": ")), "{line}");
    }
}
