//! Event types that this version does not know: the operator lists them, and they work like any
//! other, without a new release.

use tests::{
    program::Program,
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Sim, is_complete, is_up},
    wait::{SOON, eventually},
    ws_client::{TestClient, acks},
};

use polygon_sim::SimConfig;

use crate::events::trade;

/// A vendor that has added types, and both tiers on it.
struct Chain {
    sim: Sim,
    firehose: Program,
    filtered: Program,
    market: &'static str,
}

impl Chain {
    /// Starts it with these `UPSTREAM_CHANNELS`, of which the vendor answers `added` so. The
    /// simulator does not know these types either.
    async fn start(market: &'static str, listed: &str, added: &[(&str, &str)]) -> Self {
        let sim = SimConfig { market: market.to_owned(), ..SimConfig::default() };
        let sim = Sim::with(sim).await;
        let firehose = stack::firehose(&sim.url(market)).env("MARKET", market);
        let firehose = firehose.env("UPSTREAM_CHANNELS", listed).start().await;
        let filtered = stack::filtered(firehose.addr()).env("MARKET", market).start().await;
        for (channel, answer) in added {
            requested(&sim, channel).await;
            sim.handle.publish_raw(answer);
        }
        is_complete(&filtered).await;
        Self { sim, firehose, filtered, market }
    }

    /// A client of each tier that has subscribed to these channels.
    async fn subscribers(&self, params: &str) -> [TestClient; 2] {
        let mut clients = self.clients().await;
        for client in &mut clients {
            client.subscribe(params).await;
        }
        clients
    }

    async fn clients(&self) -> [TestClient; 2] {
        let login = async |program: &Program, key| {
            let path = format!("/{}", self.market);
            let mut client = TestClient::connect_to(program.addr(), &path).await;
            client.log_in(key).await;
            client
        };
        [login(&self.filtered, CLIENT_KEY).await, login(&self.firehose, FIREHOSE_KEY).await]
    }
}

/// Waits until this channel is requested from the vendor.
async fn requested(sim: &Sim, channel: &str) {
    let what = format!("{channel} is requested");
    let params = format!(r#""params":"{channel}""#);
    eventually(SOON, &what, async || {
        sim.handle.commands().iter().any(|command| command.contains(&params))
    })
    .await;
}

fn error(message: &str) -> String {
    let message = serde_json::Value::from(message);
    format!(r#"{{"ev":"status","status":"error","message":{message}}}"#)
}

fn unknown(item: &str, kinds: &str) -> String {
    error(&format!(
        "unknown channel type in {item:?}: expected one of {kinds} before the first dot"
    ))
}

#[tokio::test]
async fn a_listed_type_is_requested_carried_and_subscribed_at_both_tiers() {
    let ack = acks("subscribed", "NEW9.*");
    let chain = Chain::start("stocks", "T,NEW9", &[("NEW9.*", &ack)]).await;
    let events = [
        r#"{"ev":"NEW9","sym":"AAPL","p":231.5,"n":1}"#,
        r#"{"ev":"NEW9","x":[1,{"sym":"NO"}],"p":1.5,"T":"AAPL","n":2}"#,
        r#"{"n":3,"pair":"AAPL","ev":"NEW9"}"#,
        r#"{ "ev" : "NEW9", "p" : "\u0041APL", "n" : 4 }"#,
    ];
    let others = [
        r#"{"ev":"NEW9","sym":"MSFT","pair":"AAPL","T":"AAPL","p":"AAPL","n":5}"#,
        r#"{"ev":"NEW9","n":6}"#,
    ];
    let foreign = [r#"{"ev":"NEW99","sym":"AAPL"}"#, r#"{"ev":"NEW","sym":"AAPL"}"#];
    let known = trade("AAPL", 7);
    let frame = [&events[..], &others, &foreign, &[known.as_str()]].concat();
    let whole: Vec<_> = [&events[..], &others].concat();
    let end = trade("END", 8);
    for (channels, expected) in [
        ("NEW9.AAPL", &events[..]),
        ("NEW9.*", &whole),
        ("NEW9.*,NEW9.AAPL", &whole),
        ("NEW9.MSFT", &others[..1]),
        ("NEW9.NONE", &[]),
        ("T.AAPL", &[&known]),
        ("*", &frame),
    ] {
        let mut client = TestClient::login(chain.filtered.addr(), CLIENT_KEY).await;
        client.subscribe(channels).await;
        if channels != "*" {
            client.subscribe("T.END").await;
        }
        chain.sim.handle.publish_raw(&format!("[{}]", frame.join(",")));
        chain.sim.handle.publish_raw(&format!("[{end}]"));
        client.expect_objects(expected).await;
        client.expect_objects(&[&end]).await;
        client.unsubscribe(channels).await;
    }
    // The firehose does not filter.
    let [_, mut direct] = chain.subscribers("NEW9.*,NEW9.AAPL").await;
    chain.sim.handle.publish_raw(&format!("[{}]", whole.join(",")));
    direct.expect_objects(&whole).await;
    direct.unsubscribe("NEW9.AAPL,NEW9.*").await;
    let health = chain.firehose.health().await;
    assert_eq!(health["channels"]["carried"], serde_json::json!(["T.*", "NEW9.*"]));
    let asked = chain.sim.handle.commands();
    assert!(!asked.iter().any(|command| command.contains("NEW9.AAPL")), "{asked:?}");
}

#[tokio::test]
async fn types_that_nobody_listed_are_refused_with_the_list_of_those_there_are() {
    let ack = acks("subscribed", "NEW9.*");
    let chain = Chain::start("stocks", "T,NEW9", &[("NEW9.*", &ack)]).await;
    let kinds = "T, Q, A, AM, LULD, NOI, FMV, LV, NEW9";
    for mut client in chain.clients().await {
        for item in ["NEW8.AAPL", "NEW99.*", "new9.AAPL", "XT.BTC-USD", "TOOLONGFOR.A"] {
            for action in ["subscribe", "unsubscribe"] {
                client.command(action, item).await;
                client.expect(&format!("[{}]", unknown(item, kinds))).await;
            }
        }
        client.subscribe("T.AAPL,NEW9.AAPL").await;
    }
}

#[tokio::test]
async fn a_type_of_another_market_can_be_listed() {
    let ack = acks("subscribed", "FMV.*");
    let chain = Chain::start("indices", "V,FMV", &[("FMV.*", &ack)]).await;
    let value = r#"{"ev":"FMV","fmv":1.5,"sym":"I:SPX","t":1}"#;
    for mut client in chain.subscribers("FMV.I:SPX").await {
        chain.sim.handle.publish_raw(&format!("[{value}]"));
        client.expect_objects(&[value]).await;
    }
}

#[tokio::test]
async fn all_spellings_of_a_pair_are_one_channel_of_a_new_type() {
    let ack = acks("subscribed", "XNEW.*");
    let chain = Chain::start("crypto", "XT,XNEW", &[("XNEW.*", &ack)]).await;
    let event = r#"{"ev":"XNEW","pair":"BTC-USD","p":1.5}"#;
    for spelling in ["XNEW.BTC-USD", "XNEW.X:BTC-USD", "XNEW.BTC/USD", "XNEW.BTCUSD"] {
        let [mut client, _] = chain.subscribers(spelling).await;
        chain.sim.handle.publish_raw(&format!("[{event}]"));
        client.expect_objects(&[event]).await;
    }
}

#[tokio::test]
async fn a_refusal_of_a_listed_type_reaches_clients_of_both_tiers() {
    let refusal = format!("[{}]", error("not authorized"));
    let chain = Chain::start("stocks", "T,NEW9", &[("NEW9.*", &refusal)]).await;
    for mut client in chain.clients().await {
        client.command("subscribe", "NEW9.AAPL").await;
        let why = r#""NEW9.AAPL" is not carried: upstream refused NEW9.*: not authorized"#;
        client.expect(&format!("[{}]", error(why))).await;
    }
}

#[tokio::test]
async fn single_symbols_of_a_new_type_can_be_listed() {
    let ack = acks("subscribed", "NEW9.A");
    let chain = Chain::start("stocks", "T,NEW9.A", &[("NEW9.A", &ack)]).await;
    let [mut client, _] = chain.clients().await;
    client.command("subscribe", "NEW9.B,NEW9.*,NEW9.A").await;
    let only = "of NEW9 the firehose takes from upstream only NEW9.A";
    let expected = [
        error(&format!(r#""NEW9.B" is not carried: {only}"#)),
        error(r#""NEW9.*" is carried in part: NEW9.A"#),
    ];
    client.expect_objects(&expected).await;
    client.expect_objects(&tests::ws_client::objects(&acks("subscribed", "NEW9.*,NEW9.A"))).await;
}

#[tokio::test]
async fn a_client_that_came_before_the_types_were_known_is_told_once_they_are() {
    let port = ReservedPort::new();
    let filtered = stack::filtered(port.addr()).start().await;
    let mut client = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    client.command("subscribe", "NEW9.AAPL,NEW8.AAPL,NEW8.*,new9.AAPL,XT.BTC-USD").await;
    let kinds = "T, Q, A, AM, LULD, NOI, FMV, LV";
    client.expect_objects(&["new9.AAPL", "XT.BTC-USD"].map(|item| unknown(item, kinds))).await;
    let accepted = acks("subscribed", "NEW9.AAPL,NEW8.AAPL,NEW8.*");
    client.expect_objects(&tests::ws_client::objects(&accepted)).await;

    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).env("UPSTREAM_CHANNELS", "T,NEW9");
    let firehose = firehose.env("FIREHOSE_PORT", port.addr().port()).start().await;
    is_up(&firehose).await;
    let none = "the firehose takes no NEW8 from upstream";
    for item in ["NEW8.*", "NEW8.AAPL"] {
        client.expect_status("error", &format!("{item:?} is not carried: {none}")).await;
    }
    requested(&sim, "NEW9.*").await;
    sim.handle.publish_raw(&acks("subscribed", "NEW9.*"));
    is_complete(&filtered).await;

    // The items stay held until they are removed. From then on they are as unknown as any other.
    client.command("unsubscribe", "NEW8.AAPL,NEW8.*").await;
    for item in ["NEW8.AAPL", "NEW8.*"] {
        client.expect_status("success", &format!("unsubscribed to: {item}")).await;
    }
    client.command("subscribe", "NEW8.AAPL").await;
    let kinds = "T, Q, A, AM, LULD, NOI, FMV, LV, NEW9";
    client.expect_objects(&[unknown("NEW8.AAPL", kinds)]).await;
    let event = r#"{"ev":"NEW9","sym":"AAPL"}"#;
    sim.handle.publish_raw(&format!(r#"[{{"ev":"NEW8","sym":"AAPL"}},{event}]"#));
    client.expect_objects(&[event]).await;
}

#[tokio::test]
async fn a_listed_type_that_is_not_known_is_named_once_at_the_start() {
    let nowhere = ReservedPort::new();
    let firehose = stack::firehose(&format!("ws://{}", nowhere.addr()));
    let listed = "T,Q.AAPL,NEW9.*,NEW9.A,NEW9.B,XT,AAPL";
    let mut firehose = firehose.env("UPSTREAM_CHANNELS", listed).start().await;
    let warning = |kind: &str| {
        format!(
            "UPSTREAM_CHANNELS names the type {kind}, which this version does not know in stocks: check its spelling"
        )
    };
    for kind in ["NEW9", "XT", "AAPL"] {
        assert_eq!(firehose.logged(&warning(kind)).await["level"], "WARN");
        assert_eq!(firehose.log_count(&warning(kind)), 1);
    }
    for kind in ["T", "Q", "A"] {
        assert_eq!(firehose.log_count(&warning(kind)), 0, "{kind}");
    }
}
