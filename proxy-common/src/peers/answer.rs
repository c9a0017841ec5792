//! What a program says of itself, and what another one takes of it.

use serde::{Deserialize, Serialize};

use crate::{
    health::{Health, HealthStatus, Lag, Peer},
    nats::Instance,
    protocol::TierName,
};

/// The longest answer in bytes. A program with more to say says the beginning of it.
pub(super) const MAX_ANSWER: usize = 256 << 10;
/// How many problems a shortened answer holds, and how many characters of each.
const PROBLEMS: usize = 20;
const PROBLEM: usize = 500;
/// The longest text that is taken of an answer, in characters.
const MAX_TEXT: usize = 100;

#[derive(Debug, Serialize)]
struct Answer<'a, T> {
    tier: &'a str,
    instance: &'a str,
    host: &'a str,
    health: T,
}

/// A document of `/health` without its lists.
#[derive(Debug, Serialize)]
struct Short<'a> {
    status: HealthStatus,
    version: &'a str,
    market: &'a str,
    problems: Vec<String>,
    lag: Option<Lag>,
}

/// The answer of this program, as JSON. Its document must not list the others.
pub(super) fn write(tier: TierName, instance: &Instance, health: &Health) -> String {
    let Instance { id, host } = instance;
    let whole = Answer { tier: tier.name(), instance: id, host, health };
    let text = serde_json::to_string(&whole).unwrap_or_default();
    if text.len() <= MAX_ANSWER {
        return text;
    }
    let problems = health.problems.iter().take(PROBLEMS);
    let short = Short {
        status: health.status,
        version: health.version,
        market: health.market,
        problems: problems.map(|text| text.chars().take(PROBLEM).collect()).collect(),
        lag: health.lag,
    };
    let short = Answer { tier: tier.name(), instance: id, host, health: short };
    serde_json::to_string(&short).unwrap_or_default()
}

/// Reads the answer of another program. `None` if it is none, or too long.
pub(super) fn read(payload: &[u8]) -> Option<Peer> {
    #[derive(Deserialize)]
    struct Received {
        tier: String,
        instance: String,
        host: String,
        health: Parts,
    }
    #[derive(Deserialize)]
    struct Parts {
        status: String,
        version: String,
        lag: Option<Lag>,
        lease: Option<Lease>,
    }
    #[derive(Deserialize)]
    struct Lease {
        role: Option<String>,
    }
    if payload.len() > MAX_ANSWER {
        return None;
    }
    let Received { tier, instance, host, health } = serde_json::from_slice(payload).ok()?;
    let bounded = |text: String| text.chars().take(MAX_TEXT).collect::<String>();
    Some(Peer {
        tier: bounded(tier),
        instance: bounded(instance),
        host: bounded(host),
        version: bounded(health.version),
        status: bounded(health.status),
        role: health.lease.and_then(|lease| lease.role).map(bounded),
        lag: health.lag,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_bounded() {
        let answer = |host: &str| {
            format!(
                r#"{{"tier":"filtered","instance":"7f","host":"{host}","health":{{"status":"ok",
                   "version":"9","lag":{{"messages":3,"milliseconds":4}},"later":[1]}}}}"#
            )
        };
        let peer = read(answer("a").as_bytes()).unwrap();
        assert_eq!((&*peer.tier, &*peer.instance, &*peer.host), ("filtered", "7f", "a"));
        assert_eq!((&*peer.status, &*peer.version, peer.role), ("ok", "9", None));
        assert_eq!(peer.lag, Some(Lag { messages: 3, milliseconds: 4 }));
        let long = read(answer(&"é".repeat(5_000)).as_bytes()).unwrap();
        assert_eq!(long.host, "é".repeat(MAX_TEXT));
        assert_eq!(read(answer(&"a".repeat(MAX_ANSWER)).as_bytes()), None);
        for none in ["", "{}", r#"{"tier":"filtered"}"#, "[]"] {
            assert_eq!(read(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn the_part_in_the_lease_is_read() {
        let text = r#"{"tier":"firehose","instance":"1","host":"h","health":{"status":"down",
                      "version":"9","lease":{"role":"standby","holder":"x"}}}"#;
        assert_eq!(read(text.as_bytes()).unwrap().role.as_deref(), Some("standby"));
    }
}
