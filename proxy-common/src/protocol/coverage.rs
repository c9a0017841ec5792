//! What a firehose carries: the status that tells it downstream, and the words for what a subscription lacks.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    protocol::{
        channel::Channel,
        market::Market,
        messages::{MAX_MESSAGE_BYTES, Status, status_frames},
    },
    websocket::frame::Frame,
};

/// Most characters of an upstream's reason that are kept.
const MAX_REASON: usize = 200;
/// Most channels named in a sentence.
const NAMED: usize = 5;

/// The channels that `*` stands for, by what the upstream said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Carried {
    /// Acknowledged by the upstream, or left without an answer.
    pub carried: BTreeSet<Channel>,
    /// Not asked for yet, or not answered yet.
    pub pending: BTreeSet<Channel>,
    /// Refused, with the upstream's reason.
    pub refused: BTreeMap<Channel, String>,
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
    /// The three lists; absent where they would not fit a message.
    #[serde(flatten)]
    lists: Option<Lists>,
}

#[derive(Serialize, Deserialize)]
struct Lists {
    carried: Vec<String>,
    pending: Vec<String>,
    refused: Vec<Refusal>,
}

#[derive(Serialize, Deserialize)]
struct Refusal {
    reason: String,
    channels: Vec<String>,
}

impl Carried {
    /// The name of the status.
    pub const STATUS: &str = "carried";

    /// A frame that tells this. The lists are left out where they would not fit.
    pub fn frame(&self, tier: &str) -> Frame {
        let mut reasons = BTreeMap::<&str, Vec<String>>::new();
        for (channel, why) in &self.refused {
            reasons.entry(why).or_default().push(channel.to_string());
        }
        let refused = reasons
            .into_iter()
            .map(|(reason, channels)| Refusal { reason: reason.to_owned(), channels })
            .collect();
        let lists = Lists { carried: names(&self.carried), pending: names(&self.pending), refused };
        let mut message =
            format!("* stands for {}", some(self.carried.iter().chain(&self.pending)));
        if !self.refused.is_empty() {
            message += &format!("; upstream refused {}", some(self.refused.keys()));
        }
        let mut document = Document {
            ev: "status".to_owned(),
            status: Self::STATUS.to_owned(),
            message,
            tier: tier.to_owned(),
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

    /// Reads the object of such a message. `None` if it is none, or came without its lists. What this market does not know is
    /// passed over.
    pub fn read(object: &str, market: Market) -> Option<Self> {
        let document: Document = serde_json::from_str(object).ok()?;
        let lists = document.lists.filter(|_| document.status == Self::STATUS)?;
        let parse = |item: &String| Channel::parse(item, market).ok();
        let set = |items: &[String]| items.iter().filter_map(parse).collect();
        let mut refused = BTreeMap::new();
        for Refusal { reason, channels } in &lists.refused {
            refused.extend(channels.iter().filter_map(parse).map(|c| (c, cut(reason))));
        }
        Some(Self { carried: set(&lists.carried), pending: set(&lists.pending), refused })
    }
}

/// What a subscription does not bring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shortfall {
    /// Nothing comes of it, for this reason.
    Whole(String),
    /// Only this comes of it.
    Part(String),
}

impl Shortfall {
    /// The upstream refused `by`, which the subscription is or needs.
    pub fn refused(by: &Channel, why: &str) -> Self {
        Self::Whole(format!("upstream refused {by}: {why}"))
    }

    /// The status that tells a client, which wrote its item so.
    pub fn status(&self, item: &str) -> Status {
        match self {
            Self::Whole(why) => Status::error(format!("{item:?} is not carried: {why}")),
            Self::Part(what) => Status::error(format!("{item:?} is carried in part: {what}")),
        }
    }
}

/// Frames that tell what these channels lack `now`, as far as it is not what was known `before`.
pub fn news<'a>(
    channels: impl IntoIterator<Item = &'a Channel>,
    now: impl Fn(&Channel) -> Option<Shortfall>,
    before: impl Fn(&Channel) -> Option<Shortfall>,
) -> Vec<Frame> {
    let statuses = channels.into_iter().filter_map(|channel| {
        let shortfall = now(channel)?;
        (before(channel).as_ref() != Some(&shortfall))
            .then(|| shortfall.status(&channel.to_string()))
    });
    status_frames(&statuses.collect::<Vec<Status>>())
}

/// A reason of the upstream, cut to a length that can be repeated.
pub fn cut(reason: &str) -> String {
    reason.chars().take(MAX_REASON).collect()
}

/// The first few channels, and how many more there are.
pub fn some<'a>(channels: impl Iterator<Item = &'a Channel>) -> String {
    let mut channels = channels.fuse();
    let named: Vec<String> = channels.by_ref().take(NAMED).map(ToString::to_string).collect();
    match (named.is_empty(), channels.count()) {
        (true, _) => "nothing".to_owned(),
        (false, 0) => named.join(", "),
        (false, more) => format!("{} and {more} more", named.join(", ")),
    }
}

fn names(channels: &BTreeSet<Channel>) -> Vec<String> {
    channels.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::channel::items;

    fn channels(list: &str) -> BTreeSet<Channel> {
        items(list).map(|item| Channel::parse(item, Market::Stocks).unwrap()).collect()
    }

    fn refused(list: &str) -> BTreeMap<Channel, String> {
        channels(list).into_iter().map(|channel| (channel, "not authorized".to_owned())).collect()
    }

    #[test]
    fn what_is_told_is_a_status_that_every_client_can_read() {
        let carried = Carried {
            carried: channels("T.*"),
            pending: channels("Q.*"),
            refused: refused("NOI.*,FMV.*"),
        };
        assert_eq!(
            carried.frame("firehose").text(),
            br#"[{"ev":"status","status":"carried","message":"* stands for T.*, Q.*; upstream refused NOI.*, FMV.*","tier":"firehose","carried":["T.*"],"pending":["Q.*"],"refused":[{"reason":"not authorized","channels":["NOI.*","FMV.*"]}]}]"#
        );
    }

    #[test]
    fn what_is_told_is_read_back() {
        let carried = Carried {
            carried: channels("T.*,AM.BRK.B"),
            pending: channels("Q.*"),
            refused: refused("FMV.*"),
        };
        let text = String::from_utf8(carried.frame("firehose").text().to_vec()).unwrap();
        let object = &text[1..text.len() - 1];
        assert_eq!(Carried::read(object, Market::Stocks), Some(carried));
        for other in [
            r#"{"ev":"status","status":"gap","message":""}"#,
            r#"{"ev":"status","status":"carried","message":""}"#,
            r#"{"ev":"status","status":"carried","carried":7}"#,
            r#"{"ev":"status","status":"gap","message":"","carried":[],"pending":[],"refused":[]}"#,
            "[]",
        ] {
            assert_eq!(Carried::read(other, Market::Stocks), None, "{other}");
        }
    }

    #[test]
    fn lists_that_do_not_fit_are_left_out() {
        let many =
            (0..100_000).map(|n| Channel::parse(&format!("T.S{n}"), Market::Stocks).unwrap());
        let carried = Carried { carried: many.collect(), ..Carried::default() };
        let text = String::from_utf8(carried.frame("firehose").text().to_vec()).unwrap();
        assert_eq!(
            text,
            r#"[{"ev":"status","status":"carried","message":"* stands for T.S0, T.S1, T.S10, T.S100, T.S1000 and 99995 more","tier":"firehose"}]"#
        );
        assert_eq!(Carried::read(&text[1..text.len() - 1], Market::Stocks), None);
    }

    #[test]
    fn a_client_is_told_the_item_and_the_reason() {
        let fmv = channels("FMV.*").pop_first().unwrap();
        assert_eq!(
            Shortfall::refused(&fmv, "not authorized").status("FMV.AAPL").message,
            r#""FMV.AAPL" is not carried: upstream refused FMV.*: not authorized"#
        );
        assert_eq!(
            Shortfall::Part("AM.SPY".to_owned()).status("AM.*").message,
            r#""AM.*" is carried in part: AM.SPY"#
        );
    }

    #[test]
    fn what_is_told_anew_is_what_was_not_known() {
        let lack = |why: &'static str| move |_: &Channel| Some(Shortfall::Whole(why.to_owned()));
        let held = channels("T.A,T.B");
        assert!(news(&held, |_| None, lack("refused")).is_empty());
        assert!(news(&held, lack("refused"), lack("refused")).is_empty());
        let text = br#"[{"ev":"status","status":"error","message":"\"T.A\" is not carried: refused"},{"ev":"status","status":"error","message":"\"T.B\" is not carried: refused"}]"#;
        for before in [None, Some("pending")] {
            let frames = news(&held, lack("refused"), |c| before.and_then(|why| lack(why)(c)));
            let texts: Vec<&[u8]> = frames.iter().map(Frame::text).collect();
            assert_eq!(texts, [text]);
        }
    }

    #[test]
    fn long_lists_and_reasons_are_cut() {
        assert_eq!(cut(&"é".repeat(201)), "é".repeat(200));
        assert_eq!(cut("short"), "short");
        assert_eq!(some(channels("").iter()), "nothing");
        assert_eq!(some(channels("T.A,T.B,T.C,T.D,T.E").iter()), "T.A, T.B, T.C, T.D, T.E");
        let six = channels("T.A,T.B,T.C,T.D,T.E,T.F");
        assert_eq!(some(six.iter()), "T.A, T.B, T.C, T.D, T.E and 1 more");
    }
}
