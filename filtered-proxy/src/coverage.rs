//! The channels that the firehose carries, as far as they are known, and why a subscription misses
//! events because of that. Pure.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::protocol::{
    Channel, Coverage, ExtraKinds, Kind, Unavailable, summarize_channels,
};

/// The coverage that the firehose reported last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownCoverage {
    /// Changes with every report.
    version: u64,
    /// `None` if the firehose did not report any.
    reported: Option<Reported>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Reported {
    /// Channels that are carried, or asked for and not yet answered.
    offered: BTreeSet<Channel>,
    refused: BTreeMap<Channel, String>,
    /// The kinds of both.
    kinds: BTreeSet<Kind>,
    /// Kinds that are served by contract only, and how many contracts of each.
    on_demand: BTreeSet<Kind>,
    contracts: usize,
}

impl KnownCoverage {
    /// The coverage after this report of a firehose; `None` if the firehose did not report one.
    ///
    /// A refused channel stays refused if a later report has it pending again: the firehose may
    /// have restarted, and the account's plan is most likely the same.
    pub fn after(&self, report: Option<Coverage>) -> Self {
        let reported = report.map(|report| {
            let Coverage { carried: mut offered, pending, mut refused, on_demand, contracts } =
                report;
            for channel in pending {
                match self.reported.as_ref().and_then(|before| before.refused.get(&channel)) {
                    Some(why) => _ = refused.insert(channel, why.clone()),
                    None => _ = offered.insert(channel),
                }
            }
            let kinds = offered.iter().chain(refused.keys()).filter_map(Channel::kind).collect();
            Reported { offered, refused, kinds, on_demand, contracts }
        });
        Self { version: self.version + 1, reported }
    }

    /// The version of the coverage, which changes with every report.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The kinds that the firehose asks for upstream.
    pub fn kinds(&self) -> ExtraKinds {
        match &self.reported {
            Some(reported) => ExtraKinds::These(reported.kinds.clone()),
            None => ExtraKinds::Unnamed,
        }
    }

    /// The kinds that are served by contract only.
    pub fn on_demand(&self) -> BTreeSet<Kind> {
        self.reported.as_ref().map(|reported| reported.on_demand.clone()).unwrap_or_default()
    }

    /// Whether this is a contract of such a kind.
    pub fn is_on_demand(&self, channel: &Channel) -> bool {
        let Channel::Symbol(kind, _) = channel else { return false };
        self.reported.as_ref().is_some_and(|reported| reported.on_demand.contains(kind))
    }

    /// The contracts of such kinds that `*` includes.
    pub fn listed(&self) -> BTreeSet<Channel> {
        let offered = self.reported.iter().flat_map(|reported| &reported.offered);
        offered.filter(|channel| self.is_on_demand(channel)).cloned().collect()
    }

    /// Why a subscription of this channel delivers nothing, or only a part; `None` if it misses
    /// nothing, as far as known. `*` misses nothing, because it stands for the channels carried.
    pub fn unavailable(&self, channel: &Channel) -> Option<Unavailable> {
        if self.is_on_demand(channel) {
            return None;
        }
        let Reported { offered, refused, on_demand, contracts, .. } = self.reported.as_ref()?;
        let kind = channel.kind()?;
        let whole = Channel::Kind(kind);
        if offered.contains(&whole) || offered.contains(channel) {
            return None;
        }
        let first = Channel::Symbol(kind, "".into());
        let mut symbols = offered
            .range(first..)
            .take_while(|channel| matches!(channel, Channel::Symbol(k, _) if *k == kind))
            .peekable();
        let refusal = [channel, &whole]
            .into_iter()
            .find_map(|by| refused.get(by).map(|why| Unavailable::refused(by, why)));
        Some(match (refusal, symbols.peek()) {
            (_, Some(_)) if *channel == whole => Unavailable::Part(summarize_channels(symbols)),
            (None, _) if on_demand.contains(&kind) => Unavailable::by_contract(kind, *contracts),
            (Some(refusal), _) => refusal,
            (None, Some(_)) => {
                let only = summarize_channels(symbols);
                Unavailable::Whole(format!(
                    "of {kind} the firehose takes from upstream only {only}"
                ))
            }
            (None, None) => {
                Unavailable::Whole(format!("the firehose takes no {kind} from upstream"))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_common::protocol::{Market, channel_items};

    fn channels(list: &str) -> BTreeSet<Channel> {
        channel_items(list).map(|item| Channel::parse(item, Market::Stocks).unwrap()).collect()
    }

    fn report(carried: &str, pending: &str, refused: &str) -> Coverage {
        let why = "not authorized".to_owned();
        let refused = channels(refused).into_iter().map(|channel| (channel, why.clone())).collect();
        let (carried, pending) = (channels(carried), channels(pending));
        Coverage { carried, pending, refused, ..Coverage::default() }
    }

    #[track_caller]
    fn check(coverage: &KnownCoverage, item: &str, expected: &str) {
        let channel = channels(item).pop_first().unwrap();
        let message =
            coverage.unavailable(&channel).map(|unavailable| unavailable.status(item).message);
        assert_eq!(message.unwrap_or_default(), expected);
    }

    #[test]
    fn an_unavailable_subscription_gets_the_reason() {
        let coverage = KnownCoverage::default().after(Some(report(
            "T.*,AM.SPY,AM.QQQ",
            "Q.*",
            "FMV.*,A.SPY,AM.IWM",
        )));
        for whole in ["*", "T.*", "T.AAPL", "Q.*", "Q.AAPL", "AM.SPY"] {
            check(&coverage, whole, "");
        }
        let refused = r#""FMV.AAPL" is not carried: upstream refused FMV.*: not authorized"#;
        check(&coverage, "FMV.AAPL", refused);
        let refused = r#""A.SPY" is not carried: upstream refused A.SPY: not authorized"#;
        check(&coverage, "A.SPY", refused);
        let refused = r#""AM.IWM" is not carried: upstream refused AM.IWM: not authorized"#;
        check(&coverage, "AM.IWM", refused);
        check(&coverage, "AM.*", r#""AM.*" is carried in part: AM.QQQ, AM.SPY"#);
        let only = "of AM the firehose takes from upstream only AM.QQQ, AM.SPY";
        check(&coverage, "AM.AAPL", &format!(r#""AM.AAPL" is not carried: {only}"#));
        let none = r#""LV.*" is not carried: the firehose takes no LV from upstream"#;
        check(&coverage, "LV.*", none);
    }

    #[test]
    fn a_prefix_needs_its_whole_kind() {
        let coverage =
            KnownCoverage::default().after(Some(report("T.*,AM.SPY", "Q.*", "FMV.*,A.SPY")));
        check(&coverage, "T.S*", "");
        check(&coverage, "Q.S*", "");
        let refused = r#""FMV.S*" is not carried: upstream refused FMV.*: not authorized"#;
        check(&coverage, "FMV.S*", refused);
        let only = "of AM the firehose takes from upstream only AM.SPY";
        check(&coverage, "AM.S*", &format!(r#""AM.S*" is not carried: {only}"#));
        for kind in ["A", "LV"] {
            let none = format!("the firehose takes no {kind} from upstream");
            let item = format!("{kind}.S*");
            check(&coverage, &item, &format!("{item:?} is not carried: {none}"));
        }
    }

    #[test]
    fn the_kinds_are_those_that_the_firehose_asks_for() {
        let kinds = |list: &str| {
            ExtraKinds::These(channels(list).iter().filter_map(Channel::kind).collect())
        };
        let unknown = KnownCoverage::default();
        assert_eq!(unknown.kinds(), ExtraKinds::Unnamed);
        let known = unknown.after(Some(report("T.*,NEW9.AAPL", "NEW8.*", "NEW7.*")));
        assert_eq!(known.kinds(), kinds("T.*,NEW9.*,NEW8.*,NEW7.*"));
        let none = r#""NEW6.A" is not carried: the firehose takes no NEW6 from upstream"#;
        check(&known, "NEW6.A", none);
        assert_eq!(known.after(None).kinds(), ExtraKinds::Unnamed);
    }

    #[test]
    fn a_type_on_demand_is_refused_whole_and_its_contracts_are_not() {
        let on_demand = BTreeSet::from([Kind::Q, Kind::FMV]);
        let report = Coverage { on_demand, contracts: 1_000, ..report("T.*,Q.O:A", "", "") };
        let coverage = KnownCoverage::default().after(Some(report));
        for item in ["*", "T.O:B", "Q.O:B", "FMV.O:B"] {
            check(&coverage, item, "");
        }
        check(&coverage, "Q.*", r#""Q.*" is carried in part: Q.O:A"#);
        check(
            &coverage,
            "FMV.*",
            r#""FMV.*" is not carried: upstream serves FMV by contract only, 1000 at a time: name contracts, such as FMV.O:SPY261218C00600000"#,
        );
        check(
            &coverage,
            "Q.O:A*",
            r#""Q.O:A*" is not carried: upstream serves Q by contract only, 1000 at a time: name contracts, such as Q.O:SPY261218C00600000"#,
        );
        assert_eq!(coverage.listed(), channels("Q.O:A"));
        assert!(coverage.is_on_demand(&channels("Q.O:B").pop_first().unwrap()));
        assert!(!coverage.is_on_demand(&channels("Q.*").pop_first().unwrap()));
    }

    #[test]
    fn a_refusal_lasts_until_a_new_answer() {
        let before = KnownCoverage::default().after(Some(report("T.*", "", "FMV.*,NOI.*")));
        let restarted = before.after(Some(report("", "T.*,FMV.*,LULD.*", "")));
        let refused = r#""FMV.*" is not carried: upstream refused FMV.*: not authorized"#;
        check(&restarted, "FMV.*", refused);
        check(&restarted, "T.*", "");
        check(&restarted, "LULD.*", "");
        let none = r#""NOI.*" is not carried: the firehose takes no NOI from upstream"#;
        check(&restarted, "NOI.*", none);
        let answered = restarted.after(Some(report("T.*,FMV.*", "LULD.*", "")));
        check(&answered, "FMV.*", "");
    }
}
