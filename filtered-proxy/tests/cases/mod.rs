//! How many cases a model is checked with, and where its failures are kept.

use proptest::test_runner::{Config, FileFailurePersistence};

/// So many cases of this file of `tests`. Failures are kept beside it, and tried first.
pub(crate) fn cases(model: &str, cases: u32) -> Config {
    let file = format!("{}/tests/{model}.proptest-regressions", env!("CARGO_MANIFEST_DIR"));
    // The library takes a constant. Each test asks once.
    let failures = FileFailurePersistence::Direct(file.leak());
    Config { cases, failure_persistence: Some(Box::new(failures)), ..Config::default() }
}
