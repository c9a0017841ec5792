//! Channels that are not carried: both tiers answer clients at once, so that no client waits for
//! nothing.

use std::net::SocketAddr;

use polygon_sim::{Fault, SimConfig};
use tests::{
    program::Launch,
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Sim, Stack, StackConfig, is_up},
    wait::{SOON, eventually},
    ws_client::{TestClient, acks},
};

use crate::{
    events::{quote, trade},
    tiers::ports,
};

const FMV: &str = r#"{"ev":"FMV","fmv":231.416,"sym":"AAPL","t":1790604301418204112}"#;

/// A market whose plan lacks two kinds.
fn poor() -> SimConfig {
    SimConfig { refuse: vec!["FMV".to_owned(), "NOI".to_owned()], ..SimConfig::default() }
}

fn error(message: &str) -> String {
    let message = serde_json::Value::from(message);
    format!(r#"{{"ev":"status","status":"error","message":{message}}}"#)
}

fn refused(item: &str, by: &str) -> String {
    error(&format!("{item:?} is not carried: upstream refused {by}: not authorized"))
}

/// Waits until new clients get the error that this channel is not carried.
async fn is_known(addr: SocketAddr, key: &str, item: &str) {
    let what = format!("{item} is known not to be carried");
    eventually(SOON, &what, async || {
        let mut client = TestClient::login(addr, key).await;
        client.command("subscribe", item).await;
        client.next_text().await.contains("is not carried")
    })
    .await;
}

#[tokio::test]
async fn both_tiers_answer_a_refused_kind_with_an_error_instead_of_an_acknowledgement() {
    let stack = Stack::with(StackConfig { sim: poor(), ..StackConfig::default() }).await;
    for (addr, key) in ports(&stack) {
        is_known(addr, key, "FMV.*").await;
        is_known(addr, key, "NOI.*").await;
        let mut client = TestClient::login(addr, key).await;
        client.command("subscribe", "T.AAPL,FMV.AAPL, NOI.*,nonsense").await;
        let frame = client.next_frame().await;
        assert_eq!(frame[0], refused("FMV.AAPL", "FMV.*"));
        assert_eq!(frame[1], refused("NOI.*", "NOI.*"));
        assert!(frame[2].contains("invalid channel"), "{frame:?}");
        assert_eq!(format!("[{}]", frame[3]), acks("subscribed", "T.AAPL"));
        assert_eq!(frame.len(), 4, "{frame:?}");
        // A refused channel is not held. Unsubscribing it is acknowledged, as for any other channel
        // that is not held.
        client.unsubscribe("FMV.AAPL").await;
        let events = [trade("AAPL", 1), trade("AAPL", 2)];
        stack.publish(&events);
        client.expect_objects(&events).await;
    }
}

#[tokio::test]
async fn a_channel_that_the_firehose_does_not_take_gets_an_error() {
    let stack = Stack::with(StackConfig {
        firehose_env: vec![("UPSTREAM_CHANNELS", "T,AM.SPY,AM.QQQ".to_owned())],
        ..StackConfig::default()
    })
    .await;
    is_known(stack.addr(), CLIENT_KEY, "Q.AAPL").await;
    let mut client = stack.client().await;
    client.command("subscribe", "Q.AAPL,AM.AAPL,AM.SPY,AM.*,*").await;
    let frame = client.next_frame().await;
    let only = "of AM the firehose takes from upstream only AM.QQQ, AM.SPY";
    let expected = [
        error(r#""Q.AAPL" is not carried: the firehose takes no Q from upstream"#),
        error(&format!(r#""AM.AAPL" is not carried: {only}"#)),
        error(r#""AM.*" is carried in part: AM.QQQ, AM.SPY"#),
    ];
    assert_eq!(frame[..3], expected);
    assert_eq!(format!("[{}]", frame[3..].join(",")), acks("subscribed", "AM.SPY,AM.*,*"));
    // The firehose itself requests the channels of its own clients.
    let mut direct = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    direct.subscribe("Q.AAPL").await;
}

#[tokio::test]
async fn subscribers_of_a_channel_refused_later_get_one_error_and_another_plan_serves_them() {
    let port = ReservedPort::new();
    let filtered = stack::filtered(port.addr()).start().await;
    // While the coverage is unknown, every channel is acknowledged.
    let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    client.subscribe("T.AAPL,FMV.AAPL,FMV.*,LV.AAPL").await;
    let poor = Sim::with(poor()).await;
    let firehose = |sim: &Sim| -> Launch {
        stack::firehose(&sim.url("stocks")).env("FIREHOSE_PORT", port.addr().port())
    };
    let first = firehose(&poor).start().await;
    let mut errors = Vec::new();
    while errors.len() < 3 {
        let object = client.next_but_notices().await;
        assert!(object.contains(r#""status":"error""#), "{object}");
        errors.push(object);
    }
    errors.sort();
    let mut expected = [
        refused("FMV.AAPL", "FMV.*"),
        refused("FMV.*", "FMV.*"),
        error(r#""LV.AAPL" is not carried: the firehose takes no LV from upstream"#),
    ];
    expected.sort();
    assert_eq!(errors, expected);
    is_known(filtered.addr(), CLIENT_KEY, "FMV.MSFT").await;

    // Neither tier repeats the errors when the vendor or the firehose comes back.
    let asked =
        |sim: &Sim| sim.handle.commands().iter().filter(|command| command.contains("T.*")).count();
    poor.handle.inject(Fault::Abort);
    eventually(SOON, "everything is requested again", async || asked(&poor) == 2).await;
    first.stop().await;
    let second = firehose(&poor).start().await;
    is_up(&filtered).await;
    eventually(SOON, "everything is requested again", async || {
        poor.handle.subscriptions().contains("T.*") && asked(&poor) == 3
    })
    .await;
    poor.handle.publish(&[trade("AAPL", 1)]);
    client.expect_event(&trade("AAPL", 1)).await;
    second.stop().await;

    // The known coverage stays valid while the firehose is away.
    is_known(filtered.addr(), CLIENT_KEY, "FMV.AAPL").await;
    let rich = Sim::start().await;
    let _third = firehose(&rich).start().await;
    eventually(SOON, "new subscriptions are acknowledged", async || {
        let mut late = TestClient::login(filtered.addr(), CLIENT_KEY).await;
        late.command("subscribe", "FMV.AAPL").await;
        late.next_but_notices().await.contains("subscribed to: FMV.AAPL")
    })
    .await;
    eventually(SOON, "fair values are subscribed", async || {
        rich.handle.subscriptions().contains("FMV.*")
    })
    .await;
    // A client that held the channel all the time gets the event as well.
    rich.handle.publish(&[FMV.to_owned()]);
    client.expect_event(FMV).await;
}

#[tokio::test]
async fn a_client_of_the_firehose_learns_a_refusal_as_soon_as_it_is_known() {
    let sim = Sim::with(poor()).await;
    let firehose = stack::firehose(&sim.url("stocks")).env("UPSTREAM_LINGER", "1ms").start().await;
    is_up(&firehose).await;
    let mut client = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
    let [down, up] = ["upstream_down", "upstream_up"].map(|name| [name, "firehose", "subscribing"]);
    client.subscribe("FMV.AAPL,T.AAPL").await;
    assert_eq!(client.next_notice().await, down);
    client.expect_objects(&[refused("FMV.AAPL", "FMV.AAPL")]).await;
    assert_eq!(client.next_notice().await, up);
    let mut other = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
    other.command("subscribe", "FMV.AAPL").await;
    other.expect_objects(&[refused("FMV.AAPL", "FMV.AAPL")]).await;
    // Another symbol has not been requested yet.
    other.subscribe("FMV.MSFT").await;
    assert_eq!(other.next_notice().await, down);
    other.expect_objects(&[refused("FMV.MSFT", "FMV.MSFT")]).await;
    assert_eq!(other.next_notice().await, up);
    client.ping(b"then").await;
    assert!(client.take_objects().is_empty(), "the status is for the other client only");
    // Once no client wants the channel, the refusal is forgotten and the next subscriber makes the
    // firehose ask again.
    client.unsubscribe("FMV.AAPL").await;
    let asked = || sim.handle.commands().iter().filter(|c| c.contains("FMV.AAPL")).count();
    eventually(SOON, "the refused channel is given up", async || asked() == 2).await;
    eventually(SOON, "it is acknowledged and requested again", async || {
        let mut late = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
        late.command("subscribe", "FMV.AAPL").await;
        if late.next_object().await.contains("is not carried") {
            return false;
        }
        assert_eq!(late.next_notice().await, down);
        late.expect_objects(&[refused("FMV.AAPL", "FMV.AAPL")]).await;
        true
    })
    .await;
}

#[tokio::test]
async fn subscribers_of_everything_at_the_firehose_learn_what_that_covers() {
    let stack = Stack::with(StackConfig { sim: poor(), ..StackConfig::default() }).await;
    eventually(SOON, "every channel is answered", async || {
        let health = stack.firehose.health().await;
        health["channels"]["pending"].as_array().is_some_and(Vec::is_empty)
    })
    .await;
    let mut direct = TestClient::login(stack.firehose.addr(), FIREHOSE_KEY).await;
    direct.subscribe("*").await;
    direct
        .expect(
            r#"[{"ev":"status","status":"carried","message":"* stands for T.*, Q.*, A.*, AM.*, LULD.*; upstream refused NOI.*, FMV.*","tier":"firehose","carried":["T.*","Q.*","A.*","AM.*","LULD.*"],"pending":[],"refused":[{"reason":"not authorized","channels":["NOI.*","FMV.*"]}]}]"#,
        )
        .await;
    // The status goes only to clients of the firehose.
    let mut client = stack.subscriber("*").await;
    stack.publish(&[quote("AAPL", 1)]);
    client.expect_objects(&[quote("AAPL", 1)]).await;
    direct.expect_objects(&[quote("AAPL", 1)]).await;
}

/// The hosts do not exist. What `*` stands for is known all the same.
#[tokio::test]
async fn the_types_that_star_stands_for_follow_the_host() {
    let cases = [
        ("stocks", "socket", vec!["T", "Q", "A", "AM", "LULD", "NOI"]),
        ("stocks", "delayed", vec!["T", "Q", "A", "AM", "LULD", "NOI"]),
        ("stocks", "business", vec!["T", "Q", "A", "AM", "LULD", "NOI", "FMV"]),
        ("stocks", "delayed-business", vec!["T", "Q", "A", "AM", "LULD", "NOI", "FMV"]),
        ("stocks", "launchpad", vec!["AM", "LV"]),
        ("stocks", "relay", vec!["T", "Q", "A", "AM", "LULD", "NOI", "FMV"]),
        ("options", "socket", vec!["T", "A", "AM"]),
        ("options", "business", vec!["T", "A", "AM"]),
        ("options", "launchpad", vec![]),
        ("forex", "socket", vec!["C", "CA", "CAS"]),
        ("forex", "business", vec!["C", "CA", "CAS", "FMV"]),
        ("forex", "launchpad", vec!["AM", "LV"]),
        ("crypto", "socket", vec!["XT", "XQ", "XA", "XAS"]),
        ("crypto", "business", vec!["XT", "XQ", "XA", "XAS", "FMV"]),
        ("crypto", "relay", vec!["XT", "XQ", "XA", "XAS", "FMV"]),
        ("indices", "socket", vec!["V", "A", "AM"]),
        ("futures", "delayed", vec!["T", "Q", "A", "AM"]),
    ];
    for (market, host, kinds) in cases {
        let url = format!("ws://{host}.invalid/{market}");
        let firehose = stack::firehose(&url).env("MARKET", market).start().await;
        let mut client = TestClient::connect_to(firehose.addr(), "/").await;
        client.log_in(FIREHOSE_KEY).await;
        client.subscribe("*").await;
        let coverage: serde_json::Value =
            serde_json::from_str(&client.next_object().await).expect("a status");
        let mut expected: Vec<_> = kinds.iter().map(|kind| format!("{kind}.*")).collect();
        let mut pending: Vec<_> = coverage["pending"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|channel| channel.as_str().expect("a channel").to_owned())
            .collect();
        expected.sort_unstable();
        pending.sort_unstable();
        assert_eq!(pending, expected, "{market} at {host}");
    }
}

/// A type that `*` leaves out is requested and carried once the operator lists it.
#[tokio::test]
async fn a_documented_type_outside_the_default_works_when_it_is_listed() {
    let sim = SimConfig { market: "crypto".to_owned(), ..SimConfig::default() };
    for (listed, carried) in [(None, false), (Some("XT,XL2"), true)] {
        let listed = listed.map(|list: &str| ("UPSTREAM_CHANNELS", list.to_owned()));
        let stack = Stack::with(StackConfig {
            sim: sim.clone(),
            firehose_env: listed.into_iter().collect(),
            ..StackConfig::default()
        })
        .await;
        assert_eq!(stack.sim.handle.subscriptions().contains("XL2.*"), carried);
        let mut client = TestClient::connect_to(stack.addr(), "/crypto").await;
        client.log_in(CLIENT_KEY).await;
        if carried {
            let book = r#"{"ev":"XL2","pair":"BTC-USD","b":[],"a":[],"t":1,"x":1,"r":1}"#;
            client.subscribe("XL2.BTC-USD").await;
            stack.publish(&[book]);
            client.expect_objects(&[book]).await;
        } else {
            client.command("subscribe", "XL2.BTC-USD").await;
            let why = r#""XL2.BTC-USD" is not carried: the firehose takes no XL2 from upstream"#;
            client.expect_objects(&[error(why)]).await;
        }
    }
}
