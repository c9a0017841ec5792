//! Sends the load: how fast, for how long, and how much was sent.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    clock::Clock,
    feed::{Feed, Sender},
    wire::ServerSide,
};

/// Bytes given to one write when sending as fast as possible.
const FLAT_OUT_FRAMES_BYTES: usize = 128 * 1024;
/// A write that waits longer than this fails the run. Without the limit it would hang.
const WRITE_LIMIT: Duration = Duration::from_secs(20);

/// One stretch of load.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Events per second. `None` sends as fast as the other side accepts them.
    pub rate: Option<f64>,
    /// How long the stretch lasts.
    pub duration: Duration,
}

/// What was sent in one stretch.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Events in this stretch.
    pub events: u64,
    /// The sequence number after the last one sent, over all stretches.
    pub through: u64,
    /// When the first event was sent.
    pub start_ns: u64,
    /// When the last event was written.
    pub end_ns: u64,
}

/// Calls `send` with the number of frames that are due until the step is over. `send` returns how
/// many it sent.
///
/// If `send` is slow, the missing frames become due at once: the schedule does not wait.
pub fn pace(
    step: Step,
    frame_events: usize,
    most: usize,
    clock: Clock,
    mut send: impl FnMut(usize) -> Result<usize>,
) -> Result<(u64, u64, u64)> {
    let start = clock.now_ns();
    let duration = step.duration.as_nanos() as u64;
    let mut frames = 0;
    loop {
        let elapsed = clock.now_ns() - start;
        // A late step gets a tenth of its time to catch up. After that the lower rate shows.
        if elapsed >= duration + duration / 10 {
            break;
        }
        let due = match step.rate {
            None if elapsed >= duration => 0,
            None => most as u64,
            Some(rate) => {
                let until = elapsed.min(duration);
                let due = (until as f64 * rate / 1e9 / frame_events as f64) as u64;
                due.saturating_sub(frames)
            }
        };
        if due > 0 {
            frames += send((due as usize).min(most))? as u64;
        } else if elapsed >= duration {
            break;
        } else if let Some(rate) = step.rate {
            let next = ((frames + 1) as f64 * frame_events as f64 * 1e9 / rate) as u64 + 1;
            clock.sleep_until(start + next.min(duration));
        }
    }
    Ok((frames, start, clock.now_ns()))
}

/// Plays the vendor or a firehose: accepts one connection, answers commands and sends the load.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    feed: Arc<Feed>,
    clock: Clock,
    listening: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// The current connection. A writer locks it and writes whole frames.
    socket: Mutex<Option<TcpStream>>,
    sender: Mutex<Sender>,
    /// Channels that the peer has subscribed to.
    channels: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Upstream {
    /// Listens on a free loopback port.
    pub fn start(feed: &Arc<Feed>, clock: Clock) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            socket: Mutex::default(),
            sender: Mutex::new(feed.sender()),
            channels: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let listening = std::thread::spawn(move || serve(&listener, &serving));
        Ok(Self { address, shared, feed: Arc::clone(feed), clock, listening: Some(listening) })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether the peer has subscribed to all of these channels.
    pub fn has(&self, channels: &[&str]) -> bool {
        let held = lock(&self.shared.channels);
        channels.iter().all(|channel| held.iter().any(|other| other == channel))
    }

    /// Sends one stretch of load on a thread of its own.
    pub fn play(&self, step: Step) -> JoinHandle<Result<Sent>> {
        let (shared, feed, clock) = (Arc::clone(&self.shared), Arc::clone(&self.feed), self.clock);
        std::thread::spawn(move || {
            let mut socket = lock(&shared.socket)
                .as_ref()
                .context("no program is connected upstream")?
                .try_clone()?;
            let mut sender = lock(&shared.sender);
            let before = sender.sent();
            let most = (FLAT_OUT_FRAMES_BYTES / feed.frame_bytes()).max(1);
            let (frames, start_ns, end_ns) =
                pace(step, feed.frame_events(), most, clock, |frames| {
                    let sent = sender.sent();
                    let bytes = sender.take(frames, clock.now_ns());
                    // Locked during one write, so that answers to pings stand between frames.
                    let _whole_frames = lock(&shared.socket);
                    socket.write_all(bytes).context("upstream connection lost")?;
                    Ok((sender.sent() - sent) as usize)
                })?;
            let per_frame = feed.frame_events() as u64;
            let through = (before + frames) * per_frame;
            ensure!(sender.sent() * per_frame == through, "frames miscounted");
            Ok(Sent { events: frames * per_frame, through, start_ns, end_ns })
        })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(socket) = lock(&self.shared.socket).take() {
            // This wakes the reader. A socket that is closed already has none.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        // This wakes the listener.
        let _ = TcpStream::connect(self.address);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

fn serve(listener: &TcpListener, shared: &Shared) {
    while let Ok((socket, _)) = listener.accept() {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // If a connection ends early, the current stretch shows it: its writes fail, or its events
        // go missing.
        let _ = converse(socket, shared);
        *lock(&shared.socket) = None;
    }
}

fn converse(socket: TcpStream, shared: &Shared) -> Result<()> {
    socket.set_write_timeout(Some(WRITE_LIMIT))?;
    let writer = socket.try_clone()?;
    let mut side = ServerSide::accept(socket)?;
    *lock(&shared.socket) = Some(writer);
    loop {
        let incoming = side.receive()?;
        let (answer, channels) = incoming.answer();
        let Some(socket) = &mut *lock(&shared.socket) else { bail!("stopped") };
        socket.write_all(&answer)?;
        lock(&shared.channels).extend(channels.iter().map(ToString::to_string));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
