//! A client's socket, encrypted or not. Any task may write, without waiting; one task reads.

use std::{
    io::{self, BufRead, ErrorKind, IoSlice, Read, Write},
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use rustls::ServerConnection;
use tokio::{
    io::{AsyncReadExt, Join, Take, join},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
pub use tokio_rustls::server::TlsStream;

/// A client's socket. Reads and writes never wait, and may happen at the same time.
#[derive(Debug)]
pub enum Socket {
    /// Bytes as they are.
    Plain(TcpStream),
    /// Bytes in TLS records.
    Tls(Box<TlsSocket>),
}

impl Socket {
    /// Waits until a read may find something. If it finds nothing, call this again: the task is
    /// woken for the next try.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => socket.poll_read_ready(cx),
            Self::Tls(socket) => socket.poll_read_ready(cx),
        }
    }

    /// Waits until a write may find room. If it finds none, call this again: the task is woken for
    /// the next try.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_write_ready(cx)
    }

    /// Reads the bytes that have arrived; 0 means the end. Adds to `cost` the bytes that were read
    /// from the wire for them, because TLS records may hold little data or none.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if nothing has arrived, `InvalidData` if it is not valid TLS. Any other error
    /// ends the connection.
    pub fn try_read(&self, buffer: &mut [u8], cost: &mut usize) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_read(buffer).inspect(|read| *cost += read),
            Self::Tls(socket) => socket.try_read(buffer, cost),
        }
    }

    /// Writes as much as there is room for. Returns how many bytes of these parts have left.
    ///
    /// The next call must begin with the bytes that have not left: they may be encrypted already.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is no room. Any other error ends the connection.
    pub fn try_write(&self, parts: &mut [IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => match parts {
                [part] => socket.try_write(part),
                _ => socket.try_write_vectored(parts),
            },
            Self::Tls(socket) => socket.try_write(parts),
        }
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(socket) => &socket.tcp,
        }
    }
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Self {
        Self::Plain(socket)
    }
}

/// A socket during its handshakes. Its input ends after 64 KiB. The libraries for TLS and HTTP
/// limit the content of records but not their number, and even empty records cost time.
pub type EarlySocket = Join<Take<OwnedReadHalf>, OwnedWriteHalf>;

/// Limits what a socket may receive until its handshakes are over.
pub fn limit_early_bytes(socket: TcpStream) -> EarlySocket {
    let (read, write) = socket.into_split();
    join(read.take(MAX_EARLY_BYTES), write)
}

impl From<TlsStream<EarlySocket>> for Socket {
    fn from(stream: TlsStream<EarlySocket>) -> Self {
        let (halves, connection) = stream.into_inner();
        let (read, write) = halves.into_inner();
        let tcp = read.into_inner().reunite(write).expect("the halves of one socket");
        let records = Records { connection, unreported: 0 };
        Self::Tls(Box::new(TlsSocket { tcp, records: Mutex::new(records) }))
    }
}

/// The least that a record adds to its data: a header of 5 bytes and a tag of 16 (RFC 5246 and RFC
/// 8446).
const MIN_RECORD_BYTES: usize = 21;
/// The most bytes received from a client before it has a session: the longest request, its TLS
/// records, and a reserve.
const MAX_EARLY_BYTES: u64 = 64 * 1024;

/// A socket whose handshake is over.
#[derive(Debug)]
pub struct TlsSocket {
    tcp: TcpStream,
    /// Locked for one read or write, which do not block, and never across an await. Only the
    /// session's task and the router use it.
    records: Mutex<Records>,
}

#[derive(Debug)]
struct Records {
    connection: ServerConnection,
    /// Bytes that are encrypted, but not yet reported as written, because not all of their records
    /// have left. So no byte can get lost in here. The library takes 64 KiB at most; records add a
    /// little to that.
    unreported: usize,
}

impl TlsSocket {
    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let decrypted = match self.lock().connection.reader().fill_buf() {
            Ok(_) => true,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        if !decrypted {
            ready!(self.tcp.poll_read_ready(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn try_read(&self, buffer: &mut [u8], cost: &mut usize) -> io::Result<usize> {
        let mut records = self.lock();
        match records.connection.reader().read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            end_or_data => return end_or_data,
        }
        // Only once: a peer that sends records without data must not occupy the thread.
        *cost += records.connection.read_tls(&mut Wire(&self.tcp))?;
        let understood = records.connection.process_new_packets();
        // Sends the alert that names an error. If there is no room, the alert leaves with the next
        // write, like every answer of TLS itself.
        match records.push(&self.tcp) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        understood.map_err(invalid)?;
        records.connection.reader().read(buffer)
    }

    fn try_write(&self, mut parts: &mut [IoSlice<'_>]) -> io::Result<usize> {
        let mut left: usize = parts.iter().map(|part| part.len()).sum();
        let mut done = 0;
        let mut records = self.lock();
        loop {
            match records.push(&self.tcp) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && done > 0 => return Ok(done),
                Err(error) => return Err(error),
            }
            let sent = std::mem::take(&mut records.unreported);
            debug_assert!(sent <= left, "the caller must offer refused bytes again");
            done += sent;
            if sent >= left {
                return Ok(done);
            }
            left -= sent;
            IoSlice::advance_slices(&mut parts, sent);
            records.unreported = records.connection.writer().write_vectored(parts)?;
            // A key may encrypt only a limited number of records. TLS 1.3 then changes the key,
            // which takes a record of its own. TLS 1.2 cannot: the library drops the data, but
            // reports it as taken.
            let waiting = records.connection.process_new_packets().map_err(invalid)?;
            if waiting.tls_bytes_to_write() < records.unreported + MIN_RECORD_BYTES {
                records.unreported = 0;
                return Err(ErrorKind::BrokenPipe.into());
            }
        }
    }
}

impl Records {
    /// Writes all records that are ready.
    fn push(&mut self, tcp: &TcpStream) -> io::Result<()> {
        while self.connection.wants_write() {
            if self.connection.write_tls(&mut Wire(tcp))? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

impl Drop for TlsSocket {
    fn drop(&mut self) {
        let records = self.records.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Without this alert, the peer could not distinguish the end from a cut connection.
        records.connection.send_close_notify();
        let _ = records.push(&self.tcp);
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

/// The socket with the traits that the library needs.
struct Wire<'a>(&'a TcpStream);

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::Arc};

    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    };
    use socket2::SockRef;
    use tokio::{
        net::{TcpListener, TcpSocket},
        task::JoinSet,
    };
    use tokio_rustls::{TlsAcceptor, TlsConnector, client};

    use super::*;

    /// Both ends of a new connection with small buffers.
    async fn ends() -> (Socket, client::TlsStream<TcpStream>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let narrow = TcpSocket::new_v4().unwrap();
        narrow.set_recv_buffer_size(8 * 1024).unwrap();
        let connected = narrow.connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        SockRef::from(&accepted).set_send_buffer_size(32 * 1024).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let (server, client) = tokio::join!(
            TlsAcceptor::from(Arc::new(server)).accept(limit_early_bytes(accepted)),
            TlsConnector::from(Arc::new(client)).connect(name, connected)
        );
        (server.unwrap().into(), client.unwrap())
    }

    fn records(socket: &Socket) -> MutexGuard<'_, Records> {
        match socket {
            Socket::Tls(socket) => socket.lock(),
            Socket::Plain(_) => panic!("a plain socket"),
        }
    }

    /// Text in which every eight bytes are different.
    fn text(bytes: usize) -> Vec<u8> {
        (0..bytes / 8 + 1).flat_map(|n| format!("{n:08}").into_bytes()).take(bytes).collect()
    }

    #[tokio::test]
    async fn bytes_reported_as_written_have_left_and_none_is_sent_twice() {
        let (socket, client) = ends().await;
        let sent = text(6_000_000);
        let mut readers = JoinSet::new();
        let length = sent.len();
        readers.spawn(async move {
            let mut client = client;
            let mut read = vec![0; length];
            client.read_exact(&mut read).await.unwrap();
            read
        });
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut at, mut end, mut blocked) = (0, 0, 0);
        while at < sent.len() {
            // Sometimes less, sometimes more than the library's buffer holds. Refused bytes come
            // first.
            end = sent.len().min(end.max(at + rng.usize(1..200_000)));
            let (one, two) = sent[at..end].split_at((end - at) / 3);
            let mut parts = [IoSlice::new(one), IoSlice::new(&[]), IoSlice::new(two)];
            match socket.try_write(&mut parts) {
                Ok(written) => {
                    let records = records(&socket);
                    at += written;
                    assert!(written > 0 && at + records.unreported <= end);
                    // Bytes kept in here are not yet reported as written.
                    assert_eq!(records.unreported > 0, records.connection.wants_write());
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    blocked += 1;
                    poll_fn(|cx| socket.poll_write_ready(cx)).await.unwrap();
                }
            }
        }
        assert!(blocked > 10, "the socket was never full");
        let read = readers.join_next().await.unwrap().unwrap();
        assert!(read == sent, "other bytes arrived");
    }

    #[tokio::test]
    async fn decrypted_bytes_are_ready_although_the_wire_is_silent() {
        let (socket, client) = ends().await;
        let (mut tcp, mut client): (_, ClientConnection) = client.into_inner();
        // Two messages and the closing alert in one flight.
        for message in ["one", "two"] {
            client.writer().write_all(message.as_bytes()).unwrap();
        }
        client.send_close_notify();
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        tokio::io::AsyncWriteExt::write_all(&mut tcp, &flight).await.unwrap();
        let (mut read, mut cost) = (Vec::new(), 0);
        loop {
            let mut byte = [0];
            poll_fn(|cx| socket.poll_read_ready(cx)).await.unwrap();
            match socket.try_read(&mut byte, &mut cost) {
                Ok(0) => break,
                Ok(_) => read.push(byte[0]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        assert_eq!(read, b"onetwo");
        assert_eq!(cost, flight.len());
    }
}
