//! TLS in front of a port: what a certificate authority of one's own, or a server that nobody vouches for, looks like.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

/// Takes TLS connections for `localhost` and passes what is in them on. Dropping it ends it.
#[derive(Debug)]
pub struct TlsFront {
    addr: SocketAddr,
    dir: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl TlsFront {
    /// A front for a port, with a certificate of its own.
    ///
    /// # Panics
    ///
    /// It does not start.
    pub async fn start(target: SocketAddr) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).expect("make a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the usual versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a certificate with its key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("the address bound");
        let dir = tempfile::tempdir().expect("make a directory");
        std::fs::write(dir.path().join("ca.pem"), cert.pem()).expect("write the certificate");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // Peers that do not trust us leave here.
                    let Ok(mut inner) = acceptor.accept(socket).await else { return };
                    let Ok(mut outer) = TcpStream::connect(target).await else { return };
                    let _ = copy_bidirectional(&mut inner, &mut outer).await;
                });
            }
        });
        Self { addr, dir, _tasks: tasks }
    }

    /// The address to connect to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("wss://localhost:{}", self.addr.port())
    }

    /// The certificate, in a file.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}
