//! The settings of NATS, checked.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::names::Names;
use crate::{
    config::{ConfigError, pem::certificates, secrets::read_secret_file},
    protocol::Market,
};

/// The servers of one NATS, at least one: `nats://HOST:PORT` or `tls://HOST:PORT` each.
pub type Servers = Vec<Url>;

/// Parses servers separated by commas. All but the first may leave out the scheme.
///
/// # Errors
///
/// The list is empty, or an item has another scheme, no host, a path, or a user or password. No
/// error shows a part of the list.
pub fn servers(list: &str) -> Result<Servers, String> {
    const EXPECTED: &str = "expected NATS servers such as nats://a.example:4222,b.example:4222";
    let mut servers = Servers::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let url = match (item.contains("://"), servers.first()) {
            (true, _) => Url::parse(item),
            (false, Some(first)) => Url::parse(&format!("{}://{item}", first.scheme())),
            (false, None) => return Err(EXPECTED.to_owned()),
        };
        let mut url = url.map_err(|_| EXPECTED.to_owned())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!(
                "{EXPECTED}, without user or password: NATS_CREDS names their file"
            ));
        }
        let host = url.host_str().is_some_and(|host| !host.is_empty());
        if !matches!(url.scheme(), "nats" | "tls") || !host || !matches!(url.path(), "" | "/") {
            return Err(EXPECTED.to_owned());
        }
        if url.port().is_none() && url.set_port(Some(4222)).is_err() {
            return Err(EXPECTED.to_owned());
        }
        servers.push(url);
    }
    if servers.is_empty() { Err(EXPECTED.to_owned()) } else { Ok(servers) }
}

/// How to reach NATS.
#[derive(Clone)]
pub struct NatsConfig {
    /// The servers.
    pub servers: Servers,
    /// Who we are. Default: nobody.
    pub credentials: Option<Credentials>,
    /// Certificates (PEM) of authorities to trust, beside those of the system.
    pub ca: Option<PathBuf>,
    /// The beginning of all names.
    pub prefix: String,
}

/// What a program shows to NATS.
#[derive(Clone)]
pub enum Credentials {
    /// The content of a credentials file: a JWT and its seed.
    File(SecretString),
    /// User and password.
    User(String, SecretString),
}

impl NatsConfig {
    /// Checks the settings, and reads the credentials.
    ///
    /// # Errors
    ///
    /// A file cannot be read or holds something else, or the prefix has letters that NATS does not
    /// take in names. The error names the variable.
    pub fn check(
        servers: &Servers,
        credentials: Option<&Path>,
        ca: Option<&Path>,
        prefix: &str,
    ) -> Result<Self, ConfigError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if prefix.is_empty() || !prefix.chars().all(fits) {
            let expected = "expected letters, digits, _ and -";
            return Err(ConfigError::invalid("NATS_STREAM", prefix, expected));
        }
        if let Some(ca) = ca {
            certificates("NATS_CA", ca)?;
        }
        Ok(Self {
            servers: servers.clone(),
            credentials: credentials.map(Credentials::read).transpose()?,
            ca: ca.map(Path::to_owned),
            prefix: prefix.to_owned(),
        })
    }

    /// The names of a market.
    pub fn names(&self, market: Market) -> Names {
        Names::new(&self.prefix, market)
    }

    /// The servers, for a log.
    pub fn shown(&self) -> String {
        let servers: Vec<_> =
            self.servers.iter().map(|url| url.as_str().trim_end_matches('/')).collect();
        servers.join(",")
    }
}

impl Credentials {
    /// Reads a file: the credentials that NATS' own tools make, or one line `USER:PASSWORD`.
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let content = read_secret_file("NATS_CREDS", path)?;
        let text = content.expose_secret().trim();
        if text.contains("BEGIN NATS USER JWT") {
            return Ok(Self::File(content));
        }
        match text.split_once(':') {
            Some((user, password)) if !user.is_empty() && !text.contains('\n') => {
                Ok(Self::User(user.to_owned(), SecretString::from(password)))
            }
            _ => {
                let expected = "expected a credentials file of NATS, or one line USER:PASSWORD";
                Err(ConfigError::invalid("NATS_CREDS", path.display(), expected))
            }
        }
    }
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = self.credentials.is_some();
        f.debug_struct("NatsConfig")
            .field("servers", &self.shown())
            .field("credentials", &has)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_servers_is_checked() {
        let shown = |list| {
            servers(list).map(|servers| {
                servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            })
        };
        assert_eq!(shown("nats://a"), Ok("nats://a:4222".to_owned()));
        assert_eq!(shown("tls://a:1, b , c:3"), Ok("tls://a:1 tls://b:4222 tls://c:3".to_owned()));
        for bad in [
            "",
            ",",
            "a:4222",
            "ws://a",
            "nats://",
            "nats://a/x",
            "nats://u:secret@a",
            "nats://a,secret@b",
        ] {
            let error = shown(bad).unwrap_err();
            assert!(
                error.starts_with("expected NATS servers") && !error.contains("secret"),
                "{error}"
            );
        }
    }
}
