//! Simulator, firehose and filtered proxies, connected in one call.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use polygon_sim::{SimConfig, SimHandle, Simulator};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    http::markets,
    program::{Launch, Program},
    relay::{Fault, Relay},
    wait::{SOON, eventually},
    ws_client::TestClient,
};

/// The key that the simulator accepts.
pub const VENDOR_KEY: &str = "vendor-key-2f71c0";
/// The key that the firehose accepts.
pub const FIREHOSE_KEY: &str = "firehose-key-9d04e5";
/// The key that the filtered proxy accepts.
pub const CLIENT_KEY: &str = "client-key-6b38aa";

/// A simulator in this process. Dropping it ends it.
#[derive(Debug)]
pub struct Sim {
    /// Publishes, injects faults, counts. Of several markets it has the first.
    pub handle: SimHandle,
    handles: Vec<SimHandle>,
    addr: SocketAddr,
    stop: CancellationToken,
    _tasks: JoinSet<()>,
}

impl Sim {
    /// A simulator of the stock market that generates no events by itself.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn start() -> Self {
        Self::with(SimConfig::default()).await
    }

    /// A simulator with these settings. Its key is [`VENDOR_KEY`].
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn with(config: SimConfig) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, config).await
    }

    /// As [`Sim::with`], on any free port of this address.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn at(address: Ipv4Addr, config: SimConfig) -> Self {
        let config = SimConfig { keys: vec![VENDOR_KEY.to_owned()], ..config };
        let any = SocketAddr::from((address, 0));
        let simulator = Simulator::bind(any, config).await.expect("start a simulator");
        let (addr, handle) = (simulator.addr(), simulator.handle());
        let handles = simulator.handles();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let stopped = stop.clone();
        tasks.spawn(async move { simulator.serve(stopped).await.expect("the simulator runs") });
        Self { handle, handles, addr, stop, _tasks: tasks }
    }

    /// The address that it listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The handle of this market.
    ///
    /// # Panics
    ///
    /// If it has no such market.
    #[must_use]
    pub fn market(&self, name: &str) -> &SimHandle {
        let named = |handle: &&SimHandle| handle.market().name() == name;
        self.handles.iter().find(named).expect("the simulator serves the market")
    }

    /// The URL of this market on it.
    #[must_use]
    pub fn url(&self, market: &str) -> String {
        format!("ws://{}/{market}", self.addr)
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A port that no other program gets. Nothing listens there until a program under test does.
///
/// The port is bound but not listening. The kernel refuses connections and does not give the port
/// to a program that asks for any free one. A program that names the port may bind it, as often as
/// needed, because both sides set `SO_REUSEADDR`.
#[derive(Debug)]
pub struct ReservedPort {
    addr: SocketAddr,
    _socket: Socket,
}

impl ReservedPort {
    /// Reserves a port of 127.0.0.1.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("make a socket");
        socket.set_reuse_address(true).expect("set SO_REUSEADDR");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        socket.bind(&any.into()).expect("bind a free port");
        let addr = socket.local_addr().expect("the address of a bound socket").as_socket();
        Self { addr: addr.expect("an IPv4 address"), _socket: socket }
    }

    /// Its address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Default for ReservedPort {
    fn default() -> Self {
        Self::new()
    }
}

/// A firehose with the settings that every test needs, on any free port.
#[must_use]
pub fn firehose(upstream_url: &str) -> Launch {
    Launch::new("firehose-proxy")
        .env("POLYGON_WS_URL", upstream_url)
        .env("POLYGON_API_KEY", VENDOR_KEY)
        .env("FIREHOSE_API_KEYS", FIREHOSE_KEY)
        // The market of a test may be silent at any hour.
        .env("SILENCE_ALARM", "off")
        .env("FIREHOSE_HOST", "127.0.0.1")
        .env("FIREHOSE_PORT", 0)
}

/// A filtered proxy with the settings that every test needs, on any free port.
#[must_use]
pub fn filtered(firehose: SocketAddr) -> Launch {
    Launch::new("filtered-proxy")
        .env("FIREHOSE_URL", format!("ws://{firehose}"))
        .env("FIREHOSE_API_KEY", FIREHOSE_KEY)
        .env("CLIENT_API_KEYS", CLIENT_KEY)
        .env("FILTERED_PROXY_HOST", "127.0.0.1")
        .env("FILTERED_PROXY_PORT", 0)
}

/// A filtered proxy that takes the feed from these NATS servers, with the settings that every test
/// needs, on any free port. The firehose needs `NATS_URL` with the same servers.
#[must_use]
pub fn filtered_on_nats(servers: &str) -> Launch {
    Launch::new("filtered-proxy")
        .env("FIREHOSE_URL", servers)
        .env("CLIENT_API_KEYS", CLIENT_KEY)
        .env("FILTERED_PROXY_HOST", "127.0.0.1")
        .env("FILTERED_PROXY_PORT", 0)
}

/// The parts of a [`Stack`].
#[derive(Debug, Clone)]
pub struct StackConfig {
    /// The simulator's settings. All programs have its market or markets.
    pub sim: SimConfig,
    /// The number of filtered proxies. Default 1.
    pub filtered: usize,
    /// Settings of the firehose beside those of [`firehose`].
    pub firehose_env: Vec<(&'static str, String)>,
    /// Settings of every filtered proxy beside those of [`filtered`].
    pub filtered_env: Vec<(&'static str, String)>,
}

impl Default for StackConfig {
    fn default() -> Self {
        Self {
            sim: SimConfig::default(),
            filtered: 1,
            firehose_env: Vec::new(),
            filtered_env: Vec::new(),
        }
    }
}

/// Simulator, firehose and filtered proxies. Fields are dropped from the clients' end to the
/// market's.
#[derive(Debug)]
pub struct Stack {
    /// The filtered proxies.
    pub filtered: Vec<Program>,
    /// The firehose.
    pub firehose: Program,
    /// The market.
    pub sim: Sim,
}

impl Stack {
    /// The stock market without generated events, and one filtered proxy, all linked up.
    ///
    /// # Panics
    ///
    /// If something does not start or link up in time.
    pub async fn start() -> Self {
        Self::with(StackConfig::default()).await
    }

    /// A stack with these parts, all linked up. Every channel of each market is carried.
    ///
    /// # Panics
    ///
    /// If something does not start or link up in time.
    pub async fn with(config: StackConfig) -> Self {
        let market = config.sim.market.clone();
        let sim = Sim::with(config.sim).await;
        let (variable, url) = match market.contains(',') {
            true => ("MARKETS", sim.url("")),
            false => ("MARKET", sim.url(&market)),
        };
        let launch = firehose(&url).env(variable, &market);
        let firehose = launch.envs(config.firehose_env).start().await;
        let mut proxies = Vec::new();
        for _ in 0..config.filtered {
            let launch = filtered(firehose.addr()).env(variable, &market);
            proxies.push(launch.envs(config.filtered_env.clone()).start().await);
        }
        let stack = Self { filtered: proxies, firehose, sim };
        stack.linked().await;
        stack
    }

    /// Waits until both tiers' links are up, every channel of the market has been requested, and
    /// the filtered proxies know the answers.
    ///
    /// # Panics
    ///
    /// If that is not so in time.
    pub async fn linked(&self) {
        for proxy in &self.filtered {
            is_up(proxy).await;
        }
        is_up(&self.firehose).await;
        if !self.filtered.is_empty() {
            is_answered(&self.firehose).await;
        }
        for proxy in &self.filtered {
            is_complete(proxy).await;
        }
    }

    /// The address of the first filtered proxy.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.filtered[0].addr()
    }

    /// A client of the first filtered proxy, logged in.
    ///
    /// # Panics
    ///
    /// If the login fails.
    pub async fn client(&self) -> TestClient {
        self.client_at("/").await
    }

    /// A client that connected to the first filtered proxy by this path, logged in.
    ///
    /// # Panics
    ///
    /// If the login fails.
    pub async fn client_at(&self, path: &str) -> TestClient {
        let mut client = TestClient::connect_to(self.addr(), path).await;
        client.log_in(CLIENT_KEY).await;
        client
    }

    /// A client of the first filtered proxy, logged in and subscribed.
    ///
    /// # Panics
    ///
    /// If the login or the subscription fails.
    pub async fn subscriber(&self, params: &str) -> TestClient {
        self.subscriber_at("/", params).await
    }

    /// A client that connected to the first filtered proxy by this path, logged in and subscribed.
    ///
    /// # Panics
    ///
    /// If the login or the subscription fails.
    pub async fn subscriber_at(&self, path: &str, params: &str) -> TestClient {
        let mut client = self.client_at(path).await;
        client.subscribe(params).await;
        client
    }

    /// Makes the first market send one frame of these events.
    pub fn publish<T: AsRef<str>>(&self, events: &[T]) {
        let events: Vec<String> = events.iter().map(|event| event.as_ref().to_owned()).collect();
        self.sim.handle.publish(&events);
    }
}

/// Waits until a program's links are up.
///
/// # Panics
///
/// If it is not up in time.
pub async fn is_up(program: &Program) {
    in_state(program, "up").await;
}

/// Waits until the vendor has answered a firehose for every channel of each market, and carries one
/// at least.
///
/// # Panics
///
/// If that is not so in time.
pub async fn is_answered(firehose: &Program) {
    eventually(SOON, "every channel is carried or refused", async || {
        markets(&firehose.health().await).into_iter().all(|market| {
            let list = |name: &str| market["channels"][name].as_array();
            list("pending").is_some_and(Vec::is_empty)
                && list("carried").is_some_and(|list| !list.is_empty())
        })
    })
    .await;
}

/// Waits until a filtered proxy gets every channel and the firehose reports no outage to it.
///
/// # Panics
///
/// If that is not so in time.
pub async fn is_complete(filtered: &Program) {
    eventually(SOON, "everything comes from the firehose", async || {
        markets(&filtered.health().await).into_iter().all(|market| {
            market["channels"]["carried"] == json!(["*"]) && market["problems"] == json!([])
        })
    })
    .await;
}

/// Cuts a link in mid-frame, and waits until its program has noticed.
///
/// # Panics
///
/// If that takes too long.
pub async fn cut(link: &Relay, program: &Program) {
    link.inject(Fault::BlackHole);
    link.inject(Fault::Reset);
    eventually(SOON, "the link is down", async || {
        program.health_text("/upstream/state").await != "up"
    })
    .await;
}

/// Waits until the last error of a program's upstream contains this text.
///
/// # Panics
///
/// If it does not within the limit.
pub async fn failed(program: &Program, limit: Duration, reason: &str) {
    eventually(limit, reason, async || {
        program.health_text("/upstream/last_error").await.contains(reason)
    })
    .await;
}

/// Waits until a program's link is in this state, as shown in `/health`; of several markets, each
/// one's link.
///
/// # Panics
///
/// If it is not in that state in time.
pub async fn in_state(program: &Program, state: &str) {
    let what = format!("a link in state {state:?}");
    eventually(SOON, &what, async || {
        markets(&program.health().await).iter().all(|market| market["upstream"]["state"] == state)
    })
    .await;
}
