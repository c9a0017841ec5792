//! A run of the whole program for about a second: it builds and starts the real binaries and
//! verifies what they deliver.

use std::process::Command;

#[test]
fn a_quick_run_measures_and_finds_no_fault() {
    let out = tempfile::tempdir().expect("make a temporary directory");
    let run = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--scenario", "s1", "--quick", "--out"])
        .arg(out.path())
        .output()
        .expect("start the load program");
    let (stdout, stderr) =
        (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{stderr}");
    assert!(stdout.contains("rate without loss"), "{stdout}");
    let results = std::fs::read(out.path().join("results.json")).expect("the results are written");
    let results: serde_json::Value = serde_json::from_slice(&results).expect("they are JSON");
    let figures = results["figures"].as_array().expect("they hold figures");
    let rate = |shape: &str, name: &str| {
        let found = figures
            .iter()
            .find(|figure| figure["shape"] == shape && figure["name"] == name)
            .unwrap_or_else(|| panic!("{name} of {shape} is measured: {stdout}"));
        found["median"].as_f64().expect("a figure is a number")
    };
    // Zero stands for a run that lost, repeated or mixed up events.
    assert!(rate("alone", "rate without loss") > 0.0, "{stderr}");
    assert!(rate("both", "rate without loss") > 0.0, "{stderr}");
    assert!(rate("floor", "relay of bytes") > 0.0, "{stderr}");
}
