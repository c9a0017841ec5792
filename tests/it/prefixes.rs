//! Prefixes: `TYPE.PREFIX*` gets each event whose symbol begins with the prefix, once, whatever
//! else matches it. The firehose asks the vendor for the whole type.

use polygon_sim::SimConfig;
use serde_json::Value;
use tests::{
    oracle::{end_of, matches},
    program::Program,
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Sim, Stack, StackConfig, is_up},
    wait::{SOON, eventually},
    ws_client::{TestClient, acks},
};

use crate::{
    events::{bar, minute_bar, quote, trade},
    tiers::ports,
};

async fn with_market(market: &str) -> Stack {
    let sim = SimConfig { market: market.to_owned(), ..SimConfig::default() };
    Stack::with(StackConfig { sim, ..StackConfig::default() }).await
}

fn error(message: &str) -> String {
    let message = Value::from(message);
    format!(r#"{{"ev":"status","status":"error","message":{message}}}"#)
}

/// Publishes the events together and one by one. Each of these channels, held alone, must get the
/// events that match it in the independent model.
async fn check(market: &str, channels: &[&str], events: &[String]) {
    let stack = with_market(market).await;
    let (end_channel, end) = end_of(market);
    let mut clients = Vec::new();
    for channel in channels {
        let params = format!("{channel},{end_channel}");
        clients.push(stack.subscriber_at(&format!("/{market}"), &params).await);
    }
    stack.publish(events);
    for event in events {
        stack.publish(&[event]);
    }
    stack.publish(&[&end]);
    let mut delivered = 0;
    for (client, channel) in clients.iter_mut().zip(channels) {
        println!("{channel}");
        let is_wanted = |event: &&String| {
            let event = serde_json::from_str(event).expect("an event parses");
            matches(market, channel, &event)
        };
        let wanted: Vec<_> = events.iter().filter(is_wanted).collect();
        delivered += wanted.len();
        let twice = wanted.iter().chain(&wanted).copied().chain([&end]);
        client.expect_objects(&twice.collect::<Vec<_>>()).await;
    }
    assert!(delivered > channels.len(), "the channels match little");
}

#[tokio::test]
async fn stocks_by_the_letters_that_they_begin_with() {
    let symbols = ["A", "AA", "AAP", "AAPL", "AAPLW", "AB", "BRK.A", "BRK.B", "BRKX", "aapl"];
    let events = symbols.iter().enumerate();
    let events: Vec<_> = events
        .flat_map(|(n, symbol)| [trade(symbol, n), quote(symbol, n), bar(symbol, n)])
        .chain([r#"{"ev":"LULD","h":1,"T":"AAPL"}"#.to_owned()])
        .chain([r#"{"ev":"NEW9","sym":"AAPL"}"#.to_owned()])
        .collect();
    let channels =
        ["T.A*", "T.AA*", "T.AAPL*", "T.AAPLWW*", "T.BRK.*", "Q.BRK*", "LULD.AAP*", "T.Z*"];
    check("stocks", &channels, &events).await;
}

#[tokio::test]
async fn options_by_their_underlying() {
    let contracts = [
        "O:SPY251219C00650000",
        "O:SPY251219P00650000",
        "O:SPY261218C00600000",
        "O:SPYG251219C00080000",
        "O:SPXW251219C06500000",
        "O:SPX251219C06500000",
    ];
    let events = contracts.iter().enumerate();
    let events: Vec<_> = events
        .flat_map(|(n, contract)| {
            [trade(contract, n), bar(contract, n), minute_bar(contract, n), quote(contract, n)]
        })
        .collect();
    let channels = [
        "T.O:SPY*",
        "T.O:SPY2*",
        "T.O:SPY251219*",
        "A.O:SPXW*",
        "AM.O:SPX*",
        "T.O:SPY251219C00650000*",
        "T.SPY*",
        "T.O:*",
    ];
    check("options", &channels, &events).await;
}

#[tokio::test]
async fn pairs_in_every_spelling() {
    let crypto = |n: usize, pair: &str| {
        [
            format!(r#"{{"ev":"XT","pair":"{pair}","p":{n}}}"#),
            format!(r#"{{"ev":"FMV","sym":"X:{}","n":{n}}}"#, pair.replace('-', "")),
        ]
    };
    let pairs = ["BTC-USD", "BTC-EUR", "BTCB-USD", "XRP-USD", "X-USD", "MATIC-USD"];
    let events: Vec<_> = pairs.iter().enumerate().flat_map(|(n, pair)| crypto(n, pair)).collect();
    let channels = [
        "XT.BTC*",
        "XT.BTC-*",
        "XT.BTC/*",
        "XT.X:BTC-*",
        "XT.X:BTC*",
        "XT.BTCU*",
        "XT.X:BTC/U*",
        "XT.X*",
        "XT.X:X*",
        "XT.X:*",
        "XT.X-*",
        "FMV.BTC-*",
        "FMV.X:BTCUSD*",
        "XT.BT-*",
        "XT.ETH*",
    ];
    check("crypto", &channels, &events).await;

    let forex = |n: usize, pair: &str| {
        [
            format!(r#"{{"ev":"C","p":"{pair}","a":{n}}}"#),
            format!(r#"{{"ev":"CA","pair":"{}","v":{n}}}"#, pair.replace('/', "-")),
        ]
    };
    let pairs = ["EUR/USD", "EUR/GBP", "USD/EUR", "CAD/JPY", "CHF/JPY", "GBP/CAD"];
    let events: Vec<_> = pairs.iter().enumerate().flat_map(|(n, pair)| forex(n, pair)).collect();
    let channels = [
        "C.EUR/*",
        "C.EUR-*",
        "C.C:EUR/*",
        "C.EUR*",
        "C.C:EURU*",
        "C.C*",
        "C.C:C*",
        "C.C:*",
        "CA.EUR/U*",
        "CA.USD*",
        "CA.E*",
        "C.USD/EUR*",
    ];
    check("forex", &channels, &events).await;
}

#[tokio::test]
async fn a_prefix_is_an_entry_among_others_and_an_event_comes_once() {
    let stack = Stack::start().await;
    let mut client = stack.subscriber("*,T.*,T.A*,T.AA*,T.AAPL,AM.END").await;
    let events = [
        trade("AAPL", 1),
        trade("AMZN", 2),
        trade("MSFT", 3),
        quote("AAPL", 4),
        minute_bar("END", 5),
    ];
    let mut check = async |action: &str, item: &str, expected: &[usize]| {
        match action {
            "subscribe" => client.subscribe(item).await,
            _ => client.unsubscribe(item).await,
        }
        stack.publish(&events);
        let expected = expected.iter().map(|&n| &events[n]).chain([&events[4]]);
        client.expect_objects(&expected.collect::<Vec<_>>()).await;
    };
    check("unsubscribe", "*", &[0, 1, 2]).await;
    check("unsubscribe", "T.*", &[0, 1]).await;
    check("unsubscribe", "T.A*", &[0]).await;
    check("unsubscribe", "T.AAPL", &[0]).await;
    check("subscribe", "T.A*,T.A*", &[0, 1]).await;
    check("unsubscribe", "T.AA*,T.AB*", &[0, 1]).await;
    check("subscribe", "*", &[0, 1, 2, 3]).await;
    check("unsubscribe", "*,T.A*", &[]).await;
    check("subscribe", "Q.AAP*", &[3]).await;
}

#[tokio::test]
async fn both_tiers_acknowledge_a_prefix_as_it_was_written_and_count_it() {
    let limit = |tier: &str| vec![("MAX_SUBSCRIPTIONS", tier.to_owned())];
    let stack = Stack::with(StackConfig {
        // The filtered proxy holds `*` at the firehose.
        firehose_env: limit("3"),
        filtered_env: limit("3"),
        ..StackConfig::default()
    })
    .await;
    for ((addr, key), program) in ports(&stack).into_iter().zip(["filtered", "firehose"]) {
        let mut client = TestClient::login(addr, key).await;
        client.command("subscribe", "T.AA*, Q.AA* ,T.AA*").await;
        client.expect(&acks("subscribed", "T.AA*,Q.AA*,T.AA*")).await;
        client.command("subscribe", "T.aa*,T.B*,Q.AA*").await;
        let frame = client.next_frame().await;
        let full = "subscription limit of 3 reached: \"T.B*\" not subscribed";
        assert_eq!(frame[0], error(full), "{program}");
        let accepted = acks("subscribed", "T.aa*,Q.AA*");
        assert_eq!(format!("[{},{}]", frame[1], frame[2]), accepted);
        assert!(frame[3].contains("T.aa*: symbols are case-sensitive"), "{frame:?}");
        client.unsubscribe("Q.AA*,Q.A*").await;
        client.subscribe("T.B*").await;
        let (proxy, others) = match program {
            "filtered" => (&stack.filtered[0], 0.0),
            _ => (&stack.firehose, 1.0),
        };
        let held = proxy.metric(&format!("{program}_subscriptions")).await;
        assert_eq!(held, Some(3.0 + others), "{program}");
    }
}

/// Waits until the market's subscriptions are these.
async fn upstream_holds(sim: &Sim, expected: &[&str]) {
    let expected = expected.iter().map(|&channel| channel.to_owned()).collect();
    let what = format!("upstream holds {expected:?}");
    eventually(SOON, &what, async || sim.handle.subscriptions() == expected).await;
}

async fn lingering_briefly(sim: &Sim) -> Program {
    let firehose = stack::firehose(&sim.url("stocks")).env("UPSTREAM_LINGER", "100ms");
    let firehose = firehose.start().await;
    is_up(&firehose).await;
    firehose
}

#[tokio::test]
async fn a_firehose_takes_the_whole_type_for_a_prefix_and_never_asks_for_the_prefix() {
    let sim = Sim::start().await;
    let firehose = lingering_briefly(&sim).await;
    let mut client = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
    client.subscribe("T.AAPL,Q.MSFT").await;
    upstream_holds(&sim, &["T.AAPL", "Q.MSFT"]).await;
    let mut other = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
    other.subscribe("T.AA*,T.B*,LULD.A*").await;
    for status in ["upstream_down", "upstream_up"] {
        assert_eq!(other.next_notice().await, [status, "firehose", "subscribing"]);
    }
    upstream_holds(&sim, &["LULD.*", "T.*", "Q.MSFT"]).await;
    other.unsubscribe("T.AA*,LULD.A*").await;
    upstream_holds(&sim, &["T.*", "Q.MSFT"]).await;
    sim.handle.publish(&[trade("BRK.B", 1)]);
    client.expect_event(&trade("BRK.B", 1)).await;
    other.close().await;
    upstream_holds(&sim, &["T.AAPL", "Q.MSFT"]).await;
    let asked = sim.handle.commands();
    let asked_for_a_prefix = asked
        .iter()
        .any(|command| ["T.AA*", "T.B*", "LULD.A*"].iter().any(|p| command.contains(p)));
    assert!(!asked_for_a_prefix, "{asked:?}");
}

#[tokio::test]
async fn a_prefix_of_a_type_that_is_not_carried_whole_is_refused_with_the_reason() {
    let stack = with_market("options").await;
    let why = "upstream serves Q by contract only, 1000 at a time: name contracts, such as Q.O:SPY261218C00600000";
    for (addr, key) in ports(&stack) {
        let mut client = TestClient::connect_to(addr, "/options").await;
        client.log_in(key).await;
        client.command("subscribe", "T.O:SPY*,Q.O:SPY*").await;
        let frame = client.next_frame().await;
        assert_eq!(frame[0], error(&format!("\"Q.O:SPY*\" is not carried: {why}")));
        assert_eq!(format!("[{}]", frame[1]), acks("subscribed", "T.O:SPY*"));
        assert_eq!(frame.len(), 2, "{frame:?}");
    }
    let listed = vec![("UPSTREAM_CHANNELS", "T,AM.SPY,AM.QQQ".to_owned())];
    let stack = Stack::with(StackConfig { firehose_env: listed, ..StackConfig::default() }).await;
    let mut client = stack.client().await;
    client.command("subscribe", "AM.S*").await;
    let only = "of AM the firehose takes from upstream only AM.QQQ, AM.SPY";
    client.expect_objects(&[error(&format!("\"AM.S*\" is not carried: {only}"))]).await;
}

#[tokio::test]
async fn a_prefix_refused_later_gets_one_error_and_stays() {
    let port = ReservedPort::new();
    let filtered = stack::filtered(port.addr()).start().await;
    // While the coverage is unknown, every channel is acknowledged.
    let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    client.subscribe("T.AA*,FMV.AA*").await;
    let refuse = vec!["FMV".to_owned()];
    let sim = Sim::with(SimConfig { refuse, ..SimConfig::default() }).await;
    let firehose = stack::firehose(&sim.url("stocks")).env("FIREHOSE_PORT", port.addr().port());
    let _firehose = firehose.start().await;
    let refused = error("\"FMV.AA*\" is not carried: upstream refused FMV.*: not authorized");
    assert_eq!(client.next_but_notices().await, refused);
    sim.handle.publish(&[trade("AAPL", 1)]);
    client.expect_event(&trade("AAPL", 1)).await;
}
