//! Notices: statuses of our own that tell clients what happened to their data. The vendor has none; its clients pass them on
//! or log them.

use std::time::SystemTime;

use serde::Serialize;

use crate::{
    link::Outage,
    protocol::{channel::Channel, channel_set::ChannelSet, messages::UpstreamStatus},
    websocket::frame::Frame,
};

/// Which sessions of a tier get notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notices {
    /// Every session.
    ToAll,
    /// Sessions that hold `*`, as filtered proxies do: they pass notices on.
    ToHoldersOfAll,
    /// Nobody.
    Off,
}

impl Notices {
    /// Whether a session that holds these channels gets them.
    pub fn reach(self, held: &ChannelSet) -> bool {
        match self {
            Self::ToAll => true,
            Self::ToHoldersOfAll => held.contains(&Channel::All),
            Self::Off => false,
        }
    }
}

/// A notice, as the object that clients get. Absent fields do not apply.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Notice {
    ev: &'static str,
    status: &'static str,
    message: String,
    /// Which part of the chain says so: `firehose` or `filtered`.
    tier: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Milliseconds since 1970, as the vendor's own times.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frames: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<u64>,
}

impl Notice {
    /// Not everything comes from the tier's upstream: what happens there from now on may be missed.
    pub fn upstream_down(tier: &'static str, outage: &Outage) -> Self {
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

    /// Everything comes that was asked for: what happened in between is missed.
    pub fn upstream_up(tier: &'static str, outage: &Outage, to: SystemTime) -> Self {
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

    /// Frames were lost between the tier and this session.
    pub fn gap(tier: &'static str, frames: u64, events: Option<u64>) -> Self {
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

    /// A frame could not be read to its end.
    pub fn malformed(tier: &'static str) -> Self {
        Self {
            message: format!(
                "a frame reached the {tier} tier damaged: events in it may be missing"
            ),
            reason: Some("malformed".to_owned()),
            frames: Some(1),
            ..Self::new(tier, "gap")
        }
    }

    /// Events were longer than a message may be.
    pub fn oversize(tier: &'static str, events: u64) -> Self {
        Self {
            message: format!(
                "{events} events longer than a message may be were left out by the {tier} tier"
            ),
            reason: Some("oversize".to_owned()),
            events: Some(events),
            ..Self::new(tier, "gap")
        }
    }

    fn new(tier: &'static str, status: &'static str) -> Self {
        Self { ev: "status", status, tier, ..Self::default() }
    }

    /// A frame holding this notice alone.
    pub fn frame(&self) -> Frame {
        let object = serde_json::to_string(self).expect("strings and numbers always serialise");
        Frame::of_object(&object)
    }
}

/// Begin or end of an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutageNotice {
    /// `upstream_down`.
    Down,
    /// `upstream_up`.
    Up,
}

/// Whether a message that holds one notice tells the begin or the end of an outage.
pub fn outage(message: &[u8]) -> Option<OutageNotice> {
    let statuses: Vec<UpstreamStatus> = serde_json::from_slice(message).ok()?;
    match statuses.first()?.status.as_str() {
        "upstream_down" => Some(OutageNotice::Down),
        "upstream_up" => Some(OutageNotice::Up),
        _ => None,
    }
}

/// What a message that holds one notice says for people.
pub fn message(message: &[u8]) -> Option<String> {
    let statuses: Vec<UpstreamStatus> = serde_json::from_slice(message).ok()?;
    Some(statuses.into_iter().next()?.message)
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::protocol::market::Kind;

    #[test]
    fn outages_are_told_from_other_notices() {
        let lost = Outage { from: SystemTime::UNIX_EPOCH, reason: "upstream_up".into() };
        let down = Notice::upstream_down("firehose", &lost).frame();
        assert_eq!(outage(down.text()), Some(OutageNotice::Down));
        let up = Notice::upstream_up("firehose", &lost, SystemTime::now()).frame();
        assert_eq!(outage(up.text()), Some(OutageNotice::Up));
        assert_eq!(outage(Notice::gap("firehose", 1, None).frame().text()), None);
        assert_eq!(outage(b"[]"), None);
        let said =
            "events may be missing until the upstream of the firehose tier is up: upstream_up";
        assert_eq!(message(down.text()).as_deref(), Some(said));
        assert_eq!(message(b"[]"), None);
    }

    #[test]
    fn notices_are_statuses_with_a_message_and_fields_for_programs() {
        let outage = Outage {
            from: SystemTime::UNIX_EPOCH + Duration::from_millis(1_000),
            reason: "r".into(),
        };
        let back = outage.from + Duration::from_millis(234);
        for (notice, text) in [
            (
                Notice::upstream_down("filtered", &outage),
                r#"[{"ev":"status","status":"upstream_down","message":"events may be missing until the upstream of the filtered tier is up: r","tier":"filtered","reason":"r","from":1000}]"#,
            ),
            (
                Notice::upstream_up("firehose", &outage, back),
                r#"[{"ev":"status","status":"upstream_up","message":"upstream of the firehose tier is up after 234 ms; events of that time are missed","tier":"firehose","reason":"r","from":1000,"to":1234}]"#,
            ),
            (
                Notice::gap("firehose", 3, Some(7)),
                r#"[{"ev":"status","status":"gap","message":"3 frames lost at the firehose tier: they came faster than they were read","tier":"firehose","reason":"ring_overrun","frames":3,"events":7}]"#,
            ),
            (
                Notice::malformed("firehose"),
                r#"[{"ev":"status","status":"gap","message":"a frame reached the firehose tier damaged: events in it may be missing","tier":"firehose","reason":"malformed","frames":1}]"#,
            ),
            (
                Notice::oversize("filtered", 2),
                r#"[{"ev":"status","status":"gap","message":"2 events longer than a message may be were left out by the filtered tier","tier":"filtered","reason":"oversize","events":2}]"#,
            ),
        ] {
            assert_eq!(String::from_utf8_lossy(notice.frame().text()), text);
        }
    }

    #[test]
    fn who_gets_notices_is_a_choice() {
        let holds = |channel| ChannelSet::from_iter([channel]);
        let (all, trades) = (holds(Channel::All), holds(Channel::Kind(Kind::T)));
        for (notices, trades_get_them, all_get_them) in [
            (Notices::ToAll, true, true),
            (Notices::ToHoldersOfAll, false, true),
            (Notices::Off, false, false),
        ] {
            let reached = (notices.reach(&trades), notices.reach(&all));
            assert_eq!(reached, (trades_get_them, all_get_them), "{notices:?}");
        }
    }
}
