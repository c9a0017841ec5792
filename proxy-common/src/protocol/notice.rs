//! Notices: statuses of our own that tell clients what happened to their data. The vendor sends
//! none. Its clients pass them on or log them.

use std::{fmt, time::SystemTime};

use serde::Serialize;

use super::{channel::Channel, channel_set::ChannelSet, position::Position};
use crate::{named_enum::named_enum, websocket::Frame};

/// A span of time in which wanted events may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// When it began.
    pub from: SystemTime,
    /// Why, for people.
    pub reason: String,
}

impl Outage {
    /// An outage that begins now.
    pub fn now(reason: impl Into<String>) -> Self {
        Self { from: SystemTime::now(), reason: reason.into() }
    }
}

named_enum! {
    /// A tier, as notices and the prefix of metrics name it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
    #[serde(rename_all = "lowercase")]
    pub enum TierName by
    /// The name, as notices show it.
    name {
        /// The firehose.
        Firehose = "firehose",
        /// The filtered proxy.
        Filtered = "filtered",
    }
}

impl fmt::Display for TierName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which sessions of a tier get notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticePolicy {
    /// Every session.
    Everyone,
    /// Sessions that hold `*`. Filtered proxies hold it, and they pass notices on.
    HoldersOfAll,
    /// No session.
    Off,
}

impl NoticePolicy {
    /// Whether a session that holds these channels gets notices.
    pub fn includes(self, held: &ChannelSet) -> bool {
        match self {
            Self::Everyone => true,
            Self::HoldersOfAll => held.contains(&Channel::All),
            Self::Off => false,
        }
    }
}

/// A notice, as the object that clients get. Absent fields do not apply.
#[derive(Debug, Clone, Serialize)]
pub struct Notice {
    ev: &'static str,
    status: &'static str,
    message: String,
    tier: TierName,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Milliseconds since 1970, like the vendor's own times.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frames: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<u64>,
    /// How many messages of an outage could not be made up for.
    #[serde(skip_serializing_if = "Option::is_none")]
    missed: Option<u64>,
    /// The messages of a gap begin behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Position>,
    /// Where it stands in the feed.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<Position>,
    /// When the last message before it was received, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<u64>,
}

/// Why a subscription cannot begin where it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// The history does not reach back so far. Of the same epoch, it is known how many messages
    /// are lost.
    TooOld(Option<u64>),
    /// The history holds nothing of that epoch: the firehose was restarted.
    OtherEpoch,
    /// The proxy keeps no history.
    Off,
    /// The feed has overtaken a replay: so many messages were dropped before they were read.
    Overtaken(Option<u64>),
}

impl Notice {
    /// From now on, the tier may miss events of its upstream.
    pub fn upstream_down(tier: TierName, outage: &Outage) -> Self {
        Self {
            message: format!(
                "events may be missing until the upstream of the {tier} tier is up: {}",
                outage.reason
            ),
            reason: Some(outage.reason.clone()),
            from: Some(millis(outage.from)),
            ..Self::new(tier, "upstream_down")
        }
    }

    /// The tier receives everything again that it asked for. The events of the outage stay lost.
    pub fn upstream_up(tier: TierName, outage: &Outage, to: SystemTime) -> Self {
        let (from, to) = (millis(outage.from), millis(to));
        Self {
            message: format!(
                "upstream of the {tier} tier is up after {} ms; events of that time are missed",
                to.saturating_sub(from)
            ),
            reason: Some(outage.reason.clone()),
            from: Some(from),
            to: Some(to),
            ..Self::new(tier, "upstream_up")
        }
    }

    /// The ring overwrote frames before this session read them.
    pub fn gap(tier: TierName, frames: u64, events: Option<u64>) -> Self {
        Self {
            message: format!(
                "{frames} frames lost at the {tier} tier: they came faster than they were read"
            ),
            reason: Some("ring_overrun".to_owned()),
            frames: Some(frames),
            events,
            ..Self::new(tier, "gap")
        }
    }

    /// A frame was damaged.
    pub fn malformed(tier: TierName) -> Self {
        Self {
            message: format!(
                "a frame reached the {tier} tier damaged: events in it may be missing"
            ),
            reason: Some("malformed".to_owned()),
            frames: Some(1),
            ..Self::new(tier, "gap")
        }
    }

    /// The tier left out events, because each of them alone is longer than a message may be.
    pub fn oversize(tier: TierName, events: u64) -> Self {
        Self {
            message: format!(
                "{events} events longer than a message may be were left out by the {tier} tier"
            ),
            reason: Some("oversize".to_owned()),
            events: Some(events),
            ..Self::new(tier, "gap")
        }
    }

    /// The same, after everything that was missed could be made up for.
    pub fn upstream_resumed(tier: TierName, outage: &Outage, to: SystemTime) -> Self {
        let (from, to_millis) = (millis(outage.from), millis(to));
        Self {
            message: format!(
                "upstream of the {tier} tier is up after {} ms; nothing of that time is missed",
                to_millis.saturating_sub(from)
            ),
            missed: Some(0),
            ..Self::upstream_up(tier, outage, to)
        }
    }

    /// For a client that subscribed during an outage of which nothing is missed: it gets nothing of
    /// what came before its subscription, and possibly not all of what came soon after.
    pub fn subscribed_in_outage(outage: &Outage) -> Self {
        Self {
            message: "events of what was subscribed during the outage begin here".to_owned(),
            reason: Some("subscribed_in_outage".to_owned()),
            from: Some(millis(outage.from)),
            ..Self::new(TierName::Filtered, "gap")
        }
    }

    /// For a client with contracts on demand, which the firehose carries only while they are asked
    /// for.
    pub fn on_demand_in_outage(outage: &Outage) -> Self {
        Self {
            message:
                "events of contracts on demand may be missing: the firehose carries them only \
                      while they are asked for"
                    .to_owned(),
            reason: Some("on_demand".to_owned()),
            from: Some(millis(outage.from)),
            ..Self::new(TierName::Filtered, "gap")
        }
    }

    /// The messages behind `after` cannot be given any more. What follows begins at `position`.
    pub fn gone(tier: TierName, why: Gone, after: Option<Position>, position: Position) -> Self {
        let (reason, frames, text) = match why {
            Gone::TooOld(frames) => {
                ("too_old", frames, "the history does not reach back to where you stood")
            }
            Gone::OtherEpoch => {
                ("other_epoch", None, "the firehose was restarted since you were here")
            }
            Gone::Off => ("no_history", None, "this proxy keeps no history"),
            Gone::Overtaken(frames) => {
                ("overtaken", frames, "the history was read more slowly than the feed comes")
            }
        };
        let lost = match frames {
            Some(frames) => format!("{frames} frames are lost"),
            None => "events are lost, it is not known how many".to_owned(),
        };
        Self {
            message: format!("{text}: {lost}; what follows begins behind {position}"),
            reason: Some(reason.to_owned()),
            frames,
            after,
            position: Some(position),
            ..Self::new(tier, "gap")
        }
    }

    /// Leaves out the time.
    #[must_use]
    pub fn untimed(self) -> Self {
        Self { time: None, ..self }
    }

    /// Says where the feed stands. The last message before it was received at `time`.
    pub fn position(tier: TierName, position: Position, time: u64) -> Self {
        Self {
            message: format!("everything up to {position} came before"),
            position: Some(position),
            time: (time > 0).then_some(time),
            ..Self::new(tier, "position")
        }
    }

    /// Old messages follow, behind this position. The first of them was received at `time`.
    pub fn resumed(tier: TierName, position: Position, time: u64, may_repeat: &str) -> Self {
        Self {
            message: format!("what came behind {position} follows, then live data; {may_repeat}"),
            position: Some(position),
            time: (time > 0).then_some(time),
            ..Self::new(tier, "resumed")
        }
    }

    /// Old messages end here. It is `now`.
    pub fn live(tier: TierName, position: Position, now: SystemTime) -> Self {
        Self {
            message: "live data follows".to_owned(),
            position: Some(position),
            time: Some(millis(now)),
            ..Self::new(tier, "live")
        }
    }

    /// Says how many events it concerns.
    #[must_use]
    pub fn counting(self, events: u64) -> Self {
        Self { events: Some(events), ..self }
    }

    /// Says where the notice stands in the feed.
    #[must_use]
    pub fn at(self, position: Option<Position>) -> Self {
        Self { position, ..self }
    }

    fn new(tier: TierName, status: &'static str) -> Self {
        Self {
            ev: "status",
            status,
            message: String::new(),
            tier,
            reason: None,
            from: None,
            to: None,
            frames: None,
            events: None,
            missed: None,
            after: None,
            position: None,
            time: None,
        }
    }

    /// A frame that holds this notice alone.
    pub fn frame(&self) -> Frame {
        let object = serde_json::to_string(self).expect("strings and numbers always serialise");
        Frame::of_object(&object)
    }
}

/// Milliseconds since 1970.
pub fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::protocol::kind::Kind;

    #[test]
    fn notices_are_statuses_with_a_message_and_fields_for_programs() {
        let outage = Outage {
            from: SystemTime::UNIX_EPOCH + Duration::from_millis(1_000),
            reason: "r".into(),
        };
        let back = outage.from + Duration::from_millis(234);
        for (notice, text) in [
            (
                Notice::upstream_down(TierName::Filtered, &outage),
                r#"[{"ev":"status","status":"upstream_down","message":"events may be missing until the upstream of the filtered tier is up: r","tier":"filtered","reason":"r","from":1000}]"#,
            ),
            (
                Notice::upstream_up(TierName::Firehose, &outage, back),
                r#"[{"ev":"status","status":"upstream_up","message":"upstream of the firehose tier is up after 234 ms; events of that time are missed","tier":"firehose","reason":"r","from":1000,"to":1234}]"#,
            ),
            (
                Notice::gap(TierName::Firehose, 3, Some(7)),
                r#"[{"ev":"status","status":"gap","message":"3 frames lost at the firehose tier: they came faster than they were read","tier":"firehose","reason":"ring_overrun","frames":3,"events":7}]"#,
            ),
            (
                Notice::malformed(TierName::Firehose),
                r#"[{"ev":"status","status":"gap","message":"a frame reached the firehose tier damaged: events in it may be missing","tier":"firehose","reason":"malformed","frames":1}]"#,
            ),
            (
                Notice::oversize(TierName::Filtered, 2),
                r#"[{"ev":"status","status":"gap","message":"2 events longer than a message may be were left out by the filtered tier","tier":"filtered","reason":"oversize","events":2}]"#,
            ),
        ] {
            assert_eq!(String::from_utf8_lossy(notice.frame().text()), text);
        }
    }

    #[test]
    fn the_policy_chooses_sessions() {
        let holds = |channel| ChannelSet::from_iter([channel]);
        let (all, trades) = (holds(Channel::All), holds(Channel::Kind(Kind::T)));
        for (notices, trades_get_them, all_get_them) in [
            (NoticePolicy::Everyone, true, true),
            (NoticePolicy::HoldersOfAll, false, true),
            (NoticePolicy::Off, false, false),
        ] {
            let reached = (notices.includes(&trades), notices.includes(&all));
            assert_eq!(reached, (trades_get_them, all_get_them), "{notices:?}");
        }
    }
}
