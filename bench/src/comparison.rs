//! The filtered tier beside the peer and the floor, with the goal of each row.

use crate::{
    number::short,
    search::median,
    sheet::{Case, Sheet, markdown},
};

/// How the filtered tier alone should stand to the peer.
#[derive(Debug, Clone, Copy)]
enum OfPeer {
    /// At least this many times the peer's figure.
    AtLeast(f64),
    /// At most this many times the peer's figure.
    AtMost(f64),
}

/// The rows: scenario, figure, goal. A client that is idle may cost more than the peer's by what
/// its limits, its counters and its ledger take.
const ROWS: [(&str, &str, OfPeer); 17] = [
    ("S1", "rate without loss", OfPeer::AtLeast(1.0)),
    ("S1", "CPU of all programs", OfPeer::AtMost(1.0)),
    ("S1", "p50 at 1M", OfPeer::AtMost(1.0)),
    ("S1", "p99 at 1M", OfPeer::AtMost(1.0)),
    ("S1", "CPU at 1M", OfPeer::AtMost(1.0)),
    ("S2", "rate without loss", OfPeer::AtLeast(1.0)),
    ("S3", "rate without loss", OfPeer::AtLeast(1.0)),
    ("S3", "p50 at 50k", OfPeer::AtMost(1.0)),
    ("S3", "p99 at 50k", OfPeer::AtMost(1.0)),
    ("S3", "CPU at 50k", OfPeer::AtMost(1.0)),
    ("S3", "p50 at 200k", OfPeer::AtMost(1.0)),
    ("S3", "p99 at 200k", OfPeer::AtMost(1.0)),
    ("S3", "CPU at 200k", OfPeer::AtMost(1.0)),
    ("S3", "p50 at 500k", OfPeer::AtMost(1.0)),
    ("S3", "CPU at 500k", OfPeer::AtMost(1.0)),
    ("S4", "resident for each client", OfPeer::AtMost(1.42)),
    ("S5", "CPU of all programs", OfPeer::AtMost(1.0)),
];

/// The comparison with the peer, as Markdown. `None` if there was no peer. If other programs
/// disturbed the run, each result says so.
pub fn comparison(sheet: &Sheet, disturbed: bool) -> Option<String> {
    let but = if disturbed { " (disturbed)" } else { "" };
    let head = ["scenario", "figure", "floor", "peer", "alone", "both", "of peer", "goal", ""];
    let mut rows = vec![head.map(str::to_owned)];
    for (scenario, name, goal) in ROWS {
        let of = |shape| sheet.figure(Case { scenario, shape }, name);
        let (Some(peer), Some(alone)) = (of("peer"), of("alone")) else { continue };
        let floor = sheet.floor_of(alone);
        let of_peer = median(alone.runs.clone()) / median(peer.runs.clone());
        let (goal, reached) = match goal {
            OfPeer::AtLeast(least) => (format!("at least {least} of the peer"), of_peer >= least),
            OfPeer::AtMost(most) => (format!("at most {most} of the peer"), of_peer <= most),
        };
        let value = |runs: &Vec<f64>| short(median(runs.clone()));
        rows.push([
            scenario.to_owned(),
            format!("{name}, {}", alone.unit),
            floor.map(short).unwrap_or_default(),
            value(&peer.runs),
            value(&alone.runs),
            of("both").map(|both| value(&both.runs)).unwrap_or_default(),
            format!("{of_peer:.2}"),
            goal,
            format!("{}{but}", if reached { "reached" } else { "NOT reached" }),
        ]);
    }
    (rows.len() > 1).then(|| markdown(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sheet::Goal;

    #[test]
    fn each_row_has_the_goal_that_the_peer_sets() {
        let mut sheet = Sheet::default();
        let mut note = |shape, name, value| {
            sheet.note(Case { scenario: "S1", shape }, name, "x", value, None, Goal::None);
        };
        note("alone", "rate without loss", 8.0);
        note("alone", "CPU at 1M", 0.5);
        note("peer", "CPU at 1M", 0.4);
        let table = comparison(&sheet, false).unwrap();
        assert!(table.contains("| 1.25    | at most 1 of the peer | NOT reached |"), "{table}");
        assert!(!table.contains("rate without loss"), "the peer has none: {table}");
        let case = Case { scenario: "S1", shape: "peer" };
        sheet.note(case, "rate without loss", "x", 7.0, None, Goal::None);
        let table = comparison(&sheet, true).unwrap();
        assert!(table.contains("at least 1 of the peer | reached (disturbed)"), "{table}");
        assert!(comparison(&Sheet::default(), false).is_none());
    }
}
