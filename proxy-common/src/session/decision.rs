//! Decides on the items of a subscribe or unsubscribe command. Changes nothing and sends nothing.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    config::SessionConfig,
    tier::{Subscriber, SubscriptionChange},
};
use crate::{
    access::{KeyLease, MAX_LABEL},
    protocol::{
        Channel, Items, Market, NoticePolicy, OnBehalfOf, Start, Status, Unavailable,
        channel_items, hint, status_frames,
    },
};

/// Decides on each item of a command: one status for each, refusals first. A hint follows if a new
/// channel probably matches nothing. `None` if the command names no item.
///
/// The limits of the key hold for what is added. Whatever is held may be removed.
pub(super) fn decide(
    config: &SessionConfig,
    key: &KeyLease,
    subscriber: &impl Subscriber,
    items: &Items,
    subscribe: bool,
) -> Option<SubscriptionChange> {
    let SessionConfig { market, notices, .. } = *config;
    // Whoever asks for others limits each of them. The tier limits the contracts themselves.
    let for_others = items.on_behalf_of.is_some();
    let limit = if for_others { usize::MAX } else { config.max_subscriptions };
    // Read first: any later change of the coverage makes the decision outdated.
    let coverage_version = subscriber.coverage_version();
    let extra = subscriber.extra_kinds();
    let again = items.start != Start::Live || items.snapshot;
    let mut added = Added { channels: BTreeSet::new(), new: 0, limit, again };
    let (mut refusals, mut accepted) = (Vec::new(), Vec::new());
    let mut named = channel_items(&items.params);
    for item in named.by_ref().take(limit) {
        let channel = match Channel::parse_among(item, market, &extra)
            .or_else(|error| held_before(item, market, subscriber).ok_or(error))
        {
            Ok(channel) => channel,
            Err(error) => {
                refusals.push(Status::error(error.to_string()));
                continue;
            }
        };
        if subscribe && !key.limits().include(&channel) {
            refusals.push(not_for_key(key, market, subscriber, item, &channel));
        } else if subscribe {
            let (refusal, acceptance) = added.add(subscriber, item, channel);
            refusals.extend(refusal);
            accepted.extend(acceptance);
        } else {
            if subscriber.held().contains(&channel) {
                added.channels.insert(channel);
            }
            accepted.push(Status::unsubscribed(item));
        }
    }
    let ignored = named.count();
    if ignored > 0 {
        refusals.push(Status::error(format!(
            "a command may name {limit} channels at most: the last {ignored} were ignored"
        )));
    }
    refusals.append(&mut accepted);
    let channels = added.channels;
    if subscribe && notices == NoticePolicy::Everyone && !for_others {
        refusals.extend(hint(channels.iter(), market));
    }
    let reply = status_frames(&refusals);
    let on_behalf_of = items
        .on_behalf_of
        .as_ref()
        .map(|of| OnBehalfOf { key: shorten_label(&of.key), clients: of.clients });
    let change = SubscriptionChange {
        subscribe,
        channels,
        start: items.start,
        snapshot: items.snapshot,
        on_behalf_of,
        reply,
        coverage_version,
    };
    (!change.reply.is_empty() || !change.channels.is_empty()).then_some(change)
}

/// Removes what the session holds and its newest key may not have, with a status for each. `None`
/// if there is nothing of that kind.
///
/// A session answers for one key, its newest. If it kept what an older key was given, it would keep
/// that also when the older key is removed.
pub(super) fn narrow(
    market: Market,
    key: &KeyLease,
    subscriber: &impl Subscriber,
) -> Option<SubscriptionChange> {
    let held = subscriber.held().iter();
    let channels: BTreeSet<Channel> =
        held.filter(|channel| !key.limits().include(channel)).cloned().collect();
    let status =
        |channel: &Channel| not_for_key(key, market, subscriber, &channel.to_string(), channel);
    let reply = status_frames(&channels.iter().map(status).collect::<Vec<_>>());
    let coverage_version = subscriber.coverage_version();
    (!channels.is_empty()).then_some(SubscriptionChange {
        subscribe: false,
        channels,
        start: Start::Live,
        snapshot: false,
        on_behalf_of: None,
        reply,
        coverage_version,
    })
}

/// The answer to an item that the key may not have. For `*` it says what to ask for instead: the
/// types that the key may have and that are carried.
fn not_for_key(
    key: &KeyLease,
    market: Market,
    subscriber: &impl Subscriber,
    item: &str,
    channel: &Channel,
) -> Status {
    let (label, types) = (key.label(), key.limits().type_names());
    let mut message = format!("{item:?} is not for the key {label}, which may have {types}");
    if *channel == Channel::All {
        let extra = subscriber.extra_kinds();
        let wildcards = key.limits().types().map(|kind| format!("{kind}.*"));
        let carried = wildcards.filter(|wildcard| {
            Channel::parse_among(wildcard, market, &extra).is_ok_and(|channel| {
                !matches!(subscriber.unavailable(&channel), Some(Unavailable::Whole(_)))
            })
        });
        let carried = carried.collect::<Vec<_>>().join(", ");
        if !carried.is_empty() {
            message += &format!(": ask for {carried}");
        }
    }
    Status::error(message)
}

/// A label is no longer than those of keys.
fn shorten_label(label: &str) -> Arc<str> {
    label.chars().take(MAX_LABEL).collect::<String>().into()
}

/// The channel that an item names, if the session holds it: it was accepted before it was known
/// which kinds there are.
fn held_before(item: &str, market: Market, subscriber: &impl Subscriber) -> Option<Channel> {
    let channel = Channel::parse(item, market).ok()?;
    subscriber.held().contains(&channel).then_some(channel)
}

/// The channels that a command adds.
struct Added {
    channels: BTreeSet<Channel>,
    /// How many of them the session does not hold.
    new: usize,
    /// Most channels of a session.
    limit: usize,
    /// Whether the command is also about channels that the session holds.
    again: bool,
}

impl Added {
    /// Adds a channel, unless it is refused. Returns the refusal and the acknowledgement: both if
    /// the channel is carried in part.
    fn add(
        &mut self,
        subscriber: &impl Subscriber,
        item: &str,
        channel: Channel,
    ) -> (Option<Status>, Option<Status>) {
        let (held, limit) = (subscriber.held(), self.limit);
        let is_new = !held.contains(&channel) && !self.channels.contains(&channel);
        if is_new && held.len() + self.new >= limit {
            let full = format!("subscription limit of {limit} reached: {item:?} not subscribed");
            return (Some(Status::error(full)), None);
        }
        let on_demand = subscriber.is_on_demand(&channel);
        let unavailable = match on_demand {
            true => None,
            false => subscriber.unavailable(&channel),
        };
        let refusal = unavailable.as_ref().map(|unavailable| unavailable.status(item));
        if matches!(unavailable, Some(Unavailable::Whole(_))) {
            return (refusal, None);
        }
        self.new += usize::from(is_new);
        if is_new || on_demand || self.again {
            self.channels.insert(channel);
        }
        (refusal, (!on_demand).then(|| Status::subscribed(item)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::{Keys, LimitsKept, key_file_line},
        protocol::{ChannelSet, ExtraKinds, Kind},
        session::{ChangeOutcome, CloseReason},
    };

    /// A subscriber of a firehose that refuses FMV, also carries NEW9, and serves LV on demand.
    struct Fixed(ChannelSet);

    impl Subscriber for Fixed {
        fn held(&self) -> &ChannelSet {
            &self.0
        }

        fn coverage_version(&self) -> u64 {
            7
        }

        fn extra_kinds(&self) -> ExtraKinds {
            ExtraKinds::These(Kind::from_code(b"NEW9").into_iter().collect())
        }

        fn unavailable(&self, channel: &Channel) -> Option<Unavailable> {
            match channel {
                Channel::Kind(Kind::LV) => Some(Unavailable::by_contract(Kind::LV, 9)),
                _ if channel.kind() == Some(Kind::FMV) => {
                    Some(Unavailable::refused(channel, "not authorized"))
                }
                _ => None,
            }
        }

        fn is_on_demand(&self, channel: &Channel) -> bool {
            matches!(channel, Channel::Symbol(Kind::LV, _))
        }

        async fn change(&mut self, _: SubscriptionChange) -> Result<ChangeOutcome, CloseReason> {
            Ok(ChangeOutcome::Applied)
        }

        async fn pull(&mut self) -> Result<(), CloseReason> {
            Ok(())
        }
    }

    fn channels(list: &str) -> BTreeSet<Channel> {
        channel_items(list).map(|item| Channel::parse(item, Market::Stocks).unwrap()).collect()
    }

    fn holding(list: &str) -> Fixed {
        Fixed(channels(list).into_iter().collect())
    }

    /// A session's lease of the key `desk-a` with these limits.
    fn lease(limits: &str) -> (Keys, KeyLease) {
        let line = format!("{} {limits}", key_file_line("desk-a", &"abc".into()));
        let kept = LimitsKept::MarketsAndTypes;
        let keys = Keys::read("KEYS", Some(&line.into()), None, kept).unwrap().unwrap();
        let lease = keys.authenticate(&"abc".into()).unwrap();
        (keys, lease)
    }

    /// What a change adds or removes, and its messages.
    fn outcome(change: Option<SubscriptionChange>) -> (BTreeSet<Channel>, Vec<String>) {
        let change = change.expect("a change");
        let frames = change.reply.iter().flat_map(|frame| {
            serde_json::from_slice::<Vec<serde_json::Value>>(frame.text()).unwrap()
        });
        let messages = frames.map(|status| {
            let text = |name: &str| status[name].as_str().unwrap().to_owned();
            match text("status").as_str() {
                "success" => text("message"),
                status => format!("{status}: {}", text("message")),
            }
        });
        (change.channels, messages.collect())
    }

    #[track_caller]
    fn check(limits: &str, held: &str, items: &str, added: &str, messages: &[&str]) {
        let (keys, key) = lease(limits);
        let items = Items::live(items);
        let (config, subscriber) = (SessionConfig::for_tests(keys), holding(held));
        let decided = outcome(decide(&config, &key, &subscriber, &items, true));
        assert_eq!(decided, (channels(added), messages.iter().map(ToString::to_string).collect()));
    }

    #[test]
    fn a_key_with_a_limit_gets_its_types_and_reasons_for_the_others() {
        check(
            "types=T,AM,FMV,LV,NEW9",
            "",
            "T.AAPL,Q.AAPL,AM.*,A.A*,NEW9.X,FMV.*,LV.X,XQ.*,bad",
            "T.AAPL,AM.*,NEW9.X,LV.X",
            &[
                r#"error: "Q.AAPL" is not for the key desk-a, which may have T, AM, FMV, LV, NEW9"#,
                r#"error: "A.A*" is not for the key desk-a, which may have T, AM, FMV, LV, NEW9"#,
                r#"error: "FMV.*" is not carried: upstream refused FMV.*: not authorized"#,
                r#"error: unknown channel type in "XQ.*": expected one of T, Q, A, AM, LULD, NOI, FMV, LV, NEW9 before the first dot"#,
                r#"error: invalid channel "bad": expected TYPE.SYMBOL, TYPE.PREFIX*, TYPE.* or *, for example T.*"#,
                "subscribed to: T.AAPL",
                "subscribed to: AM.*",
                "subscribed to: NEW9.X",
            ],
        );
        // A contract on demand is answered by the tier, unless the key may not have it.
        let lv = r#"error: "LV.X" is not for the key desk-a, which may have T"#;
        check("types=T", "", "LV.X", "", &[lv]);
    }

    #[test]
    fn the_wildcards_to_ask_for_instead_of_all_are_those_that_are_carried() {
        for (types, hint) in [
            ("T,AM", "T, AM: ask for T.*, AM.*"),
            ("AM,NEW9,NEW8", "AM, NEW8, NEW9: ask for AM.*, NEW9.*"),
            ("T,FMV,LV,XQ", "T, FMV, LV, XQ: ask for T.*"),
            ("XT,XQ", "XT, XQ"),
        ] {
            let refusal = format!(r#"error: "*" is not for the key desk-a, which may have {hint}"#);
            check(&format!("types={types}"), "", "*", "", &[&refusal]);
        }
    }

    #[test]
    fn a_key_without_a_limit_to_types_may_have_all() {
        for limits in ["", "markets=stocks"] {
            let subscribed = ["subscribed to: *", "subscribed to: Q.A"];
            check(limits, "T.*", "*,Q.A", "*,Q.A", &subscribed);
        }
    }

    #[test]
    fn a_refused_item_takes_no_room() {
        let held = "T.A,T.B,T.C,T.D,T.E,T.F,T.G,T.H,T.I";
        let full = r#"error: subscription limit of 10 reached: "T.L" not subscribed"#;
        let refused = r#"error: "Q.K" is not for the key desk-a, which may have T"#;
        let subscribed = "subscribed to: T.K";
        check("types=T", held, "Q.K,T.K,T.L", "T.K", &[refused, full, subscribed]);
    }

    #[test]
    fn whatever_is_held_may_be_removed() {
        let (keys, key) = lease("types=T");
        let items = Items::live("Q.A,T.A,*,LV.B");
        let subscriber = holding("Q.A,*,LV.C");
        let decided =
            outcome(decide(&SessionConfig::for_tests(keys), &key, &subscriber, &items, false));
        let messages = ["Q.A", "T.A", "*", "LV.B"].map(|item| format!("unsubscribed to: {item}"));
        assert_eq!(decided, (channels("Q.A,*"), messages.to_vec()));
    }

    #[test]
    fn a_newer_key_keeps_what_it_may_have() {
        let (_keys, key) = lease("types=T,AM");
        let narrowed = narrow(Market::Stocks, &key, &holding("*,T.*,T.A,AM.B*,Q.A,LV.X"));
        assert!(narrowed.as_ref().is_some_and(|change| !change.subscribe));
        let refusal =
            |item| format!("error: {item:?} is not for the key desk-a, which may have T, AM");
        let all = format!("{}: ask for T.*, AM.*", refusal("*"));
        let expected = (channels("*,Q.A,LV.X"), vec![all, refusal("Q.A"), refusal("LV.X")]);
        assert_eq!(outcome(narrowed), expected);
        for (limits, held) in [("types=T,AM", "T.*,AM.B"), ("types=T", ""), ("", "*,Q.A")] {
            let (_keys, key) = lease(limits);
            assert!(narrow(Market::Stocks, &key, &holding(held)).is_none(), "{limits:?} {held}");
        }
    }
}
