//! `deploy/compose/compose.yaml`: the real Docker Compose reads it, and the real programs run with its
//! settings.
//!
//! There is no Docker here and no registry of images: no container of it is started.

use std::{collections::BTreeSet, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path};

use serde_json::{Value, json};
use tests::{
    program::{Launch, Program},
    stack::{ReservedPort, is_complete, is_up},
    tools::{DeployTool, installed, output},
    wait::{SOON, listens, within},
    ws_client::TestClient,
};

use crate::{
    doc_snippets::{block, document, replaced, root},
    documents::settings,
};

const DIR: &str = "deploy/compose";
const SECRETS: &str = "/run/secrets/";
const TIERS: [&str; 3] = ["firehose", "filtered-1", "filtered-2"];

/// What Docker Compose makes of the file with these variables.
async fn composed(env: &[(&str, &str)]) -> Value {
    let mut compose = DeployTool::Compose.command().await;
    compose.arg("--file").arg(root().join(DIR).join("compose.yaml"));
    compose.args(["config", "--format", "json"]).envs(env.iter().copied());
    for name in ["MARKETS", "POLYGON_WS_URL"] {
        if !env.iter().any(|(set, _)| *set == name) {
            compose.env_remove(name);
        }
    }
    serde_json::from_str(&output(&mut compose, "").await).expect("Compose prints JSON")
}

fn services(composed: &Value) -> impl Iterator<Item = (&String, &Value)> {
    composed["services"].as_object().expect("services").iter()
}

/// A list of texts.
fn texts(value: &Value) -> Vec<&str> {
    let items = value.as_array().into_iter().flatten();
    items.map(|item| item.as_str().expect("a text")).collect()
}

#[tokio::test]
async fn every_container_is_confined_watched_and_reachable_from_this_machine_alone() {
    let composed = composed(&[]).await;
    let names: Vec<_> = services(&composed).map(|(name, _)| name.as_str()).collect();
    let expected =
        ["filtered-1", "filtered-2", "firehose", "grafana", "market", "nginx", "prometheus"];
    assert_eq!(names, expected);
    for (name, service) in services(&composed) {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
        assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]), "{name}");
        assert_eq!(service["privileged"], Value::Null, "{name}");
        // The simulated vendor has nothing to ask.
        let watched = texts(&service["healthcheck"]["test"]).first() == Some(&"CMD");
        assert_eq!(watched, name != "market", "{name}: a check without a shell");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}: {port}");
        }
        // A tag such as `latest` would change by itself.
        let image = service["image"].as_str().expect("an image");
        let tag = image.split_once(':').map(|(_, tag)| tag);
        let pinned = tag.is_some_and(|tag| tag.contains(|c: char| c.is_ascii_digit()));
        assert!(pinned || image == "polygon-proxy", "{name}: {image}");
    }
}

#[tokio::test]
async fn every_file_is_there_and_keys_are_files_that_git_and_images_leave_out() {
    let composed = composed(&[]).await;
    for (name, service) in services(&composed) {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            if volume["type"] == "bind" {
                let source = volume["source"].as_str().expect("a path");
                assert!(Path::new(source).exists(), "{name}: {source}");
                assert_eq!(volume["read_only"], true, "{name}: {source}");
            }
        }
        if let Some(build) = service.get("build") {
            let context = Path::new(build["context"].as_str().expect("a path"));
            let file = context.join(build["dockerfile"].as_str().expect("a path"));
            assert!(file.exists(), "{name}: {}", file.display());
        }
    }
    let secrets = composed["secrets"].as_object().expect("secrets");
    for (name, secret) in secrets {
        let file = root().join(DIR).canonicalize().expect("a directory").join("keys").join(name);
        assert_eq!(secret["file"].as_str(), file.to_str());
    }
    assert!(document(".gitignore").lines().any(|line| line == "/deploy/compose/keys/"));
    assert!(document(".dockerignore").lines().any(|line| line == "deploy/compose/keys"));
}

#[tokio::test]
async fn each_setting_exists_and_each_key_is_a_secret_of_its_service() {
    let composed = composed(&[]).await;
    for (name, binary) in
        TIERS.into_iter().zip(["firehose-proxy", "filtered-proxy", "filtered-proxy"])
    {
        let service = &composed["services"][name];
        assert_eq!(service["command"], json!([binary]));
        assert_eq!(service["healthcheck"]["test"], json!(["CMD", binary, "healthcheck"]));
        let known = settings(binary).await;
        let mut read = BTreeSet::new();
        for (variable, value) in service["environment"].as_object().expect("settings") {
            assert!(known.contains_key(variable), "{binary} has no setting {variable}");
            if variable.ends_with("_FILE") {
                read.insert(value.as_str().expect("a path").to_owned());
            }
        }
        let given = service["secrets"].as_array().expect("secrets").iter();
        let given: BTreeSet<_> = given
            .map(|secret| format!("{SECRETS}{}", secret["source"].as_str().unwrap()))
            .collect();
        assert_eq!(read, given, "{name}");
    }
    let filtered = &composed["services"]["filtered-1"]["environment"];
    let nginx = &composed["services"]["nginx"]["networks"]["default"]["ipv4_address"];
    assert_eq!(&filtered["TRUSTED_PROXIES"], nginx);
}

/// Everything but the last command, which needs Docker, runs as it stands.
#[tokio::test]
async fn the_commands_of_the_document_make_each_secret_and_start_it() {
    let document = document("docs/DEPLOY.md");
    let commands = block(&document, "sh", "docker compose up");
    let commands = commands.strip_prefix(&format!("cd {DIR}\n")).expect("its directory");
    let (commands, last) = commands.trim_end().rsplit_once('\n').expect("several commands");
    let dir = tempfile::tempdir().expect("make a temporary directory");
    let mut shell = installed("sh", "dash");
    output(shell.args(["-ec", commands]).current_dir(dir.path()), "").await;
    for name in composed(&[]).await["secrets"].as_object().expect("secrets").keys() {
        let file = dir.path().join("keys").join(name);
        let key = std::fs::read_to_string(&file).expect("a file that the commands make");
        assert!(!key.trim().is_empty(), "{name}");
        let mode = std::fs::metadata(&file).expect("there is one").permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "{name}: readable for the users of the containers");
    }
    let mut words = last.split(" #").next().expect("a command").split_whitespace();
    assert_eq!(words.by_ref().take(3).collect::<Vec<_>>(), ["docker", "compose", "up"]);
    let help = output(DeployTool::Compose.command().await.args(["up", "--help"]), "").await;
    for flag in words {
        assert!(help.contains(&format!("{flag} ")), "no {flag} in {help}");
    }
}

#[tokio::test]
async fn the_example_of_a_dotenv_switches_to_the_vendor() {
    let example = document(&format!("{DIR}/.env.example"));
    let lines = example.lines().filter(|line| !line.starts_with('#'));
    let env: Vec<_> = lines.filter_map(|line| line.split_once('=')).collect();
    let firehose = |composed: &Value| composed["services"]["firehose"]["environment"].clone();
    let (simulated, real) = (firehose(&composed(&[]).await), firehose(&composed(&env).await));
    assert_eq!(simulated["POLYGON_WS_URL"], "ws://market:8766");
    assert_eq!(real["POLYGON_WS_URL"], "wss://socket.massive.com");
    assert_ne!(simulated["MARKETS"], real["MARKETS"]);
}

#[tokio::test]
async fn nginx_and_prometheus_name_the_containers() {
    let composed = composed(&[]).await;
    let lists = |text: &str| -> (Vec<String>, String) {
        let (servers, rest): (Vec<_>, Vec<_>) =
            text.lines().skip(1).partition(|line| line.trim_start().starts_with("server "));
        (servers.into_iter().map(|line| line.trim().to_owned()).collect(), rest.join("\n"))
    };
    let (servers, rest) = lists(&document(&format!("{DIR}/proxies.conf")));
    let (_, shipped) = lists(&document("deploy/nginx/proxies.conf"));
    assert_eq!(rest, shipped, "but for their lists of proxies");
    let address = |name: &str| {
        let network = &composed["services"][name]["networks"]["default"];
        network["ipv4_address"].as_str().expect("an address").to_owned()
    };
    let server = |name| format!("server {}:8765 max_fails=0;", address(name));
    assert_eq!(servers, TIERS[1..].iter().map(|name| server(name)).collect::<Vec<_>>());

    let file = document("deploy/container/Containerfile");
    let admin = file.split("ADMIN_PORT=").nth(1).and_then(|rest| rest.split_whitespace().next());
    let admin = admin.expect("the image sets the port");
    let prometheus = document("deploy/prometheus/prometheus.yml");
    let targets: Vec<_> = prometheus.split('"').filter(|text| text.contains(":9")).collect();
    assert_eq!(targets, TIERS.map(|name| format!("{name}:{admin}")));
}

/// Starts the program of a service with its settings, adapted to this machine.
async fn started(service: &Value, binary: &'static str, adapted: &[(&str, String)]) -> Program {
    let launch = Launch::new(binary).env("ADMIN_PORT", 0);
    let dir = format!("{}/", launch.dir().display());
    let mut launch = launch;
    for (name, value) in service["environment"].as_object().expect("settings") {
        let value = value.as_str().expect("a text").replace(SECRETS, &dir);
        launch = launch.env(name, value);
    }
    for (name, key) in [("polygon", "sim-key"), ("firehose", "key-1"), ("clients", "key-2")] {
        launch = launch.file(name, &format!("{key}\n"));
    }
    launch.envs(adapted.iter().cloned()).start().await
}

#[tokio::test]
async fn the_programs_run_with_the_settings_of_the_services() {
    let composed = composed(&[]).await;
    let service = |name: &str| &composed["services"][name];
    let market = service("market");
    assert_eq!(market["command"], json!(["polygon-sim"]));
    let port = ReservedPort::new();
    let mut sim = Launch::new("polygon-sim").env("SIM_PORT", port.addr().port());
    for (name, value) in market["environment"].as_object().expect("settings") {
        sim = sim.env(name, value.as_str().expect("a text"));
    }
    let _sim = sim.spawn();
    listens(port.addr()).await;
    let at = |service: &Value, name: &str, host: &str, addr: SocketAddr| {
        replaced(service["environment"][name].as_str().expect("a URL"), host, &addr.to_string())
    };
    let url = at(service("firehose"), "POLYGON_WS_URL", "market:8766", port.addr());
    let adapted = [("POLYGON_WS_URL", url), ("FIREHOSE_PORT", "0".to_owned())];
    let firehose = started(service("firehose"), "firehose-proxy", &adapted).await;
    let url = at(service("filtered-1"), "FIREHOSE_URL", "firehose:8767", firehose.addr());
    let adapted = [("FIREHOSE_URL", url), ("FILTERED_PROXY_PORT", "0".to_owned())];
    let filtered = started(service("filtered-1"), "filtered-proxy", &adapted).await;
    is_up(&firehose).await;
    is_complete(&filtered).await;
    for (path, channel) in [("/stocks", "T.*"), ("/crypto", "XT.*")] {
        let mut client = TestClient::connect_to(filtered.addr(), path).await;
        client.log_in("key-2").await;
        client.subscribe(channel).await;
        let event = within(SOON, channel, client.next_but_notices()).await;
        assert!(event.contains(&format!(r#""ev":"{}""#, &channel[..channel.len() - 2])), "{event}");
    }
}
