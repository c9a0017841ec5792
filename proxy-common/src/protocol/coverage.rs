//! Coverage: which channels a firehose carries. Holds the status that reports it downstream, and
//! the answers to subscriptions of channels that are not carried.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    protocol::{
        channel::Channel,
        kind::Kind,
        market::Market,
        messages::{MAX_MESSAGE_BYTES, Status, status_frames},
        notice::TierName,
    },
    websocket::Frame,
};

/// The most characters kept of an upstream's reason.
const MAX_REASON_CHARS: usize = 200;
/// The most channels named in a sentence.
const MAX_NAMED: usize = 5;

/// The channels that `*` stands for, grouped by the upstream's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Acknowledged by the upstream, or left without an answer.
    pub carried: BTreeSet<Channel>,
    /// Not asked for yet, or not answered yet.
    pub pending: BTreeSet<Channel>,
    /// Refused, with the upstream's reason.
    pub refused: BTreeMap<Channel, String>,
    /// Kinds that are served by contract only. `*` includes no contract of them but those that are
    /// listed above.
    pub on_demand: BTreeSet<Kind>,
    /// How many contracts of each of these kinds are served at a time.
    pub contracts: usize,
}

/// The object on the wire.
#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(default)]
    ev: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    tier: String,
    /// Absent if there are none. A firehose of an earlier version knows no such types.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    on_demand: Vec<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    contracts: usize,
    /// The three lists; absent if they would not fit into a message.
    #[serde(flatten)]
    lists: Option<Lists>,
}

#[derive(Serialize, Deserialize)]
struct Lists {
    carried: Vec<String>,
    pending: Vec<String>,
    refused: Vec<RefusedChannels>,
}

#[derive(Serialize, Deserialize)]
struct RefusedChannels {
    reason: String,
    channels: Vec<String>,
}

impl Coverage {
    /// The name of the status.
    pub const STATUS: &str = "carried";

    /// The status as a frame. Leaves out the lists if they do not fit into a message of
    /// [`MAX_MESSAGE_BYTES`].
    pub fn frame(&self, tier: TierName) -> Frame {
        let mut reasons = BTreeMap::<&str, Vec<String>>::new();
        for (channel, why) in &self.refused {
            reasons.entry(why).or_default().push(channel.to_string());
        }
        let refused = reasons
            .into_iter()
            .map(|(reason, channels)| RefusedChannels { reason: reason.to_owned(), channels })
            .collect();
        let lists = Lists { carried: names(&self.carried), pending: names(&self.pending), refused };
        let mut message = format!(
            "* stands for {}",
            summarize_channels(self.carried.iter().chain(&self.pending))
        );
        if !self.refused.is_empty() {
            message += &format!("; upstream refused {}", summarize_channels(self.refused.keys()));
        }
        let on_demand: Vec<String> = self.on_demand.iter().map(ToString::to_string).collect();
        if !on_demand.is_empty() {
            let (most, kinds) = (self.contracts, on_demand.join(", "));
            message += &format!("; by contract only, {most} at a time: {kinds}");
        }
        let mut document = Document {
            ev: "status".to_owned(),
            status: Self::STATUS.to_owned(),
            message,
            tier: tier.name().to_owned(),
            contracts: if on_demand.is_empty() { 0 } else { self.contracts },
            on_demand,
            lists: Some(lists),
        };
        let frame = |document: &Document| {
            let object = serde_json::to_string(document).expect("strings always serialise");
            Frame::of_object(&object)
        };
        let whole = frame(&document);
        if whole.text().len() <= MAX_MESSAGE_BYTES {
            return whole;
        }
        document.lists = None;
        frame(&document)
    }

    /// Reads the status object. `None` if it is another status or has no lists. Skips what names
    /// no channel of this market.
    pub fn read(object: &str, market: Market) -> Option<Self> {
        let document: Document = serde_json::from_str(object).ok()?;
        let lists = document.lists.filter(|_| document.status == Self::STATUS)?;
        let parse = |item: &String| Channel::parse(item, market).ok();
        let set = |items: &[String]| items.iter().filter_map(parse).collect();
        let mut refused = BTreeMap::new();
        for RefusedChannels { reason, channels } in &lists.refused {
            refused.extend(channels.iter().filter_map(parse).map(|c| (c, truncate_reason(reason))));
        }
        let kinds = document.on_demand.iter();
        Some(Self {
            carried: set(&lists.carried),
            pending: set(&lists.pending),
            refused,
            on_demand: kinds.filter_map(|code| Kind::from_code(code.as_bytes())).collect(),
            contracts: document.contracts,
        })
    }
}

/// How far a subscription cannot be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unavailable {
    /// Nothing is delivered, for this reason.
    Whole(String),
    /// Only this part is delivered.
    Part(String),
}

impl Unavailable {
    /// The upstream refused `channel`. It is the subscription itself or one that the subscription
    /// needs.
    pub fn refused(channel: &Channel, why: &str) -> Self {
        Self::Whole(format!("upstream refused {channel}: {why}"))
    }

    /// `kind` is served by contract only, `contracts` of them at a time.
    pub fn by_contract(kind: Kind, contracts: usize) -> Self {
        Self::Whole(format!(
            "upstream serves {kind} by contract only, {contracts} at a time: name contracts, such as \
             {kind}.O:SPY261218C00600000"
        ))
    }

    /// The answer to a client that asked for `item`.
    pub fn status(&self, item: &str) -> Status {
        match self {
            Self::Whole(why) => Status::error(format!("{item:?} is not carried: {why}")),
            Self::Part(part) => Status::error(format!("{item:?} is carried in part: {part}")),
        }
    }
}

/// Frames with an error for each of these channels that is unavailable `now`, unless it was so
/// `before` for the same reason.
pub fn newly_unavailable<'a>(
    channels: impl IntoIterator<Item = &'a Channel>,
    now: impl Fn(&Channel) -> Option<Unavailable>,
    before: impl Fn(&Channel) -> Option<Unavailable>,
) -> Vec<Frame> {
    let statuses = channels.into_iter().filter_map(|channel| {
        let unavailable = now(channel)?;
        (before(channel).as_ref() != Some(&unavailable))
            .then(|| unavailable.status(&channel.to_string()))
    });
    status_frames(&statuses.collect::<Vec<Status>>())
}

/// The first 200 characters of an upstream's reason, short enough to repeat.
pub fn truncate_reason(reason: &str) -> String {
    reason.chars().take(MAX_REASON_CHARS).collect()
}

/// Names the first five channels, and the number of the others.
pub fn summarize_channels(channels: impl Iterator<Item = impl ToString>) -> String {
    let mut channels = channels.fuse();
    let named: Vec<String> =
        channels.by_ref().take(MAX_NAMED).map(|channel| channel.to_string()).collect();
    match (named.is_empty(), channels.count()) {
        (true, _) => "nothing".to_owned(),
        (false, 0) => named.join(", "),
        (false, more) => format!("{} and {more} more", named.join(", ")),
    }
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn names(channels: &BTreeSet<Channel>) -> Vec<String> {
    channels.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::channel_items;

    fn channels(list: &str) -> BTreeSet<Channel> {
        channel_items(list).map(|item| Channel::parse(item, Market::Stocks).unwrap()).collect()
    }

    fn refused(list: &str) -> BTreeMap<Channel, String> {
        channels(list).into_iter().map(|channel| (channel, "not authorized".to_owned())).collect()
    }

    #[test]
    fn coverage_is_a_status_that_every_client_can_read() {
        let coverage = Coverage {
            carried: channels("T.*"),
            pending: channels("Q.*"),
            refused: refused("NOI.*,FMV.*"),
            ..Coverage::default()
        };
        assert_eq!(
            coverage.frame(TierName::Firehose).text(),
            br#"[{"ev":"status","status":"carried","message":"* stands for T.*, Q.*; upstream refused NOI.*, FMV.*","tier":"firehose","carried":["T.*"],"pending":["Q.*"],"refused":[{"reason":"not authorized","channels":["NOI.*","FMV.*"]}]}]"#
        );
    }

    #[test]
    fn coverage_is_read_back() {
        let coverage = Coverage {
            carried: channels("T.*,AM.BRK.B"),
            pending: channels("Q.*"),
            refused: refused("FMV.*"),
            on_demand: BTreeSet::from([Kind::LV, Kind::Q]),
            contracts: 1_000,
        };
        let text = String::from_utf8(coverage.frame(TierName::Firehose).text().to_vec()).unwrap();
        let object = &text[1..text.len() - 1];
        assert_eq!(Coverage::read(object, Market::Stocks), Some(coverage));
        for other in [
            r#"{"ev":"status","status":"gap","message":""}"#,
            r#"{"ev":"status","status":"carried","message":""}"#,
            r#"{"ev":"status","status":"carried","carried":7}"#,
            r#"{"ev":"status","status":"gap","message":"","carried":[],"pending":[],"refused":[]}"#,
            "[]",
        ] {
            assert_eq!(Coverage::read(other, Market::Stocks), None, "{other}");
        }
    }

    #[test]
    fn kinds_on_demand_are_named() {
        let coverage = Coverage {
            carried: channels("T.*"),
            on_demand: BTreeSet::from([Kind::Q, Kind::FMV]),
            contracts: 950,
            ..Coverage::default()
        };
        assert_eq!(
            coverage.frame(TierName::Firehose).text(),
            br#"[{"ev":"status","status":"carried","message":"* stands for T.*; by contract only, 950 at a time: Q, FMV","tier":"firehose","on_demand":["Q","FMV"],"contracts":950,"carried":["T.*"],"pending":[],"refused":[]}]"#
        );
    }

    #[test]
    fn lists_that_do_not_fit_are_left_out() {
        let many =
            (0..100_000).map(|n| Channel::parse(&format!("T.S{n}"), Market::Stocks).unwrap());
        let coverage = Coverage { carried: many.collect(), ..Coverage::default() };
        let text = String::from_utf8(coverage.frame(TierName::Firehose).text().to_vec()).unwrap();
        assert_eq!(
            text,
            r#"[{"ev":"status","status":"carried","message":"* stands for T.S0, T.S1, T.S10, T.S100, T.S1000 and 99995 more","tier":"firehose"}]"#
        );
        assert_eq!(Coverage::read(&text[1..text.len() - 1], Market::Stocks), None);
    }

    #[test]
    fn an_answer_names_the_item_and_the_reason() {
        let fmv = channels("FMV.*").pop_first().unwrap();
        assert_eq!(
            Unavailable::refused(&fmv, "not authorized").status("FMV.AAPL").message,
            r#""FMV.AAPL" is not carried: upstream refused FMV.*: not authorized"#
        );
        assert_eq!(
            Unavailable::Part("AM.SPY".to_owned()).status("AM.*").message,
            r#""AM.*" is carried in part: AM.SPY"#
        );
    }

    #[test]
    fn only_new_or_changed_reasons_are_sent() {
        let lack = |why: &'static str| move |_: &Channel| Some(Unavailable::Whole(why.to_owned()));
        let held = channels("T.A,T.B");
        assert!(newly_unavailable(&held, |_| None, lack("refused")).is_empty());
        assert!(newly_unavailable(&held, lack("refused"), lack("refused")).is_empty());
        let text = br#"[{"ev":"status","status":"error","message":"\"T.A\" is not carried: refused"},{"ev":"status","status":"error","message":"\"T.B\" is not carried: refused"}]"#;
        for before in [None, Some("pending")] {
            let frames =
                newly_unavailable(&held, lack("refused"), |c| before.and_then(|why| lack(why)(c)));
            let texts: Vec<&[u8]> = frames.iter().map(Frame::text).collect();
            assert_eq!(texts, [text]);
        }
    }

    #[test]
    fn long_lists_and_reasons_are_shortened() {
        assert_eq!(truncate_reason(&"é".repeat(201)), "é".repeat(200));
        assert_eq!(truncate_reason("short"), "short");
        assert_eq!(summarize_channels(channels("").iter()), "nothing");
        assert_eq!(
            summarize_channels(channels("T.A,T.B,T.C,T.D,T.E").iter()),
            "T.A, T.B, T.C, T.D, T.E"
        );
        let six = channels("T.A,T.B,T.C,T.D,T.E,T.F");
        assert_eq!(summarize_channels(six.iter()), "T.A, T.B, T.C, T.D, T.E and 1 more");
    }
}
