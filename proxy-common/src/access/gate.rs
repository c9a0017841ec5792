//! What a connection and its requests must pass before they become a session: whose they are, whether that address has room,
//! and whether a web page may.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderName,
    header::{HOST, ORIGIN},
};
use prometheus_client::registry::Registry;
use tokio::{io::AsyncRead, time::timeout};
use tracing::debug;

use crate::{
    access::{
        abuse::{Abuse, AbuseLog},
        address_limits::{AddressLimit, Counted, Place, RequestRate},
        client_address::TrustedProxies,
        origin::Origins,
    },
    config::{AdmissionArgs, Switch},
    transport::proxy_protocol::read_header,
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The rules of one port, and what they count.
#[derive(Debug)]
pub struct Doors {
    origins: Origins,
    trusted: TrustedProxies,
    proxy_header: bool,
    addresses: Arc<AddressLimit>,
    requests: RequestRate,
    /// Where abuse is counted and logged.
    pub abuse: AbuseLog,
}

/// A connection whose peer is known.
#[derive(Debug)]
pub struct Entered {
    /// Who is at the other end: the peer, or whom its PROXY header names.
    peer: IpAddr,
    place: Option<Place>,
    /// Whether each session is counted for the client that the request names.
    shared: bool,
    /// Whether the TLS handshake was counted in place of the first request.
    paid: AtomicBool,
    /// Whether the client speaks plain HTTP to a port that speaks TLS.
    expects_tls: bool,
}

/// Why a request is turned away.
#[derive(Debug)]
pub struct Refusal {
    /// What is counted.
    pub abuse: Abuse,
    /// When to come again; never for what stays wrong.
    pub retry_after: Option<Duration>,
}

impl Entered {
    /// Someone on a port that nobody but the operator reaches.
    pub fn operator(peer: SocketAddr) -> Self {
        Self::new(peer.ip(), None, false)
    }

    fn new(peer: IpAddr, place: Option<Place>, shared: bool) -> Self {
        Self { peer, place, shared, paid: AtomicBool::new(false), expects_tls: false }
    }

    /// Who is at the other end: the peer, or whom its PROXY header names.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// The client speaks plain HTTP to a port that speaks TLS: it gets no more than an answer that says so.
    pub fn expect_tls(&mut self) {
        self.expects_tls = true;
    }

    /// Whether there is only one answer to give: to use TLS.
    pub fn expects_tls(&self) -> bool {
        self.expects_tls
    }

    /// What counts the connection for its address.
    pub fn into_place(self) -> Option<Place> {
        self.place
    }
}

impl Doors {
    /// Doors with these rules; counters are registered under the registry's prefix.
    pub fn new(args: &AdmissionArgs, registry: &mut Registry) -> Self {
        Self {
            origins: args.allowed_origins.clone().unwrap_or_default(),
            trusted: args.trusted_proxies.clone().unwrap_or_default(),
            proxy_header: args.proxy_protocol == Switch::On,
            addresses: AddressLimit::new(args.max_connections_per_address),
            requests: RequestRate::per_second(args.handshake_rate),
            abuse: AbuseLog::register(registry),
        }
    }

    /// Finds out whose a fresh connection is and counts it, within `limit`.
    ///
    /// # Errors
    ///
    /// It has to be dropped without an answer.
    pub async fn enter(
        &self,
        socket: &mut (impl AsyncRead + Unpin),
        peer: SocketAddr,
        limit: Duration,
    ) -> Result<Entered, Abuse> {
        let mut peer = peer.ip().to_canonical();
        if self.proxy_header && self.trusted.contains(peer) {
            match timeout(limit, read_header(socket)).await {
                Ok(Ok(Some(client))) => peer = client.ip().to_canonical(),
                // The proxy's own look at how we are.
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    debug!(%error, "connection dropped");
                    return Err(self.noted(Abuse::ProxyHeader, peer));
                }
                Err(_) => return Err(self.noted(Abuse::ProxyHeader, peer)),
            }
        }
        if self.trusted.contains(peer) {
            return Ok(Entered::new(peer, None, true));
        }
        match self.addresses.connect(peer) {
            Counted::In(place) => Ok(Entered::new(peer, place, false)),
            Counted::Full => Err(self.noted(Abuse::AddressFull, peer)),
        }
    }

    /// The client that sends a request.
    pub fn client(&self, entered: &Entered, headers: &HeaderMap) -> IpAddr {
        let values = headers.get_all(X_FORWARDED_FOR).iter();
        // A value that is no text is no address either.
        self.trusted.client(entered.peer, values.map(|value| value.to_str().unwrap_or_default()))
    }

    /// Judges how fast a client's TLS handshakes come, which cost more than the requests behind them: the first of those is
    /// counted with it. Behind a proxy nobody knows yet whose it is.
    ///
    /// # Errors
    ///
    /// Too fast.
    pub fn pace_tls(&self, entered: &mut Entered) -> Result<(), Abuse> {
        if entered.shared {
            return Ok(());
        }
        *entered.paid.get_mut() = true;
        self.requests.take(entered.peer).map_err(|_| self.noted(Abuse::HandshakeRate, entered.peer))
    }

    /// Judges how fast a client's requests come.
    ///
    /// # Errors
    ///
    /// Too fast.
    pub fn pace(&self, entered: &Entered, client: IpAddr) -> Result<(), Refusal> {
        if entered.paid.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        self.requests.take(client).map_err(|wait| Refusal {
            abuse: self.noted(Abuse::HandshakeRate, client),
            retry_after: Some(wait),
        })
    }

    /// Judges where the page that asks for a WebSocket is from, if it is one that asks.
    ///
    /// # Errors
    ///
    /// From elsewhere.
    pub fn origin(&self, client: IpAddr, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        if origin.to_str().is_ok_and(|origin| self.origins.allow(origin, host)) {
            return Ok(());
        }
        Err(Refusal { abuse: self.noted(Abuse::Origin, client), retry_after: None })
    }

    /// Gives a session its place among those of its address.
    ///
    /// # Errors
    ///
    /// There are as many as there may be.
    pub fn admit(&self, entered: &Entered, client: IpAddr) -> Result<Option<Place>, Refusal> {
        let full = || Refusal {
            abuse: self.noted(Abuse::AddressFull, client),
            retry_after: Some(Duration::from_secs(5)),
        };
        if entered.shared {
            return match self.addresses.admit(client) {
                Counted::In(place) => Ok(place),
                Counted::Full => Err(full()),
            };
        }
        // Counted with its connection, which lasts as long.
        if entered.place.as_ref().is_some_and(Place::is_beyond) { Err(full()) } else { Ok(None) }
    }

    /// Forgets and logs what has had its time; to be called about once a second.
    pub fn tick(&self) {
        self.requests.tick();
        self.abuse.tick(Instant::now());
    }

    fn noted(&self, abuse: Abuse, client: IpAddr) -> Abuse {
        self.abuse.note(abuse, client);
        abuse
    }
}
