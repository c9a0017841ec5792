//! Finds the address of a client, even if trusted proxies stand between.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// The key that stands for one client in the limits: an IPv4 address, or an IPv6 /64, the usual
/// share of one household or machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct AddressKey(IpAddr);

impl AddressKey {
    /// How many leading bits of an IPv6 address identify a site.
    const SITE_BITS: u32 = 64;

    /// The key of an address. `None` for loopback, where one address stands for every program of
    /// the machine.
    pub(super) fn of(address: IpAddr) -> Option<Self> {
        let address = address.to_canonical();
        if address.is_loopback() {
            return None;
        }
        Some(Self(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => {
                Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - Self::SITE_BITS))).into()
            }
        }))
    }
}

/// The proxies that may name the client of a connection or request. Default: none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Reads addresses and networks (`10.0.0.0/8`) separated by commas.
    ///
    /// # Errors
    ///
    /// An item is neither. The error names it.
    pub fn parse(list: &str) -> Result<Self, String> {
        let network = |item: &str| {
            match item.parse::<IpNet>() {
            Ok(network) => Ok(network.trunc()),
            Err(_) => item.parse::<IpAddr>().map(IpNet::from).map_err(|_| {
                format!("expected addresses and networks such as 127.0.0.1,10.0.0.0/8: {item:?} is neither")
            }),
        }
        };
        let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(network).collect::<Result<_, _>>().map(Self)
    }

    /// Whether no proxy is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this peer may name its client.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The client that sent a request through `peer`: the rightmost address of `X-Forwarded-For`
    /// that is not trusted itself, or the leftmost if all are trusted. A peer that is not trusted
    /// is the client, whatever its header says.
    ///
    /// `forwarded` holds the values of the header in their order. Entries left of one that is no
    /// address are ignored.
    pub fn client<'a>(
        &self,
        peer: IpAddr,
        forwarded: impl DoubleEndedIterator<Item = &'a str>,
    ) -> IpAddr {
        let mut client = peer.to_canonical();
        let mut hops = forwarded.flat_map(|value| value.split(',')).rev();
        while self.contains(client) {
            match hops.next().and_then(|hop| hop_address(hop.trim())) {
                Some(address) => client = address.to_canonical(),
                None => break,
            }
        }
        client
    }
}

/// Parses an entry of `X-Forwarded-For`. Some proxies add the port.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(hop);
    bare.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Option<AddressKey> {
        AddressKey::of(text.parse().unwrap())
    }

    #[test]
    fn a_site_of_ipv6_is_one_client_and_loopback_is_none() {
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_ne!(key("203.0.113.1"), key("203.0.113.2"));
        assert_eq!(key("::ffff:203.0.113.1"), key("203.0.113.1"));
        for loopback in ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(key(loopback), None, "{loopback}");
        }
    }

    #[test]
    fn lists_of_proxies_are_checked() {
        let trusted = TrustedProxies::parse(" 10.1.2.3/8, 127.0.0.1 ,,2001:db8::/32").unwrap();
        for inside in ["10.255.0.1", "127.0.0.1", "2001:db8:5::1", "::ffff:10.0.0.1"] {
            assert!(trusted.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["11.0.0.1", "127.0.0.2", "2001:db9::1", "::1"] {
            assert!(!trusted.contains(outside.parse().unwrap()), "{outside}");
        }
        assert!(TrustedProxies::parse("").unwrap().is_empty());
        for bad in ["nginx", "10.0.0.0/33", "10.0.0", "10.0.0.1;10.0.0.2", "127.0.0.1:80"] {
            assert!(TrustedProxies::parse(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[track_caller]
    fn check(peer: &str, forwarded: &[&str], client: &str) {
        let trusted = TrustedProxies::parse("127.0.0.1,10.0.0.0/8").unwrap();
        let found = trusted.client(peer.parse().unwrap(), forwarded.iter().copied());
        assert_eq!(found.to_string(), client, "{peer} {forwarded:?}");
    }

    #[test]
    fn the_rightmost_address_not_trusted_is_the_client() {
        check("127.0.0.1", &["203.0.113.1"], "203.0.113.1");
        check("127.0.0.1", &["198.51.100.7, 203.0.113.1"], "203.0.113.1");
        check("127.0.0.1", &["198.51.100.7, 203.0.113.1, 10.0.0.9"], "203.0.113.1");
        check("127.0.0.1", &["198.51.100.7", "203.0.113.1", "10.0.0.9, 10.0.0.8"], "203.0.113.1");
        check("127.0.0.1", &["10.0.0.9, 10.0.0.8"], "10.0.0.9");
        check("127.0.0.1", &["203.0.113.1:4711"], "203.0.113.1");
        check("127.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1");
        check("127.0.0.1", &["[2001:db8::1]"], "2001:db8::1");
        check("127.0.0.1", &["2001:db8::1"], "2001:db8::1");
        check("::ffff:127.0.0.1", &["::ffff:203.0.113.1"], "203.0.113.1");
    }

    #[test]
    fn an_untrusted_peer_is_the_client_and_invalid_entries_are_ignored() {
        check("192.0.2.1", &["203.0.113.1"], "192.0.2.1");
        check("192.0.2.1", &[], "192.0.2.1");
        check("127.0.0.1", &[], "127.0.0.1");
        check("127.0.0.1", &[""], "127.0.0.1");
        check("127.0.0.1", &["203.0.113.1, unknown"], "127.0.0.1");
        check("127.0.0.1", &["203.0.113.1, unknown, 10.0.0.9"], "10.0.0.9");
        check("127.0.0.1", &["203.0.113.1,"], "127.0.0.1");
    }
}
