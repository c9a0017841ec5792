//! The version of the programs: number, commit and build date.

/// The number, such as `1.2.0`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that was built, as 12 hexadecimal digits. `unknown` if it was built outside of a git
/// repository or without git.
pub const COMMIT: &str = env!("BUILD_COMMIT");

/// The day of the build in UTC, such as `2026-11-27`.
pub const DATE: &str = env!("BUILD_DATE");

/// All three, for `--version`.
pub const FULL: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("BUILD_COMMIT"),
    ", built ",
    env!("BUILD_DATE"),
    ")"
);
