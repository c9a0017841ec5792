//! Checks the project's own sources: layers, boundaries, no open task, no key.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tests::imports::{Imports, ROOT};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All text files of the project, except build results, installed packages, lock files, `.env` and
/// git.
fn files() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut dirs = vec![root()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("read a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let skipped = ["target", "node_modules", "Cargo.lock", "package-lock.json", ".env"];
            if skipped.contains(&name) || name == ".git" {
                continue;
            }
            if path.is_dir() {
                dirs.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                found.push((path, text));
            }
        }
    }
    assert!(found.len() > 50, "the project's files");
    found
}

/// The code of a module, without its tests and comments.
fn code(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn pure_modules_know_no_runtime_no_clock_and_no_log() {
    let modules = [
        "proxy-common/src/access/command_rate.rs",
        "proxy-common/src/access/key_limits.rs",
        "proxy-common/src/access/origin.rs",
        "proxy-common/src/history.rs",
        "proxy-common/src/link/backoff.rs",
        "proxy-common/src/link/nats/follow.rs",
        "proxy-common/src/link/nats/wants.rs",
        "proxy-common/src/link/subscriptions.rs",
        "proxy-common/src/peers/answer.rs",
        "proxy-common/src/protocol/channel.rs",
        "proxy-common/src/protocol/channel_set.rs",
        "proxy-common/src/protocol/coverage.rs",
        "proxy-common/src/protocol/demux.rs",
        "proxy-common/src/protocol/demux/elements.rs",
        "proxy-common/src/protocol/demux/flat.rs",
        "proxy-common/src/protocol/feed.rs",
        "proxy-common/src/protocol/hint.rs",
        "proxy-common/src/protocol/kind.rs",
        "proxy-common/src/protocol/market.rs",
        "proxy-common/src/protocol/messages.rs",
        "proxy-common/src/protocol/position.rs",
        "proxy-common/src/session/close.rs",
        "proxy-common/src/session/decision.rs",
        "proxy-common/src/session/slow_consumer.rs",
        "proxy-common/src/status/history.rs",
        "proxy-common/src/status/verdict.rs",
        "proxy-common/src/websocket/decoder.rs",
        "proxy-common/src/websocket/frame.rs",
        "filtered-proxy/src/batch.rs",
        "filtered-proxy/src/contracts.rs",
        "filtered-proxy/src/coverage.rs",
        "filtered-proxy/src/index.rs",
        "filtered-proxy/src/index/prefixes.rs",
        "filtered-proxy/src/index/table.rs",
        "filtered-proxy/src/kind_counts.rs",
        "filtered-proxy/src/feed.rs",
        "filtered-proxy/src/followers.rs",
        "filtered-proxy/src/last_values.rs",
        "filtered-proxy/src/named_sessions.rs",
        "filtered-proxy/src/replay.rs",
        "filtered-proxy/src/session_bucket/saved.rs",
        "filtered-proxy/src/split.rs",
        "filtered-proxy/src/split/brackets.rs",
        "filtered-proxy/src/split/event.rs",
        "filtered-proxy/src/split/head.rs",
        "firehose-proxy/src/contracts.rs",
        "firehose-proxy/src/nats/payload.rs",
        "firehose-proxy/src/nats/window.rs",
        "firehose-proxy/src/lease/protocol.rs",
        "firehose-proxy/src/lease/value.rs",
        "firehose-proxy/src/outage_notices.rs",
        "firehose-proxy/src/oversized.rs",
        "firehose-proxy/src/silence/market_hours.rs",
        "firehose-proxy/src/silence/rules.rs",
        "firehose-proxy/src/record/keep.rs",
        "firehose-proxy/src/sources.rs",
    ];
    for module in modules {
        let code = code(&read(module));
        assert!(!code.trim().is_empty(), "{module}");
        for effect in ["tokio", "tracing", "::now()", "std::net", "std::fs", "std::env", "thread"] {
            assert!(!code.contains(effect), "{module} is pure, but knows {effect:?}");
        }
    }
}

/// A room and the rooms that it may import.
type Room = (&'static str, &'static [&'static str]);

/// Which folder, or file beside the folders, of a product crate may import which others. Read from
/// the ground up: arrows go down only. The root of a crate may import all of them.
const ROOMS: [(&str, &[Room]); 3] = [
    (
        "proxy-common",
        &[
            ("named_enum", &[]),
            ("version", &[]),
            ("websocket", &[]),
            ("protocol", &["named_enum", "websocket"]),
            ("metrics", &["protocol"]),
            ("config", &["protocol"]),
            ("history", &["metrics", "protocol", "websocket"]),
            ("nats", &["config", "protocol"]),
            ("link", &["metrics", "nats", "protocol", "websocket"]),
            ("transport", &["config"]),
            ("access", &["config", "metrics", "named_enum", "protocol", "transport"]),
            ("session", &["access", "metrics", "named_enum", "protocol", "transport", "websocket"]),
            ("health", &["access", "history", "link", "metrics", "protocol", "session", "version"]),
            ("peers", &["health", "nats", "protocol"]),
            ("status", &["health", "link", "metrics", "protocol", "session", "version"]),
            (
                "server",
                &["access", "health", "metrics", "protocol", "session", "status", "transport"],
            ),
            (
                "program",
                &[
                    "access",
                    "config",
                    "health",
                    "history",
                    "link",
                    "metrics",
                    "nats",
                    "peers",
                    "protocol",
                    "server",
                    "session",
                    "status",
                    "transport",
                    "version",
                ],
            ),
        ],
    ),
    (
        "firehose-proxy",
        &[
            ("market_args", &[]),
            ("sources", &[]),
            ("links", &[]),
            ("record", &[]),
            ("config", &["lease", "market_args", "record", "sources"]),
            ("contracts", &[]),
            ("demand", &["contracts", "sources"]),
            ("entitlements", &["sources"]),
            ("epochs", &[]),
            ("outage_notices", &[]),
            ("ring", &[]),
            ("role", &[]),
            ("lease", &["epochs", "ring", "role"]),
            ("replay", &["ring"]),
            ("silence", &["entitlements"]),
            ("oversized", &[]),
            (
                "publisher",
                &["epochs", "links", "oversized", "record", "ring", "silence", "subscriber"],
            ),
            (
                "subscriber",
                &["contracts", "demand", "entitlements", "outage_notices", "replay", "ring"],
            ),
            ("nats", &["config", "epochs", "ring", "role", "subscriber"]),
            ("upkeep", &["contracts", "lease", "nats", "record", "silence", "subscriber"]),
        ],
    ),
    (
        "filtered-proxy",
        &[
            ("config", &[]),
            ("coverage", &[]),
            ("index", &[]),
            ("split", &[]),
            ("kind_counts", &["split"]),
            ("last_values", &["coverage", "index"]),
            ("batch", &["index", "kind_counts", "last_values", "split"]),
            ("contracts", &["index"]),
            ("feed", &[]),
            ("followers", &["index"]),
            ("named_sessions", &["index"]),
            ("replay", &["batch", "coverage", "index", "split"]),
            ("replay_start", &["feed", "replay"]),
            ("replays", &[]),
            ("session_bucket", &["named_sessions"]),
            (
                "router",
                &[
                    "batch",
                    "contracts",
                    "coverage",
                    "feed",
                    "followers",
                    "index",
                    "last_values",
                    "named_sessions",
                    "replay",
                    "replays",
                    "session_bucket",
                ],
            ),
            (
                "subscriber",
                &["feed", "index", "named_sessions", "replay", "replay_start", "router"],
            ),
        ],
    ),
];

#[test]
fn rooms_import_only_what_the_table_allows() {
    for (package, table) in ROOMS {
        let imports = Imports::of_crate(&root().join(package).join("src/lib.rs"));
        let found = imports.against(table);
        assert!(found.is_empty(), "{package}: {found:#?}");
    }
}

#[test]
fn no_module_imports_in_a_circle() {
    let roots = [
        "bench/src/lib.rs",
        "demo/src/main.rs",
        "filtered-proxy/src/lib.rs",
        "firehose-proxy/src/lib.rs",
        "fuzz/targets/src/lib.rs",
        "polygon-sim/src/lib.rs",
        "polygon-sim/tests/vendor/main.rs",
        "proxy-common/src/lib.rs",
        "tests/it/main.rs",
        "tests/src/lib.rs",
    ];
    for file in roots {
        let imports = Imports::of_crate(&root().join(file));
        assert!(imports.modules().count() > 1, "{file}");
        let circles = imports.circles();
        assert!(circles.is_empty(), "{file}: {circles:#?}");
    }
}

/// A crate of three rooms, one above the other, and a change to one of its files.
fn planted(file: &str, source: &str) -> Imports {
    let sources = [
        (ROOT, "pub mod low;\npub mod middle;\npub mod top;\n"),
        ("low", "pub mod one;\npub mod two;\n"),
        ("low::one", "pub struct Floor;\n"),
        ("low::two", "use super::one::Floor;\n"),
        ("middle", "use crate::low::{one::Floor, two};\n"),
        ("top", "use crate::{low::one::Floor, middle::Middle};\n"),
    ];
    let sources = sources.map(|(name, sound)| {
        let source = if name == file { source } else { sound };
        (name.to_owned(), source.to_owned())
    });
    Imports::of_sources(sources)
}

#[test]
fn a_planted_import_is_found() {
    let table: [(&str, &[&str]); 3] =
        [("low", &[]), ("middle", &["low"]), ("top", &["low", "middle"])];
    let sound = planted("", "");
    assert_eq!((sound.against(&table), sound.circles()), (vec![], vec![]));
    for (file, source, import) in [
        ("low::one", "use crate::middle::Middle;", "low::one -> middle"),
        ("low::one", "use crate::{\n    low::two,\n    top::{self, Top},\n};", "low::one -> top"),
        ("low::one", "use super::super::middle::Middle;", "low::one -> middle"),
        ("low::one", "fn f(_: &crate::top::Top) {}", "low::one -> top"),
        ("low", "pub mod one;\npub mod two;\npub use super::middle::Middle;", "low -> middle"),
        // Through a re-export of the crate's root.
        ("low::one", "use crate::Middle;", "low::one -> crate"),
        ("middle", "use crate::top::Top;", "middle -> top"),
    ] {
        let imports = planted(file, source);
        assert!(imports.against(&table).iter().any(|found| found == import), "{file}: {source}");
    }
    for (file, source) in [
        // Two siblings, a child and its parent, two rooms.
        ("low::one", "use super::two::Two;"),
        ("low::one", "use super::Parent;"),
        ("low::one", "use crate::low::Parent;"),
        ("low::one", "use crate::middle::Middle;"),
        ("low::two", "use crate::Middle;"),
    ] {
        assert!(!planted(file, source).circles().is_empty(), "{file}: {source}");
    }
    for (file, source) in [
        ("low::one", "// use crate::top::Top;\nconst TEXT: &str = \"crate::top::Top\";"),
        ("low::one", "const RAW: &[u8] = br#\"\"crate::top\"#;"),
        ("low::one", "struct Low;\n#[cfg(test)]\nmod tests {\n    use crate::top::Top;\n}"),
    ] {
        let imports = planted(file, source);
        assert_eq!((imports.against(&table), imports.circles()), (vec![], vec![]), "{source}");
    }
}

#[test]
fn tiers_know_neither_each_other_nor_the_simulator() {
    let forbidden = [
        ("proxy-common", &["firehose-proxy", "filtered-proxy", "polygon-sim"][..]),
        ("firehose-proxy", &["filtered-proxy", "polygon-sim"]),
        ("filtered-proxy", &["firehose-proxy", "polygon-sim"]),
        ("polygon-sim", &["proxy-common", "firehose-proxy", "filtered-proxy"]),
        ("tests", &["proxy-common", "firehose-proxy", "filtered-proxy"]),
    ];
    for (package, others) in forbidden {
        let manifest = read(format!("{package}/Cargo.toml"));
        for line in manifest.lines().filter(|line| !line.starts_with("name =")) {
            let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
            assert!(!others.contains(&dependency), "{package} depends on {dependency}");
        }
    }
}

#[test]
fn nothing_is_left_undone() {
    // The marks are put together here, so that this file holds none.
    let marks =
        ["TO", "FIX", "XX", "unimplemented", "to"].into_iter().zip(["DO", "ME", "X", "!", "do!("]);
    let marks: Vec<_> = marks.map(|(begin, end)| format!("{begin}{end}")).collect();
    for (path, text) in
        files().iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "rs"))
    {
        for mark in &marks {
            assert!(!text.contains(mark), "{mark} in {}", path.display());
        }
    }
}

/// The vendor's keys are words of 32 characters: digits, capitals, small letters and underscores,
/// mixed.
#[test]
fn no_file_holds_a_key() {
    let is_key = |word: &str| {
        word.len() == 32
            && word.contains(|c: char| c.is_ascii_digit())
            && word.contains(|c: char| c.is_ascii_uppercase())
            && word.contains(|c: char| c.is_ascii_lowercase())
    };
    assert!(is_key(&"aB3_".repeat(8)));
    for (path, text) in files() {
        let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        assert!(!words.any(is_key), "something like a key in {}", path.display());
    }
}
