//! The manifests of `deploy/kubernetes`: the real kustomize renders them, schemas of Kubernetes check
//! them, and the real programs run with their settings.
//!
//! There is no cluster here: nothing is scheduled, and no network policy is enforced.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tests::{
    program::{Launch, Program},
    stack::{ReservedPort, Sim, VENDOR_KEY, is_complete, is_up},
    tools::{DeployTool, output, yaml},
    ws_client::TestClient,
};

use crate::{
    doc_snippets::{block, document, root},
    documents::settings,
};

const MIB: u64 = 1 << 20;

/// The name of each tier and its data port.
const TIERS: [(&str, u64); 2] = [("firehose-proxy", 8767), ("filtered-proxy", 8765)];
/// The directory of the keys.
const KEYS: &str = "/run/secrets/polygon-proxy";

/// The output of `kubectl kustomize` for a folder.
async fn rendered(folder: &str) -> String {
    let mut kubectl = DeployTool::Kubectl.command().await;
    let folder = root().join("deploy/kubernetes").join(folder);
    output(kubectl.arg("kustomize").arg(folder), "").await
}

/// The rendered objects of a folder.
struct Objects(Vec<Value>);

impl Objects {
    async fn of(folder: &str) -> Self {
        Self(yaml(&rendered(folder).await).await)
    }

    /// The object of this kind and name.
    fn get(&self, kind: &str, name: &str) -> &Value {
        let named = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        let mut found = self.0.iter().filter(named);
        let object = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
        assert_eq!(found.next(), None, "more than one {kind} {name}");
        object
    }

    /// The specification of a tier's Pods.
    fn pods(&self, tier: &str) -> &Value {
        &self.get("Deployment", tier)["spec"]["template"]["spec"]
    }

    /// The variables that a tier's Pods get from its ConfigMap.
    fn settings(&self, tier: &str) -> BTreeMap<String, String> {
        let source = &self.pods(tier)["containers"][0]["envFrom"];
        assert_eq!(source.as_array().map(Vec::len), Some(1), "{source}");
        let name = source[0]["configMapRef"]["name"].as_str().expect("a ConfigMap");
        let data = self.get("ConfigMap", name)["data"].as_object().expect("settings");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        data.iter().map(|(name, value)| (name.clone(), text(value))).collect()
    }
}

/// The bytes of a quantity such as `768Mi`.
fn bytes(quantity: &Value) -> u64 {
    let text = quantity.as_str().expect("a quantity");
    let (number, unit) = match text.strip_suffix("Mi") {
        Some(number) => (number, MIB),
        None => (text.strip_suffix("Gi").expect("Mi or Gi"), 1024 * MIB),
    };
    number.parse::<u64>().expect("a number") * unit
}

/// The seconds of a duration such as `25s`.
fn seconds(text: &str) -> u64 {
    text.strip_suffix('s').and_then(|number| number.parse().ok()).expect("seconds")
}

#[tokio::test]
async fn every_object_meets_the_schemas_of_the_oldest_and_the_newest_kubernetes() {
    let dir = tempfile::tempdir().expect("make a temporary directory");
    for folder in ["base", "example", "nats"] {
        let file = dir.path().join(format!("{folder}.yaml"));
        std::fs::write(&file, rendered(folder).await).expect("write manifests");
        let objects = Objects::of(folder).await;
        // The oldest one with `sleep` in `preStop`, and the newest one of the package.
        for version in ["1.30", "1.37"] {
            let mut validate = DeployTool::KubernetesValidate.command().await;
            validate.args(["--strict", "--kubernetes-version", version]).arg(&file);
            let said = output(&mut validate, "").await;
            let passed = said.lines().filter(|line| line.contains(" passed for resource ")).count();
            // Its schema belongs to the Prometheus Operator, and no package brings it.
            let monitors = objects.0.iter().filter(|object| object["kind"] == "ServiceMonitor");
            assert_eq!(passed + monitors.count(), objects.0.len(), "{folder}: {said}");
        }
    }
}

#[tokio::test]
async fn each_setting_exists_and_each_key_is_a_file_that_is_mounted() {
    for folder in ["base", "example", "nats"] {
        let objects = Objects::of(folder).await;
        for (tier, _) in TIERS {
            let known = settings(tier).await;
            let pods = objects.pods(tier);
            assert_eq!(pods["containers"][0]["args"], json!([tier]));
            assert_eq!(pods["containers"][0]["volumeMounts"][0]["mountPath"], KEYS);
            let items = pods["volumes"][0]["secret"]["items"].as_array().expect("keys");
            let mounted: BTreeSet<_> = items
                .iter()
                .map(|item| format!("{KEYS}/{}", item["path"].as_str().expect("a path")))
                .collect();
            let mut read = BTreeSet::new();
            let set = objects.settings(tier);
            let over_nats = set.get("FIREHOSE_URL").is_some_and(|url| url.starts_with("nats://"));
            for (name, value) in set {
                assert!(known.contains_key(&name), "{tier} has no setting {name}");
                assert!(!name.ends_with("_KEY") && !name.ends_with("_KEYS"), "{name} is a secret");
                // Left from the base, and ignored.
                let is_read = !(over_nats && name == "FIREHOSE_API_KEY_FILE");
                if (name.ends_with("_FILE") && is_read) || name == "NATS_CREDS" {
                    read.insert(value);
                }
            }
            assert_eq!(read, mounted, "{tier}");
        }
    }
}

/// Starts a tier with the settings of its ConfigMap, adapted to this machine.
async fn started(objects: &Objects, tier: &'static str, more: &[(&str, String)]) -> Program {
    let mut launch = Launch::new(tier);
    let dir = launch.dir().display().to_string();
    // The image sets it.
    launch = launch.env("ADMIN_PORT", 0);
    for (name, value) in objects.settings(tier) {
        launch = launch.env(&name, value.replace(KEYS, &dir));
    }
    let keys = [("polygon", VENDOR_KEY), ("firehose", "firehose-key"), ("clients", "client-key")];
    for (name, key) in keys {
        launch = launch.file(name, key);
    }
    launch.envs(more.iter().cloned()).start().await
}

#[tokio::test]
async fn the_programs_run_with_the_settings_of_the_manifests() {
    let objects = Objects::of("base").await;
    let sim = Sim::start().await;
    let port = ReservedPort::new();
    let firehose = started(
        &objects,
        "firehose-proxy",
        &[
            ("POLYGON_WS_URL", sim.url("stocks")),
            ("FIREHOSE_PORT", port.addr().port().to_string()),
            ("FIREHOSE_HOST", "127.0.0.1".to_owned()),
        ],
    )
    .await;
    // A Service's name and port lead to it.
    let service = objects.get("Service", "firehose-proxy");
    let url = format!("ws://firehose-proxy:{}", service["spec"]["ports"][0]["port"]);
    assert_eq!(objects.settings("filtered-proxy")["FIREHOSE_URL"], url);
    let filtered = started(
        &objects,
        "filtered-proxy",
        &[("FIREHOSE_URL", format!("ws://{}", port.addr())), ("FILTERED_PROXY_PORT", "0".into())],
    )
    .await;
    is_up(&firehose).await;
    is_complete(&filtered).await;
    TestClient::login(filtered.addr(), "client-key").await;
}

#[tokio::test]
async fn memory_and_time_to_stop_suffice_for_the_settings() {
    let objects = Objects::of("base").await;
    for (tier, _) in TIERS {
        let (set, known) = (objects.settings(tier), settings(tier).await);
        let value = |name: &str| match set.get(name) {
            Some(value) => value.clone(),
            None => known[name].clone().expect("a default"),
        };
        let number = |name: &str| value(name).parse::<u64>().expect("a number");
        let pods = objects.pods(tier);
        // docs/RELIABILITY.md lists the bounds.
        let bound = match tier {
            "firehose-proxy" => 2 * number("RING_BYTES") + number("TOTAL_QUEUE_BYTES"),
            _ => number("TOTAL_QUEUE_BYTES") + number("MAX_CONNECTIONS") * 10_400,
        } + 2 * number("HISTORY_BYTES");
        let resources = &pods["containers"][0]["resources"];
        assert!(bound + 150 * MIB <= bytes(&resources["limits"]["memory"]), "{tier}: {bound}");
        assert_eq!(resources["limits"], json!({"memory": resources["requests"]["memory"]}));
        let sleep = &pods["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"];
        let stop = sleep.as_u64().unwrap_or(0) + seconds(&value("DRAIN_TIMEOUT"));
        let grace = pods["terminationGracePeriodSeconds"].as_u64().expect("a period");
        assert!(stop < grace, "{tier}: {stop} s to stop");
    }
}

#[tokio::test]
async fn the_firehose_is_never_there_twice_and_filtered_proxies_are_never_away() {
    let objects = Objects::of("example").await;
    let firehose = &objects.get("Deployment", "firehose-proxy")["spec"];
    assert_eq!(firehose["replicas"], 1);
    assert_eq!(firehose["strategy"], json!({"type": "Recreate"}));
    let filtered = &objects.get("Deployment", "filtered-proxy")["spec"];
    assert!(filtered["replicas"].as_u64() > Some(1));
    let rolling =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    assert_eq!(filtered["strategy"], rolling);
    let budget = &objects.get("PodDisruptionBudget", "filtered-proxy")["spec"];
    assert_eq!(budget["maxUnavailable"], 1);
    assert_eq!(budget["selector"], filtered["selector"]);
}

#[tokio::test]
async fn pods_are_protected_probed_and_found_by_their_labels() {
    let objects = Objects::of("example").await;
    for (tier, port) in TIERS {
        let deployment = &objects.get("Deployment", tier)["spec"];
        let labels = &deployment["template"]["metadata"]["labels"];
        let selector = json!({"app.kubernetes.io/name": tier});
        assert_eq!(deployment["selector"]["matchLabels"], selector);
        assert_eq!(labels["app.kubernetes.io/name"], tier);

        let pods = objects.pods(tier);
        // Variables of Services look like settings of the programs.
        assert_eq!(pods["enableServiceLinks"], false);
        assert_eq!(pods["automountServiceAccountToken"], false);
        let security = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
        assert_eq!(pods["securityContext"], security, "any user id but root's");
        let container = &pods["containers"][0];
        assert_eq!(container["image"], "registry.example.com/polygon-proxy:0.2.0");
        let security = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        });
        assert_eq!(container["securityContext"], security);
        let ports = json!([
            {"name": "websocket", "containerPort": port},
            {"name": "admin", "containerPort": 9464},
        ]);
        assert_eq!(container["ports"], ports);
        for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "admin"}));
        }

        let service = &objects.get("Service", tier)["spec"];
        assert_eq!(service["selector"], selector);
        assert_eq!(service["type"], Value::Null, "reachable within the cluster alone");
        let monitor = &objects.get("ServiceMonitor", "polygon-proxy")["spec"];
        let wanted = monitor["selector"]["matchLabels"].as_object().expect("labels");
        let service = objects.get("Service", tier);
        for (name, value) in wanted {
            assert_eq!(&service["metadata"]["labels"][name], value, "Prometheus finds {tier}");
        }
        let job = monitor["jobLabel"].as_str().expect("a label");
        let job = service["metadata"]["labels"][job].as_str().expect("a job");
        let prometheus = document("deploy/prometheus/prometheus.yml");
        assert!(prometheus.contains(&format!("job_name: {job}\n")), "{job}");
        let ports = service["spec"]["ports"].as_array().expect("ports");
        let scraped = &monitor["endpoints"][0]["port"];
        assert!(ports.iter().any(|port| port["name"] == *scraped), "{scraped}");
    }
    let clients = &objects.get("Service", "clients")["spec"];
    assert_eq!(clients["selector"], json!({"app.kubernetes.io/name": "filtered-proxy"}));
    let ports = clients["ports"].as_array().expect("ports");
    assert!(ports.iter().all(|port| port["targetPort"] == "websocket"), "no probes from outside");
}

#[tokio::test]
async fn only_filtered_proxies_reach_the_firehose() {
    let objects = Objects::of("base").await;
    let prometheus = json!({
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "ports": [{"port": "admin"}],
    });
    let pods = |name| json!([{"podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}]);
    let websocket = json!([{"port": "websocket"}]);
    let policy = |tier| &objects.get("NetworkPolicy", tier)["spec"];
    let firehose = json!([{"from": pods("filtered-proxy"), "ports": websocket}, prometheus]);
    assert_eq!(policy("firehose-proxy")["ingress"], firehose);
    assert_eq!(policy("filtered-proxy")["ingress"], json!([{"ports": websocket}, prometheus]));
    let onward = &policy("filtered-proxy")["egress"][0];
    assert_eq!(onward["to"], pods("firehose-proxy"));
    for (tier, _) in TIERS {
        let policy = policy(tier);
        assert_eq!(policy["podSelector"], pods(tier)[0]["podSelector"]);
        assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    }
}

/// `kubectl` makes the Secret of the document without a cluster, but does not send it.
#[tokio::test]
async fn the_command_of_the_document_makes_the_secret() {
    let document = document("docs/DEPLOY.md");
    let commands = block(&document, "sh", "kubectl create secret").replace("\\\n", "");
    let command = commands.lines().find(|line| line.starts_with("kubectl create secret"));
    let dir = tempfile::tempdir().expect("make a temporary directory");
    std::fs::create_dir(dir.path().join("keys")).expect("make a directory");
    for name in ["polygon", "firehose", "clients"] {
        std::fs::write(dir.path().join("keys").join(name), "a-key").expect("write a key");
    }
    let mut kubectl = DeployTool::Kubectl.command().await;
    kubectl.args(command.expect("a command").split_whitespace().skip(1)).current_dir(dir.path());
    let secret = output(kubectl.args(["--dry-run=client", "--output=json"]), "").await;
    let secret: Value = serde_json::from_str(&secret).expect("kubectl prints JSON");
    let objects = Objects::of("example").await;
    assert_eq!(
        secret["metadata"]["namespace"],
        objects.get("Service", "clients")["metadata"]["namespace"]
    );
    for (tier, _) in TIERS {
        let wanted = &objects.pods(tier)["volumes"][0]["secret"];
        assert_eq!(wanted["secretName"], secret["metadata"]["name"]);
        for item in wanted["items"].as_array().expect("keys") {
            let key = item["key"].as_str().expect("a key");
            assert!(secret["data"][key].is_string(), "{key} in {secret}");
        }
    }
}
