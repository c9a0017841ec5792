//! The seed of the tests' random numbers.

/// The seed of this run: `TEST_SEED`, or a new one.
pub(crate) fn of_this_run() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests' own switch, no setting of the product"
    )]
    let given = std::env::var("TEST_SEED").ok();
    match given {
        Some(seed) => seed.parse().expect("TEST_SEED is a whole number"),
        None => fastrand::u64(..),
    }
}
