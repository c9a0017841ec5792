//! The handler of upgraded connections: the boundary between the server and a tier.

use tokio_util::sync::CancellationToken;

use crate::{health::HealthDocument, session::ClientInfo, transport::Socket};

/// Takes over the connections that a server has upgraded.
pub trait Handler: Send + Sync + 'static {
    /// Serves one WebSocket until it ends. `early` holds bytes that arrived with the upgrade. Once
    /// `stop` is cancelled, the connection has to end soon.
    fn serve<'a>(
        &'a self,
        socket: Socket,
        early: &[u8],
        client: ClientInfo,
        stop: &'a CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<'a, Self>;

    /// The document of `GET /health`.
    fn health(&self) -> HealthDocument;

    /// Called about once a second.
    fn tick(&self);
}
