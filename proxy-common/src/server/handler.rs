//! The handler of upgraded connections: the boundary between the server and a tier.

use tokio_util::sync::CancellationToken;

use crate::{
    health::HealthDocument,
    session::{ClientInfo, NamedSessions},
    status::{SessionsDocument, StatusDocument},
    transport::Socket,
};

/// Takes over the connections that a server has upgraded.
pub trait Handler: Send + Sync + 'static {
    /// Whether it serves sessions that have a name. Default: no.
    const NAMED_SESSIONS: NamedSessions = NamedSessions::Refused;

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

    /// The document of `GET /status.json`; `None` for a program that has no tier.
    fn status(&self, _for_operator: bool) -> Option<StatusDocument> {
        None
    }

    /// The document of `GET /sessions`; `None` for a program that has no tier.
    fn sessions(&self) -> Option<SessionsDocument> {
        None
    }

    /// Called about once a second.
    fn tick(&self);
}
