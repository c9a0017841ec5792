//! Whether a program's counters account for every event that it received.
//!
//! The sums are computed here from the counts in `/health` and then compared with the program's own
//! verdict.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::http::{Response, markets};

/// How long the counters of a busy program may take to agree at one moment.
const LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Checks that the ledger of a running program balances. It blocks, so that it can run when a
/// program is dropped. If the program has stopped listening, it prints a line and checks nothing.
///
/// # Panics
///
/// If the ledger does not balance in time, or if the program does not answer.
pub fn check(name: &str, addr: SocketAddr) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let wrong = match health(addr) {
            Ok(None) => {
                eprintln!("{name} has stopped listening: its ledger is not checked");
                return;
            }
            Ok(Some(health)) => {
                match markets(&health).into_iter().find_map(|market| faults(&market["ledger"])) {
                    None => return,
                    Some(faults) => faults,
                }
            }
            Err(error) => error,
        };
        assert!(Instant::now() < deadline, "the ledger of {name}: {wrong}");
        #[expect(clippy::disallowed_methods, reason = "a condition with a deadline, in a drop")]
        std::thread::sleep(POLL);
    }
}

/// The document of `/health`. `None` if nothing listens there.
fn health(addr: SocketAddr) -> Result<Option<Value>, String> {
    let mut stream = match TcpStream::connect_timeout(&addr, LIMIT) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => return Err(format!("no connection to {addr}: {error}")),
    };
    let mut answer = || -> std::io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(LIMIT))?;
        let request = format!("GET /health HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = answer().map_err(|error| format!("no answer from {addr}: {error}"))?;
    let text = || String::from_utf8_lossy(&bytes).into_owned();
    let response = Response::parse(&bytes).ok_or_else(|| format!("no HTTP: {:?}", text()))?;
    serde_json::from_str(&response.body).map_err(|error| format!("{error}: {:?}", text()))
}

/// The faults of a ledger from `/health`. `None` if it accounts for every event.
#[must_use]
pub fn faults(ledger: &Value) -> Option<String> {
    let count = |pointer: &str| ledger.pointer(pointer).and_then(Value::as_i64);
    let sum = |names: &[&str]| names.iter().map(|name| count(name)).sum::<Option<i64>>();
    let sides = [
        (sum(&["/intake/received"]), sum(&["/intake/routed", "/intake/malformed"])),
        (
            sum(&["/intake/routed"]),
            sum(&["/intake/subscribed", "/intake/not_subscribed", "/intake/oversize"]),
        ),
        (
            sum(&["/sessions/owed"]),
            sum(&[
                "/sessions/delivered",
                "/sessions/queued",
                "/sessions/slow_consumer",
                "/sessions/session_closed",
                "/sessions/ring_overrun",
            ]),
        ),
    ];
    let even = sides.iter().all(|(left, right)| left.is_some() && left == right);
    let said = ledger["balanced"].as_bool() == Some(true);
    (!even || !said).then(|| format!("{sides:?} in {ledger}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_that_is_counted_nowhere_is_noticed() {
        let ledger = |delivered: i64, filtered: i64, received: i64| {
            json!({
                "balanced": true,
                "intake": {
                    "received": received, "routed": 10, "subscribed": 6,
                    "not_subscribed": filtered, "oversize": 1, "malformed": 2,
                },
                "sessions": {
                    "owed": 12, "delivered": delivered, "queued": 1, "slow_consumer": 1,
                    "session_closed": 1, "ring_overrun": 1,
                },
            })
        };
        assert_eq!(faults(&ledger(8, 3, 12)), None);
        for wrong in [ledger(7, 3, 12), ledger(8, 2, 12), ledger(8, 3, 13), json!({})] {
            assert!(faults(&wrong).is_some(), "{wrong}");
        }
    }
}
