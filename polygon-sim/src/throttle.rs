//! The TCP stream of one connection, which can be slowed down and ended by a reset.

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

/// The rate at which bytes may leave, shared by all streams. 0 means no limit.
#[derive(Debug, Default)]
pub(crate) struct Throttle(AtomicU64);

impl Throttle {
    pub(crate) fn set(&self, bytes_per_second: Option<u64>) {
        self.0.store(bytes_per_second.map_or(0, |rate| rate.max(1)), Relaxed);
    }

    /// How many bytes may leave in one piece, and the pause after it. `None` if there is no limit.
    fn piece(&self) -> Option<(usize, Duration)> {
        match self.0.load(Relaxed) {
            0 => None,
            rate if rate < 50 => Some((1, Duration::from_secs(1) / u32::try_from(rate).ok()?)),
            rate => Some((usize::try_from(rate / 50).ok()?, PAUSE)),
        }
    }
}

/// A TCP stream that may be slowed down.
pub(crate) struct ThrottledStream {
    tcp: TcpStream,
    throttle: Arc<Throttle>,
    pause: Option<Pin<Box<Sleep>>>,
    reset: Arc<AtomicBool>,
}

impl ThrottledStream {
    /// Wraps a stream. If `reset` is set when it is dropped, the client sees a reset and the kernel
    /// discards unsent bytes. Otherwise the connection ends in order.
    pub(crate) fn new(tcp: TcpStream, throttle: Arc<Throttle>, reset: Arc<AtomicBool>) -> Self {
        Self { tcp, throttle, pause: None, reset }
    }
}

impl Drop for ThrottledStream {
    fn drop(&mut self) {
        if self.reset.load(Relaxed) {
            // If this fails, the client ended the connection first.
            let _gone = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for ThrottledStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for ThrottledStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        if let Some(pause) = &mut stream.pause {
            ready!(pause.as_mut().poll(cx));
            stream.pause = None;
        }
        let Some((piece, pause)) = stream.throttle.piece() else {
            return Pin::new(&mut stream.tcp).poll_write(cx, buf);
        };
        let written =
            ready!(Pin::new(&mut stream.tcp).poll_write(cx, &buf[..piece.min(buf.len())]));
        stream.pause = Some(Box::pin(sleep(pause)));
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
    fn a_throttle_lets_pass_what_was_asked() {
        let throttle = Throttle::default();
        assert_eq!(throttle.piece(), None);
        throttle.set(Some(5_000));
        assert_eq!(throttle.piece(), Some((100, PAUSE)));
        throttle.set(Some(4));
        assert_eq!(throttle.piece(), Some((1, Duration::from_millis(250))));
        throttle.set(Some(0));
        assert_eq!(throttle.piece(), Some((1, Duration::from_secs(1))));
        throttle.set(None);
        assert_eq!(throttle.piece(), None);
    }
}
