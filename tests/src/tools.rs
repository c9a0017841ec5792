//! Programs of other projects that the tests run. Whoever lacks one learns which package has it.

use std::{path::Path, process::Stdio};

use tokio::process::Command;

/// A command that runs a program of the system.
///
/// # Panics
///
/// If the machine does not have it. The message names the Debian package.
#[must_use]
pub fn installed(program: &str, package: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where only root looks for programs.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = dirs.map(|dir| dir.join(program)).find(|file| Path::is_file(file));
    let found = found.unwrap_or_else(|| {
        panic!("there is no {program}: install your system's package {package}")
    });
    let mut command = Command::new(found);
    command.stdin(Stdio::null());
    command
}
