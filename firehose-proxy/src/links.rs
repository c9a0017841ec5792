//! The links of a market as one: their events in turn, and one outage for all.

use std::{collections::BTreeSet, future, task::Poll};

use proxy_common::{
    link::{Link, LinkEvent},
    protocol::{Channel, Outage},
};
use tokio::task::JoinSet;

/// How many events a link may yield in a row while others have some.
const LONGEST_STREAK: u32 = 64;

/// The links that together carry a market, at least one. Most markets have one.
pub(crate) struct Links {
    links: Vec<State>,
    /// The link to ask first for an event.
    first: usize,
    /// How many events it may still yield before the next one is asked first, so that none keeps
    /// the others waiting.
    streak_left: u32,
}

struct State {
    link: Link,
    /// Its outage, if one goes on.
    outage: Option<Outage>,
    /// The channels that the vendor has answered on its connection.
    answered: Option<BTreeSet<Channel>>,
}

impl Links {
    pub(crate) fn new(links: Vec<Link>) -> Self {
        let state = |link: Link| State { outage: link.outage().cloned(), answered: None, link };
        Self {
            links: links.into_iter().map(state).collect(),
            first: 0,
            streak_left: LONGEST_STREAK,
        }
    }

    /// The next event, and the number of the link that it comes from.
    ///
    /// Cancel-safe: nothing is lost if the future is dropped.
    pub(crate) async fn next(&mut self) -> (usize, LinkEvent) {
        let (at, event) = future::poll_fn(|cx| {
            let count = self.links.len();
            for at in (self.first..count).chain(0..self.first) {
                if let Poll::Ready(event) = self.links[at].link.poll_next(cx) {
                    self.streak_left =
                        if at == self.first { self.streak_left } else { LONGEST_STREAK } - 1;
                    self.first = at;
                    if self.streak_left == 0 {
                        (self.first, self.streak_left) = ((at + 1) % count, LONGEST_STREAK);
                    }
                    return Poll::Ready((at, event));
                }
            }
            Poll::Pending
        })
        .await;
        self.links[at].on_event(&event);
        (at, event)
    }

    /// The outage of the market: it lasts from the first link that is lost until every link is
    /// back. It gives the reason of each.
    pub(crate) fn outage(&self) -> Option<Outage> {
        let outages = || self.links.iter().filter_map(|state| state.outage.as_ref());
        let from = outages().map(|outage| outage.from).min()?;
        let mut reasons: Vec<&str> = outages().map(|outage| &*outage.reason).collect();
        reasons.dedup();
        Some(Outage { from, reason: reasons.join("; ") })
    }

    /// The channels that the vendor has answered on each connection. `None` if one of them is not
    /// complete.
    pub(crate) fn answered(&self) -> Option<Vec<BTreeSet<Channel>>> {
        self.links.iter().map(|state| state.answered.clone()).collect()
    }

    /// Closes all links at once.
    pub(crate) async fn close(self) {
        let closing: JoinSet<()> = self.links.into_iter().map(|state| state.link.close()).collect();
        closing.join_all().await;
    }
}

impl State {
    fn on_event(&mut self, event: &LinkEvent) {
        match event {
            LinkEvent::Down(outage) => (self.outage, self.answered) = (Some(outage.clone()), None),
            LinkEvent::Up(_) | LinkEvent::AllAnswered => {
                self.outage = None;
                self.answered = self.link.requested().map(|wanted| wanted.channels.clone());
            }
            LinkEvent::Frame { .. }
            | LinkEvent::Mark(_)
            | LinkEvent::Malformed { .. }
            | LinkEvent::Notice(..)
            | LinkEvent::Coverage(_)
            | LinkEvent::Contract { .. }
            | LinkEvent::Subscriptions(_) => {}
        }
    }
}
