//! Runs nginx and HAProxy with the configurations of `deploy/`. Each is changed only where it names
//! ports and files.

use std::{fs, net::SocketAddr, os::unix::fs::MetadataExt, path::Path};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tests::{
    stack::ReservedPort,
    tls::{Certificate, Tunnel},
    tools::installed,
    wait::{SOON, eventually, listens, within},
};
use tokio::process::{Child, Command};

use crate::doc_snippets::{document, replaced};

/// A configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Front {
    /// `nginx/plain.conf`
    NginxPlain,
    /// `nginx/tls.conf`
    NginxTls,
    /// `haproxy/plain.cfg`
    HaproxyPlain,
    /// `haproxy/tls.cfg`
    HaproxyTls,
    /// `haproxy/tcp.cfg`, in front of ports that speak TLS.
    HaproxyTcp,
    /// The same in front of plain ports, changed as its comment says.
    HaproxyTcpPlain,
}

impl Front {
    /// Every configuration.
    pub(crate) const ALL: [Self; 6] = [
        Self::NginxPlain,
        Self::NginxTls,
        Self::HaproxyPlain,
        Self::HaproxyTls,
        Self::HaproxyTcp,
        Self::HaproxyTcpPlain,
    ];

    /// The settings that the filtered proxies behind it need. Clients see this certificate.
    pub(crate) fn settings(self, certificate: &Certificate) -> Vec<(&'static str, String)> {
        let mut settings = vec![("TRUSTED_PROXIES", "127.0.0.1".to_owned())];
        if !self.speaks_http() {
            settings.push(("PROXY_PROTOCOL", "on".to_owned()));
            settings.push(("ADMIN_PORT", "0".to_owned()));
        }
        if self == Self::HaproxyTcp {
            settings.extend(certificate.settings());
        }
        settings
    }

    /// Whether clients connect with TLS.
    pub(crate) fn speaks_tls(self) -> bool {
        matches!(self, Self::NginxTls | Self::HaproxyTls | Self::HaproxyTcp)
    }

    /// Starts it on any port, in front of three proxies.
    pub(crate) async fn start(self, proxies: &[SocketAddr], certificate: &Certificate) -> Running {
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let port = ReservedPort::new();
        self.write(dir.path(), port.addr(), proxies, certificate);
        let check =
            self.command(dir.path()).arg(if self.is_nginx() { "-t" } else { "-c" }).output();
        let check = within(SOON, "a check", check).await.expect("run a check");
        assert!(check.status.success(), "{self:?}: {}", String::from_utf8_lossy(&check.stderr));
        let mut command = self.command(dir.path());
        if !self.is_nginx() {
            // A master and a worker, as its systemd unit has them. nginx does so by itself.
            command.arg("-W");
        }
        let log = fs::File::create(dir.path().join("log")).expect("make a file for a log");
        let child = command.stderr(log).spawn().expect("start a front");
        let mut running = Running { front: self, child, dir, port, tunnel: None };
        listens(running.port()).await;
        if self.speaks_tls() {
            running.tunnel = Some(Tunnel::start(running.port(), certificate.trust()).await);
        }
        running
    }

    /// Whether it reads what clients and proxies say to each other.
    pub(crate) fn speaks_http(self) -> bool {
        !matches!(self, Self::HaproxyTcp | Self::HaproxyTcpPlain)
    }

    fn is_nginx(self) -> bool {
        matches!(self, Self::NginxPlain | Self::NginxTls)
    }

    fn file(self) -> &'static str {
        match self {
            Self::NginxPlain => "nginx/plain.conf",
            Self::NginxTls => "nginx/tls.conf",
            Self::HaproxyPlain => "haproxy/plain.cfg",
            Self::HaproxyTls => "haproxy/tls.cfg",
            Self::HaproxyTcp | Self::HaproxyTcpPlain => "haproxy/tcp.cfg",
        }
    }

    fn command(self, dir: &Path) -> Command {
        let file = dir.join(self.file());
        if self.is_nginx() {
            let mut command = installed("nginx", "nginx-light");
            command.args(["-e", "stderr", "-g", "daemon off;", "-c"]).arg(file);
            return command;
        }
        let mut command = installed("haproxy", "haproxy");
        command.arg("-f").arg(dir.join("haproxy/haproxy.cfg")).arg("-f").arg(file);
        command
    }

    /// Writes its files for this port and these proxies.
    fn write(self, dir: &Path, port: SocketAddr, proxies: &[SocketAddr], tls: &Certificate) {
        let shown = |path: &Path| path.display().to_string();
        let read = |name: &str| document(&format!("deploy/{name}"));
        let write = |name: &str, text: &str| {
            let file = dir.join(name);
            fs::create_dir_all(file.parent().expect("a directory")).expect("make a directory");
            fs::write(file, text).expect("write a configuration");
        };
        let mut config = read(self.file());
        if self.is_nginx() {
            write("nginx/websocket.conf", &read("nginx/websocket.conf"));
            let listen = read("nginx/listen.conf");
            write("nginx/listen.conf", &replaced(&listen, "127.0.0.1:8080", &port.to_string()));
            write("nginx/proxies.conf", &with_proxies(&read("nginx/proxies.conf"), proxies));
            config = replaced(&config, "/run/nginx.pid", &shown(&dir.join("pid")));
            // The default directories belong to root.
            let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|name| format!("{name}_temp_path {};", dir.join(name).display()));
            let http = format!("http {{ {}", temporary.concat());
            config = replaced(&config, "http {", &http);
        } else {
            let mut common = read("haproxy/haproxy.cfg");
            let root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
            for line in ["user haproxy", "group haproxy", "chroot /var/lib/haproxy"] {
                // Only root may change to them.
                common = replaced(&common, line, if root { line } else { "" });
            }
            write("haproxy/haproxy.cfg", &common);
            config = with_proxies(&config, proxies);
        }
        let shipped = match self {
            Self::NginxPlain => "include listen.conf",
            Self::NginxTls => "listen 443",
            Self::HaproxyPlain | Self::HaproxyTcp | Self::HaproxyTcpPlain => "bind 127.0.0.1:8080",
            Self::HaproxyTls => "bind :443",
        };
        let (verb, number) = shipped.split_once(' ').expect("a verb");
        if verb != "include" {
            config = replaced(&config, &format!("{verb} {number}"), &format!("{verb} {port}"));
        }
        match self {
            Self::NginxTls => {
                config = replaced(&config, "/etc/nginx/tls/cert.pem", &shown(&tls.file()));
                config = replaced(&config, "/etc/nginx/tls/key.pem", &shown(&tls.key_file()));
            }
            Self::HaproxyTls => {
                let read = |file| fs::read_to_string(file).expect("read a certificate");
                write("pem", &(read(tls.file()) + &read(tls.key_file())));
                let pem = shown(&dir.join("pem"));
                config = replaced(&config, "/etc/haproxy/polygon-proxy.pem", &pem);
            }
            Self::HaproxyTcpPlain => {
                config = replaced(&config, "default-server check-ssl verify none", "");
            }
            Self::NginxPlain | Self::HaproxyPlain | Self::HaproxyTcp => {}
        }
        write(self.file(), &config);
    }
}

/// The configuration with these proxies instead of its three. With fewer, lines are left out.
fn with_proxies(config: &str, proxies: &[SocketAddr]) -> String {
    let shipped: Vec<_> = config
        .lines()
        .filter(|line| line.trim_start().starts_with("server ") && line.contains("127.0.0.1:"))
        .collect();
    assert_eq!(shipped.len(), 3, "{config}");
    let mut config = config.to_owned();
    for (n, (line, port)) in shipped.into_iter().zip([8765, 8775, 8785]).enumerate() {
        let by = proxies
            .get(n)
            .map(|proxy| replaced(line, &format!("127.0.0.1:{port}"), &proxy.to_string()));
        config = replaced(&config, line, &by.unwrap_or_default());
    }
    config
}

/// A running nginx or HAProxy. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Running {
    front: Front,
    child: Child,
    dir: TempDir,
    port: ReservedPort,
    /// Speaks TLS for clients that do not.
    tunnel: Option<Tunnel>,
}

impl Running {
    /// Its own port, with TLS or without.
    pub(crate) fn port(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Where plain clients reach it.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.tunnel.as_ref().map_or(self.port.addr(), Tunnel::addr)
    }

    /// Gives it other proxies and lets it read its configuration again.
    pub(crate) async fn reload(&self, proxies: &[SocketAddr], certificate: &Certificate) {
        self.front.write(self.dir.path(), self.port.addr(), proxies, certificate);
        if self.front.is_nginx() {
            return self.signal(Signal::SIGHUP);
        }
        // Just after its start, HAProxy may sleep over a signal.
        eventually(SOON, "HAProxy reloads", async || {
            self.signal(Signal::SIGUSR2);
            self.log().contains("Reloading")
        })
        .await;
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        // It may have ended by itself.
        let _sent = id.map(|id| kill(Pid::from_raw(id), signal));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A killed master would leave its workers behind.
        self.signal(Signal::SIGTERM);
        if std::thread::panicking() {
            eprintln!("--- log of {:?} ---\n{}\n---", self.front, self.log());
        }
    }
}
