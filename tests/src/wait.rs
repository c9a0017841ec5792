//! Waiting with a deadline. A test that hangs is a test that fails with the name of what it waited
//! for.

use std::{future::Future, net::SocketAddr, time::Duration};

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// The deadline for anything that takes milliseconds on an idle machine. Long, because a busy
/// machine is no bug.
pub const SOON: Duration = Duration::from_secs(20);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// The result of the future.
///
/// # Panics
///
/// It is not there within the limit; the message names what was waited for.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {limit:?}"),
    }
}

/// Returns once the condition holds.
///
/// # Panics
///
/// It does not hold within the limit; the message names what was waited for.
pub async fn eventually(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            sleep(POLL).await;
        }
    };
    within(limit, what, holds).await;
}

/// Returns once something listens there.
///
/// # Panics
///
/// Nothing does before long.
pub async fn listens(addr: SocketAddr) {
    let what = format!("a listener at {addr}");
    eventually(SOON, &what, async || TcpStream::connect(addr).await.is_ok()).await;
}

/// Returns when the condition has held all the time, looked at every few milliseconds: for what
/// must *not* happen.
///
/// # Panics
///
/// The condition fails once; the message names it.
pub async fn holds_for(time: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(condition().await, "{what}: no longer so");
        sleep(POLL).await;
    }
}
