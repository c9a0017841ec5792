//! A TCP relay that injects faults: between the tiers, and between a proxy and its clients.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fastrand::Rng;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::sleep,
};

/// Bytes read from one side at a time.
const READ_BYTES: usize = 16 * 1024;
/// How often a throttled direction passes bytes on.
const THROTTLE_TICK: Duration = Duration::from_millis(50);
const THROTTLE_TICKS: usize = 20;
/// A small receive buffer, so that the sender feels the throttle. A buffer of only a few loopback
/// segments would throttle by itself.
const NARROW_BUFFER: usize = 192 * 1024;

/// A fault of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Each portion is passed on this much later.
    Delay(Duration),
    /// This many bytes per second are passed on in each direction.
    Throttle(usize),
    /// Both connections end in the middle of the next bytes from the target.
    Cut,
    /// Both connections are reset. Bytes on their way are lost.
    Reset,
    /// Connections are accepted, but their bytes are dropped and nothing is answered. A connection
    /// that has lost bytes ends afterwards.
    BlackHole,
}

impl Fault {
    /// One of each kind.
    pub const ALL: [Self; 5] = [
        Self::Delay(Duration::from_millis(150)),
        Self::Throttle(40_000),
        Self::Cut,
        Self::Reset,
        Self::BlackHole,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A fault of a schedule.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    /// The pause before it.
    pub after: Duration,
    /// The fault.
    pub fault: Fault,
    /// How long it lasts. A fault that ends connections takes no time.
    pub lasting: Duration,
}

/// A random schedule, the same for the same seed.
#[must_use]
pub fn schedule(rng: &mut Rng, faults: usize, longest: Duration) -> Vec<Planned> {
    let longest = u64::try_from(longest.as_millis()).expect("not so long").max(2);
    let draw = |_| {
        let fault = match rng.u8(..5) {
            0 => Fault::Delay(Duration::from_millis(rng.u64(1..200))),
            1 => Fault::Throttle(rng.usize(5_000..100_000)),
            2 => Fault::Cut,
            3 => Fault::Reset,
            _ => Fault::BlackHole,
        };
        let after = Duration::from_millis(rng.u64(1..longest));
        Planned { after, fault, lasting: Duration::from_millis(rng.u64(1..longest)) }
    };
    (0..faults).map(draw).collect()
}

/// The orders to all connections of a relay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Orders {
    lasting: Option<Fault>,
    /// How often connections were ordered to be cut or reset. A connection obeys only orders that
    /// are newer than itself.
    cuts: u64,
    resets: u64,
}

/// A relay to one target. Dropping it ends all its connections.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    orders: watch::Sender<Orders>,
    accepted: Accepted,
    _tasks: JoinSet<()>,
}

/// When each connection came.
type Accepted = Arc<Mutex<Vec<Instant>>>;

impl Relay {
    /// A relay to this address, on any free port.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub async fn start(target: SocketAddr) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = TcpListener::bind(any).await.expect("bind a relay");
        let addr = listener.local_addr().expect("the address of a bound socket");
        let orders = watch::Sender::default();
        let mut tasks = JoinSet::new();
        let accepted = Accepted::default();
        tasks.spawn(accept(listener, target, orders.subscribe(), Arc::clone(&accepted)));
        Self { addr, orders, accepted, _tasks: tasks }
    }

    /// The address that it listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// When each connection so far was accepted, in order.
    #[must_use]
    pub fn accepted(&self) -> Vec<Instant> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Injects a fault. A cut or a reset hits the connections that are open now. Any other fault
    /// lasts until [`heal`](Self::heal).
    pub fn inject(&self, fault: Fault) {
        self.orders.send_modify(|orders| match fault {
            Fault::Cut => orders.cuts += 1,
            Fault::Reset => orders.resets += 1,
            Fault::Delay(_) | Fault::Throttle(_) | Fault::BlackHole => {
                orders.lasting = Some(fault);
            }
        });
    }

    /// Passes everything on again without a fault.
    pub fn heal(&self) {
        self.orders.send_modify(|orders| orders.lasting = None);
    }

    /// Plays a schedule, then heals.
    pub async fn play(&self, schedule: &[Planned]) {
        for planned in schedule {
            sleep(planned.after).await;
            self.inject(planned.fault);
            sleep(planned.lasting).await;
            self.heal();
        }
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    orders: watch::Receiver<Orders>,
    times: Accepted,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (near, _) = accepted.expect("accept at a relay");
                times.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                connections.spawn(relay(near, target, orders.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// One side closed, or a fault cut it.
    Closed,
    Reset,
}

async fn relay(near: TcpStream, target: SocketAddr, orders: watch::Receiver<Orders>) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("set TCP_NODELAY");
        SockRef::from(stream).set_recv_buffer_size(NARROW_BUFFER).expect("set a receive buffer");
    }
    let first = *orders.borrow();
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let mut onwards =
        Direction { from: near_in, to: far_out, orders: orders.clone(), first, is_back: false };
    let mut back = Direction { from: far_in, to: near_out, orders, first, is_back: true };
    let end = tokio::select! {
        end = onwards.run() => end,
        end = back.run() => end,
    };
    if end == End::Reset {
        // The halves are joined, because a half that is dropped alone closes in order.
        let near = onwards.from.reunite(back.to).expect("both halves of a stream");
        let far = back.from.reunite(onwards.to).expect("both halves of a stream");
        for stream in [near, far] {
            // A socket that is closed already needs no reset.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }
}

struct Direction {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    orders: watch::Receiver<Orders>,
    /// The orders given before the connection began.
    first: Orders,
    /// Whether bytes from the target pass here. Only these are cut.
    is_back: bool,
}

impl Direction {
    async fn run(&mut self) -> End {
        let mut buffer = vec![0; READ_BYTES];
        let mut swallowed = false;
        loop {
            let orders = *self.orders.borrow_and_update();
            if orders.resets > self.first.resets {
                return End::Reset;
            }
            let hole = orders.lasting == Some(Fault::BlackHole);
            if swallowed && !hole {
                return End::Closed;
            }
            let most = match orders.lasting {
                Some(Fault::Throttle(rate)) => (rate / THROTTLE_TICKS).clamp(1, READ_BYTES),
                _ => READ_BYTES,
            };
            let read = tokio::select! {
                biased;
                changed = self.orders.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return End::Closed,
                },
                read = self.from.read(&mut buffer[..most]) => read,
            };
            let Ok(read @ 1..) = read else { return End::Closed };
            if hole {
                swallowed = true;
                continue;
            }
            let cut = self.is_back && orders.cuts > self.first.cuts;
            let portion = if cut { &buffer[..read / 2] } else { &buffer[..read] };
            match orders.lasting {
                Some(Fault::Delay(time)) => sleep(time).await,
                Some(Fault::Throttle(_)) => sleep(THROTTLE_TICK).await,
                _ => {}
            }
            if self.to.write_all(portion).await.is_err() || cut {
                return End::Closed;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{SOON, within};

    /// A relay to a peer that echoes what it reads, one connection at a time.
    async fn to_an_echo() -> (Relay, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::start(listener.local_addr().unwrap()).await;
        let mut peer = JoinSet::new();
        peer.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mut from, mut to) = stream.into_split();
                // An error ends the connection like its end.
                let _ = tokio::io::copy(&mut from, &mut to).await;
            }
        });
        (relay, peer)
    }

    /// The bytes that come back before the connection ends or falls silent.
    async fn answer(stream: &mut TcpStream, sent: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(sent).await?;
        let mut answer = vec![0; sent.len()];
        let mut length = 0;
        while length < sent.len() {
            let read = stream.read(&mut answer[length..]);
            match tokio::time::timeout(Duration::from_millis(500), read).await {
                Ok(Ok(read @ 1..)) => length += read,
                Ok(Ok(_)) | Err(_) => break,
                Ok(Err(error)) => return Err(error),
            }
        }
        answer.truncate(length);
        Ok(answer)
    }

    #[tokio::test]
    async fn each_fault_does_what_it_says() {
        let (relay, _peer) = to_an_echo().await;
        let connect = async || TcpStream::connect(relay.addr()).await.unwrap();
        let mut stream = connect().await;
        assert_eq!(answer(&mut stream, b"hello").await.unwrap(), b"hello");
        relay.inject(Fault::Delay(Duration::from_millis(100)));
        let started = Instant::now();
        assert_eq!(answer(&mut stream, b"late").await.unwrap(), b"late");
        assert!(started.elapsed() >= Duration::from_millis(200));
        relay.inject(Fault::Throttle(200));
        let started = Instant::now();
        assert_eq!(answer(&mut stream, &[7; 50]).await.unwrap(), [7; 50]);
        assert!(started.elapsed() >= Duration::from_millis(250));
        relay.heal();
        relay.inject(Fault::Cut);
        assert_eq!(answer(&mut stream, b"half of it").await.unwrap(), b"half ");
        let mut stream = connect().await;
        assert_eq!(answer(&mut stream, b"a new one").await.unwrap(), b"a new one");
        relay.inject(Fault::Reset);
        let end = within(SOON, "the reset", stream.read(&mut [0; 8])).await;
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        relay.inject(Fault::BlackHole);
        let mut stream = connect().await;
        assert_eq!(answer(&mut stream, b"is it there?").await.unwrap(), b"");
        relay.heal();
        assert_eq!(within(SOON, "the end", stream.read(&mut [0; 8])).await.unwrap(), 0);
    }

    #[test]
    fn a_schedule_is_the_same_for_the_same_seed() {
        let drawn =
            |seed| format!("{:?}", schedule(&mut Rng::with_seed(seed), 20, Duration::from_secs(1)));
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
    }
}
