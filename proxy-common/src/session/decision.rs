//! Decides on the items of a subscribe or unsubscribe command. Changes nothing and sends nothing.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    config::SessionConfig,
    tier::{Subscriber, SubscriptionChange},
};
use crate::protocol::{
    Channel, Items, Market, NoticePolicy, Status, Unavailable, channel_items, hint, status_frames,
};

/// The longest label of a key.
const MAX_LABEL: usize = 64;

/// Decides on each item of a command: one status for each, refusals first. A hint follows if a new
/// channel probably matches nothing. `None` if the command names no item.
pub(super) fn decide(
    config: &SessionConfig,
    subscriber: &impl Subscriber,
    items: &Items,
    subscribe: bool,
) -> Option<SubscriptionChange> {
    let SessionConfig { market, max_subscriptions: limit, notices, .. } = *config;
    // Read first: any later change of the coverage makes the decision outdated.
    let coverage_version = subscriber.coverage_version();
    let extra = subscriber.extra_kinds();
    let mut channels = BTreeSet::new();
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
        if subscribe {
            let (refusal, acceptance) = add(&mut channels, limit, subscriber, item, channel);
            refusals.extend(refusal);
            accepted.extend(acceptance);
        } else {
            if subscriber.held().contains(&channel) {
                channels.insert(channel);
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
    if subscribe && notices == NoticePolicy::Everyone {
        refusals.extend(hint(channels.iter(), market));
    }
    let reply = status_frames(&refusals);
    let on_behalf_of = items.on_behalf_of.as_deref().map(shorten_label);
    let change = SubscriptionChange { subscribe, channels, on_behalf_of, reply, coverage_version };
    (!change.reply.is_empty() || !change.channels.is_empty()).then_some(change)
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

/// Adds a channel to the `channels` that a command subscribes to, unless it is refused. Returns the
/// refusal and the acknowledgement: both if the channel is carried in part.
fn add(
    channels: &mut BTreeSet<Channel>,
    limit: usize,
    subscriber: &impl Subscriber,
    item: &str,
    channel: Channel,
) -> (Option<Status>, Option<Status>) {
    let held = subscriber.held();
    let is_new = !held.contains(&channel) && !channels.contains(&channel);
    if is_new && held.len() + channels.len() >= limit {
        let full = format!("subscription limit of {limit} reached: {item:?} not subscribed");
        return (Some(Status::error(full)), None);
    }
    if subscriber.is_on_demand(&channel) {
        channels.insert(channel);
        return (None, None);
    }
    let unavailable = subscriber.unavailable(&channel);
    let refusal = unavailable.as_ref().map(|unavailable| unavailable.status(item));
    if matches!(unavailable, Some(Unavailable::Whole(_))) {
        return (refusal, None);
    }
    if is_new {
        channels.insert(channel);
    }
    (refusal, Some(Status::subscribed(item)))
}
