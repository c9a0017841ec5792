//! nginx in front of the filtered proxies, configured as in QUICKSTART.md.

use tempfile::TempDir;
use tests::{
    program::Program,
    stack::ReservedPort,
    wait::{SOON, listens, within},
};
use tokio::process::{Child, Command};

use crate::doc_snippets::{block, document, has_program, replaced};

/// A running nginx. Dropping it kills it.
pub(crate) struct Nginx {
    child: Child,
    _dir: TempDir,
}

/// Whether the machine has nginx. If not, this prints that something is skipped.
pub(crate) async fn is_installed() -> bool {
    has_program("nginx", "-v").await
}

/// Starts it on this port with the document's configuration, adapted to these proxies.
pub(crate) async fn start(front: &ReservedPort, proxies: &[Program]) -> Nginx {
    let document = document("QUICKSTART.md");
    let mut servers = block(&document, "nginx", "upstream").to_owned();
    servers = replaced(&servers, "listen 8080;", &format!("listen {};", front.addr()));
    for (n, port) in [8765, 8775, 8785].into_iter().enumerate() {
        let entry = format!("server 127.0.0.1:{port} max_fails=0;");
        let by = proxies.get(n).map(|proxy| format!("server {} max_fails=0;", proxy.addr()));
        servers = replaced(&servers, &entry, &by.unwrap_or_default());
    }
    let dir = tempfile::tempdir().expect("make a temporary directory");
    let place = dir.path().display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {place}/{name};\n"))
        .concat();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {place}/pid;\nerror_log stderr;\nevents {{}}\n\
         http {{\naccess_log off;\n{temporary}{servers}}}\n"
    );
    let file = dir.path().join("nginx.conf");
    std::fs::write(&file, config).expect("write a configuration");
    let nginx = || {
        let mut nginx = Command::new("nginx");
        nginx.arg("-p").arg(dir.path()).arg("-e").arg("stderr").arg("-c").arg(&file);
        nginx.kill_on_drop(true);
        nginx
    };
    let check = within(SOON, "nginx -t", nginx().arg("-t").output()).await.expect("run nginx");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let child = nginx().spawn().expect("start nginx");
    listens(front.addr()).await;
    Nginx { child, _dir: dir }
}

impl Nginx {
    /// Ends it.
    pub(crate) async fn stop(mut self) {
        self.child.kill().await.expect("end nginx");
    }
}
