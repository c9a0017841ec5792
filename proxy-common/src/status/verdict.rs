//! What is wrong, what to do about each problem, and one sentence about all of it. Pure.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::{
    link::{LinkError, LinkState, LinkStatus},
    protocol::{TierName, summarize_channels},
};

/// How long the operator may leave a lost connection to the program.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the operator should do, from nothing to the most urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing.
    None,
    /// Look at it when there is time. Data flows.
    Look,
    /// Wait: the program mends it.
    Wait,
    /// Restart a program of one's own, or correct its settings.
    Restart,
    /// Call the vendor.
    Vendor,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What is wrong, and since when.
    pub what: String,
    /// What to do about it.
    pub advice: String,
    /// The kind of advice.
    pub action: Action,
}

/// One sentence about all problems.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The most urgent action.
    pub action: Action,
    /// What to do.
    pub sentence: String,
}

/// What there is to know about a market.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) tier: TierName,
    pub(super) links: &'a [LinkStatus],
    /// At the firehose, the types that are silent. At the filtered proxy, what the firehose reports
    /// of its own upstream.
    pub(super) reported: &'a [String],
    /// What the program itself has failed to do beside the stream.
    pub(super) failures: &'a [String],
    /// How long the tier has reported something.
    pub(super) reported_for: Duration,
    /// Events that the ledger has not accounted for during a minute.
    pub(super) unaccounted: i64,
    pub(super) now: SystemTime,
}

/// The problems of a market.
pub(super) fn problems(facts: &Facts<'_>) -> Vec<Problem> {
    let mut found: Vec<Problem> =
        facts.links.iter().flat_map(|link| of_link(link, facts)).collect();
    for what in facts.reported {
        let (advice, action) = match facts.tier {
            TierName::Firehose => ("Call the vendor.", Action::Vendor),
            TierName::Filtered if facts.reported_for < PATIENCE => {
                ("Wait: the firehose connects again by itself.", Action::Wait)
            }
            TierName::Filtered if is_about_the_key(what) => {
                ("Look at the page of the firehose: it says what to correct.", Action::Restart)
            }
            TierName::Filtered => (
                "Look at the page of the firehose. If it says so too, call the vendor.",
                Action::Vendor,
            ),
        };
        found.push(problem(capitalized(what), advice, action));
    }
    for what in facts.failures {
        let advice = "The stream is whole. Mend the cause, then restart this program.";
        found.push(problem(capitalized(what), advice, Action::Look));
    }
    if facts.unaccounted != 0 {
        let what = format!(
            "The ledger does not account for {} events for a minute.",
            facts.unaccounted.abs()
        );
        let advice = "This is a bug. Report it with /health, and compare the clients' data.";
        found.push(problem(what, advice, Action::Look));
    }
    found
}

/// Whether the vendor refuses the key, or gives the connection to another program. The notices of
/// the firehose hold the words of its link.
fn is_about_the_key(notice: &str) -> bool {
    [LinkError::LABELS[2], LinkError::LABELS[3]].iter().any(|label| notice.contains(label))
}

fn of_link(link: &LinkStatus, facts: &Facts<'_>) -> Vec<Problem> {
    let LinkStatus { upstream, url, channels, .. } = link;
    if link.state == LinkState::Standby {
        return Vec::new();
    }
    if link.state != LinkState::Up {
        let down = facts.now.duration_since(link.since).unwrap_or_default();
        let why = link.last_error.as_ref().map_or_else(
            || "the first attempt has not ended".to_owned(),
            |last| last.error.to_string(),
        );
        let what = format!(
            "No connection to {upstream} at {url} for {}: {why}.",
            humantime::format_duration(Duration::from_secs(down.as_secs()))
        );
        let (advice, action) = match (link.last_error.as_ref().map(|last| &last.error), facts.tier)
        {
            (Some(LinkError::AuthFailed(_)), _) => (
                format!("Correct the key for {upstream}, then restart this program."),
                Action::Restart,
            ),
            (Some(LinkError::MaxConnections(_)), _) => (
                "Stop the other program that uses the account's connection.".to_owned(),
                Action::Restart,
            ),
            (Some(LinkError::TryLater(..)), _) => {
                (format!("Wait: {upstream} asked for a pause."), Action::Wait)
            }
            _ if down < PATIENCE => {
                ("Wait: this program connects again by itself.".to_owned(), Action::Wait)
            }
            (_, TierName::Firehose) => (
                "Check this machine's network; if it works, call the vendor.".to_owned(),
                Action::Vendor,
            ),
            (_, TierName::Filtered) => (
                "See whether the firehose runs, and restart it if not.".to_owned(),
                Action::Restart,
            ),
        };
        return vec![problem(what, advice, action)];
    }
    let mut found = Vec::new();
    if !channels.refused.is_empty() {
        let what = format!("{upstream} refuses {}.", summarize_channels(channels.refused.iter()));
        let advice = "Nothing of these comes. Ask the vendor whether the plan includes them.";
        found.push(problem(what, advice, Action::Look));
    }
    if !channels.pending.is_empty() {
        let pending = summarize_channels(channels.pending.iter());
        let what = format!("{upstream} has not answered for {pending}.");
        let advice = "Wait a minute. If it stays so, restart this program.";
        found.push(problem(what, advice, Action::Wait));
    }
    found
}

/// The problem of sessions that may soon be closed because they are slow. `who` names the slowest.
pub(super) fn slow(sessions: usize, who: Option<&str>) -> Option<Problem> {
    let reads = match (sessions, who) {
        (0, _) => return None,
        (1, None) => "One client reads".to_owned(),
        (1, Some(who)) => format!("The client {who} reads"),
        (_, None) => format!("{sessions} clients read"),
        (_, Some(who)) => format!("{sessions} clients, the slowest of them {who}, read"),
    };
    let what = format!("{reads} more slowly than the data comes.");
    let advice = "Restart the client, or give it fewer subscriptions. This program closes it soon, \
                  and the others are not affected.";
    Some(problem(what, advice, Action::Restart))
}

/// The problem of a limit on sessions that is nearly reached.
pub(super) fn nearly_full(sessions: usize, limit: usize) -> Option<Problem> {
    let what = format!("{sessions} of {limit} sessions are in use.");
    let advice = "Start another filtered proxy, or raise MAX_CONNECTIONS.";
    (sessions * 10 >= limit * 9).then(|| problem(what, advice, Action::Look))
}

/// One sentence about these problems. `closed` says that no market is open.
pub(super) fn verdict(problems: &[Problem], closed: bool) -> Verdict {
    let Some(worst) = problems.iter().rev().max_by_key(|problem| problem.action) else {
        let state = if closed { "the market is closed" } else { "the data flows" };
        let sentence = format!("Do nothing. All is well: {state}.");
        return Verdict { action: Action::None, sentence };
    };
    let sentence = match worst.action {
        Action::None | Action::Look => "Do nothing now. Data flows; look at the problems below.",
        Action::Wait => "Do nothing yet. The program mends it by itself.",
        Action::Restart => "Restart or correct a program of your own.",
        Action::Vendor => "Call the vendor.",
    };
    let detail = match worst.action {
        Action::None | Action::Look => String::new(),
        Action::Wait | Action::Restart | Action::Vendor => format!(" {}", worst.what),
    };
    Verdict { action: worst.action, sentence: format!("{sentence}{detail}") }
}

fn problem(what: String, advice: impl Into<String>, action: Action) -> Problem {
    Problem { what, advice: advice.into(), action }
}

/// As a sentence: with a capital letter and a full stop.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{ChannelStatus, LastError};

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000)
    }

    fn link(state: LinkState, error: Option<LinkError>, seconds: u64) -> LinkStatus {
        LinkStatus {
            state,
            since: now() - Duration::from_secs(seconds),
            last_error: error.map(|error| LastError { error, at: now(), wait: Duration::ZERO }),
            ..LinkStatus::new("Polygon", "wss://host/stocks".to_owned())
        }
    }

    fn found(tier: TierName, link: LinkStatus, reported: &[&str]) -> (Vec<Problem>, Verdict) {
        found_after(0, tier, link, reported)
    }

    fn found_after(
        seconds: u64,
        tier: TierName,
        link: LinkStatus,
        reported: &[&str],
    ) -> (Vec<Problem>, Verdict) {
        let reported_for = Duration::from_secs(seconds);
        let reported: Vec<String> = reported.iter().map(|&text| text.to_owned()).collect();
        let (links, now) = ([link], now());
        let facts = Facts {
            tier,
            links: &links,
            reported: &reported,
            failures: &[],
            reported_for,
            unaccounted: 0,
            now,
        };
        let problems = problems(&facts);
        let verdict = verdict(&problems, false);
        (problems, verdict)
    }

    #[test]
    fn each_state_of_a_link_leads_to_one_action() {
        use Action::{None as Nothing, Restart, Vendor, Wait};
        use TierName::{Filtered, Firehose};
        let (up, waiting) = (LinkState::Up, LinkState::Waiting);
        let closed = || Some(LinkError::Closed("end of stream".to_owned()));
        for (tier, state, error, seconds, action) in [
            (Firehose, up, None, 5, Nothing),
            (Firehose, waiting, closed(), 5, Wait),
            (Firehose, waiting, closed(), 60, Vendor),
            (Filtered, waiting, closed(), 5, Wait),
            (Filtered, waiting, closed(), 60, Restart),
            (Firehose, LinkState::Connecting, None, 1, Wait),
            (
                Firehose,
                LinkState::Refused,
                Some(LinkError::AuthFailed("no".to_owned())),
                1,
                Restart,
            ),
            (Firehose, waiting, Some(LinkError::MaxConnections("no".to_owned())), 60, Restart),
            (
                Firehose,
                waiting,
                Some(LinkError::TryLater("503".to_owned(), Duration::from_secs(90))),
                60,
                Wait,
            ),
        ] {
            let (problems, verdict) = found(tier, link(state, error.clone(), seconds), &[]);
            assert_eq!(verdict.action, action, "{tier:?} {error:?} {seconds}");
            assert_eq!(problems.len(), usize::from(action != Nothing));
        }
        let (problems, verdict) = found(Firehose, link(waiting, closed(), 75), &[]);
        let what = "No connection to Polygon at wss://host/stocks for 1m 15s: connection lost: end of stream.";
        assert_eq!(problems[0].what, what);
        assert_eq!(verdict.sentence, format!("Call the vendor. {what}"));
    }

    #[test]
    fn a_silent_type_is_for_the_vendor_and_an_outage_of_the_firehose_for_the_firehose() {
        let up = || link(LinkState::Up, None, 5);
        let silent = ["no Q came for 60 s while the market is open"];
        let (problems, verdict) = found(TierName::Firehose, up(), &silent);
        assert_eq!(problems[0].what, "No Q came for 60 s while the market is open.");
        assert_eq!(verdict.action, Action::Vendor);
        for (seconds, action) in [(5, Action::Wait), (60, Action::Vendor)] {
            let (_, verdict) = found_after(seconds, TierName::Filtered, up(), &["upstream down"]);
            assert_eq!(verdict.action, action);
        }
        for error in
            [LinkError::AuthFailed("no".to_owned()), LinkError::MaxConnections("no".to_owned())]
        {
            let notice = format!("events may be missing until the upstream is up: {error}");
            let (_, verdict) = found_after(60, TierName::Filtered, up(), &[&notice]);
            assert_eq!(verdict.action, Action::Restart, "{notice}");
        }
    }

    #[test]
    fn what_can_wait_is_no_alarm() {
        let refused =
            ChannelStatus { refused: vec!["LV.*".to_owned()], ..ChannelStatus::default() };
        let link = LinkStatus { channels: refused, ..link(LinkState::Up, None, 5) };
        let (problems, judged) = found(TierName::Firehose, link, &[]);
        assert_eq!(problems[0].what, "Polygon refuses LV.*.");
        assert!(judged.sentence.starts_with("Do nothing now."), "{}", judged.sentence);
        assert_eq!(slow(0, None), None);
        let slow = slow(2, Some("desk-a at 10.0.0.9:4711")).unwrap();
        assert_eq!(verdict(&[problems[0].clone(), slow], false).action, Action::Restart);
        assert_eq!(nearly_full(899, 1_000), None);
        assert!(nearly_full(900, 1_000).is_some());
        assert_eq!(verdict(&[], true).sentence, "Do nothing. All is well: the market is closed.");
    }
}
