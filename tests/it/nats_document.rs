//! docs/NATS.md: its commands, its table of failures, a region of its own, and the deployments that
//! it names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use async_nats::{Client, ConnectOptions};
use serde_json::{Value, json};
use tests::{
    nats::NatsServer,
    program::{Launch, Program, Signal},
    stack::{self, CLIENT_KEY, ReservedPort, Sim, is_complete, is_up},
    tools::{DeployTool, installed, output, yaml},
    wait::{SOON, eventually, listens, within},
    ws_client::TestClient,
};

use crate::{
    doc_snippets::{block, document, replaced, root},
    documents::settings,
    events::trade,
    nats_access::{password, server, users, with_creds},
};

const DOCUMENT: &str = "docs/NATS.md";
/// The servers, as the document names them.
const SERVERS: &str = "nats://nats-1,nats-2,nats-3";

/// The variables that a command sets, and its program.
fn command(text: &str) -> (Vec<(String, String)>, String) {
    let joined = text.replace("\\\n", " ");
    let mut words = joined.split_whitespace().peekable();
    let mut set = Vec::new();
    while let Some((name, value)) = words.peek().and_then(|word| word.split_once('=')) {
        set.push((name.to_owned(), value.to_owned()));
        words.next();
    }
    (set, words.next().expect("a program").to_owned())
}

/// The command of the document that starts this program.
fn command_of(program: &str, holds: &str) -> Vec<(String, String)> {
    let document = document(DOCUMENT);
    let (set, found) = command(block(&document, "sh", holds));
    assert_eq!(found, program);
    set
}

/// A configuration that names files beside it, in one text.
fn without_includes(dir: &Path, name: &str) -> String {
    let text = fs::read_to_string(dir.join(name)).expect("read a configuration");
    let mut whole = String::new();
    for line in text.lines() {
        match line.trim().strip_prefix("include ") {
            Some(included) => whole += &without_includes(dir, included),
            None => whole += line,
        }
        whole.push('\n');
    }
    whole
}

/// The three servers of the document, from the files that its commands make.
async fn cluster(dir: &Path) -> Vec<NatsServer> {
    let config = without_includes(dir, "cluster.conf");
    let routes = [(); 3].map(|()| ReservedPort::new());
    let mut servers = Vec::new();
    for (n, route) in routes.iter().enumerate() {
        // The rig sets these two.
        let own = |line: &&str| !line.starts_with("listen:") && !line.starts_with("http:");
        let mut text = config.lines().filter(own).collect::<Vec<_>>().join("\n");
        text = replaced(&text, "$NATS_NAME", &format!("nats-{}", n + 1));
        text = replaced(&text, "/var/lib/nats", "$STORE");
        text = replaced(&text, "0.0.0.0:6222", &route.addr().to_string());
        for (other, route) in routes.iter().enumerate() {
            text = replaced(&text, &format!("nats-{}:6222", other + 1), &route.addr().to_string());
        }
        servers.push(NatsServer::node(&text).await);
    }
    for server in &servers {
        server.is_healthy().await;
    }
    servers
}

/// What `/health` of a program says of its peers: how many there are of each tier.
async fn tiers_of_peers(program: &Program) -> BTreeMap<String, usize> {
    let mut tiers = BTreeMap::new();
    for peer in program.health().await["peers"].as_array().into_iter().flatten() {
        *tiers.entry(peer["tier"].as_str().expect("a tier").to_owned()).or_default() += 1;
    }
    tiers
}

#[tokio::test]
async fn three_machines_run_by_the_commands_of_the_document() {
    let text = document(DOCUMENT);
    let dir = tempfile::tempdir().expect("make a temporary directory");
    std::os::unix::fs::symlink(root().join("deploy"), dir.path().join("deploy")).expect("a link");
    let make = block(&text, "sh", "mkdir -m 700 nats");
    output(installed("sh", "dash").args(["-ec", make]).current_dir(dir.path()), "").await;
    let nats = cluster(&dir.path().join("nats")).await;
    let addresses: Vec<_> = nats.iter().map(|server| server.addr().to_string()).collect();
    let servers = format!("nats://{}", addresses.join(","));

    let port = ReservedPort::new();
    let (set, program) = command(block(&text, "sh", "polygon-sim"));
    assert_eq!(program, "polygon-sim");
    let mut sim = Launch::new("polygon-sim").env("SIM_PORT", port.addr().port());
    for (name, value) in set {
        sim = sim.env(&name, value);
    }
    let _sim = sim.spawn();
    listens(port.addr()).await;

    let adapted = |value: &str| {
        let value =
            value.replace(SERVERS, &servers).replace("nats-3:8766", &port.addr().to_string());
        value.replace("nats/", &format!("{}/nats/", dir.path().display()))
    };
    let launch = |program: &'static str, holds: &str, port: &str| {
        let set = command_of(program, holds);
        let launch = set
            .iter()
            .fold(Launch::new(program), |launch, (name, value)| launch.env(name, adapted(value)));
        launch.env(port, 0).env("SILENCE_ALARM", "off")
    };
    let firehose = || launch("firehose-proxy", "NATS_URL=", "FIREHOSE_PORT");
    let mut firehoses = vec![firehose().start().await, firehose().start().await];
    let mut proxies = Vec::new();
    for _ in 0..3 {
        let launch = launch("filtered-proxy", "FIREHOSE_URL=nats://nats-1", "FILTERED_PROXY_PORT");
        proxies.push(launch.without("SILENCE_ALARM").start().await);
    }
    for proxy in &proxies {
        eventually(3 * SOON, "a proxy is up", async || {
            proxy.health_text("/upstream/state").await == "up"
        })
        .await;
        is_complete(proxy).await;
    }
    let expected = BTreeMap::from([("filtered".to_owned(), 2), ("firehose".to_owned(), 2)]);
    eventually(SOON, "each lists the others", async || {
        tiers_of_peers(&proxies[0]).await == expected
    })
    .await;

    let session = async |proxy: &Program| {
        let mut client = TestClient::connect_to(proxy.addr(), "/session/alpha/stocks").await;
        client.log_in("a-key-of-yours").await;
        client.subscribe("T.AAPL").await;
        client
    };
    let mut client = session(&proxies[0]).await;
    let event = r#""sym":"AAPL""#;
    read_until(&mut client, event).await;
    let mut holder = None;
    for (n, firehose) in firehoses.iter().enumerate() {
        if firehose.health_text("/lease/role").await == "holder" {
            holder = Some(n);
        }
    }
    let mut holder = firehoses.remove(holder.expect("one holds the lease"));
    holder.signal(Signal::SIGKILL);
    holder.wait_exit(SOON).await;
    for expected in [r#""status":"upstream_down""#, r#""status":"upstream_up""#, event] {
        read_until(&mut client, expected).await;
    }
    // The bucket has what it confirmed.
    eventually(SOON, "a ping", async || {
        client.ping(b"read").await;
        client.pings() > 3
    })
    .await;
    drop(client);
    let mut back = session(&proxies[2]).await;
    read_until(&mut back, r#""status":"resumed""#).await;
}

/// Reads until an object holds this text.
async fn read_until(client: &mut TestClient, text: &str) {
    within(SOON, text, async { while !client.next_object().await.contains(text) {} }).await;
}

#[test]
fn every_row_of_the_table_of_failures_names_a_test_that_exists() {
    let document = document(DOCUMENT);
    let rows = document.lines().skip_while(|line| !line.starts_with("| dies | what happens "));
    let rows: Vec<_> = rows.skip(2).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 10, "{rows:?}");
    for row in rows {
        let cell = row.trim_end_matches([' ', '|']).rsplit(" | ").next().expect("a cell");
        let tests: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{row}");
        for test in tests {
            let (module, name) = test.split_once("::").expect("a module and a test");
            let path = root().join(format!("tests/it/{module}.rs"));
            let source = fs::read_to_string(&path).unwrap_or_default();
            assert!(source.contains(&format!("fn {name}(")), "no test {test}");
        }
    }
}

async fn operator(nats: &NatsServer) -> Client {
    let user = "operator";
    let options = ConnectOptions::with_user_and_password(user.to_owned(), password(user));
    nats.client_with(options).await
}

#[tokio::test]
async fn positions_hold_in_another_region() {
    let line = ReservedPort::new();
    let jetstream = "jetstream { store_dir: \"$STORE\", max_file: 30G, domain: region-1 }";
    let hub = format!("{jetstream}\nleafnodes {{ listen: \"{}\" }}\n{}", line.addr(), users());
    let hub = NatsServer::with(&hub).await;
    let shipped = document("deploy/nats/leaf.conf");
    let own = |line: &&str| !line.starts_with("listen:") && !line.starts_with("http:");
    let mut leaf = shipped.lines().filter(own).collect::<Vec<_>>().join("\n");
    leaf = replaced(&leaf, "/var/lib/nats", "$STORE");
    let url = format!("nats-leaf://operator:{}@{}", password("operator"), line.addr());
    leaf = replaced(&leaf, "tls://operator:PASSWORD@nats.region-1.example:7422", &url);
    leaf = replaced(&leaf, "include users.conf", &users());
    let leaf = NatsServer::with(&leaf).await;

    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).env("NATS_URL", hub.url());
    let _firehose = with_creds(firehose, "firehose").start().await;
    let here = with_creds(stack::filtered_on_nats(&hub.url()), "proxy").start().await;
    is_up(&here).await;
    let mirror = block(&document(DOCUMENT), "json", "mirror").to_owned();
    let client = operator(&leaf).await;
    eventually(SOON, "the leaf node makes a mirror", async || {
        let subject = "$JS.API.STREAM.CREATE.POLYGON_STOCKS";
        let answer = client.request(subject, mirror.clone().into()).await;
        let answer: Option<Value> =
            answer.ok().and_then(|answer| serde_json::from_slice(&answer.payload).ok());
        answer.is_some_and(|answer| answer["error"].is_null())
    })
    .await;
    let there = with_creds(stack::filtered_on_nats(&leaf.url()), "proxy").start().await;
    for proxy in [&here, &there] {
        is_up(proxy).await;
        is_complete(proxy).await;
    }
    let trades = |numbers: std::ops::Range<usize>| -> Vec<String> {
        numbers.map(|n| trade("AAPL", n)).collect()
    };
    let mut client = TestClient::connect_to(here.addr(), "/stocks?positions=1ms").await;
    client.log_in(CLIENT_KEY).await;
    client.subscribe("T.AAPL").await;
    let mut far = TestClient::connect_to(there.addr(), "/stocks").await;
    far.log_in(CLIENT_KEY).await;
    far.subscribe("T.AAPL").await;
    for n in 0..3 {
        sim.handle.publish(&trades(n..n + 1));
        far.expect_event(&trade("AAPL", n)).await;
        read_until(&mut client, &trade("AAPL", n)).await;
    }
    // The next position, as the first region names it. Trades of others make it say one.
    let mut position = None;
    within(SOON, "a position", async {
        while position.is_none() {
            sim.handle.publish(&[trade("MSFT", 0)]);
            let value: Value =
                serde_json::from_str(&client.next_object().await).expect("an object is JSON");
            if value["status"] == "position" {
                position = value["position"].as_str().map(str::to_owned);
            }
        }
    })
    .await;
    drop(client);
    for n in 3..5 {
        sim.handle.publish(&trades(n..n + 1));
        far.expect_event(&trade("AAPL", n)).await;
    }
    let mut moved = TestClient::connect_to(there.addr(), "/stocks").await;
    moved.log_in(CLIENT_KEY).await;
    let position = position.expect("found above");
    let subscribe = json!({"action": "subscribe", "params": "T.AAPL", "from": position});
    moved.send_raw(&subscribe.to_string()).await;
    let mut got = Vec::new();
    while got.len() < 2 {
        let object = moved.next_object().await;
        let value: Value = serde_json::from_str(&object).expect("JSON");
        assert_ne!(value["status"], "gap", "{object}");
        if value["ev"] == "T" {
            got.push(object);
        }
    }
    assert_eq!(got, trades(3..5));
}

const COMPOSE: &str = "deploy/compose/nats.yaml";

#[tokio::test]
async fn containers_with_nats_are_confined_and_find_their_files_and_settings() {
    let mut compose = DeployTool::Compose.command().await;
    compose.arg("--file").arg(root().join(COMPOSE)).args(["config", "--format", "json"]);
    for name in ["MARKETS", "POLYGON_WS_URL"] {
        compose.env_remove(name);
    }
    let composed: Value =
        serde_json::from_str(&output(&mut compose, "").await).expect("Compose prints JSON");
    let services = composed["services"].as_object().expect("services");
    let names: Vec<_> = services.keys().map(String::as_str).collect();
    let expected = [
        "filtered-1",
        "filtered-2",
        "filtered-3",
        "firehose-1",
        "firehose-2",
        "market",
        "nats-1",
        "nats-2",
        "nats-3",
        "nginx",
    ];
    assert_eq!(names, expected);
    let mut addresses = Vec::new();
    for (name, service) in services {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
        assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]), "{name}");
        let check = service["healthcheck"]["test"][0].as_str();
        assert_eq!(check == Some("CMD"), name != "market", "{name}: a check without a shell");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}: {port}");
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            if volume["type"] == "bind" {
                let source = volume["source"].as_str().expect("a path");
                assert!(Path::new(source).exists(), "{name}: {source}");
            }
        }
        let Some(binary) = service["command"][0].as_str().filter(|name| name.ends_with("-proxy"))
        else {
            continue;
        };
        let tiers = ["firehose-proxy", "filtered-proxy"];
        let tier = tiers.into_iter().find(|tier| *tier == binary).expect("a tier");
        let known = settings(tier).await;
        let mut read = BTreeSet::new();
        for (variable, value) in service["environment"].as_object().expect("settings") {
            assert!(known.contains_key(variable), "{binary} has no setting {variable}");
            if let Some(name) = value.as_str().and_then(|value| value.strip_prefix("/run/secrets/"))
            {
                read.insert(name.to_owned());
            }
        }
        let given: BTreeSet<_> = service["secrets"]
            .as_array()
            .expect("secrets")
            .iter()
            .map(|secret| secret["source"].as_str().expect("a name").to_owned())
            .collect();
        assert_eq!(read, given, "{name}");
        if let Some(address) = service["networks"]["default"]["ipv4_address"].as_str() {
            addresses.push(format!("server {address}:8765 max_fails=0;"));
        }
    }
    let listed = document("deploy/compose/nats-proxies.conf");
    let listed: Vec<_> =
        listed.lines().map(str::trim).filter(|l| l.starts_with("server ")).collect();
    assert_eq!(listed, addresses);
    // The commands of the two documents make its secrets.
    let dir = tempfile::tempdir().expect("make a temporary directory");
    let copy = dir.path().join("deploy/compose");
    fs::create_dir_all(&copy).expect("make a directory");
    std::os::unix::fs::symlink(root().join("deploy/nats"), dir.path().join("deploy/nats"))
        .expect("a link");
    let first = document("docs/DEPLOY.md");
    let first = block(&first, "sh", "docker compose up");
    let second = document(DOCUMENT);
    let second = block(&second, "sh", "docker compose --file nats.yaml");
    for commands in [first, second] {
        let commands = commands.strip_prefix("cd deploy/compose\n").expect("its directory");
        let (commands, _) = commands.trim_end().rsplit_once('\n').expect("several commands");
        output(installed("sh", "dash").args(["-ec", commands]).current_dir(&copy), "").await;
    }
    for name in composed["secrets"].as_object().expect("secrets").keys() {
        let content = fs::read_to_string(copy.join("keys").join(name)).unwrap_or_default();
        assert!(!content.trim().is_empty(), "{name}");
    }
}

/// The rendered objects of the manifests with NATS.
async fn manifests() -> Vec<Value> {
    let mut kubectl = DeployTool::Kubectl.command().await;
    let folder = root().join("deploy/kubernetes/nats");
    yaml(&output(kubectl.arg("kustomize").arg(folder), "").await).await
}

#[tokio::test]
async fn the_programs_run_with_the_manifests_and_the_shipped_users() {
    let objects = manifests().await;
    let get = |kind: &str, name: &str| {
        let named = |object: &&Value| {
            object["kind"] == kind
                && object["metadata"]["name"].as_str().is_some_and(|found| {
                    found == name || (kind == "ConfigMap" && found.starts_with(&format!("{name}-")))
                })
        };
        objects.iter().find(named).unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    assert_eq!(get("StatefulSet", "nats")["spec"]["replicas"], 3);
    assert_eq!(get("Deployment", "firehose-proxy")["spec"]["replicas"], 2);
    assert_eq!(get("Deployment", "filtered-proxy")["spec"]["replicas"], 3);
    let rolling =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}});
    assert_eq!(get("Deployment", "firehose-proxy")["spec"]["strategy"], rolling);
    for tier in ["firehose-proxy", "filtered-proxy"] {
        let onward = &get("NetworkPolicy", tier)["spec"]["egress"][0]["to"][0];
        let nats = json!({"app.kubernetes.io/name": "nats"});
        assert_eq!(onward["podSelector"]["matchLabels"], nats, "{tier}");
    }
    // The copies of what the servers read, but for what is a Pod's.
    assert_eq!(document("deploy/kubernetes/nats/users.conf"), document("deploy/nats/users.conf"));
    let settings_in = |name: &str| {
        let text = document(name);
        let settings = text.lines().filter(|line| !line.trim().starts_with('#'));
        settings.collect::<Vec<_>>().join("\n")
    };
    let pods = settings_in("deploy/kubernetes/nats/cluster.conf");
    let hosts = settings_in("deploy/nats/cluster.conf");
    let pods = replaced(&pods, "0.0.0.0:8222", "127.0.0.1:8222");
    let pods: Vec<_> = pods
        .lines()
        .filter(|line| !line.starts_with("pid_file") && !line.starts_with("lame_duck"))
        .collect();
    assert_eq!(pods.join("\n").trim(), hosts.trim());

    let nats = server().await;
    let sim = Sim::start().await;
    let launch = |tier: &'static str, user: &str| {
        let set = get("ConfigMap", tier)["data"].as_object().expect("settings");
        let mut launch = Launch::new(tier).env("ADMIN_PORT", 0);
        let dir = launch.dir().display().to_string();
        for (name, value) in set {
            let value = value.as_str().expect("a text");
            let value = value.replace("/run/secrets/polygon-proxy", &dir);
            let value = value.replace("nats://nats-0.nats,nats-1.nats,nats-2.nats", &nats.url());
            launch = launch.env(name, value);
        }
        for (name, key) in [
            ("polygon", stack::VENDOR_KEY),
            ("firehose", stack::FIREHOSE_KEY),
            ("clients", CLIENT_KEY),
        ] {
            launch = launch.file(name, key);
        }
        let creds = format!("{user}:{}", password(user));
        // One server alone cannot keep three copies.
        launch.file(&format!("nats-{user}"), &creds).env("NATS_REPLICAS", 1)
    };
    let firehose = launch("firehose-proxy", "firehose")
        .env("POLYGON_WS_URL", sim.url("stocks"))
        .env("FIREHOSE_HOST", "127.0.0.1")
        .env("FIREHOSE_PORT", 0);
    let _firehose = firehose.start().await;
    let filtered = launch("filtered-proxy", "proxy").without("NATS_REPLICAS");
    let filtered = filtered
        .env("FILTERED_PROXY_HOST", "127.0.0.1")
        .env("FILTERED_PROXY_PORT", 0)
        .start()
        .await;
    is_up(&filtered).await;
    is_complete(&filtered).await;
    let mut client = TestClient::connect_to(filtered.addr(), "/stocks").await;
    client.log_in(CLIENT_KEY).await;
    client.subscribe("T.AAPL").await;
    sim.handle.publish(&[trade("AAPL", 1)]);
    client.expect_objects(&[trade("AAPL", 1)]).await;
}

/// `kubectl` makes the secret of the document without a cluster, but does not send it.
#[tokio::test]
async fn the_secret_of_the_document_has_what_the_manifests_mount_and_names_their_servers() {
    let document = document(DOCUMENT);
    let commands = block(&document, "sh", "--from-file=keys");
    let (make, create) = commands.trim_end().rsplit_once('\n').expect("several commands");
    let dir = tempfile::tempdir().expect("make a temporary directory");
    std::os::unix::fs::symlink(root().join("deploy"), dir.path().join("deploy")).expect("a link");
    fs::create_dir(dir.path().join("keys")).expect("make a directory");
    for name in ["polygon", "firehose", "clients"] {
        fs::write(dir.path().join("keys").join(name), "a-key").expect("write a key");
    }
    output(installed("sh", "dash").args(["-ec", make]).current_dir(dir.path()), "").await;
    let mut kubectl = DeployTool::Kubectl.command().await;
    kubectl.args(create.split_whitespace().skip(1)).current_dir(dir.path());
    let secret = output(kubectl.args(["--dry-run=client", "--output=json"]), "").await;
    let secret: Value = serde_json::from_str(&secret).expect("kubectl prints JSON");
    let mut mounted = 0;
    for object in manifests().await {
        for volume in object["spec"]["template"]["spec"]["volumes"].as_array().into_iter().flatten()
        {
            let projected = volume["projected"]["sources"].as_array().into_iter().flatten();
            let sources = projected.map(|source| &source["secret"]).chain([&volume["secret"]]);
            for item in sources.flat_map(|source| source["items"].as_array()).flatten() {
                let key = item["key"].as_str().expect("a key");
                assert!(secret["data"][key].is_string(), "{key} in {secret}");
                mounted += 1;
            }
        }
    }
    assert!(mounted > 5, "{mounted} files");
    let routes = fs::read_to_string(dir.path().join("keys/nats-route")).expect("a file");
    for pod in 0..3 {
        assert!(routes.contains(&format!("@nats-{pod}.nats:6222")), "{routes}");
    }
    assert!(!routes.contains("change-me"), "{routes}");
}
