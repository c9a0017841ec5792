//! Limits for each client address: connections at once, and requests a second.
//!
//! Loopback addresses are not limited, because one of them stands for every program of the machine.

use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, MonotonicClock},
    middleware::NoOpMiddleware,
    state::keyed::HashMapStateStore,
};

use super::{client_address::AddressKey, command_rate::BURST_SECONDS};

/// Connections of one address beyond its limit of sessions, for probes and for answers that refuse
/// a request.
const SPARE_PER_ADDRESS: usize = 32;
/// Addresses that have a request budget of their own. While there are this many, all requests share
/// one more budget, so that memory stays bounded.
const MAX_ADDRESSES: usize = 65_536;

/// Counts the connections of each address.
#[derive(Debug)]
pub(super) struct AddressLimit {
    most: usize,
    /// Has an entry only while its address has a connection, so the limit on connections bounds it.
    /// The lock is held for a few instructions.
    held: Mutex<HashMap<AddressKey, usize>>,
}

/// Counts a connection for its address until it is dropped.
#[derive(Debug)]
pub struct AddressPermit {
    limit: Arc<AddressLimit>,
    key: AddressKey,
}

/// The address has reached its limit of connections.
#[derive(Debug)]
pub(super) struct AddressFull;

/// A permit for an address; `None` for loopback.
type Counted = Result<Option<AddressPermit>, AddressFull>;

impl AddressLimit {
    /// Allows each address `most` sessions, which must be at least one.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, held: Mutex::default() })
    }

    /// Counts an accepted connection before its request is known. `None` for loopback.
    ///
    /// The limit is higher than for sessions, so that requests beyond that limit get an answer.
    ///
    /// # Errors
    ///
    /// The address has no spare connection left.
    pub(super) fn connect(self: &Arc<Self>, address: IpAddr) -> Counted {
        self.count(address, self.most.saturating_add(SPARE_PER_ADDRESS))
    }

    /// Counts a session that came through a trusted proxy, whose connection is not counted. `None`
    /// for loopback.
    ///
    /// # Errors
    ///
    /// The address has reached its limit of sessions.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Counted {
        self.count(address, self.most)
    }

    fn count(self: &Arc<Self>, address: IpAddr, most: usize) -> Counted {
        let Some(key) = AddressKey::of(address) else { return Ok(None) };
        let mut held = self.lock();
        let count = held.entry(key).or_insert(0);
        // A limit is at least one, so a refusal never leaves an entry of zero.
        if *count >= most {
            return Err(AddressFull);
        }
        *count += 1;
        Ok(Some(AddressPermit { limit: Arc::clone(self), key }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AddressKey, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AddressPermit {
    /// Whether its address has more connections than it may have sessions, this one among them.
    pub fn is_beyond_limit(&self) -> bool {
        self.limit.lock().get(&self.key).is_some_and(|&count| count > self.limit.most)
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut held = self.limit.lock();
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
                // Give back the memory of a crowd that has left.
                if held.capacity() > 1_024 && held.len() < held.capacity() / 8 {
                    held.shrink_to_fit();
                }
            }
        }
    }
}

type Limiter<C> = RateLimiter<
    Option<AddressKey>,
    HashMapStateStore<Option<AddressKey>>,
    C,
    NoOpMiddleware<<C as Clock>::Instant>,
>;

/// Limits the requests of each address, by the time of its clock.
pub(super) struct RequestRate<C: Clock = MonotonicClock> {
    /// `None` is the budget that addresses share while there are too many.
    limiter: Limiter<C>,
    clock: C,
}

impl RequestRate {
    /// Allows each address `count` requests a second, at least one, and ten times as many at once.
    pub(super) fn per_second(count: u32) -> Self {
        Self::with_clock(count, MonotonicClock)
    }
}

impl<C: Clock + Clone> RequestRate<C> {
    fn with_clock(count: u32, clock: C) -> Self {
        let rate = NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        let burst = rate.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_SECONDS - 1));
        let quota = Quota::per_second(rate).allow_burst(burst);
        Self { limiter: RateLimiter::hashmap_with_clock(quota, clock.clone()), clock }
    }

    /// Takes one request from the budget of an address.
    ///
    /// # Errors
    ///
    /// The budget is empty. The value is the time to wait.
    pub(super) fn take(&self, address: IpAddr) -> Result<(), Duration> {
        let Some(key) = AddressKey::of(address) else { return Ok(()) };
        let key = (self.limiter.len() < MAX_ADDRESSES).then_some(key);
        self.limiter.check_key(&key).map_err(|refusal| refusal.wait_time_from(self.clock.now()))
    }

    /// Forgets the addresses whose budget is full again. Call it about once a second.
    pub(super) fn tick(&self) {
        if !self.limiter.is_empty() {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn permit(counted: Counted) -> AddressPermit {
        match counted {
            Ok(Some(permit)) => permit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_address_has_a_limit_of_sessions_and_some_spare_connections() {
        let limit = AddressLimit::new(2);
        let one = address("192.0.2.1");
        let first = permit(limit.admit(one));
        let second = permit(limit.admit(one));
        assert!(!second.is_beyond_limit());
        assert!(matches!(limit.admit(one), Err(AddressFull)));
        let spare: Vec<_> = (0..SPARE_PER_ADDRESS).map(|_| permit(limit.connect(one))).collect();
        assert!(spare[0].is_beyond_limit());
        assert!(matches!(limit.connect(one), Err(AddressFull)));
        // Another address is not affected.
        drop(permit(limit.admit(address("192.0.2.2"))));
        drop((spare, first));
        let third = permit(limit.admit(one));
        drop((second, third));
        assert!(limit.lock().is_empty());
    }

    #[test]
    fn loopback_is_not_limited() {
        let (limit, rate) = (AddressLimit::new(1), RequestRate::per_second(1));
        for _ in 0..100 {
            assert!(matches!(limit.connect(address("127.0.0.1")), Ok(None)));
            assert!(matches!(limit.admit(address("::1")), Ok(None)));
            assert_eq!(rate.take(address("127.0.0.1")), Ok(()));
        }
        assert!(limit.lock().is_empty() && rate.limiter.is_empty());
    }

    #[test]
    fn requests_come_in_a_burst_and_then_at_the_rate() {
        let clock = FakeRelativeClock::default();
        let rate = RequestRate::with_clock(2, clock.clone());
        let (one, two) = (address("192.0.2.1"), address("192.0.2.2"));
        for _ in 0..20 {
            assert_eq!(rate.take(one), Ok(()));
        }
        assert_eq!(rate.take(one), Err(Duration::from_millis(500)));
        assert_eq!(rate.take(two), Ok(()));
        clock.advance(Duration::from_millis(500));
        assert_eq!(rate.take(one), Ok(()));
        assert!(rate.take(one).is_err());
    }

    #[test]
    fn addresses_are_forgotten_and_their_number_is_bounded() {
        let clock = FakeRelativeClock::default();
        let rate = RequestRate::with_clock(1, clock.clone());
        for n in 0..MAX_ADDRESSES as u32 + 100 {
            let result = rate.take(IpAddr::V4((0x0b00_0000 + n).into()));
            // Addresses beyond the limit share one budget.
            assert_eq!(result.is_ok(), n < MAX_ADDRESSES as u32 + 10, "{n}");
        }
        assert_eq!(rate.limiter.len(), MAX_ADDRESSES + 1);
        rate.tick();
        assert_eq!(rate.limiter.len(), MAX_ADDRESSES + 1);
        clock.advance(Duration::from_secs(2));
        rate.tick();
        assert_eq!(rate.limiter.len(), 1);
        clock.advance(Duration::from_secs(20));
        rate.tick();
        assert!(rate.limiter.is_empty());
        assert_eq!(rate.take(address("11.0.0.1")), Ok(()));
    }
}
