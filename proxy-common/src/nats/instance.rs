//! Which run of a program this is, as others know it.

use std::sync::OnceLock;

use rustix::system::uname;

/// One run of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Made by chance when the program begins: 16 hexadecimal digits.
    pub id: String,
    /// The name of its host.
    pub host: String,
}

/// This run of this program.
pub fn instance() -> &'static Instance {
    static INSTANCE: OnceLock<Instance> = OnceLock::new();
    INSTANCE.get_or_init(|| Instance {
        id: format!("{:016x}", fastrand::u64(..)),
        host: uname().nodename().to_string_lossy().into_owned(),
    })
}
