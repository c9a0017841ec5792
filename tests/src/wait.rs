//! Waiting with a deadline. A test that hangs fails with the name of what it waited for.

use std::{future::Future, net::SocketAddr, time::Duration};

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// The deadline for anything that takes milliseconds on an idle machine. It is long, because a busy
/// machine is not a fault.
pub const SOON: Duration = Duration::from_secs(20);

/// How often a condition is checked.
const POLL: Duration = Duration::from_millis(10);

/// The result of the future.
///
/// # Panics
///
/// If the future does not complete within the limit. The message names `what`.
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
/// If it does not hold within the limit. The message names `what`.
pub async fn eventually(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            sleep(POLL).await;
        }
    };
    within(limit, what, holds).await;
}

/// Returns once a program listens at this address.
///
/// # Panics
///
/// If none does in time.
pub async fn listens(addr: SocketAddr) {
    let what = format!("a listener at {addr}");
    eventually(SOON, &what, async || TcpStream::connect(addr).await.is_ok()).await;
}

/// Checks every few milliseconds that the condition holds all the time. Use it for things that must
/// *not* happen.
///
/// # Panics
///
/// If the condition fails once. The message names `what`.
pub async fn holds_for(time: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(condition().await, "{what}: no longer true");
        sleep(POLL).await;
    }
}
