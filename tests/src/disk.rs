//! A disk that hangs, for one program: its calls of the C library do not return. No file system can
//! be made to hang without rights that tests do not have.

use std::{fs, path::Path};

use tempfile::TempDir;

use crate::{
    program::Launch,
    tools::{installed, output},
};

/// A disk that can hang.
#[derive(Debug)]
pub struct Disk {
    /// Holds the library, and a file for the calls that hang.
    dir: TempDir,
}

/// Calls that can hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Brings what was written to the disk.
    Sync,
    /// Deletes a file.
    Delete,
}

impl Call {
    fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Delete => "delete",
        }
    }
}

impl Disk {
    /// A disk that answers.
    ///
    /// # Panics
    ///
    /// If there is no C compiler.
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let mut cc = installed("cc", "gcc");
        cc.args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-o"]).arg(dir.path().join("disk.so"));
        cc.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/disk.c"));
        output(&mut cc, "").await;
        Self { dir }
    }

    /// The program, which will use this disk.
    #[must_use]
    pub fn under(&self, launch: Launch) -> Launch {
        let library = self.dir.path().join("disk.so");
        launch.env("LD_PRELOAD", library.display()).env("HANGING", self.dir.path().display())
    }

    /// Lets these calls hang from now on.
    ///
    /// # Panics
    ///
    /// If a file cannot be made.
    pub fn hang(&self, call: Call) {
        fs::write(self.dir.path().join(call.name()), "").expect("make a file");
    }

    /// Lets these calls return, also those that hang.
    ///
    /// # Panics
    ///
    /// If they do not hang.
    pub fn answer(&self, call: Call) {
        fs::remove_file(self.dir.path().join(call.name())).expect("remove a file");
    }
}
