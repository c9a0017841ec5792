//! Several NATS servers that replicate streams, with relays between them and before them.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, jetstream};

use super::server::{NatsServer, Version};
use crate::{
    relay::Relay,
    stack::ReservedPort,
    wait::{eventually, within},
};

/// How long a cluster may need to agree. An election takes up to 9 s on a machine at rest.
const AGREED: Duration = Duration::from_secs(60);

/// A cluster, or a server alone. Dropping it ends it and removes its stores.
///
/// Servers reach each other only through relays, and say no addresses to clients, so that a test
/// decides who reaches whom.
#[derive(Debug)]
pub struct NatsCluster {
    /// The servers, named `n0`, `n1` ...
    pub nodes: Vec<NatsServer>,
    /// By which one server reaches another, as `(from, to, relay)`.
    routes: Vec<(usize, usize, Relay)>,
    /// One before each server, for clients that a test wants to cut off.
    doors: Vec<Relay>,
    /// Keeps the ports between the servers from other programs while a server is down.
    _ports: Vec<ReservedPort>,
}

impl NatsCluster {
    /// A cluster of this many servers, in which streams can be made.
    ///
    /// # Panics
    ///
    /// If it cannot be installed, or does not agree on a leader in time.
    pub async fn start(servers: usize) -> Self {
        Self::with(servers, "").await
    }

    /// As [`NatsCluster::start`], with this text in the configuration of each.
    ///
    /// # Panics
    ///
    /// As for [`NatsCluster::start`].
    pub async fn with(servers: usize, config: &str) -> Self {
        let ports: Vec<_> = (0..servers).map(|_| ReservedPort::new()).collect();
        let mut routes = Vec::new();
        for from in 0..servers {
            for (to, port) in ports.iter().enumerate().filter(|(to, _)| *to != from) {
                routes.push((from, to, Relay::start(port.addr()).await));
            }
        }
        let mut nodes = Vec::new();
        for (n, port) in ports.iter().enumerate() {
            let others = routes.iter().filter(|(from, _, _)| *from == n);
            let others: Vec<_> =
                others.map(|(_, _, relay)| format!("\"nats-route://{}\"", relay.addr())).collect();
            let cluster = match others.as_slice() {
                [] => String::new(),
                others => format!(
                    "cluster {{ name: test, listen: \"{}\", no_advertise: true, pool_size: -1, \
                     routes: [{}] }}\n",
                    port.addr(),
                    others.join(", ")
                ),
            };
            let text = format!("server_name: n{n}\n{cluster}{config}");
            nodes.push(NatsServer::prepare(Version::Current, ReservedPort::new(), &text).await);
        }
        for node in &mut nodes {
            node.spawn();
        }
        let mut doors = Vec::new();
        for node in &nodes {
            doors.push(Relay::start(node.addr()).await);
        }
        let cluster = Self { nodes, routes, doors, _ports: ports };
        for node in &cluster.nodes {
            node.is_healthy().await;
        }
        cluster.agrees().await;
        cluster
    }

    /// The URLs of all servers, as the settings of the product want them.
    #[must_use]
    pub fn url(&self) -> String {
        list(self.nodes.iter().map(NatsServer::url))
    }

    /// The URLs of all servers through the relays before them.
    #[must_use]
    pub fn relayed_url(&self) -> String {
        list(self.doors.iter().map(|door| format!("nats://{}", door.addr())))
    }

    /// The relay before a server, for clients with [`NatsCluster::relayed_url`].
    #[must_use]
    pub fn door(&self, node: usize) -> &Relay {
        &self.doors[node]
    }

    /// The relays between a server and all others.
    pub fn routes_of(&self, node: usize) -> impl Iterator<Item = &Relay> {
        let touching = move |(from, to, _): &&(usize, usize, Relay)| [*from, *to].contains(&node);
        self.routes.iter().filter(touching).map(|(_, _, relay)| relay)
    }

    /// A connection of an independent client to any server.
    ///
    /// # Panics
    ///
    /// If none accepts it in time.
    pub async fn client(&self) -> Client {
        let urls: Vec<_> = self.nodes.iter().map(NatsServer::url).collect();
        let connect = ConnectOptions::new().retry_on_initial_connect().connect(urls);
        within(AGREED, "a connection to NATS", connect).await.expect("connect to NATS")
    }

    /// Which server leads a stream, once one does.
    ///
    /// # Panics
    ///
    /// If none does in time, or there is no such stream.
    pub async fn leader_of(&self, stream: &str) -> usize {
        let context = jetstream::new(self.client().await);
        let mut leader = None;
        let what = format!("a leader of {stream}");
        eventually(AGREED, &what, async || {
            let Ok(stream) = context.get_stream(stream).await else { return false };
            let Ok(info) = stream.get_info().await else { return false };
            let name = info.cluster.and_then(|cluster| cluster.leader);
            leader = name.and_then(|name| name.strip_prefix('n')?.parse().ok());
            leader.is_some()
        })
        .await;
        leader.expect("the condition held")
    }

    /// Waits until streams can be made and read: the cluster has a leader.
    ///
    /// # Panics
    ///
    /// If it has none in time.
    pub async fn agrees(&self) {
        let context = jetstream::new(self.client().await);
        let what = "JetStream of the cluster answers";
        eventually(AGREED, what, async || context.query_account().await.is_ok()).await;
    }
}

fn list(urls: impl Iterator<Item = String>) -> String {
    urls.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Fault;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cluster_outlives_its_leader_and_heals() {
        let mut cluster = NatsCluster::start(3).await;
        let context = jetstream::new(cluster.client().await);
        let config = jetstream::stream::Config {
            name: "TEST".to_owned(),
            subjects: vec!["test".to_owned()],
            num_replicas: 3,
            ..Default::default()
        };
        context.create_stream(config).await.unwrap();
        let publish = async || match context.publish("test", "x".into()).await {
            Ok(stored) => stored.await.is_ok(),
            Err(_) => false,
        };
        eventually(AGREED, "a message is stored", async || publish().await).await;
        let leader = cluster.leader_of("TEST").await;
        cluster.nodes[leader].kill();
        eventually(AGREED, "a message is stored without the first leader", async || {
            publish().await
        })
        .await;
        cluster.nodes[leader].restart().await;
        // The relays are the only way between two servers.
        let alone = cluster.leader_of("TEST").await;
        for relay in cluster.routes_of(alone) {
            relay.inject(Fault::BlackHole);
            relay.inject(Fault::Reset);
        }
        eventually(AGREED, "another one leads", async || {
            let asked = cluster.nodes[(alone + 1) % 3].client().await;
            let stream = jetstream::new(asked).get_stream("TEST").await;
            let leader = match stream {
                Ok(stream) => stream.cached_info().cluster.clone().and_then(|c| c.leader),
                Err(_) => None,
            };
            leader.is_some_and(|leader| leader != format!("n{alone}"))
        })
        .await;
        for relay in cluster.routes_of(alone) {
            relay.heal();
        }
        cluster.nodes[alone].is_healthy().await;
    }
}
