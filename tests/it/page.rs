//! The page of a program in a real browser. Pictures are kept as test output.

use std::net::SocketAddr;

use polygon_sim::{Fault, SimConfig};
use serde_json::Value;
use tests::{
    browser::Browser,
    program::Program,
    stack::{self, CLIENT_KEY, ReservedPort, Stack, StackConfig},
    wait::{SOON, eventually},
    ws_client::TestClient,
};
use tokio::net::TcpStream;

use crate::{events::trade, status::with_an_operator};

/// The widths of a desk's screen and of a phone.
const WIDTHS: [u32; 2] = [1_280, 390];

/// Both tiers with an admin port, on markets that trade by themselves. Returns these ports, of the
/// firehose first.
async fn trading(market: &str) -> (Stack, [SocketAddr; 2]) {
    let admin = vec![("ADMIN_PORT", "0".to_owned())];
    // Time enough, and room, to look at a client that stalls.
    let patient = [("CLIENT_MAX_LAG", "30s"), ("CLIENT_QUEUE_BYTES", "500000000")];
    let patient = patient.map(|(name, value)| (name, value.to_owned()));
    let sim = SimConfig { market: market.to_owned(), rate: 500.0, ..SimConfig::default() };
    let config = StackConfig {
        sim,
        firehose_env: admin.clone(),
        filtered_env: admin.into_iter().chain(patient).collect(),
        ..StackConfig::default()
    };
    let mut stack = Stack::with(config).await;
    let firehose = stack.firehose.bound("admin listening").await;
    let filtered = stack.filtered[0].bound("admin listening").await;
    (stack, [firehose, filtered])
}

async fn named(addr: SocketAddr, agent: &str, channels: &str) -> TestClient {
    let stream = TcpStream::connect(addr).await.expect("connect");
    let mut client = TestClient::over(stream, &[("user-agent", agent)]).await;
    client.log_in(CLIENT_KEY).await;
    client.command("subscribe", channels).await;
    client
}

/// Opens the page and waits until it shows the verdict that all is well.
async fn open(browser: &mut Browser, addr: SocketAddr) {
    browser.open(&format!("http://{addr}/")).await;
    browser.shows("all is well", "document.title.startsWith('OK')").await;
}

/// Keeps pictures at all widths. Nothing may stand beside the window.
async fn pictures(browser: &mut Browser, name: &str) {
    for width in WIDTHS {
        browser.resize(width).await;
        browser.picture(&format!("{name}-{width}")).await;
        let wide = browser.evaluate("document.documentElement.scrollWidth").await;
        assert_eq!(wide, width, "{name}");
    }
    browser.resize(WIDTHS[0]).await;
}

#[tokio::test]
async fn the_page_shows_both_tiers_without_an_error_and_asks_nobody_else() {
    let (stack, admin) = trading("stocks,crypto").await;
    let _client = named(stack.addr(), "node", "*").await;
    let mut browser = Browser::start().await;
    for (addr, name) in admin.into_iter().zip(["firehose", "filtered"]) {
        open(&mut browser, addr).await;
        browser.shows("types", "document.querySelectorAll('.types b').length > 8").await;
        browser.shows("a rate", "parseFloat(document.querySelector('.rate').innerText) > 0").await;
        browser.shows("a curve", "document.querySelector('.spark .stroke') !== null").await;
        let way = browser.text("#way h3").await;
        assert_eq!(way.lines().count(), 4, "{way}");
        let states = browser.evaluate("document.querySelectorAll('#way .node.bad').length").await;
        assert_eq!(states, 0);
        let markets = browser.text("#markets td:first-child b").await;
        assert_eq!(markets, "stocks\ncrypto");
        assert_eq!(browser.text("#verdict").await, "Do nothing. All is well: the data flows.");
        for scheme in ["dark", "light"] {
            browser.prefer(scheme).await;
            pictures(&mut browser, &format!("{name}-{scheme}")).await;
        }
        // It goes on by itself.
        let updated = browser.text("#live").await;
        browser
            .shows(
                "an update",
                &format!("document.querySelector('#live').innerText !== {}", Value::from(updated)),
            )
            .await;
    }
    let requests = browser.requests().await;
    let own: Vec<String> = admin.iter().map(|addr| format!("http://{addr}/")).collect();
    let strange: Vec<_> =
        requests.iter().filter(|url| !own.iter().any(|own| url.starts_with(own))).collect();
    assert!(requests.len() > 4 && strange.is_empty(), "{strange:?}");
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn a_stalled_client_stands_on_top_and_what_it_calls_itself_is_text() {
    let (stack, [_, admin]) = trading("stocks").await;
    let script = "<img src=x onerror=\"document.title='owned'\">";
    let _quick = named(stack.addr(), script, "Q.NONE").await;
    let _other = named(stack.addr(), "go/1.22", "LULD.NONE").await;
    let mut browser = Browser::start().await;
    open(&mut browser, admin).await;
    browser
        .shows("the sessions", "document.querySelectorAll('#sessions tbody tr').length === 2")
        .await;
    let mut stalled = TestClient::connect_narrow(stack.addr(), 4_096).await;
    stalled.log_in(CLIENT_KEY).await;
    stalled.subscribe("T.*").await;
    let port = stalled.local_port();
    let wide: Vec<_> =
        (0..20).map(|n| trade(&format!("AAPL\",\"x\":\"{}", "x".repeat(20_000)), n)).collect();
    let first = format!(
        "document.querySelector('#sessions tbody tr').innerText.includes('127.0.0.1:{port}')"
    );
    eventually(SOON, "the stalled client is first", async || {
        stack.publish(&wide);
        browser.evaluate(&first).await == true
    })
    .await;
    let red =
        "document.querySelector('#sessions tbody tr td:last-child').className.includes('bad')";
    browser.shows("its lag is red", red).await;
    // From half of the time on after which it is closed.
    let named =
        format!("document.querySelector('#verdict').innerText.includes('127.0.0.1:{port}')");
    browser.shows("the verdict names it", &named).await;
    pictures(&mut browser, "stalled").await;
    let shown = browser.text("#sessions").await;
    assert!(shown.contains(script), "{shown}");
    assert_eq!(browser.evaluate("document.querySelectorAll('img').length").await, 0);
    assert_ne!(browser.evaluate("document.title").await, "owned");
    drop(stalled);
    browser
        .shows("it is gone", "document.querySelectorAll('#sessions tbody tr').length === 2")
        .await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn an_outage_is_red_until_it_ends() {
    let (stack, admin) = trading("stocks").await;
    let mut browser = Browser::start().await;
    let vendor = "document.querySelector('#way .node')";
    for (addr, name) in admin.into_iter().zip(["firehose", "filtered"]) {
        open(&mut browser, addr).await;
        browser.shows("no red", &format!("{vendor}.className.includes('good')")).await;
        stack.sim.handle.inject(Fault::RefuseTcp { on: true });
        stack.sim.handle.inject(Fault::Abort);
        browser.shows("the vendor is red", &format!("{vendor}.className.includes('bad')")).await;
        // As the reader sees it: more red than anything else.
        let color = format!("getComputedStyle({vendor}.querySelector('.state')).color");
        let color = browser.evaluate(&color).await.as_str().expect("a color").to_owned();
        let parts: Vec<u32> = color
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|part| part.parse().ok())
            .collect();
        assert!(parts[0] > 150 && parts[0] > 2 * parts[1] && parts[0] > 2 * parts[2], "{color}");
        browser.shows("what to do", "document.querySelector('#problems li') !== null").await;
        let verdict = browser.text("#verdict").await;
        assert!(verdict.starts_with("Do nothing yet."), "{verdict}");
        browser
            .shows(
                "it goes on",
                "document.querySelector('#incidents').innerText.includes('goes on')",
            )
            .await;
        pictures(&mut browser, &format!("outage-{name}")).await;
        stack.sim.handle.inject(Fault::RefuseTcp { on: false });
        browser.shows("the end", "document.title.startsWith('OK')").await;
        browser.shows("no red", &format!("{vendor}.className.includes('good')")).await;
        browser
            .shows(
                "an outage that has ended",
                "/outage/.test(document.querySelector('#incidents tbody').innerText)
                    && !/goes on/.test(document.querySelector('#incidents tbody').innerText)",
            )
            .await;
    }
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn the_page_says_when_the_program_does_not_answer_and_goes_on_when_it_does() {
    let (port, nowhere) = (ReservedPort::new(), ReservedPort::new());
    let start = async || -> Program {
        let launch = stack::firehose(&format!("ws://{}", nowhere.addr()));
        launch.env("FIREHOSE_PORT", port.addr().port()).start().await
    };
    let program = start().await;
    let mut browser = Browser::start().await;
    browser.open(&format!("http://{}/status", port.addr())).await;
    browser.shows("a verdict", "document.querySelector('#way .node.bad') !== null").await;
    program.stop().await;
    browser.shows("no answer", "document.body.className === 'stale'").await;
    let sentence = browser.text("#verdict").await;
    assert!(sentence.starts_with("This program does not answer."), "{sentence}");
    pictures(&mut browser, "no-answer").await;
    let _program = start().await;
    browser.shows("answers again", "document.body.className === ''").await;
}

#[tokio::test]
async fn on_the_data_port_an_operators_key_shows_the_sessions() {
    let nowhere = ReservedPort::new();
    let program = with_an_operator(nowhere.addr()).start().await;
    let mut client = TestClient::connect_to(program.addr(), "/session/alpha").await;
    client.log_in(CLIENT_KEY).await;
    let mut browser = Browser::start().await;
    browser.open(&format!("http://{}/", program.addr())).await;
    browser
        .shows("the number", "document.querySelector('#sessions h2').innerText === 'Sessions: 1'")
        .await;
    assert_eq!(browser.text("#sessions td").await, "");
    assert_eq!(browser.evaluate("document.querySelector('#limits').hidden").await, true);
    browser.enter("#key", CLIENT_KEY).await;
    browser
        .shows(
            "a refusal",
            "document.querySelector('#refused').innerText.includes('not an operator')",
        )
        .await;
    browser.enter("#key", "abc").await;
    browser
        .shows("the session", "document.querySelectorAll('#sessions tbody tr').length === 1")
        .await;
    let shown = browser.text("#sessions").await;
    assert!(shown.contains("key-1") && shown.contains("session alpha"), "{shown}");
    assert!(browser.text("#limits").await.contains("MAX_CONNECTIONS"));
    assert_eq!(browser.evaluate("document.querySelector('#key').value").await, "");
}
