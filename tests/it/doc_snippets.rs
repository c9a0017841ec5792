//! Texts and code blocks of the project's documents, and whether the machine has the programs that
//! they need.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use tokio::process::Command;

/// The project's directory.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text of a document. The path starts at the project's directory.
pub(crate) fn document(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The only code block in this language that contains this text.
pub(crate) fn block<'a>(document: &'a str, language: &str, holds: &str) -> &'a str {
    let fence = format!("```{language}\n");
    let blocks = document.split(&fence).skip(1).filter_map(|rest| rest.split("```").next());
    let found: Vec<_> = blocks.filter(|block| block.contains(holds)).collect();
    assert_eq!(found.len(), 1, "blocks of {language} with {holds:?}");
    found[0]
}

/// A text with one part replaced. The part must occur exactly once.
pub(crate) fn replaced(text: &str, part: &str, by: &str) -> String {
    assert_eq!(text.matches(part).count(), 1, "{part:?} in {text}");
    text.replace(part, by)
}

/// Whether the machine has a program that the documents use. If not, this prints that something is
/// skipped.
pub(crate) async fn has_program(name: &str, version_flag: &str) -> bool {
    let Ok(version) = Command::new(name).arg(version_flag).output().await else {
        // Written directly, because the test runner hides the output of tests that pass.
        let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: there is no {name} ***");
        return false;
    };
    assert!(version.status.success(), "{version:?}");
    true
}
