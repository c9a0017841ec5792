//! All clients of a run, on one thread.

use std::{
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
    net::sockopt,
};

use crate::{
    client::{Client, ClientPlan, Phase, Return},
    clock::Clock,
    feed::Feed,
    latency::Latency,
    secure::{Identity, Stream},
    verify::Faults,
};

/// Bytes read from a client's socket at once.
const READ_BYTES: usize = 256 * 1024;
/// The most logins at a time, so that the proxy's backlog never overflows.
const MAX_LOGINS: usize = 512;
/// The receive buffer of a stalled client's socket.
const STALLED_BUFFER: usize = 64 * 1024;
/// How long all clients may take to log in.
const LOGIN_LIMIT: Duration = Duration::from_secs(30);

/// All clients of a run.
pub struct Fleet {
    clients: Vec<Client>,
    addresses: Vec<SocketAddr>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    buffer: Vec<u8>,
    feed: Arc<Feed>,
    clock: Clock,
    /// Delays of the events received since it was last cleared.
    pub latency: Latency,
    /// The same of the clients that leave and come back.
    returning: Latency,
    received: u64,
    last_arrival_ns: u64,
    waiting: usize,
    ended: usize,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet").field("clients", &self.clients.len()).finish_non_exhaustive()
    }
}

impl Fleet {
    /// Connects to these addresses in turns, logs in and subscribes; with TLS if there is an
    /// identity.
    pub fn connect(
        addresses: Vec<SocketAddr>,
        identity: Option<&Identity>,
        plans: Vec<ClientPlan>,
        feed: Arc<Feed>,
        clock: Clock,
    ) -> Result<Self> {
        let mut fleet = Self {
            clients: Vec::with_capacity(plans.len()),
            addresses,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(1_024),
            buffer: vec![0; READ_BYTES * 2],
            feed,
            clock,
            latency: Latency::default(),
            returning: Latency::default(),
            received: 0,
            last_arrival_ns: 0,
            waiting: 0,
            ended: 0,
        };
        let deadline = clock.now_ns() + LOGIN_LIMIT.as_nanos() as u64;
        for plan in plans {
            let address = fleet.addresses[fleet.clients.len() % fleet.addresses.len()];
            let socket = TcpStream::connect(address).context("connect a client")?;
            if plan.stalled {
                sockopt::set_socket_recv_buffer_size(&socket, STALLED_BUFFER)?;
            }
            let data = epoll::EventData::new_u64(fleet.clients.len() as u64);
            epoll::add(&fleet.epoll, &socket, data, epoll::EventFlags::IN)?;
            socket.set_nodelay(true)?;
            let stream = match identity {
                Some(identity) => identity.secure(socket)?,
                None => Stream::Plain(socket),
            };
            fleet.clients.push(Client::start(stream, plan)?);
            fleet.waiting += 1;
            if fleet.clients.len().is_multiple_of(16) || fleet.waiting >= MAX_LOGINS {
                fleet.poll(Duration::ZERO)?;
            }
            while fleet.waiting >= MAX_LOGINS {
                ensure!(clock.now_ns() < deadline, "the clients did not log in in time");
                fleet.poll(Duration::from_millis(100))?;
            }
        }
        while fleet.waiting > 0 {
            let ready = fleet.clients.len() - fleet.waiting;
            ensure!(clock.now_ns() < deadline, "only {ready} clients logged in in time");
            fleet.poll(Duration::from_millis(100))?;
        }
        ensure!(fleet.ended == 0, "the proxy ended {} clients at their login", fleet.ended);
        Ok(fleet)
    }

    /// Breaks the connections off of all clients that leave.
    pub fn leave(&mut self) -> Result<()> {
        for client in self.clients.iter_mut().filter(|client| client.returns()) {
            epoll::delete(&self.epoll, client.socket())?;
            client.leave()?;
        }
        Ok(())
    }

    /// Connects all clients that have left again. While they are polled, they log in and subscribe
    /// from where they stood.
    pub fn come_back(&mut self) -> Result<()> {
        for (i, client) in self.clients.iter_mut().enumerate() {
            if client.phase() == Phase::Away {
                let address = self.addresses[i % self.addresses.len()];
                let socket = TcpStream::connect(address).context("connect a client again")?;
                socket.set_nodelay(true)?;
                let data = epoll::EventData::new_u64(i as u64);
                epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)?;
                client.come_back(Stream::Plain(socket))?;
                self.waiting += 1;
            }
        }
        Ok(())
    }

    /// How the clients that left came back.
    pub fn returns(&self) -> impl Iterator<Item = &Return> {
        self.clients.iter().filter(|client| client.returns()).map(|client| &client.back)
    }

    /// Waits up to this long and reads whatever has come.
    pub fn poll(&mut self, timeout: Duration) -> Result<()> {
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for i in 0..self.events.len() {
            let client = &mut self.clients[self.events[i].data.u64() as usize];
            let before = client.phase();
            let clock = self.clock;
            let mut arrival = 0;
            let now = || {
                arrival = clock.now_ns();
                arrival
            };
            let latency = if client.returns() { &mut self.returning } else { &mut self.latency };
            let came = client.read(&mut self.buffer, READ_BYTES, now, &self.feed, latency)?;
            if came > 0 {
                self.received += came;
                self.last_arrival_ns = arrival;
            }
            let after = client.phase();
            if before != after {
                let was_waiting = matches!(before, Phase::Upgrading | Phase::LoggingIn { .. });
                let waits = matches!(after, Phase::Upgrading | Phase::LoggingIn { .. });
                self.waiting -= usize::from(was_waiting && !waits);
                self.ended += usize::from(after == Phase::Ended);
                if after == Phase::Ended || (after == Phase::Ready && client.is_stalled()) {
                    epoll::delete(&self.epoll, client.socket())?;
                }
            }
        }
        Ok(())
    }

    /// The number of events received so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The time at which the last event came.
    pub fn last_arrival_ns(&self) -> u64 {
        self.last_arrival_ns
    }

    /// Sessions that the proxy ended, as seen by the clients that read.
    pub fn ended(&self) -> usize {
        self.ended
    }

    /// How many events the reading clients must have when the load has reached this sequence
    /// number.
    pub fn expected(&self, events: u64) -> u64 {
        let ring = self.feed.topics().len() as u64;
        self.reading().map(|client| client.verifier().expected(events, ring)).sum()
    }

    /// The faults of the reading clients when the load has reached this sequence number.
    pub fn faults(&self, events: u64) -> Faults {
        let ring = self.feed.topics().len() as u64;
        let mut sum = Faults::default();
        for client in self.reading() {
            sum.add(&client.verifier().faults(events, ring));
        }
        sum
    }

    /// Some of the statuses that the proxy sent to clients.
    pub fn notices(&self) -> Vec<String> {
        self.clients.iter().flat_map(|client| &client.notices).take(4).cloned().collect()
    }

    fn reading(&self) -> impl Iterator<Item = &Client> {
        self.clients.iter().filter(|client| !client.is_stalled())
    }
}
