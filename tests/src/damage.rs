//! What a market may send that is no event, and events that are no JSON.

use fastrand::Rng;
use polygon_sim::{Fault, SimHandle};

/// Text messages without an event. They cost nothing, so no client may hear of them.
pub const WITHOUT_EVENTS: [&str; 8] = [
    "",
    "\r\n",
    "null",
    "heartbeat",
    "[]",
    "[null]",
    r#"[{"status":"disconnected","message":"maintenance"}]"#,
    r#"[{"ev":"","status":"notice","message":"hello"}]"#,
];

/// Binary messages without an event.
pub const BINARY_HEARTBEATS: [&[u8]; 2] = [b"", b"\x01"];

/// Elements of an array that are no objects.
pub const NO_OBJECTS: [&str; 7] = ["null", "5", "\"x\"", "[]", "[[1],\"]\"]", "NaN", ""];

/// Trades of `AAPL` that a strict JSON parser refuses. Their quotes and brackets match.
#[must_use]
pub fn malformed_events() -> Vec<String> {
    let nested = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    let values = [
        "\"a\nb\"",
        "\"\u{0}\"",
        "\"\u{1f}\"",
        r#""\x""#,
        "NaN",
        "-Infinity",
        "01",
        "1.2.3",
        "+1",
        ".5",
        "[1,]",
        "",
        "1,",
        "1 2",
        "'a'",
        "True",
        &nested,
    ];
    let event = |value: &&str| format!(r#"{{"ev":"T","sym":"AAPL","x":{value}}}"#);
    let mut events: Vec<_> = values.iter().map(event).collect();
    events.push(r#"{"ev":"T","sym":"AAPL"}}"#.to_owned());
    events.push(r#"{"ev":"T",,"sym":"AAPL"}"#.to_owned());
    events.push(r#"{"ev":"T";"sym":"AAPL"}"#.to_owned());
    events
}

/// How a market sends good events among others.
#[derive(Debug)]
pub struct Damage {
    rng: Rng,
    malformed: Vec<String>,
    /// Frames sent that held malformed events.
    pub malformed_frames: usize,
}

impl Damage {
    /// No damage yet. The seed determines it.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed), malformed: malformed_events(), malformed_frames: 0 }
    }

    /// Sends these events in one frame, mostly with nothing else. Sometimes a message without
    /// events goes before it, or elements stand among them that are no objects or no JSON.
    pub fn publish(&mut self, market: &SimHandle, events: &[String]) {
        let choose = |rng: &mut Rng, among: &[&str]| among[rng.usize(..among.len())].to_owned();
        match self.rng.u8(..20) {
            0 => {
                market.publish_raw(&choose(&mut self.rng, &WITHOUT_EVENTS));
                market.publish(events);
            }
            1 => {
                let bytes = BINARY_HEARTBEATS[self.rng.usize(..BINARY_HEARTBEATS.len())].to_vec();
                market.inject(Fault::RawBinary { bytes });
                market.publish(events);
            }
            kind @ (2 | 3) => {
                let mut elements = events.to_vec();
                for _ in 0..self.rng.usize(1..4) {
                    let bad = match kind {
                        2 => choose(&mut self.rng, &NO_OBJECTS),
                        _ => self.malformed[self.rng.usize(..self.malformed.len())].clone(),
                    };
                    elements.insert(self.rng.usize(..=elements.len()), bad);
                }
                self.malformed_frames += usize::from(kind == 3);
                market.publish_raw(&format!("[{}]", elements.join(",")));
            }
            _ => market.publish(events),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parser_refuses_each_malformed_event() {
        for event in malformed_events() {
            assert!(serde_json::from_str::<serde_json::Value>(&event).is_err(), "{event}");
        }
    }
}
