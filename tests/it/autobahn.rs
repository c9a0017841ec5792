//! The Autobahn cases: the suite's verdict on each, and the close code, for the server that both
//! tiers have and for the link.
//!
//! The suite runs against echoes made of the same code as sessions and link
//! (`proxy-common/examples/echo.rs`). `TEST_AUTOBAHN=all` adds long messages (group 9) and
//! compression (12 and 13); without it only two cases at the limit on commands run.

use tests::{
    autobahn::{Outcome, Target, tally, try_cases},
    program::Launch,
};

const SHORT: [&str; 10] =
    ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.1.3", "9.1.4", "10.*"];
const SHORT_CASES: usize = 249;
const COMPRESSION: [&str; 2] = ["12.*", "13.*"];
const COMPRESSION_CASES: usize = 216;
const LONG: [&str; 1] = ["9.*"];
const LONG_CASES: usize = 54;
/// How many short cases run at once. Some wait for seconds.
const AT_ONCE: usize = 8;
/// How often a case with a wrong outcome is tried. After the first try it runs alone: some cases
/// allow half a second for an answer, which a busy machine may need.
const TRIES: usize = 3;

/// The system under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    /// A server with all settings of a tier.
    Server,
    /// The same, but for the limit of 1 MiB on a command.
    ServerUnlimited,
    Link,
}

/// Cases with a verdict other than OK, or without a close code that the suite accepts.
struct Exception {
    on: &'static [On],
    /// Numbers of cases or of groups.
    cases: &'static [&'static str],
    behavior: &'static str,
    close: &'static str,
    code: Code,
    /// Why this is right.
    because: &'static str,
}

#[derive(Clone, Copy)]
enum Code {
    /// A code that the suite accepts.
    Right,
    Is(u16),
    None,
    /// No code, and the suite drops the connection after a while.
    Dropped,
}

/// If several name a case, the first one counts.
static EXCEPTIONS: [Exception; 7] = [
    Exception {
        on: &[On::Server, On::Link],
        cases: &["7.1.6", "7.13.1", "7.13.2"],
        behavior: "INFORMATIONAL",
        close: "INFORMATIONAL",
        code: Code::Right,
        because: "the suite leaves open what is right",
    },
    Exception {
        on: &[On::Server, On::Link],
        cases: &["7.3.1"],
        behavior: "OK",
        close: "OK",
        code: Code::None,
        because: "a close without a code is answered in kind",
    },
    Exception {
        on: &[On::Server, On::Link],
        cases: &["12", "13"],
        behavior: "UNIMPLEMENTED",
        close: "OK",
        code: Code::Right,
        because: "compression is neither offered nor asked for",
    },
    Exception {
        on: &[On::Server],
        cases: &["6.4"],
        behavior: "NON-STRICT",
        close: "OK",
        code: Code::Right,
        because: "a command is checked once it is complete, and it is 1 MiB at most",
    },
    Exception {
        on: &[On::Server],
        cases: &["9.1.4", "9.1.5", "9.1.6", "9.2.4", "9.2.5", "9.2.6", "9.3", "9.4"],
        behavior: "FAILED",
        close: "FAILED",
        code: Code::Is(1009),
        because: "messages of more than 1 MiB, which is the limit on a command",
    },
    Exception {
        on: &[On::Link],
        cases: &["6.4"],
        behavior: "NON-STRICT",
        close: "OK",
        code: Code::Dropped,
        because: "skipped as in the next exception, once it is complete",
    },
    Exception {
        on: &[On::Link],
        cases: &[
            "6.3", "6.6.1", "6.6.3", "6.6.4", "6.6.6", "6.6.8", "6.6.10", "6.8", "6.10", "6.11.5",
            "6.12", "6.13", "6.14", "6.15", "6.16", "6.17", "6.18", "6.19", "6.20", "6.21",
        ],
        behavior: "OK",
        close: "OK",
        code: Code::Dropped,
        because: "the link skips and counts a text that is not UTF-8: closing the only connection \
                  would lose the data of all clients",
    },
];

#[tokio::test]
async fn on_the_server() {
    let server = Launch::new("examples/echo").arg("server").start().await;
    let target = Target::Server(server.addr());
    if !all() {
        return check(On::Server, target, &SHORT, SHORT_CASES, AT_ONCE).await;
    }
    // Every case except two of the long ones.
    let short = SHORT.into_iter().filter(|cases| !cases.starts_with("9."));
    let cases: Vec<_> = short.chain(COMPRESSION).collect();
    check(On::Server, target, &cases, SHORT_CASES - 2 + COMPRESSION_CASES, AT_ONCE).await;
    check(On::Server, target, &LONG, LONG_CASES, 1).await;
    let server = Launch::new("examples/echo").arg("server").arg("--lift-limit").start().await;
    check(On::ServerUnlimited, Target::Server(server.addr()), &LONG, LONG_CASES, 1).await;
}

#[tokio::test]
async fn on_the_link() {
    if !all() {
        return check(On::Link, Target::Link, &SHORT, SHORT_CASES, AT_ONCE).await;
    }
    let short = SHORT.into_iter().filter(|cases| !cases.starts_with("9."));
    let cases: Vec<_> = short.chain(COMPRESSION).collect();
    check(On::Link, Target::Link, &cases, SHORT_CASES - 2 + COMPRESSION_CASES, AT_ONCE).await;
    check(On::Link, Target::Link, &LONG, LONG_CASES, 1).await;
}

/// Whether all cases are requested.
fn all() -> bool {
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests' own switch, no setting of the product"
    )]
    let asked = std::env::var("TEST_AUTOBAHN").ok();
    match asked.as_deref() {
        None => false,
        Some("all") => true,
        Some(other) => panic!("TEST_AUTOBAHN is {other:?}, expected all"),
    }
}

/// Runs the cases and checks their number and every outcome.
async fn check(on: On, target: Target, cases: &[&str], count: usize, at_once: usize) {
    let Some(mut outcomes) = try_cases(target, cases, at_once).await else { return };
    assert_eq!(outcomes.len(), count, "cases of {cases:?}");
    for _ in 1..TRIES {
        let wrong: Vec<_> = outcomes.extract_if(.., |outcome| !is_right(on, outcome)).collect();
        if wrong.is_empty() {
            break;
        }
        let mut names = Vec::new();
        for outcome in wrong {
            println!("{on:?}, to be tried again: {outcome}");
            names.push(outcome.case);
        }
        outcomes.extend(try_cases(target, &names, 1).await.expect("Python ran before"));
    }
    println!("{on:?}, {count} cases of {cases:?}: {:?}", tally(&outcomes));
    for exception in &EXCEPTIONS {
        let which = |outcome: &&Outcome| {
            self::exception(on, &outcome.case).is_some_and(|of| std::ptr::eq(of, exception))
        };
        let n = outcomes.iter().filter(which).count();
        if n > 0 {
            println!("{n} {}, {}: {}", exception.behavior, exception.close, exception.because);
        }
    }
    assert_eq!(outcomes.len(), count, "cases tried again");
    let wrong = outcomes.iter().filter(|outcome| !is_right(on, outcome));
    let wrong: Vec<_> = wrong.map(Outcome::to_string).collect();
    assert!(wrong.is_empty(), "{on:?}:\n{}", wrong.join("\n"));
}

/// The exception for a case, if there is one.
fn exception(on: On, case: &str) -> Option<&'static Exception> {
    let of = |name: &&str| {
        case.strip_prefix(*name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    EXCEPTIONS.iter().find(|exception| exception.on.contains(&on) && exception.cases.iter().any(of))
}

/// Whether the outcome of a case is right: OK throughout, or exactly as in an exception.
fn is_right(on: On, outcome: &Outcome) -> bool {
    let (behavior, close, code) = match exception(on, &outcome.case) {
        Some(exception) => (exception.behavior, exception.close, exception.code),
        None => ("OK", "OK", Code::Right),
    };
    let code_is_right = match code {
        Code::Right => outcome.code.is_some_and(|code| outcome.right_codes.contains(&code)),
        Code::Is(code) => outcome.code == Some(code),
        Code::None => outcome.code.is_none() && !outcome.dropped,
        Code::Dropped => outcome.code.is_none() && outcome.dropped,
    };
    (outcome.behavior.as_str(), outcome.close.as_str()) == (behavior, close) && code_is_right
}

#[test]
fn a_deviating_outcome_is_noticed() {
    let outcome = |case: &str, behavior: &str, code, right_codes: &[u16], dropped| Outcome {
        case: case.to_owned(),
        behavior: behavior.to_owned(),
        close: "OK".to_owned(),
        code,
        right_codes: right_codes.to_vec(),
        dropped,
        why: String::new(),
    };
    let not_text = outcome("6.3.1", "OK", Some(1007), &[1007], false);
    let skipped = outcome("6.3.1", "OK", None, &[1007], true);
    assert!(is_right(On::Server, &not_text) && !is_right(On::Link, &not_text));
    assert!(is_right(On::Link, &skipped) && !is_right(On::Server, &skipped));
    assert!(is_right(On::Server, &outcome("6.4.1", "NON-STRICT", Some(1007), &[1007], false)));
    for wrong in [
        outcome("1.1.1", "FAILED", Some(1000), &[1000], false),
        outcome("1.1.1", "NON-STRICT", Some(1000), &[1000], false),
        outcome("1.1.1", "OK", Some(1002), &[1000], false),
        outcome("1.1.1", "OK", None, &[1000], false),
        // An exception does not cover a case whose number only begins like it.
        outcome("6.40.1", "NON-STRICT", Some(1007), &[1007], false),
        outcome("6.4.1", "OK", Some(1007), &[1007], false),
    ] {
        assert!(!is_right(On::Server, &wrong), "{wrong}");
    }
}
