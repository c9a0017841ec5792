//! `--version`: number, commit and build date, in a repository and without one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tests::{
    program::{Finished, Launch, binaries},
    wait::SOON,
};

use crate::doc_snippets::root;

/// The commit that is checked out, or `unknown` outside of a repository.
fn head() -> String {
    let git = Command::new("git")
        .args(["--git-dir=.git", "rev-parse", "--short=12", "HEAD"])
        .current_dir(root())
        .output();
    match git {
        Ok(output) if output.status.success() => {
            String::from_utf8(output.stdout).expect("text of git").trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

/// The build script of the programs under test: the one built last.
fn build_script() -> PathBuf {
    let builds = fs::read_dir(binaries().join("build")).expect("read the results of a build");
    let scripts = builds.filter_map(|entry| {
        let dir = entry.expect("an entry").path();
        let of_ours = dir.file_name()?.to_str()?.starts_with("proxy-common-");
        let script = dir.join("build-script-build");
        let built = fs::metadata(&script).and_then(|metadata| metadata.modified()).ok()?;
        of_ours.then_some((built, script))
    });
    scripts.max().expect("a build script of proxy-common").1
}

/// What the build script prints for sources in this directory.
fn built_in(workspace: &Path, date: &str) -> String {
    let package = workspace.join("proxy-common");
    fs::create_dir(&package).expect("make a directory");
    let output = Command::new(build_script())
        .env("CARGO_MANIFEST_DIR", &package)
        .env("SOURCE_DATE_EPOCH", date)
        .output()
        .expect("run a build script");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text of a build script")
}

#[tokio::test]
async fn the_version_names_commit_and_date() {
    for program in ["firehose-proxy", "filtered-proxy"] {
        let Finished { code, stdout, .. } = Launch::new(program).arg("--version").run(SOON).await;
        assert_eq!(code, Some(0));
        let begin = format!("{program} {} (commit {}, built ", env!("CARGO_PKG_VERSION"), head());
        let date = stdout.trim_end().strip_prefix(&begin).and_then(|rest| rest.strip_suffix(')'));
        let shape = date.map(|date| date.replace(|c: char| c.is_ascii_digit(), "9"));
        assert_eq!(shape.as_deref(), Some("9999-99-99"), "{stdout} begins {begin}");
    }
}

#[test]
fn a_tarball_has_no_commit_even_inside_of_another_repository() {
    let outer = tempfile::tempdir().expect("make a temporary directory");
    let git = |args: &[&str], dir: &Path| {
        let output = Command::new("git").args(args).current_dir(dir).output().expect("run git");
        assert!(output.status.success(), "{output:?}");
    };
    let commit = ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "c"];
    git(&["init", "-q"], outer.path());
    git(&[&commit[..], &["--allow-empty"]].concat(), outer.path());
    let tarball = outer.path().join("tarball");
    fs::create_dir(&tarball).expect("make a directory");
    let output = built_in(&tarball, "1000000000");
    assert!(output.contains("BUILD_COMMIT=unknown\n"), "{output}");
    assert!(output.contains("BUILD_DATE=2001-09-09\n"), "{output}");
    // Watched paths that do not exist would compile the crate in each build.
    assert_eq!(output.matches("rerun-if-changed=").count(), 1, "{output}");
    let output = built_in(outer.path(), "0");
    assert!(!output.contains("unknown") && output.contains("BUILD_DATE=1970-01-01\n"), "{output}");
    let watched = output.lines().filter_map(|line| line.strip_prefix("cargo::rerun-if-changed="));
    assert_eq!(watched.filter(|path| Path::new(path).exists()).count(), 2, "{output}");
}
