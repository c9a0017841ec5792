//! Scripted faults: lines of JSON that say when what happens.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::{config::check_rate, fault::Fault, market::Market, server::SimHandle};

/// Steps in the order of their times.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
struct Step {
    at: Duration,
    /// `None` means every market.
    market: Option<Market>,
    act: Act,
}

#[derive(Debug, Clone, PartialEq)]
enum Act {
    Inject(Fault),
    Rate(f64),
}

/// A line as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    at: String,
    market: Option<String>,
    fault: Option<Fault>,
    rate: Option<f64>,
}

impl Plan {
    /// Reads a plan: one JSON object per line, `{"at":"12s","fault":{"fault":"evict"}}` or
    /// `{"at":"500ms","rate":2000}`. With `"market":"crypto"` a step is for that market alone, and
    /// must name one of `markets`; without, it is for all. Empty lines and lines that start with
    /// `#` are skipped. Times count from the start of [`Plan::run`]. Steps with the same time keep
    /// their order.
    ///
    /// # Errors
    /// Names the first line that cannot be read, and the reason.
    pub fn parse(text: &str, markets: &[Market]) -> Result<Self> {
        let mut steps = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                steps.push(
                    step(line, markets).with_context(|| format!("line {number} of the plan"))?,
                );
            }
        }
        steps.sort_by_key(|step| step.at);
        Ok(Self(steps))
    }

    /// Carries out the plan, then returns.
    pub async fn run(self, markets: Vec<SimHandle>) {
        let start = Instant::now();
        for Step { at, market: only, act } in self.0 {
            sleep_until(start + at).await;
            for market in &markets {
                if only.is_some_and(|only| only != market.market()) {
                    continue;
                }
                let name = market.market().name();
                match &act {
                    Act::Inject(fault) => {
                        info!(market = name, fault = fault.to_string(), "plan");
                        market.inject(fault.clone());
                    }
                    Act::Rate(rate) => {
                        info!(market = name, rate, "plan");
                        market.set_rate(*rate);
                    }
                }
            }
        }
    }
}

fn step(line: &str, markets: &[Market]) -> Result<Step> {
    let line: Line = serde_json::from_str(line)?;
    let market = match line.market {
        Some(name) => {
            let market: Market = name.parse()?;
            ensure!(markets.contains(&market), "market {market} is not served");
            Some(market)
        }
        None => None,
    };
    let act = match (line.fault, line.rate) {
        (Some(fault), None) => Act::Inject(fault),
        (None, Some(rate)) => {
            check_rate(rate)?;
            Act::Rate(rate)
        }
        (Some(_), Some(_)) | (None, None) => return Err(anyhow!("needs either fault or rate")),
    };
    Ok(Step { at: parse_duration(&line.at)?, market, act })
}

/// Reads a duration: a number and one of `ms`, `s`, `m`.
///
/// # Errors
/// When the text does not have that form.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(anyhow!("{text:?} is not a duration like 250ms, 12s or 2m")),
    };
    let number: f64 =
        number.parse().with_context(|| format!("{text:?} is not a duration like 250ms"))?;
    Duration::try_from_secs_f64(number * seconds).with_context(|| format!("{text:?} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_steps_in_order_of_time() {
        let plan = Plan::parse(
            "# a comment\n\n{\"at\":\"2s\",\"fault\":{\"fault\":\"evict\"}}\n\
             {\"at\":\"500ms\",\"market\":\"crypto\",\"rate\":20}\n",
            &[Market::Stocks, Market::Crypto],
        )
        .unwrap();
        let expected = [
            Step {
                at: Duration::from_millis(500),
                market: Some(Market::Crypto),
                act: Act::Rate(20.0),
            },
            Step { at: Duration::from_secs(2), market: None, act: Act::Inject(Fault::Evict) },
        ];
        assert_eq!(plan.0, expected);
    }

    #[test]
    fn names_the_bad_line() {
        for bad in [
            "{\"at\":\"2\",\"rate\":1}",
            "{\"at\":\"1s\"}",
            "{\"at\":\"1s\",\"rate\":-1}",
            "{\"at\":\"1s\",\"rate\":1,\"market\":\"crypto\"}",
            "{\"at\":\"1s\",\"rate\":1,\"market\":\"bonds\"}",
            "{\"at\":\"1s\",\"fault\":{\"fault\":\"flood\"}}",
            "{\"at\":\"1s\",\"fault\":{\"fault\":\"refuse_auth\",\"of\":true}}",
        ] {
            let error = Plan::parse(&format!("\n{bad}\n"), &[Market::Stocks]).unwrap_err();
            assert!(error.to_string().contains("line 2"), "{bad}: {error:#}");
        }
    }

    #[test]
    fn reads_durations() {
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1_500));
        assert_eq!(parse_duration("2m").unwrap(), Duration::from_secs(120));
        for bad in ["", "s", "5", "5h", "-1s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
