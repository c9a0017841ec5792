//! The account's entitlements: the channels that the vendor refuses, and the channels of `*` that
//! it has answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use proxy_common::{
    link::SubscriptionOutcome,
    protocol::{
        Channel, Coverage, Kind, TierName, Unavailable, summarize_channels, truncate_reason,
    },
    websocket::Frame,
};

use crate::sources::Sources;

/// The channels that the vendor refuses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Changes whenever the refusals do, and when the last channel of `*` is answered.
    pub version: u64,
    /// The vendor's reason for each channel.
    pub reasons: BTreeMap<Channel, String>,
}

/// The vendor's answers so far. They outlive the connection, because the account's plan does.
#[derive(Debug)]
pub struct Entitlements {
    sources: Arc<Sources>,
    /// The channels that `*` stands for.
    all: BTreeSet<Channel>,
    /// Their kinds.
    kinds: BTreeSet<Kind>,
    /// Kinds that are served by contract only, and how many contracts of each.
    on_demand: BTreeSet<Kind>,
    contracts: usize,
    /// Locked for one read or change.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The channels of `*` that the vendor has answered at least once.
    answered: BTreeSet<Channel>,
    /// The wanted channels that the vendor refuses. Sessions keep a clone, and compare it to see a
    /// change.
    refused: Arc<Refusals>,
}

impl Known {
    fn set_refused(&mut self, reasons: BTreeMap<Channel, String>) {
        self.refused = Arc::new(Refusals { version: self.refused.version + 1, reasons });
    }
}

impl Entitlements {
    /// Starts without an answer. `all` holds the channels that `*` stands for. Of the kinds
    /// `on_demand`, this many contracts are served.
    pub fn new(
        sources: Arc<Sources>,
        all: BTreeSet<Channel>,
        on_demand: BTreeSet<Kind>,
        contracts: usize,
    ) -> Self {
        let kinds = all.iter().filter_map(Channel::kind).collect();
        Self { sources, all, kinds, on_demand, contracts, known: Mutex::default() }
    }

    /// The kinds that the operator chose for `*`.
    pub fn kinds(&self) -> &BTreeSet<Kind> {
        &self.kinds
    }

    /// Applies the vendor's answers. Returns whether sessions must be notified: the refusals
    /// changed, or the last channel of `*` was answered.
    pub fn update(&self, outcomes: &[SubscriptionOutcome]) -> bool {
        let known = &mut *self.known();
        let mut reasons = known.refused.reasons.clone();
        let complete = known.answered.len() == self.all.len();
        for outcome in outcomes {
            let channel = match outcome {
                // Contracts on demand have a standing of their own. Those of `*` are listed here.
                SubscriptionOutcome::Carried(channel)
                | SubscriptionOutcome::Refused(channel, _)
                | SubscriptionOutcome::Unanswered(channel)
                    if self.is_on_demand(channel) && !self.all.contains(channel) =>
                {
                    continue;
                }
                SubscriptionOutcome::Full(..) => continue,
                SubscriptionOutcome::Refused(channel, why) => {
                    reasons.insert(channel.clone(), truncate_reason(why));
                    channel
                }
                SubscriptionOutcome::Carried(channel) => {
                    reasons.remove(channel);
                    channel
                }
                // Counts as answered: the vendor may be slow, or may not answer for a type that it
                // does not know.
                SubscriptionOutcome::Unanswered(channel) => channel,
            };
            if self.all.contains(channel) {
                known.answered.insert(channel.clone());
            }
        }
        let changed = reasons != known.refused.reasons
            || (!complete && known.answered.len() == self.all.len());
        if changed {
            known.set_refused(reasons);
        }
        changed
    }

    /// Forgets refusals of channels that are not wanted any more. Once they are wanted again, the
    /// link asks the vendor again, and until then they are pending.
    pub fn retain(&self, wanted: &BTreeSet<Channel>) {
        let wanted = |channel: &Channel| wanted.contains(channel) || self.is_on_demand(channel);
        let known = &mut *self.known();
        let Known { answered, refused } = known;
        let forgotten: Vec<_> = refused.reasons.keys().filter(|channel| !wanted(channel)).collect();
        if !forgotten.is_empty() {
            let mut reasons = refused.reasons.clone();
            for channel in forgotten {
                reasons.remove(channel);
                answered.remove(channel);
            }
            known.set_refused(reasons);
        }
    }

    /// The current refusals.
    pub fn refused(&self) -> Arc<Refusals> {
        Arc::clone(&self.known().refused)
    }

    /// Why a subscription of this channel delivers nothing under these refusals; `None` if they do
    /// not concern it. A prefix needs its whole kind.
    pub fn unavailable(&self, channel: &Channel, refused: &Refusals) -> Option<Unavailable> {
        let by = |channel: &Channel| {
            refused.reasons.get(channel).map(|why| Unavailable::refused(channel, why))
        };
        match channel {
            Channel::All => None,
            Channel::Kind(kind) if self.on_demand.contains(kind) => {
                let listed = self.all.iter().filter(|channel| channel.kind() == Some(*kind));
                let mut listed = listed.peekable();
                Some(match listed.peek() {
                    Some(_) => Unavailable::Part(summarize_channels(listed)),
                    None => Unavailable::by_contract(*kind, self.contracts),
                })
            }
            Channel::Symbol(..) if self.is_on_demand(channel) => None,
            Channel::Kind(_) => by(channel),
            Channel::Prefix(prefix) if self.sources.serves_whole(prefix.kind) => {
                by(&Channel::Kind(prefix.kind))
            }
            Channel::Prefix(prefix) => Some(Unavailable::by_contract(prefix.kind, self.contracts)),
            Channel::Symbol(kind, _) => {
                // A kind without a wildcard, such as option quotes, is asked for by symbol. Its
                // refusal does not concern its symbols.
                let whole = || self.sources.serves_whole(*kind).then(|| by(&Channel::Kind(*kind)));
                by(channel).or_else(|| whole()?)
            }
        }
    }

    /// The status for sessions that hold `*`: the channels that `*` stands for.
    pub fn coverage_frame(&self) -> Frame {
        let known = &*self.known();
        let mut coverage = Coverage {
            on_demand: self.on_demand.clone(),
            contracts: self.contracts,
            ..Coverage::default()
        };
        for channel in &self.all {
            if let Some(why) = known.refused.reasons.get(channel) {
                coverage.refused.insert(channel.clone(), why.clone());
            } else if known.answered.contains(channel) {
                coverage.carried.insert(channel.clone());
            } else {
                coverage.pending.insert(channel.clone());
            }
        }
        coverage.frame(TierName::Firehose)
    }

    fn is_on_demand(&self, channel: &Channel) -> bool {
        matches!(channel, Channel::Symbol(kind, _) if self.on_demand.contains(kind))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::protocol::{Feed, Market};

    use super::*;
    use crate::sources::Source;

    fn channel(item: &str, market: Market) -> Channel {
        Channel::parse(item, market).unwrap()
    }

    fn entitlements_of(market: Market, all: &[&str]) -> Entitlements {
        let feed = Feed::new(market, "socket.massive.com");
        let all = all.iter().map(|item| channel(item, market)).collect();
        let sources = Arc::new(Sources::new(vec![Source { feed, kinds: BTreeSet::new() }], 1));
        Entitlements::new(sources, all, feed.on_demand_kinds().collect(), 1_000)
    }

    fn carried(item: &str) -> SubscriptionOutcome {
        SubscriptionOutcome::Carried(channel(item, Market::Stocks))
    }

    fn refused(item: &str) -> SubscriptionOutcome {
        SubscriptionOutcome::Refused(channel(item, Market::Stocks), "not authorized".to_owned())
    }

    fn lacks(entitlements: &Entitlements, item: &str) -> bool {
        let channel = channel(item, Market::Options);
        entitlements.unavailable(&channel, &entitlements.refused()).is_some()
    }

    #[test]
    fn refusals_and_the_last_answer_are_reported() {
        let entitlements = entitlements_of(Market::Stocks, &["T.*", "FMV.*"]);
        assert!(!entitlements.update(&[carried("T.*")]), "FMV.* is awaited");
        assert!(entitlements.update(&[refused("FMV.*")]));
        assert!(
            !entitlements.update(&[carried("T.*"), refused("FMV.*")]),
            "the same after a reconnect"
        );
        assert!(lacks(&entitlements, "FMV.*") && lacks(&entitlements, "FMV.AAPL"));
        assert!(
            !lacks(&entitlements, "T.AAPL")
                && !lacks(&entitlements, "*")
                && !lacks(&entitlements, "NOI.AAPL")
        );
        assert!(entitlements.update(&[carried("FMV.*")]), "the plan has changed");
        assert!(!lacks(&entitlements, "FMV.*"));
        let silent = channel("NOI.*", Market::Stocks);
        assert!(!entitlements.update(&[SubscriptionOutcome::Unanswered(silent)]));
    }

    #[test]
    fn a_refusal_is_forgotten_once_its_channel_is_unwanted() {
        let entitlements = entitlements_of(Market::Stocks, &["T.*"]);
        entitlements.update(&[refused("LV.AAPL"), refused("T.*")]);
        entitlements.retain(&[channel("T.*", Market::Stocks)].into());
        assert!(!lacks(&entitlements, "LV.AAPL"));
        assert!(lacks(&entitlements, "T.AAPL"));
        assert!(entitlements.update(&[refused("LV.AAPL")]), "refused again");
        entitlements.retain(&BTreeSet::new());
        let coverage = entitlements.coverage_frame();
        let pending = memchr::memmem::find(coverage.text(), br#""carried":[],"pending":["T.*"]"#);
        assert!(pending.is_some(), "not carried: {coverage:?}");
        assert!(entitlements.update(&[refused("T.*")]), "refused again");
    }

    #[test]
    fn a_kind_on_demand_is_refused_whole_and_says_nothing_about_its_contracts() {
        let contract = "Q.O:SPY251219C00650000";
        let refused = SubscriptionOutcome::Refused(
            channel(contract, Market::Options),
            "not authorized".to_owned(),
        );
        let answer = |entitlements: &Entitlements| {
            let quotes = channel("Q.*", Market::Options);
            let unavailable = entitlements.unavailable(&quotes, &entitlements.refused());
            unavailable.map(|unavailable| unavailable.status("Q.*").message).unwrap_or_default()
        };
        let entitlements = entitlements_of(Market::Options, &["T.*"]);
        assert!(!entitlements.update(std::slice::from_ref(&refused)));
        assert!(!lacks(&entitlements, contract) && !lacks(&entitlements, "T.*"));
        assert_eq!(
            answer(&entitlements),
            r#""Q.*" is not carried: upstream serves Q by contract only, 1000 at a time: name contracts, such as Q.O:SPY261218C00600000"#
        );
        // Contracts that the operator lists belong to `*`.
        let entitlements = entitlements_of(Market::Options, &["T.*", contract]);
        entitlements.update(&[refused]);
        assert_eq!(answer(&entitlements), format!(r#""Q.*" is carried in part: {contract}"#));
        let coverage = entitlements.coverage_frame();
        let text = str::from_utf8(coverage.text()).unwrap();
        assert!(text.contains(&format!(r#""channels":["{contract}"]"#)), "{text}");
        assert!(text.contains(r#""on_demand":["Q"],"contracts":1000"#), "{text}");
    }

    #[test]
    fn a_prefix_is_as_unavailable_as_its_kind() {
        let entitlements = entitlements_of(Market::Options, &["T.*", "A.*"]);
        assert!(!lacks(&entitlements, "T.O:SPY*") && !lacks(&entitlements, "A.O:SPY*"));
        entitlements.update(&[refused("A.*")]);
        assert!(!lacks(&entitlements, "T.O:SPY*") && lacks(&entitlements, "A.O:SPY*"));
        for item in ["Q.O:SPY*", "FMV.O:SPY*"] {
            let prefix = channel(item, Market::Options);
            let unavailable = entitlements.unavailable(&prefix, &entitlements.refused());
            let kind = prefix.kind().unwrap();
            assert_eq!(unavailable, Some(Unavailable::by_contract(kind, 1_000)));
        }
    }

    #[test]
    fn the_coverage_lists_the_answers() {
        let entitlements = entitlements_of(Market::Stocks, &["T.*", "Q.*", "FMV.*"]);
        entitlements.update(&[carried("T.*"), refused("FMV.*"), refused("LV.AAPL")]);
        assert_eq!(
            entitlements.coverage_frame().text(),
            br#"[{"ev":"status","status":"carried","message":"* stands for T.*, Q.*; upstream refused FMV.*","tier":"firehose","carried":["T.*"],"pending":["Q.*"],"refused":[{"reason":"not authorized","channels":["FMV.*"]}]}]"#
        );
    }
}
