//! What the firehose carries, as it told, and what a subscription lacks because of it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::protocol::{
    channel::Channel,
    coverage::{Carried, Shortfall, some},
};

/// What the firehose carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carriage {
    /// What comes, or is being asked for.
    offer: BTreeSet<Channel>,
    refused: BTreeMap<Channel, String>,
}

impl Carriage {
    /// What is known after a firehose told this. Of what it awaits an answer for, the earlier refusal holds on: it may have
    /// started again, and the plan is most likely the same.
    pub fn after(before: Option<&Self>, told: Carried) -> Self {
        let Carried { carried: mut offer, pending, mut refused } = told;
        for channel in pending {
            match before.and_then(|before| before.refused.get(&channel)) {
                Some(why) => {
                    refused.insert(channel, why.clone());
                }
                None => {
                    offer.insert(channel);
                }
            }
        }
        Self { offer, refused }
    }

    /// What a subscription of this channel lacks. `*` lacks nothing: it stands for what is carried.
    pub fn shortfall(&self, channel: &Channel) -> Option<Shortfall> {
        let kind = match channel {
            Channel::All => return None,
            Channel::Kind(kind) | Channel::Symbol(kind, _) => *kind,
        };
        let whole = Channel::Kind(kind);
        if self.offer.contains(&whole) || self.offer.contains(channel) {
            return None;
        }
        let first = Channel::Symbol(kind, "".into());
        let mut symbols = self
            .offer
            .range(first..)
            .take_while(|channel| matches!(channel, Channel::Symbol(k, _) if *k == kind))
            .peekable();
        let refused = [channel, &whole]
            .into_iter()
            .find_map(|by| self.refused.get(by).map(|why| Shortfall::refused(by, why)));
        Some(match (refused, symbols.peek()) {
            (_, Some(_)) if *channel == whole => Shortfall::Part(some(symbols)),
            (Some(refused), _) => refused,
            (None, Some(_)) => {
                let some = some(symbols);
                Shortfall::Whole(format!("of {kind} the firehose takes from upstream only {some}"))
            }
            (None, None) => Shortfall::Whole(format!("the firehose takes no {kind} from upstream")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_common::protocol::{channel::items, market::Market};

    fn channels(list: &str) -> BTreeSet<Channel> {
        items(list).map(|item| Channel::parse(item, Market::Stocks).unwrap()).collect()
    }

    fn told(carried: &str, pending: &str, refused: &str) -> Carried {
        let why = "not authorized".to_owned();
        let refused = channels(refused).into_iter().map(|channel| (channel, why.clone())).collect();
        Carried { carried: channels(carried), pending: channels(pending), refused }
    }

    #[track_caller]
    fn check(carriage: &Carriage, item: &str, expected: &str) {
        let channel = channels(item).pop_first().unwrap();
        let said = carriage.shortfall(&channel).map(|shortfall| shortfall.status(item).message);
        assert_eq!(said.unwrap_or_default(), expected);
    }

    #[test]
    fn what_a_subscription_lacks_is_said_with_the_reason() {
        let carriage =
            Carriage::after(None, told("T.*,AM.SPY,AM.QQQ", "Q.*", "FMV.*,A.SPY,AM.IWM"));
        for whole in ["*", "T.*", "T.AAPL", "Q.*", "Q.AAPL", "AM.SPY"] {
            check(&carriage, whole, "");
        }
        let refused = r#""FMV.AAPL" is not carried: upstream refused FMV.*: not authorized"#;
        check(&carriage, "FMV.AAPL", refused);
        let refused = r#""A.SPY" is not carried: upstream refused A.SPY: not authorized"#;
        check(&carriage, "A.SPY", refused);
        let refused = r#""AM.IWM" is not carried: upstream refused AM.IWM: not authorized"#;
        check(&carriage, "AM.IWM", refused);
        check(&carriage, "AM.*", r#""AM.*" is carried in part: AM.QQQ, AM.SPY"#);
        let only = "of AM the firehose takes from upstream only AM.QQQ, AM.SPY";
        check(&carriage, "AM.AAPL", &format!(r#""AM.AAPL" is not carried: {only}"#));
        let none = r#""LV.*" is not carried: the firehose takes no LV from upstream"#;
        check(&carriage, "LV.*", none);
    }

    #[test]
    fn a_refusal_holds_on_until_it_is_answered_anew() {
        let before = Carriage::after(None, told("T.*", "", "FMV.*,NOI.*"));
        let restarted = Carriage::after(Some(&before), told("", "T.*,FMV.*,LULD.*", ""));
        let refused = r#""FMV.*" is not carried: upstream refused FMV.*: not authorized"#;
        check(&restarted, "FMV.*", refused);
        check(&restarted, "T.*", "");
        check(&restarted, "LULD.*", "");
        let none = r#""NOI.*" is not carried: the firehose takes no NOI from upstream"#;
        check(&restarted, "NOI.*", none);
        let answered = Carriage::after(Some(&restarted), told("T.*,FMV.*", "LULD.*", ""));
        check(&answered, "FMV.*", "");
    }
}
