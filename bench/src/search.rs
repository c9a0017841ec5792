//! The highest rate without loss.

use anyhow::Result;

use crate::rig::Outcome;

/// The search ends when the good and the bad rate are this close.
const CLOSE_ENOUGH: f64 = 1.06;
/// The search also ends after this many rates. A rate that fails is tried twice.
const MAX_RATES: usize = 10;
/// The factor to the next rate while no rate has failed yet.
const RAISE: f64 = 1.4;

/// Finds the highest rate, in events per second, at which the outcome of `run` is good. `None` if
/// no outcome was.
///
/// It tries `guess` first and raises it until a rate fails, so the guess is no upper bound: a
/// search with a ceiling could report its own ceiling.
///
/// `run` must start afresh at each call, so that one rate does not damage the next.
pub fn highest(
    guess: f64,
    good: impl Fn(&Outcome) -> bool,
    mut run: impl FnMut(f64) -> Result<Outcome>,
) -> Result<Option<Outcome>> {
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut best = None;
    for _ in 0..MAX_RATES {
        if low > 0.0 && high / low < CLOSE_ENOUGH {
            break;
        }
        let rate = match (low, high.is_finite()) {
            (_, true) => (low + high) / 2.0,
            (0.0, false) => guess,
            (_, false) => low * RAISE,
        };
        let mut outcome = run(rate)?;
        if !good(&outcome) {
            // A short disturbance must not decide the search.
            outcome = run(rate)?;
        }
        if good(&outcome) {
            low = rate;
            best = Some(outcome);
        } else {
            high = rate;
        }
    }
    Ok(best)
}

/// The middle of these figures, the lower one of two.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Faults;

    fn outcome(rate: f64, ended: usize) -> Outcome {
        Outcome {
            events: rate as u64,
            seconds: 1.0,
            deliveries: 0,
            p50_ms: 0.0,
            p99_ms: 0.0,
            faults: Faults::default(),
            ended,
            kept_up: true,
            costs: Vec::new(),
            own_cpu_seconds: 0.0,
            other_cores: 0.0,
            notices: Vec::new(),
            recording: None,
        }
    }

    #[test]
    fn the_search_closes_in_on_the_highest_good_rate() {
        let run = |rate: f64| Ok(outcome(rate, usize::from(rate > 700_000.0)));
        let found = highest(4e6, Outcome::is_sustained, run).unwrap().unwrap();
        assert!((660_000.0..=700_000.0).contains(&found.rate()), "{}", found.rate());
        let low_guess = highest(100_000.0, Outcome::is_sustained, run).unwrap().unwrap();
        assert!((640_000.0..=700_000.0).contains(&low_guess.rate()), "{}", low_guess.rate());
        let none = highest(4e6, |_| false, |rate| Ok(outcome(rate, 0))).unwrap();
        assert!(none.is_none());
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![2.0, 1.0]), 1.0);
        assert!(median(Vec::new()).is_nan());
    }
}
