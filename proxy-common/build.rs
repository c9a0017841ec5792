//! Tells the compiler which commit is built, and when.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    println!("cargo::rustc-env=BUILD_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    println!("cargo::rustc-env=BUILD_DATE={}", date());
    // These two change when another commit is checked out or made, and only then. A path that does
    // not exist would run this script, and so compile the crate, in each build.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name])
            && root().join(&path).exists()
        {
            println!("cargo::rerun-if-changed={}", root().join(path).display());
        }
    }
}

/// The root of the workspace.
fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    Path::new(&package).join("..")
}

/// What git prints about this repository. `None` without git, and outside of a repository. The
/// repository must be the workspace's own: a tarball may lie inside another one.
fn git(args: &[&str]) -> Option<String> {
    let output =
        Command::new("git").arg("--git-dir=.git").args(args).current_dir(root()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// The day in UTC: of `SOURCE_DATE_EPOCH`, which makes builds reproducible, or today.
#[expect(clippy::disallowed_methods, reason = "the way in which settings reach a build script")]
fn date() -> String {
    let time = match env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => {
            let seconds = seconds.trim().parse();
            SystemTime::UNIX_EPOCH
                + Duration::from_secs(seconds.expect("SOURCE_DATE_EPOCH: expected whole seconds"))
        }
        Err(_) => SystemTime::now(),
    };
    humantime::format_rfc3339_seconds(time).to_string()[..10].to_owned()
}
