//! The subcommand `healthcheck` of both programs.

use tests::{
    program::{Finished, Launch},
    stack::{self, ReservedPort},
    tls::Certificate,
    wait::SOON,
};

/// Both programs at this port without an upstream, and the subcommand of each with the same
/// settings.
fn pairs(port: &ReservedPort, settings: &[(&'static str, String)]) -> [(Launch, Launch); 2] {
    let number = port.addr().port();
    let nowhere = "ws://127.0.0.1:9";
    let firehose = || stack::firehose(nowhere).env("FIREHOSE_PORT", number);
    let filtered = || {
        let launch = stack::filtered(port.addr()).env("FIREHOSE_URL", nowhere);
        launch.env("FILTERED_PROXY_PORT", number)
    };
    let with = |launch: Launch| launch.envs(settings.iter().cloned());
    [
        (with(firehose()), with(firehose()).arg("healthcheck")),
        (with(filtered()), with(filtered()).arg("healthcheck")),
    ]
}

#[tokio::test]
async fn it_succeeds_while_the_program_is_alive_and_says_why_it_fails() {
    let certificate = Certificate::new();
    let admin = ReservedPort::new();
    let mut tls = certificate.settings().to_vec();
    tls.pop();
    tls.push(("ADMIN_PORT", admin.addr().port().to_string()));
    let on_all = |variable| vec![(variable, "0.0.0.0".to_owned())];
    for settings in [vec![], tls, on_all("FIREHOSE_HOST"), on_all("FILTERED_PROXY_HOST")] {
        let port = ReservedPort::new();
        for ((program, healthcheck), (_, later)) in
            pairs(&port, &settings).into_iter().zip(pairs(&port, &settings))
        {
            let program = program.start().await;
            let Finished { code, stdout, stderr, .. } = healthcheck.run(SOON).await;
            assert_eq!((code, stdout, stderr), (Some(0), String::new(), String::new()));
            program.stop().await;
            let Finished { code, stderr, .. } = later.run(SOON).await;
            assert_eq!(code, Some(1), "{stderr}");
            assert!(stderr.starts_with("not alive: 127.0.0.1:"), "{stderr}");
            assert!(stderr.contains("refused") && stderr.lines().count() == 1, "{stderr}");
        }
    }
}

#[tokio::test]
async fn it_names_the_setting_that_it_lacks() {
    let certificate = Certificate::new();
    let mut tls = certificate.settings().to_vec();
    tls.pop();
    for (_, healthcheck) in pairs(&ReservedPort::new(), &tls) {
        let Finished { code, stderr, .. } = healthcheck.run(SOON).await;
        assert_eq!(code, Some(1), "{stderr}");
        assert_eq!(stderr, "not alive: a port that speaks TLS cannot be asked: set ADMIN_PORT\n");
    }
}
