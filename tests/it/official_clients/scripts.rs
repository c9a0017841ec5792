//! The project's own client programs, `test_client.py` and `test_polygon_proxy.py`: they work, and
//! they notice faults.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::{SinkExt, StreamExt, future::join_all};
use polygon_sim::SimConfig;
use serde_json::Value;
use tempfile::TempDir;
use tests::{
    official_clients::{run_script, run_script_in},
    program::Finished,
    stack::{CLIENT_KEY, ReservedPort, Sim, Stack, StackConfig, VENDOR_KEY, firehose, is_up},
    wait::SOON,
    ws_client::{AUTHENTICATED, GREETING, acks, objects},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::broadcast,
    task::JoinSet,
    time::interval,
};
use tokio_tungstenite::{accept_async, tungstenite::Message};

use crate::{
    doc_snippets::{block, document},
    events::{quote, trade},
};

/// Runs `test_client.py` against a server. `None` where Python is missing.
async fn test_client(addr: SocketAddr, key: &str, args: &[&str]) -> Option<Finished> {
    let url = format!("ws://{addr}");
    run_script("test_client.py", &[&["--url", &url], args].concat(), key, SOON).await
}

/// Runs `test_polygon_proxy.py` against a server. `None` where Python is missing.
async fn test_polygon_proxy(addr: SocketAddr, key: &str) -> Option<Finished> {
    let url = format!("ws://{addr}");
    run_script("test_polygon_proxy.py", &["--url", &url, "--seconds", "2"], key, 2 * SOON).await
}

/// A stack with a busy market.
async fn busy_stack() -> Stack {
    let sim = SimConfig { rate: 2_000.0, symbols: 5, record: true, ..SimConfig::default() };
    Stack::with(StackConfig { sim, ..StackConfig::default() }).await
}

#[tokio::test]
async fn the_client_shows_a_feed() {
    let stack = busy_stack().await;
    let args = ["--symbols", "T.AAPL,Q.AAPL", "--seconds", "1"];
    let Some(shown) = test_client(stack.addr(), CLIENT_KEY, &args).await else { return };
    assert_eq!(shown.code, Some(0), "{shown:?}");
    for text in [
        "-- authenticated",
        "-- success: subscribed to: T.AAPL",
        "-- T.AAPL ",
        "-- Q.AAPL ",
        "-- total ",
    ] {
        assert!(shown.stdout.contains(text), "no {text:?} in {}", shown.stdout);
    }

    // As JSON it prints only events, as the market sent them.
    let args = ["--symbols", "T.AAPL", "--seconds", "1", "--json"];
    let Some(json) = test_client(stack.addr(), CLIENT_KEY, &args).await else { return };
    assert_eq!(json.code, Some(0), "{json:?}");
    let sent: HashSet<_> =
        stack.sim.handle.sent().iter().flat_map(|frame| objects(frame)).collect();
    assert!(!json.stdout.is_empty());
    for line in json.stdout.lines() {
        assert!(sent.contains(line), "not what the market sent: {line}");
        let event: Value = serde_json::from_str(line).expect("an event is JSON");
        assert_eq!((&event["ev"], &event["sym"]), (&"T".into(), &"AAPL".into()));
    }
    assert!(json.stderr.contains("-- success: subscribed to: T.AAPL"), "{}", json.stderr);
}

#[tokio::test]
async fn the_client_ends_with_a_code_that_says_why() {
    let stack = Stack::start().await;
    let unused = ReservedPort::new();
    let brief = ["--symbols", "T.AAPL", "--seconds", "0.3"];
    let cases = [
        (stack.addr(), CLIENT_KEY, 1, "0 events"),
        (stack.addr(), "", 2, "POLYGON_API_KEY is not set"),
        (stack.addr(), "wrong-key", 3, "refused: auth_failed: authentication failed"),
        (unused.addr(), CLIENT_KEY, 4, "no connection"),
    ];
    for (addr, key, code, text) in cases {
        let Some(ended) = test_client(addr, key, &brief).await else { return };
        let said = ended.stdout + &ended.stderr;
        assert_eq!(ended.code, Some(code), "{said}");
        assert!(said.contains(text), "no {text:?} in {said}");
        assert!(key.is_empty() || !said.contains(key), "the key is in {said}");
    }
}

/// A project as a user has it: a `.env` at its top, and the scripts below.
fn project(dotenv: &str) -> TempDir {
    let project = tempfile::tempdir().expect("make a temporary directory");
    std::fs::write(project.path().join(".env"), dotenv).expect("write a .env");
    let tests = project.path().join("tests");
    std::fs::create_dir_all(tests.join("deep")).expect("make directories");
    for name in ["test_client.py", "test_polygon_proxy.py"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        std::fs::copy(source, tests.join(name)).expect("copy a script");
    }
    project
}

#[tokio::test]
async fn the_scripts_find_the_key_in_the_same_dotenv_from_any_directory() {
    let stack = Stack::start().await;
    let url = format!("ws://{}", stack.addr());
    let own = project(&format!("POLYGON_API_KEY={CLIENT_KEY}\n"));
    let nothing = tempfile::tempdir().expect("make a temporary directory");
    let foreign = project("DATABASE_URL=postgres://db\n");
    let wrong = project("POLYGON_API_KEY=wrong-key\n");
    let deep = own.path().join("tests/deep");
    for (script, args, code) in [
        ("test_client.py", &["--seconds", "0.3", "--symbols", "T.AAPL"], 1),
        ("test_polygon_proxy.py", &["--seconds", "0.3", "--symbol", "AAPL"], 4),
    ] {
        let args = [&["--url", &url], &args[..]].concat();
        let of = |project: &TempDir| project.path().join("tests").join(script);
        for (dir, script, code) in [
            (own.path(), of(&own), code),
            (&own.path().join("tests"), of(&own), code),
            (&deep, of(&own), code),
            (nothing.path(), of(&own), code),
            (foreign.path(), of(&own), code),
            // The working directory comes first, as for the programs.
            (own.path(), of(&wrong), code),
            (wrong.path(), of(&own), 3),
            (nothing.path(), of(&foreign), 2),
        ] {
            let Some(done) = run_script_in(dir, &script, &args, SOON).await else { return };
            let said = format!("{dir:?} {script:?}: {}{}", done.stdout, done.stderr);
            assert_eq!(done.code, Some(code), "{said}");
            assert_eq!(said.contains("POLYGON_API_KEY is not set"), code == 2, "{said}");
            assert!(!said.contains(CLIENT_KEY), "{said}");
        }
    }
}

/// Each text is read by the firehose, which logs in with its key, and by the script.
#[tokio::test]
async fn the_scripts_read_a_dotenv_as_the_programs_do() {
    let key = VENDOR_KEY;
    let texts = [
        format!("POLYGON_API_KEY={key}"),
        format!("export POLYGON_API_KEY = '{key}' # the account's\n"),
        format!("POLYGON_API_KEY=\"{key}\"\r\nLOG_LEVEL=info\r\n"),
        format!("\u{feff}POLYGON_API_KEY={key}\nPOLYGON_API_KEY=another\n"),
        format!("#POLYGON_API_KEY=another\n\tPOLYGON_API_KEY={key} # x\n"),
        format!("POLYGON_API_KEY=\nMASSIVE_API_KEY=\" {key} \"\n"),
        "POLYGON_API_KEY_FILE=key.txt\n".to_owned(),
        "POLYGON_API_KEY= # none\nMASSIVE_API_KEY_FILE='key.txt'\n".to_owned(),
    ];
    for text in texts {
        let sim = Sim::start().await;
        let launch = firehose(&sim.url("stocks")).without("POLYGON_API_KEY");
        let launch = launch.without("FIREHOSE_API_KEYS").file(".env", &text).file("key.txt", key);
        let firehose = launch.start().await;
        is_up(&firehose).await;
        let project = project(&text);
        std::fs::write(project.path().join("key.txt"), key).expect("write a key");
        let (script, url) = (project.path().join("tests/test_client.py"), firehose.addr());
        let args = ["--url", &format!("ws://{url}"), "--seconds", "0.3"];
        let Some(done) = run_script_in(project.path(), &script, &args, SOON).await else { return };
        assert_eq!(done.code, Some(1), "{text:?}: {done:?}");
    }
}

#[tokio::test]
async fn the_quick_start_runs_the_scripts_with_key_and_port_of_the_dotenv() {
    let stack = busy_stack().await;
    let port = stack.addr().port();
    let project = project(&format!("FILTERED_PROXY_PORT={port}\nMASSIVE_API_KEY={CLIENT_KEY}\n"));
    let document = document("QUICKSTART.md");
    let commands = block(&document, "sh", "curl http");
    let lines: Vec<_> =
        commands.lines().filter_map(|line| line.strip_prefix("python3 tests/")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in lines {
        let mut words = line.split_whitespace().map(|word| word.trim_matches('"'));
        let script = project.path().join("tests").join(words.next().expect("a script"));
        let args: Vec<_> = words.chain(["--seconds", "2"]).collect();
        let Some(done) = run_script_in(project.path(), &script, &args, 2 * SOON).await else {
            return;
        };
        assert_eq!(done.code, Some(0), "{line}: {done:?}");
    }
}

#[tokio::test]
async fn the_check_passes_on_the_proxy() {
    let stack = busy_stack().await;
    let Some(found) = test_polygon_proxy(stack.addr(), CLIENT_KEY).await else { return };
    assert_eq!(found.code, Some(0), "{found:?}");
    assert!(found.stdout.ends_with("PASS\n"), "{}", found.stdout);
    // Every client got events.
    let exact = found.stdout.matches("exactly its events").count();
    assert_eq!(exact, 4, "{}", found.stdout);
}

#[tokio::test]
async fn the_check_decides_nothing_on_a_silent_market() {
    let stack = Stack::start().await;
    let Some(found) = test_polygon_proxy(stack.addr(), CLIENT_KEY).await else { return };
    assert_eq!(found.code, Some(4), "{found:?}");
    assert!(found.stdout.contains("UNDECIDED: nothing came for T.AAPL"), "{}", found.stdout);
}

#[tokio::test]
async fn the_check_fails_on_a_server_that_is_wrong() {
    let cases = [
        (Wrong::Nothing, 0, "PASS"),
        (Wrong::Foreign, 1, "not asked for"),
        (Wrong::Hole, 1, "not what * got"),
        (Wrong::Changed, 1, "not what * got"),
        (Wrong::Twice, 1, "not what * got"),
        (Wrong::Swapped, 1, "not what * got"),
        (Wrong::Mute, 1, "events missed"),
        (Wrong::Unacknowledged, 1, "no status"),
    ];
    let checks = cases.map(async |(wrong, code, text)| {
        let server = WrongServer::start(wrong).await;
        let Some(found) = test_polygon_proxy(server.addr, CLIENT_KEY).await else { return };
        assert_eq!(found.code, Some(code), "{wrong:?}: {found:?}");
        assert!(found.stdout.contains(text), "{wrong:?}: no {text:?} in {}", found.stdout);
    });
    join_all(checks).await;
}

/// A fault of the server towards every client except the one on `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// No fault. It shows that a failing check is due to the fault.
    Nothing,
    /// Sometimes it sends an event of a channel that is not subscribed.
    Foreign,
    /// Sometimes it leaves out an event.
    Hole,
    /// Sometimes it writes a number in another way.
    Changed,
    /// Sometimes it sends an event twice.
    Twice,
    /// Sometimes it sends two events in the wrong order.
    Swapped,
    /// It sends nothing at all.
    Mute,
    /// It acknowledges nothing.
    Unacknowledged,
}

/// A server that speaks enough of the protocol for the check, with one fault.
struct WrongServer {
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl WrongServer {
    async fn start(wrong: Wrong) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = TcpListener::bind(any).await.expect("bind a free port");
        let addr = listener.local_addr().expect("the address of a bound socket");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // A session that lags further than this panics, and its client loses the connection.
            let (market, _) = broadcast::channel(4_096);
            let mut sessions = JoinSet::new();
            let mut ticks = interval(Duration::from_millis(2));
            let mut n = 0;
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (tcp, _) = accepted.expect("accept");
                        sessions.spawn(serve(tcp, market.subscribe(), wrong));
                    }
                    _ = ticks.tick() => {
                        // No subscribers is not an error.
                        let _ = market.send(Arc::new(Event::numbered(n)));
                        n += 1;
                    }
                }
            }
        });
        Self { addr, _tasks: tasks }
    }
}

/// An event and the channels that match it.
struct Event {
    n: usize,
    channels: [String; 3],
    text: String,
}

impl Event {
    fn numbered(n: usize) -> Self {
        let symbol = ["AAPL", "MSFT", "AAPL"][n % 3];
        let (kind, text) =
            if n.is_multiple_of(2) { ("T", trade(symbol, n)) } else { ("Q", quote(symbol, n)) };
        let channels = ["*".to_owned(), format!("{kind}.*"), format!("{kind}.{symbol}")];
        Self { n, channels, text }
    }
}

async fn serve(tcp: TcpStream, mut market: broadcast::Receiver<Arc<Event>>, wrong: Wrong) {
    let mut ws = accept_async(tcp).await.expect("upgrade");
    ws.send(Message::text(GREETING)).await.expect("greet");
    let mut held = HashSet::new();
    let mut late: Option<String> = None;
    loop {
        let frame = tokio::select! {
            message = ws.next() => match message {
                Some(Ok(Message::Text(text))) => answer(&text, &mut held, wrong),
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return,
            },
            event = market.recv() => {
                let event = event.expect("a session keeps up");
                let events = deliver(&event, &held, &mut late, wrong);
                (!events.is_empty()).then(|| format!("[{}]", events.join(",")))
            }
        };
        if let Some(frame) = frame
            && ws.send(Message::text(frame)).await.is_err()
        {
            return;
        }
    }
}

/// Carries out a command. Returns the frame that answers it.
fn answer(command: &str, held: &mut HashSet<String>, wrong: Wrong) -> Option<String> {
    let command: Value = serde_json::from_str(command).expect("a command is JSON");
    let params = command["params"].as_str().expect("params are a string");
    let items = params.split(',').map(str::to_owned);
    match command["action"].as_str() {
        Some("auth") => return Some(AUTHENTICATED.to_owned()),
        Some("subscribe") => held.extend(items),
        Some("unsubscribe") => items.for_each(|item| {
            held.remove(&item);
        }),
        action => panic!("action {action:?}"),
    }
    let verb = format!("{}d", command["action"].as_str().expect("it is one of the two"));
    (wrong != Wrong::Unacknowledged || params == "*").then(|| acks(&verb, params))
}

/// The events that a session gets for this one, right or wrong.
fn deliver(
    event: &Event,
    held: &HashSet<String>,
    late: &mut Option<String>,
    wrong: Wrong,
) -> Vec<String> {
    let text = event.text.clone();
    let wanted = event.channels.iter().any(|channel| held.contains(channel));
    let due = event.n % 50 < 2;
    if held.is_empty() || held.contains("*") {
        return if wanted { vec![text] } else { Vec::new() };
    }
    match wrong {
        Wrong::Foreign if due && !wanted => vec![text],
        _ if !wanted => Vec::new(),
        Wrong::Hole if due => Vec::new(),
        Wrong::Changed if due => vec![text.replace(".4", ".40")],
        Wrong::Twice if due => vec![text.clone(), text],
        Wrong::Swapped if due && late.is_none() => {
            *late = Some(text);
            Vec::new()
        }
        Wrong::Swapped => [text].into_iter().chain(late.take()).collect(),
        Wrong::Mute => Vec::new(),
        Wrong::Nothing
        | Wrong::Foreign
        | Wrong::Hole
        | Wrong::Changed
        | Wrong::Twice
        | Wrong::Unacknowledged => vec![text],
    }
}
