//! The filtered proxy as its server sees it: sessions and health.

use proxy_common::{
    health::{Health, HealthReporter},
    server::Handler,
    session::{ClientInfo, Sessions},
    transport::Socket,
};
use tokio_util::sync::CancellationToken;

use crate::router::RouterHandle;

/// The filtered proxy behind its server.
#[derive(Debug)]
pub struct FilteredTier {
    pub(crate) routes: RouterHandle,
    pub(crate) sessions: Sessions<RouterHandle>,
    pub(crate) health: HealthReporter,
}

impl Handler for FilteredTier {
    fn serve<'a>(
        &'a self,
        socket: Socket,
        early: &[u8],
        client: ClientInfo,
        stop: &'a CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<'a> {
        self.sessions.serve(socket, early, client, stop)
    }

    fn health(&self) -> Health {
        self.health.report(self.routes.problems())
    }

    fn tick(&self) {
        self.health.sample();
    }
}
