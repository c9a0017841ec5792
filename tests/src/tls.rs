//! TLS on either side of a port: self-signed certificates, a front that speaks TLS for a server,
//! and a tunnel that speaks it for clients.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{
            CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject,
        },
    },
};

/// A self-signed certificate for `localhost` and its key, in files.
#[derive(Debug)]
pub struct Certificate {
    dir: tempfile::TempDir,
}

impl Certificate {
    /// A fresh certificate.
    ///
    /// # Panics
    ///
    /// If it cannot be made or written.
    #[must_use]
    pub fn new() -> Self {
        let certificate = Self { dir: tempfile::tempdir().expect("make a directory") };
        certificate.renew();
        certificate
    }

    /// Replaces it by a new one in the same files.
    ///
    /// # Panics
    ///
    /// If it cannot be made or written.
    pub fn renew(&self) {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(names).expect("make a certificate");
        std::fs::write(self.file(), cert.pem()).expect("write the certificate");
        std::fs::write(self.key_file(), signing_key.serialize_pem()).expect("write the key");
    }

    /// Overwrites the files of another certificate with this one.
    ///
    /// # Panics
    ///
    /// If a file cannot be copied.
    pub fn copy_to(&self, other: &Self) {
        std::fs::copy(self.file(), other.file()).expect("copy the certificate");
        std::fs::copy(self.key_file(), other.key_file()).expect("copy the key");
    }

    /// The directory of its files, `cert.pem` and `key.pem`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The file of the certificate. It is also the file of its authority.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    /// The file of its private key.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }

    /// The settings that make a program's port use it, with an admin port for plain HTTP.
    #[must_use]
    pub fn settings(&self) -> [(&'static str, String); 3] {
        [
            ("TLS_CERT", self.file().display().to_string()),
            ("TLS_KEY", self.key_file().display().to_string()),
            ("ADMIN_PORT", "0".to_owned()),
        ]
    }

    /// Trusts the current certificate and no other.
    ///
    /// # Panics
    ///
    /// If the files do not hold it.
    #[must_use]
    pub fn trust(&self) -> Trust {
        let mut roots = RootCertStore::empty();
        roots.add(self.der()).expect("a certificate of an authority");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the usual versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Trust(Arc::new(config).into())
    }

    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.file()).expect("a certificate in the file")
    }

    fn acceptor(&self) -> TlsAcceptor {
        let key = PrivatePkcs8KeyDer::from_pem_file(self.key_file()).expect("a key in the file");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the usual versions")
            .with_no_client_auth()
            .with_single_cert(vec![self.der()], PrivateKeyDer::from(key))
            .expect("a certificate with its key");
        Arc::new(config).into()
    }
}

impl Default for Certificate {
    fn default() -> Self {
        Self::new()
    }
}

/// A client's trust in one certificate.
#[derive(Clone)]
pub struct Trust(TlsConnector);

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}

impl Trust {
    /// Does a TLS handshake with the peer of a connection.
    ///
    /// # Errors
    ///
    /// If the handshake fails or the peer shows another certificate.
    pub async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").expect("a name");
        self.0.connect(name, stream).await
    }
}

/// Accepts TLS connections for `localhost` and passes their content on. Dropping it ends it.
#[derive(Debug)]
pub struct TlsFront {
    addr: SocketAddr,
    certificate: Certificate,
    _tasks: JoinSet<()>,
}

impl TlsFront {
    /// A front for a port, with a certificate of its own.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn start(target: SocketAddr) -> Self {
        let certificate = Certificate::new();
        let acceptor = certificate.acceptor();
        let (addr, tasks) = pass_on(move |socket| {
            let accepting = acceptor.accept(socket);
            async move {
                // The handshake fails for a peer that does not trust the certificate.
                let mut inner = accepting.await?;
                let mut outer = TcpStream::connect(target).await?;
                copy_bidirectional(&mut inner, &mut outer).await
            }
        })
        .await;
        Self { addr, certificate, _tasks: tasks }
    }

    /// The address to connect to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("wss://localhost:{}", self.addr.port())
    }

    /// The certificate, in a file.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.certificate.file()
    }
}

/// Accepts plain connections and speaks TLS for them, so that every plain client can talk to a port
/// that requires TLS. Dropping it ends it.
#[derive(Debug)]
pub struct Tunnel {
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Tunnel {
    /// A tunnel to a port that shows this certificate.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn start(target: SocketAddr, trust: Trust) -> Self {
        let (addr, tasks) = pass_on(move |mut inner| {
            let trust = trust.clone();
            async move {
                let mut outer = trust.connect(TcpStream::connect(target).await?).await?;
                copy_bidirectional(&mut inner, &mut outer).await
            }
        })
        .await;
        Self { addr, _tasks: tasks }
    }

    /// The address that it listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Listens on a free port and runs `connection` for each connection.
async fn pass_on<F>(
    connection: impl Fn(TcpStream) -> F + Send + 'static,
) -> (SocketAddr, JoinSet<()>)
where
    F: Future<Output = io::Result<(u64, u64)>> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    let addr = listener.local_addr().expect("the address bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            connections.spawn(connection(socket));
        }
    });
    (addr, tasks)
}
