//! Three filtered proxies behind nginx and HAProxy, with each configuration of `deploy/`.

use std::net::SocketAddr;

use futures_util::future::join_all;
use tests::{
    http::{refused_upgrade, upgrade, upgrade_head},
    program::{Launch, Program, Signal},
    stack::{self, CLIENT_KEY, ReservedPort, Stack, StackConfig, is_complete},
    tls::Certificate,
    wait::{SOON, eventually, within},
    ws_client::{Received, TestClient},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpSocket,
};

use crate::{
    events::{quote, trade},
    front::{Front, Running},
};

/// The number of filtered proxies.
const PROXIES: usize = 3;

/// A chain with three filtered proxies and one address for all of them.
pub(crate) struct Balanced {
    /// What runs with it.
    pub(crate) running: Running,
    /// The chain. A proxy that is replaced keeps its port.
    pub(crate) stack: Stack,
    /// The certificate that clients see where they speak TLS.
    pub(crate) certificate: Certificate,
    addresses: Vec<SocketAddr>,
    _ports: Vec<ReservedPort>,
    settings: Vec<(&'static str, String)>,
}

impl Balanced {
    /// Starts everything, with these settings of the filtered proxies.
    pub(crate) async fn start(front: Front, settings: &[(&'static str, &str)]) -> Self {
        let certificate = Certificate::new();
        let ports: Vec<_> = (0..PROXIES).map(|_| ReservedPort::new()).collect();
        let mut all = front.settings(&certificate);
        all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let mut stack = Stack::with(StackConfig { filtered: 0, ..StackConfig::default() }).await;
        let addresses: Vec<_> = ports.iter().map(ReservedPort::addr).collect();
        for addr in &addresses {
            let launch = launch(stack.firehose.addr(), *addr, &all);
            stack.filtered.push(launch.start().await);
        }
        stack.linked().await;
        let running = front.start(&addresses, &certificate).await;
        Self { running, stack, certificate, addresses, settings: all, _ports: ports }
    }

    /// The proxy of this number, about to be started at its port.
    pub(crate) fn launch(&self, n: usize) -> Launch {
        launch(self.stack.firehose.addr(), self.addresses[n], &self.settings)
    }

    /// A client of the front that gets trades of AAPL.
    async fn subscriber(&self) -> TestClient {
        let mut client = TestClient::login(self.running.addr(), CLIENT_KEY).await;
        client.subscribe("T.AAPL").await;
        client
    }

    async fn subscribers(&self, count: usize) -> Vec<TestClient> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.subscriber().await);
        }
        clients
    }

    /// How many sessions each proxy has.
    async fn sessions(&self) -> Vec<f64> {
        join_all(self.stack.filtered.iter().map(sessions)).await
    }

    /// Publishes an event, which each of these clients must get.
    async fn reaches(&self, clients: &mut [TestClient], n: usize) {
        self.stack.publish(&[quote("AAPL", n), trade("AAPL", n)]);
        for client in clients {
            client.expect_objects(&[trade("AAPL", n)]).await;
        }
    }
}

fn launch(firehose: SocketAddr, addr: SocketAddr, settings: &[(&'static str, String)]) -> Launch {
    let launch = stack::filtered(firehose).env("FILTERED_PROXY_PORT", addr.port());
    launch.envs(settings.iter().cloned())
}

async fn sessions(proxy: &Program) -> f64 {
    proxy.metric("filtered_sessions").await.expect("a gauge")
}

#[tokio::test]
async fn clients_are_spread_evenly_and_get_what_they_asked_for() {
    for front in Front::ALL {
        let balanced = Balanced::start(front, &[]).await;
        let mut clients = balanced.subscribers(6).await;
        assert_eq!(balanced.sessions().await, [2.0; PROXIES], "{front:?}");
        balanced.reaches(&mut clients, 1).await;
    }
}

#[tokio::test]
async fn a_killed_proxy_costs_its_own_clients_a_reconnect_and_the_others_nothing() {
    for front in Front::ALL {
        let mut balanced = Balanced::start(front, &[]).await;
        let mut clients = balanced.subscribers(6).await;
        let mut killed = balanced.stack.filtered.remove(0);
        killed.signal(Signal::SIGKILL);
        killed.wait_exit(SOON).await;
        let mut came_back = [false; 6];
        balanced.stack.publish(&[trade("AAPL", 1)]);
        for (client, came_back) in clients.iter_mut().zip(&mut came_back) {
            match client.next(SOON).await {
                Received::Dropped | Received::Closed(None) => {
                    *client = balanced.subscriber().await;
                    *came_back = true;
                }
                Received::Text(text) => assert_eq!(text, format!("[{}]", trade("AAPL", 1))),
                Received::Closed(code) => panic!("{front:?}: closed with {code:?}"),
            }
        }
        assert_eq!(came_back.iter().filter(|came_back| **came_back).count(), 2, "{front:?}");
        assert_eq!(balanced.sessions().await, [3.0; PROXIES - 1], "{front:?}");
        balanced.stack.publish(&[quote("AAPL", 2), trade("AAPL", 2)]);
        for (client, came_back) in clients.iter_mut().zip(came_back) {
            let mut object = client.next_object().await;
            // Its new proxy may have been behind the others.
            if came_back && object == trade("AAPL", 1) {
                object = client.next_object().await;
            }
            assert_eq!(object, trade("AAPL", 2), "{front:?}");
        }

        // It comes back, and the next clients are led to it.
        let again = balanced.launch(0).start().await;
        is_complete(&again).await;
        eventually(SOON, "a client of the proxy that came back", async || {
            let _client = balanced.subscriber().await;
            sessions(&again).await == 1.0
        })
        .await;
    }
}

/// Sends a request that asks for a WebSocket from a page that may not have one, and reads the
/// answer.
async fn refused_page(mut stream: impl AsyncRead + AsyncWrite + Unpin, host: SocketAddr) {
    let headers = "Origin: https://evil.example\r\nX-Forwarded-For: 203.0.113.7\r\n";
    stream.write_all(upgrade_head(host, "/", headers).as_bytes()).await.expect("send a request");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("read an answer");
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[tokio::test]
async fn the_proxies_see_the_clients_own_address_whatever_it_claims() {
    for front in Front::ALL {
        let balanced = Balanced::start(front, &[]).await;
        let socket = TcpSocket::new_v4().expect("make a socket");
        socket.bind("127.0.0.9:0".parse().expect("an address")).expect("bind a source address");
        let addr = balanced.running.port();
        let stream = within(SOON, "connecting", socket.connect(addr)).await.expect("connect");
        if front.speaks_tls() {
            let trust = balanced.certificate.trust();
            let stream = within(SOON, "TLS", trust.connect(stream)).await.expect("a handshake");
            within(SOON, "an answer", refused_page(stream, addr)).await;
        } else {
            within(SOON, "an answer", refused_page(stream, addr)).await;
        }
        let line = "turned away: a web page that ALLOWED_ORIGINS does not list";
        eventually(SOON, line, async || {
            balanced.stack.filtered.iter().any(|proxy| proxy.log_count(line) > 0)
        })
        .await;
        let logs: String = balanced.stack.filtered.iter().map(Program::log_text).collect();
        let line = logs.lines().find(|text| text.contains(line)).expect("counted above");
        assert!(line.contains(r#""client":"127.0.0.9"#), "{front:?}: {line}");
    }
}

#[tokio::test]
async fn close_codes_and_refusals_pass_through() {
    for front in Front::ALL {
        let balanced = Balanced::start(front, &[]).await;
        let addr = balanced.running.addr();
        let mut client = TestClient::connect(addr).await;
        client.command("auth", "no-such-key").await;
        assert_eq!(client.end(SOON).await, Received::Closed(Some(1008)), "{front:?}");
        assert_eq!(refused_upgrade(addr, "/bonds").await.status, 404, "{front:?}");
        // Some libraries send the host that they connect to as the origin.
        let own = format!("Origin: http://{addr}\r\n");
        assert_eq!(upgrade(addr, &own).await.status, 101, "{front:?}");
    }
}

#[tokio::test]
async fn a_full_proxy_is_passed_over_until_all_are_full() {
    // Those in TCP mode see no answers. Their checks find a full proxy a little later.
    for front in Front::ALL.into_iter().filter(|front| front.speaks_http()) {
        let balanced = Balanced::start(front, &[("MAX_CONNECTIONS", "1")]).await;
        // The front does not know of this client, so it counts none for the proxy.
        let _own = TestClient::login(balanced.stack.addr(), CLIENT_KEY).await;
        let _clients = balanced.subscribers(PROXIES - 1).await;
        assert_eq!(balanced.sessions().await, [1.0; PROXIES], "{front:?}");
        assert_eq!(refused_upgrade(balanced.running.addr(), "/").await.status, 503, "{front:?}");
    }
}

#[tokio::test]
async fn a_reload_takes_a_proxy_out_and_no_client_notices() {
    for front in Front::ALL {
        let balanced = Balanced::start(front, &[]).await;
        let mut old = balanced.subscribers(PROXIES).await;
        assert_eq!(balanced.sessions().await, [1.0; PROXIES], "{front:?}");
        balanced.running.reload(&balanced.addresses[..2], &balanced.certificate).await;
        let mut new = Vec::new();
        eventually(SOON, "new clients stay away from the third proxy", async || {
            // Of four clients of the old configuration, one would be there.
            new = balanced.subscribers(4).await;
            sessions(&balanced.stack.filtered[2]).await == 1.0
        })
        .await;
        old.append(&mut new);
        balanced.reaches(&mut old, 1).await;
    }
}
