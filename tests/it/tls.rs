//! Links over TLS: a whole chain with self-signed certificates, and upstreams with untrusted ones.

use tests::{
    stack::{CLIENT_KEY, Sim, filtered, firehose, is_complete},
    tls::TlsFront,
    wait::{SOON, eventually},
    ws_client::TestClient,
};

use crate::events::trade;

#[tokio::test]
async fn both_links_work_over_tls() {
    let sim = Sim::start().await;
    let vendor = TlsFront::start(sim.addr()).await;
    let firehose = firehose(&format!("{}/stocks", vendor.url()))
        .env("POLYGON_CA", vendor.ca().display())
        .start()
        .await;
    let front = TlsFront::start(firehose.addr()).await;
    let proxy = filtered(firehose.addr())
        .env("FIREHOSE_URL", front.url())
        .env("FIREHOSE_CA", front.ca().display())
        .start()
        .await;
    eventually(SOON, "trades are carried", async || sim.handle.subscriptions().contains("T.*"))
        .await;
    is_complete(&proxy).await;
    let mut client = TestClient::login(proxy.addr(), CLIENT_KEY).await;
    client.subscribe("T.AAPL").await;
    let events: Vec<_> = (0..5_000).map(|n| trade("AAPL", n)).collect();
    for frame in events.chunks(50) {
        sim.handle.publish(frame);
    }
    client.expect_objects(&events).await;
}

#[tokio::test]
async fn an_upstream_with_an_untrusted_certificate_gets_no_key() {
    let sim = Sim::start().await;
    let vendor = TlsFront::start(sim.addr()).await;
    let firehose = firehose(&vendor.url()).start().await;
    eventually(SOON, "the certificate is refused", async || {
        firehose.health_text("/upstream/last_error").await.contains("certificate")
    })
    .await;
    assert_eq!(sim.handle.stats().connections_accepted, 0);
}
