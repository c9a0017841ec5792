//! Network namespaces of Linux, so that a test can cut the line between any two programs as a
//! network does: nothing is closed, nothing is refused, packets just do not arrive.
//!
//! All addresses exist inside the namespaces alone. So the test itself runs in one of them too, as
//! a process of its own.

use std::{
    io::Write,
    net::Ipv4Addr,
    process::{Command, Stdio},
    time::Duration,
};

use crate::wait::within;

/// Set in the environment of a test that runs inside: the beginning of the names of namespaces.
const INSIDE: &str = "TEST_NAMESPACES";

/// Namespaces that are connected in pairs. The test that made them removes them in the end.
#[derive(Debug)]
pub struct Namespaces {
    prefix: String,
    /// The first is that of the test.
    names: &'static [&'static str],
    is_owner: bool,
}

impl Namespaces {
    /// Makes namespaces with these names. `None`, and a line on standard error, where the machine
    /// does not let us.
    #[must_use]
    pub fn new(names: &'static [&'static str]) -> Option<Self> {
        let prefix = format!("mdp{}", std::process::id());
        let made = Self { prefix, names, is_owner: true };
        for name in names {
            if !ip(&["netns", "add", &made.full(name)]) {
                // Written directly, because the test runner hides the output of tests that pass.
                let text = "\n*** SKIPPED: cuts of a network: no network namespaces here, which \
                            need root and iproute2 ***";
                let _ = writeln!(std::io::stderr(), "{text}");
                return None;
            }
            made.must(name, &["link", "set", "lo", "up"]);
        }
        Some(made)
    }

    /// The namespaces that this process runs in the first of. `None` outside.
    #[must_use]
    pub fn around(names: &'static [&'static str]) -> Option<Self> {
        #[expect(clippy::disallowed_methods, reason = "the test hands it to itself")]
        let prefix = std::env::var(INSIDE).ok()?;
        Some(Self { prefix, names, is_owner: false })
    }

    /// Connects two namespaces by a line of their own.
    ///
    /// # Panics
    ///
    /// If the machine does not let us.
    pub fn connect(&self, one: &str, other: &str) {
        let (here, there) = (self.port(one, other), self.port(other, one));
        let peer = self.full(other);
        let made = ["link", "add", &here, "type", "veth", "peer", "name", &there, "netns", &peer];
        self.must(one, &made);
        for (name, far) in [(one, other), (other, one)] {
            let (port, address) = (self.port(name, far), self.address(name, far));
            self.must(name, &["address", "add", &format!("{address}/30"), "dev", &port]);
            self.must(name, &["link", "set", &port, "up"]);
        }
    }

    /// Cuts the line between two namespaces.
    ///
    /// # Panics
    ///
    /// If they are not connected.
    pub fn cut(&self, one: &str, other: &str) {
        for (name, far) in [(one, other), (other, one)] {
            self.must(name, &["link", "set", &self.port(name, far), "down"]);
        }
    }

    /// Ends a cut.
    ///
    /// # Panics
    ///
    /// If they are not connected.
    pub fn heal(&self, one: &str, other: &str) {
        for (name, far) in [(one, other), (other, one)] {
            self.must(name, &["link", "set", &self.port(name, far), "up"]);
        }
    }

    /// The address of `name` on its line to `far`.
    #[must_use]
    pub fn address(&self, name: &str, far: &str) -> Ipv4Addr {
        let (at, other) = (self.index(name), self.index(far));
        let line = at.min(other) * 16 + at.max(other);
        Ipv4Addr::new(10, 99, line, if at < other { 1 } else { 2 })
    }

    /// The command and arguments before a program, so that it runs in this namespace.
    #[must_use]
    pub fn within(&self, name: &str) -> [String; 4] {
        ["ip".to_owned(), "netns".to_owned(), "exec".to_owned(), self.full(name)]
    }

    /// Runs this test of the running test binary in the first namespace, where
    /// [`Namespaces::around`] finds the others.
    ///
    /// # Panics
    ///
    /// If it fails, or does not end within the limit. The message holds its output.
    pub async fn run_inside(&self, test: &str, limit: Duration) {
        let [ip, netns, exec, name] = self.within(self.names[0]);
        let own = std::env::current_exe().expect("the path of the running test");
        let mut command = tokio::process::Command::new(ip);
        command
            .args([&netns, &exec, &name])
            .arg(own)
            .args([test, "--exact", "--ignored", "--nocapture", "--test-threads", "1"])
            .env(INSIDE, &self.prefix)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = within(limit, test, command.output()).await.expect("run a test inside");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        let ran = stdout.contains("1 passed");
        assert!(output.status.success() && ran, "{test} inside:\n{stdout}\n{stderr}");
        println!("{stdout}");
    }

    fn full(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn index(&self, name: &str) -> u8 {
        let index = self.names.iter().position(|known| *known == name).expect("a known name");
        u8::try_from(index).expect("few namespaces")
    }

    /// The interface of `name` towards `far`.
    fn port(&self, name: &str, far: &str) -> String {
        format!("l{}to{}", self.index(name), self.index(far))
    }

    fn must(&self, name: &str, args: &[&str]) {
        let full = self.full(name);
        let all = [&["-n", full.as_str()], args].concat();
        assert!(ip(&all), "ip {all:?} failed");
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        if self.is_owner {
            for name in self.names {
                // Some may not exist if the machine refused them.
                ip(&["netns", "delete", &self.full(name)]);
            }
        }
    }
}

fn ip(args: &[&str]) -> bool {
    let mut command = Command::new("ip");
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
