//! The answers for people and for scripts that watch a program: its page, `/status.json` and
//! `/sessions`.

use std::{net::IpAddr, sync::LazyLock};

use data_encoding::BASE64;
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode,
    header::{
        ACCEPT, AUTHORIZATION, CONTENT_SECURITY_POLICY, REFERRER_POLICY, WWW_AUTHENTICATE,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use secrecy::SecretString;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tracing::warn;

use super::{
    handler::Handler,
    http::{HttpService, Response, text, with_type},
};
use crate::status::PAGE;

/// Who sends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Viewer {
    Anyone,
    Operator,
    /// Presents a key that is no operator's.
    Refused,
}

impl<H: Handler> HttpService<H> {
    /// The answer to a request for the status, if this port has it. `client` sent the request.
    pub(super) fn status_answer<B>(
        &self,
        request: &Request<B>,
        client: IpAddr,
    ) -> Option<Response> {
        if !self.probes || !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        match request.uri().path().trim_end_matches('/') {
            "" if wants_html(request.headers()) => Some(page()),
            "/status" => Some(page()),
            "/status.json" => Some(match self.viewer(request.headers(), client) {
                Viewer::Refused => unauthorized(),
                viewer => json(&self.handler.status(viewer == Viewer::Operator)),
            }),
            "/sessions" => Some(match self.viewer(request.headers(), client) {
                Viewer::Operator => json(&self.handler.sessions()),
                Viewer::Anyone | Viewer::Refused => unauthorized(),
            }),
            _ => None,
        }
    }

    /// Who may see what: the operator alone reaches the admin port, or presents a key.
    fn viewer(&self, headers: &HeaderMap, client: IpAddr) -> Viewer {
        if !self.upgrades {
            return Viewer::Operator;
        }
        let Some(header) = headers.get(AUTHORIZATION) else { return Viewer::Anyone };
        let key = header.to_str().ok().and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| SecretString::from(key.trim()))
        });
        let lease = key.and_then(|key| self.keys.authenticate(&key));
        if lease.is_some_and(|lease| lease.limits().is_operator()) {
            return Viewer::Operator;
        }
        self.gate.note_wrong_key(client);
        Viewer::Refused
    }
}

fn unauthorized() -> Response {
    let sentence = "expected Authorization: Bearer KEY, with a key of role=operator\n";
    let mut response = text(StatusCode::UNAUTHORIZED, sentence);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Whether a browser asks for a page.
fn wants_html(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split([',', ';']).any(|item| item.trim().eq_ignore_ascii_case("text/html"))
}

fn json(document: &impl Serialize) -> Response {
    let body = serde_json::to_string(document).unwrap_or_else(|error| {
        warn!(%error, "failed to write the status");
        "{}".to_owned()
    });
    with_type(text(StatusCode::OK, &(body + "\n")), "application/json")
}

fn page() -> Response {
    let mut response = with_type(text(StatusCode::OK, PAGE), "text/html; charset=utf-8");
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The page may run its own script and style, and ask this program. Nothing else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |element: &str| {
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        let inner = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
        let (inner, _) = inner.expect("the page has one of each");
        format!("'sha256-{}'", BASE64.encode(&Sha256::digest(inner.as_bytes())))
    };
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    );
    HeaderValue::from_str(&policy).expect("a policy is a header")
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_known_by_what_it_accepts() {
        for (accept, expected) in [
            ("text/html,application/xhtml+xml,*/*;q=0.8", true),
            ("application/json, Text/HTML;q=0.9", true),
            ("*/*", false),
            ("application/json", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(wants_html(&headers), expected, "{accept}");
        }
        assert!(!wants_html(&HeaderMap::new()));
    }
}
