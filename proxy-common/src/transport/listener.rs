//! Listeners: binding ports, and the socket options of accepted connections.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tracing::debug;

use crate::config::ConfigError;

/// Connections that the system queues for us while we are busy.
const BACKLOG: i32 = 4_096;
/// The most unsent bytes that the system holds for a peer that does not read. Pongs queue after
/// them, and the limit on age does not count them.
const UNSENT_BYTES: u32 = 256 * 1024;

/// A port to listen on, and the variables that name it.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// The variable of `host`, for errors.
    pub host_variable: &'static str,
    /// Host name or address. The port is bound on every address of the host.
    pub host: String,
    /// The variable of `port`, for errors.
    pub port_variable: &'static str,
    /// The port; 0 takes any free one.
    pub port: u16,
}

/// Listeners that are bound but not yet served.
#[derive(Debug)]
pub struct Listeners {
    /// The data port, once for each address of its host.
    pub data: Vec<TcpListener>,
    /// The admin port, in the same way. Empty if there is none.
    pub admin: Vec<TcpListener>,
}

impl Listeners {
    /// The addresses of the data port.
    ///
    /// # Errors
    ///
    /// The system fails to report one.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.data.iter().map(TcpListener::local_addr).collect()
    }
}

impl ListenConfig {
    /// Host and port, each with its variable.
    pub fn new(
        (host_variable, host): (&'static str, &str),
        (port_variable, port): (&'static str, u16),
    ) -> Self {
        Self { host_variable, host: host.to_owned(), port_variable, port }
    }

    /// Resolves the host to all of its addresses, sorted: 127.0.0.1 comes before ::1.
    ///
    /// # Errors
    ///
    /// The host is unknown. The error names the variable.
    pub async fn resolve(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        let host = self.host.as_str();
        let unknown = |error: String| {
            let expected = format!("expected a host name or address of this machine: {error}");
            ConfigError::invalid(self.host_variable, host, expected)
        };
        let found = lookup_host((host, self.port)).await.map_err(|e| unknown(e.to_string()))?;
        let mut found: Vec<SocketAddr> = found.collect();
        found.sort();
        found.dedup();
        if found.is_empty() { Err(unknown("it has no address".to_owned())) } else { Ok(found) }
    }

    /// Binds the port on all of these addresses, with the same number on each. On a machine without
    /// IPv6, skips an IPv6 address if an address before it was bound.
    ///
    /// # Errors
    ///
    /// The port cannot be bound, most likely because it is in use. The error names the variable.
    pub fn bind(&self, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ConfigError> {
        let mut listeners: Vec<TcpListener> = Vec::new();
        for &(mut address) in addresses {
            if let (0, Some(Ok(first))) =
                (address.port(), listeners.first().map(TcpListener::local_addr))
            {
                address.set_port(first.port());
            }
            match listen(address) {
                Ok(listener) => listeners.push(listener),
                Err(error) if lacks_ipv6(address, &error) && !listeners.is_empty() => {
                    debug!(%address, %error, "address left out");
                }
                Err(error) => {
                    let expected = format!("expected a port free at {address}: {error}");
                    let (variable, port) = (self.port_variable, address.port());
                    return Err(ConfigError::invalid(variable, port, expected));
                }
            }
        }
        Ok(listeners)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Each address of a host name has its own socket. Only the address :: serves both families.
        socket.set_only_v6(address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    // A restart must not wait until the system forgets old connections.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn lacks_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    address.is_ipv6()
        && !matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}

/// Sets the options of an accepted connection. Small messages leave at once. The system holds few
/// unsent bytes, so that pongs can overtake the data in our own queue.
///
/// # Errors
///
/// The connection is already lost.
pub fn prepare_accepted(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    #[cfg(any(target_os = "android", target_os = "linux"))]
    SockRef::from(socket).set_tcp_notsent_lowat(UNSENT_BYTES)?;
    Ok(())
}

/// Whether an error of `accept` concerns one connection and says nothing about the next.
pub fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
