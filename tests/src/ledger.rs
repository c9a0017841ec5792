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
            Ok(Some(health)) => match faults_of(&health) {
                None => return,
                Some(faults) => faults,
            },
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

/// The faults of the ledgers in a document of `/health`, which has one for each market. `None` if
/// all account for every event.
fn faults_of(health: &Value) -> Option<String> {
    let markets = markets(health);
    if markets.is_empty() {
        return Some(format!("no market in {health}"));
    }
    let faulty = |market: &Value| Some((market["market"].clone(), faults(&market["ledger"])?));
    let (market, faults) = markets.into_iter().find_map(faulty)?;
    Some(format!("of the market {market}: {faults}"))
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
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn ledger(delivered: i64, filtered: i64, received: i64) -> Value {
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
    }

    #[test]
    fn an_event_that_is_counted_nowhere_is_noticed() {
        assert_eq!(faults(&ledger(8, 3, 12)), None);
        for wrong in [ledger(7, 3, 12), ledger(8, 2, 12), ledger(8, 3, 13), json!({})] {
            assert!(faults(&wrong).is_some(), "{wrong}");
        }
    }

    #[test]
    fn the_ledger_of_each_market_has_to_balance() {
        let document = |name: &str, ledger: &Value| json!({"market": name, "ledger": ledger});
        let (good, bad) = (ledger(8, 3, 12), ledger(7, 3, 12));
        assert_eq!(faults_of(&document("stocks", &good)), None);
        assert!(faults_of(&document("stocks", &bad)).is_some());
        let several = |crypto: &Value| {
            let markets = [("stocks", &good), ("options", &good), ("crypto", crypto)];
            let markets = markets.map(|(name, ledger)| (name, document(name, ledger)));
            json!({"markets": BTreeMap::from(markets)})
        };
        assert_eq!(faults_of(&several(&good)), None);
        let faults = faults_of(&several(&bad)).expect("crypto does not balance");
        assert!(faults.starts_with(r#"of the market "crypto": "#), "{faults}");
        for empty in [json!({}), json!({"markets": {}}), json!({"markets": {"stocks": {}}})] {
            assert!(faults_of(&empty).is_some(), "{empty}");
        }
    }
}
