//! Decides which web pages may connect. A browser sends the origin of a page in `Origin`, and no
//! page can forge it. Most other programs send none.

use url::Url;

/// The origins whose pages may connect. Default: none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins {
    any: bool,
    listed: Vec<String>,
}

impl Origins {
    /// Reads origins such as `https://desk.example.com` separated by commas; `*` stands for all.
    ///
    /// # Errors
    ///
    /// An item is no origin. The error names it.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut origins = Self::default();
        for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            if item == "*" {
                origins.any = true;
                continue;
            }
            origins.listed.push(normal(item).ok_or_else(|| {
                format!(
                    "expected * or origins such as https://desk.example.com,http://localhost:3000: {item:?} is none"
                )
            })?);
        }
        Ok(origins)
    }

    /// Whether a request with this `Origin` may connect to this host.
    ///
    /// The origin of the requested host itself passes as well, because some libraries always send
    /// it. So does text that no browser sends.
    pub fn allow(&self, origin: &str, host: Option<&str>) -> bool {
        if self.any || !is_from_browser(origin) {
            return true;
        }
        let Some(origin) = normal(origin) else { return false };
        self.listed.contains(&origin) || host.is_some_and(|host| is_of_host(&origin, host))
    }
}

/// Whether a browser could send this `Origin`. A browser sends `null` or `scheme://host`, with a
/// port where it is not the usual one and nothing behind it (RFC 6454, section 6.2), and loads no
/// page by `ws` or `wss`. Programs also send bare hosts, URLs with a path, or nothing.
fn is_from_browser(origin: &str) -> bool {
    match origin.split_once("://") {
        Some((scheme, host)) => {
            let named = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
            let is_page = !matches!(scheme, "" | "ws" | "wss") && scheme.chars().all(named);
            is_page && !host.contains('/')
        }
        None => origin == "null",
    }
}

/// An origin as scheme, host and port, in lower case and without a port that the scheme implies.
fn normal(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    if !bare || !url.username().is_empty() || url.password().is_some() {
        return None;
    }
    let host = url.host_str().filter(|host| !host.is_empty())?.to_ascii_lowercase();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{}://{host}{port}", url.scheme()))
}

fn is_of_host(origin: &str, host: &str) -> bool {
    let Some((scheme, _)) = origin.split_once("://") else { return false };
    matches!(scheme, "http" | "https")
        && normal(&format!("{scheme}://{host}")).is_some_and(|own| own == origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_list_only_the_requested_host_passes() {
        let none = Origins::default();
        for (origin, host) in [
            ("http://127.0.0.1:8765", "127.0.0.1:8765"),
            ("http://Proxy.example:8765", "proxy.example:8765"),
            ("http://[::1]:8765", "[::1]:8765"),
            ("https://proxy.example", "proxy.example"),
            ("https://proxy.example:443", "proxy.example"),
            ("http://proxy.example", "proxy.example:80"),
        ] {
            assert!(none.allow(origin, Some(host)), "{origin} at {host}");
        }
        for (origin, host) in [
            ("https://evil.example", "proxy.example"),
            ("http://localhost:8765", "127.0.0.1:8765"),
            ("http://localhost:3000", "localhost:8765"),
            ("http://proxy.example.evil.example", "proxy.example"),
            ("https://proxy.example", "proxy.example:8765"),
            ("http://proxy.example:8765", "proxy.example:8765/x"),
            ("http://user@proxy.example", "user@proxy.example"),
            ("null", "null"),
            ("file://", ""),
            ("chrome-extension://abc", "abc"),
            ("moz-extension://abc", "proxy.example"),
            ("http://localhost", "localhost:8765"),
            ("HTTPS://evil.example", "proxy.example"),
        ] {
            assert!(!none.allow(origin, Some(host)), "{origin} at {host}");
        }
        assert!(!none.allow("http://localhost", None));
    }

    #[test]
    fn text_that_no_browser_sends_passes() {
        let none = Origins::default();
        for (origin, host) in [
            ("", "127.0.0.1:8765"),
            ("127.0.0.1", "127.0.0.1:8765"),
            ("localhost:8765", "127.0.0.1:8765"),
            ("ws://127.0.0.1:8765", "127.0.0.1:8765"),
            ("wss://desk.example.com", "desk.example.com:443"),
            ("http://localhost/", "localhost:8765"),
            ("http://localhost:8765/stocks", "127.0.0.1:8765"),
            ("my-program", "proxy.example"),
        ] {
            assert!(none.allow(origin, Some(host)), "{origin:?} at {host}");
        }
    }

    #[test]
    fn listed_origins_pass_and_a_star_lets_all_pass() {
        let list = Origins::parse(
            "https://Desk.example.com, http://localhost:3000/,chrome-extension://abc",
        )
        .unwrap();
        for good in [
            "https://desk.example.com",
            "https://desk.example.com:443",
            "http://localhost:3000",
            "chrome-extension://abc",
        ] {
            assert!(list.allow(good, Some("proxy")), "{good}");
        }
        for bad in ["http://desk.example.com", "https://desk.example.com:8443", "null"] {
            assert!(!list.allow(bad, Some("proxy")), "{bad}");
        }
        let any = Origins::parse(" * ").unwrap();
        assert!(any.allow("null", None) && any.allow("https://evil.example", Some("proxy")));
    }

    #[test]
    fn an_invalid_origin_is_refused() {
        for bad in ["desk.example.com", "https://", "https://x/path", "null", "https://u@x", "*.x"]
        {
            assert!(Origins::parse(bad).unwrap_err().contains(bad), "{bad}");
        }
        assert_eq!(Origins::parse(" , "), Ok(Origins::default()));
    }
}
