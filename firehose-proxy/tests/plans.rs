//! The settings that docs/OPERATIONS.md names for each plan are valid, and lead where it says.

use std::{fs, path::Path};

use firehose_proxy::{Args, Config};
use proxy_common::program::command_line::parse_flags;

fn operations() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/OPERATIONS.md");
    fs::read_to_string(path).expect("docs/OPERATIONS.md")
}

/// A firehose with these variables.
fn config(variables: &[&str]) -> Config {
    let flag = |variable: &&str| {
        let (name, value) = variable.split_once('=').expect("a setting");
        format!("--{}={value}", name.to_lowercase().replace('_', "-"))
    };
    let flags: Vec<String> = variables.iter().chain(&["POLYGON_API_KEY=key"]).map(flag).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let args: Args = parse_flags(&flags).unwrap_or_else(|error| panic!("{variables:?}: {error:?}"));
    Config::try_from(&args).unwrap_or_else(|error| panic!("{variables:?}: {error}"))
}

/// Where each market's connections lead, and what `*` asks of them.
fn shown(config: &Config) -> Vec<String> {
    let market = |market: &firehose_proxy::config::MarketConfig| {
        let urls: Vec<String> = market.links.iter().map(|link| link.url.to_string()).collect();
        let channels: Vec<String> = market.channels.iter().map(ToString::to_string).collect();
        format!("{}: {} {}", market.market, urls.join(" "), channels.join(","))
    };
    config.markets.iter().map(market).collect()
}

#[test]
fn the_settings_of_each_plan_lead_to_its_hosts() {
    let text = operations();
    let section = text.split("\n## Plans\n").nth(1).expect("a section").split("\n## ").next();
    let rows = section.unwrap_or_default().lines().filter(|line| line.starts_with("| "));
    let settings = rows.filter_map(|row| row.rsplit('`').nth(1)).filter(|cell| cell.contains('='));
    let found: Vec<String> =
        settings.flat_map(|setting| shown(&config(&["MARKETS=stocks,options", setting]))).collect();
    let socket = "wss://socket.massive.com";
    let stocks = format!("stocks: {socket}/stocks T.*,Q.*,A.*,AM.*,LULD.*,NOI.*");
    let options = format!("options: {socket}/options T.*,A.*,AM.*");
    let business = "wss://business.massive.com/stocks";
    assert_eq!(
        found,
        [
            stocks.clone(),
            options.clone(),
            stocks.replace("socket", "delayed"),
            options.replace("socket", "delayed"),
            format!("stocks: {business} A.*,AM.*,FMV.*"),
            options.clone(),
            format!(
                "stocks: wss://delayed-business.massive.com/stocks {business} T.*,Q.*,A.*,AM.*,FMV.*"
            ),
            options,
            "stocks: wss://launchpad.massive.com/stocks AM.*,LV.*".to_owned(),
            "options: wss://launchpad.massive.com/options ".to_owned(),
            stocks,
            format!("options: {0} {0} {0} T.*,A.*,AM.*", format!("{socket}/options")),
        ]
    );
}

#[test]
fn the_example_of_several_markets_is_valid() {
    let key = tempfile::NamedTempFile::new().expect("a file");
    fs::write(key.path(), "other").expect("a file");
    let text = operations();
    let section = text.split("\n## Several markets\n").nth(1).expect("a section");
    let example = section.split("```sh\n").nth(1).expect("an example").split("```").next();
    let file = key.path().to_str().expect("a path");
    let example = example.unwrap_or_default().replace("/run/secrets/crypto", file);
    let lines: Vec<&str> = example.lines().collect();
    assert_eq!(
        shown(&config(&lines)),
        [
            "stocks: wss://socket.massive.com/stocks T.*,Q.*,A.*,AM.*,LULD.*,NOI.*",
            "options: wss://delayed.massive.com/options T.*,A.*,AM.*",
            "crypto: wss://socket.massive.com/crypto XT.*,XA.*",
        ]
    );
}
