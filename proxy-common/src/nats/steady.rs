//! A connection to NATS that begins as soon as a server answers: programs start without one.

use std::time::Duration;

use async_nats::{Client, connection::State};
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tracing::{info, warn};

use super::{config::NatsConfig, connect::connect};

/// How long to wait after an attempt that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// A connection that begins as soon as a server answers, and then comes back by itself. Dropping
/// it ends it.
#[derive(Debug)]
pub struct SteadyConnection {
    client: watch::Receiver<Option<Client>>,
    _task: JoinSet<()>,
}

impl SteadyConnection {
    /// Begins to connect. `name` is shown to the server's operator.
    pub fn start(config: NatsConfig, name: String) -> Self {
        let (found, client) = watch::channel(None);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut last_error = None;
            loop {
                match connect(&config, &name, |_| ()).await {
                    Ok(client) => {
                        info!(name, servers = config.shown(), "connected to NATS");
                        let _ = found.send(Some(client));
                        // The client lives as long as this task's owner.
                        return found.closed().await;
                    }
                    Err(error) => {
                        let error = error.to_string();
                        if last_error.as_ref() != Some(&error) {
                            warn!(name, servers = config.shown(), error, "no connection to NATS");
                        }
                        last_error = Some(error);
                        sleep(PAUSE).await;
                    }
                }
            }
        });
        Self { client, _task: task }
    }

    /// The connection, if it is up.
    pub fn client(&self) -> Option<Client> {
        let client = self.client.borrow().clone();
        client.filter(|client| client.connection_state() == State::Connected)
    }

    /// Waits for the first connection.
    pub async fn connected(&self) -> Client {
        let mut client = self.client.clone();
        loop {
            if let Some(client) = client.borrow_and_update().clone() {
                return client;
            }
            if client.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
