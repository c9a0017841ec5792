//! Runs the targets over the saved corpus, and over each of its inputs changed at random places.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use fastrand::Rng;
use fuzz_targets::TARGETS;

/// Changed inputs per target. They are the same in every run: finding new ones is the task of
/// cargo-fuzz.
const CHANGED: usize = 5_000;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(name);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("read an input")).collect()
}

/// Removes, inserts, doubles or replaces a few bytes, or inserts a piece of another input.
fn change(input: &[u8], others: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    const TELLING: &[u8] = b"{}[]\",:\\ev*.T\x00\xff\n 0";
    let mut changed = input.to_vec();
    for _ in 0..rng.usize(1..5) {
        let at = rng.usize(..=changed.len());
        let end = (at + rng.usize(..8)).min(changed.len());
        let piece = match rng.u8(..4) {
            0 => Vec::new(),
            1 => vec![TELLING[rng.usize(..TELLING.len())]],
            2 => changed[at..end].repeat(2),
            _ => {
                let other = &others[rng.usize(..others.len())];
                let from = rng.usize(..=other.len());
                other[from..(from + rng.usize(..80)).min(other.len())].to_vec()
            }
        };
        changed.splice(at..end, piece);
    }
    changed
}

#[track_caller]
fn check(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(target, _)| *target == name).expect("a target");
    let corpus = corpus(name);
    assert!(corpus.len() >= 30, "the corpus of {name}");
    let mut rng = Rng::with_seed(1);
    let each = CHANGED.div_ceil(corpus.len());
    for input in &corpus {
        target(input);
        for _ in 0..each {
            target(&change(input, &corpus, &mut rng));
        }
    }
    println!(
        "{name}: {} inputs, {} with the changed ones",
        corpus.len(),
        corpus.len() * (1 + each)
    );
}

#[test]
fn splits() {
    check("split");
}

#[test]
fn frames() {
    check("frames");
}

#[test]
fn websockets() {
    check("websocket");
}

#[test]
fn handshakes() {
    check("handshake");
}

#[test]
fn commands() {
    check("commands");
}

#[test]
fn channels() {
    check("channels");
}

#[test]
fn records() {
    check("record");
}

/// Every target must be run here and by cargo-fuzz.
#[test]
fn every_target_has_a_corpus_and_a_fuzzer() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let names = |dir: &str| {
        let entries = fs::read_dir(fuzz.join(dir)).expect("a directory");
        let name = |path: PathBuf| path.file_stem().expect("a name").to_string_lossy().into_owned();
        entries.map(|entry| name(entry.expect("an entry").path())).collect::<BTreeSet<_>>()
    };
    let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("corpus"), targets);
    assert_eq!(names("fuzz_targets"), targets);
}
