//! Asks the other programs, and answers them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use tokio::time::sleep;
use tracing::debug;

use super::answer;
use crate::{
    health::{Health, Peer, PeerList},
    nats::{Names, NatsConfig, SteadyConnection, instance},
    protocol::{Market, TierName},
};

/// How often the others are asked: two to three seconds, by chance, so that they are not asked in
/// step.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(1));
/// How long a program is listed that does not answer any more.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// How long an answer serves for all who ask.
const REUSED: Duration = Duration::from_secs(1);
/// Most programs that are listed.
const MAX_PEERS: usize = 200;

/// A market whose programs are asked.
#[derive(Debug)]
pub struct AskedMarket {
    /// The market.
    pub market: Market,
    /// Where the others are listed.
    pub peers: Arc<PeerList>,
}

/// Asks the other programs of these markets, and answers them with what `health` yields, which must
/// not list the others. Never ends.
pub async fn ask_and_answer(
    config: NatsConfig,
    tier: TierName,
    markets: Vec<AskedMarket>,
    health: impl Fn(Market) -> Option<Health> + Sync,
) {
    let connection = SteadyConnection::start(config.clone(), format!("{tier}-proxy health"));
    let client = connection.connected().await;
    let health = &health;
    let markets = markets.into_iter().map(|AskedMarket { market, peers }| {
        let (client, names) = (client.clone(), config.names(market));
        async move {
            let Ok(exchange) = Exchange::begin(client, names).await else { return };
            exchange.run(tier, &peers, || health(market)).await;
        }
    });
    join_all(markets).await;
    // A client that is closed never comes back.
    std::future::pending::<()>().await;
}

/// The exchange of one market.
struct Exchange {
    client: Client,
    names: Names,
    questions: Subscriber,
    answers: Subscriber,
    heard: BTreeMap<String, (Peer, Instant)>,
    /// What this program answers, and since when.
    own: Option<(Bytes, Instant)>,
}

impl Exchange {
    async fn begin(client: Client, names: Names) -> Result<Self, async_nats::SubscribeError> {
        let questions = client.subscribe(names.health()).await?;
        let answers = client.subscribe(names.health_answers(&instance().id)).await?;
        Ok(Self { client, names, questions, answers, heard: BTreeMap::new(), own: None })
    }

    async fn run(mut self, tier: TierName, peers: &PeerList, health: impl Fn() -> Option<Health>) {
        loop {
            self.heard.retain(|_, (_, at)| at.elapsed() < FORGOTTEN);
            let mut list: Vec<_> = self.heard.values().map(|(peer, _)| peer.clone()).collect();
            list.sort_by(|a, b| {
                (&a.tier, &a.host, &a.instance).cmp(&(&b.tier, &b.host, &b.instance))
            });
            peers.set(list);
            let (reply, ask) = (self.names.health_answers(&instance().id), self.names.health());
            if let Err(error) = self.client.publish_with_reply(ask, reply, Bytes::new()).await {
                debug!(%error, "failed to ask the other programs for their health");
            }
            let (least, more) = INTERVAL;
            let mut pause = std::pin::pin!(sleep(least + more.mul_f64(fastrand::f64())));
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(question) = self.questions.next() => {
                        self.answer(question, tier, &health).await;
                    }
                    Some(answer) = self.answers.next() => self.take(&answer),
                    // Both have ended.
                    else => return,
                }
            }
        }
    }

    async fn answer(
        &mut self,
        question: Message,
        tier: TierName,
        health: impl Fn() -> Option<Health>,
    ) {
        let own = self.names.health_answers(&instance().id);
        let Some(reply) = question.reply.filter(|reply| **reply != *own) else { return };
        if self.own.as_ref().is_none_or(|(_, since)| since.elapsed() >= REUSED) {
            let Some(health) = health() else { return };
            let text = answer::write(tier, instance(), &health);
            self.own = Some((text.into(), Instant::now()));
        }
        if let Some((text, _)) = &self.own
            && let Err(error) = self.client.publish(reply, text.clone()).await
        {
            debug!(%error, "failed to answer with the health of this program");
        }
    }

    fn take(&mut self, answer: &Message) {
        let Some(peer) = answer::read(&answer.payload) else { return };
        if self.heard.len() < MAX_PEERS || self.heard.contains_key(&peer.instance) {
            self.heard.insert(peer.instance.clone(), (peer, Instant::now()));
        }
    }
}
