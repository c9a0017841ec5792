//! The configuration of a link.

use std::{sync::Arc, time::Duration};

use rustls::pki_types::CertificateDer;
use secrecy::SecretString;
use url::Url;

#[cfg(feature = "nats")]
use super::nats::NatsUpstream;
use super::{dial_right::DialRight, spacing::Spacing};

/// Where a link connects, with which key, and how long it waits.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// The upstream's name in logs: `Polygon` or `firehose`.
    pub upstream: &'static str,
    /// The upstream's address.
    pub url: Url,
    /// The key presented.
    pub key: SecretString,
    /// Certificate authorities trusted for `wss`, in addition to the public ones built in. Default:
    /// none.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// The most time for each step: connecting, the greeting, the answer to the key. Default: 10 s.
    pub login_timeout: Duration,
    /// Time between attempts after the upstream refused the key. Default: 15 min.
    pub refused_interval: Duration,
    /// Time between pings; the link is dead if nothing arrived during two of them. Default: 15 s.
    pub ping_interval: Duration,
    /// For a firehose upstream: the link asks for what it missed. At first it asks for the newest
    /// of the history, so many bytes. Default: none, for an upstream without a history.
    pub history_bytes: Option<u64>,
    /// How many bytes of the newest frames the owner keeps. Default: none.
    pub kept_bytes: usize,
    /// The feed comes out of NATS instead. `url` is then its first server. Default: none.
    #[cfg(feature = "nats")]
    pub nats: Option<Arc<NatsUpstream>>,
    /// Keeps the attempts of links to one upstream apart. Default: none, for a link on its own.
    pub spacing: Option<Arc<Spacing>>,
    /// Of several programs, only one may dial. Default: none, for a link that always may.
    pub dial_right: Option<DialRight>,
}

impl LinkConfig {
    /// A configuration with the default times.
    pub fn new(upstream: &'static str, url: Url, key: SecretString) -> Self {
        Self {
            upstream,
            url,
            key,
            extra_roots: Vec::new(),
            login_timeout: Duration::from_secs(10),
            refused_interval: Duration::from_secs(15 * 60),
            ping_interval: Duration::from_secs(15),
            history_bytes: None,
            kept_bytes: 0,
            #[cfg(feature = "nats")]
            nats: None,
            spacing: None,
            dial_right: None,
        }
    }

    /// The upstream's address, without the parts that may hold a secret.
    pub fn shown(&self) -> String {
        #[cfg(feature = "nats")]
        if let Some(nats) = &self.nats {
            return nats.shown();
        }
        redacted(&self.url)
    }
}

/// A URL without the parts that may hold a secret.
pub fn redacted(url: &Url) -> String {
    let (scheme, path) = (url.scheme(), url.path());
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{path}")
}
