//! The alert rules and the dashboard that the project ships: a real Prometheus runs them.

use std::{collections::BTreeSet, net::SocketAddr, process::Output};

use polygon_sim::{Fault, SimConfig};
use serde_json::Value;
use tempfile::TempDir;
use tests::{
    grafana, http,
    program::Program,
    stack::{self, ReservedPort, Sim, Stack},
    tls::Certificate,
    wait::{SOON, eventually, listens, within},
    ws_client::TestClient,
};
use tokio::process::{Child, Command};

use crate::doc_snippets::{document, has_program, replaced, root};

const RULES: &str = "deploy/prometheus/rules.yml";
const DASHBOARD: &str = "deploy/grafana/dashboards/market-data.json";

async fn promtool(args: &[&str]) -> Output {
    let mut command = Command::new("promtool");
    command.args(args).current_dir(root().join("deploy/prometheus")).kill_on_drop(true);
    within(SOON, "promtool", command.output()).await.expect("run promtool")
}

#[tokio::test]
async fn each_alert_fires_when_it_should_and_names_what_to_do() {
    if !has_program("promtool", "--version").await {
        return;
    }
    for args in [
        &["check", "config", "prometheus.yml"][..],
        &["check", "rules", "--lint-fatal", "rules.yml"],
        &["test", "rules", "rules_test.yml"],
    ] {
        let output = promtool(args).await;
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
    let (rules, tests) = (document(RULES), document("deploy/prometheus/rules_test.yml"));
    let after = |text: &str, what: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim);
        lines.filter_map(|line| line.strip_prefix(what)).map(str::to_owned).collect()
    };
    let alerts: BTreeSet<String> = after(&rules, "- alert: ").into_iter().collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    // A case with an alert spans several lines, one without stands in braces.
    let fire: BTreeSet<String> = after(&tests, "- alertname: ").into_iter().collect();
    assert_eq!(alerts, fire, "each has a case in which it fires");
    let operations = document("docs/OPERATIONS.md");
    let anchor = |heading: &str| heading.to_lowercase().replace(' ', "-");
    let headings: BTreeSet<String> =
        after(&operations, "### ").iter().map(|heading| anchor(heading)).collect();
    for runbook in after(&rules, "runbook: ") {
        assert!(headings.contains(&runbook), "OPERATIONS.md has no {runbook:?}");
    }
    for alert in &alerts {
        let entries = operations.matches(&format!("| `{alert}`")).count();
        assert_eq!(entries, 1, "OPERATIONS.md has one entry for {alert}");
    }
}

#[tokio::test]
async fn grafana_knows_all_of_the_dashboard() {
    let unknown = grafana::unknown_members(&root().join(DASHBOARD)).await;
    assert_eq!(unknown.unwrap_or_default(), Vec::<String>::new());
    let dashboard: Value = serde_json::from_str(&document(DASHBOARD)).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let rows: Vec<&Value> = panels.iter().filter(|panel| panel["type"] == "row").collect();
    let titles: Vec<_> = rows.iter().map(|row| row["title"].as_str().unwrap()).collect();
    assert_eq!(titles, ["At a glance", "Firehose", "Filtered proxies", "Programs"]);
    let mut cells = BTreeSet::new();
    for panel in panels {
        let number = |name: &str| panel["gridPos"][name].as_u64().expect("a position");
        for x in number("x")..number("x") + number("w") {
            for y in number("y")..number("y") + number("h") {
                assert!(x < 24 && cells.insert((x, y)), "{} overlaps another", panel["title"]);
            }
        }
        if panel["type"] != "row" {
            let description = panel["description"].as_str().expect("a description");
            assert!(description.ends_with('.'), "{description}");
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
            assert!(unit.is_some_and(|unit| !unit.is_empty()), "{}", panel["title"]);
        }
    }
}

/// A running Prometheus with the shipped rules. Dropping it kills it.
struct Prometheus {
    addr: SocketAddr,
    _child: Child,
    _dir: TempDir,
}

impl Prometheus {
    /// Starts it with the shipped configuration, adapted to these targets.
    async fn start(firehose: SocketAddr, filtered: &[SocketAddr]) -> Self {
        let dir = tempfile::tempdir().expect("make a temporary directory");
        let mut config = document("deploy/prometheus/prometheus.yml");
        let quoted: Vec<_> = filtered.iter().map(|addr| format!("\"{addr}\"")).collect();
        for (part, by) in [
            ("scrape_interval: 5s", "scrape_interval: 1s"),
            ("evaluation_interval: 5s", "evaluation_interval: 1s"),
            ("\"firehose:9464\"", &format!("\"{firehose}\"")),
            ("\"filtered-1:9464\", \"filtered-2:9464\"", &quoted.join(", ")),
        ] {
            config = replaced(&config, part, by);
        }
        std::fs::write(dir.path().join("prometheus.yml"), config).expect("write a configuration");
        std::fs::copy(root().join(RULES), dir.path().join("rules.yml")).expect("copy the rules");
        let port = ReservedPort::new();
        let mut command = Command::new("prometheus");
        command
            .arg("--config.file")
            .arg(dir.path().join("prometheus.yml"))
            .arg("--storage.tsdb.path")
            .arg(dir.path().join("data"))
            .arg(format!("--web.listen-address={}", port.addr()))
            .arg("--log.level=warn")
            .kill_on_drop(true);
        let addr = port.addr();
        drop(port);
        let child = command.spawn().expect("start prometheus");
        listens(addr).await;
        eventually(SOON, "prometheus is ready", async || {
            http::raw(addr, "GET /-/ready HTTP/1.0\r\n\r\n").await.contains("200 OK")
        })
        .await;
        Self { addr, _child: child, _dir: dir }
    }

    /// The data of an answer.
    async fn api(&self, path: &str) -> Value {
        // With HTTP/1.0 no answer comes in chunks.
        let answer = http::raw(self.addr, &format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        let (_, body) = answer.split_once("\r\n\r\n").expect("an answer");
        let body: Value =
            serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
        assert_eq!(body["status"], "success", "{path}: {body}");
        body["data"].clone()
    }

    /// The name and the query of each alert.
    async fn alerts(&self) -> Vec<(String, String)> {
        let data = self.api("/api/v1/rules").await;
        let groups = data["groups"].as_array().expect("groups").iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
        let text = |rule: &Value, name: &str| rule[name].as_str().expect("a text").to_owned();
        rules.map(|rule| (text(rule, "name"), text(rule, "query"))).collect()
    }

    /// How many series a query returns.
    async fn series(&self, query: &str) -> usize {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let data = self.api(&format!("/api/v1/query?query={encoded}")).await;
        data["result"].as_array().expect("series").len()
    }

    /// Waits until a query returns at least this many series.
    async fn returns(&self, least: usize, query: &str) {
        eventually(SOON, query, async || self.series(query).await >= least).await;
    }
}

/// The selectors of a query: each a name with its labels, or labels alone.
fn selectors(query: &str) -> Vec<String> {
    let mut selectors = Vec::new();
    let mut rest = query;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '{' || c == '"') {
        rest = &rest[start..];
        if let Some(text) = rest.strip_prefix('"') {
            rest = &text[text.find('"').expect("the end of a text") + 1..];
            continue;
        }
        let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
        let labels = match rest[name.len()..].strip_prefix('{') {
            Some(labels) => &rest[name.len()..][..labels.find('}').expect("a brace") + 2],
            None => "",
        };
        let is_metric = ["firehose_", "filtered_", "process_", "up"]
            .iter()
            .any(|prefix| name.starts_with(prefix) && (*prefix != "up" || name == "up"));
        if is_metric || !labels.is_empty() {
            selectors.push(format!("{name}{labels}"));
        }
        rest = &rest[(name.len() + labels.len()).max(1)..];
    }
    selectors
}

/// A query without its comparisons with numbers, and with `<=` between metrics in place of `<`.
fn without_thresholds(query: &str) -> String {
    let mut words = query.split_whitespace().peekable();
    let mut kept = Vec::new();
    let is_number = |word: &str| word.trim_end_matches(')').parse::<f64>().is_ok();
    while let Some(word) = words.next() {
        if !matches!(word, "==" | ">" | "<") {
            kept.push(word);
        } else if !words.peek().is_some_and(|next| is_number(next)) {
            kept.push("<=");
        } else {
            // The last number may end a bracket.
            while let Some(part) = words.next_if(|next| *next == "*" || is_number(next)) {
                kept.extend(part.ends_with(')').then_some(")"));
            }
        }
    }
    kept.join(" ")
}

/// How many metrics a selector names.
fn names(selector: &str) -> usize {
    let list = selector.split_once("__name__=~\"").and_then(|(_, rest)| rest.split('"').next());
    list.map_or(1, |list| list.split('|').count())
}

#[test]
fn thresholds_are_left_out() {
    for (query, expected) in [
        ("up == 0", "up"),
        ("(a > 0 or b - time() < 20 * 60) and c == 1", "(a or b - time() ) and c"),
        ("a < b and c == 1", "a <= b and c"),
    ] {
        assert_eq!(without_thresholds(query), expected);
    }
}

#[test]
fn selectors_are_found() {
    let query = r#"sum by (le) (rate({__name__=~"firehose_a|filtered_a",x="{y"}[2m])) > 0.5 or up == 0 and on (job) process_b{c=~"d"} / firehose_e"#;
    let expected = [
        r#"{__name__=~"firehose_a|filtered_a",x="{y"}"#,
        "up",
        r#"process_b{c=~"d"}"#,
        "firehose_e",
    ];
    assert_eq!(selectors(query), expected);
    assert_eq!(
        selectors(query).iter().map(|selector| names(selector)).collect::<Vec<_>>(),
        [2, 1, 1, 1]
    );
}

/// Both tiers with two markets that move. The firehose and the second filtered proxy speak TLS.
async fn tiers() -> (Stack, Vec<TestClient>) {
    let market = "stocks,options".to_owned();
    let sim = Sim::with(SimConfig { market: market.clone(), rate: 500.0, ..SimConfig::default() });
    let (sim, certificate) = (sim.await, Certificate::new());
    let firehose = stack::firehose(&sim.url("")).env("MARKETS", &market);
    let firehose = firehose.env("RECORD_DIR", "recorded");
    let firehose = firehose.envs(certificate.settings()).start().await;
    let mut filtered = Vec::new();
    for tls in [&[][..], &certificate.settings()] {
        let launch = stack::filtered(firehose.addr())
            .env("MARKETS", &market)
            .env("FIREHOSE_URL", format!("wss://localhost:{}", firehose.addr().port()))
            .env("FIREHOSE_CA", certificate.file().display())
            .envs(tls.iter().cloned());
        filtered.push(launch.start().await);
    }
    let stack = Stack { filtered, firehose, sim };
    stack.linked().await;
    let stocks = stack.subscriber_at("/stocks", "T.*").await;
    let options = stack.subscriber_at("/options", "T.*").await;
    let mut contracts = stack.client_at("/options").await;
    contracts.command("subscribe", "Q.O:SPY261218C00600000").await;
    (stack, vec![stocks, options, contracts])
}

/// Both tiers, their clients, and a Prometheus that scrapes them. `None` where there is none.
async fn monitored() -> Option<(Stack, Vec<TestClient>, Prometheus)> {
    if !has_program("prometheus", "--version").await {
        return None;
    }
    let (stack, clients) = tiers().await;
    let filtered: Vec<_> = stack.filtered.iter().map(Program::plain).collect();
    let prometheus = Prometheus::start(stack.firehose.plain(), &filtered).await;
    prometheus.returns(3, "up == 1").await;
    Some((stack, clients, prometheus))
}

#[tokio::test]
async fn a_real_prometheus_gets_data_for_every_expression() {
    let Some((_stack, _clients, prometheus)) = monitored().await else { return };
    let alerts = prometheus.alerts().await;
    assert!(alerts.len() > 10, "{alerts:?}");
    let documented = document("docs/METRICS.md");
    for (alert, query) in &alerts {
        let selectors = selectors(query);
        assert!(!selectors.is_empty(), "{alert}: {query}");
        // Programs without NATS and LEASE lack these metrics. Another test compares the document
        // with programs that have them.
        if query.contains("_nats_") || query.contains("_lease_") {
            for selector in selectors {
                let name = selector.split('{').next().expect("a name");
                let (_, name) = name.split_once('_').expect("a tier and a name");
                assert!(documented.contains(&format!("| `{name}` |")), "{alert}: {name}");
            }
            continue;
        }
        for selector in selectors {
            let least = names(&selector);
            prometheus.returns(least, &format!("group by (__name__) ({selector})")).await;
        }
        // Without its thresholds the whole expression joins what it names.
        let joined = without_thresholds(query).replace(":30s]", ":1s]");
        prometheus.returns(1, &joined).await;
    }

    let dashboard: Value = serde_json::from_str(&document(DASHBOARD)).expect("JSON");
    let mut queries = 0;
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let mut query = target["expr"].as_str().expect("an expression").to_owned();
            for (variable, value) in
                [("$instance", ".*"), ("$market", ".*"), ("$__rate_interval", "5s")]
            {
                query = query.replace(variable, value);
            }
            assert!(!query.contains('$'), "{query}");
            prometheus.returns(1, &query).await;
            queries += 1;
        }
    }
    assert!(queries > 30, "{queries}");
    // Without a fault nothing fires, whatever the hour.
    let firing = prometheus.api("/api/v1/alerts").await;
    assert_eq!(firing["alerts"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_lost_vendor_and_a_lost_firehose_fire() {
    let Some((stack, _clients, prometheus)) = monitored().await else { return };
    stack.sim.market("stocks").inject(Fault::Evict);
    let pending = async |alert: &str| {
        let query = format!("ALERTS{{alertname={alert:?}}}");
        prometheus.returns(1, &query).await;
    };
    pending("UpstreamEvicted").await;
    let Stack { filtered: _filtered, firehose, .. } = stack;
    drop(firehose);
    pending("ProgramDown").await;
    pending("FirehoseUnreachable").await;
}
