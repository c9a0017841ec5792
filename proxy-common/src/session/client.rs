//! The client at the other end of a session.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use crate::protocol::Market;

/// Most characters kept of a client's name for itself.
const MAX_USER_AGENT: usize = 100;

/// The client at the other end of a session.
#[derive(Debug, Clone)]
pub struct ClientInfo {
    /// Its address.
    pub address: IpAddr,
    /// Its port. `None` if only a proxy's is known.
    pub port: Option<u16>,
    /// What it calls itself, as [`user_agent`] returns it.
    pub user_agent: Arc<str>,
    /// The market of its path.
    pub market: Market,
    /// What its path and query ask for beyond a market. Most clients ask for nothing.
    pub options: Option<Arc<SessionOptions>>,
}

/// What a client asks for in its path and query.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// The name under which the proxy remembers what the client has received.
    pub name: Option<Arc<str>>,
    /// How often the client wants to know its position at most.
    pub positions: Option<Duration>,
    /// Whether each of its subscriptions begins with the last values.
    pub snapshot: bool,
}

/// Whether a tier remembers sessions by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedSessions {
    /// It does.
    Accepted,
    /// It does not, and refuses such clients.
    Refused,
}

impl ClientInfo {
    /// A client of which only the address is known.
    pub fn new(address: SocketAddr, market: Market) -> Self {
        let (address, port) = (address.ip(), Some(address.port()));
        Self { address, port, user_agent: "".into(), market, options: None }
    }
}

impl ClientInfo {
    /// The name of its session, if it has one.
    pub fn session_name(&self) -> Option<&Arc<str>> {
        self.options.as_ref()?.name.as_ref()
    }
}

impl fmt::Display for ClientInfo {
    /// Address and port, such as `192.0.2.1:4711` or `[2001:db8::1]:4711`; or the address alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

/// As much of the header `User-Agent` as is kept, without control characters. The client chooses
/// it: it may be shown, but nothing may depend on it.
pub fn user_agent(header: &str) -> Arc<str> {
    let shown = header.chars().filter(|c| !c.is_control()).take(MAX_USER_AGENT);
    shown.collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_agent_is_cut_and_has_no_control_characters() {
        assert_eq!(&*user_agent("Python/3.13 websockets/15.0"), "Python/3.13 websockets/15.0");
        assert_eq!(&*user_agent("a\tb\u{1b}[31m\u{85}c"), "ab[31mc");
        assert_eq!(user_agent(&"é".repeat(200)).chars().count(), 100);
    }
}
