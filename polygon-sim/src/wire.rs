//! The TCP stream of one connection: slowed down on demand, ended by reset on demand.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

/// How long a slowed stream pauses between pieces.
const PAUSE: Duration = Duration::from_millis(20);

/// The rate at which bytes may leave, shared by all streams; 0 is as fast as they go.
#[derive(Debug, Default)]
pub(crate) struct Pace(AtomicU64);

impl Pace {
    pub(crate) fn set(&self, bytes_per_second: Option<u64>) {
        self.0.store(bytes_per_second.map_or(0, |rate| rate.max(1)), Relaxed);
    }

    /// Bytes that may leave in one piece and the pause after it; none when not slowed.
    fn piece(&self) -> Option<(usize, Duration)> {
        match self.0.load(Relaxed) {
            0 => None,
            rate if rate < 50 => Some((1, Duration::from_secs(1) / u32::try_from(rate).ok()?)),
            rate => Some((usize::try_from(rate / 50).ok()?, PAUSE)),
        }
    }
}

/// A TCP stream.
pub(crate) struct Wire {
    tcp: TcpStream,
    pace: Arc<Pace>,
    pause: Option<Pin<Box<Sleep>>>,
    reset: Arc<AtomicBool>,
}

impl Wire {
    /// Wraps a stream; if `reset` is set when the wire is dropped, the peer sees a reset and what
    /// the kernel still holds is discarded, else an orderly end.
    pub(crate) fn new(tcp: TcpStream, pace: Arc<Pace>, reset: Arc<AtomicBool>) -> Self {
        Self { tcp, pace, pause: None, reset }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.reset.load(Relaxed) {
            // Failing means that the peer ended it first.
            let _gone = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        if let Some(pause) = &mut wire.pause {
            ready!(pause.as_mut().poll(cx));
            wire.pause = None;
        }
        let Some((piece, pause)) = wire.pace.piece() else {
            return Pin::new(&mut wire.tcp).poll_write(cx, buf);
        };
        let written = ready!(Pin::new(&mut wire.tcp).poll_write(cx, &buf[..piece.min(buf.len())]));
        wire.pause = Some(Box::pin(sleep(pause)));
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_what_was_asked() {
        let pace = Pace::default();
        assert_eq!(pace.piece(), None);
        pace.set(Some(5_000));
        assert_eq!(pace.piece(), Some((100, PAUSE)));
        pace.set(Some(4));
        assert_eq!(pace.piece(), Some((1, Duration::from_millis(250))));
        pace.set(Some(0));
        assert_eq!(pace.piece(), Some((1, Duration::from_secs(1))));
        pace.set(None);
        assert_eq!(pace.piece(), None);
    }
}
