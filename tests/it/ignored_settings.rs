//! Settings without effect: misspelled names, repeated lines, and a `.env` that cannot be read. And
//! the line that says which settings a program started with.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::{
    program::{Finished, Launch, Program},
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, VENDOR_KEY},
    wait::SOON,
};

use crate::{doc_snippets::document, documents::settings};

const PROGRAMS: [fn() -> Launch; 2] = [firehose, filtered];

fn firehose() -> Launch {
    stack::firehose("ws://127.0.0.1:9/stocks")
}

fn filtered() -> Launch {
    stack::filtered(([127, 0, 0, 1], 9).into())
}

/// The lines of a program that warn of a setting.
fn warnings(program: &Program) -> Vec<String> {
    let lines = program.log_text();
    let about = ["unknown setting ignored", "setting given twice"];
    let is_one = |line: &&str| about.iter().any(|text| line.contains(text));
    lines.lines().filter(is_one).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_misspelled_setting_is_reported_with_the_nearest_name() {
    let cases = [
        ("FILTERED_PORT", "FILTERED_PROXY_PORT"),
        ("FILTERED_PROXY_PROT", "FILTERED_PROXY_PORT"),
        ("FIREHOSE_PROT", "FIREHOSE_PORT"),
        ("UPSTREAM_CHANELS", "UPSTREAM_CHANNELS"),
        ("CLIENT_API_KEY", "CLIENT_API_KEYS"),
        ("POLYGON_KEY", "POLYGON_API_KEY"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("MAX_CONECTIONS", "MAX_CONNECTIONS"),
        ("firehose_port", "FIREHOSE_PORT"),
        ("SIM_PROT", "SIM_PORT"),
    ];
    for launch in PROGRAMS {
        for (name, nearest) in cases {
            let in_environment = launch().env(name, "s3cret");
            let in_dotenv = launch().file(".env", &format!("# one\nexport {name} = s3cret\n"));
            let path = in_dotenv.dir().join(".env").display().to_string();
            for (launch, place) in [(in_environment, "the environment"), (in_dotenv, &*path)] {
                let program = launch.start().await;
                let found = warnings(&program);
                assert_eq!(found.len(), 1, "{name}: {}", program.log_text());
                for text in ["WARN", name, nearest, place] {
                    assert!(found[0].contains(text), "no {text:?} in {}", found[0]);
                }
                assert!(!program.log_text().contains("s3cret"), "{}", program.log_text());
            }
        }
    }
}

#[tokio::test]
async fn of_a_repeated_line_the_program_says_that_the_first_counts() {
    let text = "AUTH_TIMEOUT=5s\nDATABASE_URL=1\nAUTH_TIMEOUT=nonsense\nDATABASE_URL=2\n";
    for launch in PROGRAMS {
        let program = launch().file(".env", text).start().await;
        let found = warnings(&program);
        assert_eq!(found.len(), 1, "{}", program.log_text());
        assert!(found[0].contains("AUTH_TIMEOUT") && found[0].contains(".env"), "{}", found[0]);
    }
}

#[tokio::test]
async fn names_of_other_programs_are_not_reported() {
    let foreign = [
        ("CARGO_PKG_NAME", "tests"),
        ("CARGO_MANIFEST_DIR", "/"),
        ("RUST_LOG", "debug"),
        ("CI", "true"),
        ("GITHUB_TOKEN", "x"),
        ("HOSTNAME", "desk"),
        ("PORT", "3000"),
        ("API_KEY", "x"),
        ("HTTP_PROXY", "http://10.0.0.1:3128"),
        ("TEST_SEED", "1"),
        ("KUBERNETES_PORT", "tcp://10.0.0.1:443"),
        ("FIREHOSE_PROXY_SERVICE_HOST", "10.0.0.1"),
        ("FILTERED_PROXY_PORT_8765_TCP_ADDR", "10.0.0.1"),
    ];
    let dotenv = "DATABASE_URL=postgres://db\nALPACA_API_KEY=x\nAWS_SECRET_ACCESS_KEY=x\n\
                  NODE_ENV=production\nSMTP_HOST=mail\n";
    for launch in PROGRAMS {
        let launch = foreign.iter().fold(launch(), |launch, (name, value)| launch.env(name, value));
        let program = launch.file(".env", dotenv).start().await;
        assert_eq!(warnings(&program), [""; 0]);
    }
}

/// One `.env` serves all programs, so each must know the settings of the others.
#[tokio::test]
async fn each_program_knows_the_settings_of_all() {
    let mut all = BTreeSet::new();
    for binary in ["firehose-proxy", "filtered-proxy", "polygon-sim"] {
        all.extend(settings(binary).await.into_keys());
    }
    let source = document("proxy-common/src/program/ignored.rs");
    let list = source.split("const SETTINGS: ").nth(1).and_then(|rest| rest.split("];\n").next());
    let list = list.expect("the list of settings").split('"').skip(1).step_by(2);
    assert_eq!(list.map(str::to_owned).collect::<BTreeSet<_>>(), all);

    // Names in comments are settings too. A value would have to be a right one.
    let text: String = all.iter().map(|name| format!("#{name}=\n")).collect();
    let foreign: String = all
        .iter()
        .filter(|name| name.starts_with("SIM_"))
        .map(|name| format!("{name}=1\n"))
        .collect();
    for launch in PROGRAMS {
        let program = launch().file(".env", &(text.clone() + &foreign)).start().await;
        assert_eq!(warnings(&program), [""; 0]);
    }
}

#[tokio::test]
async fn an_error_names_the_misspelled_setting_that_may_be_its_cause() {
    for launch in [firehose, || filtered().without("FIREHOSE_API_KEY")] {
        let launch = launch().without("POLYGON_API_KEY").file(".env", "POLYGON_API_KYE=s3cret\n");
        let Finished { code, stderr, .. } = launch.run(SOON).await;
        assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.starts_with("POLYGON_API_KEY: not set: expected "), "{stderr}");
        let hint = "is unknown: did you mean POLYGON_API_KEY?\n";
        assert!(stderr.contains("\"POLYGON_API_KYE\" in ") && stderr.ends_with(hint), "{stderr}");
        assert!(!stderr.contains("s3cret"), "{stderr}");
    }
    for launch in PROGRAMS {
        let Finished { code, stderr, .. } = launch().arg("--prot").arg("1").run(SOON).await;
        assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains("--prot") && stderr.contains("did you mean --port?"), "{stderr}");
    }
}

#[tokio::test]
async fn a_fault_of_a_dotenv_names_file_and_line() {
    let cases = [
        ("s3cret\n", 1),
        ("MARKET=stocks\n\n# a key\nPOLYGON_API_KEY=s3cret with blanks\n", 4),
        ("MARKET=stocks\r\nPOLYGON_API_KEY: s3cret\r\n", 2),
        ("MARKET=stocks\nPOLYGON_API_KEY=\"s3cret\nLOG_LEVEL=info\n", 2),
        ("MARKET='stocks'\n'POLYGON_API_KEY'=s3cret\n", 2),
    ];
    for launch in PROGRAMS {
        for (text, line) in cases {
            let launch = launch().file(".env", text);
            let place = format!("{}: line {line}: ", launch.dir().join(".env").display());
            let Finished { code, stderr, .. } = launch.run(SOON).await;
            assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
            assert!(stderr.starts_with(&place), "no {place:?} in {stderr}");
            assert!(!stderr.contains("s3cret"), "{stderr}");
        }
    }
    let sim = Launch::new("polygon-sim").file(".env", "SIM_KEY=s3cret with blanks\n");
    let Finished { code, stderr, .. } = sim.run(SOON).await;
    assert!(code == Some(1) && stderr.contains(".env") && !stderr.contains("s3cret"), "{stderr}");
}

#[tokio::test]
async fn the_first_line_says_with_what_a_program_starts() {
    let nowhere = ReservedPort::new();
    let upstream = format!("ws://{}/feed/options?apiKey=s3cret#s3cret", nowhere.addr());
    let shown = format!("ws://{}/feed/options", nowhere.addr());
    for (launch, url, host) in [
        (firehose as fn() -> Launch, "POLYGON_WS_URL", "FIREHOSE_HOST"),
        (filtered, "FIREHOSE_URL", "FILTERED_PROXY_HOST"),
    ] {
        let launch = || launch().env(url, &upstream).env("MARKET", "options").without(host);
        let with = launch().file(".env", "SIM_PORT=1\n");
        let path = with.dir().join(".env").display().to_string();
        for (launch, dotenv) in [(with, &*path), (launch(), "none")] {
            let mut program = launch.start().await;
            let line = program.logged("starting").await;
            let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            assert_eq!(line["level"], "INFO");
            assert_eq!(field("version"), env!("CARGO_PKG_VERSION"));
            assert_eq!(field("dotenv"), dotenv);
            assert_eq!(field("market"), "options");
            assert_eq!(field("upstream"), shown);
            assert!(field("addresses").split(", ").any(|one| one == program.addr().to_string()));
            let first = program.log_text().lines().next().map(str::to_owned);
            let first = serde_json::from_str::<Value>(&first.expect("a line")).expect("JSON");
            assert_eq!(first, line, "the first line");
            for key in ["s3cret", VENDOR_KEY, FIREHOSE_KEY, CLIENT_KEY] {
                assert!(!program.log_text().contains(key), "{}", program.log_text());
            }
        }
    }
}

#[tokio::test]
async fn the_simulated_market_reads_the_same_dotenv() {
    let sim = Launch::new("polygon-sim").file(".env", "SIM_PORT=0\nSIM_MARKET=bonds\n");
    let Finished { code, stderr, .. } = sim.run(SOON).await;
    assert!(code == Some(1) && stderr.contains("bonds"), "{stderr}");
}
