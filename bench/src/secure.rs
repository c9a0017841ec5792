//! The clients' side of an encrypted port.

use std::{
    fs,
    io::{self, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring, pki_types::ServerName,
};

/// No record is longer than this.
const RECORD_ROOM: usize = 64 * 1024;

/// A certificate for `localhost` in files, and the client configuration that trusts it.
#[derive(Debug)]
pub struct Identity {
    dir: tempfile::TempDir,
    trust: Arc<ClientConfig>,
}

impl Identity {
    /// A fresh certificate, with an elliptic-curve key.
    pub fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("cert.pem"), made.cert.pem())?;
        fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem())?;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        let trust = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { dir, trust: Arc::new(trust) })
    }

    /// The files of the certificate and of its key.
    pub fn files(&self) -> [PathBuf; 2] {
        ["cert.pem", "key.pem"].map(|name| Path::new(self.dir.path()).join(name))
    }

    /// Speaks TLS on a connected socket.
    pub fn secure(&self, socket: TcpStream) -> Result<Stream> {
        let name = ServerName::try_from("localhost")?;
        let connection = ClientConnection::new(Arc::clone(&self.trust), name)?;
        Ok(Stream::Tls(Box::new(StreamOwned::new(connection, socket))))
    }
}

/// A client's connection.
#[derive(Debug)]
pub enum Stream {
    /// Bytes as they are.
    Plain(TcpStream),
    /// Bytes in TLS records.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// The underlying socket.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

impl Read for Stream {
    /// Reads all that has come, as far as there is room. Bytes that stayed here decrypted would not
    /// make the socket readable again.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let stream = match self {
            Self::Plain(socket) => return socket.read(buffer),
            Self::Tls(stream) => stream,
        };
        let mut taken = stream.read(buffer)?;
        while taken > 0 && buffer.len() - taken >= RECORD_ROOM {
            match stream.read(&mut buffer[taken..]) {
                Ok(0) => break,
                Ok(more) => taken += more,
                // The next read reports any other error.
                Err(_) => break,
            }
        }
        Ok(taken)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
