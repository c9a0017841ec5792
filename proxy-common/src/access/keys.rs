//! The keys that open sessions. Each has a label, which may be shown where a key may not.
//!
//! Only SHA-256 digests are kept. A file of keys can be read again, without an effect on sessions
//! whose key stays as it was.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::key_limits::{KeyLimits, LimitsKept};
use crate::config::{
    ConfigError,
    secrets::{read_secret_file, secret},
};

/// The prefix of a digest in a file of keys.
const SCHEME: &str = "sha256:";
/// The label of the account's key, if clients present that one.
const ACCOUNT: &str = "account";
/// The longest label.
pub const MAX_LABEL: usize = 64;

/// The keys that clients may present.
#[derive(Debug)]
pub struct Keys {
    /// The variable that they come from.
    variable: &'static str,
    /// The file to read them from again.
    file: Option<PathBuf>,
    /// Which limits the file may hold.
    kept: LimitsKept,
    /// Locked at each login and reload, never across an await.
    entries: RwLock<Vec<Entry>>,
}

#[derive(Debug, Clone)]
struct Entry {
    label: Arc<str>,
    key: Arc<Key>,
}

/// One key, shared with the sessions that it opened.
struct Key {
    digest: [u8; 32],
    /// Never change: a key with other limits is another one.
    limits: KeyLimits,
    sessions: AtomicI64,
    revoked: AtomicBool,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

impl Key {
    /// Whether sessions of this key may go on with that one.
    fn is(&self, other: &Self) -> bool {
        self.digest == other.digest && self.limits == other.limits
    }
}

/// Counts a session for the key that it uses, until it is dropped.
#[derive(Debug)]
pub struct KeyLease {
    key: Arc<Key>,
    label: Arc<str>,
}

impl KeyLease {
    /// The label of the key when the session began.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The same, to keep.
    pub fn shared_label(&self) -> Arc<str> {
        Arc::clone(&self.label)
    }

    /// What the key is limited to.
    pub fn limits(&self) -> &KeyLimits {
        &self.key.limits
    }

    /// Whether the key has been removed from the file since then, or its limits have changed.
    pub fn is_revoked(&self) -> bool {
        self.key.revoked.load(Ordering::Relaxed)
    }
}

impl Drop for KeyLease {
    fn drop(&mut self) {
        self.key.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a reload changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys now.
    pub keys: usize,
    /// Keys that are new, or have new limits.
    pub added: usize,
    /// Keys that were removed, or had other limits. Their sessions end soon.
    pub removed: usize,
}

impl Keys {
    /// Reads the keys from a variable or from a file. `None` if neither is set.
    ///
    /// # Errors
    ///
    /// Both are set, the file cannot be read, a line is invalid, there is no key, or a key has a
    /// limit that is not `kept`.
    pub fn read(
        variable: &'static str,
        value: Option<&SecretString>,
        file: Option<&Path>,
        kept: LimitsKept,
    ) -> Result<Option<Self>, ConfigError> {
        let value = secret(variable, value, None)?;
        let entries = match (&value, file) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err(ConfigError::both(variable)),
            (Some(list), None) => {
                parse(list.expose_secret(), kept).map_err(|error| match error {
                    KeyFileError::Empty => {
                        ConfigError::missing(variable, "keys separated by commas")
                    }
                    KeyFileError::Line { why, .. } => ConfigError::invalid_secret(variable, why),
                })?
            }
            (None, Some(path)) => read_file(variable, path, kept)?,
        };
        let file = file.map(Path::to_owned);
        Ok(Some(Self { variable, file, kept, entries: RwLock::new(entries) }))
    }

    /// The account's key as the only one, for a program where `variable` is not set.
    pub fn account(variable: &'static str, key: &SecretString) -> Self {
        // Whoever knows the account's key is the operator.
        let limits = KeyLimits::default().of_operator();
        let entry = Entry::new(ACCOUNT, digest(key.expose_secret()), limits);
        let kept = LimitsKept::Markets;
        Self { variable, file: None, kept, entries: RwLock::new(vec![entry]) }
    }

    /// Whether the account's key is the only one, because no others are set.
    pub fn is_account(&self) -> bool {
        self.entries().iter().any(|entry| &*entry.label == ACCOUNT) && self.file.is_none()
    }

    /// The variable that the keys come from.
    pub fn variable(&self) -> &'static str {
        self.variable
    }

    /// Authenticates a client by the key that it presents. The time this takes depends only on the
    /// length of that key and the number of keys.
    pub fn authenticate(&self, presented: &SecretString) -> Option<KeyLease> {
        let presented = digest(presented.expose_secret());
        let entries = self.entries();
        let mut found = u32::MAX;
        for (index, entry) in (0..u32::MAX).zip(entries.iter()) {
            found.conditional_assign(&index, entry.key.digest.ct_eq(&presented));
        }
        let entry = entries.get(found as usize)?;
        entry.key.sessions.fetch_add(1, Ordering::Relaxed);
        Some(KeyLease { key: Arc::clone(&entry.key), label: Arc::clone(&entry.label) })
    }

    /// Sessions of each label.
    pub fn sessions(&self) -> BTreeMap<String, i64> {
        let mut sessions = BTreeMap::new();
        for entry in self.entries().iter() {
            *sessions.entry(entry.label.to_string()).or_insert(0) +=
                entry.key.sessions.load(Ordering::Relaxed);
        }
        sessions
    }

    /// Reads the file again, if the keys come from one. Sessions whose key was removed, or has
    /// other limits now, end at their next timer. Blocks while it reads.
    ///
    /// # Errors
    ///
    /// As for [`Keys::read`]. The keys stay as they were.
    pub fn reload(&self) -> Result<Option<Reloaded>, ConfigError> {
        let Some(path) = &self.file else { return Ok(None) };
        let mut fresh = read_file(self.variable, path, self.kept)?;
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let mut added = 0;
        for entry in &mut fresh {
            match entries.iter().find(|old| old.key.is(&entry.key)) {
                // Sessions keep their key, even if its label has changed.
                Some(old) => entry.key = Arc::clone(&old.key),
                None => added += 1,
            }
        }
        let mut removed = 0;
        for old in entries.iter() {
            if !fresh.iter().any(|entry| Arc::ptr_eq(&entry.key, &old.key)) {
                old.key.revoked.store(true, Ordering::Relaxed);
                removed += 1;
            }
        }
        *entries = fresh;
        Ok(Some(Reloaded { keys: entries.len(), added, removed }))
    }

    fn entries(&self) -> RwLockReadGuard<'_, Vec<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sessions of each label, for `/metrics`.
#[derive(Debug)]
pub struct KeyMetrics(pub Arc<Keys>);

impl Collector for KeyMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Sessions now, by the label of the key that opened them";
        let mut family =
            encoder.encode_descriptor("sessions_by_key", help, None, MetricType::Gauge)?;
        for (label, sessions) in self.0.sessions() {
            ConstGauge::new(sessions).encode(family.encode_family(&[("key", label)])?)?;
        }
        Ok(())
    }
}

/// Parses a label: 1 to 64 letters, digits, dots, hyphens and underscores.
///
/// # Errors
///
/// The text has another form.
pub fn parse_label(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > MAX_LABEL || !text.chars().all(allowed) {
        return Err(format!(
            "expected a label of 1 to {MAX_LABEL} letters, digits, dots, hyphens and underscores"
        ));
    }
    Ok(text.to_owned())
}

/// The line for this key in a file of keys.
pub fn key_file_line(label: &str, key: &SecretString) -> String {
    let digest = base16ct::lower::encode_string(&digest(key.expose_secret()));
    format!("{label} {SCHEME}{digest}")
}

impl Entry {
    fn new(label: &str, digest: [u8; 32], limits: KeyLimits) -> Self {
        let (sessions, revoked) = (AtomicI64::new(0), AtomicBool::new(false));
        Self { label: label.into(), key: Arc::new(Key { digest, limits, sessions, revoked }) }
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Why a text is no list of keys. Never holds a part of the text, which may be a key.
#[derive(Debug, PartialEq, Eq)]
enum KeyFileError {
    Empty,
    Line { number: usize, why: String },
}

fn read_file(variable: &str, path: &Path, kept: LimitsKept) -> Result<Vec<Entry>, ConfigError> {
    let variable = format!("{variable}_FILE");
    let text = read_secret_file(&variable, path)?;
    parse(text.expose_secret(), kept).map_err(|error| match error {
        KeyFileError::Empty => ConfigError::missing(&variable, "a file that holds a key"),
        KeyFileError::Line { number, why } => {
            ConfigError::invalid(&variable, path.display(), format!("line {number}: {why}"))
        }
    })
}

/// Reads lines `label sha256:HEX`, which may go on with limits, lines of plain keys separated by
/// commas, and comments.
fn parse(text: &str, kept: LimitsKept) -> Result<Vec<Entry>, KeyFileError> {
    let mut entries: Vec<(Entry, bool, usize)> = Vec::new();
    let mut plain = 0;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        let error = |why: String| KeyFileError::Line { number, why };
        let mut add = |entry: Entry, labelled: bool| {
            let twin = entries.iter().find(|(old, ..)| old.key.digest == entry.key.digest);
            match twin {
                Some((_, twin_labelled, _)) if !labelled && !twin_labelled => Ok(()),
                Some((.., twin)) => Err(error(format!("the key of line {twin} again"))),
                None => {
                    entries.push((entry, labelled, number));
                    Ok(())
                }
            }
        };
        if line.contains(SCHEME) {
            add(labelled(line, kept).map_err(error)?, true)?;
            continue;
        }
        for key in line.split(',').map(str::trim).filter(|key| !key.is_empty()) {
            if key.contains(char::is_whitespace) {
                return Err(error(format!(
                    "expected keys without blanks, separated by commas, or a label and {SCHEME} with a digest"
                )));
            }
            plain += 1;
            let entry = Entry::new(&format!("key-{plain}"), digest(key), KeyLimits::default());
            add(entry, false)?;
        }
    }
    if entries.is_empty() {
        return Err(KeyFileError::Empty);
    }
    Ok(entries.into_iter().map(|(entry, ..)| entry).collect())
}

fn labelled(line: &str, kept: LimitsKept) -> Result<Entry, String> {
    let mut words = line.split_whitespace();
    let (name, hash) = (words.next(), words.next().and_then(|hash| hash.strip_prefix(SCHEME)));
    let (Some(name), Some(hex)) = (name, hash) else {
        return Err(format!("expected a label, a blank and {SCHEME} with a digest"));
    };
    let name = parse_label(name)?;
    let mut digest = [0; 32];
    match base16ct::mixed::decode(hex, &mut digest) {
        Ok(decoded) if decoded.len() == 32 => {}
        Ok(_) | Err(_) => return Err(format!("expected {SCHEME} with 64 hexadecimal digits")),
    }
    Ok(Entry::new(&name, digest, KeyLimits::parse(words, kept)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of `abc`, from the standard (FIPS 180-2).
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    const KEPT: LimitsKept = LimitsKept::MarketsAndTypes;

    fn keys(text: &str) -> Keys {
        let entries = RwLock::new(parse(text, KEPT).unwrap());
        Keys { variable: "KEYS", file: None, kept: KEPT, entries }
    }

    fn label_of(keys: &Keys, key: &str) -> Option<String> {
        keys.authenticate(&key.into()).map(|lease| lease.label().to_owned())
    }

    #[test]
    fn any_of_the_keys_opens_and_nothing_else() {
        let keys = keys(" one, two\nthree ,one");
        for (key, label) in [("one", "key-1"), ("two", "key-2"), ("three", "key-3")] {
            assert_eq!(label_of(&keys, key).as_deref(), Some(label), "{key}");
        }
        for key in ["", "on", "one ", "onee", "one,two", "ONE"] {
            assert_eq!(label_of(&keys, key), None, "{key}");
        }
        assert!(!format!("{keys:?}").contains("three"));
    }

    #[test]
    fn digests_stand_for_keys_and_are_no_keys() {
        let text = format!("# desks\n\n desk-a  sha256:{ABC}\r\nplain\n");
        let keys = keys(&text);
        assert_eq!(label_of(&keys, "abc").as_deref(), Some("desk-a"));
        assert_eq!(label_of(&keys, "plain").as_deref(), Some("key-1"));
        for key in [ABC, &format!("sha256:{ABC}"), "desk-a", "# desks", "#"] {
            assert_eq!(label_of(&keys, key), None, "{key}");
        }
        assert_eq!(key_file_line("desk-a", &"abc".into()), format!("desk-a sha256:{ABC}"));
        assert_eq!(
            label_of(&self::keys(&format!("x sha256:{}", ABC.to_uppercase())), "abc").as_deref(),
            Some("x")
        );
    }

    #[test]
    fn a_bad_line_is_reported_by_its_number_and_never_shown() {
        let good = format!("desk-a sha256:{ABC}");
        for (error, why) in [
            (format!("sha256:{ABC}"), "expected a label"),
            (format!("a b sha256:{ABC}"), "expected a label"),
            (format!("a b sha256:{ABC} types=T"), "expected a label"),
            (format!("sha256:{ABC} types=T"), "expected a label"),
            (format!("a sha256:{ABC} types=t"), "types=: expected types"),
            (format!("a sha256:{ABC} markets=x"), "markets=: expected some of stocks"),
            (format!("a sha256:{ABC} note"), "expected nothing after the digest but markets="),
            (format!("b sha256:{ABC} types=T"), "the key of line 1 again"),
            ("abc types=T".to_owned(), "expected keys without blanks"),
            (format!("a/b sha256:{ABC}"), "expected a label of"),
            (format!("{} sha256:{ABC}", "x".repeat(65)), "expected a label of"),
            ("a sha256:abc".to_owned(), "64 hexadecimal digits"),
            (format!("a sha256:{ABC}00"), "64 hexadecimal digits"),
            (format!("a sha256:{}", ABC.replace('b', "g")), "64 hexadecimal digits"),
            ("a md5:900150983cd24fb0".to_owned(), "expected keys without blanks"),
            (format!("b sha256:{ABC}"), "the key of line 1 again"),
            ("abc".to_owned(), "the key of line 1 again"),
        ] {
            let Err(KeyFileError::Line { number, why: reason }) =
                parse(&format!("{good}\n#\n{error}\n"), KEPT)
            else {
                panic!("{error} was accepted")
            };
            assert_eq!(number, 3, "{error}");
            assert!(reason.contains(why) && !reason.contains(&error), "{error}: {reason}");
        }
        for empty in ["", " , ,\n", "# abc\n"] {
            assert_eq!(parse(empty, KEPT).unwrap_err(), KeyFileError::Empty);
        }
    }

    #[test]
    fn a_line_may_limit_its_key() {
        let keys = keys(&format!("desk-a sha256:{ABC}  types=T\tmarkets=crypto\r\nplain\n"));
        let limits = |key: &str| keys.authenticate(&key.into()).unwrap().limits().clone();
        let expected = KeyLimits::parse(["markets=crypto", "types=T"].into_iter(), KEPT);
        assert_eq!(Ok(limits("abc")), expected);
        assert_eq!(limits("plain"), KeyLimits::default());
    }

    #[test]
    fn sessions_are_counted_by_label_while_they_last() {
        let keys = keys(&format!(
            "desk-a sha256:{ABC}\n{}\nother",
            key_file_line("desk-a", &"new".into())
        ));
        let first = keys.authenticate(&"abc".into()).unwrap();
        let second = keys.authenticate(&"new".into()).unwrap();
        let shown = |keys: &Keys| format!("{:?}", keys.sessions());
        assert_eq!(shown(&keys), r#"{"desk-a": 2, "key-1": 0}"#);
        drop((first, second));
        assert_eq!(shown(&keys), r#"{"desk-a": 0, "key-1": 0}"#);
    }

    #[test]
    fn a_reload_keeps_what_stays_and_revokes_what_is_gone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| std::fs::write(file.path(), text).unwrap();
        write("one\ntwo\n");
        let keys = Keys::read("KEYS", None, Some(file.path()), KEPT).unwrap().unwrap();
        let lease = |key: &str| keys.authenticate(&key.into()).unwrap();
        let (one, two) = (lease("one"), lease("two"));
        write(&format!("{}\nthree", key_file_line("renamed", &"one".into())));
        let reloaded = Reloaded { keys: 2, added: 1, removed: 1 };
        assert_eq!(keys.reload(), Ok(Some(reloaded)));
        assert!(!one.is_revoked() && two.is_revoked());
        assert_eq!(format!("{:?}", keys.sessions()), r#"{"key-1": 0, "renamed": 1}"#);
        for error in ["", "a sha256:0"] {
            write(error);
            assert!(keys.reload().unwrap_err().to_string().starts_with("KEYS_FILE: "));
            assert!(!one.is_revoked() && label_of(&keys, "three").is_some());
        }
        // A key that comes back is a new one: sessions of the old one still end.
        write("two");
        assert!(keys.reload().is_ok() && two.is_revoked() && !lease("two").is_revoked());
    }

    #[test]
    fn a_key_with_other_limits_is_a_new_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = format!("desk-a sha256:{ABC}");
        let write = |limits: &str| std::fs::write(file.path(), format!("{line} {limits}")).unwrap();
        let read = |kept| Keys::read("KEYS", None, Some(file.path()), kept);
        write("types=T,Q");
        let keys = read(KEPT).unwrap().unwrap();
        for (before, after, same) in [
            ("types=T,Q", "types=Q,T", true),
            ("types=T,Q", "types=T", false),
            ("types=T", "types=T markets=stocks", false),
            ("types=T markets=stocks", "markets=stocks types=T", true),
            ("types=T markets=stocks", "", false),
            ("", "", true),
        ] {
            let lease = keys.authenticate(&"abc".into()).unwrap();
            write(after);
            let changed = usize::from(!same);
            let reloaded = Reloaded { keys: 1, added: changed, removed: changed };
            assert_eq!(keys.reload(), Ok(Some(reloaded)), "{before:?} to {after:?}");
            assert_eq!(lease.is_revoked(), !same, "{before:?} to {after:?}");
        }
        // A program that does not keep a limit takes it neither at its start nor later.
        let keys = read(LimitsKept::Markets).unwrap().unwrap();
        let lease = keys.authenticate(&"abc".into()).unwrap();
        write("types=T");
        for error in [read(LimitsKept::Markets).unwrap_err(), keys.reload().unwrap_err()] {
            assert!(error.to_string().contains("line 1: types= works at"), "{error}");
        }
        assert!(!lease.is_revoked());
    }
}
