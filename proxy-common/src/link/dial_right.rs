//! The right to dial an upstream, for programs of which only one may.
//!
//! Whoever decides who that is holds the [`DialGrant`]. It gives the right until one time, and
//! lets connections live until a later one. A [`Watchdog`] ends them then, even if nothing else in
//! the program gets any time.

use std::{
    net::{Shutdown, TcpStream as Socket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use slab::Slab;
use tokio::{net::TcpStream, sync::watch};
use tracing::warn;

use super::error::LinkError;

/// How often the watchdog looks.
const WATCHING: Duration = Duration::from_millis(10);

/// How long this machine has been up. Where the system counts it, the time that it slept is part of
/// that: a right must not outlive a night.
pub fn uptime() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = ClockId::Monotonic;
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The right to dial, as links see it. Can be cloned.
#[derive(Debug, Clone)]
pub struct DialRight(Arc<Shared>);

/// Gives and takes the right.
#[derive(Debug)]
pub struct DialGrant(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Locked for a moment: to look at the times, or to add, remove or shut sockets.
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    /// Until when links may dial and log in, by [`uptime`].
    dial_until: Duration,
    /// Until when their connections may live.
    keep_until: Duration,
    /// Whether it was taken since it was last given. A right that only ran out may come back.
    taken: bool,
    /// Why links may not dial, while they may not.
    why: String,
    /// The sockets of the links' connections, once more.
    sockets: Slab<Socket>,
    /// How often connections were ended.
    ended: u64,
}

/// A connection that the right's end closes. Dropping it forgets the connection.
#[derive(Debug)]
pub(super) struct Guarded {
    shared: Arc<Shared>,
    key: usize,
}

impl DialGrant {
    /// A right that nobody has yet. `why` is the reason that links report.
    pub fn new(why: impl Into<String>) -> (Self, DialRight) {
        let (zero, why) = (Duration::ZERO, why.into());
        let sockets = Slab::new();
        let (taken, ended) = (true, 0);
        let state = State { dial_until: zero, keep_until: zero, taken, why, sockets, ended };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: watch::Sender::new(()) });
        (Self(Arc::clone(&shared)), DialRight(shared))
    }

    /// Links may dial until `dial_until`, and keep connections until `keep_until`, both by
    /// [`uptime`]. `why` is the reason that they report after the former.
    pub fn give(&self, dial_until: Duration, keep_until: Duration, why: impl Into<String>) {
        self.change(|state| {
            (state.dial_until, state.keep_until, state.taken) = (dial_until, keep_until, false);
            state.why = why.into();
        });
    }

    /// Takes the right, and ends all connections. `why` is the reason that links report.
    pub fn take(&self, why: impl Into<String>) {
        self.change(|state| {
            (state.dial_until, state.keep_until) = (Duration::ZERO, Duration::ZERO);
            state.taken = true;
            state.why = why.into();
            state.end();
        });
    }

    /// How often connections were ended because the right was over.
    pub fn ended(&self) -> u64 {
        self.0.lock().ended
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock());
        self.0.changed.send_replace(());
    }
}

impl DialRight {
    /// The right for one step of dialling. To be asked directly before the step.
    ///
    /// # Errors
    ///
    /// Links may not dial.
    pub(super) fn check(&self) -> Result<(), LinkError> {
        let state = self.0.lock();
        match uptime() < state.dial_until {
            true => Ok(()),
            false => Err(LinkError::Standby(state.why.clone())),
        }
    }

    /// Waits until links may dial, or the reason why they may not has changed from `known`.
    pub(super) async fn changed(&self, known: &str) {
        self.until(|state| uptime() < state.dial_until || state.why != known).await;
    }

    /// Waits until the right is taken. A right that only ran out may come back.
    pub(super) async fn taken(&self) {
        self.until(|state| state.taken).await;
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        let mut changes = self.0.changed.subscribe();
        loop {
            changes.borrow_and_update();
            if holds(&self.0.lock()) {
                return;
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Lets the end of the right close this connection, until the guard is dropped.
    ///
    /// # Errors
    ///
    /// Links may not dial, or the system has no descriptor left.
    pub(super) fn guard(&self, tcp: TcpStream) -> Result<(TcpStream, Guarded), LinkError> {
        let unreachable = |error: std::io::Error| LinkError::Unreachable(error.to_string());
        let tcp = tcp.into_std().map_err(unreachable)?;
        let second = tcp.try_clone().map_err(unreachable)?;
        let key = {
            let mut state = self.0.lock();
            if uptime() >= state.dial_until {
                return Err(LinkError::Standby(state.why.clone()));
            }
            state.sockets.insert(second)
        };
        let guarded = Guarded { shared: Arc::clone(&self.0), key };
        Ok((TcpStream::from_std(tcp).map_err(unreachable)?, guarded))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Ends all connections. Both directions at once: nothing that is still unread counts.
    fn end(&mut self) {
        for (_, socket) in &self.sockets {
            if socket.shutdown(Shutdown::Both).is_ok() {
                self.ended += 1;
            }
        }
    }

    /// Ends connections whose time is over. Returns whether there were any.
    fn end_overdue(&mut self) -> bool {
        let ended = self.ended;
        if !self.sockets.is_empty() && uptime() >= self.keep_until {
            self.end();
        }
        self.ended > ended
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.shared.lock().sockets.try_remove(self.key);
    }
}

/// A thread that ends connections whose time is over. Dropping it ends the thread within 10 ms.
#[derive(Debug)]
pub struct Watchdog(Arc<AtomicBool>);

impl Watchdog {
    /// Watches over these rights.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub fn start(rights: Vec<DialRight>) -> std::io::Result<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopped);
        thread::Builder::new().name("lease-watchdog".to_owned()).spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                for right in &rights {
                    if right.0.lock().end_overdue() {
                        warn!("the lease could not be renewed for too long: connection closed");
                    }
                }
                thread::park_timeout(WATCHING);
            }
        })?;
        Ok(Self(stopped))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener, time::timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const SOON: Duration = Duration::from_secs(10);

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn no_step_is_taken_without_the_right() {
        let (grant, right) = DialGrant::new("standby: A holds the lease");
        let refused = LinkError::Standby("standby: A holds the lease".to_owned());
        assert_eq!(right.check(), Err(refused.clone()));
        assert_eq!(right.guard(connected().await.0).err(), Some(refused));
        grant.give(uptime() + SECOND, uptime() + SECOND, "late");
        assert_eq!(right.check(), Ok(()));
        grant.give(uptime(), uptime() + SECOND, "late");
        assert_eq!(right.check(), Err(LinkError::Standby("late".to_owned())));
    }

    #[tokio::test]
    async fn a_link_waits_for_the_right_or_another_reason() {
        let (grant, right) = DialGrant::new("one");
        let mut waiting = Box::pin(right.changed("one"));
        assert!(timeout(Duration::from_millis(10), &mut waiting).await.is_err());
        grant.take("one");
        assert!(timeout(Duration::from_millis(10), &mut waiting).await.is_err());
        grant.take("two");
        timeout(SOON, waiting).await.unwrap();
        timeout(SOON, right.taken()).await.unwrap();
        let waiting = right.changed("two");
        grant.give(uptime() + SOON, uptime() + SOON, "two");
        timeout(SOON, waiting).await.unwrap();
        let mut taken = Box::pin(right.taken());
        grant.give(uptime(), uptime() + SOON, "ran out");
        assert!(timeout(Duration::from_millis(10), &mut taken).await.is_err());
        grant.take("three");
        timeout(SOON, taken).await.unwrap();
    }

    #[tokio::test]
    async fn the_watchdog_ends_what_is_overdue_and_nothing_else() {
        let (grant, right) = DialGrant::new("");
        let _watchdog = Watchdog::start(vec![right.clone()]).unwrap();
        grant.give(uptime() + SOON, uptime() + SOON, "");
        let ((near, mut far), (forgotten, mut other)) = (connected().await, connected().await);
        let (mut near, _guarded) = right.guard(near).unwrap();
        let (_forgotten, guarded) = right.guard(forgotten).unwrap();
        drop(guarded);
        let mut byte = [0];
        let early = timeout(Duration::from_millis(50), near.read(&mut byte)).await;
        assert!(early.is_err(), "its time is not over");
        grant.give(uptime(), uptime() + Duration::from_millis(20), "");
        assert_eq!(timeout(SOON, near.read(&mut byte)).await.unwrap().unwrap(), 0);
        assert_eq!(timeout(SOON, far.read(&mut byte)).await.unwrap().unwrap(), 0);
        assert!(timeout(Duration::from_millis(50), other.read(&mut byte)).await.is_err());
    }

    #[tokio::test]
    async fn taking_the_right_ends_connections_at_once() {
        let (grant, right) = DialGrant::new("");
        grant.give(uptime() + SOON, uptime() + SOON, "");
        let (near, mut far) = connected().await;
        let (_near, _guarded) = right.guard(near).unwrap();
        grant.take("lost");
        assert_eq!(timeout(SOON, far.read(&mut [0])).await.unwrap().unwrap(), 0);
        assert_eq!(grant.ended(), 1);
    }
}
