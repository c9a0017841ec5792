//! Implements the documented rules for requests a second time: path, origin, client and status.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::{HeaderMap, Method, Request, StatusCode, Version, header};
use proxy_common::protocol::Market;
use url::{Origin, Url};

/// The settings of the ports.
pub(super) const MARKET: Market = Market::Stocks;
pub(super) const LISTED_ORIGIN: &str = "https://desk.example.com";
pub(super) const TRUSTED_PROXIES: &str = "10.0.0.0/8";
const HOUR: Duration = Duration::from_secs(60 * 60);

/// The status of the answer.
pub(super) fn status<B>(request: &Request<B>, upgrades: bool, probes: bool) -> StatusCode {
    let path = request.uri().path();
    if upgrades && asks_for_websocket(request.headers()) {
        return if !may_connect(request.headers()) {
            StatusCode::FORBIDDEN
        } else if !is_served(path) {
            StatusCode::NOT_FOUND
        } else if is_sound(request.uri().query().unwrap_or_default()) && is_handshake(request) {
            StatusCode::SWITCHING_PROTOCOLS
        } else {
            StatusCode::BAD_REQUEST
        };
    }
    let method = request.method();
    if ![Method::GET, Method::HEAD, Method::OPTIONS].contains(method) {
        return StatusCode::METHOD_NOT_ALLOWED;
    }
    match path.trim_end_matches('/') {
        "" | "*" if method == Method::OPTIONS => StatusCode::OK,
        "/health" | "/healthz" => StatusCode::OK,
        "/livez" | "/readyz" | "/metrics" if probes => StatusCode::OK,
        // Without a key, because the port with probes is the operator's here.
        "/status" | "/status.json" | "/sessions" if probes => StatusCode::OK,
        "" if probes && accepts_page(request.headers()) => StatusCode::OK,
        _ if upgrades => StatusCode::UPGRADE_REQUIRED,
        _ => StatusCode::NOT_FOUND,
    }
}

/// Whether this is the path of the market, alone or behind the name of a session.
fn is_served(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts[..] {
        [] | ["stocks"] => true,
        ["session", name] | ["session", name, "stocks"] => {
            let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            name.len() <= 64 && name.bytes().all(is_allowed)
        }
        _ => false,
    }
}

/// Whether each parameter that is known has a value that it takes.
fn is_sound(query: &str) -> bool {
    url::form_urlencoded::parse(query.as_bytes()).all(|(parameter, value)| match &*parameter {
        "positions" => humantime::parse_duration(&value)
            .is_ok_and(|interval| (Duration::from_nanos(1)..=HOUR).contains(&interval)),
        "snapshot" => ["0", "1", "false", "true"].contains(&&*value),
        _ => true,
    })
}

/// The first value of a header, if it is text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Whether the request asks for an upgrade to a WebSocket, perhaps among others.
pub(super) fn asks_for_websocket(headers: &HeaderMap) -> bool {
    items(headers, "upgrade").contains(&"websocket".to_owned())
}

/// Whether the first line of `Accept` lists HTML, with parameters or without.
fn accepts_page(headers: &HeaderMap) -> bool {
    let ranges = text(headers, "accept").unwrap_or_default().to_ascii_lowercase();
    ranges.split(',').any(|range| range.split(';').any(|part| part.trim() == "text/html"))
}

/// The items of a list header, of all its lines that are text, in lower case.
fn items(headers: &HeaderMap, name: &str) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    let items = lines.flat_map(|line| line.split(','));
    items.map(|item| item.trim().to_ascii_lowercase()).collect()
}

/// Whether this is a whole handshake of RFC 6455, section 4.2.1, without a body. The library also
/// accepts blanks between the options of the first line, if there is no other upgrade.
fn is_handshake<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let connection = text(headers, "connection").unwrap_or_default().to_ascii_lowercase();
    let with_blanks = connection.split([',', ' ']).any(|option| option == "upgrade")
        && text(headers, "upgrade").is_some_and(|first| first.eq_ignore_ascii_case("websocket"));
    request.method() == Method::GET
        && !brings_body(headers)
        && request.version() == Version::HTTP_11
        && (items(headers, "connection").contains(&"upgrade".to_owned()) || with_blanks)
        && text(headers, "sec-websocket-version") == Some("13")
        && text(headers, "sec-websocket-key").is_some_and(is_key)
}

fn brings_body(headers: &HeaderMap) -> bool {
    let length = text(headers, "content-length").unwrap_or("0");
    headers.contains_key(header::TRANSFER_ENCODING) || length.contains(|digit| digit != '0')
}

/// Whether this is 16 bytes in base64. The library also accepts padding inside, which does no harm.
fn is_key(key: &str) -> bool {
    let bytes: Option<usize> = key.as_bytes().chunks(4).map(base64_bytes).sum();
    key.len() == 24 && bytes == Some(16)
}

/// How many bytes four characters of base64 stand for.
fn base64_bytes(four: &[u8]) -> Option<usize> {
    let digits = four.iter().position(|&c| c == b'=').unwrap_or(four.len());
    let (digits, padding) = four.split_at(digits);
    let known = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/');
    if !digits.iter().all(known) || padding.iter().any(|&c| c != b'=') {
        return None;
    }
    // The last digit must hold no bits beyond whole bytes.
    match digits {
        [_, _, _, _] => Some(3),
        [_, _, last] if b"AEIMQUYcgkosw048".contains(last) => Some(2),
        [_, last] if b"AQgw".contains(last) => Some(1),
        _ => None,
    }
}

/// Whether the request comes from no web page, or from one of the listed origin or of the same
/// host. A browser writes the origin of a page as `null` or as a URL without a path, and loads no
/// page by `ws` or `wss`.
fn may_connect(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    let (scheme, rest) = origin.split_once(':').unwrap_or_default();
    let strange = |c: char| !c.is_ascii_alphanumeric() && !['+', '-', '.'].contains(&c);
    let loads_no_page = ["", "ws", "wss"].contains(&scheme) || scheme.contains(strange);
    let bare = rest.strip_prefix("//").is_some_and(|host| !host.contains('/'));
    if origin != "null" && (loads_no_page || !bare) {
        return true;
    }
    let Some(origin) = page(origin) else { return false };
    let scheme = match &origin {
        Origin::Tuple(scheme, ..) if scheme == "http" || scheme == "https" => scheme,
        Origin::Tuple(..) | Origin::Opaque(_) => return false,
    };
    let own = text(headers, "host").and_then(|host| page(&format!("{scheme}://{host}")));
    own.is_some_and(|own| own == origin)
        || page(LISTED_ORIGIN).is_some_and(|listed| listed == origin)
}

/// The origin of a URL that holds nothing else.
fn page(text: &str) -> Option<Origin> {
    let url = Url::parse(text).ok()?;
    let mut bare = url.clone();
    bare.set_path("");
    let credentials = !url.username().is_empty() || url.password().is_some();
    (bare == url && url.query().is_none() && url.fragment().is_none() && !credentials)
        .then(|| url.origin())
}

pub(super) fn is_trusted(address: IpAddr) -> bool {
    matches!(address.to_canonical(), IpAddr::V4(v4) if v4.octets()[0] == 10)
}

/// The last address of the chain that is not trusted. If the chain breaks before it, the last
/// address before the break.
pub(super) fn client(peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let values = headers.get_all("x-forwarded-for").iter();
    let chain: Vec<&str> = values.map(|value| value.to_str().unwrap_or_default()).collect();
    let chain = chain.join(",");
    let mut client = peer.to_canonical();
    if !headers.contains_key("x-forwarded-for") {
        return client;
    }
    for hop in chain.rsplit(',').map(str::trim) {
        let bracketed = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']'));
        let address = [Some(hop), bracketed].into_iter().flatten().find_map(|hop| hop.parse().ok());
        let with_port = hop.parse::<SocketAddr>().ok().map(|hop| hop.ip());
        match address.or(with_port) {
            Some(address) if is_trusted(client) => client = IpAddr::to_canonical(&address),
            Some(_) | None => break,
        }
    }
    client
}

/// The client that a PROXY header names, if any, and the length of the header. `None` if there is
/// no valid header.
pub(super) fn proxy_header(input: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    if input.starts_with(b"\r\n\r\n\0\r\nQUIT\n") {
        return second_version(input);
    }
    let length = 2 + input.windows(2).position(|pair| pair == b"\r\n")?;
    let line = str::from_utf8(&input[..length - 2]).ok();
    if length > 107 || !input.starts_with(b"PROXY ") {
        return None;
    }
    if input.starts_with(b"PROXY UNKNOWN") {
        return (!input[..length - 2].contains(&b'\r')).then_some((None, length));
    }
    let words: Vec<&str> = line?.split(' ').collect();
    let &["PROXY", family, source, destination, port, other_port] = &words[..] else { return None };
    let (source, destination): (IpAddr, IpAddr) = (source.parse().ok()?, destination.parse().ok()?);
    let (port, _): (u16, u16) = (port.parse().ok()?, other_port.parse().ok()?);
    let fits = match family {
        "TCP4" => source.is_ipv4() && destination.is_ipv4(),
        "TCP6" => source.is_ipv6() && destination.is_ipv6(),
        _ => false,
    };
    fits.then_some((Some(SocketAddr::new(source, port)), length))
}

fn second_version(input: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let &[command, family, high, low] = input.get(12..16)? else { return None };
    let length = 16 + usize::from(u16::from_be_bytes([high, low]));
    let addresses = input.get(16..length).filter(|_| length <= 4_096)?;
    let port = |at: usize| Some(u16::from_be_bytes(*addresses.get(at..at + 2)?.first_chunk()?));
    let (needed, source) = match family {
        0x00 => (0, None),
        0x11 | 0x12 => {
            let source = addresses.first_chunk::<4>().map(|octets| IpAddr::from(*octets));
            (12, source.zip(port(8)))
        }
        0x21 | 0x22 => {
            let source = addresses.first_chunk::<16>().map(|octets| IpAddr::from(*octets));
            (36, source.zip(port(32)))
        }
        0x31 | 0x32 => (216, None),
        _ => return None,
    };
    let named = match command {
        0x20 => None,
        0x21 => source.map(SocketAddr::from),
        _ => return None,
    };
    (addresses.len() >= needed).then_some((named, length))
}
