//! A session with an upstream: over a WebSocket, or over NATS.

use std::task::{Context, Poll};

use tokio::time::Instant;

use super::{
    config::LinkConfig,
    error::LinkError,
    login::{authenticate, connect},
    upstream_socket::{SocketError, UpstreamMessage, UpstreamSocket},
};

/// A session with an upstream. It makes progress only while it is polled.
#[cfg_attr(feature = "nats", expect(clippy::large_enum_variant, reason = "there is one a link"))]
pub(super) enum Upstream {
    /// Over a WebSocket.
    Socket(UpstreamSocket),
    /// Over NATS.
    #[cfg(feature = "nats")]
    Nats(Box<super::nats::NatsSession>),
}

/// Why a session ended.
pub(super) enum SessionError {
    /// Its socket says so.
    Socket(SocketError),
    /// The reason is known.
    #[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only NATS knows it"))]
    Known(LinkError),
}

impl Upstream {
    /// Connects and logs in. Calls `on_connected` between the two.
    ///
    /// # Errors
    ///
    /// The upstream cannot be reached, or refuses us.
    pub(super) async fn begin(
        config: &LinkConfig,
        on_connected: impl FnOnce(),
    ) -> Result<Self, LinkError> {
        #[cfg(feature = "nats")]
        if let Some(nats) = &config.nats {
            let session = super::nats::NatsSession::begin(std::sync::Arc::clone(nats)).await?;
            return Ok(Self::Nats(Box::new(session)));
        }
        let socket = connect(config).await?;
        on_connected();
        authenticate(config, socket).await.map(Self::Socket)
    }

    /// When bytes were last read.
    pub(super) fn read_at(&self) -> Instant {
        match self {
            Self::Socket(socket) => socket.read_at(),
            #[cfg(feature = "nats")]
            Self::Nats(session) => session.read_at(),
        }
    }

    /// The next message, if it has arrived. Otherwise the task is woken when more arrives.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<UpstreamMessage, SessionError>> {
        match self {
            Self::Socket(socket) => socket.poll_next(cx).map_err(SessionError::Socket),
            #[cfg(feature = "nats")]
            Self::Nats(session) => session.poll_next(cx).map_err(SessionError::Known),
        }
    }

    /// Sends what is queued, as far as there is room.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        match self {
            Self::Socket(socket) => socket.poll_flush(cx).map_err(SessionError::Socket),
            #[cfg(feature = "nats")]
            Self::Nats(session) => session.poll_flush(cx).map_err(SessionError::Known),
        }
    }

    /// Queues a command.
    pub(super) fn send_text(&mut self, text: &str) {
        match self {
            Self::Socket(socket) => socket.send_text(text),
            #[cfg(feature = "nats")]
            Self::Nats(session) => session.send_text(text),
        }
    }

    /// Queues a ping. NATS has pings of its own.
    pub(super) fn send_ping(&mut self) {
        match self {
            Self::Socket(socket) => socket.send_ping(),
            #[cfg(feature = "nats")]
            Self::Nats(_) => {}
        }
    }

    /// Ends the session in due form.
    pub(super) async fn close(self) -> Result<(), SocketError> {
        match self {
            Self::Socket(socket) => socket.close().await,
            #[cfg(feature = "nats")]
            Self::Nats(session) => {
                session.close().await;
                Ok(())
            }
        }
    }
}
