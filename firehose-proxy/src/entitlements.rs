//! What can be had of the vendor: which of the channels asked for it refuses, and which of those that `*` stands for it has
//! answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use proxy_common::{
    link::{Wanted, subscriptions::Change},
    protocol::{
        channel::Channel,
        coverage::{Carried, Shortfall, cut},
        market::{Kind, Market},
    },
    websocket::frame::Frame,
};

use crate::TIER;

/// Refusals by channel, in the vendor's words.
pub type Refusals = BTreeMap<Channel, String>;

/// What is known of the vendor's offer. It outlives the connection: a plan does not change with it.
#[derive(Debug)]
pub struct Offer {
    market: Market,
    /// What `*` stands for.
    all: BTreeSet<Channel>,
    /// Held for the length of one look or change.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Of what `*` stands for, what was answered at least once.
    answered: BTreeSet<Channel>,
    /// Of what is wanted now, what was refused. Shared with sessions, which tell by it what is new.
    refused: Arc<Refusals>,
}

impl Offer {
    /// Nothing is known yet. `all` is what `*` stands for.
    pub fn new(market: Market, all: BTreeSet<Channel>) -> Self {
        Self { market, all, known: Mutex::default() }
    }

    /// Takes in what the vendor answered. Returns whether that is news for sessions: something is refused now or is no more,
    /// or all that `*` stands for is answered now.
    pub fn learn(&self, changes: &[Change]) -> bool {
        let known = &mut *self.known();
        let mut refused = Refusals::clone(&known.refused);
        let complete = known.answered.len() == self.all.len();
        for change in changes {
            let channel = match change {
                Change::Refused(channel, why) => {
                    refused.insert(channel.clone(), cut(why));
                    channel
                }
                Change::Carried(channel) => {
                    refused.remove(channel);
                    channel
                }
                // The vendor may be slow, or may keep silent on what it does not know: no refusal.
                Change::Unanswered(channel) => channel,
            };
            if self.all.contains(channel) {
                known.answered.insert(channel.clone());
            }
        }
        let news =
            refused != *known.refused || (!complete && known.answered.len() == self.all.len());
        known.refused = Arc::new(refused);
        news
    }

    /// Forgets refusals of what nobody wants any more: it is asked again when somebody does.
    pub fn retain(&self, wanted: &Wanted) {
        let known = &mut *self.known();
        if known.refused.keys().any(|channel| !wanted.contains(channel)) {
            Arc::make_mut(&mut known.refused).retain(|channel, _| wanted.contains(channel));
        }
    }

    /// The refusals of this moment.
    pub fn refused(&self) -> Arc<Refusals> {
        Arc::clone(&self.known().refused)
    }

    /// What a subscription of this channel would lack under these refusals.
    pub fn shortfall(&self, channel: &Channel, refused: &Refusals) -> Option<Shortfall> {
        let by =
            |channel: &Channel| refused.get(channel).map(|why| Shortfall::refused(channel, why));
        match channel {
            Channel::All => None,
            Channel::Kind(_) => by(channel),
            Channel::Symbol(kind, _) => {
                by(channel).or_else(|| by(&Channel::Kind(*kind)).filter(|_| self.is_whole(*kind)))
            }
        }
    }

    /// Whether symbols of this kind are not asked for while the kind itself is.
    fn is_whole(&self, kind: Kind) -> bool {
        self.market.default_kinds().contains(&kind)
    }

    /// The message for those who hold `*`: what it stands for.
    pub fn frame(&self) -> Frame {
        let known = &*self.known();
        let mut told = Carried::default();
        for channel in &self.all {
            if let Some(why) = known.refused.get(channel) {
                told.refused.insert(channel.clone(), why.clone());
            } else if known.answered.contains(channel) {
                told.carried.insert(channel.clone());
            } else {
                told.pending.insert(channel.clone());
            }
        }
        told.frame(TIER)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(item: &str, market: Market) -> Channel {
        Channel::parse(item, market).unwrap()
    }

    fn offer(market: Market, all: &[&str]) -> Offer {
        Offer::new(market, all.iter().map(|item| channel(item, market)).collect())
    }

    fn carried(item: &str) -> Change {
        Change::Carried(channel(item, Market::Stocks))
    }

    fn refused(item: &str) -> Change {
        Change::Refused(channel(item, Market::Stocks), "not authorized".to_owned())
    }

    fn lacks(offer: &Offer, item: &str) -> bool {
        offer.shortfall(&channel(item, offer.market), &offer.refused()).is_some()
    }

    #[test]
    fn refusals_and_the_last_answer_are_news() {
        let offer = offer(Market::Stocks, &["T.*", "FMV.*"]);
        assert!(!offer.learn(&[carried("T.*")]), "FMV.* is awaited");
        assert!(offer.learn(&[refused("FMV.*")]));
        assert!(!offer.learn(&[carried("T.*"), refused("FMV.*")]), "the same after a reconnect");
        assert!(lacks(&offer, "FMV.*") && lacks(&offer, "FMV.AAPL"));
        assert!(!lacks(&offer, "T.AAPL") && !lacks(&offer, "*") && !lacks(&offer, "NOI.AAPL"));
        assert!(offer.learn(&[carried("FMV.*")]), "another plan");
        assert!(!lacks(&offer, "FMV.*"));
        let silent = channel("NOI.*", Market::Stocks);
        assert!(!offer.learn(&[Change::Unanswered(silent)]));
    }

    #[test]
    fn what_nobody_wants_any_more_is_asked_again() {
        let offer = offer(Market::Stocks, &["T.*"]);
        offer.learn(&[refused("LV.AAPL"), refused("T.*")]);
        offer.retain(&Wanted::from([channel("T.*", Market::Stocks)]));
        assert!(!lacks(&offer, "LV.AAPL"));
        assert!(lacks(&offer, "T.AAPL"));
        assert!(offer.learn(&[refused("LV.AAPL")]), "refused anew");
    }

    #[test]
    fn a_kind_served_by_symbol_only_says_nothing_about_its_symbols() {
        let offer = offer(Market::Options, &["T.*"]);
        let quotes = channel("Q.*", Market::Options);
        offer.learn(&[Change::Refused(quotes, "not authorized".to_owned())]);
        assert!(lacks(&offer, "Q.*"));
        assert!(!lacks(&offer, "Q.O:SPY251219C00650000"));
    }

    #[test]
    fn star_is_told_by_what_was_answered() {
        let offer = offer(Market::Stocks, &["T.*", "Q.*", "FMV.*"]);
        offer.learn(&[carried("T.*"), refused("FMV.*"), refused("LV.AAPL")]);
        assert_eq!(
            offer.frame().text(),
            br#"[{"ev":"status","status":"carried","message":"* stands for T.*, Q.*; upstream refused FMV.*","tier":"firehose","carried":["T.*"],"pending":["Q.*"],"refused":[{"reason":"not authorized","channels":["FMV.*"]}]}]"#
        );
    }
}
